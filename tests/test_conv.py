"""The convolution primitive against `lax.conv_general_dilated` in every mode of differentiation."""

import subprocess
import sys
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from prunejax.ops import conv_cpu, conv_winograd
from prunejax.ops.conv import _lower_cpu, _lower_plain, conv
from prunejax.ops.conv_cpu import DIMENSIONS, Geometry

# (height, width, kernel, strides, padding, input dilation, kernel dilation)
CASES = {
    "same": (6, 6, (3, 3), (1, 1), "SAME", (1, 1), (1, 1)),
    "uneven padding, stride 2": (7, 8, (3, 3), (2, 2), ((0, 1), (1, 0)), (1, 1), (1, 1)),
    "kernel 5, stride 2": (8, 8, (5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1), (1, 1)),
    "kernel 1, stride 2": (5, 5, (1, 1), (2, 2), "VALID", (1, 1), (1, 1)),
    "stride 3": (9, 9, (3, 3), (3, 3), ((1, 1), (0, 2)), (1, 1), (1, 1)),
    "even kernels, strides differ": (9, 7, (2, 4), (1, 2), "SAME", (1, 1), (1, 1)),
    "map 1x1": (1, 1, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)),
    "map 2x2": (2, 2, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)),
    "map 2x2, stride 2": (2, 2, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1)),
    "map 4x4, kernel 5": (4, 4, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), (1, 1)),
    "map 2x5": (2, 5, (3, 3), (1, 1), ((1, 1), (0, 0)), (1, 1), (1, 1)),
    "map smaller, wide padding": (3, 3, (5, 4), (2, 1), ((4, 3), (2, 5)), (1, 1), (1, 1)),
    "negative padding": (8, 8, (3, 3), (1, 1), ((-1, 1), (1, -2)), (1, 1), (1, 1)),
    "kernel dilated": (9, 9, (3, 3), (1, 2), ((2, 2), (2, 2)), (1, 1), (2, 2)),
    "input dilated": (5, 5, (3, 2), (1, 1), ((1, 1), (2, 1)), (2, 3), (1, 1)),
    "all dilated, small map": (2, 3, (3, 2), (2, 1), ((2, 1), (2, 2)), (2, 1), (2, 3)),
    "unused border": (8, 8, (3, 3), (4, 4), ((0, 0), (0, 0)), (1, 1), (1, 1)),
}


def arrays(case, dtype="float32", batch=2, channels=(3, 4)):
    h, w, kernel, strides, padding, lhs, rhs = CASES[case]
    rng = np.random.default_rng(0)
    x = jax.device_put(rng.normal(size=(batch, h, w, channels[0])).astype(dtype))
    k = jax.device_put(rng.normal(size=(*kernel, *channels)).astype(dtype))
    options = dict(window_strides=strides, padding=padding, lhs_dilation=lhs, rhs_dilation=rhs)
    return x, k, options


def pair(options):
    """Ours and that of `lax`: the same two objects for equal options, which share programs."""
    return _pair(tuple(options.items()))


@cache
def _pair(options):
    return partial(conv, **dict(options)), partial(
        lax.conv_general_dilated, dimension_numbers=DIMENSIONS, **dict(options)
    )


def loss(f):
    """A loss in which the kernel meets itself, so that all second derivatives are in play."""
    return lambda x, w: jnp.sum(jnp.sin(f(jnp.tanh(x * (1 + w.mean())), w)) ** 2)


def products(f, x, w):
    """Every way of differentiating that the package uses, by name; with each jvp its primal."""
    v = jnp.cos(jnp.arange(w.size, dtype=w.dtype)).reshape(w.shape)
    u = jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    at = partial(loss(f), x)
    yield "forward, jvp of both", lambda: jax.jvp(f, (x, w), (u, v))
    yield "gradient of both, its jvp", lambda: jax.jvp(jax.grad(loss(f), (0, 1)), (x, w), (u, v))
    yield "jvp of jvp", lambda: jax.jvp(lambda w: jax.jvp(at, (w,), (v,))[1], (w,), (v,))[1]
    yield "gradient of gradient", lambda: jax.grad(lambda w: jnp.vdot(jax.grad(at)(w), v))(w)
    yield "linearize", lambda: jax.linearize(jax.grad(at), w)[1](v)


@partial(jax.jit, static_argnums=0)
def every(f, x, w):
    return {name: fn() for name, fn in products(f, x, w)}


@partial(jax.jit, static_argnums=0)
def forward_and_gradient(f, x, w):
    return f(x, w), jax.grad(loss(f), (0, 1))(x, w)


