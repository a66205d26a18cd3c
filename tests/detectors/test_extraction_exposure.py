from __future__ import annotations

import functools
import json
import math
import string
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Case, fold_of, lines, requests

from mlsecd import baseline
from mlsecd.detectors._account_groups import Groups, prefix_of, read_links
from mlsecd.detectors._exposure_cells import Codebook
from mlsecd.detectors._exposure_chart import GRID
from mlsecd.detectors._exposure_fit import _rarefaction
from mlsecd.detectors._exposure_sight import CLIENTS_MAX, Sight, Sights
from mlsecd.detectors.base import DetectorState, Fit, Interval, Section
from mlsecd.detectors.extraction_exposure import DETECTOR, ExtractionExposure, Params
from mlsecd.errors import BaselineError, StateError
from mlsecd.kernels import cpu
from mlsecd.records import Finding, RequestBatch, Severity

DIMS, CLASSES = 6, 4
CENTRES = np.random.default_rng(99).normal(0, 3, (CLASSES, DIMS))
SMALL = {"min_queries": 60, "min_group_queries": 60}


def queries(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """Ordinary queries: around one of the classes' centres."""
    label = rng.integers(0, CLASSES, n)
    return CENTRES[label] + rng.normal(0, 1, (n, DIMS)), label


def batch(x: Any, label: Any, client: Any, *, start: float = 0.0, step: float = 1.0, **columns: Any) -> RequestBatch:
    given = {"features": x, "predicted": [str(one) for one in label], "client": client, **columns}
    return requests(start + step * np.arange(len(x)), **{key: one for key, one in given.items() if one is not None})


def crowd(rng: np.random.Generator, clients: int, rows: int, prefix: str = "c", **columns: Any) -> RequestBatch:
    """Ordinary clients, one query each in turn."""
    x, label = queries(rng, clients * rows)
    return batch(x, label, [f"{prefix}{i % clients}" for i in range(clients * rows)], **columns)


@functools.cache
def fitted() -> Fit:
    return DETECTOR.fit([crowd(np.random.default_rng(1), 60, 60, step=2.0)], Params(), cpu)


@functools.cache
def fitted_both() -> Fit:
    x, label = queries(np.random.default_rng(2), 60 * 40)
    names = [f"c{i % 60}" for i in range(len(x))]
    return DETECTOR.fit([batch(np.tanh(x), label, names, input_features=x)], Params(), cpu)


def make(section: Section | None = None, **params: Any) -> ExtractionExposure:
    section = fitted().section if section is None else section
    return DETECTOR(Params(**{**SMALL, **params}), cpu, section)


def together(*batches: RequestBatch) -> RequestBatch:
    joined = RequestBatch.concat(batches)
    return joined.take(np.argsort(joined.completion, kind="stable"))


def told(detector: ExtractionExposure, *batches: RequestBatch) -> list[Finding]:
    """Every telling, each ten seconds of event time, as the fold asks for it; the last interval is closed too."""
    joined = together(*batches)
    ticks = joined.completion // 10
    cuts = [0, *(np.flatnonzero(np.diff(ticks)) + 1).tolist(), len(joined)]
    found = []
    for start, stop in pairwise(cuts):
        found += detector.observe(joined.slice(start, stop))
        end = float(ticks[start] + 1) * 10
        found += detector.close(Interval(end - 10, end), sorted(detector.states(), key=lambda pair: pair[0]))
    return found


def conformance() -> Case:
    rng = np.random.default_rng(7)
    x, label = queries(rng, 150)
    parts = [crowd(rng, 8, 90, step=0.5, network="192.0.2.1")]
    parts += [batch(x, label, "thief", start=50.5, step=1.5, principal="tenant")]
    parts += [batch(x[:90], label[:90], [f"sybil{i % 9}" for i in range(90)], start=60.2, network="198.51.100.7")]
    parts += [batch(x[:70], label[:70], "c3", start=50.2, synthetic=True)]
    parts += [batch(x[:30], label[:30], None, start=55.2), batch(x[:30], label[:30], "c4", start=60.1, features=None)]
    joined = together(*parts)
    return Case(
        detector=DETECTOR,
        params=Params(**SMALL),
        records=[joined.slice(i, min(i + 100, len(joined))) for i in range(0, len(joined), 100)],
        limited=Params(**SMALL, max_clients=40, max_groups=40),
        flood=lambda count: [
            crowd(
                np.random.default_rng(8),
                count,
                2,
                network=[f"10.{i % count >> 8}.{i % 256}.1" for i in range(2 * count)],
            )
        ],
        section=fitted().section,
    )


# What it tells


def test_a_thief_with_ordinary_data_leads_by_pace() -> None:
    rng = np.random.default_rng(3)
    x, label = queries(rng, 150)
    found = told(make(), crowd(rng, 8, 100, step=2.0), batch(x, label, "thief", start=900.0, step=0.25))
    mine = [one for one in found if one.subject == "thief"]
    first, last = mine[0], mine[-1]
    assert (first.subject_kind, first.severity, first.certified, first.synthetic) == (
        "client",
        Severity.INFO,
        False,
        False,
    )
    evidence = last.evidence
    assert (evidence["pace_rank"], evidence["rank"], evidence["by"]) == (1, 1, "pace")
    assert evidence["queries"] == evidence["distinct_queries"] == 120
    assert evidence["coverage"] == round(evidence["cells_seen"] / evidence["cells"], 4)
    assert 0.8 < evidence["coverage_over_expected"] < 1.2
    assert evidence["ordinary_clients_with_fewer_queries"] == 1.0
    assert 3.5 < evidence["effective_classes"] <= 4.0
    assert (evidence["model"], evidence["inputs"], evidence["calibration_clients"]) == ("m", ["features"], 40)
    assert last.score == pytest.approx(evidence["ratio"], abs=0.01)
    assert f'has seen {evidence["coverage"]:.0%} of the input cells of model "m"' in last.reason
    assert "x the median client, with 120 queries in 0.0 h: rank 1 by pace" in last.reason
    json.dumps(last.line(), allow_nan=False)


def test_what_is_told_are_the_cells_that_were_seen() -> None:
    rng = np.random.default_rng(5)
    x, label = queries(rng, 100)
    detector = make(min_ratio=0.01)
    evidence = told(detector, batch(x, label, "a", step=0.01))[-1].evidence
    book = Codebook.of(fitted().section.arrays, "0.f")  # type: ignore[union-attr]
    codes = book.codes(x.astype(np.float32), cpu).astype(float)
    distances = ((codes[:, None, :] - book.centres.astype(float)[None]) ** 2).sum(axis=2)
    assert evidence["cells_seen"] == len(np.unique(distances.argmin(axis=1)))
    assert evidence["cells"] == book.cells


def test_it_tells_again_when_the_volume_has_grown_by_the_root_of_two() -> None:
    rng = np.random.default_rng(4)
    found = told(make(min_ratio=0.5), batch(*queries(rng, 1_000), "steady"))
    volumes = [one.evidence["queries"] for one in found]
    assert volumes[0] == 60
    assert 7 <= len(volumes) <= 9
    assert all(later >= math.sqrt(2) * earlier for earlier, later in pairwise(volumes))
    assert [one.ts for one in found] == [float(volume - 1) for volume in volumes]


def test_only_the_leading_are_told() -> None:
    found = told(make(leading=2, min_ratio=0.5), crowd(np.random.default_rng(6), 12, 100, step=0.7))
    assert all(one.evidence["rank"] <= 2 for one in found)
    assert max(one.evidence["of"] for one in found) == 12
    by_instant: dict[float, int] = {}
    for one in found:
        by_instant[one.ts // 10] = by_instant.get(one.ts // 10, 0) + 1
    assert max(by_instant.values()) <= 4


def test_many_queries_that_see_little_are_not_told() -> None:
    rng = np.random.default_rng(3)
    x, label = np.tile(CENTRES[:1], (300, 1)) + rng.normal(0, 0.01, (300, DIMS)), np.zeros(300, int)
    detector = make()
    assert told(detector, batch(x, label, "narrow")) == []
    gauges = detector.standing().gauges
    assert (gauges["ranked_clients"], gauges["exposed_clients"]) == (1, 0)


@pytest.mark.parametrize("hashes", [True, False])
def test_exact_retries_are_no_new_queries(hashes: bool) -> None:
    x, label = queries(np.random.default_rng(3), 80)
    x, label = np.repeat(x, 10, axis=0), np.repeat(label, 10)
    bodies = [f"b{i // 10}" for i in range(800)] if hashes else None
    last = told(make(min_ratio=0.1), batch(x, label, "stubborn", body_hash=bodies))[-1].evidence
    assert last["queries"] > 500
    assert last["distinct_queries"] <= 80
    assert last["coverage_over_expected"] > 0.8, "it is held against as many distinct queries, not against all"


def test_a_slow_one_leads_by_coverage_once_it_has_asked_more() -> None:
    rng = np.random.default_rng(3)
    x, label = queries(rng, 400)
    fast = crowd(rng, 4, 70, "fast", start=230_000.0, step=0.1)
    ranked = make(leading=5)
    told(ranked, batch(x, label, "slow", step=600.0), fast)
    after = told(ranked, batch(*queries(rng, 200), "slow", start=240_100.0, step=600.0))
    ranks = {(one.evidence["pace_rank"], one.evidence["coverage_rank"], one.evidence["by"]) for one in after}
    assert ranks == {(5, 1, "coverage")}


def test_synthetic_accounts_are_ranked_apart() -> None:
    rng = np.random.default_rng(3)
    x, label = queries(rng, 90)
    found = told(make(min_ratio=0.5), crowd(rng, 3, 90, step=0.4), batch(x, label, "c1", step=0.1, synthetic=True))
    probe = [one for one in found if one.synthetic]
    assert {(one.subject, one.evidence["of"]) for one in probe} == {("c1", 1)}
    assert max(one.evidence["of"] for one in found if not one.synthetic) == 3


def test_two_epochs_count_together_and_older_ones_are_forgotten() -> None:
    rng = np.random.default_rng(3)
    detector = make(epoch_seconds=3_600.0, min_ratio=0.1)
    turn = told(detector, batch(*queries(rng, 100), "thief", start=3_550.0, network="192.0.2.1"))
    assert [one.evidence["queries"] for one in turn] == [60, 90]
    late = told(detector, batch(*queries(rng, 30), "thief", start=7_300.0, network="192.0.2.1"))
    assert [one.evidence["queries"] for one in late] == [60], "50 of the epoch before and 10 of this one"
    assert late[0].evidence["first_ts"] == 3_600.0
    afresh = told(detector, batch(*queries(rng, 70), "thief", start=20_000.0))
    assert [(one.evidence["queries"], one.evidence["first_ts"]) for one in afresh] == [(60, 20_000.0)]


def test_who_is_quiet_for_two_epochs_leads_no_more() -> None:
    rng = np.random.default_rng(3)
    detector = make(epoch_seconds=3_600.0, min_ratio=0.1)
    told(detector, batch(*queries(rng, 300), "gone"))
    ranks = [told(detector, batch(*queries(rng, 61), f"c{i}", start=3_600.0 * i))[0].evidence for i in (1, 2)]
    assert [one["of"] for one in ranks] == [2, 2]


def test_rows_use_the_inputs_that_they_have() -> None:
    rng = np.random.default_rng(3)
    x, label = queries(rng, 90)
    section = fitted_both().section
    for columns, wanted in (
        ({"features": np.tanh(x)}, "features"),
        ({"features": None, "input_features": x}, "input_features"),
    ):
        found = told(make(section), batch(x, label, "a", step=0.1, **columns))
        assert found[-1].evidence["inputs"] == [wanted]
        assert 0.8 < found[-1].evidence["coverage_over_expected"] < 1.2
    assert told(make(section), batch(x, label, "a", features=np.tanh(x), input_features=x[:, :3]))


# Groups


def split_work(rng: np.random.Generator, accounts: int, rows: int, **columns: Any) -> RequestBatch:
    return crowd(rng, accounts, rows, "sybil", **columns)


@pytest.mark.parametrize(
    ("columns", "links", "kind", "value"),
    [
        ({"network": [f"203.0.113.{i % 20}" for i in range(200)]}, (), "network", "203.0.113.0/24"),
        ({"network": [f"2001:db8:1:2::{i % 20:x}" for i in range(200)]}, (), "network", "2001:db8:1:2::/64"),
        ({"network": "::ffff:203.0.113.9"}, (), "network", "203.0.113.0/24"),
        ({"principal": "tenant-7"}, (), "principal", "tenant-7"),
        ({}, ('"one, payment card",' + ",".join(f"sybil{i}" for i in range(20)),), "link", "one, payment card"),
    ],
)
def test_work_split_over_accounts_is_added_up(columns: Any, links: tuple[str, ...], kind: str, value: str) -> None:
    rng = np.random.default_rng(3)
    found = told(make(links=links), split_work(rng, 20, 10, step=0.3, **columns), crowd(rng, 4, 20))
    assert {one.subject_kind for one in found} == {"campaign"}, "no account has enough queries alone"
    last = found[-1]
    assert (last.evidence["group"], last.evidence["value"]) == (kind, value)
    assert last.evidence["clients"] == sorted(f"sybil{i}" for i in range(20))
    assert last.evidence["queries"] >= 120
    assert last.evidence["ratio"] > 1.5
    assert last.reason.startswith(f"20 accounts of one {kind} together: has seen")
    assert len(last.subject) == 16
    assert set(last.subject) <= set(string.hexdigits)


def test_one_account_is_no_group() -> None:
    rng = np.random.default_rng(3)
    found = told(make(min_ratio=0.1), batch(*queries(rng, 200), "one", network="203.0.113.7"))
    assert {one.subject_kind for one in found} == {"client"}


def test_a_groups_names_are_bounded() -> None:
    rng = np.random.default_rng(3)
    found = told(make(), crowd(rng, 2 * CLIENTS_MAX, 1, step=0.01, network="203.0.113.7"))
    assert len(found[-1].evidence["clients"]) == CLIENTS_MAX
    assert found[-1].reason.startswith("256 or more accounts of one network together")


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("203.0.113.200", "203.0.113.0/24"),
        (" 10.1.2.3 ", "10.1.2.0/24"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("not an address", None),
        ("", None),
        ("300.1.1.1", None),
        ("1.2.3.4:80", None),
    ],
)
def test_prefixes(address: str, prefix: str | None) -> None:
    assert prefix_of(address) == prefix


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_text_may_stand_for_an_address(address: str) -> None:
    prefix = prefix_of(address)
    assert prefix is None or prefix.endswith(("/24", "/64"))
    groups = Groups([]).of(requests([0.0], client="a", network=address))
    assert groups == [[("network", prefix)] if prefix else []]


# Counting


@pytest.mark.parametrize("n", [10, 100, 1_000, 10_000])
def test_distinct_requests_are_counted_closely(n: int) -> None:
    sight = Sight()
    for bit in np.random.default_rng(n).integers(0, 4_096, n).tolist():
        sight.see(0.0, (), bit, -1)
    assert sight.distinct == pytest.approx(n, rel=0.06)
    assert sight.distinct <= n


def test_a_full_bitmap_is_still_a_number() -> None:
    assert Sight(queries=10**6, keys=2**4_096 - 1).distinct == pytest.approx(34_070, abs=1)


@given(
    st.lists(st.tuples(st.integers(0, 511), st.integers(0, 4_095), st.integers(-1, 4)), max_size=60), st.integers(0, 60)
)
@settings(deadline=None)
def test_two_halves_merge_to_the_whole(rows: list[tuple[int, int, int]], cut: int) -> None:
    whole, one, two = Sight(0.0), Sight(0.0), Sight(0.0)
    for i, (cell, bit, label) in enumerate(rows):
        for sight in (whole, one if i < cut else two):
            sight.see(float(i), (cell, -1), bit, label)
            sight.meet(f"c{bit % 5}", float(i))
    assert one.merged(two) == two.merged(one)
    merged = one.merged(two)
    assert dict(merged.clients) == dict(whole.clients)
    assert merged.dump()[:-1] == whole.dump()[:-1]
    assert Sight.load(whole.dump()) == whole


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 511), st.booleans()), max_size=40))
@settings(deadline=None)
def test_shards_agree_on_epochs(rows: list[tuple[int, int, bool]]) -> None:
    whole, one, two = Sight(), Sight(), Sight()
    for i, (epoch, cell, home) in enumerate(sorted(rows)):
        for sight in (whole, one if home else two):
            sight.enter(float(epoch))
            sight.see(float(i), (cell, -1), cell, 0)
    merged = one.merged(two)
    assert merged == two.merged(one)
    assert merged.asked == whole.asked
    assert [merged.at(float(epoch)) for epoch in range(8)] == [whole.at(float(epoch)) for epoch in range(8)]
    assert Sight.load(whole.dump()) == whole


