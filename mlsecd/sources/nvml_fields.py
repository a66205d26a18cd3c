"""What one GPU is asked: the calls, their older names, their units, and what a refusal means.

It runs in the NVML child (:mod:`mlsecd.sources.nvml_child`) and so imports the standard library only;
``pynvml`` is handed in. A capability is named after the first field of ``GpuSample`` that it fills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "RESET_ACTIONS",
    "RESET_REQUIRED",
    "TIMEOUT",
    "GpuLostError",
    "Library",
    "Reader",
    "SessionLostError",
    "reason",
]

# NVML's return codes that mean something to a monitor; any other is a reason why a field is blind.
UNINITIALIZED: Final = 1
INVALID_ARGUMENT: Final = 2
NOT_SUPPORTED: Final = 3
NOT_FOUND: Final = 6
INSUFFICIENT_SIZE: Final = 7
DRIVER_NOT_LOADED: Final = 9
TIMEOUT: Final = 10
FUNCTION_NOT_FOUND: Final = 13
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
LIB_RM_VERSION_MISMATCH: Final = 18
ARGUMENT_VERSION_MISMATCH: Final = 25
DEPRECATED: Final = 26

# What the recovery action field asks for, where it is a reset of the GPU or more: GPU_RESET, NODE_REBOOT,
# DRAIN_AND_RESET, BUS_RESET, SYSTEM_REBOOT.
RESET_ACTIONS: Final = frozenset({1, 2, 4, 6, 7})

_UNSUPPORTED: Final = frozenset({NOT_SUPPORTED, DEPRECATED})
_OLDER_DRIVER: Final = frozenset({FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH})
_SESSION_OVER: Final = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH})
_SIZE_RETRIES: Final = 3  # a list may grow between the call that sizes it and the call that fills it

_SM_CLOCK: Final = 1
_MEMORY_CLOCK: Final = 2
_GPU_SENSOR: Final = 0
_CORRECTED: Final = 0
_UNCORRECTED: Final = 1
_VOLATILE: Final = 0
# Field values are one call for all of them, each with a return code of its own.
# NVLink's are 64-bit totals over all links, in units of one error.
_FIELD_VALUES: Final = {
    82: "memory_temperature_celsius",
    230: "recovery_action",
    38: "nvlink_crc_errors",  # of flits
    45: "nvlink_crc_errors",  # of data: added to it
    52: "nvlink_replays",
    59: "nvlink_recoveries",
    138: "nvlink_sent_bytes",  # the driver counts KiB of data
    139: "nvlink_received_bytes",
    # Counters: nvmlDeviceGetPcieThroughput would measure for 20 ms a direction and GPU.
    197: "pcie_sent_bytes",
    198: "pcie_received_bytes",
}
_KIB: Final = frozenset({"nvlink_sent_bytes", "nvlink_received_bytes"})
_ALL_LINKS: Final = 0xFFFFFFFF  # the scope of a field that could be asked of one link
_SUMS: Final = frozenset({"nvlink_crc_errors"})
_LONG: Final = 3  # NVML_VALUE_TYPE_UNSIGNED_LONG_LONG

Call = Callable[[Any], Any]
Convert = Callable[[Any], dict[str, Any]]


class GpuLostError(Exception):
    """The GPU has fallen off the bus: nothing more can be asked of it."""


class SessionLostError(Exception):
    """NVML itself is gone for this process (driver unloaded or replaced): only a fresh one can go on."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def reason(error: Any) -> str:
    """``"Insufficient Permissions (4)"``: NVML's words and code, short, for codes unknown to the binding too."""
    return f"{str(error)[:80]} ({error.value})"


def _ratio(percent: int) -> float | None:
    """0..1; drivers have been seen to say more than 100 %, which says nothing."""
    return percent / 100 if percent <= 100 else None


def _megahertz(field: str) -> Convert:
    return lambda clock: {field: clock * 1e6}


def _as_is(field: str) -> Convert:
    return lambda value: {field: value}


def _thousandth(field: str) -> Convert:
    return lambda value: {field: value / 1e3}


