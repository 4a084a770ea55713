"""Scores of a whole network against autodiff, dense Hessians and conservation; rounds; controls."""

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from prunejax import masks, rng, schedules
from prunejax.methods import before, evidence, table
from prunejax.methods.evidence import Evidence
from prunejax.study.settings import presets

X = np.random.default_rng(0).normal(size=(12, 6))
Y = np.random.default_rng(1).integers(0, 3, 12)


def net(dtype=jnp.float32, sizes=(6, 5, 4, 3), bias=0.1):
    r = np.random.default_rng(2)
    return {
        f"l{i}": {
            "kernel": jnp.asarray(r.normal(size=(a, b)) / np.sqrt(a), dtype),
            "bias": jnp.full(b, bias, dtype),
        }
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }


def forward(p, x, act=jax.nn.relu):
    names = sorted(p, key=lambda n: int(n[1:]))
    for name in names:
        x = x @ p[name]["kernel"] + p[name]["bias"][None]
        x = x if name == names[-1] else act(x)
    return x


def loss(p, act=jnp.tanh):
    x = jnp.asarray(X, p["l0"]["kernel"].dtype)
    logits = jax.nn.log_softmax(forward(p, x, act).astype(jnp.promote_types(x.dtype, "float32")))
    return -jnp.mean(logits[jnp.arange(12), Y])


def output(p):
    return forward(p, jnp.ones((1, p["l0"]["kernel"].shape[0])))


def kernels(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree) if np.ndim(x) > 1]


def test_snip_is_the_slope_of_the_loss_in_the_masks():
    p = net()
    found = jax.jit(lambda p: evidence.snip(Evidence(p, loss=loss)))(p)
    ones = {n: jnp.ones_like(p[n]["kernel"]) for n in p}

    def masked_loss(m):
        return loss({n: {"kernel": m[n] * p[n]["kernel"], "bias": p[n]["bias"]} for n in p})

    for n, g in jax.jit(jax.grad(masked_loss))(ones).items():
        np.testing.assert_allclose(found[n]["kernel"], np.abs(g), rtol=1e-5, atol=1e-8)
        assert found[n]["bias"].shape == ()


def test_grasp_against_the_explicit_hessian():
    with jax.enable_x64(True):
        p = net(jnp.float64)
        live = masks.prune(jax.tree.map(lambda x: jnp.abs(x) if x.ndim > 1 else 0.0, p), 40)
        found = jax.jit(lambda p: evidence.grasp(Evidence(p, loss=loss, masks=live)))(p)
        sparse = masks.apply(live, p)
        flat, unflatten = jax.flatten_util.ravel_pytree({n: sparse[n]["kernel"] for n in p})

        def of(v):
            k = unflatten(v)
            return loss({n: {"kernel": k[n], "bias": p[n]["bias"]} for n in p})

        alive = np.concatenate([np.ravel(live[n]["kernel"]) for n in p])
        g, h = jax.jit(lambda v: (jax.grad(of)(v), jax.hessian(of)(v)))(flat)
        expected = np.asarray(flat) * (np.asarray(h) @ (np.asarray(g) * alive))
        ours = np.concatenate([np.ravel(found[n]["kernel"]) for n in p])
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-14)


def test_complex_weights_count_by_both_of_their_parts():
    """SNIP and GraSP against real and imaginary parts as two arrays, SynFlow against moduli."""
    with jax.enable_x64(True):
        r = np.random.default_rng(3)
        parts = tuple(jnp.asarray(r.normal(size=(6, 4))) for _ in "xy")
        x = jnp.asarray(X)

        def of_parts(x_and_y):
            return jnp.mean(jnp.abs(jnp.tanh(x @ (x_and_y[0] + 1j * x_and_y[1])) - 1j) ** 2)

        def of_complex(p):
            return of_parts((p["w"].real, p["w"].imag))

        p = {"w": parts[0] + 1j * parts[1]}
        e = Evidence(p, loss=of_complex)
        slopes = jax.grad(of_parts)(parts)
        expected = sum(w * g for w, g in zip(parts, slopes, strict=True))
        np.testing.assert_allclose(evidence.snip(e)["w"], np.abs(expected), rtol=1e-12)
        bent = jax.jvp(jax.grad(of_parts), (parts,), (slopes,))[1]
        expected = sum(w * h for w, h in zip(parts, bent, strict=True))
        np.testing.assert_allclose(evidence.grasp(e)["w"], expected, rtol=1e-12, atol=1e-14)
        ones = lambda p: jnp.ones((1, 6)) @ p["w"]  # noqa: E731
        flow = [evidence.synflow(Evidence(q, output=ones))["w"] for q in (p, {"w": abs(p["w"])})]
        np.testing.assert_array_equal(*flow)
        with pytest.raises(ValueError, match="complex weights have no Hessian here"):
            before.prune(p, "curvature", sparsity=0.5, loss=of_complex)


