"""Random pruning before training: does it help, and does it help more than a smaller start?

    python -m prunejax.main --config=configs/before_training.py --workdir=runs/before
    python -m prunejax.main --config=configs/before_training.py:synthetic --workdir=runs/before2

Yang et al., "Pruning before training may improve generalization, provably" (JMLR 26(84), 2025):
a two-layer ReLU network with fixed output weights, of which a random share p of the first layer's
weights is kept, trained by full-batch gradient descent. 100 digits as vectors, 200 coordinates of
pure noise behind them, noise of 0.7 on all; 10 neurons a class, learning rate 0.02, 300 steps or
until the training loss is 0.01. Every seed has its own examples, noise and start; masks of one
seed are nested over p, for one number per weight is drawn, and have exactly p of the weights.

Arms, for initial standard deviations of 0.1, 0.05 and 0.01:

* keep=P: random masks. scaled=P: the control, a dense network whose start is sqrt(P) smaller.
* at 0.1 also rescaled=P (the mask of keep=P, weights over sqrt(P)), magnitude=P and snip=P (as
  many weights by another choice), during=P (random pruning in ten events up to step 90), and
  decay=L (dense with weight decay L).

Result, seeds 700 to 707, which chose no setting: 382 test images of writers who are not in the
training set, mean accuracy, and points to the dense arm of the same start, paired by seed [95 %]:

    start  dense  p = .5              p = .2              p = .1                p = .01
    0.1    .319   +5.1 [2.6, 7.6]     +7.2 [5.2, 9.3]     +5.9 [3.4, 8.5]      -13.1 [-17, -9]
    0.05   .483   +2.3 [0.1, 4.4]     +0.4 [-0.8, 1.6]    -4.5 [-7.4, -1.5]    -28.5 [-31, -26]
    0.01   .644   -2.0 [-4.2, 0.3]    -8.0 [-10.0, -5.9]  -16.3 [-18.8, -13.8] -44.0 [-45, -43]

The gain of p = .2 falls with the start: +7.2, +4.4, +1.1, +0.4, -4.4, -8.0 at 0.1, 0.0707, 0.0548,
0.05, 0.0316, 0.01. **The control decides**: at 0.1 the dense network that starts sqrt(.2) smaller
ends 11.5 [9.0, 14.1] points above the mask of p = .2; at every p and start its mean is above the
mask's. At a small start no random mask is better than dense on average; what helps at a large one
is that the start gets smaller. Other masks at 0.1 and p = .2, to dense: over sqrt(p) -5.7, largest
weights -3.5, SNIP +15.0 [11.3, 18.7], in ten events +9.2; weight decay of 0.1 without a mask +9.4.
The training set is fitted (accuracy .997 and more) down to p = .1, not below (.94 at .05, .41 at
.01). 99 of the 512 runs came down to the stop. All four claims are confirmed. Cost (measured, alone
on two cores, from an empty cache): 89 seconds, 130 of processor time.
Settings are those of a pilot on random splits and other seeds: there .440 dense, +10.0 at p = .2.

`:synthetic`: the two-patch data of the analysis (4 classes in 500 dimensions, 40 examples, noise
0.3, 40 neurons a class, initial standard deviation 0.05, learning rate 0.03). Result, seeds 700 to
707, test accuracy by p and points to the dense network [95 %]; all three claims are confirmed:

    p         1     .5               .2              .1              .02            .005
    mask      .514  .571             .632            .581            .442           .304
              0     +5.7 [2.8, 8.6]  +11.8 [6, 17]   +6.7 [0, 13]    -7.2 [-17, 3]  -21 [-31, -11]
    control   .514  .602             .723            .791            .863           .862

This is the picture of the analysis: a gain, and near chance (.25) at the end; the training set is
fitted there to .92 in these 300 steps, and to .997 and more down to p = .01. The dense network of
the smaller start is above the mask at every p, by 9.1 [3.8, 14.5] points at p = .2. Cost
(measured, alone on two cores, from an empty cache): 56 seconds, 88 of processor time. Not less
than 31 of the latter are arithmetic: 2.1e12 operations of 2,313 tests on 2,000 images and 23,130
steps, at 6.8e10 a second (measured, one product of those shapes).
`:guides` (also `:synthetic,guides`) draws dashed lines at p = log(d) / m and p = 1 / (K m log d), d
inputs, m neurons a class, K classes: orders of magnitude, remembered of the analysis, not checked.
`:quick` has few arms and steps (mechanics only).
"""

import math

from ml_collections import ConfigDict

from prunejax.configs import default, recipes

STD = 0.1  # of the model's start; others by start.scale
KEEP = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
SYNTHETIC = "signal_noise:classes=4,dimension=500,train=40,test=2000,signal=1,noise=0.3"
FORMS = {
    "synthetic": "the data of the analysis",
    "guides": "dashed lines at rates that are remembered from the analysis",
} | recipes.QUICK
EPOCHS = 300  # one step each: the batch is the training set


