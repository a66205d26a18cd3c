"""The command line as a user meets it: its own process, its words, its exit codes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parent.parent / "mlsecd" / "data" / "demo"


def mlsecd(*arguments: str | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "mlsecd", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=90,
    )


def findings(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "mlsecd.toml"
    path.write_text(
        f'[daemon]\nbaseline = "{DEMO / "baseline.npz"}"\n'
        "[detectors.extraction_account]\nclient_alpha = 0.02\n"
        '[[detectors.gpu_foreign_process.allow]]\nexe = "/opt/vllm/**"\n'
    )
    return path


def test_version_and_help() -> None:
    version = mlsecd("--version")
    assert version.returncode == 0
    assert version.stdout.startswith(b"mlsecd ")
    shown = mlsecd("--help").stdout.decode()
    for command in ("run", "check-config", "replay", "baseline", "record", "doctor", "log"):
        assert command in shown
    assert mlsecd("replay", "--help").returncode == 0


def test_wrong_usage_exits_with_2() -> None:
    assert mlsecd().returncode == 2
    assert mlsecd("replya").returncode == 2


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["check-config"]])
def test_quick_commands_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom mlsecd.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('numba', 'sklearn', 'scipy', 'pynvml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_daemon_scores_without_scipy_and_scikit_learn() -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom mlsecd import app, demo\nfrom mlsecd.meters import Meters\n"
        "app.make_pipeline(demo.configuration(Path('/nonexistent')), Meters())\n"
        "print('numba' in sys.modules, [name for name in ('sklearn', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"


def test_check_config_says_what_is_wrong_and_where(tmp_path: Path) -> None:
    file = tmp_path / "mlsecd.toml"
    file.write_text("[sources.nvml]\nintervall = 1\n")
    done = mlsecd("check-config", "--config", file)
    assert done.returncode == 2
    expected = f'{file}:2: [sources.nvml] unknown key "intervall": did you mean "interval_seconds"?'
    assert expected in done.stderr.decode()
    file.write_text("")
    assert mlsecd("check-config", "--config", file).returncode == 0
    assert mlsecd("check-config", "--config", file, "--set", "web.listn=x").returncode == 2


def test_replay_of_the_demo_finds_the_thief_and_the_miner(policy: Path) -> None:
    found = findings(mlsecd("replay", DEMO / "recording.jsonl.gz", "--config", policy))
    assert {(line["detector"], line["synthetic"]) for line in found} == {
        ("extraction_account", True),
        ("gpu_foreign_process", True),
    }
    assert {line["subject"].get("client") for line in found if line["detector"] == "extraction_account"} == {
        "k-demothief"
    }
    assert all(line["evidence"]["gpu"] for line in found if line["detector"] == "gpu_foreign_process")


def test_replay_reads_standard_input_and_merges_files(policy: Path, tmp_path: Path) -> None:
    whole = gzip.decompress((DEMO / "recording.jsonl.gz").read_bytes())
    straight = findings(mlsecd("replay", "-", "--config", policy, stdin=whole))
    rows = whole.splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join(row for row in rows if b'"kind"' in row))
    (tmp_path / "b.jsonl").write_bytes(b"".join(row for row in rows if b'"kind"' not in row))
    merged = findings(mlsecd("replay", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--config", policy))
    assert merged == straight != []


def test_replay_as_a_table_fits_a_person(policy: Path) -> None:
    done = mlsecd("replay", DEMO / "recording.jsonl.gz", "--config", policy, "--format", "table")
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("TIME")
    assert any("extraction_account" in line for line in lines)
    assert "records in" in done.stderr.decode()


def test_replay_of_nonsense_is_counted_and_explained(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    good = b"".join(b'{"ts": %d, "model": "m"}\n' % ts for ts in range(300))
    noise = b"\x00\xff" * 500 + b'\n{"ts": "soon", "model": "m"}\n{"ts": 1}\n' + b"[" * 100_000 + b"\n"
    bad.write_bytes(good + noise)
    done = mlsecd("replay", bad)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"300 records" in done.stderr
    assert b"dropped:" in done.stderr


@pytest.mark.parametrize("name", ["none.jsonl", "cut.jsonl.gz", "."])
def test_a_file_that_cannot_be_read_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl.gz").write_bytes((DEMO / "recording.jsonl.gz").read_bytes()[:5000])
    done = mlsecd("replay", tmp_path / name)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert done.stderr.decode().splitlines()[-1].startswith("mlsecd: ")


def test_fit_names_what_it_refuses_and_exits_by_require(tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"ts": float(i), "model": "m", "client": "k-1"}) + "\n" for i in range(50)))
    done = mlsecd("baseline", "fit", few, "-o", tmp_path / "b.npz")
    assert done.returncode == 1
    assert b"refused" in done.stdout
    assert not (tmp_path / "b.npz").exists()
    assert mlsecd("baseline", "fit", few, "-o", tmp_path / "b.npz", "--require", "nonsense").returncode == 2
    assert b"not standard input" in mlsecd("baseline", "fit", "-").stderr


def test_a_fitted_policy_is_proposed_for_review(tmp_path: Path) -> None:
    rows = []
    for second in range(30):
        process = {
            "pid": 50,
            "start_ticks": 9,
            "ppid": 1,
            "uid": 7,
            "exe": "/opt/x/serve",
            "cgroup": "/system.slice/x.service",
            "unit": "x.service",
        }
        init = {"pid": 1, "start_ticks": 1, "ppid": 0, "uid": 0, "exe": "/sbin/init", "cgroup": "/init.scope"}
        rows.append({"kind": "process", "ts": second, "processes": [init, process]})
        gpu = {"pid": 50, "exe": "/opt/x/serve", "used_memory_bytes": 5}
        rows.append({"kind": "gpu", "ts": second + 0.1, "gpu": "GPU-1", "processes": [gpu]})
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = mlsecd("baseline", "fit", file, "-o", tmp_path / "b.npz")
    assert done.returncode == 0, done.stdout + done.stderr
    proposed = tmp_path / "b.gpu_foreign_process.toml"
    assert 'exe = "/opt/x/serve"' in proposed.read_text()
    assert mlsecd("check-config", "--config", proposed).returncode == 0


def test_record_writes_what_replay_reads(tmp_path: Path) -> None:
    config = tmp_path / "mlsecd.toml"
    config.write_text(
        f'[sources.request_socket]\npath = "{tmp_path}/s"\nstream_path = "{tmp_path}/t"\n'
        "[sources.processes]\ninterval_seconds = 0.5\n"
    )
    file = tmp_path / "day.jsonl.gz"
    done = mlsecd("record", file, "--seconds", "3", "--config", config)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert {row["kind"] for row in rows} >= {"process", "source"}
    assert [row["seq"] for row in rows] == list(range(len(rows)))
    assert mlsecd("replay", file, "--config", config).returncode == 0
    again = mlsecd("record", file, "--seconds", "1", "--config", config)
    assert again.returncode == 1
    assert b"never overwritten" in again.stderr


def test_doctor_names_what_is_broken_and_what_is_blind(tmp_path: Path) -> None:
    config = tmp_path / "mlsecd.toml"
    config.write_text(f'[daemon]\nstate_dir = "{tmp_path}/none"\n[web]\nlisten = "127.0.0.1:1"\n')
    done = mlsecd("doctor", "--config", config, "--json")
    checks = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1
    assert checks["state directory"]["state"] == "broken"
    assert checks["daemon"]["detail"].startswith("none answers")
    assert checks["state directory"]["detail"].endswith(f" -m 0750 {tmp_path}/none")
    assert not any(name.startswith("detector ") for name in checks)
    plain = mlsecd("doctor", "--config", config, "--verbose").stdout.decode()
    assert "cannot see: " in plain
    *_, summary = (line for line in plain.splitlines() if " blind, " in line)
    number = int(summary.split()[0])
    assert summary.startswith(f"{number} broken, ")
    assert summary.endswith(" fine")
    after = plain.partition(summary)[2].splitlines()[1:]
    assert len(after) == number
    assert all(line.startswith("✗ broken ") for line in after)


def test_log_verify_tells_a_whole_log_from_an_edited_one(tmp_path: Path) -> None:
    from mlsecd import config  # noqa: PLC0415
    from mlsecd.meters import Meters  # noqa: PLC0415
    from mlsecd.records import Finding, Severity  # noqa: PLC0415
    from mlsecd.sinks.forensic_log import ForensicLog  # noqa: PLC0415

    params = config.parse(f'[sinks.forensic_log]\ndirectory = "{tmp_path}"\n').sinks.forensic_log
    log = ForensicLog(params, "h", Meters())
    finding = Finding(
        ts=time.time(), detector="gpu_lost", version=1, subject_kind="gpu", subject="GPU-1", severity=Severity.HIGH,
        score=1, threshold=1, reason="lost", action="look", id="0123456789abcdef",
    )  # fmt: skip
    assert log.append([finding, finding, finding]) == 3
    log.close()
    whole = mlsecd("log", "verify", tmp_path, "--json")
    assert whole.returncode == 0
    head = json.loads(whole.stdout)
    (segment,) = tmp_path.glob("*.jsonl")
    anchor = f"{head['last_seq']}:{head['head']}"
    assert mlsecd("log", "verify", tmp_path, "--anchor", anchor).returncode == 0
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[:-1]))
    assert mlsecd("log", "verify", tmp_path).returncode == 0, "a chain alone cannot tell"
    assert mlsecd("log", "verify", tmp_path, "--anchor", anchor).returncode == 1
    assert mlsecd("log", "verify", tmp_path, "--anchor", "nonsense").returncode == 2
    segment.write_bytes(b"".join(lines))
    (segment,) = tmp_path.glob("*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b"GPU-1", b"GPU-2", 1))
    done = mlsecd("log", "verify", tmp_path)
    assert done.returncode == 1
    assert segment.name.encode() in done.stdout + done.stderr
    assert mlsecd("log", "verify", tmp_path / "none").returncode == 1