def test_synflow_is_conserved_at_every_hidden_unit_and_sees_no_data():
    p = net(sizes=(6, 8, 7, 3), bias=0.0)
    found = evidence.synflow(Evidence(p, output=output))
    s = [np.asarray(found[n]["kernel"], np.float64) for n in p]
    for a, b in itertools.pairwise(s):
        np.testing.assert_allclose(a.sum(0), b.sum(1), rtol=1e-5)
    assert np.max([x.max() for x in s]) == 1
    signs = jax.tree.map(lambda x: -x, p)
    again = evidence.synflow(Evidence(signs, output=output))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, again))


def test_synflow_of_a_deep_network_does_not_overflow():
    r = np.random.default_rng(0)
    deep = {
        f"l{i}": {"kernel": jnp.asarray(r.normal(size=(6, 6)) * 30, "f"), "bias": jnp.zeros(6)}
        for i in range(30)
    }
    part = jax.tree.map(jnp.abs, deep)
    assert not np.isfinite(output(part)).all()  # what single precision gives
    live = before.prune(deep, "synflow", sparsity=0.8, output=output, rounds=5)
    report = masks.report(live, deep)
    assert sum(x.sum() for x in kernels(live)) == schedules.kept(30 * 36, 0.8)
    assert report.collapsed == ()
    found = evidence.synflow(Evidence(deep, output=output))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.abs(x.astype(jnp.float64)), deep)
        slope = jax.jit(jax.grad(lambda q: output(q).sum()))(wide)
        s = [np.asarray(wide[n]["kernel"] * slope[n]["kernel"]) for n in deep]
    top = max(x.max() for x in s)
    for n, x in zip(deep, s, strict=True):
        np.testing.assert_allclose(found[n]["kernel"], x / top, rtol=1e-6)


@pytest.mark.parametrize(
    ("score", "options"),
    [
        ("random", {"seed": 3}),
        ("magnitude", {}),
        ("snip", {"loss": loss}),
        ("snip", {"loss": loss, "rounds": 4}),
        ("grasp", {"loss": loss, "rounds": 2}),
        ("synflow", {"output": output, "rounds": 6}),
    ],
)
def test_counts_of_every_score_global_and_by_layer(score, options):
    p = net()
    live = before.prune(p, score, sparsity=0.7, **options)
    assert sum(x.sum() for x in kernels(live)) == schedules.kept(62, 0.7)
    assert all(live[n]["bias"].shape == () for n in p)
    by_layer = before.prune(p, score, sparsity=0.5, allocation="uniform", **options)
    assert [x.sum() for x in kernels(by_layer)] == [15, 10, 6]
    inverted = before.prune(p, score, sparsity=0.5, invert=True, rounds=1, **_less(options))
    straight = before.prune(p, score, sparsity=0.5, rounds=1, **_less(options))
    for a, b in zip(kernels(inverted), kernels(straight), strict=True):
        assert (a == ~b).all()


def _less(options):
    return {k: v for k, v in options.items() if k != "rounds"}


def test_rounds_score_what_is_left():
    """Against a loop by hand: fresh scores at the masked weights, geometric counts."""
    p, live = net(), None
    for keep in schedules.by_rate(62, 10, 3):
        scores = evidence.snip(Evidence(p, loss=loss, masks=live))
        live = masks.prune(scores, keep, masks=live)
    ours = before.prune(p, "snip", allocation="global", sparsity=52 / 62, rounds=3, loss=loss)
    assert sum(x.sum() for x in kernels(ours)) == schedules.kept(62, 52 / 62)
    ours = before.prune(p, "snip", sparsity=0.84, rounds=3, loss=loss)  # 9.92 -> 10
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), ours, live))


