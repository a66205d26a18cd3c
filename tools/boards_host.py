"""Dashboards of the host: its GPUs, and what runs, listens and leaves there."""

from __future__ import annotations

from typing import Final

from tools.board_parts import BY_GPU, found, one, over_time
from tools.panels import Board, Panel

__all__ = ["GPU", "HOST"]

_HOST: Final = "process_.+|exposure_.+|integrity_.+|egress_.+|gpu_foreign_process"


def _gpu(title: str, about: str, expr: str, unit: str, legend: str = BY_GPU) -> Panel:
    return Panel("lines", title, about, ((expr.replace("@", '@, gpu=~"$gpu"'), legend),), unit=unit, height=8)


GPU: Final = Board(
    "mlsecd-gpu",
    "mlsecd / GPU",
    "Every GPU as NVML sees it, in base units, and who abuses it.",
    (
        ("Findings", found("gpu_.+", "MlsecdForeignGpuProcess", height=8)),
        (
            "Now",
            (
                one("GPUs that answer", "GPUs that answered their last sample.", 'sum(mlsecd_gpu_up{@, gpu=~"$gpu"})'),
                one(
                    "GPUs that do not",
                    "Lost, hung, in need of a reset, or not heard of for half a minute.",
                    'sum(mlsecd_gpu_up{@, gpu=~"$gpu"} == bool 0)',
                    1,
                    "MlsecdGpuLost",
                ),
                one(
                    "GPU utilisation", "Mean.", 'avg(mlsecd_gpu_utilization_ratio{@, gpu=~"$gpu"})', unit="percentunit"
                ),
                one("Power", "All GPUs together.", 'sum(mlsecd_gpu_power_watts{@, gpu=~"$gpu"})', unit="watt"),
                one(
                    "Hottest",
                    "The highest temperature.",
                    'max(mlsecd_gpu_temperature_celsius{@, gpu=~"$gpu"})',
                    90,
                    unit="celsius",
                ),
                one("Processes", "Processes on GPUs, as NVML shows them.", 'sum(mlsecd_gpu_processes{@, gpu=~"$gpu"})'),
            ),
        ),
        (
            "Each GPU",
            (
                _gpu("GPU temperature", "Of the chip.", "mlsecd_gpu_temperature_celsius{@}", "celsius"),
                _gpu("GPU power usage", "Power drawn.", "mlsecd_gpu_power_watts{@}", "watt"),
                _gpu(
                    "GPU SM clocks", "Clock of the streaming multiprocessors.", "mlsecd_gpu_sm_clock_hertz{@}", "hertz"
                ),
                _gpu(
                    "GPU utilisation",
                    "Share of time in which a kernel ran.",
                    "mlsecd_gpu_utilization_ratio{@}",
                    "percentunit",
                ),
                _gpu("Framebuffer memory used", "Device memory in use.", "mlsecd_gpu_memory_used_bytes{@}", "bytes"),
                _gpu(
                    "Memory bandwidth in use",
                    "Share of time in which memory was busy.",
                    "mlsecd_gpu_memory_utilization_ratio{@}",
                    "percentunit",
                ),
                _gpu(
                    "Memory temperature", "Of the device memory.", "mlsecd_gpu_memory_temperature_celsius{@}", "celsius"
                ),
                _gpu("Processes", "Processes that NVML shows on the GPU.", "mlsecd_gpu_processes{@}", "short"),
                _gpu(
                    "Power by energy",
                    "From the energy counter: it sees what falls between two samples.",
                    "rate(mlsecd_gpu_energy_joules_total{@}[$__rate_interval])",
                    "watt",
                ),
                _gpu(
                    "Memory errors, uncorrected",
                    "ECC errors that lost data.",
                    "increase(mlsecd_gpu_ecc_uncorrected_total{@}[$__rate_interval])",
                    "short",
                ),
                _gpu(
                    "Memory errors, corrected",
                    "ECC errors that were repaired.",
                    "increase(mlsecd_gpu_ecc_corrected_total{@}[$__rate_interval])",
                    "short",
                ),
                _gpu(
                    "PCIe replays",
                    "A cable, a riser or a slot that is about to fail.",
                    "increase(mlsecd_gpu_pcie_replays_total{@}[$__rate_interval])",
                    "short",
                ),
            ),
        ),
        (
            "Set-up",
            (
                Panel(
                    "table",
                    "GPUs",
                    "What each GPU is and how it is set up. A mode that changed without a reason is a finding.",
                    (('mlsecd_gpu_info{@, gpu=~"$gpu"}', ""),),
                    width=24,
                    height=11,
                ),
            ),
        ),
    ),
    gpu=True,
)

HOST: Final = Board(
    "mlsecd-host",
    "mlsecd / Host",
    "What runs on the host and should not, what is open, what was changed, and what leaves.",
    (
        ("Findings", found(_HOST, "MlsecdExposure")),
        (
            "What is looked at",
            (
                over_time(
                    "Processes seen",
                    "In the last poll of the process table.",
                    'mlsecd_source_seen{@, source="processes"}',
                    "short",
                ),
                over_time(
                    "GPU processes",
                    "Processes on GPUs, and those whose executable could not be read and that are not judged.",
                    "max by (instance) (mlsecd_detector_gpu_processes{@})",
                    "short",
                ),
                over_time(
                    "GPU processes that nobody could read",
                    "Their executable could not be read: give mlsecd CAP_SYS_PTRACE.",
                    "max by (instance) (mlsecd_detector_unread_processes{@})",
                    "short",
                ),
            ),
        ),
    ),
)
