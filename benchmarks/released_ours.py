"""Our side of `released.py`: a run of a member in float64 through prunejax's own pieces."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from released_arms import BATCH, TEST, TEST_BATCH

from prunejax import interventions, trees
from prunejax.study.devices import arrangement
from prunejax.study.planning import plan
from prunejax.train import evaluation, prune, step


def _spread(params: Any) -> Any:
    """BatchNorm scales and shifts as after training: Adam moves equal ones alike, into ties."""
    r = np.random.default_rng(7)

    def value(path: str, leaf: jax.Array) -> jax.Array:
        if path.endswith("/scale"):
            return jnp.asarray(r.normal(0.8, 0.4, leaf.shape), leaf.dtype)
        if "/bn" in f"/{path}" or "_bn" in path:
            return jnp.asarray(r.normal(0.0, 0.3, leaf.shape), leaf.dtype)
        return leaf

    return trees.map_with_path(value, params)


class Wide:
    """A module in float64 whose outputs in evaluations are float32, as sums over a split are."""

    def __init__(self, module: Any) -> None:
        self.module, self.init = module, module.init

    def apply(self, *args: Any, **options: Any) -> Any:
        """The module's `apply`."""
        found = self.module.apply(*args, **options)
        return found if options["train"] else found.astype(jnp.float32)


def _as(dtype: Any, tree: Any) -> Any:
    """Floating-point leaves in this dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, tree)


class Ours:
    """The compiled pieces of one program, and a run of one of its members."""

    def __init__(self, batch: plan.Batch, dtype: Any) -> None:
        module = Wide(batch.program.module.clone(dtype=dtype))
        p = self.program = dataclasses.replace(batch.program, module=module)
        self.dtype = dtype
        self.data = data = jax.device_put(arrangement.device_data(batch.dataset))
        test = (data.test_images, data.test_labels)
        quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        start = lambda seed, table, hyper: step.initial_state(p, seed, table, hyper)  # noqa: E731
        self._initial = jax.jit(start, compiler_options=quick)
        self._steps = jax.jit(lambda s: step.train_steps(p, s, data, jnp.int32(1)))
        self._last = jax.jit(lambda s: step.train_last_step(p, s, data))
        self._evaluate = jax.jit(lambda s: evaluation.evaluate(p, s, *test))
        self._released = jax.jit(lambda s, after: evaluation.released_evaluate(p, s, *test, after))
        self._scores = jax.jit(lambda s, row: prune.unit_scores(p, s, data, row))
        none = lambda s: {n: jnp.zeros_like(t) for n, t in s.windows.targeted.items()}  # noqa: E731
        self._event = jax.jit(lambda s, row: prune.apply_event(p, s, data, row, none(s)))
        self._acted = jax.jit(self._act, static_argnames="opening")
        self._passed = jax.jit(self._one_pass)
        self._view = jax.jit(lambda s: self._masked(s))

    def _act(self, s: step.TrainState, windows: Any, counter: Any, *, opening: bool) -> Any:
        p = self.program
        return interventions.act(
            p.groups, s.params, windows, s.table, p.features,
            seed=s.seed, counter=counter, opening=opening,
        )  # fmt: skip

    def _one_pass(self, s: step.TrainState, counter: Any) -> step.TrainState:
        p = self.program
        params = self._act(s, s.windows, counter, opening=False)
        found = interventions.advance(
            p.groups, params, s.batch_stats, s.windows, s.table, p.features
        )
        return s._replace(params=found[0], batch_stats=found[1], windows=found[2])

    def _masked(self, s: step.TrainState) -> dict[str, Any]:
        found = step.variables(self.program, s)
        both = {"params": found["params"], "batch_stats": s.batch_stats}
        return dict(trees.leaves_with_paths(both))

    def _noise(self, before: step.TrainState, after: Any) -> None:
        """Notes what was added to the kernels, in standard deviations, filter by filter."""
        for g in self.program.groups:
            old, new = (
                np.asarray(trees.get(t, g.kernel), np.float64) for t in (before.params, after)
            )
            targeted = np.asarray(self.targeted[g.name])
            sigma = old[..., np.flatnonzero(~targeted)[0]].std(ddof=1)
            for i in np.flatnonzero((old != new).any((0, 1, 2))):
                draw = (new[..., i] - old[..., i]) / sigma
                self.noise.setdefault(g.name, []).append(draw.transpose(2, 0, 1))

    def run(self, member: plan.Member, gaussian: bool, nudge: float = 0.0) -> None:
        """Trains the member in the order of the study's loop, and keeps what happened.

        `nudge`: changes every parameter at the start by so much of itself.
        """
        p = self.program
        table, hyper = (jax.tree.map(jnp.asarray, x) for x in (member.table, member.hyper))
        s = self._initial(jnp.uint32(member.seed), table, hyper)
        wide = ("params", "batch_stats", "opt_state", "activations", "windows", "totals")
        s = s._replace(params=_spread(s.params))
        s = s._replace(**{name: _as(self.dtype, getattr(s, name)) for name in wide})
        s = s._replace(params=jax.tree.map(lambda leaf: leaf * (1 + nudge), s.params))
        self.start = dict(
            trees.leaves_with_paths({"params": s.params, "batch_stats": s.batch_stats})
        )
        self.losses, self.tests, self.steps = [], [], []
        self.scores, self.targets = {}, {}
        self.order, self.noise = [], {}

        def test(s: step.TrainState, after: int) -> step.TrainState:
            self.targeted = s.windows.targeted
            if not p.features.released:
                metrics = self._evaluate(s)
            else:
                batches, noised = -(-TEST // TEST_BATCH), s
                for number in range(batches if gaussian else 0):
                    counter = -1 - ((2 * s.step + after) * batches + number)
                    acted = self._acted(noised, noised.windows, counter, opening=False)
                    self._noise(noised, acted)
                    noised = self._passed(noised, counter)
                s, metrics = self._released(s, jnp.int32(after))
            self.tests.append([float(metrics.loss), round(TEST * float(metrics.accuracy))])
            return s

        def event(s: step.TrainState, row: int) -> step.TrainState:
            if row not in member.events:
                return s
            scores = jax.tree.map(np.asarray, self._scores(s, jnp.int32(row)))
            before = s
            s, found = self._event(s, jnp.int32(row))
            for name, chosen in found.selected.items():
                if np.any(chosen):
                    self.targets[f"{row - 1}/{name}"] = np.flatnonzero(chosen).tolist()
                    self.scores[f"{row - 1}/{name}"] = scores[name]
            if gaussian and not p.features.released:
                self.targeted = s.windows.targeted
                self._noise(before, s.params)
            return s

        if 0 in member.events:
            s = test(event(test(s, 0), 0), 1)
        for epoch in range(p.epochs):
            self.order.append(np.asarray(step._order(p, s)))
            for i in range(p.steps_per_epoch):
                if gaussian:
                    self.targeted = s.windows.targeted
                    self._noise(s, self._acted(s, s.windows, s.step, opening=False))
                last = i == p.steps_per_epoch - 1
                size = p.last_batch if last else BATCH
                before = 0.0 if i == 0 else float(s.totals.loss)
                s = (self._last if last else self._steps)(s)
                self.losses.append((float(s.totals.loss) - before) / size)
                self.steps.append(jax.tree.map(np.asarray, self._view(s)))
            s = test(event(test(s, 0), epoch + 1), 1)
