"""Every field of a study, with its meaning and unit. Studies start from here and change a few.

    python -m prunejax.main --config=configs/default.py --workdir=runs/default

trains one BatchNorm MLP on scikit-learn's digits without pruning (seconds on a CPU).
Durations are training steps or epochs, as named; epochs count from 0; `sparsity` and fractions
are fractions *removed* (0..1). Nothing is derived here: code derives, so overrides always count.
Tuples with one entry apply to every layer rule.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict


def arms(variants: dict[str, dict]) -> ConfigDict:
    """Variants (label -> overrides) in the order given; a plain dict would be sorted by label."""
    return ConfigDict(variants, sort_keys=False, allow_dotted_keys=True)


def product(
    axes: Mapping[str, Iterable[Any] | Mapping[str, Any]], base: Mapping[str, Any] | None = None
) -> ConfigDict:
    """Variants for every combination of the values of some fields, the last axis fastest.

        config.variants = default.product({"model.width": (0.5, 1), "batch_size": (32, 64)})

    gives width=0_5-batch_size=32, width=0_5-batch_size=64, width=1-batch_size=32, ... A label has
    the last part of each field's name (the whole name where two end alike) and its value, in which
    "_" stands for what labels may not hold and "+" between the entries of a tuple. What can share
    a compiled program does, wherever it stands in the product. Add further arms by
    `arms({"none": {}, **product(...)})`.

    Args:
      axes: field or group of fields, dotted ("prune.fraction", "optimizer") -> its values, or a
        mapping from a word for the label to a value, as in {"optimizer": {"sgd": {"name": "sgd",
        "learning_rate": 0.1}, "adam": {"name": "adam"}}}. A dict sets the fields that it names.
      base: overrides of every arm, as in `arms`; the axes come on top.

    Raises:
      ValueError: no axis, an axis without values, or two arms of one label.
    """
    if not axes:
        raise ValueError("product: no axes; give {field: values}, e.g. {'batch_size': (32, 64)}")
    ends = [name.rpartition(".")[2] for name in axes]
    columns = []
    for (name, values), end in zip(axes.items(), ends, strict=True):
        if isinstance(values, Iterable) and not isinstance(values, str | Mapping):
            values = tuple(values)
        if isinstance(values, str) or not isinstance(values, Iterable) or not values:
            raise ValueError(f"product: axis {name!r} = {values!r}: give a tuple of its values")
        word = end if ends.count(end) == 1 else name
        named = values.items() if isinstance(values, Mapping) else ((_word(v), v) for v in values)
        columns.append([(f"{word}={_word(label)}", name, value) for label, value in named])
    variants: dict[str, dict] = {}
    for cells in itertools.product(*columns):
        label = re.sub(r"[^\w+=-]", "_", "-".join(cell[0] for cell in cells))
        if label in variants:
            raise ValueError(
                f"product: two arms are called {label!r}; name the values by a mapping, as in "
                "{'batch_size': {'small': 32, 'large': 64}}"
            )
        changes: dict[str, Any] = {}
        for tree in (base or {}, *(_nested(name, value) for _, name, value in cells)):
            merge(changes, tree)
        variants[label] = changes
    return arms(variants)


def _word(value: Any) -> str:
    """A value as part of a label."""
    if isinstance(value, tuple | list):
        return "+".join(map(_word, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _nested(name: str, value: Any) -> dict[str, Any]:
    """The value inside dicts: "a.b" and 1 give {"a": {"b": 1}}."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
    """Writes a nested mapping over another; neither `tree` nor what is inside it is changed."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            node = into.get(key)
            into[key] = dict(node) if isinstance(node, Mapping) else {}
            merge(into[key], value)
        else:
            into[key] = value


def get_config(arg: str = "") -> ConfigDict:
    """Returns the default study. `arg` (the text after the colon) is not used here."""
    del arg
    return ConfigDict(
        {
            "name": "default",  # title of the report
            "seeds": 1,  # runs per variant: seeds first_seed, first_seed + 1, ...
            "first_seed": 0,  # of each variant
            "epochs": 20,  # passes over the training examples
            "batch_size": 64,  # examples per training step; the last batch of an epoch is smaller
            "eval_batch_size": 512,  # examples per evaluation batch (no effect on results)
            "evaluate_every": 1,  # epochs between rows of epochs.csv; with events, and last: always
            # Evaluate the training set as well, without dropout and on running statistics:
            # columns final_train_loss and final_train_accuracy of runs.csv.
            "evaluate_train": False,
            # A run stops training when, at an evaluation after its last event, the loss on the
            # training set is at most this (nats); its step becomes `stopped_step`. 0: never.
            "stop_loss": 0.0,
            "trackers": (),  # what else is followed, in trackers.csv: see train.trackers.TRACKERS
            "loss": "cross_entropy",  # see prunejax.losses.LOSSES
            "data": {
                "name": "digits",  # see prunejax.data.DATASETS; or npz:FILE, tfds:NAME
                "data_dir": "",  # prepared TFDS sets; empty: $TFDS_DATA_DIR, ~/tensorflow_datasets
                "train_examples": 0,  # size of the training subset; 0: all
                "test_examples": 0,  # size of the test subset; 0: all
                "validation_examples": 0,  # held out of the training examples
                "label_noise": 0.0,  # fraction of training labels replaced by another class
                # r >= 1: the most frequent class has r times the training examples of the rarest,
                # the others lie between, geometrically; which are rare is drawn from `seed`.
                "imbalance": 1.0,
                "pad": 0,  # images as vectors, with so many coordinates of pure noise behind them
                "noise": 0.0,  # normal noise on all coordinates, drawn once an example
                "augment": False,  # random crop (padding 4; streamed: of any size) and mirroring
                # Read images while training; always so for imagenet2012 and sets of images of many
                # sizes. The rest of an epoch that fills no batch is left out.
                "stream": False,
                "image_size": 224,  # streamed sets: side of the square images, in pixels
                "seed": 0,  # of the subset and the label noise: the same for all runs of a study
                "by_seed": False,  # choose and draw data anew for each seed of a run
            },
            "model": {
                "name": "mlp",  # see prunejax.models.MODELS
                "width": 1.0,  # multiplies every layer's width
                "dropout": 0.0,  # rate (fraction dropped)
                # BatchNorm's running variance, which evaluations use: n/(n-1) of each batch's, as
                # PyTorch and the released code keep it; False: the biased one, as Flax does.
                "unbiased_variance": False,
                "dtype": "float32",  # of activations: float32 | bfloat16 (parameters stay float32)
            },
            "optimizer": {
                "name": "adam",  # adam | sgd
                "learning_rate": 1e-3,  # at first
                "schedule": "multistep",  # constant | multistep | cosine
                "milestones": (),  # multistep: epochs at which the rate is multiplied by `decay`
                "decay": 0.1,  # multistep: factor at each milestone
                "restarts": (),  # epochs at which the schedule begins anew
                "momentum": 0.9,  # sgd
                "nesterov": False,  # sgd
                "weight_decay": 0.0,  # coefficient lambda
                "weight_decay_kind": "coupled",  # coupled (L2 in the gradient) | decoupled (AdamW)
                "weight_decay_rule": ".*",  # parameters that decay: rule over their paths
                "frozen": "",  # parameters that are not trained: rule over their paths; empty: none
                "clip_norm": 0.0,  # global gradient norm bound; 0: none
                "label_smoothing": 0.0,  # share of a target that goes to all classes alike
            },
            # Training inputs: with fresh normal noise in every step, or the worst that signed
            # gradient steps find in a box around them (Madry et al. 2018; the network in evaluation
            # mode). In pixels of 0..1 for images, else in units of the inputs; 0: neither.
            "harden": {
                "noise": 0.0,  # standard deviation
                "radius": 0.0,  # half width of the box
                "steps": 3,  # gradient steps that look for the worst input
            },
            "prune": {
                # none, or a way of pruning that sets what follows where you do not: random,
                # magnitude, nm, snip, grasp, synflow; static, set, rigl; gradual, gradual_regrow,
                # acdc, ste, movement, movement_soft
                "method": "none",
                # none | linear | one_shot | scratch | cubic | geometric | phases | threshold
                "schedule": "none",
                "unit": "epoch",  # epoch | step: what `start`, `end` and `period` count
                "rounds": 1,  # scratch: events before training, each the same share of what is left
                "layers": (".*",),  # rules over the model's layer names (regular expressions)
                "fraction": (0.5,),  # final fraction of units removed, per rule
                "of": "all",  # all | live (at the beginning, rounded up): what the fraction is of
                "allocation": "rules",  # rules | uniform | erk: how layers share one fraction
                "start": (0,),  # epoch of the first event, per rule
                "end": (0,),  # last epoch at which an event may fall, per rule
                "period": 1,  # epochs between events ("retrain period")
                "score": "l2",  # see prunejax.scores.SCORES
                "target": "smallest",  # smallest | random | largest scores are removed
                "granularity": "filter",  # filter (a unit with its norm) | weight
                "scope": "layer",  # layer: counts per layer | global: one ranking over all layers
                "phases": (),  # phases: steps at which units go and all come back, in turn
                # Examples of the gradients of scores: first (the first ones), batch (those of the
                # last training step), balanced (as many of each class, drawn by data.seed).
                "evidence": "first",
                "per_class": 10,  # balanced: examples of each class
                "saliency_examples": 512,  # how many, of the first ones
                "decay_coef": -1.0,  # lambda of the score undecayed; -1: optimizer.weight_decay
                "grow": "none",  # none | gradient | random: which dead units come back
                "regrow": 0.0,  # of what is live: dropped and regrown at each event besides
                "update_every": 0,  # training steps between drop-and-grow updates; 0: none
                "update_fraction": 0.3,  # of the live units, at first
                "update_schedule": "cosine",  # cosine | linear | constant: of that fraction
                "update_end": 0.75,  # of the training steps: no update from there on
                "update_score": "magnitude",  # the smallest are dropped at updates
                "evaluate_between": False,  # test before and after events between epochs, too
                "redistribute": False,  # updates rank all layers together: densities move
                "average": 1,  # evidence "batch": last batches whose mean gradient growth sees
                "weight_init": "dense",  # dense | sparse_fan_in: scaled up by sqrt(inputs / live)
                "nm": (),  # (n, m): n of every m consecutive inputs stay, instead of `fraction`
                # What forward passes do: masked | straight_through (gradients train dead weights,
                # too) | movement (dead weights wait; scores learn). Events of the last two choose
                # among all weights.
                "forward": "masked",
                "refresh_every": 0,  # steps after which they choose again when the schedule is over
                "dead_decay": 0.0,  # straight_through: times w, added to gradients of dead weights
                "score_rate": 1.0,  # movement: learning rate of scores, which begin at 0
                "threshold": 0.0,  # schedule "threshold": live where sigmoid(score) exceeds it
                "penalty": 0.0,  # movement: weight of the mean sigmoid of scores
            },
            "intervention": {
                "kind": "prune",  # prune (mask) | zero | gaussian | none: what is done to targets
                "duration": -1,  # training steps a window stays open; -1: forever
                "scope": "newest",  # newest | cumulative: which targets an event's window holds
                "restore": "no",  # no | weights | weights+norm: put back when a window closes
                "mask_norm": True,  # a target's BatchNorm (or, without one, own bias) goes as well
                "noise_scale": 1.0,  # gaussian: multiple of the first untargeted filter's std
                "as_released": False,  # count and apply in evaluation passes too, one pass more
                "twin": "",  # label of the variant whose targets are replayed
            },
            # Runs that begin where others of the same seed ended. Events before training come
            # first, then what is put back; so a ticket is trained, pruned and rewound.
            "start": {
                "run": "",  # label of the arm whose state a run starts from; "": its own weights
                "at": "end",  # which of its states: start | end | epoch:N | step:N
                # Of weights, statistics, optimizer, masks, step (order and rates go on from there).
                "take": ("weights", "statistics", "masks"),
                # Or a file of masks and a start state (`prunejax export`); {seed}: the run's seed.
                "ticket": "",
                "rewind_run": "",  # label of the arm whose state is put back; "": none
                "rewind_at": "start",  # which of its states
                "rewind": ("weights", "statistics", "step"),  # what of it; dead weights stay dead
                "redraw": "",  # parameters drawn anew at last, e.g. "classifier/.*"; "": none
                "scale": 1.0,  # factor on the initial kernels
                "fresh": False,  # draw the initial weights anew (stream "ticket_reinit")
                "shuffle": "no",  # no | layer | global: permute the masks that are taken
                "copy": "",  # other order, augmentation and dropout: the name of their streams
            },
            "keep": (),  # states that are left in states/: start, end, epoch:N, step:N
            "population": {
                "layout": "auto",  # auto | sequential | vectorized | sharded
                "devices": 0,  # devices to use; 0: all (on a CPU: one per core)
                # Devices that share one member's batch. "auto" also tries to share those that
                # would be idle, in studies of a minute or more.
                "data_parallel": 1,
                # Examples whose gradient is taken at once (without BatchNorm only); 0: the batch.
                # Less memory, and on a CPU up to a quarter faster at 8 to 32.
                "microbatch": 0,
                "shard_params": False,  # split parameters over the data axis as well
                "memory_gib": 0.0,  # bound for the states of members; 0: measured from the device
            },
            "checkpoint": {
                "every_epochs": 0,  # 0: only by time and at the end of members
                "every_minutes": 10.0,  # 0: not by time
                "at_events": False,  # after epochs with an event as well
                "keep": 2,  # checkpoints kept: the newest and those before it
            },
            "record": {
                # Trackers that runs are sent to as they end, of prunejax.record.sinks.SINKS:
                # wandb, mlflow, one of your own.
                "sinks": (),
            },
            "probes": {
                # What evaluations look at: loss and accuracy (always) and others of
                # prunejax.train.probes.PROBES: classes (classes.csv), predictions (arrays).
                "names": ("loss", "accuracy"),
                "at": ("epochs", "events"),  # when others are recorded: epochs | events | end
            },
            "measures": {
                "names": (),  # see prunejax.measure.MEASURES
                "epochs": (),  # epochs after which to measure; the end is always measured
                "split": "test",  # train | test
                "examples": 512,  # first examples of the split; 0: all (not of streamed sets)
                "batch_norm": "eval",  # eval (running statistics) | train (batch statistics)
                "probes": 64,  # random vectors of the trace estimate
                "eigenpairs": 10,  # of largest magnitude
                "radius": 0.05,  # of the ball of `sharpness`, in units of the weights
                "attack_radius": 0.1,  # robustness: of the box, in pixels of 0..1 (or in inputs)
                "smoothing_sigma": 0.25,  # smoothing: of the noise, in the same units
                "live_only": True,  # the live subspace of the mask
                "forecast": False,  # predicted loss change of each event, into events.csv
            },
            # Error and loss along the line between the ends of two runs, into barriers.csv and
            # paths.csv: see prunejax.measures.connectivity.
            "connect": {
                # "a:b": the runs of arms a and b of each seed; "a": each two runs of arm a.
                "pairs": (),
                "points": 21,  # on the line, ends included
                "batch_norm": "recompute",  # recompute | interpolate | first: its statistics there
                "statistics_examples": 2000,  # recompute: training examples they are taken of
                "examples": 0,  # first examples of the training and test split; 0: all
                "matching": False,  # a second line, to b with its units permuted (chains only)
            },
            "report": {
                "baseline": "none",  # variant that paired differences refer to
                "figures": ("dynamics", "scatter", "gap", "table"),  # see prunejax.report
                "correlate": (),  # variants of the scatter's line and coefficients; (): with events
                "tests": (),  # pairs "a:b" of variants compared by a t-test
                # What the study claims: "A > B in COLUMN" (or <), A a variant, B one or a number,
                # COLUMN of the runs, seed by seed; the page: confirmed, contradicted, undecided.
                "claims": (),
                "remarks": (),  # sentences above the results: limits, what is not known
                # A small form that shows that a study works: the page gives no verdicts.
                "mechanics_only": False,
            },
            "variants": arms(
                {}
            ),  # label -> overrides of any field above, e.g. {"s": {"prune": {...}}}
        }
    )
