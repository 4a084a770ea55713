"""Which values a field of a config may have: names to choose from, and bounds of numbers."""

from collections.abc import Collection

from prunejax import allocate, interventions, losses, schedules
from prunejax import scores as scores_lib
from prunejax.methods import growth
from prunejax.study import presets
from prunejax.train import optim, prune

# Tables that the tests of values below refer to; data sets and models check their own names.
CHOICES: dict[str, Collection[str]] = {
    "loss": losses.LOSSES,
    "model.dtype": ("float32", "bfloat16"),
    "optimizer.name": tuple(optim.OPTIMIZERS),
    "optimizer.schedule": optim.SCHEDULES,
    "optimizer.weight_decay_kind": ("coupled", "decoupled"),
    "prune.schedule": ("none", *schedules.SCHEDULES, "phases"),
    "prune.score": scores_lib.SCORES,
    "prune.target": tuple(prune.TARGETS),
    "prune.granularity": ("filter", "weight"),
    "prune.unit": ("epoch", "step"),
    "prune.of": ("all", "live"),
    "start.shuffle": ("no", "layer", "global"),
    "prune.allocation": ("rules", *allocate.ALLOCATIONS),
    "prune.evidence": ("first", "batch", "balanced"),
    "prune.grow": ("none", "gradient", "random"),
    "prune.method": ("none", *presets.METHODS),
    "prune.update_schedule": tuple(growth.DECAYS),
    "prune.update_score": scores_lib.SCORES,
    "prune.scope": ("layer", "global"),
    "intervention.kind": tuple(interventions.KINDS),
    "intervention.scope": tuple(interventions.SCOPES),
    "intervention.restore": tuple(interventions.RESTORES),
    "population.layout": ("auto", "sequential", "vectorized", "sharded"),
    "measures.split": ("train", "test"),
    "measures.batch_norm": ("eval", "train"),
}
# Lowest and highest value allowed (None: no bound), and what the number is.
RANGES: dict[str, tuple[float | None, float | None, str]] = {
    "seeds": (1, 100_000, "runs per variant"),
    "first_seed": (0, 2**32 - 1, "seed"),
    "epochs": (1, 1_000_000, "passes over the training examples"),
    "batch_size": (1, None, "examples"),
    "eval_batch_size": (1, None, "examples"),
    "data.train_examples": (0, None, "examples; 0: all"),
    "data.test_examples": (0, None, "examples; 0: all"),
    "data.validation_examples": (0, None, "examples"),
    "data.label_noise": (0, 1, "fraction"),
    "data.imbalance": (1, None, "ratio; 1: as they are"),
    "data.image_size": (1, None, "pixels"),
    "data.seed": (0, 2**32 - 1, "seed"),
    "model.width": (0, None, "factor, above 0"),
    "model.dropout": (0, 0.999, "fraction"),
    "optimizer.learning_rate": (0, None, "rate"),
    "optimizer.decay": (0, 1000, "factor"),
    "optimizer.momentum": (0, 0.9999, "fraction"),
    "optimizer.weight_decay": (0, None, "coefficient"),
    "optimizer.clip_norm": (0, None, "norm; 0: none"),
    "optimizer.label_smoothing": (0, 0.999, "fraction"),
    "prune.period": (1, None, "epochs"),
    "prune.rounds": (1, 10_000, "events"),
    "prune.per_class": (1, None, "examples"),
    "prune.regrow": (0, 1, "fraction of the live units"),
    "prune.update_every": (0, None, "training steps; 0: none"),
    "prune.update_fraction": (0, 1, "fraction of the live units"),
    "prune.update_end": (0, 1, "fraction of the training steps"),
    "prune.saliency_examples": (1, None, "examples"),
    "intervention.duration": (-1, interventions.FOREVER - 2, "training steps; -1: forever"),
    "intervention.noise_scale": (0, None, "multiple of a standard deviation"),
    "population.devices": (0, 65_536, "devices; 0: all"),
    "population.data_parallel": (1, None, "devices"),
    "population.microbatch": (0, None, "examples; 0: the whole batch"),
    "population.memory_gib": (0, None, "GiB; 0: measured"),
    "checkpoint.every_epochs": (0, None, "epochs"),
    "checkpoint.every_minutes": (0, None, "minutes"),
    "checkpoint.keep": (1, None, "checkpoints"),
    "measures.examples": (0, None, "examples; 0: all"),
    "measures.probes": (2, 1_000_000, "probes"),
    "measures.eigenpairs": (1, None, "pairs"),
    "measures.radius": (1e-12, None, "length in units of the weights"),
}
