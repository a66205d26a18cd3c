from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from support import requests

import bench.extraction
from bench.judging import ours
from bench.judging.court import Court
from bench.judging.folder import Folder, keep_clients
from bench.judging.published import Path as Scores
from bench.traces import writer
from bench.traces.attacks import attack
from bench.traces.clients import Sent, customer
from bench.traces.shapes import Shapes
from mlsecd.detectors import base
from mlsecd.detectors.base import Detector, DetectorState, Fit, Interval, Maturity, Section, Standing
from mlsecd.records import Finding, Kind, Records, RequestBatch, Severity

HOUR = 3_600.0


class _Loud(Detector):
    """Tells each client at its third query; what it learned is how many rows it was fitted on."""

    name = "extraction_loud"
    consumes = frozenset({Kind.REQUEST})
    key = "client"
    maturity = Maturity.SANDBOX
    summary = action = "-"
    blind_spots: ClassVar[tuple[str, ...]] = ("everything else",)
    Params = base.Params

    def __init__(self, params: Any, kernels: Any, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._counts: dict[str, int] = {}
        self._fitted = 0 if section is None else section.header["rows"]
        self._told = False

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Any) -> Fit:
        return Fit(Section({"rows": sum(map(len, records))}, {}), notes=("fitted",))  # type: ignore[arg-type]

    def observe(self, records: Records) -> list[Finding]:
        assert isinstance(records, RequestBatch)
        found = []
        for row in range(len(records)):
            who = records.text("client").at(row) or ""
            self._counts[who] = self._counts.get(who, 0) + 1
            if self._counts[who] == 3:
                loud = Severity.INFO if who.startswith("quiet") else Severity.HIGH
                found.append(self._find(float(records.ts[row]), "client", who, loud, {"channels": [{"channel": "x"}]}))
        return found

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        thieves = sorted(who for who in self._counts if who.startswith("thief"))
        if self._told or not thieves or interval.end < 20 * HOUR:  # an epoch that no record closes
            return []
        self._told = True
        evidence = {"clients": [{"client": who} for who in thieves], "rows": self._fitted}
        return [self._find(interval.end, "campaign", "campaign-1", Severity.MEDIUM, evidence)]

    def _find(self, ts: float, kind: str, subject: str, severity: Severity, evidence: dict[str, Any]) -> Finding:
        given = {"severity": severity, "score": 1.0, "threshold": 0.5, "reason": "-", "evidence": evidence}
        return self.finding(ts=ts, subject_kind=kind, subject=subject, **given)

    def standing(self) -> Standing:
        return Standing(DetectorState.ARMED)

    def snapshot(self) -> bytes:
        return b"12345678"

    def restore(self, blob: bytes) -> None:
        raise NotImplementedError


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our only detector is this one; no kernel is compiled."""
    monkeypatch.setattr(ours, "_classes", lambda _config: {"extraction_loud": _Loud})
    real = ours.configure
    monkeypatch.setattr(ours, "configure", lambda *args: _with_params(real(*args)))


def _with_params(config: Any) -> Any:
    config.detectors["extraction_loud"] = base.Params()
    return config


def stream(*clients: str) -> RequestBatch:
    return requests([float(i) for i in range(len(clients))], client=list(clients), model="m")


@pytest.mark.usefixtures("loud")
def test_findings_of_any_detector_are_read() -> None:
    fitted = ours.fit(stream("a", "b"), ours.configure(0.02))
    assert fitted.notes == ["extraction_loud: fitted"]
    who = ["thief1", "quiet", "b", "thief1", "quiet", "thief1", "quiet", "thief2", "thief1"]
    verdict = ours.judge(stream(*who), fitted)
    assert verdict.found() == {"thief1": 3}
    assert verdict.found(Severity.INFO) == {"thief1": 3, "quiet": 3}
    assert verdict.named() == {"thief1": 4, "thief2": 1}  # from an epoch that ended after the last record
    assert verdict.named(Severity.HIGH) == {}
    assert verdict.accounts["thief1"]["extraction_loud"].channel == "x"
    assert verdict.campaigns["extraction_loud:campaign-1"][0].evidence["rows"] == 2
    assert verdict.state_bytes == {"extraction_loud": 8}


def test_ours_are_judged_at_the_level_or_at_the_budget() -> None:
    assert ours.configure(0.05).detectors["extraction_account"].client_alpha == 0.05
    budget = ours.configure(None, ["detectors.extraction_account.max_clients=50"])
    assert budget.detectors["extraction_account"].client_alpha is None
    assert budget.detectors["extraction_account"].max_clients == 50
    chosen = set(ours._classes(budget))
    assert "extraction_account" in chosen
    assert all(name.startswith(("extraction_", "campaign_")) for name in chosen)
    without = ours.configure(0.02, ["detectors.extraction_account.enabled=false"])
    assert set(ours._classes(without)) == chosen - {"extraction_account"}


def test_a_path_knows_when_it_crossed() -> None:
    path = Scores()
    for query, score in ((5, 1.0), (6, 0.5), (7, 2.0), (9, 4.0)):
        path.add(query, score)
    assert [path.crossing(limit) for limit in (0.9, 1.0, 3.0, 4.0)] == [5, 7, 9, None]
    assert path.maximum == 4.0
    assert Scores().crossing(-1e9) is None


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder: 24 clients to calibrate on, 8 to test, four thieves, poison."""
    folder = tmp_path_factory.mktemp("traces") / "badges" / "tune"
    rng = np.random.default_rng(0)
    world = Shapes(rng)

    def customers(prefix: str, count: int) -> list[Sent]:
        return [customer(world, rng, f"{prefix}{i}", 60, start=0.0, span=HOUR, kind="iid") for i in range(count)]

    def thieves(prefix: str) -> list[Sent]:
        return [
            Sent(f"{prefix}{i}", "nes", attack("nes", world, rng, 100), 36.0 * np.arange(100), "", attack=True)
            for i in range(4)
        ]

    parts = {
        "reference": customers("r", 4),
        "benign_calib": customers("c", 12),
        "benign_null": customers("n", 12),
        "benign_test": customers("t", 8),
        "atk_nes": thieves("thief"),
        "poison": thieves("poison"),
    }
    for name, accounts in parts.items():
        writer.write(folder, name, world, accounts)
    scenarios = {name: {"family": "fit", "attack": "", "with": [], "mixtures": []} for name in parts}
    scenarios["benign_test"]["family"] = "benign"
    scenarios["poison"]["family"] = "poison"
    scenarios["atk_nes"] |= {"family": "single", "attack": "nes", "with": ["benign_test"]}
    (folder / "plan.json").write_text(json.dumps({"scenarios": scenarios}))
    return folder


