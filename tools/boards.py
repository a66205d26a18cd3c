"""Dashboards of findings and requests. ``@`` is the selector of job and instance; tools/panels.py makes the JSON."""

from __future__ import annotations

from typing import Final

from tools.board_parts import BY_DETECTOR, BY_HOST, CARRIED, SYNTHETIC, found, gauge, one
from tools.boards_host import GPU, HOST
from tools.boards_self import FINDING, SELF
from tools.panels import Board, Panel

__all__ = ["BOARDS"]

OVERVIEW: Final = Board(
    "mlsecd-overview",
    "mlsecd / Overview",
    "All hosts that mlsecd watches: what is open, what is blind.",
    (
        (
            "Now",
            (
                one("Hosts watched", "Hosts that answered the last scrape.", "count(mlsecd_build_info{@})"),
                one(
                    "Open: critical and high",
                    "Findings that page and are not resolved.",
                    f'sum(mlsecd_findings_active{{@, severity=~"critical|high", {SYNTHETIC}}})',
                    1,
                    "README",
                ),
                one(
                    "Open: medium",
                    "Findings that are a ticket and are not resolved.",
                    f'sum(mlsecd_findings_active{{@, severity="medium", {SYNTHETIC}}})',
                    1,
                    "README",
                ),
                one(
                    "Pages in a week",
                    "Findings that paged in the past seven days, over all hosts.",
                    "sum(mlsecd_pages_past_week{@})",
                ),
                one(
                    "Sources down",
                    "Sources that this host can feed and that deliver nothing.",
                    "sum((mlsecd_source_up{@} == bool 0) * mlsecd_source_supported{@})",
                    1,
                    "MlsecdSourceDown",
                ),
                one(
                    "Detectors impaired",
                    "Detectors that are stale, saturated or do not fit what they are fed.",
                    'sum(mlsecd_detector_state{@, state=~"stale|mismatch|saturated"})',
                    1,
                    "MlsecdDetectorMismatch",
                ),
            ),
        ),
        ("Findings", found(".+", "README", height=14)),
        (
            "Traffic",
            (
                Panel(
                    "lines",
                    "Requests seen",
                    "Request records that entered the fold.",
                    (("sum by (instance) (rate(mlsecd_requests_total{@}[$__rate_interval]))", BY_HOST),),
                    unit="reqps",
                ),
                Panel(
                    "lines",
                    "GPU utilisation",
                    "Mean over the GPUs of a host: the share of time in which a kernel ran.",
                    (("avg by (instance) (mlsecd_gpu_utilization_ratio{@})", BY_HOST),),
                    unit="percentunit",
                ),
                Panel(
                    "lines",
                    "Given up",
                    "Records, bytes or lines that were given up at a limit: what was dropped was not judged.",
                    (
                        (
                            "sum by (where, reason) (rate(mlsecd_dropped_total{@}[$__rate_interval]))",
                            "{{where}} {{reason}}",
                        ),
                    ),
                    unit="cps",
                    runbook="MlsecdDroppingRecords",
                ),
            ),
        ),
    ),
)

