"""Is a state stable? Barriers between copies trained from it on data in different order.

    bash launch/local.sh --config=configs/connectivity.py --workdir=runs/connectivity

Dense networks and tickets (Frankle et al., ICML 2020). From the state of a dense network after k
steps two copies are trained that differ in the order of the data alone; the barrier is the highest
error on the line between their ends, less the mean error of the ends. By default: the embedded
Fashion-MNIST extract (6,000 training images, 14x14), an MLP 196-128-64-10, rate 0.05, 16 epochs;
copies from steps 0, 50 and 200; between seeds, plain and with units matched.

`:cifar10` is the same question on CIFAR-10 (prepared; 16x16, 20,000 training and 4,000 test
images), 2,000 steps, k of 0, 100 and 400, seeds 700 to 703. `:tickets` compares tickets rewound to
step 0 and to step 200 there (rate 0.06, 1,000 steps, 30 % a level, levels 1 and 2), with lines
between levels and to the dense end, seeds 720 to 723. `:batchnorm` asks it of a convolutional
network with BatchNorm (vgg4_bn at a quarter of its width, rate 0.1, 60 % a level, 8,000 training
images, 750 steps, statistics recomputed, seeds 740 and 741). `:early` has a setting with BatchNorm
in which tickets rewound to step 0 fail (accuracies alone). `:quick` has 2 seeds, 2 epochs and 5
points (mechanics only). `:resnet20` is CIFAR-10 at full size, statistics recomputed, copies from
epochs 0, 1 and 5 of 160, 3 seeds, 7 trainings a seed: not run.

Settings are those of pilots on other seeds.

Result of the default form (4 parents): barrier between copies in points of test error 0.8 from step
0, 0.5 from step 50, 0.2 from step 200; both claims undecided, step 0 less step 200 is 0.60 [-0.08,
1.28]. On a processor with AVX-512, which rounds otherwise, it is 0.55 [0.16, 0.94] and confirmed.
This network is all but stable from the start; `:cifar10` is the setting that shows the fall.
Between two seeds test error rises to 37.5 % on the line, with units matched to 16.8 %, where the
ends have 14 to 15 %. Cost (measured): 87 seconds of processor time.

Result of `:batchnorm`, the first setting of the search (2 parents, 11 points, no interval): barrier
between copies in points of test error, both seeds:

    kept   rewound to 0   rewound to 200
    100 %  2.5, 1.8       0.2, 0.2          the dense network
     40 %  0.6, 1.7       0.7, 0.4
     16 %  1.8, 0.3       0.3, 0.3

Early tickets do not fail there: the final accuracies of both kinds lie between 43.6 and 47.5 %,
dense 44.8 and 46.3 %. Cost (measured): 499 seconds of processor time.

What else was tried, on the embedded Fashion-MNIST extract with vgg4_bn at half its width, momentum
0.9, batches of 64, 376 steps, k = 15 (4 %), 85 % a level, seeds 0 to 2, none of it with a claim. At
rate 0.3 the barrier between copies of the dense network is 8.5 points from step 0 and 0.9 from step
15, the strongest fall seen with BatchNorm, yet early tickets do not fail: 82.5 % (step 0) and 82.5
(step 15) at 15 % kept, 81.4 and 81.8 at 2.3 %, +0.4 (standard error 0.2), dense 81.3. At rate 3
nothing trains (9 to 15 %). ResNet-20 at a quarter of its width takes 0.2 seconds of processor time
a step, compilation included, and was left. On CIFAR-10 at 16x16 (8,000 images, a quarter of the
width, rate 0.3, 500 steps, k = 100, 88 % a level, 2 seeds) they do not: 41.3 and 42.4 % at 12 %
kept, 37.3 and 37.8 at 1.4 %, dense 43.4. At rate 1 early tickets fail: 71.3 (step 0) and 75.2 (step
15) at 2.3 % kept, dense 73.6. Copies of the dense network have barriers of 34 to 51 points from
step 0 and 33 to 36 from step 15 (7 points, error of the ends 21 to 26 %).

`:early` is that setting on seeds that chose nothing, 760 to 767. Final test accuracy in percent:

    kept   rewound to 0   rewound to 15
    15 %   74.7           76.3
    2.3 %  70.9           74.3             dense 76.0

Confirmed (Holm over four): at 2.3 % tickets rewound to 0 lie below those rewound to 15 by 3.4 [1.1,
5.6] points, and below dense by 5.0 [3.1, 7.0]. Undecided: 1.6 [-0.5, 3.7] at 15 %; tickets rewound
to 15 are at 2.3 % not above dense, -1.7 [-3.3, -0.1], so that they succeed in the comparison, not
without loss. Training accuracies of the last epoch are 70.5 (step 0), 75.0 (step 15) and 76.0
(dense): the rate is high for this network, and early tickets learn less, they do not generalize
less. Cost (measured): 247 seconds of processor time.

Result of `:cifar10` (4 parents, 21 points, 95 % interval): barrier between copies in points of test
error 10.5 [8.8, 12.3] from step 0, 4.6 [2.3, 6.8] from step 100, 1.1 [0.2, 2.1] from step 400; step
0 less step 400 is 9.4 [7.1, 11.7], confirmed. On training images 17.0, 9.6 and 3.9; the training
error of the ends is 41 % throughout, so that no copy has diverged.

Result of `:tickets` (4 parents), barrier between copies in points of test error:

    kept   rewound to 0        rewound to 200
    100 %  11.9 [8.4, 15.5]    1.8 [-0.1, 3.7]    the dense network
     70 %   3.3 [1.8, 4.7]     0.8 [0.0, 1.5]
     49 %   0.7 [-0.1, 1.4]    0.4 [-0.1, 0.8]

Confirmed (Holm): step 0 above step 200 by 10.1 [6.8, 13.4] for the dense network and by 2.5
[0.6, 4.5] at 70 %. From the dense end to the first ticket 4.9 [3.3, 6.6] and 1.4 [1.0, 1.7]. Final
accuracies of both kinds of tickets are alike (45.0 and 44.3 % at 70 %, 46.2 and 46.0 % at 49 %):
rewinding later buys stability here, not accuracy. Pruning alone lowers the barrier, too.
"""

