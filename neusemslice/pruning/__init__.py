"""Weight pruning: zeros in a network that keeps its shape, in iterations, with fine-tuning between them if asked."""
