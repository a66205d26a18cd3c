"""Every expression of every dashboard, on a real Prometheus that scrapes a real daemon."""

from __future__ import annotations

import shutil
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest
from boards import boards, targets
from daemons import Daemon, until
from monitoring import Monitoring, get

from tests.fakenvml import FakeNvml, build

DEMO = Path(__file__).resolve().parents[2] / "mlsecd" / "data" / "demo"

pytestmark = [pytest.mark.needs("prometheus, prometheus-alertmanager"), pytest.mark.timeout(300)]


def test_every_panel_shows_something(tmp_path: Path, daemon: Callable[..., Daemon], monitoring: Monitoring) -> None:
    state = FakeNvml(tmp_path / "nvml.state", profile="b200")
    library = build(tmp_path / "fakenvml")
    (tmp_path / "state").mkdir()
    shutil.copy(DEMO / "baseline.npz", tmp_path / "state")
    plays = f'[sources.recording]\nenabled = true\nsocket = "{tmp_path}/ingest.seqpacket"\n'
    config = plays + "[detectors.extraction_account]\nclient_alpha = 0.02\n"
    one = daemon({"LD_LIBRARY_PATH": str(library.parent), "FAKENVML_STATE": str(state.path)}, config).start()
    monitoring.start(one.port)
    began = time.time()
    until(lambda: monitoring.query('mlsecd_finding_active{detector="extraction_account"}'), 60)
    state.lose(3)  # something for the tables of GPUs
    until(lambda: monitoring.query('mlsecd_finding_active{detector="gpu_lost"}'), 30)

    api = f"http://127.0.0.1:{monitoring.prometheus}/api/v1"
    for target in targets():  # the syntax, told apart from missing data
        get(f"{api}/format_query?{urllib.parse.urlencode({'query': target.plain})}")
    left = list(targets())
    assert len(left) > 60

    def empty() -> bool:
        left[:] = [target for target in left if not monitoring.query(target.plain)]
        return not left

    deadline = time.monotonic() + 40
    while not empty() and time.monotonic() < deadline:
        time.sleep(1)
    assert [one for one in left if one.kind != "table" or not _about_what_is_not_played(one.plain)] == []

    query = urllib.parse.urlencode({"query": "mlsecd_findings_total", "start": began - 60, "end": time.time() + 60})
    exemplars = get(f"{api}/query_exemplars?{query}")["data"]
    ids = {one["labels"]["finding"] for series in exemplars for one in series["exemplars"]}
    new = [finding for finding in one.findings() if finding["status"] == "new"]
    last = {(finding["detector"], finding["severity"]): finding["id"] for finding in new}  # a series shows its latest
    assert ids >= set(last.values())
    for board in boards().values():  # variables fill
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                metric = variable["query"].partition("(")[2].partition("{")[0].partition(",")[0]
                assert monitoring.query(metric), variable["query"]


def _about_what_is_not_played(expr: str) -> bool:
    """Tables of open findings of a kind that the recording does not hold; the counters beside them show zeros."""
    return "drift_" in expr or "exposure_" in expr
