"""What works on this host, what is blind, and why: one small function a question."""

from __future__ import annotations

import ctypes
import datetime
import os
import pwd
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal, cast

from mlsecd import app, ask, baseline, credentials, doctor_coverage, floors, plugins
from mlsecd.config import Config
from mlsecd.errors import ConfigError, MlsecdError
from mlsecd.meters import Meters
from mlsecd.sources.base import Source
from mlsecd.taps.identity import key_path, load_key

__all__ = ["Check", "examine"]

State = Literal["ok", "blind", "broken", "info"]

_CAP_DAC_READ_SEARCH, _CAP_SYS_PTRACE = 2, 19  # bits of CapEff, linux/capability.h
_PR_GET_MDWE = 66  # linux/prctl.h
_POLL_SECONDS = 5.0
_MEMORY_BYTES = 300 << 20  # the budget of docs/performance.md and room for a hundred accounts more
_FLOORS_DAYS = 120  # NVIDIA publishes each quarter
_WITHOUT_FD = (
    "of other users' processes exposure_services sees no ports, egress_bytes no peers, process_inference no "
    "LD_PRELOAD; gpu_unlisted_process and integrity_weights see what is mapped and not what is open"
)
_EARLIEST = 1_735_689_600.0  # 2025-01-01: a clock before this was never set


@dataclass(frozen=True, slots=True)
class Check:
    """One answer: ``broken`` is switched on and cannot work; ``blind`` works with less."""

    name: str
    state: State
    detail: str


def examine(config: Config, *, blind_spots: bool = False) -> Iterator[Check]:
    """All checks, in the order of a person's questions; ``blind_spots`` adds what detectors can never see."""
    steps: tuple[Callable[[Config], Iterator[Check]], ...] = (
        _machine,
        _libraries,
        _privileges,
        _memory,
        _directories,
        _anchor,
        _clock,
        _identity,
        _cuda,
        _baseline,
        _floors,
        _sources,
        _daemon,
        _detectors,
    )
    for step in steps:
        yield from step(config)
    if blind_spots:
        yield from _blind_spots(config)


def _machine(_: Config) -> Iterator[Check]:
    import psutil  # noqa: PLC0415 - asked once, by a person; the daemon reads /proc itself

    memory = psutil.virtual_memory()
    days = (time.time() - psutil.boot_time()) / 86_400
    detail = f"{psutil.cpu_count()} cores, {memory.total / 2**30:.1f} GiB memory, up {days:.1f} days"
    if memory.available < _MEMORY_BYTES:
        yield Check("machine", "blind", f"{detail}: less than {_MEMORY_BYTES >> 20} MiB free, what the daemon may need")
    else:
        yield Check("machine", "ok", detail)


def _libraries(_: Config) -> Iterator[Check]:
    for name in ("numpy", "numba", "msgspec", "nvidia-ml-py", "psutil", "prometheus-client", "structlog"):
        try:
            yield Check(f"library {name}", "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(f"library {name}", "broken", f"not installed: pip install {name}")


def _privileges(_: Config) -> Iterator[Check]:
    status = Path("/proc/self/status").read_text("ascii", "replace")
    line = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    effective = int(line.split()[1], 16)
    who = f"uid {os.geteuid()}"
    if effective >> _CAP_SYS_PTRACE & 1:
        yield Check("CAP_SYS_PTRACE", "ok", f"{who} may read other users' executables and maps")
    else:
        yield Check("CAP_SYS_PTRACE", "blind", f"{who} cannot see which program other users' processes run")
    if effective >> _CAP_DAC_READ_SEARCH & 1:
        yield Check("CAP_DAC_READ_SEARCH", "ok", "descriptors and sockets of other users' processes are readable")
    else:
        yield Check("CAP_DAC_READ_SEARCH", "info", f"not held (drop-in 20-fd): {_WITHOUT_FD}")
    for home in ("/home", "/root"):
        if _hidden(home):
            words = "ProtectHome= (drop-in 10-home): no weights, logs or Jupyter runtime files there are seen"
            yield Check(f"{home} is hidden", "info", words)


def _hidden(directory: str) -> bool:
    """Whether systemd put an empty directory of mode 000 in this one's place: ``ProtectHome=yes``."""
    try:
        found = os.stat(directory)  # noqa: PTH116 - Path.stat raises the same
    except OSError:
        return False
    return not found.st_mode & 0o777


def _memory(_: Config) -> Iterator[Check]:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_GET_MDWE, 0, 0, 0, 0) & 1:
        yield Check("executable memory", "broken", "MemoryDenyWriteExecute= is on: numba cannot compile; set it to no")
    else:
        yield Check("executable memory", "ok", "numba may compile")


