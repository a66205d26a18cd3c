"""What commands say, in this process: the summaries and hints that a person acts on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlsecd import baseline
from mlsecd.cli import main
from mlsecd.commands import record
from mlsecd.commands.words import counted
from mlsecd.runner import Health


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mlsecd.toml"
    path.write_text(f'[daemon]\nstate_dir = "{tmp_path}"\n')
    return path


def rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def request(ts: int, **more: object) -> dict[str, object]:
    return {"ts": float(ts), "model": "m", "client": "k-1", **more}


def test_a_replay_of_nothing_readable_fails_and_says_why(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b"nonsense\n{\n")
    assert main(["replay", str(bad), "--config", str(config)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"mlsecd: {bad}: no readable record: 2 lines dropped (json: 2)"
    bad.write_bytes(b"")
    assert main(["replay", str(bad), "--config", str(config)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"mlsecd: {bad}: no readable record: nothing is in there"


def test_a_replay_without_a_baseline_says_what_it_cannot_find(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rows(tmp_path / "r.jsonl", request(1))
    assert main(["replay", str(file), "--config", str(config)]) == 0
    told = capsys.readouterr().err
    assert "note: no baseline is loaded, and extraction_account needs one" in told
    assert "1 record in " in told
    assert (
        main(["replay", str(file), "--config", str(config), "--set", "detectors.extraction_account.enabled=false"]) == 0
    )
    assert "extraction_account" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("synthetic", "told"),
    [
        (0, "read 4 records"),
        (3, "read 4 records, 3 of them synthetic and not used"),
        (4, "read 4 records, all of them synthetic: nothing is learned from such records"),
    ],
)
def test_a_fit_says_what_it_read(
    synthetic: int, told: str, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rows(tmp_path / "r.jsonl", *(request(ts, synthetic=ts < synthetic) for ts in range(4)))
    with file.open("a") as out:
        out.write("nonsense\n")
    assert main(["baseline", "fit", str(file), "--config", str(config)]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == told
    assert shown.err.splitlines() == ["dropped: 1 (replay: json)"]


def test_a_fit_learns_nothing_from_whom_it_is_told_to_leave_out(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = [float(i) for i in range(4)]
    clients = [f"k-{i}" for i in range(31)]
    asked = [
        request(ts, client=client, features=[*vector, ts + i / 30], body_hash=f"{ts}{client}")
        for ts in range(10)
        for i, client in enumerate(clients)
    ]
    alone = rows(tmp_path / "alone.jsonl", *(request(ts, client="k-0") for ts in range(10)))
    file, out = rows(tmp_path / "r.jsonl", *asked), tmp_path / "b.npz"
    fit = ["baseline", "fit", str(file), str(alone), "-o", str(out), "--config", str(config)]
    fit += ["--require", "extraction_account"]
    assert main([*fit, "--leave-out", "k-0", "--leave-out", "nobody"]) == 0
    shown = capsys.readouterr().out
    assert "read 320 records\nleft out 20 requests of client k-0\n" in shown
    assert "left out 0 requests of client nobody: no such client\n" in shown
    assert baseline.read(out).header["left_out"] == ["k-0", "nobody"]
    assert baseline.read(out).sections["extraction_account"].header["left_out"] == 1, "nobody is no client"
    assert main([*fit, "--leave-out", "k-0", "--leave-out", "k-1"]) == 1
    assert 'extraction_account: refused: model "m": 29 clients, too few' in capsys.readouterr().out
    assert main(fit) == 0
    assert "left_out" not in baseline.read(out).header
    assert "left_out" not in baseline.read(out).sections["extraction_account"].header


@pytest.mark.parametrize("seconds", [None, 60.0, 1e300, float("nan")])
def test_a_recording_says_how_to_stop_it(seconds: float | None, capsys: pytest.CaptureFixture[str]) -> None:
    record._begin("day.jsonl", seconds, frozenset({"request_log"}))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recording to day.jsonl")
    assert line.endswith("; Ctrl-C to stop")
    assert (" until " in line) == (seconds == 60.0)


def test_a_recording_without_requests_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    record._begin("day.jsonl", None, frozenset())
    assert "will hold no requests" in capfd.readouterr().err
    record._tell(frozenset({"request_log"}), Health("nvml", up=False, why="x"))
    assert "will hold no requests" not in "".join(capfd.readouterr())
    record._tell(frozenset({"request_log"}), Health("request_log", up=False, why="x"))
    assert "will hold no requests from it" in "".join(capfd.readouterr())


def test_one_is_not_many() -> None:
    assert [counted(n, "finding") for n in (0, 1, 1200)] == ["0 findings", "1 finding", "1,200 findings"]
