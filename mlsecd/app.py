"""The only wiring: a configuration becomes objects, once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mlsecd import baseline as baselines
from mlsecd import credentials, gate, guest, kernels, log, plugins
from mlsecd.config import Config
from mlsecd.detectors.base import Detector
from mlsecd.engines.fold import Fold
from mlsecd.errors import BaselineError, ConfigError, MlsecdError
from mlsecd.findings.exceptions import Exceptions
from mlsecd.findings.ledger import Ledger
from mlsecd.kernels import Kernels
from mlsecd.kernels.polite import Told
from mlsecd.meters import Meters
from mlsecd.sources.base import Source
from mlsecd.sources.posted import PostedSource

__all__ = ["Pipeline", "load_kernels", "make_fold", "make_pipeline", "make_sources", "restore", "resume", "state"]


@dataclass
class Pipeline:
    """What scores records: everything between the sources and the sinks."""

    config: Config
    meters: Meters
    fold: Fold
    ledger: Ledger
    exceptions: Exceptions
    baseline: baselines.Baseline | None
    kernels: Kernels  # the numeric backend that was chosen
    backend: str  # its name
    notes: list[str] = field(default_factory=list)  # what an operator should know about the start


def load_kernels(config: Config, told: Told = lambda _backend, _why: None) -> Kernels:
    """The numeric backend, with a compiler cache that it can write to; ``told`` hears when it moves."""
    _prepare_compiler_cache()
    return kernels.select(config.daemon.kernels, told)


def _prepare_compiler_cache() -> None:
    """Give numba a private directory where the package's own is read-only: it refuses to start without one.

    The cache holds code that will be run, so a directory that others may write to is never used.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    beside = Path(kernels.__file__).parent / "__pycache__"
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return
    home = os.environ.get("CACHE_DIRECTORY", "").split(":")[0] or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = Path(home).expanduser() / "mlsecd-numba"
    try:
        chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = chosen.stat()
        usable = status.st_uid == os.geteuid() and not status.st_mode & 0o022 and os.access(chosen, os.W_OK)
    except (OSError, RuntimeError):
        usable = False
    os.environ["NUMBA_CACHE_DIR"] = str(chosen) if usable else tempfile.mkdtemp(prefix="mlsecd-numba-")


def make_pipeline(config: Config, meters: Meters) -> Pipeline:
    """Detectors with their baseline, the fold and the ledger.

    Raises
    ------
    ConfigError
        The baseline that the configuration names or pins cannot be used.
    """
    notes: list[str] = []
    baseline = _load_baseline(config, notes)
    chosen = load_kernels(config, guest.teller(meters))
    detectors = _make_detectors(config, chosen, baseline, notes)
    ledger = Ledger(
        resolve_after_seconds=config.findings.resolve_after_seconds,
        update_after_seconds=config.findings.update_after_seconds,
        limit=config.findings.max_active,
        resolve_after={one.name: one.resolve_after_seconds for one in detectors if one.resolve_after_seconds},
    )
    fold = make_fold(config, meters, detectors, ledger)
    _start_counters(meters, detectors)
    backend = chosen.__name__.rpartition(".")[2]
    return Pipeline(config, meters, fold, ledger, Exceptions(config.exceptions), baseline, chosen, backend, notes)


def make_fold(config: Config, meters: Meters, detectors: Sequence[Detector] = (), ledger: Ledger | None = None) -> Fold:
    """The fold as configured; without detectors it only puts records in order, for recording and fitting."""
    return Fold(
        detectors,
        Ledger() if ledger is None else ledger,  # an empty one is false
        meters,
        lateness_seconds=config.fold.lateness_seconds,
        interval_seconds=config.fold.interval_seconds,
        max_held_rows=config.fold.max_held_rows,
        join_seconds=config.fold.join_seconds,
    )


