"""What an intervention costs per training step: the step with it over the dense step, in one run.

    python benchmarks/intervention_step.py
    python benchmarks/intervention_step.py --models=mlp,resnet20 --rounds=12 --save

For each network four arms run in turns, some steps each: a network that is never pruned, in a
program that knows nothing of interventions; half of the filters of four layers masked; the same
filters in an open zeroing window; the same with Gaussian noise. The arms with interventions share
one program, as in a noise study (so that "pruned" there pays for noise it does not use); "pruned
alone" is a program that knows pruning only. Numbers are ratios of the fastest round to the dense
step's. Targets: pruned at most 1.05, intervention at most 1.10.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence

import common
import jax
import jax.numpy as jnp

from prunejax.interventions import Table
from prunejax.train import prune, step

LAYERS = {
    "mlp": ("dense1", "dense2", "dense3"),
    "vgg11_bn": ("conv5", "conv6", "conv7", "conv8"),
    "resnet20": ("stage3_block2_conv1", "stage3_block2_conv2", "stage3_block3_conv1"),
}
PRUNE = {"schedule": "one_shot", "fraction": (0.5,), "start": (0,), "end": (0,), "score": "l2"}
LONG = 10**6  # steps; the windows stay open for the whole measurement
ARMS = {
    "pruned": {"kind": "prune"},
    "zero_window": {"kind": "zero", "duration": LONG, "mask_norm": False},
    "gaussian_window": {"kind": "gaussian", "duration": LONG, "mask_norm": False},
}


@dataclasses.dataclass
class Arm:
    """A compiled call of training steps and the state it goes on with."""

    name: str
    train: object
    state: step.TrainState
    data: step.Data
    compile_seconds: float
    seconds: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def run(self, steps: int) -> None:
        """Times `steps` steps: wall and CPU seconds per step."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.state = jax.block_until_ready(self.train(self.state, self.data, jnp.int32(steps)))
        self.seconds.append(
            ((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps)
        )

    def best(self, clock: int) -> float:
        """Seconds of a step in the fastest round: clock 0 is wall, 1 is CPU."""
        return min(seconds[clock] for seconds in self.seconds)


def arms(model: str, batch: int, data_name: str) -> list[Arm]:
    """The arms of one network, events done, train calls compiled."""
    pruning = {"prune": PRUNE | {"layers": LAYERS[model]}}
    mixed = {name: pruning | {"intervention": i} for name, i in ARMS.items()}
    found = []
    for title, variants in (
        ("dense", {"none": {}}),
        ("pruned alone", {"pruned": mixed["pruned"]}),
        ("", mixed),
    ):
        fixed = {"epochs": 100, "batch_size": batch, "data.name": data_name, "model.name": model}
        built = common.study(fixed, variants)
        program, data = built.program, jax.device_put(common.splits(built.dataset))
        begin = time.perf_counter()
        train = None
        for member in built.members:
            state = _after_event(program, data, member.table, member.hyper)
            if train is None:  # one program for all of them
                train = _compiled(program, state, data)
                seconds = time.perf_counter() - begin
            found.append(
                Arm(title or member.variant.replace("_", " "), train, state, data, seconds)
            )
    return found


def _after_event(program: step.Program, data: step.Data, table: Table, hyper: step.Hyper):
    """A run whose event has just happened."""
    table, hyper = jax.tree.map(jnp.asarray, (table, hyper))
    quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None

    @jax.jit
    def event(state: step.TrainState) -> step.TrainState:
        replay = {name: jnp.zeros_like(t) for name, t in state.windows.targeted.items()}
        return prune.apply_event(program, state, data, jnp.int32(1), replay)[0]

    start = jax.jit(
        lambda table, hyper: step.initial_state(program, jnp.uint32(0), table, hyper),
        compiler_options=quick,
    )
    state = start(table, hyper)
    return event(state) if program.groups else state


def _compiled(program: step.Program, state: step.TrainState, data: step.Data):
    def train(state: step.TrainState, data: step.Data, steps: jax.Array) -> step.TrainState:
        return step.train_steps(program, state, data, steps)

    return jax.jit(train, donate_argnums=0).lower(state, data, jnp.int32(1)).compile()


def measure(model: str, batch: int, rounds: int, steps: int) -> list[dict]:
    """Rows of the table for one network."""
    compared = arms(model, batch, common.synthetic(common.image_shape(model), 8 * batch))
    for arm in compared:
        arm.run(1)
        arm.seconds.clear()
    for _ in range(rounds):
        for arm in compared:
            arm.run(steps)
    dense = compared[0]
    return [
        {
            "model": model,
            "arm": arm.name,
            "ms per step": 1e3 * arm.best(0),
            "ratio, wall": arm.best(0) / dense.best(0),
            "ratio, CPU": arm.best(1) / dense.best(1),
            "compile, s": arm.compile_seconds,
        }
        for arm in compared
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mlp,resnet20,vgg11_bn", help="comma-separated")
    parser.add_argument("--batch", type=int, default=128, help="examples per step")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each arm")
    parser.add_argument("--steps", type=int, default=0, help="steps per turn (0: by network)")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/DATE-intervention-step.json"
    )
    options = parser.parse_args(argv)
    rows = []
    for model in options.models.split(","):
        if model not in LAYERS:
            parser.error(f"--models: {model!r} is not one of: {', '.join(LAYERS)}")
        steps = options.steps or (100 if model == "mlp" else 4)
        rows += measure(model, options.batch, options.rounds, steps)
    print(common.table(rows))
    if options.save:
        print(f"saved: {common.save('intervention-step', rows, options=vars(options))}")


if __name__ == "__main__":
    main()
