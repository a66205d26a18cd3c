"""What NVML shows of a GPU at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlsecd.records.kinds import Kind

__all__ = ["GpuJob", "GpuProcess", "GpuSample", "XidEvent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that NVML shows on a GPU. ``None`` is "NVML does not say", never 0."""

    pid: int
    exe: str | None = None
    used_memory_bytes: int | None = None
    type: str = "compute"  # compute, graphics or mps
    instances: tuple[int, ...] = ()  # GPU instances (MIG) that it runs on; empty: the whole GPU
    own: bool = False  # the daemon itself, as a guest: it owns memory there, and is nobody's to judge


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuJob:
    """A process that has ended, as the driver's accounting remembers it."""

    pid: int
    start_ts: float
    seconds: float
    max_memory_bytes: int | None = None
    utilization: float | None = None  # 0..1, its mean


@dataclass(frozen=True, slots=True, kw_only=True)
class XidEvent:
    """One Xid error that the driver reported since the last sample."""

    xid: int
    ts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU at one instant. Units as NVML's, in base units; ``None`` where NVML has no answer."""

    kind = Kind.GPU

    ts: float
    gpu: str  # UUID
    state: str = "ok"  # ok, lost, hung, reset_required
    host: str = ""
    synthetic: bool = False
    seq: int = -1
    index: int | None = None
    name: str | None = None
    model: str | None = None  # the served model, where known
    utilization: float | None = None  # 0..1
    memory_utilization: float | None = None  # 0..1
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None
    temperature_celsius: float | None = None
    memory_temperature_celsius: float | None = None
    fan_ratio: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    throttle_reasons: int | None = None  # NVML's clocks event reason bits
    ecc_corrected: int | None = None  # volatile, total
    ecc_uncorrected: int | None = None
    remapped_rows_pending: bool | None = None
    remapped_rows_failure: bool | None = None
    pcie_replays: int | None = None
    recovery_action: int | None = None
    encoder_utilization: float | None = None  # 0..1
    decoder_utilization: float | None = None  # 0..1
    remapped_rows_corrected: int | None = None  # rows replaced after corrected errors
    remapped_rows_uncorrected: int | None = None
    nvlink_crc_errors: int | None = None  # flits and data, all links
    nvlink_replays: int | None = None
    nvlink_recoveries: int | None = None
    nvlink_sent_bytes: int | None = None  # data, all links, since the driver was loaded
    nvlink_received_bytes: int | None = None
    pcie_sent_bytes: int | None = None  # since the driver was loaded, by drivers that count them
    pcie_received_bytes: int | None = None
    graphics_active: float | None = None  # 0..1, the share of time in which any engine worked (GPM, from Hopper on)
    sm_active: float | None = None  # 0..1, the share of multiprocessors that worked
    tensor_active: float | None = None  # 0..1, the share of time in which tensor cores worked
    dram_active: float | None = None  # 0..1, the share of the memory's bandwidth
    accounted: int | None = None  # processes that the driver's accounting remembers; None: it is off
    jobs: tuple[GpuJob, ...] = ()  # those that ended since the last sample
    processes: tuple[GpuProcess, ...] | None = None  # None: NVML would not say
    xid: tuple[XidEvent, ...] = ()
    # ecc_mode, ecc_mode_pending, mig_mode, compute_mode, persistence_mode, accounting_mode,
    # driver_version, vbios_version, inforom_version, serial, pci_bus_id, ...
    posture: dict[str, str] = field(default_factory=dict)
    blind: tuple[str, ...] = ()  # what NVML refused, as "field: reason"

    @property
    def tenants(self) -> tuple[GpuProcess, ...] | None:
        """Its processes without the daemon itself."""
        return None if self.processes is None else tuple(one for one in self.processes if not one.own)