def test_older_traces_have_a_plan_too(traces: Path, tmp_path: Path) -> None:
    for file in traces.iterdir():
        if file.name != "plan.json" and not file.name.startswith("poison"):
            (tmp_path / file.name).symlink_to(file)
    mixtures = {one.scenario: one.files for one in Folder(tmp_path).mixtures()}
    assert mixtures == {"benign_test": ("benign_test",), "atk_nes": ("atk_nes", "benign_test")}


def test_a_folder_is_merged_in_time_and_cut_by_client(traces: Path) -> None:
    folder = Folder(traces)
    batch = folder.together(["atk_nes", "benign_test"])
    assert (np.diff(batch.completion) >= 0).all()
    few = keep_clients(batch, {"thief0", "thief2"})
    assert len(few) == 200
    assert {few.text("client").at(row) for row in range(200)} == {"thief0", "thief2"}


def test_peers_are_judged_by_one_rule(traces: Path) -> None:
    court = Court(Folder(traces), 0.1, budget=False, overrides=(), who="peers")
    calibration = court.calibrate()
    rows = {row.detector: row for mixture in court.folder.mixtures("atk") for row in court.judge(mixture, calibration)}
    assert set(rows) == {
        *("PRADA (in)", "PRADA (feat)", "Chen kNN (in)", "Chen kNN (feat)"),
        *("Blacklight-like (in)", "SEAT-like (feat)", "ADD-like (feat)"),
    }
    assert all((row.accounts, row.ordinary) == (4, 8) for row in rows.values())
    assert rows["Chen kNN (in)"].found == 4
    assert rows["Chen kNN (in)"].queries is not None
    assert rows["Chen kNN (in)"].queries > 50
    poisoned = court.calibrate(None, ["poison0", "poison1", "poison2", "poison3"])
    assert poisoned.thresholds["Chen kNN (in)"] > calibration.thresholds["Chen kNN (in)"]
    assert calibration.fitted.sections == {}


@pytest.mark.usefixtures("loud")
def test_the_table_is_printed(
    traces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["extraction", "--data", str(traces.parent.parent), "--alpha", "0.1", "--json"])
    assert bench.extraction.main() == 0
    out, err = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(out)}
    both = rows["atk_nes: mlsecd"]
    assert (both["value"], both["found"], both["peer"]) == (1.0, 4, "Chen kNN (in)")
    assert (rows["atk_nes: mlsecd campaign"]["campaigns"], both["folder"]) == (1, "badges/tune")
    assert rows["atk_nes: mlsecd account"]["pages_on_ordinary"] == 8
    assert rows["benign_test: mlsecd"]["flagged"] == 8
    assert "atk_nes" in err


@pytest.mark.usefixtures("loud")
def test_the_spread_covers_halves_and_poison(
    traces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["extraction", "--data", str(traces), "--alpha", "0.1", "--spread", "--only", "atk", "--json"]
    monkeypatch.setattr(sys, "argv", [*given, "--who", "ours"])
    assert bench.extraction.main() == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out) if row["detector"] == "mlsecd"]
    assert names == [
        f"atk_nes ({fit}): mlsecd"
        for fit in ("all", *(f"half {i}" for i in range(5)), "1% poisoned", "2% poisoned", "5% poisoned")
    ]


def test_no_traces_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["extraction", "--data", str(tmp_path)])
    assert bench.extraction.main() == 0
    assert "bench.traces" in capsys.readouterr().err
