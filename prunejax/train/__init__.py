"""One step of one run: training, events, evaluation, the optimizer."""