def test_jit_and_vmap_give_what_single_calls_give():
    many = [jax.tree.map(lambda x, i=i: x * (1 + i) + 0.01 * i, net()) for i in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *many)
    fn = jax.jit(
        jax.vmap(lambda p: before.prune(p, "synflow", sparsity=0.6, output=output, rounds=3))
    )
    for i, p in enumerate(many):
        alone = before.prune(p, "synflow", sparsity=0.6, output=output, rounds=3)
        for a, b in zip(kernels(alone), kernels(fn(stacked)), strict=True):
            assert (a == b[i]).all()


def test_short_floats_and_nm():
    p = net(jnp.bfloat16, sizes=(8, 4, 4))

    def short(q):
        return jnp.sum(forward(q, jnp.ones((2, 8), jnp.bfloat16)).astype("f") ** 2)

    live = before.prune(p, "snip", nm=(1, 4), loss=short)
    assert (kernels(live)[0].reshape(2, 4, 4).sum(1) == 1).all()
    live = before.prune(p, "snip", sparsity=0.5, loss=short)
    assert sum(x.sum() for x in kernels(live)) == 24


def test_no_leaf_is_emptied_where_that_is_asked():
    p = net()
    p["l1"]["kernel"] *= 1e-6
    options = {"sparsity": 0.8, "min_per_layer": 2}
    assert kernels(before.prune(p, "magnitude", sparsity=0.8))[1].sum() == 0
    live = before.prune(p, "magnitude", **options)
    assert kernels(live)[1].sum() == 2
    assert sum(x.sum() for x in kernels(live)) == 13
    with pytest.raises(ValueError, match="min_per_layer = 9: 3 leaves"):
        before.prune(p, "magnitude", sparsity=0.8, min_per_layer=9)


def test_random_scores_do_not_follow_the_weights():
    w = {"w": jax.random.normal(jax.random.key(7), (100, 100))}
    for seed in range(4):
        found = evidence.random(Evidence(w, seed=seed))["w"]
        assert abs(stats.spearmanr(np.ravel(found), np.ravel(w["w"])).statistic) < 0.05


@pytest.mark.parametrize(
    ("score", "options", "text"),
    [
        ("snip", {}, "snip needs loss=: a function from parameters to the loss"),
        ("grasp", {}, "grasp needs loss="),
        ("synflow", {}, "synflow needs output="),
        ("random", {}, "random needs seed="),
        ("snup", {}, "unknown score of a network 'snup'.*Did you mean 'snip'"),
        ("magnitude", {"sparsity": None}, "needs sparsity=, the fraction removed"),
        ("magnitude", {"sparsity": 1.2}, "not in"),
        ("magnitude", {"allocation": "erc"}, "allocation 'erc' is not one of: global, uniform"),
        ("magnitude", {"allocation": {"l0.*": 0.5}}, "give one of them"),
        ("magnitude", {"rounds": 0}, "rounds = 0 must be at least 1"),
        ("magnitude", {"nm": (1, 2)}, "n of every m is a sparsity"),
        ("magnitude", {"rules": "conv.*"}, "matches none"),
    ],
)
def test_bad_requests(score, options, text):
    with pytest.raises(ValueError, match=text):
        before.prune(net(), score, **{"sparsity": 0.5} | options)


def test_a_score_may_need_several_ingredients(monkeypatch):
    entry = evidence.NetworkScore(lambda e: e.map(lambda *_: e.need("loss") and e.need("seed")))
    monkeypatch.setitem(evidence.EVIDENCE, "both", entry._replace(needs="loss seed"))
    given = {"loss": loss, "seed": 3}
    assert evidence.demand("both", given).needs == "loss seed"
    method = table.Method(initial="both", sparsity=0.5)
    for name in given:
        left = given | {name: None}
        with pytest.raises(ValueError, match=f"both needs {name}="):
            before.prune(net(), "both", sparsity=0.5, **left)
        with pytest.raises(ValueError, match=f"needs {name}="):
            table.resolve(method, ingredients=left)
    table.resolve(method, ingredients=given)
    assert presets.fields(method)["evidence"] == "balanced"  # of examples, as a loss alone
    monkeypatch.setitem(evidence.EVIDENCE, "both", entry._replace(needs="seed"))
    assert "evidence" not in presets.fields(method)


