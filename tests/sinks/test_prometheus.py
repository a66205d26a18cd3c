"""The exposition: what stands in it, who accepts it, and that scrapes do not wait for it."""

from __future__ import annotations

import ast
import gzip
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from views import active, gpu, metrics_view

from mlsecd.detectors.base import DetectorState
from mlsecd.meters import Meters
from mlsecd.records import Severity
from mlsecd.sinks import prometheus
from mlsecd.sinks.metrics_catalog import CATALOG, DETECTOR_STATES, PROCESS, Type, describe, markdown
from mlsecd.sinks.metrics_collect import Slots
from mlsecd.sinks.metrics_text import Encoder
from mlsecd.sinks.metrics_view import Build, DetectorHealth
from mlsecd.sinks.prometheus import PrometheusSink

OPENMETRICS = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"
PACKAGE = Path(prometheus.__file__).parent.parent

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def sink() -> Iterator[PrometheusSink]:
    made = PrometheusSink(Meters())
    yield made
    made.stop()


def scrape(sink: PrometheusSink) -> Samples:
    """The text format, read back; the cache is passed by, so that each call sees the latest view."""
    sink._ready.clear()
    families = parse_text(sink.body().data.decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(samples: Samples, metric: str, **labels: str) -> float | None:
    return samples.get((metric, frozenset(labels.items())))


def names(samples: Samples) -> set[str]:
    return {name for name, _ in samples}


def promtool(body: bytes, *, in_ci: bool) -> subprocess.CompletedProcess[bytes]:
    tool = shutil.which("promtool")
    if tool is None:
        assert not in_ci, "promtool is missing: apt-get install prometheus"
        pytest.skip("promtool is not installed")
    assert body  # promtool finds nothing wrong with nothing
    return subprocess.run([tool, "check", "metrics"], input=body, capture_output=True, timeout=30, check=False)


def test_promtool_finds_nothing_to_say(sink: PrometheusSink, in_ci: bool) -> None:
    sink.publish(metrics_view())
    checked = promtool(sink.body().data, in_ci=in_ci)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_openmetrics_is_valid_and_says_the_same(sink: PrometheusSink) -> None:
    sink.publish(metrics_view())
    body = sink.body(OPENMETRICS)
    assert body.content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in parse_openmetrics(body.data.decode())}
    assert body.data.endswith(b"# EOF\n")
    assert body.data.count(b"# EOF") == 1
    assert families["mlsecd_findings"].type == "counter"
    assert families["mlsecd_build"].type == "info"
    assert families["mlsecd_gpu_power_watts"].unit == "watts"
    assert not [name for name in families if name.endswith("_created")]
    text = {name for name, _ in scrape(sink)}
    assert {sample.name for family in families.values() for sample in family.samples} == text


def test_exemplars_lead_to_the_finding(sink: PrometheusSink) -> None:
    sink.publish(metrics_view())
    families = parse_openmetrics(sink.body(OPENMETRICS).data.decode())
    exemplars = [s.exemplar for f in families for s in f.samples if s.exemplar]
    assert [one.labels for one in exemplars] == [{"finding": "a" * 16}]
    assert b"a" * 16 + b'"} 1.0' not in sink.body().data.replace(b"\n", b" # ")  # not in the text format


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4"),
        ("text/plain", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text; version=999.9\r\nX: y", "application/openmetrics-text; version=1.0.0"),
    ],
)
def test_the_format_is_negotiated_and_never_echoed(sink: PrometheusSink, accept: str, kind: str) -> None:
    sink.publish(metrics_view())
    got = sink.body(accept).content_type
    assert got.startswith(kind)
    assert "\r" not in got
    assert "999" not in got


@pytest.mark.parametrize(
    ("header", "zipped"),
    [("", False), ("gzip", True), ("br, GZip;q=0.5", True), ("gzip; q=0", False), ("identity", False)],
)
def test_gzip_only_where_it_is_wanted(sink: PrometheusSink, header: str, zipped: bool) -> None:
    sink.publish(metrics_view())
    body = sink.body("", header)
    assert body.encoding == ("gzip" if zipped else None)
    plain = gzip.decompress(body.data) if zipped else body.data
    assert plain.startswith(b"# HELP mlsecd_findings_total")