def _memory(memory: Any) -> dict[str, Any]:
    """Version 1 counts what the driver reserves as used, and does not tell it apart."""
    return {
        "memory_used_bytes": memory.used,
        "memory_total_bytes": memory.total,
        "memory_reserved_bytes": getattr(memory, "reserved", None),
    }


_CONVERT: Final[dict[str, Convert]] = {
    "utilization": lambda rates: {"utilization": _ratio(rates.gpu), "memory_utilization": _ratio(rates.memory)},
    "memory_used_bytes": _memory,
    "power_watts": _thousandth("power_watts"),
    "power_limit_watts": _thousandth("power_limit_watts"),
    "energy_joules": _thousandth("energy_joules"),
    "temperature_celsius": _as_is("temperature_celsius"),
    "fan_ratio": lambda percent: {"fan_ratio": percent / 100},  # beyond 1 is possible: the nominal maximum
    "sm_clock_hz": _megahertz("sm_clock_hz"),
    "memory_clock_hz": _megahertz("memory_clock_hz"),
    "throttle_reasons": _as_is("throttle_reasons"),
    "ecc_corrected": _as_is("ecc_corrected"),
    "ecc_uncorrected": _as_is("ecc_uncorrected"),
    "encoder_utilization": lambda answer: {"encoder_utilization": _ratio(answer[0])},
    "decoder_utilization": lambda answer: {"decoder_utilization": _ratio(answer[0])},
    "remapped_rows_pending": lambda rows: {
        "remapped_rows_corrected": rows[0],
        "remapped_rows_uncorrected": rows[1],
        "remapped_rows_pending": bool(rows[2]),
        "remapped_rows_failure": bool(rows[3]),
    },
    "pcie_replays": _as_is("pcie_replays"),
}


