"""The small studies whose bytes `tests/oracle.py` compares, as a config file: one for each `arg`.

Each takes a few seconds of training. Nothing here is measured or chosen by the machine: layouts
and devices are fixed.
"""

from prunejax.configs import default, digits

PRUNE = {
    "schedule": "linear",
    "layers": ("dense2", "dense3"),
    "fraction": (0.25, 0.5),
    "start": (0, 1),
    "end": (2, 4),
    "period": 1,
    "score": "ebn",
}
CONV = PRUNE | {"layers": ("conv3", "conv4"), "start": (0,), "end": (2,), "score": "l2"}
# Windows that close, and the ways back.
WINDOWS = {
    "prune": {},
    "zero": {"kind": "zero", "duration": 9, "mask_norm": False},
    "zero_forever": {"kind": "zero", "scope": "cumulative"},
    "gaussian": {"kind": "gaussian", "duration": 9, "noise_scale": 0.5, "mask_norm": False},
    "nothing": {"kind": "none"},
    "dense_sparse_dense": {"duration": 9},
    "restore": {"duration": 5, "restore": "weights+norm"},
    "twin": {"kind": "gaussian", "duration": 3, "twin": "random", "restore": "weights"},
}


def _small(**variants):
    config = default.get_config()
    config.seeds, config.epochs, config.batch_size, config.eval_batch_size = 2, 6, 32, 40
    config.data.train_examples, config.data.test_examples = 100, 90
    config.model.width = 0.125
    config.population.layout, config.population.devices = "sequential", 1
    config.checkpoint.every_minutes = 0.0
    config.report.figures = ("table",)
    config.variants = default.arms(variants)
    return config


def _digits():
    config = digits.get_config("quick")
    config.population.devices = 2
    config.report.figures = ("table",)
    return config


def _windows():
    arms = {
        label: {"prune": PRUNE | {"target": "random" if label == "twin" else "largest"}}
        | {"intervention": window}
        for label, window in WINDOWS.items()
    }
    config = _small(none={}, random={"prune": PRUNE | {"target": "random"}}, **arms)
    config.population.layout = "vectorized"
    return config


def _weights():
    weights = {"granularity": "weight", "score": "magnitude"}
    config = _small(
        layer={"prune": PRUNE | weights},
        layer_restored={
            "prune": PRUNE | weights | {"target": "random"},
            "intervention": {"duration": 5, "restore": "weights"},
        },
        everywhere={"prune": PRUNE | weights | {"scope": "global", "score": "weight_saliency"}},
    )
    config.prune.saliency_examples = 64
    return config


def _filters():
    prune = PRUNE | {"scope": "global"}
    return _small(
        smallest={"prune": prune},
        largest={"prune": prune | {"target": "largest", "score": "l1", "schedule": "cubic"}},
        before={"prune": prune | {"target": "random", "schedule": "scratch"}},
        geometric={"prune": prune | {"score": "l2", "schedule": "geometric"}},
    )


def _scores():
    names = ("activations", "saliency", "ebn_signed", "l2")
    config = _small(**{name: {"prune": CONV | {"score": name}} for name in names})
    config.variants.activations.prune.start = (2,)  # step 12: averages begin at the tenth
    config.seeds, config.epochs = 1, 3
    config.model.name = "vgg4_bn"
    config.prune.saliency_examples = 64
    config.data.augment = True
    config.data.validation_examples, config.data.label_noise = 20, 0.2
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.05
    config.optimizer.weight_decay, config.optimizer.clip_norm = 1e-3, 1.0
    return config


def _released():
    window = {"kind": "gaussian", "duration": 5, "as_released": True}
    config = _small(
        pruned={"prune": PRUNE, "intervention": {"as_released": True}},
        noise={"prune": PRUNE, "intervention": window},
        zero={
            "prune": PRUNE,
            "intervention": window | {"kind": "zero", "restore": "weights", "mask_norm": False},
        },
    )
    config.seeds = 1
    return config


def _streamed():
    config = _small(
        S={"prune": PRUNE | {"score": "saliency"}},
        L={"prune": PRUNE | {"score": "ebn", "target": "largest"}},
    )
    config.seeds, config.epochs, config.batch_size, config.eval_batch_size = 1, 2, 8, 8
    config.data.train_examples = config.data.test_examples = 0
    config.data.name, config.data.image_size, config.data.augment = "imagenet2012", 14, True
    config.prune.start, config.prune.end = (0,), (1,)
    for variant in config.variants.values():
        variant.prune.start, variant.prune.end = (0,), (1,)
    config.prune.saliency_examples = 24
    config.measures.forecast = True
    return config


def _devices():
    config = _small(
        S={"prune": PRUNE | {"scope": "global"}},
        noise={
            "prune": PRUNE | {"target": "random"},
            "intervention": {"kind": "gaussian", "duration": 5},
        },
    )
    config.seeds = 1
    config.population.devices = config.population.data_parallel = 2
    config.population.shard_params = True
    return config


def _processes():
    config = _small(S={"prune": PRUNE}, twin={"prune": PRUNE, "intervention": {"twin": "S"}})
    config.population.layout, config.population.devices = "sharded", 2
    config.measures.names, config.measures.examples = ("gradient_second_moment",), 32
    return config


def _killed():
    config = _windows()
    config.seeds, config.epochs = 1, 24
    config.checkpoint.every_epochs = 1
    for label in list(config.variants):
        if label not in ("none", "random", "gaussian", "restore", "twin"):
            del config.variants[label]
        elif label != "none":
            config.variants[label].prune.end = (18, 20)
            config.variants[label].prune.period = 3
    return config


STUDIES = {
    "digits": _digits,  # two devices; measures and forecast
    "windows": _windows,
    "weights": _weights,
    "filters": _filters,
    "scores": _scores,
    "released": _released,
    "streamed": _streamed,
    "devices": _devices,  # that share a run
    "processes": _processes,
    "killed": _killed,
}


def get_config(arg: str = ""):
    config = STUDIES[arg]()
    config.name = arg
    return config