def _directories(config: Config) -> Iterator[Check]:
    wanted = {"state": config.daemon.state_dir}
    if config.sinks.forensic_log.enabled:
        wanted["forensic log"] = config.sinks.forensic_log.directory
    for what, name in wanted.items():
        path = Path(name)
        if not path.is_dir():
            yield Check(f"{what} directory", "broken", f"{path} does not exist: {_install(path)}")
        elif not os.access(path, os.W_OK | os.X_OK):
            yield Check(f"{what} directory", "broken", f"{path} is not writable for uid {os.geteuid()}")
        else:
            free = shutil.disk_usage(path).free
            state: State = "ok" if free > 1 << 28 else "blind"
            yield Check(f"{what} directory", state, f"{path}, {free / 1e9:.1f} GB free")


def _anchor(config: Config) -> Iterator[Check]:
    """Whether anybody but this log's writer knows how far it came."""
    params = config.sinks.forensic_log
    if not params.enabled:
        return
    if not params.anchor:
        words = "none: who may write the log can cut it off unseen; set sinks.forensic_log.anchor"
        yield Check("forensic log anchor", "info", words)
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(params.anchor)
    except OSError as error:
        yield Check("forensic log anchor", "broken", f"{params.anchor}: {error.strerror}: no syslog listens there")
    else:
        yield Check("forensic log anchor", "ok", f"syslog is told the head each {params.anchor_seconds:g} s")


def _install(path: Path) -> str:
    """The command that makes a directory for who runs this."""
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return f"install -d -o {shlex.quote(user)} -m 0750 {shlex.quote(str(path))}"


