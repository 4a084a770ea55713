"""prunejax beside our independent NumPy reimplementation of the release's mechanics.

Counts, targets, windows pass by pass, and the first training steps of each kind of noise, on the
same weights and batches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from prunejax import interventions as iv
from prunejax import schedules, scores
from prunejax.configs import default
from prunejax.groups import Group
from prunejax.study.devices import arrangement
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from prunejax.train import evaluation, prune, step
from tests import mechanics

# Spec section 4: label, passes in the run table's name, test batches of a pass over the test set.
EQUIVALENT = [(50, 129, 79), (1105, 1500, 79), (89, 129, 40), (630, 750, 40), (1220, 1500, 40),
              (2480, 3000, 40)]  # fmt: skip


# -- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [512, 256, 128, 64, 32, 16])
@pytest.mark.parametrize("fraction", [0.9, 0.95, 0.8, 0.3, 0.25, 0.1, 0.06, 0.7])
@pytest.mark.parametrize("epochs", [(6, 275, 40), (3, 150, 4), (24, 100, 1), (5, 5, 3)])
def test_events_and_counts(units, fraction, epochs):
    start, end, period = epochs
    there = mechanics.event_epochs(start, end, period)
    expected = mechanics.removals(units, fraction, len(there))
    ours = schedules.linear(units=units, fraction=fraction, start=start, end=end, period=period)
    assert ours == list(zip(there, expected, strict=True))


def test_counts_where_binary_fractions_miss_a_whole_number():
    """(1 - 0.7) * 10 is a little more than 3: the release keeps 4 there, and here it is 3."""
    assert mechanics.removals(10, 0.7, 1) == [6]
    assert schedules.linear(units=10, fraction=0.7, start=0, end=0, period=1) == [(0, 7)]


# -- targets --------------------------------------------------------------------------------------


def layer(seed, units=12, kind="prune", **options):
    r = np.random.default_rng(seed)
    bn = {"scale": r.normal(size=units), "bias": r.normal(size=units),
          "mean": r.normal(size=units), "var": r.uniform(0.5, 2, units)}  # fmt: skip
    return mechanics.Layer(r.normal(size=(units, 3, 3, 2)), bn, kind, **options)


def our_scores(other, name):
    inputs = scores.ScoreInputs(
        kernel=jnp.asarray(other.kernel(), jnp.float32),
        scale=jnp.asarray(other.bn["scale"], jnp.float32),
        bias=jnp.asarray(other.bn["bias"], jnp.float32),
        activation=None,
        gradient=None,
        key=jax.random.key(0),
    )
    return scores.SCORES[name].fn(inputs)


@pytest.mark.parametrize("name", ["l1", "l2", "ebn", "ebn_signed"])
def test_scores(name):
    other = layer(3, units=40)
    other.bn["scale"][0], other.bn["bias"][0] = 0.0, 0.0  # the release says 0
    other.bn["scale"][1], other.bn["bias"][1] = -0.5, -1.0
    expected = other.scores("ebn_alt" if name == "ebn_signed" else name)
    np.testing.assert_allclose(our_scores(other, name), expected, rtol=2e-5, atol=1e-6)
    if name == "ebn_signed":
        assert expected[1] < 0


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("name", ["l1", "l2", "ebn", "ebn_signed"])
def test_targets_of_successive_events(name, largest):
    """The sets of every event of a ramp; a filter is a target once."""
    other, done = layer(7), jnp.zeros(12, bool)
    for k in mechanics.removals(12, 0.75, 4):
        sign = -1 if largest else 1
        worth = [sign * our_scores(other, name)]
        (ours,) = prune.targets(worth, jnp.array([k]), [~done], "layer")
        theirs = other.event(k, largest, "ebn_alt" if name == "ebn_signed" else name)
        assert np.flatnonzero(ours).tolist() == sorted(theirs)
        done |= ours
    assert int(done.sum()) == 9


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize(
    ("norms", "k"),
    [([1, 1, 1, 1, 1], 2), ([2, 1, 1, 1, 2], 2), ([0, 0, 3, 0, 5], 2), ([1, 2, 1, 2, 1], 3)],
)
def test_ties(norms, k, largest):
    """Equal scores at the cutoff: here the earlier are kept, as `masks.prune` does.

    The release takes the first k, in index order, of all filters that reach the cutoff; where
    some lie beyond it, it can so spare a more extreme filter. Here those go first in any case.
    """
    other = layer(0, units=5)
    other.w[:] = 0
    other.w[:, 0, 0, 0] = norms
    sign = -1 if largest else 1
    worth = [sign * our_scores(other, "l2")]
    (chosen,) = prune.targets(worth, jnp.array([k]), [jnp.ones(5, bool)], "layer")
    ours = np.flatnonzero(chosen).tolist()
    theirs = sorted(other.event(k, largest, "l2"))
    values = -sign * np.array(norms, float)
    cutoff = np.sort(values)[-k]
    beyond = np.flatnonzero(values > cutoff).tolist()
    ties = np.flatnonzero(values == cutoff).tolist()
    assert ours == sorted(beyond + ties[len(ties) - (k - len(beyond)) :])
    assert theirs == np.flatnonzero(values >= cutoff)[:k].tolist()


# -- windows, pass by pass ------------------------------------------------------------------------

GROUP = (Group("conv", "conv/kernel", ("bn/scale", "bn/bias"), ("bn/mean", "bn/var"), None, 6, ()),)


@functools.partial(jax.jit, static_argnames=("features", "opening"))
def act_layer(params, windows, table, counter, *, features, opening):
    return iv.act(
        GROUP,
        params,
        windows,
        table,
        features,
        seed=jnp.uint32(5),
        counter=counter,
        opening=opening,
    )


@functools.partial(jax.jit, static_argnames="features")
def advance_layer(params, stats, windows, table, *, features):
    return iv.advance(GROUP, params, stats, windows, table, features)


@functools.partial(jax.jit, static_argnames="features")
def open_layer(params, stats, windows, table, selected, *, features):
    return iv.open_windows(GROUP, params, stats, windows, table, features, selected)


class Beside:
    """One layer here and there: the same events and passes, and the same updates after training."""

    def __init__(self, kind, passes, *, newest=True, restore=False, as_released, norm=False):
        self.there = layer(
            1, 6, {"prune": "prune", "zero": "zeroing", "gaussian": "gaussian"}[kind],
            # In training steps N means N passes, and as released N + 1 (N when restoring).
            passes=passes if as_released or restore else passes - 1,
            newest=newest, restore=restore, rng=np.random.default_rng(9),
        )  # fmt: skip
        self.released = as_released
        self.features = iv.Features(
            finite=True,
            zero=True,
            gaussian=kind == "gaussian",
            restore=restore,
            released=as_released,
        )
        self.table = iv.Table(
            kind=jnp.int32(iv.KINDS[kind]),
            duration=jnp.int32(iv.FOREVER if kind == "prune" else passes),
            cumulative=jnp.bool_(not newest),
            restore=jnp.int32(iv.RESTORES["weights+norm" if restore else "no"]),
            mask_norm=jnp.bool_(norm or restore),
            noise_scale=jnp.float32(1),
            target=jnp.int32(2),
            score=jnp.int32(0),
            counts=jnp.zeros((1, 1), jnp.int32),
            replay=jnp.bool_(False),
        )
        f = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
        bn = {name: f(x) for name, x in self.there.bn.items()}
        self.params = {
            "conv": {"kernel": f(self.there.kernel())},
            "bn": {"scale": bn["scale"], "bias": bn["bias"]},
        }
        self.stats = {"bn": {"mean": bn["mean"], "var": bn["var"]}}
        self.windows = iv.initial(GROUP, self.params, self.stats, features=self.features)
        self.r = np.random.default_rng(2)
        self.counter = 0
        self.draws = []  # noise in standard deviations

    def act(self, opening=False):
        before = np.asarray(self.params["conv"]["kernel"])
        self.params = act_layer(
            self.params,
            self.windows,
            self.table,
            jnp.int32(self.counter),
            features=self.features,
            opening=opening,
        )
        self.counter += 1
        return np.asarray(self.params["conv"]["kernel"]) - before

    def event(self, k):
        chosen = self.there.event(k, True, "l2")
        selected = {"conv": jnp.zeros(6, bool).at[jnp.array(chosen)].set(True)}
        self.windows = open_layer(
            self.params, self.stats, self.windows, self.table, selected, features=self.features
        )
        change = self.act(opening=True)
        if self.there.kind == "gaussian" and not self.released:
            self.pending = change  # this is the noise of the first step
        return chosen

    def forward(self, train):
        """A pass in both; what it computes with is equal (noise: its statistics are kept)."""
        change = np.zeros((3, 3, 2, 6), np.float32)
        if train or self.released:
            change = self.act() + getattr(self, "pending", 0)
            self.pending = 0
        if train or self.released:
            if self.there.kind == "gaussian":
                sigma = self.there.sigma()
                before = self.there.w.copy()
                self.there.forward()
                touched = self.there.touched[-1]
                moved = np.flatnonzero(np.abs(change).max(axis=(0, 1, 2)))
                assert moved.tolist() == sorted(touched)
                self.draws.append(change[..., moved].ravel() / sigma)
                self.there.w = before + np.moveaxis(change, -1, 0)  # go on with the same noise
            else:
                w, scale, bias = self.there.forward()
                np.testing.assert_allclose(self.effective()[0], np.moveaxis(w, 0, -1), atol=2e-5)
                np.testing.assert_allclose(self.effective()[1], scale, atol=2e-5)
                np.testing.assert_allclose(self.effective()[2], bias, atol=2e-5)
        if train:
            self._update()
        if train or self.released:
            self.params, self.stats, self.windows = advance_layer(
                self.params, self.stats, self.windows, self.table, features=self.features
            )

    def effective(self):
        """Kernel, scale and bias under the mask."""
        masks = iv.mask_tree(GROUP, self.params, self.windows, self.table)
        masked = jax.tree.map(lambda m, x: np.asarray(jnp.where(m, x, 0)), masks, self.params)
        return masked["conv"]["kernel"], masked["bn"]["scale"], masked["bn"]["bias"]

    def _update(self):
        """Stands for a training step: moves everything by the same amounts, statistics too."""
        move = self.r.normal(size=self.there.w.shape) * 0.1
        self.there.w = self.there.w + move
        kernel = self.params["conv"]["kernel"] + np.moveaxis(move, 0, -1).astype(np.float32)
        self.params = {"conv": {"kernel": kernel}, "bn": dict(self.params["bn"])}
        self.stats = {"bn": dict(self.stats["bn"])}
        for name in ("scale", "bias", "mean", "var"):
            move = self.r.normal(size=6) * 0.1
            self.there.bn[name] = self.there.bn[name] + move
            holder = self.params["bn"] if name in ("scale", "bias") else self.stats["bn"]
            holder[name] = holder[name] + move.astype(np.float32)


def run_epochs(beside, epochs, steps, tests, counts):
    for epoch in range(epochs):
        for _ in range(steps):
            beside.forward(train=True)
        for _ in range(tests):
            beside.forward(train=False)
        if counts.get(epoch):
            beside.event(counts[epoch])
        for _ in range(tests):
            beside.forward(train=False)


@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kind": "prune", "passes": 0, "norm": True},
        {"kind": "zero", "passes": 1},
        {"kind": "zero", "passes": 7},
        {"kind": "zero", "passes": 4, "newest": False},
        {"kind": "zero", "passes": 6, "newest": False, "restore": True},
        {"kind": "zero", "passes": 9, "newest": True, "restore": True},
        {"kind": "gaussian", "passes": 1},
        {"kind": "gaussian", "passes": 7},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_every_pass_computes_with_the_same_values(options, as_released):
    """Three events of a layer; the windows of the first two end before the next event."""
    beside = Beside(**options, as_released=as_released)
    steps, tests = (4, 2) if as_released else (9, 0)
    run_epochs(beside, 7, steps, tests, {0: 2, 3: 1, 5: 1})
    assert beside.there.kept.count(False) == 4
    if options["kind"] == "gaussian":
        draws = np.concatenate(beside.draws)
        expected = 18 * 4 * (options["passes"] + as_released)
        assert draws.size == expected
        # float32 differences of stored weights; the fixed seed decides
        assert stats.kstest(draws, "norm").pvalue > 0.01


def test_zero_passes_as_released_is_one_pass():
    beside = Beside("gaussian", 0, as_released=True)
    run_epochs(beside, 2, 4, 2, {0: 2})
    assert [d.size for d in beside.draws].count(36) == 1
    assert sum(d.size for d in beside.draws) == 36


def test_restored_values_are_those_from_before_the_event_bit_for_bit():
    beside = Beside("zero", 5, newest=False, restore=True, as_released=True)
    run_epochs(beside, 1, 3, 2, {})
    before = jax.tree.map(np.asarray, (beside.params, beside.stats))
    chosen = beside.event(3)
    for _ in range(5):
        beside.forward(train=True)
    for old, new in zip(
        jax.tree.leaves(before), jax.tree.leaves((beside.params, beside.stats)), strict=True
    ):
        np.testing.assert_array_equal(old[..., chosen], new[..., chosen])
        others = [i for i in range(6) if i not in chosen]
        assert np.all(old[..., others] != new[..., others])


@pytest.mark.parametrize(("label", "passes", "tests"), EQUIVALENT)
def test_equivalence_table(label, passes, tests):
    """Training steps in a window of the release: three ways to count."""
    assert mechanics.window_steps(passes, 391, tests) == label
    assert mechanics.training_passes(passes, 391, tests) == label
    restore = tests == 40  # the restoring windows end with pass N, the others with pass N + 1
    table = iv.Table(
        jnp.int32(iv.ZERO), jnp.int32(passes), jnp.bool_(False), jnp.int32(2 if restore else 0),
        jnp.bool_(restore), jnp.float32(1), jnp.int32(2), jnp.int32(0),
        jnp.zeros((1, 1), jnp.int32), jnp.bool_(False),
    )  # fmt: skip
    features = iv.Features(finite=True, zero=True, restore=restore, released=True)
    beside = Beside("zero", 1, restore=restore, as_released=True)
    params, bn = beside.params, beside.stats
    windows = iv.initial(GROUP, params, bn, features=features)
    selected = {"conv": jnp.arange(6) == 2}
    windows = iv.open_windows(GROUP, params, bn, windows, table, features, selected)
    order = [False] * tests + ([True] * 391 + [False] * 2 * tests) * 8

    def one(carry, train):
        params, bn, windows = carry
        open_now = (windows.remaining["conv"][2] > 0) & train
        return iv.advance(GROUP, params, bn, windows, table, features), open_now

    _, trained = jax.lax.scan(one, (params, bn, windows), jnp.array(order))
    assert int(trained.sum()) == label + (not restore)


# -- a network ------------------------------------------------------------------------------------


def network_program(intervention, epochs=2):
    config = default.get_config()
    config.epochs, config.batch_size, config.eval_batch_size = epochs, 16, 20
    config.data.train_examples, config.data.test_examples = 64, 50
    config.model.hidden = (8,)
    config.optimizer.update(
        {"name": "sgd", "learning_rate": 0.05, "schedule": "constant", "weight_decay": 0.01}
    )
    config.variants = {
        "arm": {
            "prune": {"schedule": "linear", "layers": ("dense1",), "fraction": (0.375,),
                      "start": (0,), "end": (0,), "score": "l2", "target": "largest"},
            "intervention": intervention,
        }
    }  # fmt: skip
    (batch,) = plan.build(config_lib.variants(config, default.get_config()))
    member = batch.members[0]
    table, hyper = jax.device_put((member.table, member.hyper))
    state = step.initial_state(batch.program, jnp.uint32(0), table, hyper)
    return batch, state


class Draws:
    """Gives out noise that was drawn elsewhere, in standard deviations."""

    def __init__(self):
        self.queue = []

    def normal(self, size):
        return self.queue.pop(0).reshape(size)


def same(network, state, rtol=2e-4, atol=2e-5):
    """Stored values, masks applied, are equal here and there."""
    if network.layer.restore and network.layer.since == network.layer.passes:
        return  # put back at the end of the last pass here, at the start of the next one there
    p = state.params
    gone = np.array([not k and network.layer.kind in ("prune", "reference")
                     for k in network.layer.kept])  # fmt: skip
    stored = network.layer.w.T * ~gone
    ours = np.asarray(p["dense1"]["kernel"]) * ~gone
    np.testing.assert_allclose(ours, stored, rtol=rtol, atol=atol)
    norm = ~gone if network.layer.kind == "prune" else 1.0
    for name in ("scale", "bias"):
        expected = network.layer.bn[name] * norm
        np.testing.assert_allclose(p["bn1"][name] * norm, expected, rtol=rtol, atol=atol)
    for name in ("mean", "var"):
        ours = state.batch_stats["bn1"][name]
        np.testing.assert_allclose(ours, network.layer.bn[name], rtol=rtol, atol=atol)
    np.testing.assert_allclose(p["classifier"]["kernel"], network.c["kernel"], rtol=rtol, atol=atol)


KINDS = {
    "prune": ({"kind": "prune"}, "prune", 0, False),
    "reference": ({"kind": "prune", "mask_norm": False}, "reference", 0, False),
    "zero": ({"kind": "zero", "duration": 6, "mask_norm": False}, "zeroing", 6, False),
    "gaussian": ({"kind": "gaussian", "duration": 6, "mask_norm": False}, "gaussian", 6, False),
    "restore": (
        {"kind": "zero", "duration": 7, "scope": "cumulative", "restore": "weights+norm"},
        "zeroing",
        7,
        True,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_training_beside_the_release(name):
    """An epoch, the event with its tests, the next epoch: same losses, test results and weights.

    As released: 3 test batches before and after the event; the window reaches into the training
    of the next epoch and ends there.
    """
    options, kind, passes, restore = KINDS[name]
    batch, state = network_program(options | {"as_released": True})
    program, data = batch.program, arrangement.device_data(batch.dataset)
    draws = Draws()
    v = jax.tree.map(np.asarray, (state.params, state.batch_stats))
    bn = {"scale": v[0]["bn1"]["scale"], "bias": v[0]["bn1"]["bias"], **v[1]["bn1"]}
    there = mechanics.Layer(v[0]["dense1"]["kernel"].T, bn, kind, passes=passes,
                           newest=not restore, restore=restore, rng=draws)  # fmt: skip
    network = mechanics.Network(there, v[0]["classifier"], rate=0.05, decay=0.01)
    mean, std = np.asarray(program.mean), np.asarray(program.std)
    pixels = lambda x: ((np.asarray(x, np.float64) / 255 - mean) / std).reshape(len(x), -1)  # noqa: E731

    train_step = jax.jit(lambda s, x, y: step.train_step(program, s, x, y))
    released_evaluate = jax.jit(
        lambda s, after: evaluation.released_evaluate(
            program, s, data.test_images, data.test_labels, after
        )
    )

    act = jax.jit(lambda s, counter: _act(program, s, counter))
    one_pass = jax.jit(lambda s, counter: _one_pass(program, s, counter))

    def noise(state, counter):
        """What the layer's rng has to give in this pass: the noise that prunejax draws."""
        acted = act(state, counter)
        change = np.asarray(acted["dense1"]["kernel"] - state.params["dense1"]["kernel"])
        draws.queue = [change[:, i] / there.sigma() for i in there.fresh]

    def train(state, index):
        rows = slice(16 * index, 16 * index + 16)
        images, labels = data.train_images[rows], np.asarray(data.train_labels[rows])
        if kind == "gaussian":
            noise(state, state.step)
        first = int(state.step) % program.steps_per_epoch == 0  # the epoch's sums start again
        before = 0.0 if first else float(state.totals.loss)
        state = train_step(state, jnp.asarray(images), jnp.asarray(labels))
        expected = network.train_step(pixels(images), labels)
        assert (float(state.totals.loss) - before) / 16 == pytest.approx(expected, rel=1e-4)
        same(network, state)
        return state

    def test(state, after):
        total = correct = 0.0
        start = state
        state, metrics = released_evaluate(state, jnp.int32(after))
        noised = start
        for number in range(3):
            rows = slice(20 * number, min(20 * number + 20, 50))
            if kind == "gaussian":
                counter = -1 - ((2 * start.step + after) * 3 + number)
                noise(noised, counter)
                noised = one_pass(noised, counter)
            logits, _ = network.outputs(pixels(data.test_images[rows]), train=False)
            labels = np.asarray(data.test_labels[rows])
            total += network.loss(logits, labels)[0].sum()
            correct += (logits.argmax(1) == labels).sum()
        assert float(metrics.loss) == pytest.approx(total / 50, rel=2e-4)
        assert float(metrics.accuracy) == pytest.approx(correct / 50, abs=1e-6)
        return state

    for i in range(4):
        state = train(state, i)
    state = test(state, 0)
    replay = {"dense1": jnp.zeros(8, bool)}
    apply = jax.jit(lambda s: prune.apply_event(program, s, data, jnp.int32(1), replay))
    state, event = apply(state)
    chosen = there.event(3, True, "l2")
    assert np.flatnonzero(event.selected["dense1"]).tolist() == sorted(chosen)
    state = test(state, 1)
    for i in range(6):
        state = train(state, i % 4)
    if kind in ("zeroing", "gaussian"):
        # 7 passes in all: 3 tests, 4 training steps
        assert not np.any(np.asarray(state.windows.remaining["dense1"]))
        assert [bool(t) for t in there.touched[-6:]] == [True] * 4 + [False] * 2


def _act(program, state, counter):
    return iv.act(
        program.groups,
        state.params,
        state.windows,
        state.table,
        program.features,
        seed=state.seed,
        counter=counter,
        opening=False,
    )


def _one_pass(program, state, counter):
    """The state after one test pass."""
    params, bn, windows = iv.advance(
        program.groups,
        _act(program, state, counter),
        state.batch_stats,
        state.windows,
        state.table,
        program.features,
    )
    return state._replace(params=params, batch_stats=bn, windows=windows)
