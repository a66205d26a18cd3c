"""``mlsecd doctor``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter

from mlsecd import config
from mlsecd.doctor import Check, examine

__all__ = ["run"]

_MARK = {"ok": "✓", "info": "·", "blind": "!", "broken": "✗"}
_COLOUR = {"ok": "32", "info": "90", "blind": "33", "broken": "31"}


def run(path: str | None, overrides: tuple[str, ...], *, as_json: bool, verbose: bool) -> int:
    """Print every check as it is done, then a summary; 1 where one is broken."""
    states: Counter[str] = Counter()
    broken: list[Check] = []
    for check in examine(config.load(path, overrides), blind_spots=verbose):
        states[check.state] += 1
        broken += [check] if check.state == "broken" else []
        if as_json:
            print(json.dumps(dataclasses.asdict(check)))
        else:
            _print(check)
    if not as_json:
        print(f"\n{states['broken']} broken, {states['blind']} blind, {states['ok']} fine")
        for check in broken:
            _print(check)
    return 1 if broken else 0


def _print(check: Check) -> None:
    mark = f"{_MARK[check.state]} {check.state:<6}"
    if sys.stdout.isatty():
        mark = f"\033[{_COLOUR[check.state]}m{mark}\033[0m"
    print(f"{mark} {check.name:<34} {''.join(c if c.isprintable() else '�' for c in check.detail)}")
