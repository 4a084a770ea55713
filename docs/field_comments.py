"""For the site: what a comment beside or above a field of a class says stands on its page."""

from itertools import takewhile
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Makes a field's comment its docstring, where neither class nor field has words for it."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Reads the comment behind a field, or else the ones right above it."""
        words = attr.parent.docstring.value if attr.parent.docstring else ""
        if not attr.parent.is_class or attr.docstring or f"{attr.name}:" in words:
            return
        lines = [line.strip() for line in attr.lines_collection[attr.filepath]]
        behind = lines[attr.endlineno - 1].partition("  # ")[2].partition("noqa")[0]
        before = takewhile(lambda line: line.startswith("# "), lines[attr.lineno - 2 :: -1])
        text = behind or " ".join(line[2:] for line in reversed([*before]))
        if text:
            attr.docstring = griffe.Docstring(text, lineno=attr.lineno, parent=attr)
