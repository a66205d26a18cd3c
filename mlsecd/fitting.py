"""``mlsecd baseline fit``: every detector learns what it can from ordinary records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from mlsecd import app, baseline, plugins
from mlsecd.config import Config
from mlsecd.detectors.base import Detector, Fit
from mlsecd.engines.hold import Ordered
from mlsecd.engines.replay import Progress, records_of
from mlsecd.errors import BaselineError, RecordError
from mlsecd.kernels import Kernels
from mlsecd.meters import Meters
from mlsecd.records import Kind, Records, RequestBatch

__all__ = ["Fitted", "Tally", "fit", "write_policies"]


@dataclass(slots=True)
class Tally:
    """What one reading of the files gave."""

    meters: Meters = field(default_factory=Meters)  # counts what was dropped
    records: int = 0
    synthetic: int = 0  # of them; they teach nothing
    left_out: dict[str, int] = field(default_factory=dict)  # requests of each client that is to teach nothing

    def add(self, records: Records) -> None:
        """Count these."""
        if isinstance(records, RequestBatch):
            self.records += len(records)
            self.synthetic += int(records.synthetic.sum())
        else:
            self.records += 1
            self.synthetic += records.synthetic


@dataclass(frozen=True, slots=True)
class Fitted:
    """What came of a fit: one entry a detector that can learn."""

    parts: dict[str, Fit]
    header: dict[str, Any]
    digest: str  # of the file written; empty where no part fitted
    tally: Tally = field(default_factory=Tally)


def fit(  # noqa: PLR0913
    paths: list[str],
    out: Path,
    config: Config,
    kernels: Kernels,
    *,
    version: str,
    leave_out: Iterable[str] = (),
    progress: Progress | None = None,
) -> Fitted:
    """Learn from recorded records and write the baseline to ``out``, where any part fits.

    The files are read once a detector, so that none has to keep them: standard input will not do. No detector sees a
    request of the clients in ``leave_out``: thieves who were there while the baseline was recorded.

    Raises
    ------
    RecordError
        A file cannot be read.
    BaselineError
        ``out`` cannot be written.
    """
    if "-" in paths:
        raise RecordError("baseline fit reads its files more than once: give files, not standard input")
    leave_out = sorted(set(leave_out))
    parts: dict[str, Fit] = {}
    tallies = [Tally(left_out=dict.fromkeys(leave_out, 0))]  # one a reading; who learns nothing reads nothing
    for name, cls in plugins.detectors().items():
        if name in config.disabled:
            continue
        tallies.append(Tally(left_out=dict.fromkeys(leave_out, 0)))
        learned = cls.fit(_ordered(paths, config, tallies[-1], progress), config.detectors[name], kernels)
        if learned is not None:
            _note_left_out(learned, tallies[-1])
            parts[name] = _tried(learned, cls, config.detectors[name], kernels)
    header = _describe(paths, version) | ({"left_out": leave_out} if leave_out else {})
    sections = {name: part.section for name, part in parts.items() if part.section is not None}
    digest = baseline.write(out, header, sections) if sections else ""
    return Fitted(parts, header, digest, max(tallies, key=attrgetter("records")))


def _ordered(paths: list[str], config: Config, tally: Tally, progress: Progress | None) -> Iterator[Records]:
    """The records as the fold would hand them out."""
    released: list[Ordered] = []
    fold = app.make_fold(config, tally.meters)
    fold.on_released = released.append
    for records in records_of(paths, tally.meters, progress):
        tally.add(records)
        fold.push([_without(records, tally.left_out)])
        yield from _drain(released)
    fold.finish()
    yield from _drain(released)


def _without(records: Records, left_out: dict[str, int]) -> Records:
    """A batch less the requests of these clients, which are counted."""
    if not left_out or not isinstance(records, RequestBatch):
        return records
    client = records.text("client")
    gone = np.zeros(len(records), bool)
    for code, name in enumerate(client.values):
        if name in left_out:
            own = client.codes == code
            left_out[name] += int(own.sum())
            gone |= own
    return records.take(np.flatnonzero(~gone)) if gone.any() else records


def _tried(learned: Fit, cls: type[Detector], params: Any, kernels: Kernels) -> Fit:
    """What was learned, if its detector takes it: else the daemon would find out at its next start."""
    if learned.section is not None:
        try:
            cls(params, kernels, learned.section)
        except BaselineError as error:
            why = f"what was learned cannot be used ({error}): look for clients whose numbers are none of the model's"
            return Fit(None, why, learned.notes)
    return learned


def _note_left_out(learned: Fit, tally: Tally) -> None:
    """How many clients a part would have learned from, but for a person's word: what certifies must say so."""
    count = sum(requests > 0 for requests in tally.left_out.values())
    if learned.section is not None and count:
        learned.section.header["left_out"] = count


def _drain(released: list[Ordered]) -> Iterator[Records]:
    for ordered in released:
        yield from ordered.pieces(frozenset(Kind))
    released.clear()


def _describe(paths: list[str], version: str) -> dict[str, Any]:
    """Where a baseline came from: enough to fit it again, and to prove that it was these files."""
    inputs = []
    for path in paths:
        with Path(path).open("rb") as file:
            inputs.append({"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()})
    return {"mlsecd": version, "inputs": inputs}


def write_policies(fitted: Fitted, out: Path) -> list[Path]:
    """Write what a person should review, an allow list say, as TOML beside the baseline."""
    written = []
    for name, part in fitted.parts.items():
        entries = part.section.header.get("allow") if part.section is not None else None
        if not entries:
            continue
        path = out.with_name(f"{out.stem}.{name}.toml")
        path.write_text(_POLICY_HEAD + "".join(_entry(name, entry) for entry in entries))
        written.append(path)
    return written


_POLICY_HEAD = """\
# Proposed by `mlsecd baseline fit` from what it saw. Review it: what was wrong while recording is in here too.
# Copy what is right into mlsecd.toml.
"""


def _entry(name: str, entry: dict[str, Any]) -> str:
    # a JSON string is a TOML basic string, and the only escape that TOML lacks, of "/", is never written
    rows = [f"{key} = {json.dumps(value)}\n" for key, value in entry.items() if value is not None]
    return f"\n[[detectors.{name}.allow]]\n" + "".join(rows)
