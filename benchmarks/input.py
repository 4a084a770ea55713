"""What input costs: batches and augmentation inside jit, as a fraction of a training step.

    python benchmarks/input.py                     # made images of CIFAR's shape
    python benchmarks/input.py --models=mlp --shape=8,8,1 --images=1415   # like digits
    python benchmarks/input.py --models= --stream --start=cifar10

The training step is the plain one (gradient and SGD update, no momentum, no events), the
cheapest there is, so the fraction is an upper bound. Times are the minimum of several
repetitions: CPU seconds of the process on a CPU, wall seconds on an accelerator. Aim: at most 3 %.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import data, losses, models, rng

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
EPOCH = 50_000  # images, as in CIFAR


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Fastest of `repeats` calls after a first one that compiles."""
    on_cpu = jax.default_backend() == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(run())
        times.append(clock() - start)
    return min(times)


def batch_at(images: jax.Array, indices: jax.Array, step: jax.Array, augment: bool) -> jax.Array:
    if augment:
        images = data.augment(rng.at(0, "augment", step), images, indices)
    else:
        images = jnp.take(images, indices, axis=0)
    channels = images.shape[-1]
    return data.normalize(images, MEAN[:channels], STD[:channels])


def input_seconds(images: jax.Array, batch_size: int, augment: bool, repeats: int) -> float:
    """Seconds of one image: the order of an epoch and all its full batches, in one program."""
    steps = len(images) // batch_size

    @jax.jit
    def epoch(images: jax.Array, number: jax.Array) -> jax.Array:
        order = data.epoch_permutation(0, number, len(images))

        def body(step: jax.Array, previous: jax.Array) -> jax.Array:
            # The batch is carried, not reduced: a float sum would cost more than the batch.
            indices = jax.lax.dynamic_slice(order, (step * batch_size,), (batch_size,))
            return batch_at(images, indices, step, augment)

        batch = jnp.zeros((batch_size, *images.shape[1:]))
        return jax.lax.fori_loop(0, steps, body, batch)

    return seconds(lambda: epoch(images, jnp.int32(1)), repeats) / (steps * batch_size)


def step_seconds(name: str, shape: tuple[int, int, int], batch_size: int, repeats: int) -> float:
    """Seconds of one image in a plain training step on a batch that is there already."""
    module = models.create(name, num_classes=10)
    variables = dict(models.init(module, rng.at(0, "init"), shape))
    params = variables.pop("params")
    images = jax.random.normal(jax.random.key(0), (batch_size, *shape))
    labels = jnp.arange(batch_size) % 10

    @jax.jit
    def step(params: Any) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, updated = module.apply(
                {"params": params, **variables}, images, train=True, mutable=["batch_stats"]
            )
            return losses.cross_entropy(logits, labels).mean(), updated

        gradients, updated = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients), updated

    return seconds(lambda: step(params), repeats) / batch_size


def stream_rate(batch_size: int, batches: int) -> float:
    """Images a second, in wall time, from JPEG files of 500x375 pixels to batches of 224x224."""
    from PIL import Image

    from prunejax.data import prepared, streaming

    coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")

    class Records:
        """One image many times; decoding is what costs, not reading."""

        def __len__(self) -> int:
            return EPOCH

        def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
            return [{"image": file.getvalue(), "label": row % 10} for row in rows]

    found = prepared.Prepared("made", None, {}, {}, "image", "label", (-1, -1, 3), 10)  # type: ignore[arg-type]
    stream = streaming.Stream(
        found, "train", Records(), True, batch_size, 224, 0, 0, 1, MEAN, STD, (1, 2)
    )
    iterator = stream.iterate()
    next(iterator)
    start = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return batch_size * batches / (time.perf_counter() - start)


def start_seconds(name: str) -> tuple[float, float]:
    """Wall seconds of `data.load` with an empty cache and with a full one."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PRUNEJAX_CACHE"] = cache
        times = []
        for _ in range(2):
            start = time.perf_counter()
            data.load(name)
            times.append(time.perf_counter() - start)
    return times[0], times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="vgg11_bn,resnet20")
    parser.add_argument("--shape", default="32,32,3", help="height, width, channels")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--images", type=int, default=12_800, help="of the timed epoch")
    parser.add_argument("--steps", type=int, default=5, help="repetitions of each measurement")
    parser.add_argument("--stream", action="store_true", help="also decoding of large images")
    parser.add_argument("--start", default="", metavar="NAME", help="also loading of this set")
    options = parser.parse_args()

    height, width, channels = map(int, options.shape.split(","))
    shape = (height, width, channels)
    made = np.random.default_rng(0).integers(0, 256, (options.images, *shape), dtype=np.uint8)
    images = jax.device_put(made)
    cost = {
        augment: input_seconds(images, options.batch_size, augment, options.steps)
        for augment in (False, True)
    }
    row: dict[str, Any] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    row["order_batch_normalize_s_per_50k"] = round(cost[False] * EPOCH, 3)
    row["with_augmentation_s_per_50k"] = round(cost[True] * EPOCH, 3)
    print(json.dumps(row))
    for name in filter(None, options.models.split(",")):
        step = step_seconds(name, shape, options.batch_size, options.steps)
        row = {
            "model": name,
            "step_s_per_50k": round(step * EPOCH, 3),
            "input_fraction": round(cost[False] / (step + cost[False]), 4),
            "input_fraction_augmented": round(cost[True] / (step + cost[True]), 4),
        }
        print(json.dumps(row))
    if options.stream:
        rate = stream_rate(options.batch_size, options.steps)
        print(json.dumps({"stream_images_per_s": round(rate, 1)}))
    if options.start:
        first, second = start_seconds(options.start)
        row = {"set": options.start, "first_start_s": first, "second_start_s": second}
        print(json.dumps(row))


if __name__ == "__main__":
    main()
