"""How a GPU is set up, and who uses it: settings that change rarely, and the process lists.

It runs in the NVML child, as :mod:`mlsecd.sources.nvml_fields` does: the standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mlsecd.sources.nvml_fields import Library, Reader
from mlsecd.sources.packages import version_of

__all__ = ["Names", "gpu_posture", "host_posture", "pid_max", "processes"]

MAX_PROCESSES: Final = 1024  # a GPU
_PID_MAX: Final = 4_194_304  # the kernel's own limit, where /proc does not say
_NO_INSTANCE: Final = 0xFFFFFFFF  # NVML's word for "not on a MIG instance"
_SWITCH: Final = {0: "disabled", 1: "enabled"}
_COMPUTE_MODES: Final = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
_CC_ENVIRONMENTS: Final = {0: "unavailable", 1: "simulation", 2: "production"}
# A process may stand in several lists; the last one that names it says most about it.
_LISTS: Final = {"graphics": "graphics_processes", "compute": "processes", "mps": "mps_processes"}


def _word(words: dict[int, str], value: int) -> str:
    """NVML's word for a mode, or the bare number for one that came later."""
    return words.get(value, str(value))


def _text(value: str | bytes) -> str:
    """The binding decodes most strings, not all."""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value)[:128]


def host_posture(library: Library, reader: Reader) -> dict[str, str]:
    """Driver, CUDA and confidential computing: the same for every GPU of the host.

    A driver without the symbol, or a host without the feature, leaves the key out.
    """
    nvml, posture = library.nvml, {}
    driver = reader.guard("driver_version", nvml.nvmlSystemGetDriverVersion)
    if driver is not None:
        posture["driver_version"] = driver
    cuda = reader.guard("cuda_driver_version", nvml.nvmlSystemGetCudaDriverVersion_v2)
    if cuda is not None:
        posture["cuda_driver_version"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
    toolkit = version_of("nvidia-container-toolkit")
    if toolkit is not None:
        posture["container_toolkit_version"] = toolkit
    ask_cc = getattr(nvml, "nvmlSystemGetConfComputeState", None)
    state = reader.guard("confidential_compute", ask_cc) if ask_cc else None
    if state is not None:
        posture["confidential_compute"] = _word(_SWITCH, state.ccFeature)
        posture["confidential_compute_environment"] = _word(_CC_ENVIRONMENTS, state.environment)
        posture["confidential_compute_devtools"] = _word(_SWITCH, state.devToolsMode)
    return posture


def _modes(nvml: Any) -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], dict[str, str]]]]:
    """Each setting: how to ask, and the posture that the answer makes."""

    def text(name: str, part: str = "") -> Callable[[Any], dict[str, str]]:
        return lambda value: {name: _text(getattr(value, part) if part else value)}

    def switch(name: str) -> Callable[[Any], dict[str, str]]:
        return lambda value: {name: _word(_SWITCH, value)}

    def pair(name: str) -> Callable[[Any], dict[str, str]]:
        return lambda modes: {name: _word(_SWITCH, modes[0]), f"{name}_pending": _word(_SWITCH, modes[1])}

    return {
        "serial": (nvml.nvmlDeviceGetSerial, text("serial")),
        "vbios_version": (nvml.nvmlDeviceGetVbiosVersion, text("vbios_version")),
        "inforom_version": (nvml.nvmlDeviceGetInforomImageVersion, text("inforom_version")),
        "gsp_firmware_version": (nvml.nvmlDeviceGetGspFirmwareVersion, text("gsp_firmware_version")),
        "pci_bus_id": (nvml.nvmlDeviceGetPciInfo, text("pci_bus_id", "busId")),
        "ecc_mode": (nvml.nvmlDeviceGetEccMode, pair("ecc_mode")),
        "mig_mode": (nvml.nvmlDeviceGetMigMode, pair("mig_mode")),
        "compute_mode": (
            nvml.nvmlDeviceGetComputeMode,
            lambda mode: {"compute_mode": _word(_COMPUTE_MODES, mode)},
        ),
        "persistence_mode": (nvml.nvmlDeviceGetPersistenceMode, switch("persistence_mode")),
        "accounting_mode": (nvml.nvmlDeviceGetAccountingMode, switch("accounting_mode")),
        "power_limit": (
            nvml.nvmlDeviceGetPowerManagementLimit,
            lambda milliwatts: {"power_limit_watts": f"{milliwatts / 1e3:g}"},
        ),
    }


