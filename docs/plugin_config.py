"""A study with a model, a data set, a score and a loss of its own: copy, change, run.

python -m prunejax.main --config=docs/plugin_config.py --workdir=runs/mine
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prunejax import data, losses, models, scores
from prunejax.configs import default
from prunejax.data import dataset
from prunejax.models.base import Model


class TwoLayers(Model):
    """One hidden layer of 16 units, times `width`."""

    def prunable(self):
        """The hidden layer, which has no BatchNorm."""
        return ("hidden",)

    @nn.compact
    def __call__(self, x, train=False):
        """Outputs [batch, num_classes]."""
        x = nn.relu(nn.Dense(self.scaled(16), name="hidden")(x.reshape(x.shape[0], -1)))
        return self.logits(x)


def blobs(data_dir=None):
    """Two normal clouds in the plane, 80 training and 40 test examples."""
    draw = np.random.default_rng(0)
    labels = np.arange(120, dtype=np.int32) % 2
    points = (draw.normal(size=(120, 2)) + 3 * labels[:, None]).astype(np.float32)
    train, test = ((points[s].copy(), labels[s].copy()) for s in (slice(80), slice(80, None)))
    return dataset.make("blobs", train, test, 2, prepare=dataset.Standardize.of(train[0]))


def spread(inputs):
    """Standard deviation of a unit's weights: larger = kept longer."""
    return jnp.std(inputs.kernel, axis=tuple(range(inputs.kernel.ndim - 1)))


def brier(outputs, labels):
    """Squared distance of the probabilities from the label's, per example."""
    wrong = jax.nn.softmax(outputs) - jax.nn.one_hot(labels, outputs.shape[-1])
    return jnp.sum(wrong**2, axis=-1)


models.MODELS["two_layers"] = (TwoLayers, {})
data.DATASETS["blobs"] = blobs
scores.SCORES["spread"] = scores.Score(spread)
losses.LOSSES["brier"] = brier


def get_config(arg=""):
    """The study; `arg` is not used."""
    del arg
    config = default.get_config()
    config.name, config.epochs, config.batch_size = "Mine", 3, 16
    config.model.name, config.data.name, config.loss = "two_layers", "blobs", "brier"
    half = {"schedule": "one_shot", "layers": ("hidden",), "start": (1,), "score": "spread"}
    config.variants = default.arms({"none": {}, "half": {"prune": half}})
    return config
