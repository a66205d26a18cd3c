"""What every detector must hold. The registry finds them; each test module names its case."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import damage
import msgspec
import numpy as np
import pytest
from support import Case, Sharded, atoms, fold_of, lines, listen, regroup

from mlsecd import plugins
from mlsecd.detectors.base import Detector, Section
from mlsecd.errors import BaselineError, StateError
from mlsecd.findings import controls
from mlsecd.records import Ragged, Records, RequestBatch, SourceStatus
from mlsecd.sinks.metrics_catalog import DETECTOR_GAUGES

NAMES = sorted(plugins.detectors())
YEAR = 365 * 86_400.0
RESERVED = ("_total", "_info", "_count", "_sum", "_bucket", "_created")
THREATS = (
    "extraction_",
    "campaign_",
    "drift_",
    "gpu_",
    "process_",
    "exposure_",
    "integrity_",
    "egress_",
    "access_",
    "output_",
)


@cache
def case(name: str) -> Case:
    path = Path(__file__).parent / "detectors" / f"test_{name}.py"
    assert path.exists(), f"{name} has no test module"
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.conformance()  # type: ignore[no-any-return]


@cache
def straight(name: str) -> tuple[dict[str, Any], ...]:
    """What it finds when each record is pushed alone."""
    return tuple(lines(fold_of(case(name).make()), [[atom] for atom in atoms(case(name).records)]))


@pytest.mark.parametrize("name", NAMES)
def test_it_finds_something(name: str) -> None:
    assert straight(name)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", NAMES)
def test_any_split_gives_the_same_findings(name: str, seed: int) -> None:
    draw = random.Random(seed)
    parts = atoms(case(name).records)
    sizes = [draw.choice([1, 2, 7, 50, 400, 3000]) for _ in parts]
    assert tuple(lines(fold_of(case(name).make()), regroup(parts, sizes))) == straight(name)


@pytest.mark.parametrize("name", NAMES)
def test_one_push_of_everything_gives_the_same_findings(name: str) -> None:
    parts = atoms(case(name).records)
    assert tuple(lines(fold_of(case(name).make()), regroup(parts, [len(parts)]))) == straight(name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_a_restart_changes_nothing(name: str, share: float) -> None:
    parts = atoms(case(name).records)
    cut = int(len(parts) * share)
    before = fold_of(case(name).make())
    first = lines(before, regroup(parts[:cut], [100] * 1000), finish=False)
    after = fold_of(case(name).make())
    assert after.restore(before.snapshot()) == []
    second = lines(after, regroup(parts[cut:], [100] * 1000))
    key = lambda line: (line["ts"], line["id"], line["status"])  # noqa: E731
    assert tuple(sorted(first + second, key=key)) == straight(name)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_shards_find_what_the_whole_finds(name: str, count: int) -> None:
    if case(name).detector.key == "host":
        pytest.skip("one key a host: nothing to split")
    sharded = Sharded([case(name).make() for _ in range(count)])
    parts = atoms(case(name).records)
    assert tuple(lines(fold_of(sharded), regroup(parts, [37] * 10_000))) == straight(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_has_no_hindsight(name: str) -> None:
    parts = atoms(case(name).records)
    fold = fold_of(case(name).make())
    half = lines(fold, regroup(parts[: len(parts) // 2], [100] * 1000), finish=False)
    assert all(line in straight(name) for line in half)


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_bounded_at_ten_times_the_keys(name: str) -> None:
    sizes = []
    for count in (300, 3000):
        detector = case(name).make(case(name).limited)
        lines(fold_of(detector), regroup(atoms(case(name).flood(count)), [200] * 10_000))
        sizes.append(len(detector.snapshot()))
    assert sizes[1] <= 1.2 * sizes[0] + 4096


@pytest.mark.parametrize("name", NAMES)
def test_input_is_not_changed(name: str) -> None:
    records = case(name).records
    before = copy.deepcopy(records)
    detector = case(name).make()
    for one in records:
        detector.observe(one)
    for one, was in zip(records, before, strict=True):
        if isinstance(one, RequestBatch):
            assert isinstance(was, RequestBatch)
            for column in one.columns:
                assert _same(one.columns[column], was.columns[column]), column
        else:
            assert one == was


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, Ragged):
        return _same(one.offsets, other.offsets) and _same(one.values, other.values)
    return _same(one.codes, other.codes) and one.values == other.values


@pytest.mark.parametrize("name", NAMES)
def test_odd_rows_do_no_harm(name: str) -> None:
    detector = case(name).make()
    assert detector.observe(RequestBatch({"ts": np.zeros(0)})) == []
    for one in case(name).records:
        detector.observe(_poisoned(one))


def _poisoned(one: Records) -> Records:
    """Vectors of NaN and infinity, numbers out of all range, times that go back."""
    if not isinstance(one, RequestBatch):
        return one
    columns: dict[str, Any] = {}
    for name, column in one.columns.items():
        if isinstance(column, Ragged) and column.values.dtype.kind == "f":
            values = column.values.copy()
            values[::3] = np.nan
            values[1::7] = np.inf
            columns[name] = Ragged(column.offsets, values)
        elif name == "ts":
            columns[name] = column[::-1].copy()  # type: ignore[index]
        elif isinstance(column, np.ndarray) and column.dtype.kind == "f":
            columns[name] = np.where(np.arange(len(column)) % 2 == 0, 1e300, -1.0)
        else:
            columns[name] = column
    return RequestBatch(columns)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_snapshot_is_refused(name: str) -> None:
    detector = case(name).make()
    for one in case(name).records:
        detector.observe(one)
    blob = detector.snapshot()
    for damaged in (b"", b"\x00", b"not a snapshot", blob[: len(blob) // 2], b"\x93" + blob[1:]):
        with pytest.raises(StateError):
            case(name).make().restore(damaged)


@pytest.mark.parametrize("name", NAMES)
def test_a_snapshot_with_one_wrong_value_is_refused_or_taken(name: str) -> None:
    """Any other error would end the start of the daemon, and the next one, too."""
    detector = _seasoned(case(name).make(), case(name).records)
    refused = 0
    for where, blob in damage.snapshots(detector.snapshot(), 150, seed=7):
        try:
            case(name).make().restore(blob)
        except StateError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{where} in a snapshot") from error
    assert refused > 50


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_with_one_wrong_value_is_refused_or_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = plugins.detectors()[name]
    make, given = cls.__init__, []

    def watched(self: Any, params: Any, kernels: Any, section: Section | None = None) -> None:
        given.append((params, kernels, section))
        make(self, params, kernels, section)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "__init__", watched)
        case(name).make()
    params, kernels, section = given[-1]
    if section is None or not section.arrays:
        pytest.skip("it learns no arrays")
    for what, damaged in damage.sections(section, 150, seed=3):
        try:
            cls(params, kernels, damaged)
        except BaselineError:
            continue
        except Exception as error:
            raise AssertionError(f"{what} in a baseline") from error
        assert damage.has_no_new_nan(section, damaged), f"{what} would make thresholds that nothing is above"


@pytest.mark.parametrize("name", NAMES)
def test_a_clock_set_back_is_no_worse_than_to_begin_anew(name: str) -> None:
    """A host that boots with its clock ahead must not be blind until the time that it had has come."""
    parts = sorted(atoms(case(name).records), key=when)
    early, late = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    anew, straight = told_of(name, [], late, 0.0), told_of(name, early, late, 0.0)
    assert told_of(name, early, late, YEAR) >= anew & straight


def told_of(name: str, early: list[Records], late: list[Records], ahead: float) -> set[tuple[str, str]]:
    """Whom raw findings of the late records are about; the early ones came while the clock was ``ahead``, seconds."""
    fold = fold_of(case(name).make())
    found = listen(fold)
    if early:
        fold.push([SourceStatus(ts=when(early[0]) + ahead, source="clock", ok=True)])
        for push in regroup([moved(one, ahead) for one in early], [100] * 1000):
            fold.push(push)
    fold.push([SourceStatus(ts=when(late[0]), source="clock", ok=True)])
    found.clear()
    for push in regroup(late, [100] * 1000):
        fold.push(push)
    fold.finish()
    return {(one.subject_kind, "" if one.subject_kind == "campaign" else one.subject) for one in found}


def when(records: Records) -> float:
    return float(records.completion[0]) if isinstance(records, RequestBatch) else records.ts


def moved(records: Records, seconds: float) -> Records:
    if isinstance(records, RequestBatch):
        return RequestBatch(records.columns | {"ts": records.ts + seconds}, records.seq)
    return dataclasses.replace(records, ts=records.ts + seconds)


@pytest.mark.parametrize("name", NAMES)
def test_a_snapshot_is_its_own_copy(name: str) -> None:
    detector = case(name).make()
    for one in case(name).records:
        detector.observe(one)
    other = case(name).make()
    other.restore(detector.snapshot())
    assert other.snapshot() == detector.snapshot()


@pytest.mark.parametrize("name", NAMES)
def test_it_declares_what_it_is(name: str) -> None:
    cls = plugins.detectors()[name]
    assert cls.name.startswith(THREATS)
    assert msgspec.convert({}, cls.Params) == cls.Params(), "a configuration without its table must do"
    assert cls.summary
    assert cls.action
    assert cls.blind_spots, "a detector that sees everything does not exist"
    assert cls.consumes
    assert cls.key in {"client", "model", "gpu", "host"}
    for control in (*cls.atlas, *cls.owasp):
        assert controls.names([control])
    detector = case(name).make()
    for gauges in (detector.standing().gauges, _seasoned(detector, case(name).records).standing().gauges):
        assert all(np.isfinite(value) for value in gauges.values())
        assert not [gauge for gauge in gauges if gauge.endswith(RESERVED)], "OpenMetrics keeps these suffixes"
        assert set(gauges) <= set(DETECTOR_GAUGES), "add a row to mlsecd/sinks/metrics_catalog.py"


def _seasoned(detector: Detector, records: Iterable[Records]) -> Detector:
    for one in records:
        detector.observe(one)
    return detector