from typing import Any

from ml_collections import ConfigDict

from prunejax.configs import default, recipes

FORMS = {
    "quick": "mechanics only",
    "cifar10": "CIFAR-10 at 16x16, dense networks",
    "tickets": "CIFAR-10 at 16x16, tickets rewound to steps 0 and 200",
    "batchnorm": "the same in convolutions with BatchNorm",
    "early": "tickets of convolutions with BatchNorm, rewound to steps 0 and 15",
    "resnet20": "CIFAR-10; not run",
}
# All that a state has, so that copies of the dense network differ in their data alone.
STATE = ("weights", "statistics", "optimizer", "step")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: "" or one of FORMS."""
    form = recipes.form(arg, "configs/connectivity.py", FORMS)
    config = default.get_config()
    config.name = "linear mode connectivity" + (f", {form}" if form else "")
    config.seeds, config.first_seed = 4, 680
    config.batch_size = 64
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
    config.optimizer.learning_rate, config.optimizer.schedule = 0.05, "cosine"
    config.prune.granularity, config.prune.scope = "weight", "global"
    config.model.name = "mlp128_64"
    config.report.baseline = "dense"
    config.report.figures = ("barriers", "paths", "table")
    if form in ("", "quick"):
        config.data.name, config.epochs = "fashion14", 16
        steps: tuple[str, ...] = ("step:0", "step:50", "step:200")
        if form:
            config.seeds, config.epochs, steps = 2, 2, ("step:0", "step:10")
            config.data.train_examples, config.data.test_examples = 1000, 500
            config.connect.points = 5
        config.connect.examples = 500 if form else 6000
        config.connect.matching = True
        _dense(config, steps, ("dense",))
    elif form == "early":
        config.seeds, config.first_seed = 8, 760
        config.data.name, config.epochs = "fashion14", 4
        config.model.name, config.model.width = "vgg4_bn", 0.5
        config.optimizer.learning_rate = 1.0
        _early(config)
    elif form == "resnet20":
        config.seeds, config.data.name, config.data.augment = 3, "cifar10", True
        config.epochs, config.batch_size, config.model.name = 160, 128, "resnet20"
        config.optimizer.learning_rate = 0.1
        config.optimizer.weight_decay, config.optimizer.weight_decay_rule = 1e-4, ".*/kernel"
        config.connect.examples = 10_000
        _dense(config, ("epoch:0", "epoch:1", "epoch:5"), ())
    else:
        config.data.name, config.data.train_examples = "cifar10_16", 20_000
        config.data.test_examples = config.connect.examples = 4000
        if form == "cifar10":
            config.first_seed, config.connect.points = 700, 21
            config.epochs = 7  # of 313 steps
            _dense(config, ("step:0", "step:100", "step:400"), ())
        elif form == "tickets":
            config.first_seed, config.optimizer.learning_rate = 720, 0.06
            config.epochs = 3
            _tickets(config, levels=2, fraction=0.3, steps=(0, 200))
        else:
            config.seeds, config.first_seed, config.optimizer.learning_rate = 2, 740, 0.1
            config.data.train_examples, config.epochs = 8000, 6
            config.data.test_examples, config.connect.points = 2000, 11
            config.connect.examples = 2000
            config.model.name, config.model.width = "vgg4_bn", 0.25
            _tickets(config, levels=2, fraction=0.6, steps=(0, 200))
    config.report.mechanics_only = form == "quick"
    return config


def _dense(config: ConfigDict, steps: tuple[str, ...], more: tuple[str, ...]) -> None:
    """Copies of the dense network from its states after some steps."""
    arms: dict[str, dict[str, Any]] = {"dense": {}}
    labels = [f"k{at.partition(':')[2]}" for at in steps]
    for label, at in zip(labels, steps, strict=True):
        arms |= recipes.copies(label, {"run": "dense", "at": at, "take": STATE})
    config.variants = default.arms(arms)
    config.connect.pairs = (*(f"{label}-a:{label}-b" for label in labels), *more)
    config.report.claims = tuple(
        f"{labels[0]}-b > {label}-b in barrier_error" for label in labels[1:]
    )


def _tickets(config: ConfigDict, levels: int, fraction: float, steps: tuple[int, ...]) -> None:
    """Tickets rewound to each of the steps, copies of them and of the dense network."""
    arms: dict[str, dict[str, Any]] = {"dense": {}}
    names, more = [], []
    for k in steps:
        at = f"step:{k}"
        chain = recipes.lottery(
            config, levels=levels, fraction=fraction, rewind=at, prefix=f"rewound{k}-level"
        )
        arms |= chain
        arms |= recipes.copies(f"level0-k{k}", {"run": "dense", "at": at, "take": STATE})
        names.append(f"level0-k{k}")
        for level in range(1, levels + 1):
            ticket = f"rewound{k}-level{level}"
            # The ticket's mask on the weights that it was put back to.
            back = {"run": ticket, "take": ("masks",), "rewind_run": "dense", "rewind_at": at}
            arms |= recipes.copies(f"level{level}-k{k}", back)
            names.append(f"level{level}-k{k}")
            before = "dense" if level == 1 else f"rewound{k}-level{level - 1}"
            more += [f"{before}:{ticket}"] + [f"dense:{ticket}"] * (level > 1)
    config.variants = default.arms(arms)
    config.connect.pairs = (*(f"{name}-a:{name}-b" for name in names), *more)
    first, last = steps[0], steps[-1]
    config.report.claims = tuple(
        f"level{level}-k{first}-b > level{level}-k{last}-b in barrier_error" for level in (0, 1)
    )


def _early(config: ConfigDict) -> None:
    """Two levels of tickets rewound to step 0 and to step 15, for their accuracies alone."""
    arms: dict[str, dict[str, Any]] = {"dense": {}}
    for k in (0, 15):
        arms |= recipes.lottery(
            config, levels=2, fraction=0.85, rewind=f"step:{k}", prefix=f"rewound{k}-level"
        )
    config.variants = default.arms(arms)
    config.report.figures = ("table",)
    config.report.claims = (
        *(f"rewound0-level{n} < rewound15-level{n} in final_test_accuracy" for n in (1, 2)),
        "rewound0-level2 < dense in final_test_accuracy",
        "rewound15-level2 > dense in final_test_accuracy",
    )
