"""Every field of a study: default, what it may be, meaning and unit. Studies change a few.

    python -m prunejax.main --config=configs/default.py --workdir=runs/default

trains one BatchNorm MLP on scikit-learn's digits without pruning (seconds on a CPU).
Durations are training steps or epochs, as named; epochs count from 0; `sparsity` and fractions
are fractions *removed* (0..1). Nothing is derived here: code derives, so overrides always count.
Tuples with one entry apply to every layer rule. A number is declared with its default, its lowest
and highest value and its unit, a word with the names to choose from, a tuple with what it holds;
the comment beside or above says what it means (`prunejax/configs/fields.py`). All stand here, since
reading a study must not load what they belong to; code of your own uses `fields.declare`.
"""

from typing import Any

from ml_collections import ConfigDict

from prunejax.configs.fields import Field, defaults, many, number, whole, word
from prunejax.configs.variants import arms as arms
from prunejax.configs.variants import product as product

FIELDS: dict[str, Any] = {
    "name": "default",  # title of the report
    "seeds": number(1, 1, 100_000, "runs per variant"),  # first_seed, first_seed + 1, ...
    "first_seed": number(0, 0, 2**32 - 1, "seed"),  # of each variant
    # passes over the training examples
    "epochs": number(20, 1, 1_000_000, "passes over the training examples"),
    # examples per training step; the last batch of an epoch is smaller
    "batch_size": number(64, 1, None, "examples"),
    # examples per evaluation batch (no effect on results)
    "eval_batch_size": number(512, 1, None, "examples"),
    # epochs between rows of epochs.csv; with events, and last: always
    "evaluate_every": number(1, 1, None, "epochs"),
    # Columns final_train_loss and final_train_accuracy of runs.csv, without dropout and on running
    "evaluate_train": False,  # statistics, and training_loss_sum: over epochs, as it was trained.
    # A run stops training when, at an evaluation after its last event, the loss on the
    # training set is at most this (nats); its step becomes `stopped_step`. 0: never.
    "stop_loss": number(0.0, 0, None, "nats; 0: never"),
    # what else is followed, in trackers.csv: see prunejax.train.trackers.TRACKERS
    "trackers": many((), str, "names"),
    "loss": word("cross_entropy", "prunejax.losses:LOSSES"),  # see prunejax.losses.LOSSES
    "data": {
        "name": "digits",  # see prunejax.data.DATASETS; or npz:FILE, tfds:NAME
        "data_dir": "",  # prepared TFDS sets; empty: $TFDS_DATA_DIR, ~/tensorflow_datasets
        "train_examples": number(0, 0, None, "examples; 0: all"),  # of the training subset; 0: all
        "test_examples": number(0, 0, None, "examples; 0: all"),  # size of the test subset; 0: all
        "validation_examples": number(0, 0, None, "examples"),  # held out of the training examples
        # fraction of training labels replaced by another class
        "label_noise": number(0.0, 0, 1, "fraction"),
        # r >= 1: the most frequent class has r times the training examples of the rarest,
        # the others lie between, geometrically; which are rare is drawn from `seed`.
        "imbalance": number(1.0, 1, None, "ratio; 1: as they are"),
        # images as vectors, with so many coordinates of pure noise behind them
        "pad": number(0, 0, 1_000_000, "coordinates"),
        # normal noise on all coordinates, drawn once an example
        "noise": number(0.0, 0, None, "standard deviation"),
        # images less the mean of the set, over its deviation, by channel; False: pixels of 0..1
        "standardize": True,
        "augment": False,  # random crop (padding 4; streamed: of any size) and mirroring
        # Read images while training; always so for imagenet2012 and sets of images of many sizes.
        "stream": False,  # The rest of an epoch that fills no batch is left out.
        # streamed sets: side of the square images, in pixels
        "image_size": number(224, 1, None, "pixels"),
        # of the subset and the label noise: the same for all runs of a study
        "seed": number(0, 0, 2**32 - 1, "seed"),
        "by_seed": False,  # choose and draw data anew for each seed of a run
    },
    "model": {
        "name": "mlp",  # see prunejax.models.MODELS
        "width": number(1.0, 0, None, "factor, above 0"),  # multiplies every layer's width
        "dropout": number(0.0, 0, 0.999, "fraction"),  # rate (fraction dropped)
        # BatchNorm's running variance, which evaluations use: n/(n-1) of each batch's, as
        # PyTorch and the released code keep it; False: the biased one, as Flax does.
        "unbiased_variance": False,
        # of activations: float32 | bfloat16 (parameters stay float32)
        "dtype": word("float32", "float32", "bfloat16"),
    },
    "optimizer": {
        "name": word("adam", "prunejax.train.optim:OPTIMIZERS"),  # adam | sgd
        "learning_rate": number(1e-3, 0, None, "rate"),  # at first
        "schedule": word("multistep", "prunejax.train.optim:SCHEDULES"),  # of the learning rate
        "milestones": many((), int, "whole epochs"),  # multistep: where `decay` multiplies the rate
        "decay": number(0.1, 0, 1000, "factor"),  # multistep: factor at each milestone
        "restarts": many((), int, "whole epochs"),  # epochs at which the schedule begins anew
        # over these steps the rate rises in a line: step t has min(1, (t + 1) / steps) of it
        "warmup_steps": number(0, 0, None, "steps"),
        "momentum": number(0.9, 0, 0.9999, "fraction"),  # sgd
        "nesterov": False,  # sgd
        "weight_decay": number(0.0, 0, None, "coefficient"),  # coefficient lambda
        "weight_decay_kind": word("coupled", "coupled", "decoupled"),  # in gradient | as AdamW
        "weight_decay_rule": ".*",  # parameters that decay: rule over their paths
        "frozen": "",  # parameters that are not trained: rule over their paths; empty: none
        "clip_norm": number(0.0, 0, None, "norm; 0: none"),  # global gradient norm bound; 0: none
        # share of a target that goes to all classes alike
        "label_smoothing": number(0.0, 0, 0.999, "fraction"),
    },
    # Training inputs: with fresh normal noise in every step, or the worst that signed
    # gradient steps find in a box around them (Madry et al. 2018; the network in evaluation
    # mode). In pixels of 0..1 for images, else in units of the inputs; 0: neither.
    "harden": {
        "noise": number(0.0, 0, None, "pixels of 0..1"),  # standard deviation
        "radius": number(0.0, 0, None, "pixels of 0..1"),  # half width of the box
        "steps": number(3, 1, 1000, "steps"),  # gradient steps that look for the worst input
    },
    "prune": {
        # none, or a way of pruning that sets what follows where you do not (docs/methods.md)
        "method": word("none", "none", "prunejax.study.settings.presets:METHODS"),
        # none | linear | one_shot | scratch | cubic | geometric | phases | threshold
        "schedule": word("none", "none", "prunejax.schedules:SCHEDULES", "phases", "threshold"),
        "unit": word("epoch", "epoch", "step"),  # what `start`, `end` and `period` count
        # scratch: events before training, each the same share of what is left
        "rounds": number(1, 1, 10_000, "events"),
        # rules over the model's layer names (regular expressions)
        "layers": many((".*",), str, "regular expressions"),
        "fraction": many((0.5,), (int, float), "numbers"),  # final fraction removed, per rule
        # all | live (at the beginning, rounded up): what the fraction is of
        "of": word("all", "all", "live"),
        "ratio_of": word("prunable", "prunable", "all"),  # fraction: of the layers | the network
        # live: how often that fraction goes, at once: as after so many levels
        "times": number(1, 1, 10_000, "times"),
        # rules | uniform | erk: how layers share one fraction
        "allocation": word("rules", "rules", "prunejax.allocate:ALLOCATIONS"),
        "start": many((0,), int, "whole epochs"),  # epoch of the first event, per rule
        "end": many((0,), int, "whole epochs"),  # last epoch at which an event may fall, per rule
        "period": number(1, 1, None, "epochs"),  # epochs between events ("retrain period")
        "score": word("l2", "prunejax.scores:SCORES"),  # see prunejax.scores.SCORES
        # smallest | random | largest scores are removed
        "target": word("smallest", "prunejax.train.prune:TARGETS"),
        "granularity": word("filter", "filter", "weight"),  # filter (a unit with its norm) | weight
        # layer: counts per layer | global: one ranking over all layers
        "scope": word("layer", "layer", "global"),
        # phases: steps at which units go and all come back, in turn
        "phases": many((), int, "whole steps"),
        # Examples of the gradients of scores: first (the first ones), batch (those of the
        # last training step), balanced (as many of each class, drawn by data.seed).
        "evidence": word("first", "first", "batch", "balanced"),
        "per_class": number(10, 1, None, "examples"),  # balanced: examples of each class
        "saliency_examples": number(512, 1, None, "examples"),  # how many, of the first ones
        # lambda of the score undecayed; -1: optimizer.weight_decay
        "decay_coef": number(-1.0, -1, None, "coefficient; -1: optimizer.weight_decay"),
        # loss whose gradient undecayed reads: without the decay | with it, which makes it |w g|
        "grad_of": word("data", "data", "total"),
        # none | gradient | random: which dead units come back
        "grow": word("none", "none", "gradient", "random"),
        # of what is live: dropped and regrown at each event besides
        "regrow": number(0.0, 0, 1, "fraction of the live units"),
        # training steps between drop-and-grow updates; 0: none
        "update_every": number(0, 0, None, "training steps; 0: none"),
        "update_fraction": number(0.3, 0, 1, "fraction of the live units"),  # at first
        # cosine | linear | constant: of that fraction
        "update_schedule": word("cosine", "prunejax.methods.growth:DECAYS"),
        # of the training steps: no update from there on
        "update_end": number(0.75, 0, 1, "fraction of the training steps"),
        "update_score": word("magnitude", "prunejax.scores:SCORES"),  # updates drop the smallest
        "evaluate_between": False,  # test before and after events between epochs, too
        "redistribute": False,  # updates rank all layers together: densities move
        # evidence "batch": last batches whose mean gradient growth sees
        "average": number(1, 1, 10_000, "batches"),
        # epochs after which training goes on without the units that are gone by then,
        "shrink_every": number(0, 0, None, "epochs; 0: never"),  # in a smaller network; 0: never
        # dense | sparse_fan_in: scaled up by sqrt(inputs / live)
        "weight_init": word("dense", "dense", "sparse_fan_in"),
        # (n, m): n of every m consecutive inputs stay, not `fraction`; by events n falls from m
        "nm": many((), int, "whole weights"),
        # What forward passes do: masked | straight_through (gradients train dead weights, too) |
        # movement (dead weights wait; scores learn). Events of the last two
        "forward": word("masked", "prunejax.interventions:FORWARDS"),  # choose among all weights.
        # steps after which they choose again when the schedule is over
        "refresh_every": number(0, 0, None, "training steps; 0: never"),
        # straight_through: times w, added to gradients of dead weights
        "dead_decay": number(0.0, 0, None, "coefficient"),
        "score_rate": number(1.0, 0, None, "rate"),  # movement: rate of scores, which begin at 0
        # schedule "threshold": live where sigmoid(score) exceeds it
        "threshold": number(0.0, 0, 1, "a sigmoid"),
        "penalty": number(0.0, 0, None, "coefficient"),  # movement: weight of mean sigmoid(score)
    },
    "intervention": {
        # prune (mask) | zero | gaussian | none: what is done to targets
        "kind": word("prune", "prunejax.interventions:KINDS"),
        # training steps a window stays open; -1: forever
        "duration": number(-1, -1, 2**30 - 2, "training steps; -1: forever"),
        # newest | cumulative: which targets an event's window holds
        "scope": word("newest", "prunejax.interventions:SCOPES"),
        # no | weights | weights+norm: put back when a window closes
        "restore": word("no", "prunejax.interventions:RESTORES"),
        "mask_norm": True,  # a target's BatchNorm (or, without one, own bias) goes as well
        # gaussian: multiple of the first untargeted filter's std
        "noise_scale": number(1.0, 0, None, "multiple of a standard deviation"),
        "as_released": False,  # count and apply in evaluation passes too, one pass more
        "twin": "",  # label of the variant whose targets are replayed
    },
    # Runs that begin where others of the same seed ended. Events before training come
    # first, then what is put back; so a ticket is trained, pruned and rewound.
    "start": {
        "run": "",  # label of the arm whose state a run starts from; "": its own weights
        "at": "end",  # its state: start | end | epoch:N | step:N (before the events there)
        # Of weights, statistics, optimizer, masks, scores, step (order and rates go on from there).
        "take": many(("weights", "statistics", "masks"), str, "names"),
        # Or a file of masks and a start state (`prunejax export`); {seed}: the run's seed.
        "ticket": "",
        "rewind_run": "",  # label of the arm whose state is put back; "": none
        "rewind_at": "start",  # which of its states
        "rewind": many(("weights", "statistics", "step"), str, "names"),  # of it; the dead stay so
        "redraw": "",  # parameters drawn anew at last, e.g. "classifier/.*"; "": none
        "scale": number(1.0, 0, None, "factor"),  # factor on the initial kernels
        "fresh": False,  # draw the initial weights anew (stream "ticket_reinit")
        "shuffle": word("no", "no", "layer", "global"),  # permute the masks that are taken
        "copy": "",  # other order, augmentation and dropout: the name of their streams
    },
    # states that are left in states/: start, end, epoch:N, step:N, as in start.at
    "keep": many((), str, "names of states"),
    "population": {
        # auto | sequential | vectorized | sharded
        "layout": word("auto", "auto", "sequential", "vectorized", "sharded"),
        # devices to use; 0: all (on a CPU: one per core)
        "devices": number(0, 0, 65_536, "devices; 0: all"),
        # Devices that share one member's batch. "auto" also tries to share those that would
        "data_parallel": number(1, 1, None, "devices"),  # be idle, in studies of a minute or more.
        # Examples whose gradient is taken at once (without BatchNorm only); 0: the batch.
        # Less memory, and on a CPU up to a quarter faster at 8 to 32.
        "microbatch": number(0, 0, None, "examples; 0: the whole batch"),
        "shard_params": False,  # split parameters over the data axis as well
        # bound for the states of members; 0: measured from the device
        "memory_gib": number(0.0, 0, None, "GiB; 0: measured"),
    },
    "checkpoint": {
        "every_epochs": number(0, 0, None, "epochs"),  # 0: only by time and at the end of members
        "every_minutes": number(10.0, 0, None, "minutes"),  # 0: not by time
        "at_events": False,  # after epochs with an event as well
        "keep": number(2, 1, None, "checkpoints"),  # kept: the newest and those before it
    },
    "record": {
        # Trackers that runs are sent to as they end, of prunejax.record.sinks.SINKS:
        "sinks": many((), str, "names of trackers"),  # wandb, mlflow, one of your own.
    },
    "probes": {
        # What evaluations look at: loss and accuracy (always) and others of
        # prunejax.train.probes.PROBES: classes (classes.csv), predictions (arrays).
        "names": many(("loss", "accuracy"), str, "names"),
        # when others are recorded: epochs | events | end
        "at": many(("epochs", "events"), str, "moments"),
    },
    "measures": {
        "names": many((), str, "names"),  # see prunejax.measures.suite.MEASURES
        # epochs after which to measure; the end is always measured
        "epochs": many((), int, "whole epochs"),
        "split": word("test", "train", "test"),  # prunability, its forms, rivals: train
        # first examples of the split; 0: all (not of streamed sets)
        "examples": number(512, 0, None, "examples; 0: all"),
        # eval (running statistics) | train (batch statistics)
        "batch_norm": word("eval", "eval", "train"),
        "probes": number(64, 2, 1_000_000, "probes"),  # random vectors of the trace estimate
        "eigenpairs": number(10, 1, None, "pairs"),  # of largest magnitude
        # of the ball of `sharpness`, in units of the weights
        "radius": number(0.05, 1e-12, None, "length in units of the weights"),
        # robustness: of the box, in pixels of 0..1 (or in inputs)
        "attack_radius": number(0.1, 0, None, "pixels of 0..1"),
        # smoothing: of the noise, in the same units
        "smoothing_sigma": number(0.25, 1e-6, None, "pixels of 0..1"),
        "live_only": True,  # the live subspace of the mask
        "forecast": False,  # predicted loss change of each event, into events.csv
    },
    # Error and loss along the line between the ends of two runs, into barriers.csv and
    # paths.csv: see prunejax.measures.connectivity.
    "connect": {
        # "a:b": the runs of arms a and b of each seed; "a": each two runs of arm a.
        "pairs": many((), str, "pairs of variants like 'a:b', or a variant"),
        "points": number(21, 2, 10_000, "points"),  # on the line, ends included
        # recompute | interpolate | first: its statistics there
        "batch_norm": word("recompute", "recompute", "interpolate", "first"),
        # recompute: training examples they are taken of (2000: or all, where there are fewer)
        "statistics_examples": number(2000, 1, None, "examples"),
        # first examples of the training and test split, which both have as many; 0: all
        "examples": number(0, 0, None, "examples; 0: all"),
        "matching": False,  # a second line, to b with its units permuted (chains only)
    },
    "report": {
        "baseline": "none",  # variant that paired differences refer to
        # see prunejax.report.gallery
        "figures": many(("dynamics", "scatter", "gap", "table"), str, "names"),
        # variants of the scatter's line and coefficients; (): with events
        "correlate": many((), str, "labels of variants"),
        # pairs "a:b" of variants compared by a t-test
        "tests": many((), str, "pairs of variants like 'a:b'"),
        # What the study claims: "A > B in COLUMN" (or <), A a variant, B one or a number,
        # COLUMN of the runs, seed by seed; the page: confirmed, contradicted, undecided.
        "claims": many((), str, "claims like 'a > b in final_test_accuracy'"),
        "remarks": many((), str, "sentences"),  # above the results: limits, what is not known
        "guides": many((), float, "shares kept"),  # dashed in figure before_training: remembered
        "mechanics_only": False,  # a small form that shows that a study works: no verdicts
    },
    "variants": Field({}),  # label -> overrides of any field above, e.g. {"s": {"prune": {...}}}
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the default study. `arg` (the text after the colon) is not used here."""
    del arg
    return ConfigDict({**defaults(whole(FIELDS)), "variants": arms({})})