def _load_baseline(config: Config, notes: list[str]) -> baselines.Baseline | None:
    path, pinned = config.baseline_path, config.daemon.baseline_sha256
    if path is None:
        return None
    there = os.path.exists(path)  # noqa: PTH110 - Path.exists raises where it may not look
    if not there and config.daemon.baseline == "auto" and not pinned:
        notes.append(f"no baseline at {path}: detectors learn from the stream; see `mlsecd baseline fit --help`")
        return None
    try:
        return baselines.read(path, pinned)
    except BaselineError as error:
        raise ConfigError(f"{config.path}: [daemon] baseline: {error}") from error


def _make_detectors(
    config: Config, chosen: Kernels, baseline: baselines.Baseline | None, notes: list[str]
) -> list[Detector]:
    sections = baseline.sections if baseline else {}
    made: list[Detector] = []
    for name, cls in plugins.detectors().items():
        if name in config.disabled:
            continue
        try:
            made.append(cls(config.detectors[name], chosen, sections.get(name)))
        except BaselineError as error:
            notes.append(f"{name}: its part of the baseline does not fit, so it learns anew: {error}")
            made.append(cls(config.detectors[name], chosen, None))
    if not made:
        raise ConfigError(f"{config.path}: every detector is switched off: nothing to do")
    return made


def _start_counters(meters: Meters, detectors: list[Detector]) -> None:
    """Series exist from the start, so that the first event is seen as an increase."""
    for detector in detectors:
        meters.count("mlsecd_detector_errors_total", 0, detector=detector.name)
    for reason in ("late", "ahead", "behind", "held_full"):
        meters.drop("fold", reason, 0)
    meters.drop("inbox", "full", 0)
    meters.count("mlsecd_clock_steps_total", 0)


def state(pipeline: Pipeline, sources: list[Source]) -> dict[str, bytes]:
    """Everything that a restart needs, by section; detectors' parts are bound to their baseline."""
    kept = {}
    for source in sources:
        try:
            kept[f"source:{source.name}"] = msgspec.json.encode(source.state())
        except Exception:  # noqa: BLE001 - a source that cannot say where it stands begins afresh; the rest is kept
            pipeline.meters.count("mlsecd_snapshot_failures_total")
    bound = {"baseline": pipeline.baseline.digest if pipeline.baseline else ""}
    return {**pipeline.fold.snapshot(), **kept, "bound": msgspec.json.encode(bound)}


def restore(pipeline: Pipeline, sections: dict[str, bytes]) -> list[str]:
    """Take back what :func:`state` gave; what is left aside is named, with the reason.

    Detectors' state that was made with another baseline is not taken: its scores mean something else.
    """
    bound = msgspec.json.decode(sections.get("bound", b"{}")).get("baseline", "")
    now = pipeline.baseline.digest if pipeline.baseline else ""
    if bound == now:
        return pipeline.fold.restore(sections)
    kept = {name: blob for name, blob in sections.items() if not name.startswith("detector:")}
    return ["detectors: the baseline changed", *pipeline.fold.restore(kept)]


def resume(sources: list[Source], sections: dict[str, bytes]) -> list[str]:
    """Give sources their kept state; those that cannot use it are named, with the reason."""
    lost = []
    for source in sources:
        try:
            if (blob := sections.get(f"source:{source.name}")) is not None:
                source.resume(msgspec.json.decode(blob))
        except (msgspec.MsgspecError, MlsecdError, KeyError, TypeError, ValueError) as error:
            lost.append(f"{source.name}: {type(error).__name__}: {error}")
    return lost


def make_sources(config: Config, meters: Meters) -> list[Source]:
    """The sources that are switched on; :class:`~mlsecd.errors.ConfigError` where their key cannot be used."""
    credentials.check(config)
    made = []
    for name, cls in plugins.sources().items():
        params = config.sources[name]
        if params.enabled:
            source = cls(params, meters)
            if isinstance(source, PostedSource):
                source.gate = gate.gate_of(
                    name, params, lambda why: log.get().error("web.yml stays as it was", why=why)
                )
            made.append(source)
    return made
