"""A view as series: which number goes under which name. No threads, no rendering."""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

from prometheus_client.core import Exemplar

from mlsecd.records import GpuSample, Severity
from mlsecd.sinks.metrics_catalog import CATALOG, DETECTOR_GAUGE, DETECTOR_STATES, GPU_STATES, Type
from mlsecd.sinks.metrics_page import Page
from mlsecd.sinks.metrics_view import ActiveFinding, MetricsView

__all__ = ["Slots", "fill"]

_RANKS: Final = {severity: severity.rank for severity in Severity}
_GAUGES_MAX: Final = 16  # numbers that a detector may give of itself
_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,63}")

# GpuSample field -> metric; a field that is None has no series.
_GPU_FIELDS: Final = {
    "utilization": "mlsecd_gpu_utilization_ratio",
    "memory_utilization": "mlsecd_gpu_memory_utilization_ratio",
    "memory_used_bytes": "mlsecd_gpu_memory_used_bytes",
    "memory_total_bytes": "mlsecd_gpu_memory_total_bytes",
    "memory_reserved_bytes": "mlsecd_gpu_memory_reserved_bytes",
    "power_watts": "mlsecd_gpu_power_watts",
    "power_limit_watts": "mlsecd_gpu_power_limit_watts",
    "energy_joules": "mlsecd_gpu_energy_joules_total",
    "temperature_celsius": "mlsecd_gpu_temperature_celsius",
    "memory_temperature_celsius": "mlsecd_gpu_memory_temperature_celsius",
    "fan_ratio": "mlsecd_gpu_fan_ratio",
    "sm_clock_hz": "mlsecd_gpu_sm_clock_hertz",
    "memory_clock_hz": "mlsecd_gpu_memory_clock_hertz",
    "throttle_reasons": "mlsecd_gpu_throttle_reasons",
    "ecc_corrected": "mlsecd_gpu_ecc_corrected_total",
    "ecc_uncorrected": "mlsecd_gpu_ecc_uncorrected_total",
    "remapped_rows_pending": "mlsecd_gpu_remapped_rows_pending",
    "remapped_rows_failure": "mlsecd_gpu_remapped_rows_failure",
    "pcie_replays": "mlsecd_gpu_pcie_replays_total",
    "encoder_utilization": "mlsecd_gpu_encoder_utilization_ratio",
    "decoder_utilization": "mlsecd_gpu_decoder_utilization_ratio",
    "remapped_rows_corrected": "mlsecd_gpu_remapped_rows_corrected",
    "remapped_rows_uncorrected": "mlsecd_gpu_remapped_rows_uncorrected",
    "recovery_action": "mlsecd_gpu_recovery_action",
    "nvlink_crc_errors": "mlsecd_gpu_nvlink_crc_errors_total",
    "nvlink_replays": "mlsecd_gpu_nvlink_replays_total",
    "nvlink_recoveries": "mlsecd_gpu_nvlink_recoveries_total",
    "nvlink_sent_bytes": "mlsecd_gpu_nvlink_sent_bytes_total",
    "nvlink_received_bytes": "mlsecd_gpu_nvlink_received_bytes_total",
    "pcie_sent_bytes": "mlsecd_gpu_pcie_sent_bytes_total",
    "pcie_received_bytes": "mlsecd_gpu_pcie_received_bytes_total",
    "graphics_active": "mlsecd_gpu_graphics_active_ratio",
    "sm_active": "mlsecd_gpu_sm_active_ratio",
    "tensor_active": "mlsecd_gpu_tensor_active_ratio",
    "dram_active": "mlsecd_gpu_dram_active_ratio",
    "accounted": "mlsecd_gpu_accounted_processes",
}


