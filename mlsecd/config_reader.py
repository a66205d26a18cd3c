"""One pass over a parsed TOML document: tables become structs, and what is wrong is told with file, line and a hint."""

from __future__ import annotations

import difflib
import typing
from typing import Any

import msgspec
from msgspec import Meta

from mlsecd.toml_lines import line_of

__all__ = ["TableReader"]


class TableReader:
    """One pass over a parsed document; collects what is wrong with file and line."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.problems: list[str] = []

    def problem(self, path: tuple[str, ...], what: str, key: str | None = None) -> None:
        """Note what is wrong in a table, or with a key of it."""
        line = line_of(self.text, (*path, key) if key else path)
        where = f"{self.name}:{line}" if line else self.name
        table = f" [{'.'.join(path)}]" if path else ""
        self.problems.append(f"{where}:{table} {what}")

    def unknown(self, path: tuple[str, ...], key: str, known: list[str], what: str = "key") -> None:
        """Note a key that nobody knows, and what was probably meant."""
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f': did you mean "{near[0]}"?' if near else f": known are {', '.join(known)}"
        self.problem(path, f'unknown {what} "{key}"{hint}', key)

    def struct(self, path: tuple[str, ...], table: Any, cls: type[msgspec.Struct]) -> Any:
        """``table`` as ``cls``, or its default with the problems noted."""
        if not isinstance(table, dict):
            self.problem(path[:-1], f'"{path[-1]}" must be a table', path[-1])
            return None
        known = [field.encode_name for field in msgspec.structs.fields(cls)]
        clean = {}
        for key, value in table.items():
            if key not in known:
                self.unknown(path, key, known)
            else:
                clean[key] = value
        nested = {field.name: field.type for field in msgspec.structs.fields(cls)}
        for key in [key for key in clean if _is_struct(nested[key])]:
            clean[key] = self.struct((*path, key), clean[key], nested[key])
        try:
            return msgspec.convert(clean, cls, from_attributes=True)
        except msgspec.ValidationError as error:
            what, _, at = str(error).partition(" - at `$.")
            key = at.rstrip("`").split(".")[0].split("[")[0] if at else None
            if "matching regex" in what and key:
                what = f"must be {_description(cls, key)}"
            self.problem(path, f'"{at.rstrip("`")}": {what}' if at else what, key)
            return None


def _description(cls: type[msgspec.Struct], key: str) -> str:
    """What a field's declaration says that it is: better than the regular expression that it must match."""
    metas = getattr(typing.get_type_hints(cls, include_extras=True)[key], "__metadata__", ())
    return next((meta.description for meta in metas if isinstance(meta, Meta) and meta.description), "as documented")


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
