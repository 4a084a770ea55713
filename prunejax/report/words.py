"""The words for columns, numbers and arms."""

import itertools
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from prunejax.measures.columns import OUTCOMES, grouped, number
from prunejax.record.arms import flat
from prunejax.report.names import NAMES

if TYPE_CHECKING:
    from prunejax.report.results import Study

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
AXES = {
    "final_test_accuracy": "test accuracy after the last epoch (%)",
    "best_test_accuracy": "best test accuracy (%)",
    "generalization_gap": f"train {MINUS} test accuracy (points)",
    "mean_stability": "mean stability (%)",
}
FRACTIONS = (  # shown in percent
    *(*OUTCOMES[:4], "final_train_accuracy", "mean_stability", "sparsity", "effective_sparsity"),
    *("barrier_error", "barrier_train_error", "pgd_accuracy", "unstable_relus"),
    *("crown_certified", "interval_certified"),
    *("smoothed_accuracy", "smoothed_certified", "smoothed_abstentions"),
)
SCORES = {
    "ebn": "E[BN]",
    "ebn_signed": "signed E[BN]",
    "l1": "L1 norms",
    "l2": "L2 norms",
    "activations": "activations",
    "magnitude": "magnitudes",
    "weight_saliency": "saliencies",
    "saliency": "saliencies",
    "random": "random scores",
    "snip": "SNIP scores",
    "grasp": "GraSP scores",
    "synflow": "SynFlow scores",
    "stability": "stabilities of signs",
    "learnt": "learnt scores",
}
METHODS = {
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "set": "SET",
    "rigl": "RigL",
    "acdc": "AC/DC",
    "nm": "N:M",
    "ste": "straight-through",
    "gradual_regrow": "gradual with regrowth",
    "movement_soft": "soft movement",
}
TARGETS = {"S": "smallest", "R": "random", "L": "largest"}


def name(column: str) -> str:
    """A column in words."""
    return NAMES.get(column, column.replace("_", " "))


def axis(column: str) -> str:
    """A column as the label of an axis."""
    return AXES.get(column) or name(column) + (" (%)" if factor(column) == 100 else "")


def percented(column: str) -> str:
    """A column as the head of a table."""
    return name(column) + (", %" if factor(column) == 100 else "")


def factor(column: str) -> int:
    """What the column's numbers are multiplied with where they are shown."""
    return 100 if column in FRACTIONS else 1


def minus(text: str) -> str:
    """Hyphens before digits as minus signs."""
    return re.sub(r"-(?=[\d.])", MINUS, text)


