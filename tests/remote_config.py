"""Two small runs, saved after every epoch: what `test_remote.py` gives the command line."""

from tests.studies import PRUNE, tiny


def get_config():
    """Config of the study."""
    config = tiny(none={}, S={"prune": PRUNE})
    config.seeds, config.data.train_examples = 1, 128  # whole batches: one program less
    config.report.figures = ("dynamics",)
    config.checkpoint.every_epochs = 1
    return config