def gpu_posture(library: Library, reader: Reader) -> dict[str, str]:
    """Identity and settings of one GPU, as text; what it does not have is left out.

    Keys: serial, vbios_version, inforom_version, gsp_firmware_version, pci_bus_id, ecc_mode, mig_mode (each also
    ``_pending``), mig_devices, compute_mode, persistence_mode, accounting_mode, power_limit_watts.
    """
    posture: dict[str, str] = {}
    for field, (call, convert) in _modes(library.nvml).items():
        answer = reader.guard(field, lambda call=call: call(reader.handle))  # type: ignore[misc]
        if answer is not None:
            posture.update(convert(answer))
    if posture.get("mig_mode") == "enabled":
        posture["mig_devices"] = _mig_devices(library, reader)
    return posture


def _mig_devices(library: Library, reader: Reader) -> str:
    """The layout as ``"3g.40gb MIG-..., 1g.10gb MIG-..."``: it changes when the layout does."""
    nvml, devices = library.nvml, []
    for index in range(reader.guard("mig_devices", lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(reader.handle)) or 0):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(reader.handle, index)
            profile = nvml.nvmlDeviceGetName(handle).rpartition(" ")[2]
            devices.append(f"{profile} {nvml.nvmlDeviceGetUUID(handle)}")
        except library.error:  # slots are sparse: NOT_FOUND is an empty one
            continue
    return ", ".join(devices)


class Names:
    """Process names as NVML knows them, kept while a process is listed and asked anew now and then.

    They are a hint only, for a process of another namespace: what runs under a pid is /proc's to say.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._names: dict[int, str | None] = {}
        self._listed: set[int] = set()

    def of(self, pid: int) -> str | None:
        """The name of a listed process; None where NVML does not find or does not show it."""
        self._listed.add(pid)
        if pid not in self._names:
            try:
                self._names[pid] = self._library.nvml.nvmlSystemGetProcessName(pid)[:256]
            except (self._library.error, UnicodeDecodeError):
                self._names[pid] = None
        return self._names[pid]

    def sweep(self, *, ask_anew: bool) -> None:
        """After a sample of all GPUs: forget who is gone, or everybody."""
        self._names = {} if ask_anew else {pid: self._names[pid] for pid in self._listed}
        self._listed = set()


def pid_max() -> int:
    """The largest pid that this kernel gives."""
    try:
        with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:  # noqa: PTH123 - pathlib would cost memory
            return int(file.read())
    except (OSError, ValueError):
        return _PID_MAX


class _ScrambledError(Exception):
    """A process list that cannot be true."""


def _memory_by_pid(
    reader: Reader, capability: str, largest_pid: int, instances: dict[int, set[int]]
) -> dict[int, int | None] | None:
    """One list, summed over MIG instances, which are noted; None where there is no such list."""
    rows = reader.ask(capability)
    if rows is None:
        return None
    memory: dict[int, int | None] = {}
    for row in rows:
        if not 0 < row.pid <= largest_pid:
            raise _ScrambledError(f"pid {row.pid} cannot be: the driver's list is of another layout")
        instance = getattr(row, "gpuInstanceId", _NO_INSTANCE)
        if instance != _NO_INSTANCE:
            instances.setdefault(row.pid, set()).add(instance)
        before, more = memory.get(row.pid), row.usedGpuMemory
        memory[row.pid] = before if more is None else more + (before or 0)
    return memory


def processes(reader: Reader, names: Names, largest_pid: int) -> list[dict[str, Any]] | None:
    """Who has a context on the GPU, one entry a pid; None where NVML would not say.

    Memory of one pid is the largest over the lists: each shows the whole of a process, so adding them
    would count it twice. Memory that NVML does not tell stays None.
    """
    found: dict[int, dict[str, Any]] = {}
    instances: dict[int, set[int]] = {}
    known = False
    for kind, capability in _LISTS.items():
        try:
            listed = _memory_by_pid(reader, capability, largest_pid, instances)
        except _ScrambledError as error:  # garbage below pid_max cannot be told from pids: believe none of it
            reader.blind.append(f"processes: {error}")
            return None
        known |= kind == "compute" and listed is not None
        for pid, memory in (listed or {}).items():
            entry = found.setdefault(pid, {"pid": pid, "used_memory_bytes": None})
            entry["type"] = kind
            if memory is not None:
                entry["used_memory_bytes"] = max(memory, entry["used_memory_bytes"] or 0)
    if len(found) > MAX_PROCESSES:
        reader.blind.append(f"processes: {len(found) - MAX_PROCESSES} more than {MAX_PROCESSES} are not shown")
    shown = list(found.values())[:MAX_PROCESSES]
    for entry in shown:
        entry["exe"] = names.of(entry["pid"])
        if entry["pid"] in instances:
            entry["instances"] = sorted(instances[entry["pid"]])
    return shown if known else None
