"""Paths whose values are known, BatchNorm policies by hand, networks and their permuted twins."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import models, rng, trees
from prunejax.measures import matching
from prunejax.measures.connectivity import (
    State,
    barrier_matrix,
    cosine,
    disagreement,
    distance,
    instability,
    linen_statistics,
    path,
)
from prunejax.models.convnets import ConvNet
from prunejax.models.mlp import MLP
from prunejax.models.vgg import VGG


def well(params):
    """Two minima at w = -1 and 1 with a hill of height 1 between them, a bowl in v."""
    return (params["w"] ** 2 - 1) ** 2 + 3 * params["v"] ** 2


def test_a_path_whose_error_is_known():
    a, b = {"w": jnp.float32(-1), "v": jnp.float32(0)}, {"w": jnp.float32(1), "v": jnp.float32(2)}
    line = path(well, a, b)
    t = np.linspace(0, 1, 21)
    expected = ((2 * t - 1) ** 2 - 1) ** 2 + 12 * t**2
    np.testing.assert_allclose(line.values["loss"], expected, rtol=1e-5, atol=1e-6)
    assert line.barrier("loss") == pytest.approx(expected.max() - 6, rel=1e-5)
    assert line.peak("loss") == 1
    flat = {"w": jnp.float32(1), "v": jnp.float32(0)}
    assert path(well, a, flat, points=3).barrier("loss") == 1
    assert path(well, a, a).barrier("loss") == 0
    assert (line.policy, line.examples) == ("", 0)


def test_a_line_without_a_number_does_not_decide_for_the_others():
    def evaluate(p):  # no number beyond w = 1.5, where the third network is
        return {"loss": jnp.where(p["w"] > 1.5, jnp.nan, well(p))}

    ends = [{"w": jnp.float32(w), "v": jnp.float32(0)} for w in (-1, 1, 2)]
    found = barrier_matrix(evaluate, ends, name="loss", points=5)
    assert found.mean == found.matrix[0, 1] == pytest.approx(1)
    assert np.isnan(found.matrix[2, :2]).all()
    line = path(evaluate, ends[0], ends[2], points=5)
    assert np.isnan([line.barrier("loss"), line.peak("loss")]).all()


def test_the_ends_are_the_networks_themselves():
    r = np.random.default_rng(0)
    a, b = ({"w": jnp.asarray(r.normal(size=7), jnp.float32)} for _ in range(2))
    batch = jnp.asarray(r.normal(size=(9, 7)), jnp.float32)
    # The sum of bits: any rounding at the ends would show.
    evaluate = lambda p, x: {"accuracy": (x @ p["w"] > 0).mean(), "w": p["w"][3]}  # noqa: E731
    line = path(evaluate, a, b, batch, batch_size=4)
    assert (line.values["w"][0], line.values["w"][-1]) == (float(a["w"][3]), float(b["w"][3]))
    error = [float((batch @ p["w"] <= 0).mean()) for p in (a, b)]
    assert line.values["error"][[0, -1]] == pytest.approx(error, abs=1e-6)
    assert line.examples == 9


def normalize(params, stats, x):
    """A linear map, then BatchNorm in evaluation mode."""
    return (x @ params["k"] - stats["bn"]["mean"][None]) / jnp.sqrt(stats["bn"]["var"][None] + 1e-5)


def moments(params, stats, x):
    z = x @ params["k"]
    return {"bn": {"mean": z.mean(0), "var": z.var(0)}}


def normed():
    r = np.random.default_rng(1)
    x = jnp.asarray(r.normal(1, 2, size=(50, 4)), jnp.float32)
    ends = []
    for _ in range(2):
        params = {"k": jnp.asarray(r.normal(size=(4, 3)), jnp.float32)}
        ends.append(State(params, moments(params, None, x + 0.1)))
    return *ends, x


@pytest.mark.parametrize("policy", ["recompute", "interpolate", "first"])
def test_statistics_along_the_path_by_hand(policy):
    a, b, x = normed()
    evaluate = lambda p, s, batch: {"loss": jnp.square(normalize(p, s, batch)).mean()}  # noqa: E731
    parts = [x[:20], x[20:35], x[35:]]  # of unequal size: pooled exactly
    line = path(
        evaluate, a, b, x, points=5, policy=policy, statistics=moments,
        statistics_batches=iter(parts),
    )  # fmt: skip
    for t, found in zip(line.grid, line.values["loss"], strict=True):
        k = (1 - t) * a.params["k"] + t * b.params["k"]
        mixed = jax.tree.map(lambda u, v, t=t: (1 - t) * u + t * v, a.stats, b.stats)
        stats = {"first": a.stats, "interpolate": mixed}.get(policy, moments({"k": k}, None, x))
        assert found == pytest.approx(float(evaluate({"k": k}, stats, x)["loss"]), rel=1e-4)
    assert (line.policy, line.examples) == (policy, 50)
    assert line.statistics_examples == (50 if policy == "recompute" else 0)
    if policy == "interpolate":
        ends = [float(evaluate(*s, x)["loss"]) for s in (a, b)]
        assert line.values["loss"][[0, -1]] == pytest.approx(ends, rel=1e-6)


@pytest.mark.parametrize("unbiased", [False, True])
def test_statistics_of_one_batch_of_a_linen_module(unbiased):
    module = MLP(num_classes=3, hidden=(4, 5), dropout=0.5, unbiased_variance=unbiased)
    variables = models.init(module, rng.stream(0, "init"), (6,))
    x = jnp.asarray(np.random.default_rng(2).normal(1, 3, size=(40, 6)), jnp.float32)
    of_batch = jax.jit(linen_statistics(module))
    found = of_batch(variables["params"], variables["batch_stats"], (x, None))
    h = np.asarray(x, np.float64)
    for i in (1, 2):
        z = h @ np.asarray(variables["params"][f"dense{i}"]["kernel"], np.float64)
        np.testing.assert_allclose(found[f"bn{i}"]["mean"], z.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[f"bn{i}"]["var"], z.var(0, ddof=int(unbiased)), rtol=1e-4)
        h = np.maximum((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5), 0)


def random_network(module, shape, seed):
    """Variables of which no two units are alike, statistics included."""
    variables = models.init(module, rng.stream(seed, "init"), shape)
    r = np.random.default_rng(seed)
    noise = lambda x: x + jnp.asarray(0.3 * r.uniform(size=x.shape), x.dtype)  # noqa: E731
    return jax.tree.map(noise, variables)


CASES = {
    "mlp": (MLP(num_classes=4, hidden=(16, 12), batch_norm=False), (10,)),
    "vgg": (VGG(num_classes=4, features=(6, "M", 8, 8)), (6, 6, 2)),
    "flattened": (ConvNet(num_classes=4, features=(5, "M", 6), hidden=(7,)), (4, 4, 2)),
}


@functools.cache
def case(name):
    """A network, its twin with shuffled units, and images that it labels itself."""
    module, shape = CASES[name]
    a, apply, r = random_network(module, shape, 1), jax.jit(module.apply), np.random.default_rng(5)
    x = jnp.asarray(r.normal(size=(128, *shape)), jnp.float32)
    shift = a["params"]["classifier"]["bias"] - apply(a, x).mean(0)  # all classes are predicted
    a = {**a, "params": trees.replace(a["params"], {"classifier/bias": shift})}
    chain = matching.permutations(models.groups(module, a), a["params"])
    order = {layer.name: r.permutation(layer.units) for layer in chain}
    twin = {"params": matching.permute(a["params"], chain, order)}
    if "batch_stats" in a:
        twin["batch_stats"] = matching.permute(a["batch_stats"], chain, order, stats=True)
    return a, twin, chain, x, apply, order


@pytest.mark.parametrize("name", list(CASES))
def test_a_permuted_twin_is_found_again(name):
    a, twin, chain, x, apply, order = case(name)
    logits = apply(a, x)
    np.testing.assert_allclose(apply(twin, x), logits, rtol=1e-4, atol=1e-4)
    found = matching.weight_matching(
        a["params"], twin["params"], chain, stats=twin.get("batch_stats")
    )
    assert found.converged
    for layer in chain:  # the order found undoes the one that was made
        undone = order[layer.name][found.order[layer.name]]
        np.testing.assert_array_equal(undone, np.arange(layer.units))
    np.testing.assert_array_equal(jax.tree.leaves(found.params)[0], jax.tree.leaves(a["params"])[0])


@pytest.mark.parametrize("name", ["mlp", "vgg"])
def test_no_barrier_is_left_between_a_network_and_its_twin(name):
    a, twin, chain, x, apply, _ = case(name)
    labels = apply(a, x).argmax(-1)
    found = matching.weight_matching(
        a["params"], twin["params"], chain, stats=twin.get("batch_stats")
    )

    def evaluate(params, stats, batch):
        out = apply({"params": params, "batch_stats": stats}, batch[0])
        loss = -jnp.take_along_axis(jax.nn.log_softmax(out), batch[1][:, None], 1).mean()
        return {"accuracy": (out.argmax(-1) == batch[1]).mean(), "loss": loss}

    def state(variables):
        return State(variables["params"], variables.get("batch_stats", {"none": jnp.zeros(1)}))

    options = {"policy": "interpolate", "points": 11}
    matched = {"params": found.params} | ({"batch_stats": found.stats} if found.stats else {})
    barriers = barrier_matrix(
        evaluate, [state(a), state(twin), state(matched)], (x, labels), **options
    )
    plain, after = barriers.matrix[0, 1:]
    assert plain > 0.1, plain
    assert after < 1e-6
    loss = path(evaluate, state(a), state(matched), (x, labels), **options)
    assert abs(loss.barrier("loss")) < 1e-6
    assert barriers.ends == pytest.approx([0, 0, 0], abs=1e-6)
    assert barriers.mean == pytest.approx(barriers.matrix[np.triu_indices(3, 1)].mean())


def test_matching_independent_networks_keeps_the_function_and_comes_nearer():
    a, _, chain, x, apply, _ = case("mlp")
    b = random_network(*CASES["mlp"], 9)
    found = matching.weight_matching(a["params"], b["params"], chain)
    np.testing.assert_allclose(
        apply({"params": found.params}, x), apply(b, x), rtol=1e-4, atol=1e-4
    )
    assert list(found.similarity) == sorted(found.similarity)
    assert distance(a["params"], found.params) < distance(a["params"], b["params"])
    assert cosine(a["params"], found.params) > cosine(a["params"], b["params"])
    short = matching.weight_matching(a["params"], b["params"], chain, sweeps=1)
    assert len(short.similarity) == 2
    # Masks go with the weights; a scalar stays one.
    masks = jax.tree.map(lambda w: w > 0, b["params"])
    masks["classifier"]["bias"] = jnp.array(True)
    masks["dense1"]["bias"] = jnp.array(True)
    moved = matching.permute(masks, chain, found.order)
    np.testing.assert_array_equal(moved["dense2"]["kernel"], found.params["dense2"]["kernel"] > 0)
    assert moved["dense1"]["bias"].shape == ()


def test_what_is_no_chain_is_refused():
    a, _, chain, _, _, order = case("mlp")
    groups = models.groups(CASES["mlp"][0], a)
    with pytest.raises(ValueError, match="feeds a residual sum"):
        matching.permutations([groups[0]._replace(gate="x"), groups[1]], a["params"])
    with pytest.raises(ValueError, match="2 kernels are in no group"):
        matching.permutations(groups[:1], a["params"])
    with pytest.raises(ValueError, match="no multiple of the 12 units"):
        matching.permutations(groups[::-1], a["params"])
    with pytest.raises(ValueError, match="is no permutation of 0"):
        matching.permute(a["params"], chain, order | {"dense1": np.zeros(16, int)})
    other = trees.replace(a["params"], {"dense1/bias": jnp.zeros(3)})
    with pytest.raises(ValueError, match="leaf 'dense1/bias' has shapes"):
        matching.weight_matching(a["params"], other, chain)
    other = trees.replace(a["params"], {"dense1/bias": a["params"]["dense1"]["bias"] * jnp.nan})
    with pytest.raises(ValueError, match="leaf 'dense1/bias' is not finite"):
        matching.weight_matching(a["params"], other, chain)


def test_disagreement_distance_and_cosine():
    assert disagreement([0, 1, 2, 2], [0, 2, 2, 1]) == 0.5
    a, b = (
        {"x": jnp.array([1.0, 0]), "y": jnp.array(2.0)},
        {"x": jnp.array([0.0, 3]), "y": jnp.array(2.0)},
    )
    assert distance(a, b) == pytest.approx(np.sqrt(10))
    assert cosine(a, b) == pytest.approx(4 / np.sqrt(5 * 13))
    assert cosine(a, b, origin={"x": jnp.zeros(2), "y": jnp.array(2.0)}) == 0
    assert np.isnan(cosine(a, b, origin=a))
    with pytest.raises(ValueError, match="4 and 3 predictions"):
        disagreement([0, 1, 2, 2], [0, 2, 2])
    turned = {"x": jnp.zeros((2, 1)), "y": jnp.array(2.0)}
    for fn in (distance, cosine):  # they would broadcast, or be unrolled
        with pytest.raises(ValueError, match=r"leaf 'x' has the shape \(2,\), in .* \(2, 1\)"):
            fn(a, turned)


def test_instability_is_over_parents():
    a, flat = ({"w": jnp.float32(w), "v": jnp.float32(0)} for w in (-1, 1))
    parents = [barrier_matrix(well, [a, x, a], name="loss", points=3) for x in (flat, a, flat)]
    assert [p.mean for p in parents] == pytest.approx([2 / 3, 0, 2 / 3])
    found = instability(parents)
    assert (found.n, found.mean) == (3, pytest.approx(4 / 9))
    assert found.low < found.mean < found.high
    with pytest.raises(ValueError, match="different quantities"):
        instability([parents[0], dataclasses.replace(parents[1], name="error")])


def test_bad_requests():
    a, b, x = normed()
    evaluate = lambda p, s, batch: normalize(p, s, batch).mean()  # noqa: E731
    with pytest.raises(ValueError, match="needs statistics and statistics_batches"):
        path(evaluate, a, b, x)
    with pytest.raises(ValueError, match="policy 'mean' is not one of"):
        path(evaluate, a, b, x, policy="mean")
    with pytest.raises(ValueError, match="the other has none"):
        path(evaluate, a, b.params, x)
    with pytest.raises(ValueError, match="points is 1"):
        path(evaluate, a, b, x, points=1)
    with pytest.raises(TypeError, match="points is of type float and no integer"):
        path(evaluate, a, b, x, points=2.5)
    with pytest.raises(ValueError, match="1 network"):
        barrier_matrix(evaluate, [a], x)
    with pytest.raises(ValueError, match="no 'error' along the path; there are: loss"):
        path(evaluate, a, b, x, policy="first").barrier()
