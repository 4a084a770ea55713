"""Arguments that count something are whole numbers, and labels integers, wherever they go."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import allocate, curvature, data, losses, masks, methods, registry, schedules
from prunejax.configs import default, recipes
from prunejax.measures import (
    bounds,
    manifold,
    matching,
    norms,
    pair_information,
    ranking_statistics,
    recall,
    recall_balance,
    smoothing,
)
from prunejax.methods import before, timetable, updates, windows

KEY, X, LABELS = jax.random.key(0), jnp.ones((3, 2)), np.array([0, 1, 0])
MODELS = np.arange(12.0)
AXES = {"a": (np.arange(12) % 2).tolist()}
RIGHT = LABELS == LABELS
SPECTRUM = manifold.Spectrum(np.array([3.0, 2.0]), np.eye(2), 0.0)


def outputs(x):
    return x


def attacked(**counts):
    return losses.projected_gradient(outputs, X, jnp.asarray(LABELS), X, X, key=KEY, **counts)


# argument, the least there is, and who counts with it
COUNTED = [
    ("select", 1, lambda **n: smoothing.smooth(outputs, X, 2, 0.1, key=KEY, **n)),
    ("draws", 1, lambda **n: smoothing.smooth(outputs, X, 2, 0.1, key=KEY, **n)),
    ("classes", 1, lambda **n: smoothing.smooth(outputs, X, sigma=0.1, key=KEY, **n)),
    ("classes", 1, lambda **n: recall_balance.counts(LABELS, LABELS, **n)),
    ("splits", 1, lambda **n: recall.split_half(RIGHT, RIGHT, LABELS, 2, **n)),
    ("permutations", 1, lambda **n: recall.permutation_test(LABELS, LABELS, LABELS, 2, **n)),
    ("draws", 0, lambda **n: ranking_statistics.kendall(MODELS, MODELS, **n)),
    ("draws", 0, lambda **n: ranking_statistics.partial_kendall(MODELS, MODELS, MODELS, **n)),
    ("draws", 0, lambda **n: ranking_statistics.r_squared(MODELS, MODELS, **n)),
    ("permutations", 2, lambda **n: pair_information.null(MODELS, MODELS, AXES, **n)),
    ("most", 0, lambda **n: pair_information.conditional(MODELS, MODELS, AXES, **n)),
    ("probes", 1, lambda **n: manifold.remainder_lipschitz(jnp.sum, X, radius=1, key=KEY, **n)),
    ("count", 0, lambda **n: data.load("digits").first("test", **n)),
    ("count", 0, lambda **n: SPECTRUM.largest_gaps(**n)),
    ("sweeps", 0, lambda **n: matching.weight_matching({}, {}, [], **n)),
    ("steps", 0, attacked),
    ("restarts", 1, attacked),
]  # fmt: skip


@pytest.mark.parametrize(("name", "least", "counting"), COUNTED)
def test_counts_are_whole_numbers(name, least, counting):
    """Of 2.5 draws `smooth` took two and divided by 2.5; -1 splits were said to disagree."""
    for wrong in (least - 1, 2.5, float("nan"), True, "3", None):
        with pytest.raises(ValueError, match=f"{name} is {wrong!r}; it is a whole number, {least}"):
            counting(**{name: wrong})


SCORES = jnp.arange(8.0).reshape(4, 2)
OPERATOR = curvature.from_matvec(lambda v: v, jnp.zeros(3))
TRUTHS = [  # who counts with True, and the error that says so
    (lambda: curvature.eigenpairs(OPERATOR, True, key=KEY), TypeError),
    (lambda: curvature.estimate_trace(OPERATOR, key=KEY, probes=True), TypeError),
    (lambda: curvature.estimate_density(OPERATOR, key=KEY, grid=True), ValueError),
    (lambda: masks.nm(SCORES, True, 4), ValueError),
    (lambda: masks.nm(SCORES, 1, True), ValueError),
    (lambda: masks.prune(SCORES, True), ValueError),
    (lambda: allocate.ALLOCATIONS["uniform"]({"a": (4,)}, True), ValueError),
    (lambda: schedules.linear(units=8, fraction=0.5, start=True, end=4, period=1), ValueError),
    (lambda: schedules.counts([(0, True)], 3), ValueError),
    (lambda: windows.windows(optax.sgd(0.1), [(0, 1)], duration=True), ValueError),
    (lambda: updates.pairs([(0, True)]), ValueError),
    (lambda: timetable.alternate(total=7, warmup=1, sparse=True, dense=1, final=2), ValueError),
    (lambda: methods.resolve("gradual", sparsity=0.5, end=9, every=True), ValueError),
    (lambda: methods.resolve("nm", nm=(True, 4)), ValueError),
    (lambda: before.balanced_batch(LABELS, per_class=True, seed=0), ValueError),
    (lambda: data.load("digits", train_examples=True), ValueError),
]


@pytest.mark.parametrize(("counting", "error"), TRUTHS)
def test_truth_values_are_no_counts(counting, error):
    with pytest.raises(error, match=r"True|bool|integer|numbers"):
        counting()


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "3", None, (1, 2)])
def test_levels_of_recipes_are_whole_numbers(wrong):
    config = default.get_config()
    with pytest.raises(ValueError, match=r"levels .* must be a whole number, at least 1"):
        recipes.lottery(config, levels=wrong)
    with pytest.raises(ValueError, match=r"control 'restart' at level .*: there are 1 to 3"):
        recipes.lottery(config, levels=3, controls={"restart": (1, wrong)})


@pytest.mark.parametrize("wrong", [2, "12", None])
def test_levels_of_controls_are_several(wrong):
    with pytest.raises(ValueError, match=f"control 'erk': {wrong!r} are no levels; give a tuple"):
        recipes.lottery(default.get_config(), levels=np.int64(3), controls={"erk": wrong})


def test_numpys_integers_count():
    registry.whole(1, a=np.int64(1), b=np.uint8(3))
    with pytest.raises(ValueError, match="b is 0"):
        registry.whole(1, a=1, b=0)


LOGITS = jnp.eye(3)[:, :2]
SMOOTHED = smoothing.Smoothed(LABELS, np.ones(3), np.ones(3), 0.9)
ARRAYS = [  # what computes with JAX takes arrays, as JAX does
    lambda y: losses.cross_entropy(LOGITS, y),
    lambda y: losses.hinge(LOGITS, y),
    lambda y: losses.correct(LOGITS, y),
    lambda y: bounds.margins_of(y, 2),
]
LISTS = [
    lambda y: norms.margins(LOGITS, y),
    lambda y: norms.inverse_margin(LOGITS, y),
    lambda y: SMOOTHED.certified(y),
    lambda y: recall_balance.counts(LABELS, y, 2),
]


@pytest.mark.parametrize("labelled", [*ARRAYS, *LISTS])
def test_labels_are_integers(labelled):
    """Margins of labels in floats were an IndexError of NumPy, and 1.5 was certified as wrong."""
    found = labelled(LABELS)
    for wrong in (np.array([0.0, 1.5, 0.0]), np.array(["a", "b", "a"])):
        with pytest.raises(ValueError, match=f"{wrong.dtype}"):
            labelled(wrong)
    if labelled in LISTS:
        np.testing.assert_equal(labelled(LABELS.tolist()), found)
    else:
        with pytest.raises(TypeError, match=r"targets are a list; give an array: jnp\.asarray"):
            labelled(LABELS.tolist())


@pytest.mark.parametrize("loss", [*losses.LOSSES.values(), losses.correct])
def test_outputs_are_arrays(loss):
    """A list of logits ended in an AttributeError."""
    with pytest.raises(TypeError, match=r"outputs are a list; give an array: jnp\.asarray"):
        loss(LOGITS.tolist(), LABELS)
