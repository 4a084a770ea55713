"""Gradients in parts of a batch against the whole batch's and NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.study.devices import arrangement, layout
from prunejax.study.planning import plan
from prunejax.study.settings import config
from prunejax.train import microbatch, step
from tests.studies import PRUNE, tiny


def study(name="lenet300", size=8, **changes):
    prune = PRUNE | {"score": "activations", "layers": ("dense1", "dense2"), "start": (2, 3)}
    c = tiny(S={"prune": prune}, **changes)
    c.model.name, c.population.microbatch = name, size
    return c, config.variants(c, default.get_config())


@pytest.mark.parametrize(
    ("batch", "size", "count"), [(32, 0, 1), (32, 8, 4), (32, 32, 1), (20, 8, 1), (8, 16, 1)]
)
def test_parts_are_equal_or_there_is_one(batch, size, count):
    assert microbatch.parts(batch, size) == count


def test_floats_are_averaged_integers_summed():
    x = np.arange(24.0, dtype=np.float32).reshape(12, 2)

    @jax.jit
    def found(x):
        return microbatch.mean_over_parts(
            lambda part, number: (part[0].mean(0), jnp.sum(part[0] > 7), number), (x,), 3
        )

    mean, above, numbers = found(x)
    np.testing.assert_allclose(mean, x.mean(0))
    assert (above, numbers) == ((x > 7).sum(), 0 + 1 + 2)


def test_a_step_in_parts_is_the_step_of_the_batch():
    _, arms = study()
    (batch,) = plan.build(arms)
    data, member = arrangement.device_data(batch.dataset), batch.members[0]
    assert batch.program.microbatch == 8
    assert batch.program.needs_activations
    programs = [batch.program, dataclasses.replace(batch.program, microbatch=0)]

    @jax.jit
    def both(table, hyper, images, labels):
        states = [step.initial_state(p, 0, table, hyper) for p in programs]
        pairs = zip(programs, states, strict=True)
        return [step.train_step(p, s, images, labels) for p, s in pairs]

    images, labels = data.train_images[:32], data.train_labels[:32]
    parts, whole = both(member.table, member.hyper, images, labels)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert parts.totals.correct == whole.totals.correct
    assert parts.totals.examples == 32


@pytest.mark.parametrize(
    ("size", "share", "message"),
    [(5, 1, "microbatch = 5 has to divide config.batch_size = 32"), (1, 2, "a multiple of")],
)
def test_parts_that_do_not_fit_are_refused(size, share, message):
    c, _ = study(size=size)
    c.population.data_parallel = share
    with pytest.raises(ConfigError, match=message):
        layout.check(c)


def test_batch_norm_needs_the_whole_batch():
    with pytest.raises(ConfigError, match="microbatch = 8: BatchNorm in 'mlp' needs the whole"):
        plan.build(study("mlp")[1])
