"""Small made sets that are streamed, and a study of them; as a program: a run on some devices."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from prunejax.configs import default

EXAMPLES, TESTS, BATCH = 96, 21, 8  # 12 steps an epoch; evaluation in batches of 8, 8, 5


def images_of_many_sizes(examples, seed):
    """Smooth images of sizes 20..40; colours go with the label."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(examples):
        height, width = rng.integers(20, 41, 2)
        corners = rng.integers(0, 128, (2, 2, 3), dtype=np.uint8)
        corners[..., i % 3] += 100
        images.append(np.asarray(Image.fromarray(corners).resize((width, height))))
    return images, np.arange(examples) % 3


def write(directory):
    from tests import fake_tfds

    splits = {
        "train": images_of_many_sizes(EXAMPLES, 0),
        "validation": images_of_many_sizes(TESTS, 1),
    }
    options = {"shape": (None, None, 3), "num_classes": 3, "splits": splits}
    fake_tfds.write(directory, "imagenet2012", version="5.1.0", encoding="JPEG", **options)


def study(directory, **variants):
    """2 epochs, 2 seeds, an MLP of `few_layers` on 14x14 images; two arms with two scores."""
    config = default.get_config()
    config.seeds, config.epochs, config.batch_size, config.eval_batch_size = 2, 2, BATCH, 8
    config.data.name, config.data.data_dir = "imagenet2012", str(directory)
    config.data.image_size = 14
    config.model.name, config.model.width = "few2", 0.125
    config.population.layout = "sequential"
    prune = {"schedule": "linear", "layers": ("dense1", "dense2"), "end": (1,)}
    config.variants = default.arms(
        variants
        or {
            "S": {"prune": prune | {"score": "saliency"}},
            "L": {"prune": prune | {"score": "ebn", "target": "largest"}},
        }
    )
    config.prune.saliency_examples = 24
    config.measures.forecast = True
    config.probes.names = ("loss", "accuracy", "classes", "predictions")
    config.report.figures = ("table",)
    return config


def no_report(paths):
    """Stands in for `report.build`, which takes longer than these studies."""
    return paths[0] / "report.html"


def main(directory, workdir, changes, devices, *address):
    """Run S-0 with `changes` on so many devices; with PORT ID COUNT as one of several processes."""
    import jax

    from prunejax import models
    from prunejax.cluster import distributed
    from prunejax.study import run as study_lib
    from tests.studies import FEW

    models.MODELS.update(FEW)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    if address:
        port, index, count = map(int, address)
        distributed.initialize(f"127.0.0.1:{port}", index, count, timeout_seconds=100)
    config = study(directory)
    config.seeds, config.variants = 1, default.arms({"S": config.variants.S})
    config.update_from_flattened_dict(json.loads(changes))
    setattr(study_lib.report, "build", no_report)  # noqa: B010
    study_lib.run(config, Path(workdir), default.get_config(), quiet=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
