"""Two small runs, saved after every epoch: what `test_remote.py` gives the command line."""

from tests.studies import PRUNE, tiny


def get_config():
    """Config of the study."""
    config = tiny(none={}, S={"prune": PRUNE})
    config.seeds = 1
    config.checkpoint.every_epochs = 1
    return config
