"""``mlsecd baseline fit``."""

from __future__ import annotations

import sys
from pathlib import Path

from mlsecd import app, config, fitting
from mlsecd.commands.progress import Progress
from mlsecd.commands.words import counted, print_drops
from mlsecd.errors import ConfigError
from mlsecd.version import version

__all__ = ["run"]


def run(  # noqa: PLR0913, PLR0917 - one a flag
    files: list[str],
    output: str | None,
    require: list[str],
    leave_out: list[str],
    path: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Fit, say what fitted and what did not, and pin."""
    loaded = config.load(path, overrides)
    out = Path(output) if output else Path(loaded.daemon.state_dir) / "baseline.npz"
    unknown = sorted(set(require) - set(loaded.detectors))
    if unknown:
        raise ConfigError(f"--require {unknown[0]}: no such part; parts are {', '.join(loaded.detectors)}")
    with Progress("fit") as progress:
        fitted = fitting.fit(
            files,
            out,
            loaded,
            app.load_kernels(loaded),
            version=version(),
            leave_out=leave_out,
            progress=progress,
        )
    _tell_read(fitted.tally)
    for name, part in fitted.parts.items():
        print(f"{name}: {'fitted' if part.section else 'refused: ' + str(part.refused)}")
        for note in part.notes:
            print(f"{name}: {note}")
    missing = [name for name in require if name not in fitted.parts or fitted.parts[name].section is None]
    if fitted.digest:
        print(f"wrote {out}")
        print(f'to pin it: [daemon] baseline_sha256 = "{fitted.digest}"')
        for policy in fitting.write_policies(fitted, out):
            print(f"wrote {policy}: review it, then copy what is right into your configuration")
    for name in missing:
        print(f"mlsecd: required part {name} does not fit", file=sys.stderr)
    return 1 if missing or not fitted.digest else 0


def _tell_read(tally: fitting.Tally) -> None:
    """How much there was to learn from."""
    if tally.records and tally.synthetic == tally.records:
        print(f"read {counted(tally.records, 'record')}, all of them synthetic: nothing is learned from such records")
    elif tally.synthetic:
        print(f"read {counted(tally.records, 'record')}, {tally.synthetic:,} of them synthetic and not used")
    else:
        print(f"read {counted(tally.records, 'record')}")
    for name, count in tally.left_out.items():
        print(f"left out {counted(count, 'request')} of client {name}" + ("" if count else ": no such client"))
    print_drops(tally.meters)