def _with(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Call:
    return lambda handle: call(handle, *arguments)


def _calls(nvml: ModuleType) -> dict[str, list[Call]]:
    """The ways to ask for each capability, newest first; a binding too old to have one leaves it out."""

    def named(*names: str, arguments: tuple[Any, ...] = ()) -> list[Call]:
        found = [getattr(nvml, name) for name in names if hasattr(nvml, name)]
        return [_with(call, arguments) for call in found] if arguments else found

    info, version = nvml.nvmlDeviceGetMemoryInfo, getattr(nvml, "nvmlMemory_v2", None)
    ecc = "nvmlDeviceGetTotalEccErrors"
    return {
        "utilization": named("nvmlDeviceGetUtilizationRates"),
        "memory_used_bytes": [*([lambda handle: info(handle, version)] if version else []), info],
        "power_watts": named("nvmlDeviceGetPowerUsage"),
        "power_limit_watts": named("nvmlDeviceGetEnforcedPowerLimit"),
        "energy_joules": named("nvmlDeviceGetTotalEnergyConsumption"),
        "temperature_celsius": named("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature", arguments=(_GPU_SENSOR,)),
        "fan_ratio": named("nvmlDeviceGetFanSpeed"),
        "sm_clock_hz": named("nvmlDeviceGetClockInfo", arguments=(_SM_CLOCK,)),
        "memory_clock_hz": named("nvmlDeviceGetClockInfo", arguments=(_MEMORY_CLOCK,)),
        "throttle_reasons": named(
            "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        ),
        "ecc_corrected": named(ecc, arguments=(_CORRECTED, _VOLATILE)),
        "ecc_uncorrected": named(ecc, arguments=(_UNCORRECTED, _VOLATILE)),
        "encoder_utilization": named("nvmlDeviceGetEncoderUtilization"),
        "decoder_utilization": named("nvmlDeviceGetDecoderUtilization"),
        "remapped_rows_pending": named("nvmlDeviceGetRemappedRows"),
        "pcie_replays": named("nvmlDeviceGetPcieReplayCounter"),
        "processes": named("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"),
        "graphics_processes": named(
            "nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2"
        ),
        "mps_processes": named(
            "nvmlDeviceGetMPSComputeRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v2"
        ),
    }


class Library:
    """What the loaded driver library can do, shared by all GPUs: a call that it lacks is not tried again."""

    def __init__(self, nvml: ModuleType) -> None:
        self.nvml = nvml
        self.error: type[Exception] = nvml.NVMLError
        self._calls = _calls(nvml)

    def call(self, name: str, handle: Any) -> Any:
        """Ask by the newest name that the library has; raises NVML's error, or None where it has none."""
        ways = self._calls[name]
        while ways:
            try:
                return self._sized(ways[0], handle)
            except self.error as error:
                if error.value not in _OLDER_DRIVER:  # type: ignore[attr-defined]
                    raise
                del ways[0]
        return None

    def _sized(self, way: Call, handle: Any) -> Any:
        for _ in range(_SIZE_RETRIES - 1):
            try:
                return way(handle)
            except self.error as error:
                if error.value != INSUFFICIENT_SIZE:  # type: ignore[attr-defined]
                    raise
        return way(handle)


class Reader:
    """Asks one GPU, remembers what it does not support, and collects why a field is blind.

    Parameters
    ----------
    library
        Shared by the readers of one process.
    handle
        NVML's handle of this GPU.
    """

    def __init__(self, library: Library, handle: Any) -> None:
        self.handle = handle
        self.reset_required = False
        self.blind: list[str] = []
        self._library = library
        self._off: set[str] = set()
        self._fields = dict(_FIELD_VALUES)

    def begin(self) -> None:
        """Start a sample: what was blind may see again."""
        self.blind = []
        self.reset_required = False

    def probe_again(self) -> None:
        """Forget what was not supported: a MIG or driver-model change may have brought it."""
        self._off.clear()
        self._fields = dict(_FIELD_VALUES)

    def refused(self, field: str, code: int, text: str) -> None:
        """Sort one refusal.

        Raises :class:`GpuLostError` or :class:`SessionLostError` where asking on is pointless.
        """
        if code in _UNSUPPORTED:
            self._off.add(field)
        elif code == GPU_IS_LOST:
            raise GpuLostError
        elif code in _SESSION_OVER:
            raise SessionLostError(code, text)
        elif code == RESET_REQUIRED:
            self.reset_required = True
        else:
            self.blind.append(f"{field}: {text}")

    def guard(self, field: str, call: Callable[[], Any]) -> Any:
        """What ``call`` returns, or None with the refusal sorted under ``field``."""
        if field in self._off:
            return None
        try:
            return call()
        except self._library.error as error:
            code: int = error.value  # type: ignore[attr-defined]
            self.refused(field, NOT_SUPPORTED if code in _OLDER_DRIVER else code, reason(error))
        except UnicodeDecodeError:  # the binding decodes what a damaged InfoROM holds
            self.blind.append(f"{field}: what NVML gives is no text")
        return None

    def ask(self, field: str) -> Any:
        """One capability of the table, raw; None where there is no answer."""
        if field in self._off:
            return None
        try:
            return self._library.call(field, self.handle)
        except self._library.error as error:
            self.refused(field, error.value, reason(error))  # type: ignore[attr-defined]
            return None

    def readings(self) -> dict[str, Any]:
        """Every reading that the GPU gives, in base units, by field of ``GpuSample``."""
        values: dict[str, Any] = {}
        for field, convert in _CONVERT.items():
            answer = self.ask(field)
            if answer is not None:
                values.update(convert(answer))
        for field, value in self._field_values():
            values[field] = value if field not in _SUMS else values.get(field, 0) + value
        return values

    def _field_values(self) -> Iterator[tuple[str, Any]]:
        nvml = self._library.nvml
        if not self._fields:
            return
        asked = [(number, _ALL_LINKS if field in _KIB else 0) for number, field in self._fields.items()]
        answers = self.guard("field_values", lambda: nvml.nvmlDeviceGetFieldValues(self.handle, asked))
        for answer in answers or ():
            field, code = self._fields[answer.fieldId], answer.nvmlReturn
            if code == 0:
                value = answer.value.ullVal if answer.valueType == _LONG else answer.value.uiVal
                yield field, value * 1024 if field in _KIB else value
            elif code in _UNSUPPORTED or code == INVALID_ARGUMENT:  # an older driver does not know the field
                del self._fields[answer.fieldId]
            else:
                self.refused(field, code, reason(nvml.NVMLError(code)))
