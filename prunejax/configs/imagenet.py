"""ImageNet at full size, streamed: stability of pruning ResNet-50 or ViT-S/16 while they train.

Question: does what small images show hold at scale? Three arms as in the paper's figure 2: no
pruning, small filters at a small iterative rate (S), large filters at a large one (L); both end at
the same sparsity.

    python -m prunejax.main --config=configs/imagenet.py --workdir=runs/resnet50
    python -m prunejax.main --config=configs/imagenet.py:vit --workdir=runs/vit_s16

The set has to be prepared by TFDS as array_record (`--config.data.data_dir=DIR`); a missing one is
answered with the command that prepares it. Reading takes the extra "stream". On N devices:
`--config.population.data_parallel=N`; on several hosts each process reads and decodes its part of
every batch. Any other set: `--config.data.name=tfds:NAME`, `--config.data.image_size=PIXELS`.

ResNet-50: filters of the last stage, ranked by E[BN]; SGD and steps as in He et al. 2016. ViT-S/16:
hidden units of the last four MLPs, ranked by |w g| (there is no BatchNorm); AdamW and 90 epochs as
in Beyer et al. 2022.

Cost (estimate): 4.1e9 multiply-adds an image for ResNet-50, 4.6e9 for ViT-S/16; a training step is
three forward passes and a multiply-add two operations: 9 runs x 90 epochs x 1.28e6 images x 2.5e10
(2.8e10) = 2.6e19 (2.9e19) floating-point operations, a day for eight accelerators at an assumed 40
TFLOP/s each. Evaluation adds about 1.5 %. Decoding: 1.28e6 images of 500x375 pixels an epoch.
Run here: not ImageNet itself; only tiny made sets, in the tests.
Deviations: the learning rate has no warm-up (hence batches of 256 for ResNet-50), and ViT-S/16 is
trained without RandAugment and mixup.
"""

from ml_collections import ConfigDict

from prunejax.configs import default, recipes


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: "" (ResNet-50) or "vit" (ViT-S/16)."""
    arg = recipes.form(arg, "configs/imagenet.py", {"vit": "ViT-S/16"})
    config = default.get_config()
    config.name = "ImageNet: ViT-S/16" if arg else "ImageNet: ResNet-50"
    config.seeds = 3
    config.epochs = 90
    config.data.name = "imagenet2012"
    config.data.augment = True
    config.model.dtype = "bfloat16"  # of the computation; parameters stay float32
    prune = {"schedule": "linear", "start": (5,), "end": (55,)}
    if arg:
        config.model.name = "vit_s16"
        config.batch_size = 1024
        config.optimizer.name = "adam"
        config.optimizer.learning_rate = 1e-3
        config.optimizer.schedule = "cosine"
        config.optimizer.weight_decay = 0.1
        config.optimizer.weight_decay_kind = "decoupled"
        config.optimizer.weight_decay_rule = ".*/kernel"
        config.optimizer.clip_norm = 1.0
        prune |= {"layers": (r"block(9|1\d)_dense1",), "fraction": (0.5,), "score": "saliency"}
    else:
        config.model.name = "resnet50"
        config.batch_size = 256
        config.optimizer.name = "sgd"
        config.optimizer.learning_rate = 0.1
        config.optimizer.momentum = 0.9
        config.optimizer.weight_decay = 1e-4
        config.optimizer.milestones = (30, 60, 80)
        prune |= {"layers": ("stage4_.*",), "fraction": (0.5,), "score": "ebn"}
    config.measures.names = ("hessian_trace", "top_eigenvalues")
    config.measures.examples = 512
    config.variants = default.arms(
        {
            "none": {},
            "S": {"prune": prune | {"target": "smallest", "period": 2}},
            "L": {"prune": prune | {"target": "largest", "period": 25}},
        }
    )
    return config
