"""What a study claims, in its config, and whether its runs bear it out.

A claim is one line of `config.report.claims`: "L_large > S_small in final_test_accuracy" says that
the arm L_large ends above S_small, "mp-98 > 1 in alpha" that the mean of an arm is above a number.
Arms are compared seed by seed; Holm's correction goes over the claims of the page.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

from prunejax.measures import statistics

LEAST_SEEDS = 4  # no verdict below
LEVEL = 0.05
MECHANICS = "mechanics only"  # the verdict on small forms
UNFINISHED = "not finished"  # and while runs are to come: looking early finds too much
WITHHELD = {
    MECHANICS: "a small form shows that the study works, no more",
    UNFINISHED: "a verdict waits until all runs have ended",
}
DEFAULT_COLUMN = "final_test_accuracy"


@dataclass(frozen=True)
class Claim:
    """`a` is larger (">") or smaller ("<") than `b` in a column of the runs."""

    text: str
    a: str
    direction: str
    b: str  # an arm or a number
    column: str

    @property
    def constant(self) -> float | None:
        """The number that `a` is compared with; None: with an arm."""
        try:
            return float(self.b)
        except ValueError:
            return None

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it speaks of."""
        return (self.a, self.b) if self.constant is None else (self.a,)


def parse(text: str) -> Claim:
    """Reads "A > B in COLUMN"; without "in COLUMN" it is about `final_test_accuracy`.

    Raises:
      ValueError: the text is no such line.
    """
    found = re.fullmatch(r"\s*(\S+)\s+([<>])\s+(\S+)(?:\s+in\s+(\w+))?\s*", text)
    if not found:
        raise ValueError(
            f"{text!r} is no claim like 'L_large > S_small in final_test_accuracy' (two variants "
            "with > or < between them, then a column of runs.csv)"
        )
    return Claim(text, found[1], found[2], found[3], found[4] or DEFAULT_COLUMN)


def judge(
    claims: Sequence[Claim],
    values: Callable[[str, str, str], tuple[Sequence[float], Sequence[float]]],
    resolution: Mapping[str, float],
    withheld: str = "",
) -> list[dict[str, Any]]:
    """Each claim with difference, interval, n, p, Holm's p and verdict.

    Args:
      claims: of the page.
      values: `(a, b, column) -> ` the values of both arms for the seeds that both have.
      resolution: smallest difference by column, see `statistics.is_rounding`.
      withheld: a key of `WITHHELD`: the verdict that all claims get instead of their own.

    Returns:
      Dicts with the claim's parts, those of a paired comparison, `p_holm`, `verdict` ("confirmed",
      "contradicted", "undecided", "too few seeds", or the one of `withheld`) and `reason`.
    """
    found = [
        statistics.paired(*values(c.a, c.b, c.column), resolution=resolution.get(c.column, 0.0))
        for c in claims
    ]
    enough = [f.n >= LEAST_SEEDS for f in found]
    corrected = statistics.holm(
        # too few seeds: no member of Holm's family
        [f.p if ok else float("nan") for f, ok in zip(found, enough, strict=True)]
    )
    judged = []
    for claim, comparison, p, ok in zip(claims, found, corrected, enough, strict=True):
        verdict, reason = "undecided", ""
        if withheld:
            verdict, reason = withheld, WITHHELD[withheld]
        elif not ok:
            verdict = "too few seeds"
            reason = f"a verdict needs {LEAST_SEEDS} that both arms have"
        elif isnan(comparison.p):
            reason = "the differences do not vary from seed to seed beyond rounding"
        elif p < LEVEL:
            agrees = (comparison.difference > 0) == (claim.direction == ">")
            verdict = "confirmed" if agrees else "contradicted"
        judged.append(
            {**asdict(claim), **asdict(comparison), "p_holm": p, "verdict": verdict}
            | {"reason": reason}
        )
    return judged
