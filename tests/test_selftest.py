from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mlsecd import cli, config, drills, plugins, selftest
from mlsecd.config import Config
from mlsecd.detectors.base import Fit
from mlsecd.detectors.extraction_language import ExtractionLanguage
from mlsecd.detectors.gpu_lost import GpuLost
from mlsecd.errors import MlsecdError
from mlsecd.meters import Meters
from mlsecd.records import Finding
from mlsecd.selftest_result import Result, Watch, path_in, write


def settings(tmp_path: Path, extra: str = "") -> Path:
    file = tmp_path / "mlsecd.toml"
    file.write_text(f'[daemon]\nstate_dir = "{tmp_path}"\n{extra}')
    return file


def off(*names: str) -> str:
    return "".join(f"[detectors.{name}]\nenabled = false\n" for name in names)


def all_but(*names: str) -> str:
    return off(*(name for name in plugins.detectors() if name not in names))


# whom each drill must accuse: the kind of subject, and a part of its name
WANTED = {
    "campaign_extraction": ("campaign", ""),
    "drift_gpu": ("gpu", "GPU-"),
    "drift_requests": ("model", "digits"),
    "drift_server": ("model", "drill at 127.0.0.1:8000"),
    "egress_bytes": ("process", "/opt/server/bin/python"),
    "exposure_services": ("process", "Jupyter"),
    "extraction_account": ("client", "k-demothief"),
    "extraction_exposure": ("client", "k-collector"),
    "extraction_language": ("client", "k-distiller"),
    "extraction_parameters": ("client", "k-sweeper"),
    "gpu_foreign_process": ("process", "/tmp/.x/kworker"),
    "gpu_health": ("gpu", "xid 95"),
    "gpu_hidden_memory": ("gpu", "GPU-"),
    "gpu_load_without_requests": ("gpu", "GPU-"),
    "gpu_lost": ("gpu", "GPU-"),
    "gpu_posture": ("gpu", "ecc_mode"),
    "gpu_power_unexplained": ("gpu", "GPU-"),
    "gpu_short_jobs": ("gpu", "accounting unseen"),
    "gpu_unlisted_process": ("process", "/tmp/.x/kworker"),
    "integrity_weights": ("file", "/models/drill.safetensors"),
    "process_inference": ("process", "child /usr/bin/bash"),
}


@pytest.mark.timeout(600)
def test_every_detector_finds_its_drill_and_the_result_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, list[Finding]] = {}
    look = selftest._path_problem

    def noted(config: Config, name: str, findings: list[Finding]) -> str:
        found[name] = findings
        return look(config, name, findings)

    monkeypatch.setattr(selftest, "_path_problem", noted)
    assert cli.main(["selftest", "--json", "--config", str(settings(tmp_path))]) == 0
    told = {row["detector"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {name for name, row in told.items() if row["state"] == "passed"} == set(plugins.detectors()) == set(WANTED)
    kept = json.loads((tmp_path / "selftest.json").read_text())
    assert kept["passed"] == dict.fromkeys(told, True)
    for name, (kind, part) in WANTED.items():
        accused = [(one.subject_kind, one.subject) for one in found[name]]
        assert any(kind == its_kind and part in subject for its_kind, subject in accused), f"{name}: {accused}"


def test_a_detector_that_learns_nothing_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Fit(None, "no traffic")
    monkeypatch.setattr(ExtractionLanguage, "fit", classmethod(lambda *_: refused))
    loaded = config.load(str(settings(tmp_path, all_but("extraction_language"))))
    (outcome,) = [one for one in selftest.run(loaded) if one.state != "off"]
    assert (outcome.state, "learnt nothing from ordinary records: no traffic" in outcome.detail) == ("failed", True)


def test_a_detector_that_sees_nothing_fails_and_one_that_is_off_is_not_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GpuLost, "observe", lambda *_: [])
    monkeypatch.setattr(GpuLost, "close", lambda *_: [])
    file = settings(tmp_path, all_but("gpu_lost", "gpu_foreign_process"))
    assert cli.main(["selftest", "--config", str(file)]) == 1
    told = capsys.readouterr().out
    assert "failed   gpu_lost                     a GPU drops off the bus: nothing was found" in told
    assert "passed   gpu_foreign_process" in told
    assert "off      extraction_account" in told
    assert json.loads((tmp_path / "selftest.json").read_text())["passed"] == {
        "gpu_lost": False,
        "gpu_foreign_process": True,
    }


def test_a_finding_that_would_page_or_a_detector_that_raises_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = config.load(str(settings(tmp_path, all_but("gpu_lost"))))
    observe = GpuLost.observe

    def real(self: GpuLost, records: Any) -> list[Finding]:
        return [dataclasses.replace(one, synthetic=False) for one in observe(self, records)]

    def raises(*_: Any) -> list[Finding]:
        raise ZeroDivisionError

    for broken, words in ((real, "would page"), (raises, "ZeroDivisionError")):
        monkeypatch.setattr(GpuLost, "observe", broken)
        (outcome,) = [one for one in selftest.run(loaded) if one.state != "off"]
        assert (outcome.state, words in outcome.detail) == ("failed", True)


def test_an_unwritable_state_directory_costs_only_the_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mlsecd.toml"
    file.write_text(f'[daemon]\nstate_dir = "{tmp_path}/none"\n' + all_but("gpu_lost"))
    assert cli.main(["selftest", "--config", str(file)]) == 0
    assert "run it as the daemon's user" in capsys.readouterr().err


def test_where_nothing_can_be_tried_it_says_so() -> None:
    with pytest.raises(MlsecdError, match="nothing was tried"):
        selftest.check([selftest.Outcome("x", "untried", "")])


def test_the_daemon_shows_the_latest_result_and_nothing_else(tmp_path: Path) -> None:
    meters = Meters()
    watch = Watch(path_in(str(tmp_path)), meters, frozenset({"a", "b"}))
    watch.look()
    assert meters.gauges() == {}
    write(path_in(str(tmp_path)), Result(5.0, {"a": True, "b": False, "evil": True}))
    watch.look()
    assert meters.gauges()["mlsecd_selftest_success"] == {(("detector", "a"),): 1.0, (("detector", "b"),): 0.0}
    assert meters.value("mlsecd_selftest_timestamp_seconds") == 5.0
    path_in(str(tmp_path)).write_text("nonsense")
    watch.look()
    assert meters.value("mlsecd_selftest_success", detector="a") == 1.0
    write(path_in(str(tmp_path)), Result(6.0, {"b": True}))
    watch.look()
    assert meters.gauges()["mlsecd_selftest_success"] == {(("detector", "b"),): 1.0}


def test_every_detector_has_a_drill_and_every_drill_its_detector() -> None:
    assert set(drills.DRILLS) == set(plugins.detectors())
