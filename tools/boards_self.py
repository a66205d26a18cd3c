"""Dashboards of mlsecd itself, and of one finding over time."""

from __future__ import annotations

from typing import Final

from tools.board_parts import BY_DETECTOR, BY_SOURCE, SYNTHETIC, one, over_time
from tools.panels import Board, Panel

__all__ = ["FINDING", "SELF"]

SELF: Final = Board(
    "mlsecd-self",
    "mlsecd / Itself",
    "Whether mlsecd can do its work, and what it costs.",
    (
        (
            "Now",
            (
                one(
                    "Loop's last turn",
                    "Since the main loop last handed over what it knows, by Prometheus' clock.",
                    "max(timestamp(mlsecd_heartbeat_timestamp_seconds{@}) - mlsecd_heartbeat_timestamp_seconds{@})",
                    60,
                    "MlsecdLoopStalled",
                    "s",
                ),
                one("Log chains whole", "Hosts whose forensic log verified.", "sum(mlsecd_forensic_log_chain_ok{@})"),
                one(
                    "Last anchor",
                    "Since syslog was told how far a log came, the longest of all hosts; none: none is told.",
                    "max(mlsecd_heartbeat_timestamp_seconds{@} - on (job, instance) "
                    "mlsecd_forensic_log_anchor_timestamp_seconds{@}) or vector(-1)",
                    660,
                    "MlsecdForensicLogNotAnchored",
                    "s",
                    words=((-1, "none"),),
                ),
                one(
                    "Logs blocked",
                    "Hosts that cannot write their forensic log: findings wait in memory.",
                    "sum(mlsecd_forensic_log_blocked{@})",
                    1,
                    "MlsecdForensicLogBlocked",
                    width=3,
                ),
                one(
                    "Reloads refused",
                    "Hosts that run on another configuration than the one on disk.",
                    "sum(mlsecd_config_last_reload_successful{@} == bool 0)",
                    1,
                    "MlsecdReloadFailed",
                    width=3,
                ),
                one("Pages in a week", "All hosts.", "sum(mlsecd_pages_past_week{@})", width=3),
                one(
                    "Budget",
                    "Expected false pages a week, all hosts.",
                    "sum(mlsecd_false_alarm_budget_per_week{@})",
                    width=3,
                ),
            ),
        ),
        (
            "Sight",
            (
                Panel(
                    "states",
                    "Sources up",
                    "A source that this host cannot feed is down too; that is no fault.",
                    (("mlsecd_source_up{@}", BY_SOURCE),),
                    width=12,
                    height=14,
                    runbook="MlsecdSourceDown",
                ),
                Panel(
                    "states",
                    "Detectors that can judge",
                    "Learning, armed or shifted.",
                    (
                        (
                            'max by (instance, detector) (mlsecd_detector_state{@, state=~"learning|armed|shifted"})',
                            "{{instance}} {{detector}}",
                        ),
                    ),
                    width=12,
                    height=14,
                    runbook="MlsecdDetectorStalled",
                ),
                over_time(
                    "Records",
                    "What each source delivers.",
                    "rate(mlsecd_source_records_total{@}[$__rate_interval])",
                    "cps",
                    BY_SOURCE,
                ),
                over_time(
                    "Given up",
                    "What was given up at a limit was not judged.",
                    "sum by (where, reason) (rate(mlsecd_dropped_total{@}[$__rate_interval]))",
                    "cps",
                    "{{where}} {{reason}}",
                    "MlsecdDroppingRecords",
                ),
                over_time(
                    "Queues",
                    "Share of each queue that is full.",
                    "mlsecd_queue_depth{@} / mlsecd_queue_capacity{@}",
                    "percentunit",
                    "{{queue}}",
                ),
            ),
        ),
        (
            "Evidence",
            (
                over_time(
                    "Log lines",
                    "Under the hash chain. It must never shrink: Prometheus is the witness.",
                    "mlsecd_forensic_log_tree_size{@}",
                    "short",
                    runbook="MlsecdForensicLogChainBroken",
                ),
                over_time(
                    "Lines that wait",
                    "For the disk.",
                    "mlsecd_forensic_log_queued{@}",
                    "short",
                    runbook="MlsecdForensicLogBlocked",
                ),
                over_time(
                    "Clock steps",
                    "Jumps of the host's clock that the fold followed.",
                    "increase(mlsecd_clock_steps_total{@}[$__rate_interval])",
                    "short",
                    runbook="MlsecdClockStepped",
                ),
            ),
        ),
        (
            "Cost",
            (
                over_time(
                    "CPU", "Share of one core.", "rate(process_cpu_seconds_total{@}[$__rate_interval])", "percentunit"
                ),
                over_time("Memory", "Resident, main process.", "process_resident_memory_bytes{@}", "bytes"),
                over_time("Series", "In the last exposition.", "mlsecd_metrics_series{@}", "short"),
                over_time(
                    "Time in detectors",
                    "Seconds a second, by detector.",
                    "rate(mlsecd_detector_seconds_total{@}[$__rate_interval])",
                    "percentunit",
                    BY_DETECTOR,
                ),
                over_time(
                    "Time in sources",
                    "Seconds a second, by source.",
                    "rate(mlsecd_source_poll_seconds_total{@}[$__rate_interval])",
                    "percentunit",
                    BY_SOURCE,
                ),
                over_time(
                    "Errors",
                    "Steps of detectors that raised.",
                    "increase(mlsecd_detector_errors_total{@}[$__rate_interval])",
                    "short",
                    BY_DETECTOR,
                    "MlsecdDetectorFailing",
                ),
            ),
        ),
    ),
)

_READ: Final = """\
What this finding says of whom, and why, is on the host, never in metrics:

```sh
mlsecd log verify
jq '.unmapped.mlsecd | select(.id? == "$finding")' /var/log/mlsecd/*.jsonl
```
"""

FINDING: Final = Board(
    "mlsecd-finding",
    "mlsecd / Finding",
    "One finding over time. Dots on the other dashboards and ids in alerts lead here.",
    (
        (
            "$finding",
            (
                Panel("text", "Read it", "Where the finding itself is.", width=10, height=6, body=_READ),
                Panel(
                    "table",
                    "What and where",
                    "The finding as it is now; empty where it is resolved: widen the time above, and see the log.",
                    ((f'mlsecd_finding_active{{@, finding=~"$finding", {SYNTHETIC}}}', ""),),
                    width=14,
                    height=6,
                    runbook="README",
                ),
                Panel(
                    "states",
                    "From when to when",
                    "The series goes when mlsecd resolves the finding.",
                    (
                        (
                            f'mlsecd_finding_active{{@, finding=~"$finding", {SYNTHETIC}}}',
                            "{{detector}} {{severity}} {{finding}}",
                        ),
                    ),
                    width=24,
                    height=6,
                ),
            ),
        ),
    ),
    finding=True,
)