def _clock(_: Config) -> Iterator[Check]:
    now = time.time()
    if now < _EARLIEST:
        yield Check("clock", "broken", f"reads {time.strftime('%Y-%m-%d', time.gmtime(now))}: it was never set")
    else:
        yield Check("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def _identity(config: Config) -> Iterator[Check]:
    """The key that names clients: taps and this daemon must read the same one."""
    path = key_path()
    _, trouble = load_key(path)
    wanted = credentials.wanted(config)
    if trouble:
        state: State = "info" if not wanted else "broken" if path else "blind"
        yield Check("identity key", state, trouble)
    else:
        yield Check("identity key", "ok", f"{path}: the same file must be MLSECD_KEY_FILE of the taps")


def _cuda(config: Config) -> Iterator[Check]:
    if config.daemon.kernels == "cpu":
        yield Check("CUDA", "info", 'kernels = "cpu": everything is computed on the CPU')
    elif util.find_spec("numba_cuda") is None:
        yield Check("CUDA", "info", 'everything is computed on the CPU; for a GPU: pip install "mlsecd[cuda]"')
    else:
        which = "large batches" if config.daemon.kernels == "auto" else "batches of any size"
        yield Check("CUDA", "info", f"{which} go to a GPU while it is free; mlsecd_kernels_on_gpu shows when")


def _baseline(config: Config) -> Iterator[Check]:
    path = config.baseline_path
    if path is None:
        yield Check("baseline", "info", "switched off: detectors learn from the stream")
        return
    if not path.exists():
        hint = "record ordinary traffic (`mlsecd record`), then `mlsecd baseline fit`"
        yield Check("baseline", "blind", f"none at {path}: detectors learn from the stream; {hint}")
        return
    try:
        loaded = baseline.read(path, config.daemon.baseline_sha256)
    except MlsecdError as error:
        yield Check("baseline", "broken", str(error))
        return
    days = (time.time() - path.stat().st_mtime) / 86_400
    pin = "pinned" if config.daemon.baseline_sha256 else f"not pinned, SHA-256 {loaded.digest}"
    yield Check("baseline", "ok", f"{path}: {', '.join(loaded.sections)}; {days:.0f} days old; {pin}")


def _floors(config: Config) -> Iterator[Check]:
    path = floors.place(config.floors.file)
    try:
        held = floors.load(path)
    except ConfigError as error:  # it was readable when the configuration was
        yield Check("version floors", "broken", str(error))
        return
    whose = "the package's own list" if path == floors.SHIPPED else str(path)
    days = (datetime.datetime.now(datetime.UTC).date() - held.updated).days
    detail = f"{len(held.gpu) + len(held.service)} versions of {held.updated}, {whose}"
    if days > _FLOORS_DAYS:
        yield Check("version floors", "blind", f"{detail}: {days} days old; renew it from the vendors' bulletins")
    else:
        yield Check("version floors", "ok", detail)


def _sources(config: Config) -> Iterator[Check]:
    meters = Meters()
    for name, cls in plugins.sources().items():
        if not config.sources[name].enabled:
            yield Check(f"source {name}", "info", f"off: {cls.summary}")
    for source in app.make_sources(config, meters):
        if source.name in {"request_socket", "recording", "otlp", "litellm", "syslog"}:
            yield Check(f"source {source.name}", "info", "on; a running daemon tells how fresh it is (below)")
        else:
            yield _polled(source)


def _polled(source: Source) -> Check:
    name = f"source {source.name}"
    try:
        reason = source.supported()
        if reason is not None:
            return Check(name, "blind", reason)
        poll = source.poll(time.monotonic() + _POLL_SECONDS)
    except MlsecdError as error:
        return Check(name, "broken", str(error))
    finally:
        source.close()
    if poll.error is not None:
        return Check(name, "broken", poll.error)
    blind = sorted({reason for record in poll.records for reason in getattr(record, "blind", ())})
    seen = "" if poll.seen is None else f"{poll.seen} seen"
    if blind:
        return Check(name, "blind", "; ".join([seen, *blind[:4]]).strip("; "))
    return Check(name, "ok", seen or "delivers")


def _daemon(config: Config) -> Iterator[Check]:
    try:
        status = ask.status(config)
    except ConfigError as error:
        yield Check("daemon", "info", f"{error}: freshness and coverage are not known")
        return
    except MlsecdError:
        yield Check("daemon", "info", f"none answers on {config.web.listen}: freshness and coverage are not known")
        return
    yield Check("daemon", "ok", f"answers on {config.web.listen}")
    for source in status.get("sources", []):
        state: State = "ok" if source.get("up") else ("blind" if source.get("unsupported") else "broken")
        yield Check(f"daemon: source {source.get('name')}", state, _freshness(source))
    for detector in status.get("detectors", []):
        armed = detector.get("state") in {"armed", "shifted"}
        detail = f"{detector.get('state')}{': ' + detector['why'] if detector.get('why') else ''}"
        yield Check(f"daemon: detector {detector.get('name')}", "ok" if armed else "blind", detail)
    yield from _coverage(status.get("coverage", {}))
    for line in doctor_coverage.lines(config, doctor_coverage.parse_counts(ask.metrics(config))):
        yield Check(line.name, cast("State", line.state), line.detail)


def _freshness(source: dict[str, Any]) -> str:
    last = source.get("last_success")
    age = f"last success {time.time() - last:.0f} s ago" if last else "no success yet"
    return f"{source['why']}; {age}" if source.get("why") else age


def _coverage(coverage: dict[str, Any]) -> Iterator[Check]:
    total = coverage.get("requests", 0)
    if not total:
        yield Check("coverage", "blind", "no request records yet: every request detector is blind")
        return
    for field, count in coverage.get("fields", {}).items():
        share = count / total
        state: State = "ok" if share >= 0.9 else ("blind" if field in {"client", "features"} else "info")
        yield Check(f"coverage: {field}", state, f"{share:.0%} of {total:,.0f} requests carry it")


def _detectors(config: Config) -> Iterator[Check]:
    for name in plugins.detectors():
        if name in config.disabled:
            yield Check(f"detector {name}", "info", "switched off by the configuration")


def _blind_spots(config: Config) -> Iterator[Check]:
    for name, cls in plugins.detectors().items():
        for spot in cls.blind_spots if name not in config.disabled else ():
            yield Check(f"detector {name}", "info", f"cannot see: {spot}")