def test_cells_do_not_depend_on_how_rows_are_cut() -> None:
    book = Codebook.of(fitted().section.arrays, "0.f")  # type: ignore[union-attr]
    x = queries(np.random.default_rng(8), 10_000)[0].astype(np.float32)
    x[::7] *= 1e6
    whole = book.places(x, cpu)
    for size in (1, 3, 100):
        parts = [book.places(x[i : i + size], cpu) for i in range(0, 600, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[:600])


def test_the_expected_coverage_is_that_of_random_draws() -> None:
    rng = np.random.default_rng(3)
    mass = rng.dirichlet(np.full(50, 0.5))
    places = [rng.choice(50, 200, p=mass) for _ in range(400)]
    curve = _rarefaction(places, 50)
    for n in (1, 10, 100, 1_000):
        drawn = np.mean([len(np.unique(rng.choice(50, n, p=mass))) / 50 for _ in range(200)])
        assert np.interp(math.log(n), np.log(GRID), curve) == pytest.approx(drawn, rel=0.05)


def test_a_flood_of_names_does_not_push_out_who_has_asked_much() -> None:
    sights = Sights(20)
    for i in range(60):
        sights.touch("old hand", float(i)).see(float(i), (1, 2), i, -1)  # type: ignore[union-attr]
    assert sights.touch("old hand", 100.0).queries == 60  # type: ignore[union-attr]
    for i in range(10_000):
        sight = sights.touch(f"flood{i}", 1_000.0 + 10.0 * i)
        if sight is not None:
            sight.see(1_000.0 + 10.0 * i, (1, 2), 0, -1)
    assert len(sights) == 21
    assert sights.evicted == 9_980
    assert sights.touch("old hand", 200_000.0).queries == 60  # type: ignore[union-attr]


def test_a_newcomer_finds_no_room_among_those_of_the_same_instant() -> None:
    detector = make(max_clients=10)
    told(detector, crowd(np.random.default_rng(3), 30, 1, step=0.001))
    gauges = detector.standing().gauges
    assert (gauges["clients"], gauges["refused_rows"]) == (10, 20)


# Standing


def test_unknown_clients_models_and_widths_are_counted_and_skipped() -> None:
    rng = np.random.default_rng(3)
    x, label = queries(rng, 30)
    nan = x.copy()
    nan[:, 0] = np.nan
    detector = make()
    told(detector, batch(x, label, None), batch(x, label, "a", model="another"), batch(x, label, "b", features=None))
    assert detector.standing().state is DetectorState.ARMED
    for i in range(4):
        told(detector, batch(x[:, :5], label, "e", start=100.0 * i))
    told(detector, batch(nan, label, "d", start=500.0))
    standing = detector.standing()
    gauges = standing.gauges
    assert (gauges["unattributed_rows"], gauges["unscored_rows"], gauges["mismatched_rows"]) == (30, 30 * 7, 30 * 5)
    assert (gauges["clients"], gauges["groups"]) == (0, 0)
    assert standing.state is DetectorState.MISMATCH
    assert "was the model replaced?" in standing.why
    told(detector, batch(*queries(rng, 1), "fine", start=600.0))
    assert detector.standing().state is DetectorState.ARMED


def test_a_maximum_over_few_is_not_shown() -> None:
    rng = np.random.default_rng(3)
    few, more = make(), make()
    told(few, crowd(rng, 4, 80))
    told(more, crowd(rng, 5, 80))
    assert "coverage_max_ratio" not in few.standing().gauges
    gauges = more.standing().gauges
    assert gauges["coverage_max_ratio"] == pytest.approx(1.2, abs=0.4)
    assert gauges["ranked_clients"] == 5


def test_without_a_baseline_it_learns_and_counts() -> None:
    detector = DETECTOR(Params(), cpu, None)
    assert told(detector, crowd(np.random.default_rng(3), 3, 10)) == []
    standing = detector.standing()
    assert standing.state is DetectorState.LEARNING
    assert "baseline fit" in standing.why
    assert standing.gauges["unscored_rows"] == 30


def test_a_restart_through_the_fold_tells_nothing_twice() -> None:
    rng = np.random.default_rng(3)
    first, second = crowd(rng, 6, 90, step=0.5), crowd(rng, 6, 30, start=300.0)
    whole = fold_of(make())
    wanted = lines(whole, [[first], [second]])
    before = fold_of(make())
    got = lines(before, [[first]], finish=False)
    after = fold_of(make())
    assert after.restore(before.snapshot()) == []
    got += lines(after, [[second]])
    assert sorted(got, key=lambda line: line["ts"]) == sorted(wanted, key=lambda line: line["ts"])
    assert wanted


def test_a_snapshot_belongs_to_its_baseline() -> None:
    blob = make(fitted_both().section).snapshot()
    with pytest.raises(StateError, match="another baseline"):
        make().restore(blob)


# Learning


@pytest.mark.parametrize(("clients", "rows", "eligible"), [(29, 40, 29), (60, 9, 0)])
def test_too_few_clients_are_refused_with_what_is_needed(clients: int, rows: int, eligible: int) -> None:
    fit = DETECTOR.fit([crowd(np.random.default_rng(1), clients, rows)], Params(), cpu)
    assert fit.section is None
    assert fit.refused == (f'model "m": {eligible} clients, too few; needs 30 clients with 16 distinct queries each')


def test_too_few_queries_are_refused() -> None:
    fit = DETECTOR.fit([crowd(np.random.default_rng(1), 30, 20)], Params(), cpu)
    assert fit.section is None
    assert 'model "m": 200 queries of 10 clients, too few for cells' in (fit.refused or "")


def test_nothing_to_learn_from_is_refused() -> None:
    for records in ([], [batch(*queries(np.random.default_rng(3), 30), None)]):
        fit = DETECTOR.fit(records, Params(), cpu)
        assert fit.section is None
        assert "no request has a client" in (fit.refused or "")


def test_it_says_what_it_learned() -> None:
    [note] = fitted().notes
    assert note.startswith(
        'model "m": 300 cells of features; the median of 40 clients asked 60 distinct queries and saw'
    )


def test_synthetic_rows_teach_nothing() -> None:
    rng = np.random.default_rng(1)
    fit = DETECTOR.fit([crowd(rng, 60, 60), crowd(rng, 60, 60, "s", synthetic=True)], Params(), cpu)
    assert fit.section is not None
    assert fit.section.header["charts"][0]["facts"]["clients"] == 40.0


def test_a_fit_does_not_depend_on_how_records_come() -> None:
    whole = crowd(np.random.default_rng(1), 60, 60, step=2.0)
    fit = DETECTOR.fit([whole.slice(i, min(i + 700, len(whole))) for i in range(0, len(whole), 700)], Params(), cpu)
    assert fit.section is not None
    for name, array in fitted().section.arrays.items():  # type: ignore[union-attr]
        np.testing.assert_array_equal(fit.section.arrays[name], array, err_msg=name)


def test_wide_vectors_and_several_models() -> None:
    rng = np.random.default_rng(9)
    wide = rng.normal(0, 1, (1_600, 100))
    other = batch(wide, rng.integers(0, 3, 1_600), [f"w{i % 40}" for i in range(1_600)], model="n")
    fit = DETECTOR.fit([crowd(rng, 60, 60), other], Params(), cpu)
    assert fit.section is not None
    assert [one["model"] for one in fit.section.header["charts"]] == ["m", "n"]
    assert fit.section.arrays["1.f.matrix"].shape == (100, 64)
    detector = make(fit.section, min_ratio=0.1)
    found = told(detector, batch(wide[:90], np.zeros(90, int), "a", step=0.1, model="n"))
    assert {one.evidence["model"] for one in found} == {"n"}
    limited = DETECTOR.fit([crowd(rng, 60, 60), other], Params(max_models=1), cpu)
    assert any("1 smaller models left out" in note for note in limited.notes)


def test_a_section_goes_through_the_baseline_file(tmp_path: Path) -> None:
    section = fitted().section
    assert section is not None
    baseline.write(tmp_path / "b.npz", {}, {DETECTOR.name: section})
    read = baseline.read(tmp_path / "b.npz").sections[DETECTOR.name]
    one = batch(*queries(np.random.default_rng(3), 200), "thief")
    assert [found.line() for found in told(make(read), one)] == [found.line() for found in told(make(), one)]


@pytest.mark.parametrize("damage", ["missing", "shape", "curve", "header", "median", "step", "none"])
def test_a_section_that_does_not_fit_is_refused(damage: str) -> None:
    section = fitted().section
    assert section is not None
    header, arrays = json.loads(json.dumps(section.header)), dict(section.arrays)
    match damage:
        case "missing":
            del arrays["0.f.centres"]
        case "shape":
            arrays["0.f.centres"] = arrays["0.f.centres"][:, 1:]
        case "curve":
            arrays["0.breadth"] = arrays["0.breadth"][:, 1:]
        case "header":
            header["charts"][0]["columns"] = ""
        case "median":
            header["charts"][0]["facts"]["median_coverage"] = 0.0
        case "step":
            arrays["0.f.step"] = np.zeros(1)
        case "none":
            header["charts"] = []
    with pytest.raises(BaselineError, match="extraction_exposure"):
        make(Section(header, arrays))


def test_odd_vectors_are_cut_off_not_crashed_on() -> None:
    x, label = queries(np.random.default_rng(3), 90)
    x[:, 0] = np.where(np.arange(90) % 2, 3e38, -3e38)
    detector = make(min_ratio=0.01)
    assert told(detector, batch(x, label, "odd", step=0.1))
    assert detector.standing().gauges["unscored_rows"] == 0


@pytest.mark.parametrize(
    ("links", "why"),
    [
        (["a,b", "x,y\nz,w"], r"links\[1\] has a line break"),
        (['a,"b,c', "x,y"], r"links\[0\] is no single line of CSV: unexpected end of data"),
        (["", "lonely"], r"links\[1\] needs a group's name and at least one client"),
        ([",b"], r"links\[0\] needs a group's name"),
        (["a,b", "c,d, b"], r'links\[1\]: client "b" is in group "a" already'),
    ],
)
def test_links_that_are_none_are_told_with_the_configuration(links: list[str], why: str) -> None:
    """Not by a traceback at the start, or by a group that swallowed the next one."""
    with pytest.raises(msgspec.ValidationError, match=why):
        msgspec.convert({"links": links}, Params)
    assert read_links(['team a,"b, inc",c', " ", "x, y "]) == {"b, inc": "team a", "c": "team a", "y": "x"}
