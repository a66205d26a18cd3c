"""The list of version floors: what is shipped, what a user puts in its place, and who it reaches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlsecd import config, floors
from mlsecd.detectors._floors import below, judged
from mlsecd.errors import ConfigError

SHIPPED = floors.load(floors.SHIPPED)


def test_every_shipped_row_says_where_its_number_was_read() -> None:
    rows = [*SHIPPED.gpu, *SHIPPED.service]
    assert rows
    for row in rows:
        assert row.source.startswith("https://"), row
        assert re.search(r"CVE-\d{4}-\d+|bulletin \d+", row.why), row
        assert row.at_least.startswith(row.branch), "a floor lies within its branch"
    assert len({(row.field, row.branch) for row in rows}) == len(rows), "one floor a branch"


@pytest.mark.parametrize(
    ("field", "version", "good"),
    [
        ("driver_version", "535.309.01", True),
        ("driver_version", "535.288.01", False),
        ("driver_version", "580.95.05", False),
        ("driver_version", "545.23.06", None),  # a branch that no row names
        ("driver_version", "650.1", None),
        ("driver_version", None, None),
        ("container_toolkit_version", "1.17.8-1", False),
        ("container_toolkit_version", "1.19.1-1", True),
        ("container_toolkit_version", "of course", None),
    ],
)
def test_versions_pass_fail_or_are_unknown(field: str, version: str | None, good: bool | None) -> None:
    assert [answer for _, answer in judged(SHIPPED.gpu, field, version)] == [good]


def test_a_month_is_no_fraction() -> None:
    assert below("25.07", "25.10") is True
    assert below("26.01", "25.10") is False


def test_both_detectors_get_their_rows(tmp_path: Path) -> None:
    made = config.parse("")
    assert made.detectors["gpu_posture"].floors == SHIPPED.gpu  # type: ignore[attr-defined]
    assert made.detectors["exposure_services"].floors == SHIPPED.service  # type: ignore[attr-defined]
    mine = tmp_path / "floors.toml"
    mine.write_text('updated = 2026-12-01\n[[gpu]]\nfield = "vbios_version"\nat_least = "96"\n')
    text = f'[floors]\nfile = "{mine}"\n[[detectors.gpu_posture.floors]]\nfield = "driver_version"\nat_least = "9"\n'
    made = config.parse(text)
    fields = [row.field for row in made.detectors["gpu_posture"].floors]  # type: ignore[attr-defined]
    assert fields == ["driver_version", "vbios_version"], (
        "the file replaces the shipped list; the configuration adds to it"
    )
    assert made.detectors["exposure_services"].floors == ()  # type: ignore[attr-defined]


def test_the_hosts_own_list_replaces_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert floors.place("/some/where") == Path("/some/where")
    mine = tmp_path / "floors.toml"
    monkeypatch.setattr(floors, "_REPLACED_BY", mine)
    assert floors.place("auto") == floors.SHIPPED
    mine.touch()
    assert floors.place("auto") == mine


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "cannot be read: No such file"),
        ("updated = ", "not valid TOML"),
        ("updated = 2026-11-26\n[[gpu]]\nfield = 'driver_version'\n", "at_least"),
        ("updated = 2026-11-26\n[[gpus]]\nfield = 'driver_version'\n", "unknown field"),
        ("[[gpu]]\nfield = 'driver_version'\nat_least = '1'\n", "updated"),
    ],
)
def test_a_bad_list_is_told_with_its_name(tmp_path: Path, text: str | None, what: str) -> None:
    path = tmp_path / "floors.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"\[floors\] .*floors\.toml: .*" + what):
        config.parse(f'[floors]\nfile = "{path}"\n')
