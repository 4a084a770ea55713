"""The comparison of `released.py`: both sides of one arm as a row of its table."""

import json
from typing import Any

import numpy as np
from released_ours import Ours

LIMITS = {"scores": 1e-5, "train loss": 1e-5, "test loss": 1e-4, "parameters": 1e-5,
          "statistics": 1e-5}  # fmt: skip


class Differs(Exception):
    """An arm has other events or steps there."""


class Parted(Differs):
    """An arm has the same events there, but from some event on other targets."""


def parting(a: dict[str, list[int]], b: dict[str, list[int]]) -> str:
    """The first event ("epoch/layer", in the order of `a`) with other targets; "": none."""
    return next((event for event, chosen in a.items() if b.get(event) != chosen), "")


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference relative to the largest entry."""
    return float(np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-12))


def compare(
    label: str, ours: Ours, out: dict[str, np.ndarray], told: dict, until: str = ""
) -> dict[str, Any]:
    """A row of the table.

    Args:
      until: the event at which the two part: what comes from its epoch's events on is left out.

    Raises:
      Parted: other targets from some event on.
      Differs: other events or counts, or another number of steps.
    """
    facts = json.loads(str(out["facts"]))
    stopped = facts.get("stopped", "")
    targets = {e: t for e, t in ours.targets.items() if not stopped or e in facts["events"]}
    if facts["events"].keys() != targets.keys():
        odd = sorted(facts["events"].keys() ^ targets.keys())
        raise Differs(f"{label}: {len(odd)} events are on one side only, {odd[0]} first")
    if until:
        epoch = int(until.split("/")[0])
        targets = {e: t for e, t in targets.items() if int(e.split("/")[0]) < epoch}
        size = (epoch + 1) * ours.program.steps_per_epoch
        facts["losses"] = facts["losses"][:size]
        facts["tests"] = facts["tests"][: 2 * epoch + 1]
    elif first := parting(targets, facts["events"]):
        there, here = facts["events"][first], targets[first]
        raise Parted(f"{label}: targets of {first}: {there} there, {here} here")
    if facts["noise left"] and not stopped:
        raise Differs(f"{label}: {facts['noise left']} draws of noise were not used there")
    scores, gone = [], {}
    for event, chosen in targets.items():
        name = event.split("/")[1]
        live = np.setdiff1d(np.arange(len(ours.scores[event])), gone.get(name, []))
        scores.append(relative(ours.scores[event][live], out[f"scores/{event}"][live]))
        gone[name] = gone.get(name, []) + chosen
    kernels = {"params": 0.0, "batch_stats": 0.0}
    steps = len(facts["losses"])
    if not stopped and not until and steps != len(ours.steps):
        raise Differs(f"{label}: {steps} training steps there, {len(ours.steps)} here")
    for number, tree in enumerate(ours.steps[:steps]):
        facts_then = (told, targets, number, ours.program.steps_per_epoch)
        mine = _masked(tree, *facts_then)
        theirs = _masked({path: out[f"step/{number}/{path}"] for path in tree}, *facts_then)
        for path, leaf in mine.items():
            if path.startswith("params/conv") and path.endswith("/bias"):
                continue  # no gradient but rounding's: see the running means
            kind = path.split("/")[0]
            kernels[kind] = max(kernels[kind], relative(leaf, theirs[path]))
    there = np.array(facts["tests"])
    mine = np.array(ours.tests)[: len(there) if stopped or until else None]
    if told["entry"] and told["arm"]["kind"] in ("zero", "gaussian") and not until:
        mine, there = mine[:-1], there[:-1]  # the release zeroes all targets before its last test
    losses = np.array(ours.losses[:steps]) / np.array(facts["losses"]) - 1
    return {
        "arm": label,
        "entry": told["entry"],
        "events": len(targets),
        "scores": max(scores, default=0.0),
        "train loss": float(np.abs(losses).max()),
        "test loss": float(np.abs(mine[:, 0] / there[:, 0] - 1).max()),
        "correct": f"{int((mine[:, 1] != there[:, 1]).sum())} of {len(mine)}",
        "parameters": kernels["params"],
        "statistics": kernels["batch_stats"],
        "steps": steps,
        "note": f"stopped, {stopped}" if stopped else "",
    }


def _masked(tree: dict, told: dict, targets: dict, number: int, per_epoch: int) -> dict:
    """The tree after step `number` with what is masked, and its statistics, set to zero."""
    arm, tree = told["arm"], {path: np.array(leaf) for path, leaf in tree.items()}
    for event, chosen in targets.items() if arm["kind"] == "prune" else ():
        epoch, name = event.split("/")
        if number >= (int(epoch) + 1) * per_epoch:
            norm = name.replace("conv", "bn")
            paths = [f"params/{name}/kernel", f"batch_stats/{norm}/mean", f"batch_stats/{norm}/var"]
            if arm["mask_norm"]:
                paths += [f"params/{norm}/scale", f"params/{norm}/bias"]
            for path in paths:
                tree[path][..., chosen] = 0
    return tree
