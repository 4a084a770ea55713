"""What configs ask of the report (claims, tests), in the labels of the merged study.

Directories of other studies may use the same labels: then labels carry the directory's name in
front, and so must the arms that a directory's own config speaks of.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prunejax.errors import ReportError
from prunejax.measures import claims as claims_lib
from prunejax.measures.claims import Claim


@dataclass
class Asked:
    """Claims and tests that can be judged, and a line for each that cannot."""

    claims: list[Claim] = field(default_factory=list)
    tests: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def of_configs(configs: Sequence[tuple[Mapping[str, Any], str]], labels: Collection[str]) -> Asked:
    """What the configs ask, each once.

    Args:
      configs: each with what stands before its labels in the merged study, "" for nothing.
      labels: the arms that there are.

    Raises:
      ReportError: a claim or a test is none.
    """
    found = Asked()
    for config, prefix in configs:
        report = config.get("report") or {}
        for text in report.get("claims", ()):
            claim = _claim(text, prefix)
            _take(found, found.claims, claim, f"claim {text!r}", claim.arms, labels)
        for pair in report.get("tests", ()):
            a, separator, b = pair.partition(":")
            if not separator:
                raise ReportError(
                    f"config.report.tests: {pair!r} is no pair of variants like 'a:b'"
                )
            test = prefix + a, prefix + b
            _take(found, found.tests, test, f"test {pair!r}", test, labels)
    return found


def _claim(text: str, prefix: str) -> Claim:
    try:
        claim = claims_lib.parse(text)
    except ValueError as error:
        raise ReportError(f"config.report.claims: {error}") from None
    if not prefix:
        return claim
    a, b = prefix + claim.a, claim.b if claim.constant is not None else prefix + claim.b
    return replace(claim, a=a, b=b, text=f"{a} {claim.direction} {b} in {claim.column}")


def _take(
    found: Asked,
    into: list[Any],
    what: Any,
    called: str,
    arms: Sequence[str],
    labels: Collection[str],
) -> None:
    gone = [arm for arm in arms if arm not in labels]
    if gone:
        note = f"The {called} of a config is left out: there is no arm {gone[0]} here."
        found.notes += [note] if note not in found.notes else []
    elif what not in into:
        into.append(what)
