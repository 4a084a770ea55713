"""The table of published measures against their formulas in NumPy, one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import models, rng
from prunejax.measures import folding, norms, rivals, suite
from prunejax.models.mlp import MLP


@pytest.fixture(scope="module")
def network():
    module = MLP(num_classes=3, hidden=(6,), batch_norm=True)
    apply = jax.jit(module.apply)
    initial = models.init(module, rng.stream(0, "init"), (4,))
    r = np.random.default_rng(0)
    move = lambda x: x + jnp.asarray(r.uniform(0.1, 0.6, size=x.shape), x.dtype)  # noqa: E731
    variables = jax.tree.map(move, initial)
    x = jnp.asarray(r.normal(size=(60, 4)), jnp.float32)
    logits = apply(variables, x)
    shift = variables["params"]["classifier"]["bias"] - jnp.median(logits, 0)
    variables["params"]["classifier"]["bias"] = shift
    labels = apply(variables, x).argmax(-1)
    batches = [(x[:40], labels[:40]), (x[40:], labels[40:])]
    return module, variables, initial, batches, x, labels


def test_every_column_by_its_formula(network):
    module, variables, initial, batches, x, labels = network
    found = rivals.of_linen(module, variables, initial, batches, key=jax.random.key(0), steps=6)
    layers = folding.layers(module, variables, (4,))
    folded = [folding.fold(v, layers)["params"] for v in (variables, initial)]
    names = ("dense1", "classifier")
    a, b = ([np.asarray(p[n]["kernel"], np.float64) for n in names] for p in folded)
    w, w0 = (np.concatenate([k.ravel() for k in ks]) for ks in (a, b))
    assert found["parameters"] == w.size == 42
    assert found["l2_norm"] == pytest.approx(np.linalg.norm(w))
    assert found["kernel_distance_to_init"] == pytest.approx(np.linalg.norm(w - w0))
    tops = np.array([np.linalg.norm(k, 2) for k in a])
    frobenius = np.array([np.linalg.norm(k) for k in a])
    assert found["log_spectral_product"] == pytest.approx(np.log(tops).sum())
    assert found["log_spectral_product_reshaped"] == pytest.approx(np.log(tops).sum())
    assert found["log_frobenius_product"] == pytest.approx(np.log(frobenius).sum())
    assert found["frobenius_over_spectral"] == pytest.approx(((frobenius / tops) ** 2).sum())
    moved = [np.linalg.norm(p - q, 2) for p, q in zip(a, b, strict=True)]
    assert found["spectral_distance"] == pytest.approx(np.linalg.norm(moved))
    margin = np.percentile(norms.margins(module.apply(variables, x), labels), 10)
    assert found["inverse_margin"] == pytest.approx(1 / margin**2, rel=1e-3)
    expected = np.log(tops).sum() - np.log(margin)
    assert found["log_spectral_over_margin"] == pytest.approx(expected, rel=1e-3)
    assert found["path_norm_over_margin"] == pytest.approx(found["path_norm"] / margin, rel=1e-3)
    s, t = (found[f"pac_bayes_{k}flatness"] ** -0.5 for k in ("", "magnitude_"))
    assert 0 < s < 2
    bound = np.sum((w - w0) ** 2) / (4 * s**2) + np.log(60 / s) + 10
    assert found["pac_bayes_init"] == pytest.approx(bound, rel=1e-6)
    top = 1e-6 + (t**2 + 1) * np.sum(w**2) / 42
    aware = np.log(top / (1e-6 + t**2 * (w - w0) ** 2)).sum() / 4 + np.log(60 / t) + 10
    assert found["pac_bayes_magnitude_origin"] == pytest.approx(aware, rel=1e-6)
    assert all(np.isfinite(v) for v in found.values()), found


def test_noise_spares_what_is_pruned_and_counts_are_of_live_weights(network):
    module, variables, *_ = network
    kernel = variables["params"]["dense1"]["kernel"].at[:, :3].set(0)
    params = variables["params"] | {"dense1": {"kernel": kernel}}
    layers = folding.layers(module, variables, (4,))
    assert rivals.of_weights(params, layers)["parameters"] == 42 - 12
    assert "kernel_distance_to_init" not in rivals.of_weights(params, layers)


def test_distances_and_bounds_of_a_pruned_network_are_those_of_the_smaller_one(network):
    """Without the units that are gone, cut out of the arrays: no weight, no move, no count."""
    module, variables, initial, batches, *_ = network
    units = np.array([1, 2, 4])
    gone = np.setdiff1d(np.arange(6), units)

    def masked(v):
        p = v["params"]
        norm = {k: x.at[gone].set(0) for k, x in p["bn1"].items()}
        kernels = {"dense1": p["dense1"]["kernel"].at[:, gone].set(0)}
        kernels["classifier"] = p["classifier"]["kernel"].at[gone].set(0)
        new = {n: p[n] | {"kernel": k} for n, k in kernels.items()}
        return v | {"params": p | new | {"bn1": norm}}

    def cut(v):
        p = v["params"]
        new = {
            "dense1": {"kernel": p["dense1"]["kernel"][:, units]},
            "bn1": {k: x[units] for k, x in p["bn1"].items()},
            "classifier": p["classifier"] | {"kernel": p["classifier"]["kernel"][units]},
        }
        stats = {"bn1": {k: x[units] for k, x in v["batch_stats"]["bn1"].items()}}
        return {"params": new, "batch_stats": stats}

    options = {"key": jax.random.key(0), "draws": 2, "steps": 6}
    found = rivals.of_linen(module, masked(variables), initial, batches, **options)
    smaller = module.clone(hidden=(3,))
    known = rivals.of_linen(smaller, cut(variables), cut(initial), batches, **options)
    noise = {c for c in rivals.COLUMNS if c.startswith("pac_bayes")}  # drawn in other shapes
    for column in set(rivals.COLUMNS) - noise:
        assert found[column] == pytest.approx(known[column], rel=1e-5), column

    bounds = {}
    for name, mlp, v in (("whole", module, masked(variables)), ("cut", smaller, cut(variables))):
        layers = folding.layers(mlp, v, (4,))
        start = initial if name == "whole" else cut(initial)
        params, begun = (folding.fold(x, layers)["params"] for x in (v, start))
        live = jax.tree.map(lambda w: w != 0, params)
        bounds[name] = rivals.pac_bayes_bounds(
            params, begun, layers, sigma=0.1, magnitude_sigma=0.2, examples=60, masks=live
        )
    assert bounds["whole"] == pytest.approx(bounds["cut"], rel=1e-6)
    sigmas = {k: found[f"pac_bayes_{k}flatness"] ** -0.5 for k in ("", "magnitude_")}
    layers = folding.layers(smaller, cut(variables), (4,))
    folded = [folding.fold(cut(v), layers)["params"] for v in (variables, initial)]
    expected = rivals.pac_bayes_bounds(
        *folded, layers, sigma=sigmas[""], magnitude_sigma=sigmas["magnitude_"], examples=60
    )
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-5)


def test_of_a_regression_norms_stand_and_margins_are_empty(network):
    module, variables, initial, batches, *_ = network
    numbers = [(x, jnp.zeros((len(x), 1))) for x, _ in batches]
    options = {"key": jax.random.key(0), "steps": 2}
    found = rivals.of_linen(module, variables, initial, numbers, **options)
    known = rivals.of_linen(module, variables, initial, batches, **options)
    assert list(found) == list(rivals.COLUMNS)
    empty = {k for k, v in found.items() if np.isnan(v)}
    assert empty == {k for k in rivals.COLUMNS if "margin" in k or "pac_bayes" in k}
    assert {k: found[k] for k in found if k not in empty} == {
        k: known[k] for k in known if k not in empty
    }


def test_ends():
    zero = {"pac_bayes_init": np.inf, "pac_bayes_origin": np.inf}
    layers = (folding.Layer("a", "a/kernel"),)
    params = {"a": {"kernel": jnp.ones((2, 2))}}
    found = rivals.pac_bayes_bounds(
        params, params, layers, sigma=0.0, magnitude_sigma=1.0, examples=5
    )
    assert {k: found[k] for k in zero} == zero
    assert np.isfinite(found["pac_bayes_magnitude_origin"])
    known = {"log_spectral_product": 1.0, "log_frobenius_product": 2.0, "path_norm": 3.0}
    assert rivals.over_margin(known, np.inf)["log_spectral_over_margin"] == np.inf
    assert rivals.over_margin(known, 0.25)["path_norm_over_margin"] == 1.5


def test_no_two_measures_fill_one_column():
    """Of a study that asks for both, the last would have been told under the name of either."""
    columns = [c for measure in suite.MEASURES.values() for c in measure.columns]
    assert len(columns) == len(set(columns))
