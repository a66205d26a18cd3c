"""Repeats and rows without a usable vector: no hiding place, and no charge against the innocent."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from support import fold_of

from mlsecd.detectors import _extraction_fit, _extraction_hiding_fit
from mlsecd.detectors._extraction_cohorts import Cohorts
from mlsecd.detectors._extraction_hiding import UNSCORED, raised
from mlsecd.detectors._extraction_hiding_fit import BlankRows
from mlsecd.detectors.base import Fit
from mlsecd.detectors.extraction_account import DETECTOR, ExtractionAccount, Params
from mlsecd.engines.fold import Fold
from mlsecd.findings.ledger import Ledger
from mlsecd.kernels import cpu
from mlsecd.meters import Meters
from mlsecd.records import Finding, RequestBatch, Severity, Status
from tests.detectors.test_extraction_account import ALPHA, CENTRES, DIMS, batch, crowd, make, odd, queries, told

HIDING = {"retry", "unscored"}


def joined(*batches: RequestBatch) -> RequestBatch:
    whole = RequestBatch.concat(batches)
    return whole.take(np.argsort(whole.completion, kind="stable"))


def heard(detector: ExtractionAccount, *batches: RequestBatch, beside: int = 15) -> list[Finding]:
    """Every finding that the detector makes, before lives are made of them; ordinary clients come beside."""
    ordinary = [crowd(np.random.default_rng(41), beside, 80, "beside")] if beside else []
    found: list[Finding] = []

    class Ear(Ledger):
        def take(self, findings: Iterable[Finding]) -> list[Finding]:
            found.extend(kept := list(findings))
            return super().take(kept)

    fold = Fold([detector], Ear(resolve_after_seconds=900.0, update_after_seconds=60.0, limit=10_000), Meters())

    def failed(_detector: Any, error: Exception) -> None:
        raise error

    fold.on_failed = failed
    fold.push([joined(*ordinary, *batches)])
    fold.finish()
    return found


def hidden(*batches: RequestBatch, detector: ExtractionAccount | None = None, beside: int = 15) -> list[Finding]:
    """Those that are led by what cannot be judged."""
    found = heard(detector or make(), *batches, beside=beside)
    return [one for one in found if one.evidence["channels"][0]["channel"] in HIDING]


def leading(found: list[Finding]) -> set[tuple[str, str]]:
    return {(one.subject, one.evidence["channels"][0]["channel"]) for one in found}


# Not a way to hide


def test_cheap_repeats_buy_no_silence_for_the_theft_that_follows() -> None:
    rng = np.random.default_rng(42)
    x, label = queries(rng, 1)
    cheap = batch(np.repeat(x, 1_900, axis=0), np.repeat(label, 1_900), "thief", step=0.5, body_hash=["same"] * 1_900)
    theft = batch(*odd(rng, 40), "thief", start=1_000.25)
    found = [one for one in heard(make(), cheap, theft) if one.subject == "thief"]
    assert ("thief", "retry") in leading(found)
    assert {one.severity for one in found if one.ts < 1_000.0} == {Severity.LOW}, "repeats alone are a ticket"
    loud = [one for one in found if one.severity is Severity.HIGH]
    assert loud[0].ts <= 1_000.25 + 12.0
    assert loud[0].certified
    assert {one["channel"] for one in loud[0].evidence["channels"]}.isdisjoint(HIDING)


def test_who_has_every_query_taken_for_a_retry_is_told() -> None:
    """Steps below the rounding under one hash count for no channel of content."""
    rng = np.random.default_rng(42)
    x = CENTRES[:1] + rng.normal(0, 0.02, (400, DIMS))
    x[:10] = queries(rng, 10)[0]
    found = hidden(batch(x, np.zeros(400, int), "forger", body_hash=["same"] * 400))
    assert leading(found) == {("forger", "retry")}
    first = found[0]
    assert (first.severity, first.certified, first.atlas) == (Severity.LOW, False, DETECTOR.atlas)
    assert "repeat an earlier body, by its hash" in first.reason
    assert 'what it asks model "m" is kept from judgement, or its client is broken' in first.reason


def test_equal_hashes_over_other_vectors_are_told_as_repeats_and_by_content() -> None:
    rng = np.random.default_rng(43)
    assert leading(hidden(batch(*queries(rng, 300), "forger", body_hash=["same"] * 300))) == {("forger", "retry")}
    assert Severity.HIGH in {
        one.severity for one in heard(make(), batch(*odd(rng, 60), "thief", body_hash=["same"] * 60))
    }


def test_a_memory_full_of_other_bodies_hides_no_odd_query() -> None:
    """1,100 bodies in turn: none is remembered when it comes again, so each counts as new."""
    rng = np.random.default_rng(44)
    x, label = queries(rng, 1_100)
    x[::20], label[::20] = odd(rng, 55)
    turns = [f"b{i % 1_100}" for i in range(3_300)]
    found = told(make(), batch(np.tile(x, (3, 1)), np.tile(label, 3), "saturator", body_hash=turns))
    assert found
    assert found[0].evidence["queries"] < 1_100
    assert found[-1].evidence["queries"] == found[-1].evidence["distinct_queries"]


@pytest.mark.parametrize("how", ["none", "nan", "width"])
def test_free_queries_without_a_vector_are_told(how: str) -> None:
    x, label = odd(np.random.default_rng(45), 60)
    given = {"none": None, "nan": np.where(np.arange(DIMS) == 2, np.nan, x), "width": x[:, :5]}[how]
    found = hidden(batch(x, label, "thief", start=100.3, step=10.0, features=given))
    assert leading(found) == {("thief", "unscored")}
    assert {(one.severity, one.certified) for one in found} == {(Severity.LOW, False)}
    first = found[0].evidence["channels"][0]
    assert first["count"] == first["of"] >= 10
    assert "were answered without a vector that can be judged" in found[0].reason


def test_free_queries_under_cover_are_told() -> None:
    rng = np.random.default_rng(46)
    cover = batch(*queries(rng, 200), "thief", start=50.1, step=5.0)
    free = batch(*odd(rng, 100), "thief", start=52.6, step=10.0, features=None)
    found = hidden(cover, free)
    assert leading(found) == {("thief", "unscored")}
    assert found[0].evidence["channels"][0]["of"] > found[0].evidence["channels"][0]["count"], "all answered rows"


# Not a charge against the innocent


def polls(rng: np.random.Generator, name: str, rows: int, start: float) -> RequestBatch:
    """A dozen queries, and then the last of them again and again."""
    x, label = queries(rng, 12)
    again = np.minimum(np.arange(rows), 11)
    return batch(x[again], label[again], name, start=start, step=0.4, body_hash=[f"{name}{i}" for i in again])


def test_pollers_that_lose_some_vectors_are_not_told_for_them() -> None:
    """A row that repeats is a row: half a percent of 3,000 is not fifteen of a few."""
    rng = np.random.default_rng(52)
    learned = [polls(rng, f"q{i}", 3_000, i / 10) for i in range(9)]
    section = DETECTOR.fit([crowd(np.random.default_rng(1), 60, 40), *learned], Params(), cpu).section
    fresh = []
    for i in range(3):
        one = polls(rng, f"p{i}", 3_000, i / 10)
        one.columns["features"].values.reshape(-1, DIMS)[100::200] = np.nan  # type: ignore[union-attr]
        fresh.append(one)
    assert leading(hidden(*fresh, detector=make(section))) == set()


def test_fewer_than_ten_are_no_case() -> None:
    x, label = odd(np.random.default_rng(53), 12)
    for many, expected in ((9, set()), (12, {("few", "unscored")})):
        free = batch(x[:many], label[:many], "few", start=100.3, step=10.0, features=None)
        assert leading(hidden(free)) == expected


def test_a_service_that_stops_to_send_vectors_accuses_nobody() -> None:
    rng = np.random.default_rng(47)
    everybody = [batch(*queries(rng, 40), f"c{i}", start=300.0 + i / 20, step=5.0, features=None) for i in range(15)]
    thief = batch(*odd(rng, 40), "thief", start=300.7, step=5.0, features=None)
    assert hidden(*everybody, thief, beside=0) == []


def test_one_that_leaves_out_a_tenth_accuses_nobody_either() -> None:
    rng = np.random.default_rng(48)
    made = []
    for i in range(20):
        x, label = queries(rng, 200)
        x[rng.random(200) < 0.1] = np.nan
        made.append(batch(x, label, f"d{i}", start=100.0 + i / 20, step=3.0))
    assert leading(hidden(*made)) == set()


def test_a_gateway_that_sends_one_hash_for_all_bodies_accuses_nobody() -> None:
    rng = np.random.default_rng(54)
    everybody = [
        batch(*queries(rng, 60), f"c{i}", start=i / 20, step=5.0, body_hash=["constant"] * 60) for i in range(15)
    ]
    assert hidden(*everybody, beside=0) == []


@pytest.mark.parametrize(("status", "many"), [(503, 0), (200, 1), (None, 1)])
def test_what_failed_was_no_query(status: int | None, many: int) -> None:
    x, label = odd(np.random.default_rng(49), 60)
    given = batch(x, label, "poor", start=100.3, step=10.0, features=None, status=status or np.nan)
    assert len(leading(hidden(given))) == many


# When it is told


def test_whose_blanks_they_are_is_told_once_others_have_come_and_as_of_then() -> None:
    rng = np.random.default_rng(50)
    alone = batch(*odd(rng, 60), "thief", start=0.3, step=10.0, features=None)
    for many, expected in ((7, set()), (8, {("thief", "unscored")})):
        others = [batch(*queries(rng, 40), f"c{i}", start=7_200.0 + i / 10, step=10.0) for i in range(many)]
        fold = fold_of(make())
        lines = fold.push([alone]) + fold.push([joined(*others)])
        found = [one for one in lines if one.evidence["channels"][0]["channel"] in HIDING]
        assert leading(found) == expected, many
        assert all(one.ts > 7_200.0 for one in found)
        assert all(one.status is not Status.RESOLVED for one in found), "told of with an old time, it would resolve"


def test_what_is_held_of_an_interval_is_bounded() -> None:
    cohorts = Cohorts(5)
    for i in range(20):
        cohorts.see(f"0:0:{i}", 10.0 * i, 10.0 * i, (0, 1, 1, 1))
    taken = cohorts.take()
    assert len(taken) == 5
    assert cohorts.refused == 15
    for interval in range(4):
        many = [(f"0:0:{20 * interval + i}", taken[0][1]) for i in range(20)]
        list(cohorts.settle(many, 60.0 * interval, 3_600.0))
    assert all(len(one) <= 5 for one in cohorts._waiting.values())
    wide = Cohorts(12)
    for interval in range(4):
        list(wide.settle([(f"0:0:{12 * interval + i}", taken[0][1]) for i in range(12)], 60.0 * interval, 3_600.0))
    assert len(wide) == 12


def test_state_goes_over_a_restart() -> None:
    x, label = odd(np.random.default_rng(45), 60)
    free = batch(x, label, "thief", start=0.3, step=1.0, features=None)
    others = [batch(*queries(np.random.default_rng(i), 40), f"c{i}", start=100.0 + i / 10, step=10.0) for i in range(9)]
    first, second = make(), make()
    fold_of(first).push([joined(free, others[0])])
    second.restore(first.snapshot())
    assert leading(hidden(*others[1:], detector=second, beside=0)) == {("thief", "unscored")}
    assert hidden(*others[1:], detector=make(), beside=0) == []


# What is learned


@functools.cache
def fitted_with_blanks() -> Fit:
    """Half of the clients send some of their rows by a route without vectors, and some send nothing else."""
    rng = np.random.default_rng(51)
    with_vectors = crowd(np.random.default_rng(1), 60, 40)
    blank = [batch(*queries(rng, 40), f"c{i}", start=i / 10, step=50.0, features=None) for i in range(0, 60, 2)]
    only = [batch(*queries(rng, 40), f"only{i}", start=i / 10, step=50.0, features=None) for i in range(12)]
    return DETECTOR.fit([with_vectors, *blank, *only], Params(), cpu)


def test_clients_without_vectors_certify_nobody_else() -> None:
    fit, clean = fitted_with_blanks(), DETECTOR.fit([crowd(np.random.default_rng(1), 60, 40)], Params(), cpu)
    assert fit.section is not None
    assert clean.section is not None
    for name, array in clean.section.arrays.items():
        if not name.startswith("hiding."):
            np.testing.assert_array_equal(fit.section.arrays[name], array, err_msg=name)
    assert len(fit.section.arrays["hiding.0.scores"]) == 48  # two thirds of 72


def test_blanks_that_ordinary_clients_have_are_learned() -> None:
    section = fitted_with_blanks().section
    assert section is not None
    null = section.arrays["hiding.0.null"][:, UNSCORED]
    assert 0.2 < null[0] / (null[0] + null[1]) < 0.6
    free = batch(*odd(np.random.default_rng(51), 35), "new", start=100.3, step=10.0, features=None)
    assert hidden(free, detector=make(section)) == []


def test_blanks_do_not_starve_what_is_learned_of_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extraction_fit, "_ROWS_MAX", 2_400)
    monkeypatch.setattr(_extraction_hiding_fit, "_BLANKS_MAX", 3_000)
    rng = np.random.default_rng(55)
    flood = [batch(*queries(rng, 2_500), f"flood{i}", features=None) for i in range(3)]
    fit = DETECTOR.fit([*flood, crowd(np.random.default_rng(1), 60, 40)], Params(), cpu)
    assert fit.section is not None
    assert fit.section.header["references"][0]["facts"]["clients"] == 40.0
    bare = BlankRows()
    list(bare.watch(flood))
    counts = bare.batch().text("client")
    assert np.bincount(counts.codes).tolist() == [2_048, 3_000 - 2_048]


def test_what_ordinary_clients_always_do_stays_expected_whole() -> None:
    null = np.array([[0.2, 8.0], [1.8, 2.0], [1.0, 1.0]])
    assert raised(null, UNSCORED, 0.1) is null
    for share, expected in ((0.3, 0.3), (0.9, 0.5), (0.01, 0.1)):
        a, b = raised(null, 0, share)[:2, 0].tolist()
        assert a / (a + b) == pytest.approx(expected)
        assert b >= 1.0


def test_ordinary_clients_are_told_no_more_often_than_promised() -> None:
    """Of 300 with some repeats each, beside what content tells: two channels at a twentieth of the level each."""
    rng = np.random.default_rng(56)

    def repeaters(clients: int, prefix: str) -> RequestBatch:
        x, label = queries(rng, clients * 40)
        names = [f"{prefix}{i % clients}" for i in range(clients * 40)]
        bodies = [f"{i if rng.random() > 0.02 else i % clients}" for i in range(clients * 40)]
        return batch(x, label, names, step=0.5, body_hash=bodies)

    section = DETECTOR.fit([repeaters(60, "c")], Params(), cpu).section
    found = hidden(repeaters(300, "fresh"), detector=make(section), beside=0)
    assert len(leading(found)) <= 300 * ALPHA


def test_a_baseline_of_before_judges_content_alone() -> None:
    section = DETECTOR.fit([crowd(np.random.default_rng(1), 60, 40)], Params(), cpu).section
    assert section is not None
    del section.header["hiding"]
    free = batch(*odd(np.random.default_rng(45), 60), "thief", start=100.3, step=10.0, features=None)
    assert hidden(free, detector=make(section)) == []


# Another name


def test_hopping_between_models_starts_anew_and_gains_ten_queries_a_model() -> None:
    rng = np.random.default_rng(1)
    both: list[Any] = [crowd(rng, 60, 40), crowd(rng, 60, 40, "s", model="n", start=5.0)]
    section = DETECTOR.fit(both, Params(), cpu).section
    for many, expected in ((9, set()), (10, {"m", "n"})):
        detector = make(section)
        hops = [
            batch(*odd(rng, many), "thief", start=0.0, step=2.0),
            batch(*odd(rng, many), "thief", start=1.0, step=2.0, model="n"),
        ]
        found = told(detector, joined(*hops))
        assert {one.evidence["model"] for one in found} == expected