def test_everything_exported_stands_in_the_catalogue(sink: PrometheusSink) -> None:
    sink.publish(metrics_view())
    known = {**CATALOG, **{spec.name: spec for spec in PROCESS}}
    for name, labels in scrape(sink):
        if name == "mlsecd_detector_calibration_clients":  # a detector's own gauge
            continue
        assert set(known[name].labels) == {label for label, _ in labels}, name
        assert name in markdown()


def test_the_catalogue_keeps_prometheus_rules() -> None:
    for spec in (*CATALOG.values(), *PROCESS):
        assert spec.name.startswith(("mlsecd_", "process_"))
        assert (spec.type is Type.COUNTER) == spec.name.endswith("_total")
        assert (spec.type is Type.INFO) == spec.name.endswith("_info")
        assert not spec.unit or spec.family.endswith(f"_{spec.unit}")
        assert re.fullmatch(r"[A-Z0-9].*\.", spec.help), spec.name
    assert len({spec.family for spec in CATALOG.values()}) == len(CATALOG)
    assert set(DETECTOR_STATES) == {str(state) for state in DetectorState}


def counted(path: Path) -> Iterator[tuple[str, str, frozenset[str]]]:
    """(method, metric, labels) of every call on meters in a file that names its metric."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            first = node.args[0]
            is_metric = isinstance(first, ast.Constant) and str(first.value).startswith("mlsecd_")
            if is_metric and node.func.attr in {"count", "gauge"}:
                yield node.func.attr, str(first.value), frozenset(str(word.arg) for word in node.keywords)


def test_what_any_room_counts_has_its_row() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        for method, name, labels in counted(path):
            assert name in CATALOG, f"{path.name} counts {name}: add a row to mlsecd/sinks/metrics_catalog.py"
            assert CATALOG[name].type == {"count": Type.COUNTER, "gauge": Type.GAUGE}[method]
            assert labels - {"amount"} == set(CATALOG[name].labels), name


def test_the_first_finding_of_any_kind_is_an_increase(sink: PrometheusSink) -> None:
    sink.publish(metrics_view(findings={}, latest={}))
    samples = scrape(sink)
    for detector in ("extraction_account", "drift_input"):
        for severity in Severity:
            labels = {"detector": detector, "severity": str(severity), "synthetic": "false"}
            assert value(samples, "mlsecd_findings_total", **labels) == 0.0
    for severity in Severity:
        assert value(samples, "mlsecd_findings_active", severity=str(severity), synthetic="true") == 0.0


def test_what_is_counted_is_shown(sink: PrometheusSink) -> None:
    sink.publish(metrics_view())
    got = scrape(sink)
    key = {"detector": "extraction_account", "severity": "high", "synthetic": "false"}
    assert value(got, "mlsecd_findings_total", **key) == 2.0
    assert value(got, "mlsecd_findings_total", detector="drift_input", severity="low", synthetic="true") == 1.0
    assert value(got, "mlsecd_findings_active", severity="high", synthetic="false") == 1.0
    assert value(got, "mlsecd_dropped_total", where="inbox", reason="full") == 3.0
    assert value(got, "mlsecd_queue_depth", queue="inbox") == 2.0
    assert value(got, "mlsecd_detector_calibration_clients", detector="extraction_account") == 2000.0
    assert value(got, "mlsecd_detector_last_run_timestamp_seconds", detector="extraction_account") == 1_700_000_000.0
    assert value(got, "mlsecd_detector_last_run_timestamp_seconds", detector="drift_input") is None
    assert value(got, "mlsecd_build_info", version="1.2.3", revision="abc123", python="3.11.7", backend="cpu") == 1.0
    assert value(got, "mlsecd_config_last_reload_successful") == 1.0
    assert value(got, "mlsecd_config_last_reload_success_timestamp_seconds") == 1_700_000_000.0
    assert value(got, "mlsecd_false_alarm_budget_per_week") == 1.0
    assert value(got, "mlsecd_forensic_log_tree_size") == 42.0
    assert value(got, "mlsecd_forensic_log_blocked") == 0.0
    assert (value(got, "process_resident_memory_bytes") or 0) > 1e6


def test_detector_states_are_one_of_seven(sink: PrometheusSink) -> None:
    sink.publish(metrics_view())
    samples = scrape(sink)
    states = {s: value(samples, "mlsecd_detector_state", detector="drift_input", state=s) for s in DETECTOR_STATES}
    assert states == {**dict.fromkeys(DETECTOR_STATES, 0.0), "learning": 1.0}


def test_sources_say_down_unsupported_and_not_polled_yet(sink: PrometheusSink) -> None:
    sink.publish(metrics_view())
    samples = scrape(sink)
    assert value(samples, "mlsecd_source_up", source="nvml") == 1.0
    assert value(samples, "mlsecd_source_up", source="otlp") == 0.0
    assert value(samples, "mlsecd_source_supported", source="otlp") == 0.0
    assert value(samples, "mlsecd_source_up", source="request_log") is None
    assert value(samples, "mlsecd_source_last_success_timestamp_seconds", source="request_log") is None


def test_gpu_numbers_are_in_base_units(sink: PrometheusSink) -> None:
    sink.publish(metrics_view())
    samples = scrape(sink)
    labels = {"gpu": gpu().gpu, "index": "0"}
    assert value(samples, "mlsecd_gpu_up", **labels) == 1.0
    assert value(samples, "mlsecd_gpu_utilization_ratio", **labels) == 0.5
    assert value(samples, "mlsecd_gpu_memory_used_bytes", **labels) == 40 * 2**30
    assert value(samples, "mlsecd_gpu_sm_clock_hertz", **labels) == 1.98e9
    assert value(samples, "mlsecd_gpu_remapped_rows_pending", **labels) == 0.0
    assert value(samples, "mlsecd_gpu_fan_ratio", **labels) is None  # NVML did not say: not 0
    info = {"name": "NVIDIA H100", "driver_version": "560.35.03", "mig_mode": "disabled", "ecc_mode": ""}
    assert value(samples, "mlsecd_gpu_info", **labels, **info, synthetic="false") == 1.0


def gpu_names(samples: Samples) -> set[str]:
    return {name for name in names(samples) if name.startswith("mlsecd_gpu_")}


def test_a_gpu_that_is_gone_takes_its_series_along(sink: PrometheusSink) -> None:
    sink.publish(metrics_view(gpus=[gpu(0), gpu(1)]))
    assert value(scrape(sink), "mlsecd_gpu_power_watts", gpu=gpu(1).gpu, index="1") == 411.5
    sink.publish(metrics_view(gpus=[gpu(0)]))
    samples = scrape(sink)
    assert value(samples, "mlsecd_gpu_power_watts", gpu=gpu(1).gpu, index="1") is None
    assert value(samples, "mlsecd_gpu_power_watts", gpu=gpu(0).gpu, index="0") == 411.5
    sink.publish(metrics_view(gpus=[]))
    assert gpu_names(scrape(sink)) == set()


@pytest.mark.parametrize(
    ("sample", "states"),
    [
        (gpu(state="lost"), {"lost": 1.0, "ok": 0.0}),
        (gpu(ts=time.time() - 31), {"lost": 0.0, "ok": 0.0}),
    ],
    ids=["lost", "silent"],
)
def test_a_gpu_that_does_not_answer_keeps_no_numbers(sink: PrometheusSink, sample: Any, states: Any) -> None:
    sink.publish(metrics_view(gpus=[sample]))
    samples = scrape(sink)
    labels = {"gpu": sample.gpu, "index": "0"}
    assert value(samples, "mlsecd_gpu_up", **labels) == 0.0
    assert gpu_names(samples) == {"mlsecd_gpu_up", "mlsecd_gpu_state", "mlsecd_gpu_info"}
    for state, want in states.items():
        assert value(samples, "mlsecd_gpu_state", **labels, state=state) == want


def test_label_values_are_one_printable_bounded_line(sink: PrometheusSink, in_ci: bool) -> None:
    nasty = 'say "hi"\\\nmlsecd_fake 1\r\x1b[31m \u202egnp.exe \ud800 ünïcode 漢字 ' + "x" * 500
    view = metrics_view(gpus=[gpu(name=nasty)], build=Build(nasty))
    sink.publish(view)
    body = sink.body().data
    assert b"\nmlsecd_fake" not in body
    assert not set(body.decode()) & set("\r\x1b\u202e")
    [label] = [dict(labels)["name"] for name, labels in scrape(sink) if name == "mlsecd_gpu_info"]
    assert label.startswith('say "hi"\\�mlsecd_fake 1��[31m �gnp.exe � ünïcode 漢字 x')
    assert len(label) == 128
    list(parse_openmetrics(sink.body(OPENMETRICS).data.decode()))
    assert promtool(body, in_ci=in_ci).returncode == 0


def test_no_subject_becomes_a_label(sink: PrometheusSink) -> None:
    evil = active("b" * 16, subject="Robert'); DROP TABLE", subject_kind="process", detector="process_new")
    fake = active("c" * 16, subject="not an id\n", subject_kind="campaign", detector="campaign_sybil")
    real = active("d" * 16, subject="c-0123456789abcdef", subject_kind="campaign", detector="campaign_sybil")
    sink.publish(metrics_view(active=[active(), evil, fake, real]))
    text = sink.body().data.decode()
    assert "k-3f9a1c77" not in text
    assert "Robert" not in text
    assert "not an id" not in text
    assert 'campaign="c-0123456789abcdef"' in text


def shown(sink: PrometheusSink) -> dict[str, str]:
    """finding -> slot"""
    found = [dict(labels) for name, labels in scrape(sink) if name == "mlsecd_finding_active"]
    return {one["finding"]: one["slot"] for one in found}


def test_an_active_finding_goes_when_it_is_resolved(sink: PrometheusSink) -> None:
    sink.publish(metrics_view(active=[active()]))
    assert shown(sink) == {"a" * 16: "0"}
    sink.publish(metrics_view(active=[]))
    assert shown(sink) == {}


def test_slots_are_kept_and_filled_again() -> None:
    slots = Slots(3)
    a, b, c, d = (active(name, first_ts=float(at)) for at, name in enumerate("abcd"))

    def place(*findings: Any) -> dict[str, int]:
        return {one.id: slot for slot, one in slots.place(findings)}

    assert place(a, b, c) == {"a": 0, "b": 1, "c": 2}
    assert place(c, b, a, d) == {"a": 0, "b": 1, "c": 2}  # the newer one of equals waits
    assert place(d, c, b) == {"d": 0, "b": 1, "c": 2}
    worse = active("e", severity=Severity.CRITICAL, first_ts=99.0)
    assert place(b, c, d, worse) == {"b": 1, "c": 2, "e": 0}
    assert place() == {}


def test_real_before_synthetic_severe_before_mild_and_no_detector_hides_another() -> None:
    flood = [active(f"f{i:02d}", detector="gpu_policy", first_ts=float(i)) for i in range(50)]
    late = active("late", detector="integrity_weights", first_ts=1_000.0)
    mild = active("mild", detector="drift_input", severity=Severity.LOW, first_ts=0.0)
    fake = active("fake", severity=Severity.CRITICAL, synthetic=True, first_ts=0.0)
    chosen = [one.id for _, one in Slots(5).place([*flood, late, mild, fake])]
    assert sorted(chosen) == ["f00", "f01", "f02", "f03", "late"]
    assert [one.id for _, one in Slots(5).place([fake, mild])] == ["mild", "fake"]


def test_series_are_capped_and_the_rest_counted() -> None:
    meters = Meters()
    sink = PrometheusSink(meters, max_series=100)
    many = {"mlsecd_dropped_total": {(("reason", "x"), ("where", f"w{i}")): 1.0 for i in range(1_000)}}
    sink.publish(metrics_view(counters=many))
    samples = scrape(sink)
    own = [key for key in samples if key[0].startswith("mlsecd_")]
    assert len(own) == 100
    assert meters.value("mlsecd_metrics_series") == 100
    assert meters.value("mlsecd_dropped_total", where="metrics", reason="max_series") > 900
    assert value(samples, "mlsecd_build_info", version="1.2.3", revision="abc123", python="3.11.7", backend="cpu")


def test_duplicates_and_bad_names_cost_themselves_alone() -> None:
    meters = Meters()
    sink = PrometheusSink(meters)
    long = "x" * 200
    counters = {
        "mlsecd_dropped_total": {(("reason", long + end), ("where", "w")): 1.0 for end in "ab"},
        "mlsecd_no_total_suffix": {(): 1.0},
        "Mlsecd bad{name}": {(): 1.0},
        "mlsecd_build_total": {(): 1.0},  # its family would be that of mlsecd_build_info
        "mlsecd_unheard_of_total": {(): 5.0},
    }
    gauges = {"mlsecd_things_total": {(): 1.0}, "mlsecd_source_up": {(("source", "nvml"),): 0.0}}
    detectors = [DetectorHealth("d", "armed", "", {"state": 9.0, "errors": 1.0, **{f"g{i}": 1.0 for i in range(20)}})]
    sink.publish(metrics_view(counters=counters, gauges=gauges, detectors=detectors))
    samples = scrape(sink)
    assert value(samples, "mlsecd_unheard_of_total") == 5.0
    assert value(samples, "mlsecd_source_up", source="nvml") == 1.0
    assert value(samples, "mlsecd_detector_state", detector="d", state="armed") == 1.0
    assert value(samples, "mlsecd_detector_state", detector="d") is None
    assert len([name for name in names(samples) if name.startswith("mlsecd_detector_g")]) == 14
    list(parse_openmetrics(sink.body(OPENMETRICS).data.decode()))
    assert meters.value("mlsecd_dropped_total", where="metrics", reason="duplicate") >= 2
    assert meters.value("mlsecd_dropped_total", where="metrics", reason="bad_name") >= 6
    assert meters.value("mlsecd_dropped_total", where="metrics", reason="detector_gauges") >= 6


def test_names_that_cannot_be_exported() -> None:
    assert describe("mlsecd_x_seconds", Type.GAUGE) is not None
    for name, kind in [("mlsecd_x_count", Type.GAUGE), ("x_total", Type.COUNTER), ("mlsecd_source_up", Type.COUNTER)]:
        assert describe(name, kind) is None
    assert getattr(describe("mlsecd_x_seconds", Type.GAUGE), "unit", None) == "seconds"


def test_before_the_first_view_only_the_process_is_shown(sink: PrometheusSink) -> None:
    assert all(name.startswith("process_") for name in names(scrape(sink)))


def test_a_registry_of_ones_own() -> None:
    registry = CollectorRegistry()
    Gauge("extra_thing", "Something else.", registry=registry).set(7)
    sink = PrometheusSink(Meters(), registry=registry)
    sink.publish(metrics_view())
    assert value(scrape(sink), "extra_thing") == 7.0
    with pytest.raises(ValueError, match="Duplicated"):
        Gauge("mlsecd_source_up", "A second owner.", registry=registry)


class Rendered(PrometheusSink):
    """Notes which thread rendered."""

    def __init__(self) -> None:
        super().__init__(Meters())
        self.threads: list[str] = []
        self.fail = False

    def _render(self, forms: Any) -> None:
        self.threads.append(threading.current_thread().name)
        if self.fail:
            raise RuntimeError("no")
        super()._render(forms)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rendered]:
    monkeypatch.setattr(prometheus, "_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(prometheus, "_FRESH_SECONDS", 0.4)
    sink = Rendered()
    sink.publish(metrics_view())
    sink.start()
    yield sink
    sink.stop()


def test_only_the_first_scrape_renders_in_its_caller(fast: Rendered) -> None:
    assert fast.threads == []  # nobody asked: nothing is rendered
    me = threading.current_thread().name
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        fast.body(OPENMETRICS, "gzip")
        time.sleep(0.01)
    assert fast.threads[0] == me
    assert set(fast.threads[1:]) == {"metrics-render"}
    assert 8 <= len(fast.threads) <= 22  # as often as it may, not as often as it is asked


def test_rendering_keeps_to_the_scrapers_rhythm(fast: Rendered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_LEAD_SECONDS", 0.15)
    for _ in range(4):
        before = len(fast.threads)
        fast.body()
        time.sleep(0.6)
    me = threading.current_thread().name
    assert fast.threads.count(me) == 1  # text was ready at every later visit,
    assert 1 <= len(fast.threads) - before <= 5  # though hardly anything was rendered between them


def test_scrapes_see_what_was_published_since(fast: Rendered) -> None:
    fast.body()
    fast.publish(metrics_view(budget_per_week=4.5))
    deadline = time.monotonic() + 5
    while b"budget_per_week 4.5" not in fast.body().data:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert fast.threads.count(threading.current_thread().name) == 1


def test_nobody_scrapes_nothing_is_rendered(fast: Rendered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_WANTED_SECONDS", 0.1)
    fast.body()
    time.sleep(0.4)
    count = len(fast.threads)
    time.sleep(0.3)
    assert len(fast.threads) == count
    fast.publish(metrics_view(budget_per_week=7.0))
    assert b"budget_per_week 7.0" in fast.body().data  # not the old text: it was rendered anew
    assert fast.threads[count] == threading.current_thread().name


def test_where_rendering_fails_scrapes_fail_and_nothing_is_frozen(fast: Rendered) -> None:
    fast.body()
    fast.fail = True
    time.sleep(0.7)
    with pytest.raises(RuntimeError):
        fast.body()
    assert fast._meters.value("mlsecd_dropped_total", where="metrics", reason="render_failed") > 0
    fast.fail = False
    assert fast.body().data


def test_a_crowd_of_first_scrapes_costs_one_rendering() -> None:
    sink = Rendered()
    sink.publish(metrics_view())
    crowd = [threading.Thread(target=sink.body) for _ in range(8)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert len(sink.threads) == 1


def test_stop_is_quick_and_may_come_before_start() -> None:
    PrometheusSink(Meters()).stop()
    sink = PrometheusSink(Meters())
    sink.start()
    sink.body()
    started = time.monotonic()
    sink.stop()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_the_text_is_prometheus_clients_own(accept: str) -> None:
    """Byte for byte, over changing views, vanishing series, odd labels, and kinds that mlsecd itself has not."""
    registry = CollectorRegistry()
    Histogram("extra_seconds", 'A "histogram"\\\n.', registry=registry).observe(0.3)
    Gauge("extra_gauge", 'A "gauge"\\\n.', ["z", "a"], registry=registry).labels('q"\n', "\\").set(1e22)
    sink = PrometheusSink(Meters(), registry=registry)
    oracle, content_type = choose_encoder(accept)
    for name in ("plain", 'q"uo\\te', "漢字"):
        sink.publish(metrics_view(gpus=[gpu(name=name), gpu(1)][: 1 + len(name) % 2], now=float(len(name))))
        metrics = list(registry.collect())
        frozen = SimpleNamespace(collect=lambda held=metrics: held)
        openmetrics = "openmetrics" in content_type
        assert sink._encoders[openmetrics][1].encode(metrics) == oracle(frozen)
        assert sink._encoders[openmetrics][0] == content_type


def test_series_that_are_gone_are_forgotten() -> None:
    sink = PrometheusSink(Meters())
    for i in range(40):
        rows = {(("reason", f"r{i}_{j}"), ("where", "w")): 1.0 for j in range(100)}
        sink.publish(metrics_view(counters={"mlsecd_dropped_total": rows}))
        scrape(sink)
    assert len(sink._encoders[False][1]._series) < 2_000
    assert len(sink._encoders[True][1]._series) == 0


def test_unchanged_families_are_not_written_again(sink: PrometheusSink, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    real = Encoder._family
    monkeypatch.setattr(Encoder, "_family", lambda self, metric: (written.append(metric.name), real(self, metric))[1])
    sample = gpu()
    sink.publish(metrics_view(now=1.0, gpus=[sample]))
    scrape(sink)
    assert "mlsecd_detector_state" in written
    written.clear()
    sink.publish(metrics_view(now=2.0, gpus=[sample]))
    scrape(sink)
    assert {name for name in written if not name.startswith(("process_", "mlsecd_metrics_"))} == {
        "mlsecd_heartbeat_timestamp_seconds"
    }