def test_explicit_sparsities():
    live = before.prune(net(), "magnitude", allocation={"l0/kernel": 0.5, "l2/kernel": 0.75})
    assert [x.sum() for x in kernels(live)] == [15, 20, 3]


def test_shuffled_masks_keep_their_layers_counts():
    p = net(sizes=(20, 20, 20))
    live = before.prune(p, "magnitude", sparsity=0.7)
    other = before.shuffled(live, seed=1)
    for a, b in zip(kernels(live), kernels(other), strict=True):
        assert a.sum() == b.sum()
        assert (a != b).mean() > 0.2
    assert other["l0"]["bias"].shape == ()


def test_sparse_fan_in_keeps_the_variance_of_what_a_unit_receives():
    r = np.random.default_rng(0)
    p = {"conv": jnp.asarray(r.normal(size=(3, 3, 8, 5)), "f"), "b": jnp.ones(5)}
    m = {"conv": jnp.asarray(r.random((3, 3, 8, 5)) < 0.3).at[..., 2].set(False), "b": True}
    ours = before.sparse_fan_in(p, m)
    live = np.asarray(m["conv"]).sum((0, 1, 2))
    factor = np.sqrt(72 / np.where(live == 0, 72, live))
    np.testing.assert_allclose(ours["conv"], np.asarray(p["conv"]) * factor, rtol=1e-6)
    np.testing.assert_array_equal(ours["b"], p["b"])
    with jax.enable_x64(True):
        wide = {"conv": jnp.asarray(np.asarray(p["conv"], np.float64)), "b": p["b"]}
        found = before.sparse_fan_in(wide, m)["conv"]
        np.testing.assert_allclose(found, np.asarray(wide["conv"]) * factor, rtol=1e-15)
    turned = before.sparse_fan_in(
        {"w": p["conv"].transpose(3, 0, 1, 2)}, {"w": m["conv"].transpose(3, 0, 1, 2)}, axis=0
    )
    np.testing.assert_allclose(turned["w"].transpose(1, 2, 3, 0), ours["conv"], rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 9, 64, 100, 1625, 1700])
def test_permutations_on_the_host_are_those_of_jax(n):
    key = rng.at(n, "score batch", 3)
    expected = np.asarray(jax.random.permutation(key, n))
    np.testing.assert_array_equal(rng.permutation(key, n), expected)
    with jax.threefry_partitionable(False):
        expected = np.asarray(jax.random.permutation(key, n))
        np.testing.assert_array_equal(rng.permutation(key, n), expected)
    with jax.enable_x64(True):
        expected = np.asarray(jax.random.permutation(key, n))
        np.testing.assert_array_equal(rng.permutation(key, n), expected)


@pytest.mark.parametrize("n", [0, 1, 2, 9, 100, 1625, 1700, 65535, 65536, 65537])
def test_orders_in_programs_are_those_of_jax(n):
    keys = jax.random.split(rng.stream(n, "order"), 3)
    expected = np.stack([np.asarray(jax.random.permutation(key, n)) for key in keys])
    ordered = jax.jit(jax.vmap(lambda key: rng.order(key, n)))
    np.testing.assert_array_equal(ordered(keys), expected)
    with jax.enable_x64(True):
        found = ordered(keys)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("apart", [False, True])
def test_orders_are_those_of_jax_whatever_its_bits(kind, apart):
    key = jax.random.key(3, impl=kind)
    with jax.threefry_partitionable(apart):
        found = jax.jit(rng.order, static_argnums=1)(key, 1700)
        np.testing.assert_array_equal(found, jax.random.permutation(key, 1700))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("many", [1, 2, 7, 300, 2**32])
