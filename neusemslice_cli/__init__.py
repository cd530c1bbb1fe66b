"""The command line: one thin entry, which imports what a command needs when it runs."""
