"""Writes docs/metrics.md and docs/detectors.md from what the code declares.

Usage: python tools/make_docs.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from mlsecd import plugins
from mlsecd.detectors.base import Detector
from mlsecd.findings import controls
from mlsecd.sinks.metrics_catalog import markdown
from tools.make_config import entry, fields, literal, meaning

DOCS = Path(__file__).parent.parent / "docs"

METRICS = """\
# Metrics

Every series that mlsecd exports, made by `python tools/make_docs.py` from `mlsecd/sinks/metrics_catalog.py`.
Client names and scores are never labels ([decision 0009](decisions/0009-no-scores-in-public.md)).

"""

DETECTORS = """\
# Detectors

What each detector looks for, what to do when it fires, and what it cannot see; made by `python tools/make_docs.py`
from the detectors themselves. Measured rates stand in [detection.md](detection.md).

`[detectors.NAME] enabled = false` in the configuration switches one off.
"""


def detector(cls: type[Detector]) -> str:
    """One detector's chapter."""
    ids = [*cls.atlas, *cls.owasp]
    cited = "; ".join(f"{one} {name}" for one, name in controls.names(ids).items()) if ids else "none"
    lines = [
        f"\n## {cls.name}\n",
        f"{cls.summary[0].upper()}{cls.summary[1:].rstrip('.')}.\n",
        f"- **When it fires:** {cls.action}",
        f"- **Reads:** {', '.join(sorted(cls.consumes))} records; keyed by {cls.key}.",
        f"- **Maturity:** {cls.maturity}, version {cls.version}.",
        f"- **Controls:** {cited}.",
        "- **Cannot see:**",
        *(f"  - {spot}" for spot in cls.blind_spots),
        "\n| key | default | meaning |\n|---|---|---|",
    ]
    lines += keys(cls.Params)
    return "\n".join(lines) + "\n"


def keys(cls: type[msgspec.Struct], path: str = "") -> list[str]:
    """A row each key; those of a list's tables follow the list."""
    rows = []
    for field, kind, default in fields(cls):
        shown = "unset" if default is None else f"`{literal(default)}`"
        rows.append(f"| `{path}{field.name}` | {shown} | {meaning(kind)} |")
        if (held := entry(kind)) is not None:
            rows += keys(held, f"{path}{field.name}[].")
    return rows


def pages() -> dict[Path, str]:
    """Every generated page."""
    return {
        DOCS / "metrics.md": METRICS + markdown(),
        DOCS / "detectors.md": DETECTORS + "".join(detector(cls) for cls in plugins.detectors().values()),
    }


def main() -> int:
    made = pages()
    if "--check" in sys.argv:
        return int(any(not path.exists() or path.read_text() != text for path, text in made.items()))
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