EXTRACTION: Final = Board(
    "mlsecd-extraction",
    "mlsecd / Extraction",
    "Accounts and campaigns that copy a model through its own API, and how well the detectors can tell.",
    (
        ("Findings", found("extraction_.+|campaign_.+", "MlsecdExtraction")),
        (
            "Accounts",
            (
                gauge(
                    "Accounts held closely",
                    "Accounts with a window of their last queries.",
                    "mlsecd_detector_hot_clients",
                    width=6,
                ),
                gauge("Accounts held by counts", "Accounts with counts only.", "mlsecd_detector_cold_clients", width=6),
                Panel(
                    "lines",
                    "Requests that nobody can judge",
                    "Per second, of the detector that misses most: no client, no vector, or one of another width.",
                    (
                        (
                            "max(deriv(mlsecd_detector_unattributed_rows{@}[$__rate_interval]))",
                            "no client",
                        ),
                        (
                            "max(deriv(mlsecd_detector_unscored_rows{@}[$__rate_interval]))",
                            "no vector",
                        ),
                        (
                            "max(deriv(mlsecd_detector_mismatched_rows{@}[$__rate_interval]))",
                            "other width",
                        ),
                    ),
                    unit="reqps",
                    width=12,
                    runbook="MlsecdDetectorMismatch",
                ),
                Panel(
                    "lines",
                    "What requests carry",
                    "Share of request records with each field: a detector does not see what a record does not carry.",
                    ((CARRIED, "{{field}}"),),
                    unit="percentunit",
                    width=24,
                    fill=0,
                ),
            ),
        ),
        (
            "The promise",
            (
                gauge(
                    "Chance of a false alarm",
                    "For an ordinary account in an epoch, as calibrated; the highest of all models.",
                    "mlsecd_detector_calibration_level",
                    "percentunit",
                ),
                gauge(
                    "Its upper limit",
                    "95 % confidence limit of that chance, given how many accounts calibrated it.",
                    "mlsecd_detector_calibration_level_upper",
                    "percentunit",
                ),
                Panel(
                    "lines",
                    "Age of the calibration",
                    "Since the recording behind it ended; 0: that has no date. After thirty days there is a ticket.",
                    (
                        (
                            (
                                "(mlsecd_heartbeat_timestamp_seconds{@} - on (job, instance) group_right () "
                                "mlsecd_detector_calibration_timestamp_seconds{@}) "
                                "* (mlsecd_detector_calibration_timestamp_seconds{@} > bool 1e9)"
                            ),
                            BY_DETECTOR,
                        ),
                    ),
                    unit="s",
                    runbook="MlsecdCalibrationStale",
                ),
            ),
        ),
    ),
)

DRIFT: Final = Board(
    "mlsecd-drift",
    "mlsecd / Drift",
    "Whether requests and answers are still what they were, and against what they are held. Which number moved, from "
    "where to where, stands in the finding's evidence: on the host's landing page and in its log.",
    (
        ("Findings", found("drift_.+", "MlsecdDrift")),
        (
            "Models",
            (
                Panel(
                    "lines",
                    "Models held against a reference, and those that left it",
                    "A model that has left its reference stays shifted until it is back or a new reference is learnt.",
                    (
                        ("sum by (detector) (mlsecd_detector_armed_models{@})", "{{detector}} held"),
                        ("sum by (detector) (mlsecd_detector_shifted_models{@})", "{{detector}} shifted"),
                    ),
                    runbook="MlsecdDrift",
                ),
                Panel(
                    "lines",
                    "Numbers watched, and those that fell silent",
                    "A number that requests hardly carry any more cannot drift: look at what changed in the tap.",
                    (
                        ("sum by (detector) (mlsecd_detector_streams{@})", "{{detector}} watched"),
                        ("sum by (detector) (mlsecd_detector_silent_streams{@})", "{{detector}} silent"),
                    ),
                ),
                gauge(
                    "Requests behind the reference",
                    "Of the model that has the fewest: few rows, wide limits.",
                    "mlsecd_detector_reference_rows",
                ),
            ),
        ),
        (
            "Before and after",
            (
                Panel(
                    "lines",
                    "What requests carry: now and before",
                    "Share of request records with each field; what changed at the tap shows as two lines apart.",
                    (
                        (CARRIED, "{{field}} now"),
                        (CARRIED.replace("$__rate_interval]", "$__rate_interval] offset $before"), "{{field}} before"),
                    ),
                    unit="percentunit",
                    width=12,
                    height=10,
                    fill=0,
                ),
                Panel(
                    "lines",
                    "Requests: now and before",
                    "The rate of request records, and the same at the time chosen above.",
                    (
                        ("sum (rate(mlsecd_requests_total{@}[$__rate_interval]))", "now"),
                        ("sum (rate(mlsecd_requests_total{@}[$__rate_interval] offset $before))", "before"),
                    ),
                    unit="reqps",
                    width=12,
                    height=10,
                ),
            ),
        ),
    ),
    before=True,
)

BOARDS: Final = (OVERVIEW, EXTRACTION, DRIFT, GPU, HOST, SELF, FINDING)
