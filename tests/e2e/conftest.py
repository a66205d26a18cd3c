"""Daemons that end with their test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import Daemon
from monitoring import Monitoring


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes daemons that end with the test."""
    made: list[Daemon] = []

    def make(env: dict[str, str] | None = None, config: str = "") -> Daemon:
        one = Daemon(tmp_path, env, config)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


@pytest.fixture
def monitoring(tmp_path: Path, in_ci: bool) -> Iterator[Monitoring]:
    """Prometheus and Alertmanager that end with their test; nothing runs before it is started."""
    with contextlib.ExitStack() as stack:
        yield Monitoring(tmp_path, stack, must=in_ci)