def test_numbers_that_are_equal_keep_their_order(many, wide):
    numbers = np.random.default_rng(many).integers(0, many, (2, 300), np.uint32)
    numbers[:, :2] = 0, many - 1
    with jax.enable_x64(wide):
        found = jax.jit(jax.vmap(rng.argsort))(numbers)
    np.testing.assert_array_equal(found, np.argsort(numbers, axis=1, kind="stable"))
    assert found.dtype == np.int32


def test_balanced_batches():
    labels = np.random.default_rng(0).integers(0, 4, 200)
    found = before.balanced_batch(labels, per_class=7, seed=1)
    assert len(set(found.tolist())) == 28
    assert np.bincount(labels[found]).tolist() == [7] * 4
    assert (found != before.balanced_batch(labels, per_class=7, seed=2)).any()
    with pytest.raises(ValueError, match=r"has [0-9]+ examples, 90 are wanted"):
        before.balanced_batch(labels, per_class=90, seed=1)


def test_an_axis_that_a_kernel_has_not_is_refused():
    params = {"w": jnp.ones((3, 4))}
    masks = {"w": jnp.ones((3, 4), bool)}
    with pytest.raises(ValueError, match="axis 2 is out of bounds for array of dimension 2"):
        before.sparse_fan_in(params, masks, axis=2)


def test_the_best_of_a_leaf_stay_and_the_rest_is_ranked_exactly():
    # Numbers that single precision does not tell apart: the third digit beyond it decides.
    r = np.random.default_rng(5)
    wide = {"a": 1 + r.permutation(40).reshape(8, 5) * 1e-12, "v": 1e-9 * r.random((4, 3))}
    whole = {"a": 2**25 + r.permutation(40).reshape(8, 5), "v": r.permutation(12).reshape(4, 3)}
    with jax.enable_x64(True):
        for numbers, score in ((wide, "magnitude"), (whole, "magnitude")):
            p = jax.tree.map(jnp.asarray, numbers)
            live = before.prune(p, score, sparsity=0.5, min_per_layer=2)
            best = {k: np.sort(np.ravel(v))[::-1] for k, v in numbers.items()}
            # v is below a throughout: its two best stay, and the 24 best of a
            assert set(numbers["v"][np.asarray(live["v"])]) == set(best["v"][:2])
            assert set(numbers["a"][np.asarray(live["a"])]) == set(best["a"][:24])


def test_inverted_scores_of_whole_numbers():
    p = {"w": jnp.array([[0, 5, 3], [7, 0, 1]], jnp.uint8), "v": jnp.array([[2], [200]], jnp.uint8)}
    live = before.prune(p, "magnitude", sparsity=0.5, invert=True)
    assert live["w"].tolist() == [[True, False, False], [False, True, True]]
    assert live["v"].tolist() == [[True], [False]]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rounds": 1.5}, "rounds = 1.5 must be at least 1, an integer"),
        ({"min_per_layer": -1}, "min_per_layer = -1 must be at least 0"),
        ({"min_per_layer": 1, "allocation": "erk"}, "is of a global ranking"),
        ({"sparsity": None, "nm": (1, 2, 3)}, r"nm = \(1, 2, 3\) must be a pair"),
        ({"sparsity": None, "nm": 2}, "nm = 2 must be a pair"),
        ({"score": lambda _: 3}, "scores must have the structure"),
        ({"score": "snip", "loss": lambda p: p["l0"]["bias"]}, "loss= must give one scalar"),
        ({"score": "random", "seed": "a"}, "seed 'a' must be one integer"),
        ({"score": "random", "seed": jax.random.key(0)}, "must be one integer"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_a_line(options, text):
    with pytest.raises(ValueError, match=text) as error:
        before.prune(net(), **({"score": "magnitude", "sparsity": 0.5} | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("labels", "n"), [([], 1), ([0, 1], 0), ([0, 1], -1), (np.eye(2), 1)])
def test_balanced_batches_need_labels_and_a_count(labels, n):
    with pytest.raises(ValueError, match="of one label per example"):
        before.balanced_batch(labels, per_class=n, seed=0)