@partial(jax.jit, static_argnums=0)
def pulled_back(f, x, w, cotangent):
    return jax.vjp(f, x, w)[1](cotangent)


def stacked(*leaves):
    """By NumPy, which compiles nothing."""
    return np.stack([np.asarray(leaf) for leaf in leaves])


def close(a, b, tolerance):
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.shape == two.shape
        assert one.dtype == two.dtype
        one, two = np.asarray(one, "float64"), np.asarray(two, "float64")
        scale = np.abs(two).max() + 1e-30
        np.testing.assert_allclose(one, two, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("case", ["same", "map 2x2", "uneven padding, stride 2"])
def test_equals_lax_in_every_mode_of_differentiation(case):
    x, w, options = arrays(case)
    ours, plain = pair(options)
    got, want = every(ours, x, w), every(plain, x, w)
    for name in want:
        close(got[name], want[name], 2e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_three_products_equal_those_of_lax(case):
    """Forward and both transposes; every derivative is one of them (see the test above)."""
    x, w, options = arrays(case)
    ours, plain = pair(options)

    def both(x, w):
        results = []
        for f in (ours, plain):
            y, pullback = jax.vjp(f, x, w)
            results.append((y, pullback(jnp.cos(y))))
        return results

    got, want = jax.jit(both)(x, w)
    close(got, want, 2e-5)


PLAIN = [
    case
    for case, (_, _, kernel, strides, _, lhs, rhs) in CASES.items()
    if kernel == (3, 3) and strides == lhs == rhs == (1, 1)
]


@pytest.fixture
def winograd_everywhere(monkeypatch):
    """Winograd's products wherever they are possible; counts what was computed with them."""
    calls = []
    for name in ("forward", "kernel_gradient"):
        plain = getattr(conv_winograd, name)

        def counted(*args, name=name, plain=plain):
            calls.append(name)
            return plain(*args)

        monkeypatch.setattr(conv_winograd, name, counted)
    monkeypatch.setattr(conv_cpu, "WINOGRAD_CHANNELS", {"output": 1, "kernel": 1})
    monkeypatch.setattr(conv_cpu, "WINOGRAD_TILES", 0)
    jax.clear_caches()
    yield calls
    jax.clear_caches()


def test_winograd_in_the_derivative_that_holds_all_products(winograd_everywhere):
    """The rules of differentiation do not see how a product is computed; see the test of them."""
    x, w, options = arrays("same")
    u, v = jnp.sin(x), jnp.cos(w)

    def hessian_product(f):
        return jax.jit(lambda: jax.jvp(jax.grad(loss(f), (0, 1)), (x, w), (u, v)))()

    got, want = (hessian_product(f) for f in pair(options))
    assert set(winograd_everywhere) == {"forward", "kernel_gradient"}
    close(got, want, 2e-5)


@pytest.mark.parametrize("case", ["same", "kernel 1, stride 2", "negative padding"])
def test_many_positions_are_products_per_entry_of_the_kernel(case, monkeypatch):
    """In float64, where only a wrong formula differs; below that number of positions none is."""
    calls, plain = [], conv_cpu.taps
    monkeypatch.setattr(conv_cpu, "taps", lambda *args: calls.append(args) or plain(*args))
    with jax.enable_x64(True):
        x, w, options = arrays(case, "float64")
        y = jax.jit(pair(options)[1])(x, w)
        want = pulled_back(pair(options)[1], x, w, y)[1]
        positions = y.size // y.shape[-1]
        for rows, used in ((positions + 1, False), (positions, True)):
            monkeypatch.setattr(conv_cpu, "TAPPED_ROWS", rows)
            jax.clear_caches()
            got = jax.jit(jax.grad(lambda w: jnp.vdot(pair(options)[0](x, w), y)))(w)
            close(got, want, 1e-13)
            assert bool(calls) is used
    jax.clear_caches()


@pytest.mark.parametrize("case", PLAIN)
def test_winograd_is_the_convolution(case):
    """In float64, where only a wrong formula differs: odd sizes, uneven and negative padding."""
    with jax.enable_x64(True):
        x, w, _ = arrays(case, "float64")
        h, width, kernel, _, padding, lhs, rhs = CASES[case]
        if isinstance(padding, str):
            padding = lax.padtype_to_pads((h, width), kernel, (1, 1), padding)
        geometry = Geometry((1, 1), tuple(padding), lhs, rhs, (h, width), kernel)

        @jax.jit
        def both(x, w):
            y, pullback = jax.vjp(lambda w: conv_cpu.lax_conv(x, w, geometry), w)
            ours = conv_winograd.forward(x, w, padding, geometry.output_size())
            return (ours, conv_winograd.kernel_gradient(x, y, padding)), (y, *pullback(y))

        close(*both(x, w), 1e-13)


def test_wide_convolutions_are_winograd_and_round_little_more():
    """Rounding against float64, over the root mean square: a few float32 ulps."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 8, 8, 128))
    w = rng.normal(size=(3, 3, 128, 128))
    text = jax.jit(conv).lower(*(jnp.asarray(a, jnp.float32) for a in (x, w))).as_text()
    assert "convolution" not in text
    assert text.count("dot_general") == 16

    def results(convolution, dtype):
        a, b = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
        y, pullback = jax.vjp(convolution, a, b)
        return [np.asarray(r, np.float64) for r in (y, *pullback(y))]

    got = results(conv, "float32")
    with jax.enable_x64(True):
        want = results(partial(conv, method="lax"), "float64")
    for one, two in zip(got, want, strict=True):
        assert np.sqrt(np.mean((one - two) ** 2) / np.mean(two**2)) < 1e-6


@pytest.mark.parametrize("case", ["same", "map 2x2", "kernel 5, stride 2"])
def test_float64_agrees_to_rounding(case):
    with jax.enable_x64(True):
        x, w, options = arrays(case, "float64")
        ours, plain = pair(options)
        close(every(ours, x, w), every(plain, x, w), 1e-12)


@pytest.mark.parametrize("case", ["same", "map 2x2", "input dilated"])
@pytest.mark.parametrize("members", [False, True])
def test_float64_inside_a_program_of_float32(case, members):
    """As `synflow` is: a program is lowered after its tracing, where 64-bit types are off again."""
    with jax.enable_x64(True):
        x, w, options = arrays(case, "float64")
        ours, plain = pair(options)
        want = forward_and_gradient(plain, x, w)
    narrow = np.float32(x), np.float32(w)

    def wide(x, w):
        with jax.enable_x64(True):
            found = forward_and_gradient(ours, x.astype("float64"), w.astype("float64"))
            return jax.tree.map(lambda y: y.astype("float32"), found)

    if members:
        got = jax.jit(jax.vmap(wide))(*(stacked(a, 2 * a) for a in narrow))
        got = jax.tree.map(lambda y: np.asarray(y)[0], got)
    else:
        got = jax.jit(wide)(*narrow)
    close(got, jax.tree.map(np.float32, want), 1e-6)


@pytest.mark.parametrize("case", ["same", "map 2x2", "stride 3"])
def test_bfloat16_is_as_exact_as_its_rounding(case):
    """Sums are taken in float32: the error is that of one rounding of operands and result."""
    x, w, options = arrays(case, "bfloat16", batch=16, channels=(24, 32))
    ours, _ = pair(options)
    _, plain = pair(options)
    wide = [np.float32(a) for a in (x, w)]
    found = jax.jit(ours)(x, w)
    close(found, np.asarray(jax.jit(plain)(*wide)).astype("bfloat16"), 2**-7)
    got = pulled_back(ours, x, w, found)
    want = pulled_back(plain, *wide, np.float32(found))
    close(got, [np.asarray(a).astype("bfloat16") for a in want], 2**-7)


@pytest.mark.parametrize("case", ["same", "map 2x2", "kernel 5, stride 2", "input dilated"])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 3), (4, 2)])
def test_vmap_over_either_operand_and_both(case, axes):
    x, w, options = arrays(case)
    ours, plain = pair(options)

    def stack(a, axis):
        return a if axis is None else np.stack([a, 2 * a + 1, np.sin(a)], axis)

    xs, ws = stack(np.asarray(x), axes[0]), stack(np.asarray(w), axes[1])
    mapped = jax.jit(jax.vmap(partial(forward_and_gradient, ours), in_axes=axes))
    each = [
        [a if axis is None else np.take(a, i, axis) for a, axis in ((xs, axes[0]), (ws, axes[1]))]
        for i in range(3)
    ]
    want = [forward_and_gradient(plain, *one) for one in each]
    close(mapped(xs, ws), jax.tree.map(stacked, *want), 2e-5)


def test_vmap_in_vmap_members_and_probes():
    """Members (own images, own kernels), probes inside them, and members of members."""
    x, w, options = arrays("same")
    ours, plain = pair(options)
    rng = np.random.default_rng(1)
    xs = np.float32(rng.normal(size=(2, *x.shape)))
    ws = np.float32(rng.normal(size=(2, *w.shape)))
    vs = np.float32(rng.normal(size=(3, *w.shape)))

    def probes(f):
        def hvp(x, w, v):
            return jax.jvp(jax.grad(partial(loss(f), x)), (w,), (v,))[1]

        return jax.vmap(jax.vmap(hvp, in_axes=(None, None, 0)), in_axes=(0, 0, None))(xs, ws, vs)

    probes = jax.jit(probes, static_argnums=0)
    close(probes(ours), probes(plain), 5e-5)
    outer = stacked(xs, 2 * xs, xs + 1), stacked(ws, ws - 1, 3 * ws)
    twice = [jax.jit(jax.vmap(jax.vmap(jax.grad(loss(f), 1)))) for f in (ours, plain)]
    close(twice[0](*outer), twice[1](*outer), 5e-5)


@pytest.mark.parametrize("case", ["same", "map 2x2", "kernel 5, stride 2"])
def test_members_one_after_another_equal_the_batched_product(case, monkeypatch):
    x, w, options = arrays(case)
    x, w = np.asarray(x), np.asarray(w)
    xs, ws = stacked(x, x + 1, -x), stacked(w, 2 * w, w - 1)
    ours, plain = (jax.jit(jax.vmap(jax.grad(loss(f), (0, 1)))) for f in pair(options))
    wanted = plain(xs, ws)
    monkeypatch.setattr(conv_cpu, "MEMBER_PATCH_BYTES", 0)
    jax.clear_caches()
    close(ours(xs, ws), wanted, 2e-5)


def test_inside_scan_and_while():
    x, w, options = arrays("same")

    def train(f):
        def body(w, _):
            return w - 0.01 * jax.grad(loss(f), 1)(x, w), loss(f)(x, w)

        return lax.scan(body, w, None, length=4)

    train = jax.jit(train, static_argnums=0)
    close(*map(train, pair(options)), 1e-4)


@pytest.mark.parametrize("kind", ["output", "input", "kernel"])
@pytest.mark.parametrize("case", ["kernel 5, stride 2", "map 2x2", "all dilated, small map"])
def test_the_lowering_for_other_platforms_is_the_same_map(kind, case):
    """`reference` (GPU, TPU) against the CPU formulations, members included."""
    x, w, options = arrays(case)
    y, geometry = _bound(x, w, options)
    x, w, y = map(np.asarray, (x, w, y))
    operands = {"output": (x, w), "input": (y, w), "kernel": (x, y)}[kind]
    members = [stacked(a, 1 + a) for a in operands]
    static = dict(kind=kind, geometry=geometry)

    def both(lower, single, several):
        return lower(*single, **static, members=False), lower(*several, **static, members=True)

    got, want = (
        jax.jit(partial(both, lower))(operands, members) for lower in (_lower_cpu, _lower_plain)
    )
    close(got, want, 2e-5)


def _bound(x, w, options):
    (equation,) = (
        e
        for e in jax.make_jaxpr(partial(conv, **options))(x, w).eqns
        if e.primitive.name == "prunejax_conv"
    )
    geometry = equation.params["geometry"]
    assert isinstance(geometry, Geometry)
    return jax.jit(pair(options)[0])(x, w), geometry


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_plain_convolutions(platform):
    """A program for a GPU or TPU holds exactly the convolutions that `lax` alone would give."""
    x, w, options = arrays("map 2x2")
    texts = []
    for f in pair(options):
        step = jax.jit(jax.grad(loss(f), (0, 1)))
        texts.append(step.trace(x, w).lower(lowering_platforms=(platform,)).as_text())
    for text in texts:
        assert text.count("stablehlo.convolution") == 3
        assert "dot_general" not in text


def test_flax_conv_takes_it():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 9, 4)), "float32")
    for options in (
        dict(strides=(2, 2), padding=((1, 1), (1, 1))),
        dict(padding="VALID", use_bias=False),
        dict(padding="SAME", feature_group_count=2),
        dict(padding=2, kernel_dilation=2, input_dilation=(1, 2)),
        dict(padding="CIRCULAR"),
        dict(dtype="bfloat16"),
    ):
        plain = nn.Conv(6, (3, 3), **options)
        ours = nn.Conv(6, (3, 3), conv_general_dilated=conv, **options)
        shapes = jax.eval_shape(plain.init, jax.random.key(0), x)
        draw = np.random.default_rng(1).normal
        variables = jax.tree.map(lambda s: np.asarray(draw(size=s.shape) / 3, s.dtype), shapes)  # noqa: B023
        got, want = jax.jit(lambda v, x: (ours.apply(v, x), plain.apply(v, x)))(variables, x)  # noqa: B023
        close(got, want, 2**-7 if "dtype" in options else 1e-5)


def test_falls_back_to_lax_for_what_it_does_not_cover():
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(2, 4, 6, 6))), jnp.asarray(rng.normal(size=(5, 4, 3, 3)))
    for f in (conv, lax.conv_general_dilated):
        assert f(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")).shape == (
            2,
            5,
            6,
            6,
        )
    one = jnp.ones((2, 8, 3)), jnp.ones((3, 3, 4))
    assert conv(*one, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")).shape == (2, 8, 4)
    whole = jnp.arange(2 * 5 * 5 * 1).reshape(2, 5, 5, 1), jnp.ones((3, 3, 1, 1), int)
    want = lax.conv_general_dilated(*whole, (1, 1), "SAME", dimension_numbers=DIMENSIONS)
    np.testing.assert_array_equal(conv(*whole), want)
    assert conv(jnp.ones((0, 5, 5, 1)), jnp.ones((3, 3, 1, 2))).shape == (0, 5, 5, 2)
    assert conv(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 2)), padding="VALID").shape[1] == 0
    jaxpr = str(jax.make_jaxpr(partial(conv, method="lax"))(jnp.ones((1, 4, 4, 1)), whole[1] * 1.0))
    assert "prunejax_conv" not in jaxpr


def test_bad_arguments():
    x, w = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1))
    with pytest.raises(ValueError, match="'fast' is not one of: auto, lax"):
        conv(x, w, method="fast")
    with pytest.raises((TypeError, ValueError), match="feature"):
        conv(x, jnp.ones((3, 3, 5, 1)))


SHARDED = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
import jax.numpy as jnp
from functools import partial
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from prunejax.ops.conv import conv

rng = np.random.default_rng(0)
for size, stride, layers in ((8, 1, 2), (9, 2, 1), (2, 1, 1), (32, 1, 1)):
    x = rng.normal(size=(8, size, size, 4)).astype("float32")
    ws = rng.normal(size=(layers, 3, 3, 4, 4)).astype("float32")
    f = partial(conv, window_strides=(stride, stride), padding=((1, 1), (1, 1)))
    def loss(ws, x):
        for w in ws:
            x = f(jnp.tanh(x), w)
        return jnp.mean(x ** 2)
    def everything(ws, x):
        return jax.jvp(jax.grad(loss, (0, 1)), (ws, x), (jnp.cos(ws), jnp.sin(x)))
    want = jax.tree.leaves(jax.jit(everything)(ws, x))
    def check(got, what):
        for a, b in zip(jax.tree.leaves(got), want, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max(), err_msg=what)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
        xs = jax.device_put(x, NamedSharding(mesh, P("data")))
        wr = jax.device_put(ws, NamedSharding(mesh, P()))
        compiled = jax.jit(everything).lower(wr, xs).compile()
        check(compiled(wr, xs), f"jit {kind} {size}")
        assert "all-gather" not in compiled.as_text(), (kind, size)
        def local(ws, x):
            mean = lambda ws, x: jax.lax.pmean(loss(ws, x), "data")
            return jax.jvp(jax.grad(mean, (0, 1)), (ws, x), (jnp.cos(ws), jnp.sin(x)))
        spec = (P(), P("data"))
        mapped = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=(spec, spec))
        check(jax.jit(mapped)(wr, xs), f"shard_map {kind} {size}")
    # members over devices: vmap in jit, and vmap in shard_map
    xm, wm = np.stack([x, 2 * x, x + 1, -x]), np.stack([ws, ws - 1, ws / 2, 2 * ws])
    want = jax.tree.leaves(jax.jit(jax.vmap(everything))(wm, xm))
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("member",), axis_types=(kind,))
        put = lambda a: jax.device_put(a, NamedSharding(mesh, P("member")))
        step = jax.jit(jax.vmap(everything)).lower(put(wm), put(xm)).compile()
        check(step(put(wm), put(xm)), f"vmap {kind} {size}")
        assert "all-gather" not in step.as_text(), (kind, size)
        mapped = jax.shard_map(jax.vmap(everything), mesh=mesh, in_specs=P("member"),
                               out_specs=P("member"))
        check(jax.jit(mapped)(put(wm), put(xm)), f"shard_map of vmap {kind} {size}")
print("done")
"""


@pytest.mark.slow
def test_sharded_over_four_devices():
    """Batch-sharded jit and shard_map, member-sharded vmap: the single-device result."""
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done" in done.stdout
