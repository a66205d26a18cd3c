"""Writes config/mlsecd.toml from what the code declares: every key, its default, its unit and its meaning.

Usage: python tools/make_config.py [--check]
"""

from __future__ import annotations

import json
import sys
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

import msgspec

from mlsecd import plugins
from mlsecd.config_sections import SECTIONS

OUT = Path(__file__).parent.parent / "config" / "mlsecd.toml"

HEAD = """\
# mlsecd: the configuration, with every key at its default. Uncomment what you change.
# Check it with `mlsecd check-config --config FILE`; `systemctl reload mlsecd` takes it over.
# An unknown key is an error that names its line.
"""

EXCEPTIONS = """\
# Exceptions mute the page for one subject of one detector until a day; the log keeps everything.
# [[exceptions]]
# detector = "gpu_foreign_process"
# subject = "*"                    # the finding's subject, or a glob over it
# reason = "burn-in by J. Doe, ticket 4711"
# expires = "2027-01-31"
"""

LAUNCHES = """\
# A launch is announced for a month at the most: what accounts that are first seen in it send may be new to the
# model, and is told as info; so is a thief who comes then, and does no more. Whoever varies queries again and again
# is told as ever.
# [[launches]]
# model = "faces-*"                # the model, or a glob over its name
# begins = "2027-01-11"            # its first day (UTC)
# ends = "2027-01-24"              # its last: fit the baseline again by then
# reason = "scanner app 2.0, J. Doe, ticket 4712"
"""

_TYPICAL = {str: '"..."', int: "0", float: "0.0", bool: "false"}


def shown(value: Any, about: str) -> str:
    """A default as a file shows it: TOML, with permission bits in octal."""
    if value is None:
        return "...  # unset by default"
    if isinstance(value, int) and not isinstance(value, bool) and _is_mode(about):
        return f"0o{value:o}"
    return literal(value) or "..."


def number(value: float, *, octal: bool = False) -> str:
    """A bound as a person writes it."""
    if value != int(value):
        return f"{value:g}"
    return f"0o{int(value):o}" if octal and value else str(int(value))


def _is_mode(about: str) -> bool:
    return "permission" in about


def literal(value: Any) -> str | None:  # noqa: PLR0911 - one a type
    """A default as TOML; None where TOML cannot say it (the key is then shown without a value)."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(int(value)) + ".0" if value == int(value) and abs(value) < 1e16 else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(str(value))
    if isinstance(value, (list, tuple, frozenset)):
        parts = [literal(item) for item in value]
        return None if None in parts else "[" + ", ".join(part for part in parts if part) + "]"
    if isinstance(value, msgspec.Struct):
        held = [(name, literal(getattr(value, name))) for name in value.__struct_fields__ if getattr(value, name)]
        return "{" + ", ".join(f"{name} = {text}" for name, text in held if text) + "}"
    return None


def meaning(kind: Any) -> str:  # noqa: C901 - one walk over what typing can nest
    """The description and bounds that a field declares."""
    found: list[str] = []
    bounds: list[str] = []

    def visit(node: Any) -> None:
        if typing.get_origin(node) is typing.Annotated:
            for meta in node.__metadata__:
                if isinstance(meta, msgspec.Meta):
                    if meta.description:
                        found.append(meta.description)
                    octal = _is_mode(meta.description or "")
                    for sign, bound in ((">", meta.gt), (">=", meta.ge), ("<", meta.lt), ("<=", meta.le)):
                        if bound is not None:
                            bounds.append(f"{sign} {number(bound, octal=octal)}")
            visit(node.__origin__)
        elif typing.get_origin(node) in (typing.Union, types.UnionType):
            for argument in typing.get_args(node):
                visit(argument)
        elif typing.get_origin(node) is typing.Literal:
            bounds.append("one of " + ", ".join(json.dumps(argument) for argument in typing.get_args(node)))

    visit(kind)
    text = found[0] if found else ""
    return f"{text} ({', '.join(bounds)})" if bounds and text else text or ", ".join(bounds)


def entry(kind: Any) -> type[msgspec.Struct] | None:
    """The struct that a list holds, where it holds structs."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    held = (entry(argument) for argument in typing.get_args(kind))
    return next((one for one in held if one is not None), None)


def fields(cls: type[msgspec.Struct]) -> list[tuple[msgspec.structs.FieldInfo, Any, Any]]:
    """Every field with its type as it was declared, and its default."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return [(one, hints[one.name], _default(one)) for one in msgspec.structs.fields(cls)]


def _default(one: msgspec.structs.FieldInfo) -> Any:
    """A field's default; None also for one that must be given."""
    if one.default is not msgspec.NODEFAULT:
        return one.default
    return None if one.default_factory is msgspec.NODEFAULT else one.default_factory()


def example(path: str, cls: type[msgspec.Struct]) -> list[str]:
    """One entry of a list of tables, with every key that it may have."""
    lines = ["# one such table an entry, with the keys that matter", f"#[[{path}]]"]
    for one, kind, default in fields(cls):
        value = _typical(kind) if default is None else literal(default)
        lines.append(f"#{one.name} = {value}  # {meaning(kind)}")
    return lines


def _typical(kind: Any) -> str | None:
    """A value of the right type, where a key has no default."""
    inner = [argument for argument in typing.get_args(kind) if argument is not type(None)]
    return _TYPICAL.get(kind) if isinstance(kind, type) else next(filter(None, map(_typical, inner)), None)


def table(path: str, cls: Any, *, extra: list[str] | None = None) -> list[str]:
    lines = [f"[{path}]"]
    nested: list[str] = []
    lines += extra or []
    for field, kind, default in fields(cls):
        if isinstance(default, msgspec.Struct):
            nested += ["", *table(f"{path}.{field.name}", type(default))]
            continue
        about = meaning(kind)
        lines += [f"# {line}" for line in textwrap.wrap(about, 110)]
        lines.append(f"#{field.name} = {shown(default, about)}")
        if (held := entry(kind)) is not None:
            lines[-1] += "  # or tables, as below"
            nested += example(f"{path}.{field.name}", held)
    return (lines if len(lines) > 1 else []) + nested


def text() -> str:
    parts = [HEAD]
    for name, cls in SECTIONS.items():
        parts.append("\n".join(table(name, cls)).strip() + "\n")
    for name, source in plugins.sources().items():
        parts.append(f"# {source.summary}\n" + "\n".join(table(f"sources.{name}", source.Params)) + "\n")
    for name, detector in plugins.detectors().items():
        on = ["#enabled = true"]
        parts.append(
            f"# {detector.summary}\n" + "\n".join(table(f"detectors.{name}", detector.Params, extra=on)) + "\n"
        )
    parts += [EXCEPTIONS, LAUNCHES]
    return "\n".join(parts)


def main() -> int:
    made = text()
    if "--check" in sys.argv:
        return 0 if OUT.read_text() == made else 1
    OUT.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
