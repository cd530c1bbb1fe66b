"""An epoch in which half of the neurons are frozen against one in which everything trains.

    python -m benchmarks.freezing

Both run the same steps on drawn samples, in turn; the least processor time of each counts. The floor is an epoch
without any mask: the gradients of frozen entries are masked before each step, which reads and writes them once.
"""

import time

import torch
from torch import nn

from benchmarks.networks import vgg16_cifar10
from neusemslice import trace
from neusemslice.copying import copy_graph
from neusemslice.cutting import cut_neurons
from neusemslice.neuron_parameters import neuron_parameters, parameter_share
from neusemslice.training import InMemory, train
from neusemslice.training_config import TrainingConfig

REPEATS = 7


def main() -> None:
    """Print the table."""
    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    networks = {"MLP 784-512-256-10": (mlp, (1, 28, 28), 16384), "VGG16-CIFAR10": (vgg16_cifar10(), (3, 32, 32), 128)}
    print("| network | optimizer | weight decay | trains | everything | half frozen | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, (network, shape, count) in networks.items():
        model = trace(network, torch.zeros(1, *shape))
        keep = {layer.name: torch.arange(layer.neurons) % 2 == 0 for layer in model.sliceable_layers}
        masks = neuron_parameters(cut_neurons(model, keep))
        samples = InMemory(torch.randn(count, *shape), torch.arange(count) % 10)
        for optimizer, decay in (("sgd", 0.0), ("sgd", 1e-4), ("adam", 0.0), ("adam", 1e-4), ("adamw", 1e-2)):
            config = TrainingConfig(
                epochs=1, batch_size=128, optimizer=optimizer, learning_rate=1e-4, weight_decay=decay, clip_norm=1.0
            )
            times: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(REPEATS):
                for frozen, spent in times.items():
                    trained = copy_graph(model.graph_module)
                    started = time.process_time()
                    train(trained, samples, config, trainable=masks if frozen else None)
                    spent.append(time.process_time() - started)
            whole, part = min(times[False]), min(times[True])
            print(
                f"| {name} | {optimizer} | {decay:g} | {parameter_share(masks):.0%} | {whole:.3f} s | {part:.3f} s "
                f"| {part / whole:.2f}x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
