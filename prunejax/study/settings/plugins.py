"""What others have put into the registries: a study that uses it has to find it again."""

from prunejax.configs import fields
from prunejax.study.settings import entries
from prunejax.study.settings.entries import check as check


def registered() -> list[str]:
    """Names in the registries (models, data, ..., figures) and fields that are not of here."""
    return [*(name for where in entries.REGISTRIES for name in entries.added(where)), *fields.OWN]
