"""Pieces of HTML and the words for columns."""

import json
from collections.abc import Sequence
from html import escape

from prunejax.report.style import MINUS

NAMES = {
    "final_test_accuracy": "final accuracy",
    "best_test_accuracy": "best accuracy",
    "selected_test_accuracy": "accuracy at the epoch chosen on validation data",
    "generalization_gap": "generalization gap",
    "mean_stability": "mean stability",
    "hessian_trace": "Tr(H), curvature (nats)",
    "hessian_trace_top": "sum of leading eigenvalues (nats)",
    "gradient_second_moment": "Tr(C), gradients (nats²)",
    "gradient_noise_scale": "noise scale (examples)",
    "tic": "TIC proxy Tr(C) / Tr(H)",
    "tic_leading": "Tr(C) / sum of leading eigenvalues",
    "epsilon_flatness": "ε-flatness (larger is flatter)",
    "top_eigenvalue": "largest eigenvalue (nats)",
    "sharpness_worst": "largest rise in the ball (nats)",
    "sharpness_keskar": "Keskar's sharpness (%)",
    "sharpness_average": "mean rise under noise (nats)",
    "normality_ks": "KS distance to N(0, 1), mean",
    "normality_ks_worst": "KS distance to N(0, 1), largest",
    "normality_skewness": "skewness of activations",
    "normality_excess_kurtosis": "excess kurtosis of activations",
}


def name(column: str) -> str:
    """A column in words."""
    return NAMES.get(column, column.replace("_", " "))


def minus(text: str) -> str:
    """Hyphens before digits as minus signs."""
    return text.replace("-", MINUS)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table; cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def code(item: object) -> str:
    """A JSON value in a fixed-width font."""
    return f"<code>{escape(json.dumps(item, ensure_ascii=False))}</code>"
