"""``mlsecd selftest``."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter

from mlsecd import config, selftest, selftest_result
from mlsecd.errors import StateError

__all__ = ["run"]

_MARK = {"passed": "✓", "failed": "✗", "untried": "·", "off": "·"}


def run(path: str | None, overrides: tuple[str, ...], *, as_json: bool) -> int:
    """Try every detector, tell each outcome, keep the result; 1 where one failed."""
    loaded = config.load(path, overrides)
    outcomes = []
    for one in selftest.run(loaded):
        outcomes.append(one)
        if as_json:
            print(json.dumps(dataclasses.asdict(one)), flush=True)
        else:
            print(f"{_MARK[one.state]} {one.state:<8} {one.detector:<28} {one.detail}", flush=True)
    selftest.check(outcomes)
    tried = {one.detector: one.state == "passed" for one in outcomes if one.state in {"passed", "failed"}}
    result = selftest_result.Result(time.time(), tried)
    try:
        selftest_result.write(selftest_result.path_in(loaded.daemon.state_dir), result)
    except StateError as error:
        print(f"note: {error}; the daemon does not show it", file=sys.stderr)
    counts = Counter(one.state for one in outcomes)
    if not as_json:
        print(
            f"\n{counts['passed']} passed, {counts['failed']} failed, {counts['untried']} untried, {counts['off']} off"
        )
    return 1 if counts["failed"] else 0