class Slots:
    """The worst unresolved findings, each in a slot that it keeps for as long as it is shown.

    The real ones come before synthetic ones and the severe before the mild. Among equals every
    detector's first finding comes before any detector's second, so that a flood in one detector hides
    nothing of the others, and the older comes first, so that a series does not come and go.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._slot: dict[str, int] = {}

    def place(self, active: Sequence[ActiveFinding]) -> list[tuple[int, ActiveFinding]]:
        """The findings to show, with their slots."""
        shown = _worst(active, self._top)
        kept = {one.id: self._slot[one.id] for one in shown if one.id in self._slot}
        free = itertools.filterfalse(frozenset(kept.values()).__contains__, range(self._top))
        self._slot = kept | {one.id: next(free) for one in shown if one.id not in kept}
        return sorted(((self._slot[one.id], one) for one in shown), key=lambda pair: pair[0])


def _worst(active: Sequence[ActiveFinding], top: int) -> list[ActiveFinding]:
    groups: defaultdict[tuple[bool, int, str], dict[str, ActiveFinding]] = defaultdict(dict)
    for one in active:
        groups[one.synthetic, -_RANKS[one.severity], one.detector][one.id] = one
    ranked = [
        ((synthetic, rank, turn, one.first_ts, one.id), one)
        for (synthetic, rank, _), group in groups.items()
        for turn, one in enumerate(heapq.nsmallest(top, group.values(), key=lambda one: (one.first_ts, one.id)))
    ]
    ranked.sort(key=lambda pair: pair[0])
    return [one for _, one in ranked[:top]]


def fill(page: Page, view: MetricsView, slots: Slots, now: float, gpu_stale_seconds: float) -> None:
    """Write a view's series to a page, the ones that alerts hang on first: a cap cuts from the end."""
    _findings(page, view, slots)
    _detectors(page, view)
    _sources(page, view)
    _daemon(page, view)
    for sample in view.gpus:
        _gpu(page, sample, stale=now - sample.ts > gpu_stale_seconds)
    for name, series in view.counters.items():
        for labels, value in series.items():
            page.add_named(name, Type.COUNTER, labels, value)
    for name, series in view.gauges.items():
        for labels, value in series.items():
            page.add_named(name, Type.GAUGE, labels, value)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _findings(page: Page, view: MetricsView, slots: Slots) -> None:
    # a counter that appears with its first finding hides that finding from increase()
    counts = {(one.name, severity, False): 0.0 for one in view.detectors for severity in Severity}
    counts.update(view.findings)
    for key, count in counts.items():
        detector, severity, synthetic = key
        last = view.latest.get(key)
        exemplar = Exemplar({"finding": last[0]}, 1.0, last[1]) if last and _ID.fullmatch(last[0]) else None
        page.add("mlsecd_findings_total", count, detector, severity, _flag(synthetic), exemplar=exemplar)
    unresolved = Counter((one.severity, one.synthetic) for one in view.active)
    for severity, synthetic in itertools.product(Severity, (False, True)):
        page.add("mlsecd_findings_active", unresolved[severity, synthetic], severity, _flag(synthetic))
    for (detector, severity, in_campaign), unresolved_accounts in view.accounts.items():
        page.add("mlsecd_account_findings_active", unresolved_accounts, detector, severity, _flag(in_campaign))
    for slot, one in slots.place(view.active):
        # only ids that mlsecd made become labels: a subject may be text that an attacker chose
        campaign = one.subject if one.subject_kind == "campaign" and _ID.fullmatch(one.subject) else ""
        flags = (_flag(one.synthetic), _flag(one.certified))
        page.add("mlsecd_finding_active", 1.0, one.detector, one.severity, str(slot), one.id, campaign, *flags)


def _detectors(page: Page, view: MetricsView) -> None:
    for one in view.detectors:
        for state in DETECTOR_STATES:
            page.add("mlsecd_detector_state", one.state == state, one.name, state)
        page.add("mlsecd_detector_last_run_timestamp_seconds", one.last_run, one.name)
        for gauge, value in itertools.islice(one.gauges.items(), _GAUGES_MAX):
            name = DETECTOR_GAUGE.name.format(gauge=gauge)
            if name in CATALOG:
                page.dropped["bad_name"] += 1  # a detector does not write what is said about it
            else:
                page.add_named(name, Type.GAUGE, (("detector", one.name),), value)
        page.dropped["detector_gauges"] += max(0, len(one.gauges) - _GAUGES_MAX)


def _sources(page: Page, view: MetricsView) -> None:
    for one in view.sources:
        page.add("mlsecd_source_up", one.up, one.name)
        page.add("mlsecd_source_supported", not one.unsupported, one.name)
        page.add("mlsecd_source_last_success_timestamp_seconds", one.last_success, one.name)
        page.add("mlsecd_source_seen", one.seen, one.name)
        page.add("mlsecd_source_expected", one.expected, one.name)


def _daemon(page: Page, view: MetricsView) -> None:
    build = view.build
    page.add("mlsecd_build_info", 1.0, build.version, build.revision, build.python, build.backend)
    page.add("mlsecd_heartbeat_timestamp_seconds", view.now)
    page.add("mlsecd_config_last_reload_successful", view.reload_successful)
    page.add("mlsecd_config_last_reload_success_timestamp_seconds", view.reloaded)
    page.add("mlsecd_false_alarm_budget_per_week", view.budget_per_week)
    page.add("mlsecd_pages_past_week", view.pages_past_week)
    if view.log is not None:
        page.add("mlsecd_forensic_log_blocked", view.log.blocked)
        page.add("mlsecd_forensic_log_queued", view.log.queued)
        page.add("mlsecd_forensic_log_chain_ok", view.log.chain_ok)
        page.add("mlsecd_forensic_log_tree_size", view.log.tree_size)


def _gpu(page: Page, sample: GpuSample, *, stale: bool) -> None:
    """One GPU's gauges. Of one that does not answer, or whose last answer is old, only that is said."""
    gpu, index = sample.gpu, "" if sample.index is None else str(sample.index)
    up = sample.state == "ok" and not stale
    page.add("mlsecd_gpu_up", up, gpu, index)
    state = "unknown" if stale and sample.state == "ok" else sample.state
    for name in GPU_STATES:
        page.add("mlsecd_gpu_state", name == state, gpu, index, name)
    posture = [sample.posture.get(key, "") for key in ("driver_version", "mig_mode", "ecc_mode")]
    page.add("mlsecd_gpu_info", 1.0, gpu, index, sample.name or "", *posture, _flag(sample.synthetic))
    if not up:
        return
    for field, metric in _GPU_FIELDS.items():
        page.add(metric, getattr(sample, field), gpu, index)
    page.add("mlsecd_gpu_memory_free_bytes", _free(sample), gpu, index)
    page.add("mlsecd_gpu_processes", None if sample.processes is None else len(sample.processes), gpu, index)


def _free(sample: GpuSample) -> int | None:
    """What a program could still take; older drivers count what they keep as used."""
    if sample.memory_total_bytes is None or sample.memory_used_bytes is None:
        return None
    return max(0, sample.memory_total_bytes - sample.memory_used_bytes - (sample.memory_reserved_bytes or 0))