def _word(value: float) -> str:
    return f"{value:g}".replace(".", "_")


def _mask(keep: float, **more: object) -> dict:
    return {"schedule": "scratch", "target": "random", "fraction": (1 - keep,)} | more


def _arms(
    std: float, keeps: tuple[float, ...], *, others: bool, epochs: int = EPOCHS
) -> dict[str, dict]:
    """Arms of one initial standard deviation, by label."""
    scale = std / STD
    arms: dict[str, dict] = {"keep=1": {"start": {"scale": scale}}}
    for p in keeps:
        arms[f"keep={_word(p)}"] = {"prune": _mask(p), "start": {"scale": scale}}
    for p in keeps:
        # p times the variance, as much as a mask leaves of it on average
        arms[f"scaled={_word(p)}"] = {"start": {"scale": scale * math.sqrt(p)}}
    for p in keeps if others else ():
        # the mask's first answers of the size of the dense ones
        start = {"scale": scale / math.sqrt(p)}
        arms[f"rescaled={_word(p)}"] = {"prune": _mask(p), "start": start}
        for score in ("magnitude", "snip"):
            choice = _mask(p, target="smallest", score=score)
            arms[f"{score}={_word(p)}"] = {"prune": choice, "start": {"scale": scale}}
        if p > 0.01:
            times = {"start": (0,), "end": (3 * epochs // 10,), "period": max(1, epochs // 30)}
            late = {"schedule": "linear"} | times
            arms[f"during={_word(p)}"] = {"prune": _mask(p) | late, "start": {"scale": scale}}
    for decay in (0.03, 0.1) if others else ():
        arms[f"decay={_word(decay)}"] = {
            "optimizer": {"weight_decay": decay},
            "start": {"scale": scale},
        }
    return {f"std={_word(std)}-{label}": changes for label, changes in arms.items()}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: "" or some of FORMS, with commas between them."""
    given = recipes.words(arg, "configs/before_training.py", FORMS)
    synthetic, quick = "synthetic" in given, "quick" in given
    config = default.get_config()
    config.name = "Random pruning before training" + ", two-patch data" * synthetic
    config.seeds, config.first_seed = (2 if quick else 8), 700
    config.population.layout = "sharded"  # small networks: nothing to choose
    config.epochs, config.evaluate_every = 20 if quick else EPOCHS, 10
    config.stop_loss = 0.01
    config.evaluate_train = True
    config.trackers = ("signal_noise",)
    config.data.by_seed = True  # every seed has its own examples and noise
    if synthetic:
        config.data.name, config.batch_size = SYNTHETIC, 40
    else:
        config.data.train_examples = config.batch_size = 100
        config.data.pad, config.data.noise = 200, 0.7
    config.model.name = "two_patch"
    config.model.neurons = 40 if synthetic else 10
    config.model.init_std = STD
    # plain gradient descent, all examples a batch
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.0
    config.optimizer.schedule = "constant"
    config.optimizer.learning_rate = 0.03 if synthetic else 0.02
    config.prune.granularity, config.prune.score = "weight", "magnitude"
    config.prune.saliency_examples = config.batch_size  # the whole training set
    if synthetic:
        arms = _arms(0.05, (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005), others=False)
    elif quick:
        arms = _arms(0.1, (0.2, 0.01), others=True, epochs=config.epochs)
    else:
        arms = _arms(0.1, KEEP, others=False) | _arms(0.1, (0.2, 0.05), others=True)
        arms |= _arms(0.05, KEEP, others=False) | _arms(0.01, KEEP, others=False)
        for std in (0.1 * math.sqrt(p) for p in (0.5, 0.3, 0.1)):
            arms |= _arms(std, (0.2,), others=False)
    config.variants = default.arms(arms)
    main, smallest = ("std=0_05", "0_005") if synthetic else ("std=0_1", "0_01")
    config.report.baseline = f"{main}-keep=1"
    config.report.claims = (
        f"{main}-keep=0_2 > {main}-keep=1",
        f"{main}-keep={smallest} < {main}-keep=1",
        f"{main}-scaled=0_2 > {main}-keep=0_2",
    )
    if not synthetic and not quick:
        config.report.claims += ("std=0_01-keep=0_2 < std=0_01-keep=1",)
    config.report.figures = ("before_training", "trackers", "table")
    config.report.mechanics_only = quick
    if "guides" in given:
        classes, inputs = (4, 500) if synthetic else (10, 64 + config.data.pad)
        scale, neurons = math.log(inputs), config.model.neurons
        config.report.guides = (scale / neurons, 1 / (classes * neurons * scale))
    return config
