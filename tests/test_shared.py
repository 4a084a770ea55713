"""Programs that differ in their events alone share compiled functions, which do not read those."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import losses, models
from prunejax.interventions import ROWS
from prunejax.study.devices import arrangement, lifting, shared
from prunejax.study.devices.population import LAYOUTS, Population
from prunejax.train import evaluation, prune, step, stopping
from tests.studies import begun, go, planned, rows, small
from tests.test_presets import arm

METHODS = ("random", "snip", "nm", "gradual", "rigl", "ste", "movement", "movement_soft")


@pytest.fixture(scope="module")
def batches():
    config = small(**{name: arm(name) for name in METHODS})
    return {b.members[0].variant: b for b in planned(config)}


def _state(batch):
    member = batch.members[0]
    return step.initial_state(batch.program, jnp.uint32(0), member.table, member.hyper)


@pytest.mark.parametrize("name", ["random", "snip", "rigl", "ste"])
def test_what_is_left_out_is_read_by_events_alone(batches, name):
    """The same jaxprs of the whole program and of what it is beside its events, without rows."""
    batch = batches[name]
    whole, data = batch.program, arrangement.device_data(batch.dataset)
    assert whole != whole.beside_events()
    bare = shared.bare(jax.eval_shape(lambda: _state(batch)))

    def traced(program):
        def everything(state):
            return (
                step.train_steps(program, state, data, jnp.int32(3)),
                step.train_last_step(program, state, data),
                evaluation.evaluate(program, state, data.test_images, data.test_labels),
                evaluation.sparsity(program, state),
            )

        return str(jax.make_jaxpr(everything)(bare))

    assert traced(whole) == traced(whole.beside_events())


@pytest.mark.parametrize("name", METHODS)
def test_events_leave_the_types_of_a_state_as_they_are(batches, name):
    """Else the step after an event, and the next event, would be compiled once more."""
    batch = batches[name]
    data = arrangement.device_data(batch.dataset)
    state = jax.eval_shape(lambda: _state(batch))
    after, _ = jax.eval_shape(
        lambda s: prune.apply_event(batch.program, s, data, jnp.int32(1), s.windows.targeted), state
    )
    types = lambda tree: [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]  # noqa: E731
    assert types(after) == types(state)


@pytest.mark.parametrize("layout", ["sequential", "vectorized"])
def test_of_a_stack_those_that_have_stopped_and_copies_are_not_tested(layout):
    """NaN of them, at once; the bits of the others. Vectorized, all are computed anyway."""
    config = small(dense={})
    config.stop_loss, config.seeds = 0.5, 3
    (batch,) = planned(config)
    data = arrangement.device_data(batch.dataset)
    people = Population(batch.program, data, layout, jax.devices()[:1], batch.members[0])
    states = people.initial(list(batch.members))
    whole = people.evaluate(states, data.test_images, data.test_labels)
    assert np.isfinite(whole.loss).all()
    stopped = np.array([-1, 7, stopping.PADDING], np.int32)
    states = states._replace(stopped=jax.device_put(stopped, states.stopped.sharding))
    _, found = people.evaluate_test(states, after_event=False)
    other = people.evaluate(states, data.test_images, data.test_labels)
    np.testing.assert_array_equal(other.loss, whole.loss)  # of the training set, at the end
    assert people.vectorized is lifting.vectorizes(layout, True)
    idle = lifting.padding_is_idle(people.vectorized, 1)
    assert idle is (layout == "sequential")
    running = stopped == -1 if idle else np.ones(3, bool)
    np.testing.assert_array_equal(np.isfinite(found.loss), running)
    np.testing.assert_array_equal(np.isfinite(found.accuracy), running)
    np.testing.assert_array_equal(found.loss[running], whole.loss[running])
    np.testing.assert_array_equal(found.accuracy[running], whole.accuracy[running])
    only = np.array([False, True, True])  # and of the last two one has stopped, one is a copy
    _, found = people.evaluate_test(states, after_event=True, only=only)
    looked = only & (stopped == -1) if idle else np.ones(3, bool)
    np.testing.assert_array_equal(np.isfinite(found.loss), looked)
    _, found = people.evaluate_test(states, after_event=True, only=~only)
    np.testing.assert_array_equal(found.loss[0], whole.loss[0])


def test_padding_is_idle_where_members_go_one_after_another():
    """As trained is: a copy takes no step there, and all steps elsewhere."""
    (batch,) = planned(small(dense={}))
    data = arrangement.device_data(batch.dataset)
    for layout in ("sequential", "vectorized"):
        people = Population(batch.program, data, layout, jax.devices()[:1], batch.members[0])
        states = people.initial([batch.members[0]] * 2, [0])
        trained = people.train(states, data, np.int32(1))
        idle = lifting.padding_is_idle(people.vectorized, batch.program.data_parallel)
        assert np.asarray(trained.step).tolist() == ([1, 0] if idle else [1, 1])
    found = {
        (layout, cpu, share): lifting.padding_is_idle(lifting.vectorizes(layout, cpu), share)
        for layout in LAYOUTS for cpu in (True, False) for share in (1, 2)
    }  # fmt: skip
    assert {key for key, idle in found.items() if idle} == {
        ("sequential", True, 1), ("sequential", False, 1), ("sharded", True, 1),
    }  # fmt: skip


def test_a_loss_of_zero_stops_no_run_that_never_stops():
    batch, _, state = begun(small(dense={}))
    for least, at in ((0.0, -1), (0.5, 7)):
        hyper = batch.members[0].hyper._replace(stop_loss=jnp.float32(least))
        now = state._replace(step=jnp.int32(7), hyper=hyper)
        assert int(stopping.stopped(now, jnp.float32(0), jnp.array(True))) == at


def test_programs_share_what_is_not_of_their_events(batches):
    def people(name):
        batch = batches[name]
        data = arrangement.device_data(batch.dataset)
        like = batch.members[0]
        return Population(batch.program, data, "sequential", jax.devices()[:1], like)

    made = {name: people(name) for name in batches}
    assert len({id(p._event) for p in made.values()}) == len(METHODS)
    same = [made[name] for name in ("random", "snip", "nm", "gradual")]
    assert len({id(p.train) for p in same}) == len({id(p._evaluate) for p in same}) == 1
    # Others keep more of dead weights: which ever lived, or their values.
    assert len({id(made[name].train) for name in ("random", "rigl", "ste")}) == 3

    states = same[1].initial([batches["snip"].members[0]])  # rows of another number
    trained = same[1].train(states, same[1].data, np.int32(2))
    for name in ROWS:
        asked = getattr(batches["snip"].members[0].table, name)
        np.testing.assert_array_equal(getattr(trained.table, name)[0], asked)
    assert int(trained.step[0]) == 2
    shared.forget()  # as every study does: a name of a loss may be another function by then
    assert people("random").train is not made["random"].train


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("", {"xla_backend_optimization_level": 1}),
        ("--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0", None),
    ],
)
def test_first_states_are_compiled_in_less_time_unless_a_level_is_asked_for(
    monkeypatch, flags, options
):
    given, lift = {}, lifting.Lift.__call__

    def told(self, fn, *args, **named):
        given[fn] = named.get("options")
        return lift(self, fn, *args, **named)

    monkeypatch.setattr(lifting.Lift, "__call__", told)
    monkeypatch.setenv("XLA_FLAGS", flags)
    shared.forget()
    (batch,) = planned(small(dense={}))
    data = arrangement.device_data(batch.dataset)
    Population(batch.program, data, "sequential", jax.devices()[:1], batch.members[0])
    found = [kept for kept in given.values() if kept and shared._REGIONS not in kept]
    assert found == ([options] if options else [])
    jitted = []  # what a caller of the library gets, too
    monkeypatch.setattr(jax, "jit", lambda fn, **named: jitted.append(named) or (lambda key: {}))
    models.init(models.create("mlp"), 0, (2, 2, 1))
    assert jitted == [{"compiler_options": options}]


def test_training_on_a_cpu_copies_no_weights_in_a_step(monkeypatch):
    def copies():
        shared.forget()
        shared._in_place.cache_clear()
        (batch,) = planned(small(dense={}))
        data = arrangement.device_data(batch.dataset)
        one = Population(batch.program, data, "sequential", jax.devices()[:1], batch.members[0])
        states = one.initial(batch.members[:1])
        text = one.train.lower(states, one.data, np.int32(2)).compile().as_text()
        shapes = {jnp.shape(k)[1:] for k in jax.tree.leaves(states.params) if jnp.ndim(k) == 3}
        names = [f"f32[{','.join(map(str, shape))}]" for shape in shapes]
        return sum(
            f"= {n}{{1,0}} copy(%get-tuple" in line for line in text.split("\n") for n in names
        )

    assert copies() == 0
    monkeypatch.setenv("XLA_FLAGS", f"--{shared._REGIONS}=false")  # what is asked for is done
    assert copies() > 0
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(shared, "_REGIONS", "xla_cpu_no_such_option")  # of another JAX
    assert copies() > 0
    shared._in_place.cache_clear()


def test_a_study_measures_the_loss_that_its_name_stands_for_now(tmp_path, monkeypatch):
    def measured(folder, factor):
        def mine(outputs, targets):
            return factor * losses.cross_entropy(outputs, targets)

        monkeypatch.setitem(losses.LOSSES, "mine", mine)
        config = small(A={})
        config.loss, config.epochs, config.optimizer.learning_rate = "mine", 1, 0.0
        config.measures.names, config.measures.examples = ("gradient_second_moment",), 64
        go(config, tmp_path / folder)
        (row,) = rows(tmp_path / folder, "runs")
        return float(row["gradient_second_moment"])

    # Of the same weights, which a rate of 0 leaves alone.
    assert measured("four", 4.0) == pytest.approx(16 * measured("one", 1.0), rel=1e-4)
