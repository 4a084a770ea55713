"""Which figures there are, and which of them a study shows."""

from prunejax import registry
from prunejax.report import figures
from prunejax.report.figures import Draw, Drawing
from prunejax.report.style import Look
from prunejax.report.tables import Study

# Name in `config.report.figures` -> function, in the order of the page.
FIGURES: dict[str, Draw] = {
    "dynamics": figures.dynamics,
    "stability": figures.stability,
    "scatter": figures.scatter,
    "gap": figures.gap,
}
# Shown whenever there is something to show, asked for or not.
_ALWAYS = ("dynamics", "stability", "scatter", "gap")
_TABLES = ("table",)  # names that stand for tables, which every page has


def draw(study: Study, look: Look) -> dict[str, Drawing]:
    """The study's figures by name.

    Raises:
      ValueError: `config.report.figures` names one that does not exist.
    """
    wanted = [name for name in study.report_option("figures", ()) if name not in _TABLES]
    for name in wanted:
        registry.lookup(FIGURES, name, "figure in config.report.figures")
    drawn = {
        name: function(study, look)
        for name, function in FIGURES.items()
        if name in wanted or name in _ALWAYS
    }
    return {name: drawing for name, drawing in drawn.items() if drawing is not None}