def count(number: int, what: str) -> str:
    """`1 seed`, `8 seeds`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def percent(fraction: float, digits: int = 1) -> str:
    """`0.9312` -> "93.1%"; a dash where undefined."""
    return f"{100 * fraction:.{digits}f}%" if isfinite(fraction) else DASH


def coefficient(symbol: str, value: float | None) -> str:
    """`r = −0.62`."""
    known = value is not None and isfinite(value)
    return minus(f"{symbol} = {value:.2f}") if known else f"{symbol} undefined"


def interval(low: float | None, high: float | None, digits: int = 2, sign: str = "") -> str:
    """`[−0.80, −0.31]`; empty where undefined."""
    if low is None or high is None or not isfinite(low + high):
        return ""
    return minus(f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]")


def arms(study: "Study") -> dict[str, str]:
    """Each arm in words: "largest E[BN], up to 27 % of a layer an event, every 18 epochs"."""
    changes = {v: _own(study, v) for v in study.variants}
    events = study.events_of
    found = {
        v: _named(changes[v]) or _treatment(study, v, events.get(v, [])) for v in study.variants
    }
    fields = dict.fromkeys(key for own in changes.values() for key in own)
    varied = [key for key in fields if len({str(own.get(key)) for own in changes.values()}) > 1]
    for label, own in changes.items():  # what is no pruning
        for key in varied:
            if key in own and not key.startswith(("prune.", "intervention.", "start.")):
                found[label] += f", {_setting(key, own[key])}"
        if own.get("start.scale", 1) != 1:
            found[label] += f", initial weights times {own['start.scale']:.3g}"
        found[label] = _origin(own, found[label])
    alike: dict[str, list[str]] = {}  # before any is told apart: the last of them, too
    for label, text in found.items():
        alike.setdefault(text, []).append(label)
    for group in alike.values():  # and what tells alike ones apart
        differ = [k for k in varied if len({str(changes[v].get(k)) for v in group}) > 1]
        for label in group:
            own = changes[label]
            said = {*_SAID, *_TOLD, "prune.granularity"} if _named(own) else _SAID
            told = [f"{k.split('.')[-1].replace('_', ' ')} {_plain(own[k])}" for k in differ
                    if k in own and k.startswith("prune.") and k not in said]  # fmt: skip
            if study.attribute(label, "target"):
                found[label] = ", ".join([found[label], *told])
    return found


def _own(study: "Study", label: str) -> dict[str, Any]:
    """What an arm sets; of a way of pruning and of the start also what its study sets."""
    prune, start = (study.settings(label, group) for group in ("prune", "start"))
    found = {f"start.{name}": item for name, item in start.items() if name != "take"}
    if study.attribute(label, "target") and prune.get("method", "none") != "none":
        found |= {f"prune.{name}": prune[name]
                  for name in ("method", "fraction", "granularity")
                  if name in prune}  # fmt: skip
    return found | flat(study.attribute(label, "overrides") or {})


# What is told of a way of pruning besides its name and how much it leaves, if an arm sets it.
_TOLD = tuple(
    f"prune.{name}"
    for name in ("target", "score", "allocation", "weight_init", "rounds", "average", "nm",
                 "redistribute", "grow", "forward")
)  # fmt: skip
_SAID = ("prune.layers", "prune.method", "prune.fraction")


def _named(own: Mapping[str, Any]) -> str:
    """A way of pruning by its name: "RigL, 5 % of weights stay"; empty where the arm names none."""
    method = own.get("prune.method", "none")
    if method == "none":
        return ""
    given = own.get("prune.fraction", ())
    shares = given if isinstance(given, list | tuple) else [given]
    stay = " and ".join(f"{100 * (1 - float(share)):.3g} %" for share in shares)
    name = METHODS.get(method, str(method).replace("_", " "))
    what = "units" if own.get("prune.granularity") == "filter" else "weights"
    parts = [name, f"{stay} of {what} stay"] if stay else [name]
    parts += [f"{k.removeprefix('prune.').replace('_', ' ')} {_plain(own[k])}" for k in _TOLD
              if k in own]  # fmt: skip
    return ", ".join(parts)


def _origin(own: Mapping[str, Any], words: str) -> str:
    """The words of an arm that starts from another run, or a ticket: and what becomes of it."""
    run = own.get("start.run") or PurePath(own.get("start.ticket", "")).name  # a file's name alone
    if not run:
        return words
    take = own.get("start.take")
    what = "" if take is None else f"{_listed(take)} of "
    at = own.get("start.at", "end")
    parts = [f"from {what}{run}" + ("" if at == "end" else f" at {_state(at)}")]
    if own.get("start.shuffle", "no") != "no":
        parts.append(f"shuffled by {own['start.shuffle']}" if own["start.shuffle"] == "layer"
                     else "shuffled over all layers")  # fmt: skip
    if own.get("start.fresh"):
        parts.append("weights drawn anew")
    if own.get("start.rewind_run"):
        parts.append(f"back to {_state(own.get('start.rewind_at', 'start'))}")
    if own.get("start.redraw"):
        parts.append(f"{own['start.redraw']} drawn anew")
    if own.get("start.copy"):
        parts.append(f"streams {own['start.copy']}")
    return ", ".join([*parts, words] if words != "no pruning" else parts)


def _listed(names: Sequence[str]) -> str:
    """`weights, statistics and step`."""
    return " and ".join([*filter(None, [", ".join(names[:-1])]), *names[-1:]])


def _state(at: object) -> str:
    """`step:50` as `step 50`."""
    return str(at).replace(":", " ")


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return " and ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _setting(key: str, value: object) -> str:
    last = key.split(".")[-1]
    if last == "name":
        return str(value)
    if isinstance(value, bool):
        return f"{'' if value else 'no '}{last.replace('_', ' ')}"
    return f"{last.replace('_', ' ')} {_plain(value)}"


def _treatment(study: "Study", label: str, events: Sequence[Mapping[str, str]]) -> str:
    about = study.attributes.get(label, {})
    target = about.get("target")
    if target not in TARGETS:
        return "no pruning"
    of = "the weights of " if _single(study, label) else ""
    return ", ".join([_targeted(study, label), *_rhythm(about, events, of), *_intervention(about)])


def _targeted(study: "Study", label: str) -> str:
    """`largest E[BN]`, `random weights`."""
    about = study.attributes[label]
    drawn = about.get("score") == "weight_random"
    if about["target"] != "R" and not drawn:
        return f"{TARGETS[about['target']]} {_score(about.get('score'))}"
    return "random weights" if drawn or _single(study, label) else "random units"


def _single(study: "Study", label: str) -> bool:
    """Whether an arm prunes weights one by one."""
    return bool(study.attributes[label].get("granularity") == "weight")


def _score(score: object) -> str:
    return SCORES.get(str(score), str(score or "scores").replace("_", " "))


def _rhythm(about: Mapping[str, Any], events: Sequence[Mapping[str, str]], of: str) -> list[str]:
    """How much an event takes, and how often: of the layer that loses most. `of`: of its what."""
    run = [row for row in events if row["run"] == events[0]["run"]]
    shares, when = {}, {}
    for layer, rows in grouped(run, "layer").items():
        targeted = [number(row["targeted"]) for row in rows]
        units = number(rows[0]["live"]) + targeted[0]
        if units > 0:
            shares[layer] = sum(targeted) / units
            when[layer] = sorted({int(row["epoch"]) for row in rows})
    if not shares:
        period = about.get("period")
        return [_every(period)] if period else []
    layer = max(shares, key=lambda name: shares[name])
    epochs = when[layer]
    percents = 100 * min(shares[layer], 1) / len(epochs)
    texts = [f"{percents:.{digits}g}" for digits in range(2, 8)]
    text = next((t for t in texts if float(t) < 100), "")  # 99.5 % is not all
    alike = max(shares.values()) - min(shares.values()) < 0.01 and all(
        found == epochs for found in when.values()
    )
    where = layer if len(shares) == 1 else f"each of {len(shares)} layers" if alike else "a layer"
    share = ("" if alike else "up to ") + (f"{text} %" if text else "all") + f" of {of}{where}"
    if len(epochs) == 1:
        return [f"{share} at once", "before training" if epochs[0] < 0 else f"epoch {epochs[0]}"]
    steps = {b - a for a, b in itertools.pairwise(epochs)}
    step = steps.pop()
    rhythm = f"in {len(epochs)} events" if steps else _every(step)
    taken = [number(row["targeted"]) for row in run if row["layer"] == layer]
    mean = " on average" if max(taken) > 1.5 * min(taken) else ""  # as of a cubic schedule
    return [f"{share} an event{mean}", rhythm]


def _every(period: int) -> str:
    return "every epoch" if period == 1 else f"every {period} epochs"


def _intervention(about: Mapping[str, Any]) -> list[str]:
    kind, duration = about.get("kind"), about.get("duration")
    kinds = {"zero": "zeroed", "gaussian": "replaced by Gaussian noise", "none": "left in place"}
    if kind not in kinds:
        return []
    steps = f" for {duration} step{'' if duration == 1 else 's'}"
    span = "" if duration is None else steps if duration >= 0 else " for good"
    restored = about.get("restore") not in (None, "no")
    twin = [f"the targets of {about['twin']}"] if about.get("twin") else []
    span = "" if kind == "none" else span
    return [kinds[kind] + span, *(["then restored"] if restored else []), *twin]
