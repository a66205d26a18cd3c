"""Write grafana/dashboards/*.json; ``--check`` only says whether they are current."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.boards import BOARDS
from tools.panels import as_json

DIRECTORY = Path(__file__).resolve().parents[1] / "grafana" / "dashboards"


def main(*, check: bool) -> int:
    """0 where every file is, or now is, what the code says."""
    made = {f"{board.uid}.json": as_json(board) for board in BOARDS}
    old = {path.name: path.read_text() for path in DIRECTORY.glob("*.json")}
    stale = sorted(name for name in made.keys() | old.keys() if made.get(name) != old.get(name))
    if check:
        for name in stale:
            print(f"{name} is not what tools/boards.py says: run python -m tools.make_dashboards")
        return 1 if stale else 0
    for name in stale:
        if name in made:
            (DIRECTORY / name).write_text(made[name])
        else:
            (DIRECTORY / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
