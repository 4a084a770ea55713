"""Tiny studies on the embedded digits: seconds on one core."""

from ml_collections import ConfigDict

from prunejax.configs import default

PRUNE = {
    "schedule": "linear",
    "layers": ("dense2", "dense3"),
    "fraction": (0.25, 0.5),
    "start": (0, 1),
    "end": (2, 3),
    "period": 1,
    "score": "ebn",
}


def tiny(**variants: dict) -> ConfigDict:
    """4 epochs of 4 steps (the last one partial); 2 seeds; the given variants (None: a few)."""
    config = default.get_config()
    config.name = "tiny"
    config.seeds, config.epochs, config.batch_size, config.eval_batch_size = 2, 4, 32, 40
    config.data.train_examples, config.data.test_examples = 100, 90
    config.model.width = 0.125
    config.population.layout = "sequential"
    some = {"none": {}, "S": {"prune": PRUNE}, "L": {"prune": PRUNE | {"target": "largest"}}}
    config.variants = default.arms(variants or some)
    return config
