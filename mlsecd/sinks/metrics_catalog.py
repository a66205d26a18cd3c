"""Every metric that mlsecd exports, in one table: the sink renders from it, and the documentation is made from it."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import Final

__all__ = [
    "CATALOG",
    "DETECTOR_GAUGE",
    "DETECTOR_GAUGES",
    "DETECTOR_STATES",
    "GPU_STATES",
    "PROCESS",
    "Spec",
    "Type",
    "describe",
    "markdown",
]


class Type(enum.StrEnum):
    """Metric types as OpenMetrics names them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric: its full name as it is scraped, its type, its base unit (or none), its help and its labels.

    ``family`` is what OpenMetrics calls it: without ``_total`` and ``_info``.
    """

    name: str
    type: Type
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    family: str = field(init=False)

    def __post_init__(self) -> None:
        suffix = {Type.COUNTER: "_total", Type.INFO: "_info", Type.GAUGE: ""}[self.type]
        object.__setattr__(self, "family", self.name.removesuffix(suffix))


# What a detector can do, as mlsecd.detectors.base.DetectorState says; spelt out, because sinks do not import detectors.
DETECTOR_STATES: Final = ("learning", "armed", "shifted", "stale", "mismatch", "saturated", "off")
GPU_STATES: Final = ("ok", "lost", "hung", "reset_required")

_UNITS: Final = ("seconds", "bytes", "ratio", "celsius", "watts", "joules", "hertz")
_NAME: Final = re.compile(r"mlsecd_[a-z0-9_]{1,100}")
_RESERVED: Final = ("_total", "_info", "_created", "_bucket", "_count", "_sum")

_FINDING = ("detector", "severity", "synthetic")
_GPU = ("gpu", "index")
_C, _G, _I = Type.COUNTER, Type.GAUGE, Type.INFO

_SPECS: Final = (
    # What was found.
    Spec("mlsecd_findings_total", _C, "", "Findings, counted once each when new.", _FINDING),
    Spec("mlsecd_findings_active", _G, "", "Findings that are not resolved, all of them.", ("severity", "synthetic")),
    Spec(
        "mlsecd_finding_active",
        _G,
        "",
        "1 for each of the worst unresolved findings; the series goes when its finding is resolved.",
        ("detector", "severity", "slot", "finding", "campaign", "synthetic", "certified"),
    ),
    Spec(
        "mlsecd_account_findings_active",
        _G,
        "",
        "Real findings about accounts that are not resolved, by whether an open campaign names the account.",
        ("detector", "severity", "in_campaign"),
    ),
    # What looks, and whether it can.
    Spec(
        "mlsecd_detector_state",
        _G,
        "",
        "1 for the state that the detector is in, 0 for the others.",
        ("detector", "state"),
    ),
    Spec(
        "mlsecd_detector_last_run_timestamp_seconds",
        _G,
        "seconds",
        "Event time of the last record that the detector judged.",
        ("detector",),
    ),
    Spec("mlsecd_source_up", _G, "", "1 where the source's last poll succeeded, else 0.", ("source",)),
    Spec("mlsecd_source_supported", _G, "", "0 where this host cannot feed the source, else 1.", ("source",)),
    Spec(
        "mlsecd_source_last_success_timestamp_seconds",
        _G,
        "seconds",
        "When the source's last successful poll ended.",
        ("source",),
    ),
    Spec("mlsecd_source_seen", _G, "", "Things that the source's last poll found.", ("source",)),
    Spec("mlsecd_source_expected", _G, "", "Things that the source's last poll should have found.", ("source",)),
    # The promise.
    Spec("mlsecd_false_alarm_budget_per_week", _G, "", "Expected false pages per host and week, as configured."),
    Spec("mlsecd_pages_past_week", _G, "", "Findings that paged in the past seven days, synthetic ones left out."),
    # The daemon itself.
    Spec(
        "mlsecd_build_info",
        _I,
        "",
        "What runs: version, source revision, Python and numeric backend.",
        ("version", "revision", "python", "backend"),
    ),
    Spec("mlsecd_kernels_on_gpu", _G, "", "1 while large batches are computed on a GPU, 0 while on the CPU."),
    Spec(
        "mlsecd_kernel_switches_total",
        _C,
        "",
        "Moves of large batches between CPU and GPU, by where to and why.",
        ("to", "reason"),
    ),
    Spec("mlsecd_heartbeat_timestamp_seconds", _G, "seconds", "When the main loop last handed over what it knows."),
    Spec("mlsecd_config_last_reload_successful", _G, "", "1 where the last configuration reload worked, else 0."),
    Spec(
        "mlsecd_config_last_reload_success_timestamp_seconds",
        _G,
        "seconds",
        "When the configuration in force was loaded.",
    ),
    Spec("mlsecd_forensic_log_blocked", _G, "", "1 while the forensic log cannot be written, else 0."),
    Spec("mlsecd_forensic_log_queued", _G, "", "Finding lines that wait for the forensic log."),
    Spec("mlsecd_forensic_log_chain_ok", _G, "", "1 where the log's hash chain was whole when last checked, else 0."),
    Spec("mlsecd_forensic_log_tree_size", _G, "", "Lines under the log's hash chain; it must never shrink."),
    Spec(
        "mlsecd_forensic_log_anchor_timestamp_seconds",
        _G,
        "seconds",
        "When syslog was last told the head of the log's chain; 0: never; no series: the log is not anchored.",
    ),
    Spec("mlsecd_forensic_log_anchor_interval_seconds", _G, "seconds", "How often syslog should be told."),
    Spec("mlsecd_forensic_log_anchor_failures_total", _C, "", "Times that syslog did not take the head."),
    Spec("mlsecd_metrics_series", _G, "", "Series in the last exposition."),
    Spec("mlsecd_metrics_render_seconds", _G, "seconds", "What rendering the last exposition took."),
    # GPUs, as NVML shows them; a GPU that does not answer keeps only up and state.
    Spec("mlsecd_gpu_up", _G, "", "1 where the GPU answered its last sample, else 0.", _GPU),
    Spec("mlsecd_gpu_state", _G, "", "1 for the state that the GPU is in; all 0: unknown.", (*_GPU, "state")),
    Spec(
        "mlsecd_gpu_info",
        _I,
        "",
        "What the GPU is and how it is set up.",
        (*_GPU, "name", "driver_version", "mig_mode", "ecc_mode", "synthetic"),
    ),
    Spec("mlsecd_gpu_utilization_ratio", _G, "ratio", "Share of time in which a kernel ran, 0 to 1.", _GPU),
    Spec("mlsecd_gpu_memory_utilization_ratio", _G, "ratio", "Share of time in which memory was busy, 0 to 1.", _GPU),
    Spec("mlsecd_gpu_memory_used_bytes", _G, "bytes", "Device memory in use.", _GPU),
    Spec("mlsecd_gpu_memory_total_bytes", _G, "bytes", "Device memory.", _GPU),
    Spec("mlsecd_gpu_memory_reserved_bytes", _G, "bytes", "Device memory that the driver keeps.", _GPU),
    Spec("mlsecd_gpu_power_watts", _G, "watts", "Power drawn.", _GPU),
    Spec("mlsecd_gpu_power_limit_watts", _G, "watts", "Power limit in force.", _GPU),
    Spec("mlsecd_gpu_energy_joules_total", _C, "joules", "Energy used since the driver was loaded.", _GPU),
    Spec("mlsecd_gpu_temperature_celsius", _G, "celsius", "Temperature of the GPU.", _GPU),
    Spec("mlsecd_gpu_memory_temperature_celsius", _G, "celsius", "Temperature of the device memory.", _GPU),
    Spec("mlsecd_gpu_fan_ratio", _G, "ratio", "Fan speed, 0 to 1.", _GPU),
    Spec("mlsecd_gpu_sm_clock_hertz", _G, "hertz", "Clock of the streaming multiprocessors.", _GPU),
    Spec("mlsecd_gpu_memory_clock_hertz", _G, "hertz", "Clock of the device memory.", _GPU),
    Spec("mlsecd_gpu_throttle_reasons", _G, "", "NVML's clocks event reasons, as a bit mask.", _GPU),
    Spec("mlsecd_gpu_ecc_corrected_total", _C, "", "Corrected memory errors since the driver was loaded.", _GPU),
    Spec("mlsecd_gpu_ecc_uncorrected_total", _C, "", "Uncorrected memory errors since the driver was loaded.", _GPU),
    Spec("mlsecd_gpu_remapped_rows_pending", _G, "", "1 where a row remapping waits for a reset, else 0.", _GPU),
    Spec("mlsecd_gpu_remapped_rows_failure", _G, "", "1 where a row remapping failed, else 0.", _GPU),
    Spec("mlsecd_gpu_pcie_replays_total", _C, "", "PCIe replays since the driver was loaded.", _GPU),
    Spec("mlsecd_gpu_encoder_utilization_ratio", _G, "ratio", "Share of time in which video was encoded.", _GPU),
    Spec("mlsecd_gpu_decoder_utilization_ratio", _G, "ratio", "Share of time in which video was decoded.", _GPU),
    Spec("mlsecd_gpu_remapped_rows_corrected", _G, "", "Memory rows that were replaced after corrected errors.", _GPU),
    Spec("mlsecd_gpu_remapped_rows_uncorrected", _G, "", "Memory rows replaced after uncorrected errors.", _GPU),
    Spec(
        "mlsecd_gpu_recovery_action", _G, "", "What NVML asks for: 0 nothing, 1 reset, 2 reboot, 3 drain, 4 both.", _GPU
    ),
    Spec("mlsecd_gpu_nvlink_crc_errors_total", _C, "", "NVLink CRC errors of flits and data, all links.", _GPU),
    Spec("mlsecd_gpu_nvlink_replays_total", _C, "", "NVLink replays, all links.", _GPU),
    Spec("mlsecd_gpu_nvlink_recoveries_total", _C, "", "NVLink recoveries, all links.", _GPU),
    Spec("mlsecd_gpu_nvlink_sent_bytes_total", _C, "bytes", "Data sent over NVLink, all links.", _GPU),
    Spec("mlsecd_gpu_nvlink_received_bytes_total", _C, "bytes", "Data received over NVLink, all links.", _GPU),
    Spec("mlsecd_gpu_pcie_sent_bytes_total", _C, "bytes", "Bytes that the GPU sent over PCIe.", _GPU),
    Spec("mlsecd_gpu_pcie_received_bytes_total", _C, "bytes", "Bytes that the GPU received over PCIe.", _GPU),
    Spec(
        "mlsecd_gpu_memory_free_bytes", _G, "bytes", "Device memory that is neither used nor kept by the driver.", _GPU
    ),
    Spec("mlsecd_gpu_graphics_active_ratio", _G, "ratio", "Share of time in which any engine worked (GPM).", _GPU),
    Spec("mlsecd_gpu_sm_active_ratio", _G, "ratio", "Share of multiprocessors that worked (GPM).", _GPU),
    Spec("mlsecd_gpu_tensor_active_ratio", _G, "ratio", "Share of time in which tensor cores worked (GPM).", _GPU),
    Spec("mlsecd_gpu_dram_active_ratio", _G, "ratio", "Share of the memory's bandwidth that was used (GPM).", _GPU),
    Spec("mlsecd_gpu_accounted_processes", _G, "", "Processes that the driver's accounting remembers.", _GPU),
    Spec("mlsecd_gpu_processes", _G, "", "Processes that NVML shows on the GPU.", _GPU),
    # What other rooms count in mlsecd.meters.
    Spec(
        "mlsecd_dropped_total",
        _C,
        "",
        "Records, bytes or lines that were given up at a limit.",
        ("where", "reason"),
    ),
    Spec("mlsecd_unknown_fields_total", _C, "", "Fields of records that mlsecd does not know.", ("where",)),
    Spec(
        "mlsecd_origin_requests_total",
        _C,
        "",
        "Real requests, by the servers and gateways that told of them.",
        ("origin",),
    ),
    Spec(
        "mlsecd_origin_requests_with_field_total",
        _C,
        "",
        "Real requests that carry the field, by the servers and gateways that told of them.",
        ("origin", "field"),
    ),
    Spec("mlsecd_requests_joined_total", _C, "", "Records that were joined with another source's of the same request."),
    Spec("mlsecd_source_records_total", _C, "", "Records that the source delivered.", ("source",)),
    Spec("mlsecd_source_polls_total", _C, "", "Polls of the source.", ("source",)),
    Spec("mlsecd_source_poll_seconds_total", _C, "seconds", "Time spent in polls of the source.", ("source",)),
    Spec("mlsecd_detector_errors_total", _C, "", "Steps of the detector that raised.", ("detector",)),
    Spec("mlsecd_detector_seconds_total", _C, "seconds", "Time spent in the detector.", ("detector",)),
    Spec("mlsecd_source_lag_bytes", _G, "bytes", "Bytes of the source's files that are not read yet.", ("source",)),
    Spec("mlsecd_log_truncations_total", _C, "", "Times that a followed file was cut or replaced.", ("source",)),
    Spec("mlsecd_gpu_xid_errors_total", _C, "", "Xid errors that the driver reported.", ("gpu", "xid")),
    Spec("mlsecd_gpu_xid_last_timestamp_seconds", _G, "seconds", "When that Xid last came.", ("gpu", "xid")),
    Spec("mlsecd_nvml_process_starts_total", _C, "", "Starts of the process that talks to NVML."),
    Spec("mlsecd_nvml_hangs_total", _C, "", "Times that NVML did not answer in time."),
    Spec("mlsecd_nvml_processes_abandoned", _G, "", "NVML processes that hang in the driver and cannot be ended."),
    Spec("mlsecd_requests_total", _C, "", "Request records that entered the fold.", ("synthetic",)),
    Spec("mlsecd_requests_with_field_total", _C, "", "Request records that carry the field.", ("field",)),
    Spec("mlsecd_findings_muted_total", _C, "", "Findings whose page an exception muted.", ("detector",)),
    Spec("mlsecd_snapshot_seconds", _G, "seconds", "What writing the last snapshot of the state took."),
    Spec("mlsecd_snapshot_failures_total", _C, "", "Snapshots of the state that could not be written."),
    Spec(
        "mlsecd_snapshot_last_success_timestamp_seconds",
        _G,
        "seconds",
        "When the state was last written to disk.",
    ),
    Spec(
        "mlsecd_selftest_success",
        _G,
        "",
        "1 where the detector passed the last `mlsecd selftest`, 0 where it failed.",
        ("detector",),
    ),
    Spec("mlsecd_selftest_timestamp_seconds", _G, "seconds", "When `mlsecd selftest` last ran."),
    Spec("mlsecd_queue_depth", _G, "", "What waits in a queue.", ("queue",)),
    Spec("mlsecd_queue_capacity", _G, "", "What a queue can hold.", ("queue",)),
    Spec("mlsecd_clock_steps_total", _C, "", "Jumps of the host's clock that the fold followed."),
    Spec("mlsecd_http_requests_total", _C, "", "HTTP requests answered.", ("path", "code")),
    Spec("mlsecd_http_connections", _G, "", "HTTP connections that are open."),
)

CATALOG: Final[dict[str, Spec]] = {spec.name: spec for spec in _SPECS}

# A detector's own bounded numbers (mlsecd.detectors.base.Standing.gauges); ``{gauge}`` is what it calls them.
DETECTOR_GAUGE: Final = Spec(
    "mlsecd_detector_{gauge}", _G, "", "Any other number that a detector gives of itself.", ("detector",)
)
DETECTOR_GAUGES: Final = {
    "gpus": "GPUs that the detector watches.",
    "refused": "Keys (GPUs, hosts, models, processes) that it had no room for, since the start.",
    # extraction_account
    "calibration_clients": "Ordinary clients behind the threshold; the fewest of all models.",
    "calibration_level": "Chance that an ordinary client alarms within an epoch; the highest of all models.",
    "calibration_level_upper": "Upper confidence limit of that chance; the highest of all models.",
    "calibration_certified": "1 where every model's level is certified by its calibration, else 0.",
    "calibration_timestamp_seconds": "Event time at which the oldest calibration recording ends.",
    "calibration_left_out": "Clients left out of the baseline by hand; certificates hold if these are not ordinary.",
    "calibration_suspects": "Clients of the baseline that score beyond what the others explain; of all models.",
    "calibration_models": "Models that the baseline is calibrated for.",
    "blind_channels": "Channels that cannot alarm alone; the most of all models.",
    "hot_clients": "Accounts with counts and a window of their last queries.",
    "cold_clients": "Accounts with counts only.",
    "evicted_clients": "Accounts that were forgotten to make room, since the start.",
    "unattributed_rows": "Requests that name no client, since the start.",
    "unscored_rows": "Requests with a client that could not be scored, since the start.",
    "mismatched_rows": "Requests whose vectors have other widths than the baseline's, since the start.",
    "retried_rows": "Exact repeats of an account's own queries, which are not judged twice, since the start.",
    "hiding_clients": "Accounts whose repeats and requests without a usable vector are counted.",
    "hiding_refused": "Accounts whose repeats and requests without a usable vector found no room, since the start.",
    "refused_rows": "Requests of accounts that there was no room for, since the start.",
    # campaign_extraction
    "accounts": "Accounts with a sketch in the current epoch.",
    # extraction_language
    "language_accounts": "Accounts whose requests to language models are counted.",
    "crowd_clients": "Ordinary clients that accounts together are held against; the fewest of all models.",
    "resellers": "Clients named as having many end users, since the start.",
    # extraction_parameters
    "parameter_clients": "Accounts whose requests' parameters are counted.",
    "suspect_clients": "Accounts that came a quarter of the way to an alarm.",
    "unsketched_rows": "Requests that may search for odds, but carry no sketch of their text, since the start.",
    # extraction_exposure
    "clients": "Accounts whose view of a model is counted.",
    "groups": "Networks, tenants and links whose view of a model is counted.",
    "evicted_groups": "Groups that were forgotten to make room, since the start.",
    "ranked_clients": "Accounts with enough queries to be ranked by what they have seen.",
    "ranked_groups": "Groups with enough queries to be ranked by what they have seen.",
    "exposed_clients": "Ranked accounts that have seen more than min_ratio times what the median ordinary client has.",
    "coverage_max_ratio": "Most that a ranked account has seen, in times the median ordinary client's; from 5 on.",
    # drift_requests
    "models": "Models that the detector holds.",
    "armed_models": "Models that are held against a reference.",
    "shifted_models": "Models that have left their reference.",
    "streams": "Numbers of requests that are watched, over all models.",
    "silent_streams": "Watched numbers that requests hardly carry any more.",
    "reference_rows": "Requests behind a model's reference; the fewest of all models.",
    "reference_timestamp_seconds": "Event time at which the oldest reference ends.",
    "reference_age_seconds": "Event time since the oldest reference ended.",
    "provisional_models": "Models held against the beginning of a reference that is still learned.",
    "seasonal_models": "Models whose reference knows a daily or weekly season.",
    "psi": "Largest population stability index of any stream's latest 128 to 256 rows; chance gives 0.1 to 0.2.",
    "tenants": "Clients that dominate a model and are held against a reference of their own.",
    "minimum_effect": "Smallest shift, in standard deviations, that half of a model's numbers show.",
    # drift_gpu
    "armed_gpus": "GPUs that are held against a reference.",
    "shifted_gpus": "GPUs that answer their load otherwise than they used to.",
    # gpu_foreign_process
    "gpu_processes": "Processes on GPUs, as last sampled.",
    "unread_processes": "Processes on GPUs that are not judged: their executable could not be read.",
    "allow_entries": "Entries of the allow list in force.",
    # gpu_unlisted_process
    "gpu_holders": "Processes that have a GPU's memory device open.",
    # gpu_short_jobs
    "accounting_gpus": "GPUs whose driver accounts for processes that have ended.",
    "jobs": "Processes on GPUs that accounting saw end, since the start.",
    "unseen_jobs": "Those of them that no sample had shown, since the start.",
    "unnamed_jobs": "Those of the unseen ones whose program no process table caught either.",
    # gpu_power_unexplained
    "baseline_gpus": "GPUs whose ordinary power the baseline holds.",
    # gpu_posture
    "checks_passed": "Checks of settings and versions that hold.",
    "checks_failed": "Checks of settings and versions that do not hold.",
    "checks_unknown": "Checks that this host does not tell enough for.",
    "changed_settings": "Settings that differ from their reference.",
    # exposure_services
    "listeners": "Processes that listen on a port, as last seen.",
    # process_inference
    "servers": "Inference servers that are watched.",
    "undeclared_servers": "Servers of a systemd unit whose files could not be read.",
    "versions_passed": "Versions of listening services that have no known hole.",
    "versions_failed": "Versions of listening services below their floor.",
    "versions_unknown": "Versions of listening services that cannot be told.",
    # integrity_weights
    "files": "Model files that are watched.",
    "file_users": "Processes that had one of them open or mapped at the last look.",
    # egress_bytes
    "senders": "GPU processes whose bytes are counted.",
    # gpu_hidden_memory
    "judged_gpus": "GPUs of which NVML tells enough to be judged.",
    # gpu_load_without_requests
    "hosts": "Hosts whose GPUs are watched.",
    "blind_hosts": "Hosts on which a request would not be seen, so that nothing is judged.",
    "idle_levels": "GPUs whose idle power is known from the baseline.",
    # gpu_lost
    "expected_gpus": "GPUs that should be there.",
    "unwell_gpus": "GPUs that are lost, hang or need a reset.",
}

# prometheus_client's ProcessCollector adds these.
PROCESS: Final = (
    Spec("process_cpu_seconds_total", _C, "seconds", "User and system time used."),
    Spec("process_resident_memory_bytes", _G, "bytes", "Resident memory."),
    Spec("process_virtual_memory_bytes", _G, "bytes", "Virtual memory."),
    Spec("process_start_time_seconds", _G, "seconds", "When the process started."),
    Spec("process_open_fds", _G, "", "Open file descriptors."),
    Spec("process_max_fds", _G, "", "Limit of open file descriptors."),
)

_GAUGE_HELP: Final = {DETECTOR_GAUGE.name.format(gauge=gauge): about for gauge, about in DETECTOR_GAUGES.items()}
_FAMILIES: Final = frozenset(spec.family for spec in _SPECS)


def describe(name: str, kind: Type, labels: tuple[str, ...] = ()) -> Spec | None:
    """The metric's row; one made up for a well-formed name that has none, ``None`` for a name that cannot be exported.

    A row that somebody forgot must not cost the operator the numbers, so such metrics are exported all
    the same; a test fails on them.
    """
    known = CATALOG.get(name)
    if known is not None:
        return known if known.type is kind else None
    about = _GAUGE_HELP.get(name, "See the file that counts it.")
    spec = Spec(name, kind, "", about, labels)
    plain = not spec.family.endswith(_RESERVED) and (kind is not Type.COUNTER or name.endswith("_total"))
    if not plain or not _NAME.fullmatch(name) or spec.family in _FAMILIES:
        return None
    return Spec(name, kind, _unit(spec.family), about, labels)


def _unit(family: str) -> str:
    return next((unit for unit in _UNITS if family.endswith(f"_{unit}")), "")


def markdown() -> str:
    """The table for the documentation."""
    rows = ["| metric | type | unit | labels | meaning |", "|---|---|---|---|---|"]
    own = (Spec(name, _G, _unit(name), about, ("detector",)) for name, about in _GAUGE_HELP.items())
    for spec in (*_SPECS, *own, DETECTOR_GAUGE, *PROCESS):
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        rows.append(f"| `{spec.name}` | {spec.type} | {spec.unit} | {labels} | {spec.help} |")
    return "\n".join(rows) + "\n"
