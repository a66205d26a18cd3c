"""Repeats and rows without a usable vector: no hiding place, and no charge against the innocent."""

from __future__ import annotations

import functools
import math
from typing import Any

import damage
import numpy as np
import pytest
from scipy.stats import betabinom
from support import fold_of, listen

from mlsecd.detectors import _extraction_fit, _extraction_hiding_fit
from mlsecd.detectors._extraction_books import Books
from mlsecd.detectors._extraction_cohorts import Cohorts
from mlsecd.detectors._extraction_hiding import RETRY, UNSCORED, decades, expected_share
from mlsecd.detectors._extraction_hiding_fit import BlankRows
from mlsecd.detectors.base import Fit, Interval
from mlsecd.detectors.extraction_account import DETECTOR, ExtractionAccount, Params
from mlsecd.errors import BaselineError, StateError
from mlsecd.kernels import cpu
from mlsecd.records import Finding, RequestBatch, Severity, Status
from tests.detectors.test_extraction_account import (
    ALPHA,
    CENTRES,
    DIMS,
    batch,
    crowd,
    fitted_both,
    make,
    odd,
    queries,
    told,
)

HIDING = {"retry", "unscored"}


def joined(*batches: RequestBatch) -> RequestBatch:
    whole = RequestBatch.concat(batches)
    return whole.take(np.argsort(whole.completion, kind="stable"))


def heard(detector: ExtractionAccount, *batches: RequestBatch, beside: int = 15) -> list[Finding]:
    """Every finding that the detector makes, before lives are made of them; ordinary clients come beside."""
    ordinary = [crowd(np.random.default_rng(41), beside, 80, "beside")] if beside else []
    fold = fold_of(detector)
    found = listen(fold)
    fold.push([joined(*ordinary, *batches)])
    fold.finish()
    return found


def hidden(*batches: RequestBatch, detector: ExtractionAccount | None = None, beside: int = 15) -> list[Finding]:
    """Those that accuse a client by what cannot be judged."""
    found = heard(detector or make(), *batches, beside=beside)
    return [one for one in found if one.evidence["channels"][0]["channel"] in HIDING and one.subject_kind == "client"]


def together(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.subject_kind == "model"]


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
    assert "were answered without a vector by which others are judged" in found[0].reason


def test_what_a_flood_made_the_tap_lose_is_told_as_queries_that_nobody_judged() -> None:
    """Ordinary requests that push out odd ones: fair to the others, but no hiding place."""
    rng = np.random.default_rng(64)
    lost = np.where(np.arange(60) % 6 == 5, 20.0, np.nan)
    found = hidden(batch(*queries(rng, 60), "flood", start=100.3, step=1.0, lost=lost))
    assert leading(found) == {("flood", "unscored")}
    first = found[0].evidence["channels"][0]
    assert (first["count"], first["of"] - first["count"]) == (20, 10), "ten rows came by the end of the interval"
    few = np.where(np.arange(60) % 8 == 7, 1.0, np.nan)
    assert hidden(batch(*queries(rng, 60), "calm", start=100.3, step=1.0, lost=few)) == []
    detector = make()
    endless = batch(*queries(rng, 3_000), "liar", start=100.3, step=0.003, lost=np.full(3_000, 1e300))
    thief = batch(*odd(rng, 60), "thief", start=100.3, step=1.0, features=None)
    found = hidden(endless, thief, *customers(rng, 40), detector=detector, beside=0)
    assert leading(found) == {("liar", "unscored"), ("thief", "unscored")}
    make().restore(detector.snapshot())


@pytest.mark.parametrize("left_out", ["features", "input_features"])
def test_to_leave_out_one_of_two_vectors_is_told(left_out: str) -> None:
    """Seen by one vector an account is another one to campaigns, in a crowd too small to be looked at."""
    rng = np.random.default_rng(63)
    ordinary = []
    for i in range(15):
        x, label = queries(rng, 40)
        ordinary.append(batch(np.tanh(x), label, f"o{i}", start=100 + i / 20, step=10.0, input_features=x))
    x, label = queries(rng, 40)
    given = {"features": np.tanh(x), "input_features": x} | {left_out: None}
    detector = make(fitted_both().section)
    found = hidden(batch(x, label, "thief", start=100.9, step=10.0, **given), *ordinary, detector=detector, beside=0)
    assert leading(found) == {("thief", "unscored")}


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
    found = heard(make(), *everybody, thief, beside=0)
    assert found
    assert all(one.subject_kind == "model" and "16 of 16 accounts at a time" in one.reason for one in found)


def customers(rng: np.random.Generator, clients: int) -> list[RequestBatch]:
    """Five queries each in ten seconds."""
    return [batch(*queries(rng, 300), f"c{i}", start=100.0 + i / 60, step=2.0) for i in range(clients)]


def lossy(seed: int, clients: int, share: float) -> list[RequestBatch]:
    """Customers of a tap that loses some of everybody's vectors."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(clients):
        x, label = queries(rng, 200)
        x[rng.random(200) < share] = np.nan
        made.append(batch(x, label, f"d{i}", start=100.0 + i / 20, step=3.0))
    return made


def test_one_that_leaves_out_a_tenth_accuses_nobody_either() -> None:
    accused = [leading(hidden(*lossy(seed, 20, 0.1))) for seed in range(46, 52)]
    assert sum(map(len, accused)) <= 1, "of 120, at 0.5 % each"


def test_a_tap_that_loses_many_vectors_is_told_once_it_lasts_and_once() -> None:
    found = together(heard(make(), *lossy(47, 20, 0.5)))
    assert leading(found) == {("m", "unscored")}
    first = found[0]
    assert (first.severity, first.certified) == (Severity.LOW, False)
    assert first.ts == 150.0, "the fifth interval"
    assert "accounts at a time have many queries" in first.reason
    assert "so nobody is accused" in first.reason
    leads = first.evidence["channels"][0]
    assert leads["accounts"] == len(first.evidence["clients"]) < leads["active_accounts"] == 30
    assert first.action.startswith("Look at the tap")
    assert np.diff([one.ts for one in found]).min(initial=300.0) >= 300.0
    for intervals, expected in ((4, 0), (5, 1), (20, 2)):  # once more for what went on after it was told
        rows = np.arange(3 * intervals)
        short = [one.take(rows) for one in lossy(47, 20, 0.5)]
        assert len(together(heard(make(), *short))) == expected


def test_a_tap_that_fails_for_some_customers_is_one_ticket_and_not_one_for_each() -> None:
    rng = np.random.default_rng(57)
    failing = [batch(*queries(rng, 60), f"f{i}", start=100.0 + 30 * i, step=10.0, features=None) for i in range(12)]
    found = heard(make(), *failing, *customers(rng, 60), beside=0)
    alone = leading([one for one in found if one.subject_kind == "client" and one.subject.startswith("f")])
    many = together(found)
    assert len(alone) == 4
    assert leading(many) == {("m", "unscored")}
    assert many[0].evidence["accounts"] == 5
    assert "5 accounts within an hour have many queries" in many[0].reason
    assert set().union(*(one.evidence["clients"] for one in many)) >= {f"f{i}" for i in range(4, 12)}


def test_strangers_with_a_blank_row_each_buy_a_thief_no_silence() -> None:
    """21 of 81 accounts are more than a quarter, but not of what is asked."""
    rng = np.random.default_rng(58)
    sybils = [batch(*queries(rng, 60), f"s{i}", start=100.0 + i / 30, step=10.0, features=None) for i in range(21)]
    thief = batch(*odd(rng, 60), "thief", start=100.3, step=10.0, features=None)
    found = [one for one in heard(make(), *sybils, *customers(rng, 60), thief, beside=0) if one.subject_kind == "model"]
    assert "thief" in set().union(*(one.evidence["clients"] for one in found))
    assert all("accounts within an hour" in one.reason for one in found), "each by its own counts, not as the service's"


def test_strangers_with_a_blank_row_each_do_not_raise_what_a_customer_may_hide() -> None:
    """Ten of them an interval, new ones every eight: none is a case, and a third of a thief's rows are blank."""
    rng = np.random.default_rng(5)
    parts = customers(rng, 60)
    for tick in range(60):
        names = [f"stranger{tick // 8 * 10 + i}" for i in range(10)]
        parts.append(batch(*queries(rng, 10), names, start=100.02 + 10 * tick, step=0.9, features=None))
    hides = rng.random(600) < 1 / 3
    parts.append(batch(*queries(rng, 600), "thief", start=100.5).take(np.flatnonzero(~hides)))
    blank = batch(*odd(rng, 600), "thief", start=100.6, features=None)
    parts.append(blank.take(np.flatnonzero(hides)))
    assert leading(hidden(*parts, beside=0)) == {("thief", "unscored")}


def test_to_hide_every_other_interval_is_told_all_the_same() -> None:
    """While a quarter of all that is asked is blank nobody's rows count: that must not come for nothing by turns."""
    rng = np.random.default_rng(7)
    parts = customers(rng, 40)
    for i in range(10):
        blank = batch(*odd(rng, 600), f"s{i}", start=100.05 + i / 300, features=None)
        parts.append(blank.take(np.flatnonzero(blank.completion // 10 % 2 == 1)))
    found = together(heard(make(), *parts, beside=0))
    assert found
    assert found[0].ts <= 220.0
    assert set(found[0].evidence["clients"]) == {f"s{i}" for i in range(10)}


def test_who_joins_those_that_are_told_together_is_named_in_a_line_of_the_log() -> None:
    """Decoys first: what a ledger takes for the same finding must not swallow the name of the thief behind them."""
    rng = np.random.default_rng(8)
    decoys = [batch(*queries(rng, 60), f"decoy{i}", start=100.0 + i / 30, step=2.0, features=None) for i in range(5)]
    thief = batch(*odd(rng, 100), "thief", start=140.3, features=None)
    fold = fold_of(make())
    lines = fold.push([joined(*customers(rng, 60), *decoys, thief)]) + fold.finish()
    named = [one for one in lines if "thief" in one.evidence.get("clients", ())]
    assert named
    assert set(named[-1].evidence["clients"]) == {"thief", *(f"decoy{i}" for i in range(5))}
    assert "6 accounts within an hour" in named[-1].reason


def test_those_of_another_channel_do_not_swallow_who_hides_by_this_one() -> None:
    """Two findings about one model within five minutes are one to a ledger: so they are one."""
    rng = np.random.default_rng(10)
    retrying = [
        batch(*queries(rng, 300), f"r{i}", start=100.0 + i / 30, step=2.0, body_hash=["same"] * 300) for i in range(5)
    ]
    blank = [batch(*queries(rng, 300), f"b{i}", start=100.0 + i / 30, step=2.0, features=None) for i in range(4)]
    thieves = [batch(*odd(rng, 100), f"thief{i}", start=250.3 + i / 30, features=None) for i in range(3)]
    fold = fold_of(make())
    lines = fold.push([joined(*customers(rng, 60), *retrying, *blank, *thieves)]) + fold.finish()
    named = set().union(*(one.evidence.get("clients", ()) for one in lines))
    assert named >= {"thief0", "thief1", "thief2"}


def test_a_few_who_ask_much_do_not_raise_what_they_may_hide_themselves() -> None:
    """Ten accounts with 25 rows an interval, a quarter less one of them blank, among sixty with a row each."""
    rng = np.random.default_rng(11)
    parts = [batch(*queries(rng, 120), f"c{i}", start=100.0 + i / 6, step=10.0) for i in range(60)]
    for i in range(10):
        parts.append(batch(*queries(rng, 2_280), f"gang{i}", start=100.05 + i / 100, step=0.5))
        parts.append(batch(*odd(rng, 720), f"gang{i}", start=100.07 + i / 100, step=1.6, features=None))
    found = heard(make(), *parts, beside=0)
    named = {one.subject for one in found if one.subject_kind == "client"}
    named.update(*(one.evidence["clients"] for one in together(found)))
    assert named >= {f"gang{i}" for i in range(10)}


@pytest.mark.parametrize("every", [10.0, 900.0])
def test_a_model_that_fails_for_many_is_told_however_seldom_it_is_asked(every: float) -> None:
    rng = np.random.default_rng(12)
    parts = [batch(*queries(rng, 12), f"c{i}", start=100.0 + i / 3, step=every) for i in range(6)]
    parts += [batch(*queries(rng, 12), f"s{i}", start=102.0 + i / 3, step=every, features=None) for i in range(6)]
    found = together(heard(make(), *parts, beside=0))
    assert found
    assert found[0].ts <= 100.0 + 7 * every + 20.0


def test_a_clock_set_back_mutes_nobody_who_hides_together() -> None:
    rng = np.random.default_rng(13)
    day = 86_400.0
    detector = make()
    for start in (day, 0.0):
        hiding = [
            batch(*queries(rng, 60), f"{start}s{i}", start=start + i / 30, step=2.0, features=None) for i in range(12)
        ]
        calm = [batch(*queries(rng, 60), f"c{i}", start=start + i / 60, step=2.0) for i in range(60)]
        detector.observe(joined(*hiding, *calm))
        found = detector.close(Interval(start, start + 120.0), sorted(detector.states()))
        assert {one.subject_kind for one in found} == {"client", "model"}
        assert sum(name.startswith(f"{start}") for name in found[-1].evidence["clients"]) == 12


def test_a_clock_set_back_within_an_accounts_epoch_does_not_keep_its_ticket_waiting() -> None:
    rng = np.random.default_rng(14)
    detector = make()
    told_at = []
    for start in (0.0, 7_200.0, 3_600.0):
        hiding = batch(*queries(rng, 60), "thief", start=start + 0.3, step=2.0, features=None)
        calm = [batch(*queries(rng, 60), f"c{i}", start=start + i / 60, step=2.0) for i in range(20)]
        detector.observe(joined(hiding, *calm))
        found = detector.close(Interval(start, start + 120.0), sorted(detector.states()))
        told_at += [one.ts for one in found if one.subject == "thief"]
    assert told_at == [120.0, 7_320.0, 3_720.0]


def test_those_told_together_are_of_one_kind() -> None:
    rng = np.random.default_rng(9)
    repeating = [
        batch(*queries(rng, 60), f"r{i}", start=100.0 + i / 30, step=2.0, body_hash=["same"] * 60) for i in range(4)
    ]
    thief = batch(*odd(rng, 60), "thief", start=100.3, step=2.0, features=None)
    found = heard(make(), *customers(rng, 60), *repeating, thief, beside=0)
    assert together(found) == []
    assert ("thief", "unscored") in leading(found)


def test_probes_of_our_own_are_no_cohort_of_customers() -> None:
    """Canaries without vectors, from nine accounts at a time, must not read as a service that fails for all."""
    rng = np.random.default_rng(59)
    canaries = [
        batch(*queries(rng, 60), f"p{i}", start=100.0 + i / 30, step=10.0, features=None, synthetic=True)
        for i in range(30)
    ]
    thief = batch(*odd(rng, 60), "thief", start=100.3, step=10.0, features=None)
    found = [
        one for one in heard(make(), *canaries, thief, beside=12) if one.evidence["channels"][0]["channel"] in HIDING
    ]
    assert ("thief", "unscored") in leading([one for one in found if not one.synthetic])
    assert {one.subject for one in found if not one.synthetic} == {"thief"}


def test_a_gateway_that_sends_one_hash_for_all_bodies_accuses_nobody() -> None:
    rng = np.random.default_rng(54)
    everybody = [
        batch(*queries(rng, 60), f"c{i}", start=i / 20, step=5.0, body_hash=["constant"] * 60) for i in range(15)
    ]
    assert hidden(*everybody, beside=0) == []


@pytest.mark.parametrize(("status", "many"), [(503, 0), (429, 0), (499, 1), (200, 1), (None, 1)])
def test_what_failed_was_no_query_and_who_hung_up_has_asked(status: int | None, many: int) -> None:
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
        cohorts.see([f"0:0:{i}"], np.array([10.0 * i]), np.array([[0, 1, 1, 1]]))
    taken = cohorts.take()
    assert len(taken) == 5
    assert cohorts.refused == 15
    for interval in range(4):
        few = [(f"0:0:{3 * interval + i}", taken[0][1]) for i in range(3)]
        assert [crowd.channel for crowd, _ in cohorts.settle(few)] == ([RETRY, UNSCORED] if interval == 2 else [])
        assert all(len(one) <= 8 for one in cohorts._waiting.values())


def test_books_are_bounded_and_keep_whom_they_were_told_of() -> None:
    books, at = Books(100), np.zeros(40)
    for interval in range(50):
        names = [f"0:0:{40 * interval + i}" for i in range(39)] + ["0:0:thief"]
        rows = books.rows_of(names, at, 10.0 * interval, 1e9)
        assert len(set(rows.tolist())) == 40, "each has a row of its own"
        few = np.ones(40, np.int64)
        books.add(rows, UNSCORED, few, few, at)
        if interval == 0:
            books.of(int(rows[-1]))["told"][UNSCORED] = 3.0
        if interval > 40:
            books.rows_of(["0:0:thief"], at[:1], 10.0 * interval, 1e9)
    assert len(books) == 100
    assert len(books._rows) <= 126
    assert books.of(int(rows[-1]))["fired"][UNSCORED] == 50
    assert books.of(int(rows[0]))["fired"][UNSCORED] == 1, "a row that was another's begins afresh"
    full = Books(10)
    assert (full.rows_of([f"0:0:{i}" for i in range(40)], at, 0.0, 1e9) >= 0).sum() == 10
    assert full.refused == 30


def test_state_goes_over_a_restart() -> None:
    x, label = odd(np.random.default_rng(45), 60)
    free = batch(x, label, "thief", start=0.3, step=1.0, features=None)
    others = [batch(*queries(np.random.default_rng(i), 40), f"c{i}", start=100.0 + i / 10, step=10.0) for i in range(9)]
    first, second = make(), make()
    fold_of(first).push([joined(free, others[0])])
    second.restore(first.snapshot())
    assert leading(hidden(*others[1:], detector=second, beside=0)) == {("thief", "unscored")}
    assert hidden(*others[1:], detector=make(), beside=0) == []


def test_a_snapshot_with_one_wrong_value_is_taken_whole_or_not_at_all_and_what_is_taken_runs() -> None:
    first, fresh = make(), make().snapshot()
    free = batch(*odd(np.random.default_rng(45), 60), "thief", start=0.3, step=1.0, features=None)
    few = [batch(*queries(np.random.default_rng(i), 40), f"c{i}", start=i / 10, step=10.0) for i in range(4)]
    fold = fold_of(first)
    fold.push([joined(free, crowd(np.random.default_rng(3), 12, 20, "w"))])
    fold.push([joined(*few)])
    refused = taken = 0
    for where, blob in damage.snapshots(first.snapshot(), 300, seed=5):
        second = make()
        try:
            second.restore(blob)
        except StateError:
            refused += 1
            assert second.snapshot() == fresh, where
        else:
            taken += 1
            heard(second, *lossy(47, 12, 0.5), beside=15)
    assert min(refused, taken) > 30


@pytest.mark.parametrize("name", ["null", "scores", "usual"])
def test_a_baseline_without_a_part_of_it_is_refused(name: str) -> None:
    section = DETECTOR.fit([crowd(np.random.default_rng(1), 60, 40)], Params(), cpu).section
    assert section is not None
    del section.arrays[f"hiding.0.{name}"]
    with pytest.raises(BaselineError, match="cannot be used"):
        make(section)


# What is learned


def test_of_two_views_the_strictest_level_holds_for_what_hides_in_both() -> None:
    """One view of few clients, one of many: the last one's must not set what is the same account's."""
    rng = np.random.default_rng(60)
    x, label = queries(rng, 45 * 40)
    names = [f"b{i % 45}" for i in range(45 * 40)]
    both = batch(np.tanh(x), label, names, input_features=x)
    section = DETECTOR.fit([both, crowd(np.random.default_rng(1), 90, 40)], Params(), cpu).section
    detector = ExtractionAccount(Params(false_alarms_per_week=1.0), cpu, section)
    asked, (limit,) = detector._calibration.asked, detector._calibration.hiding.values()
    assert len(set(asked)) > 1
    assert limit.asked == min(asked)


def test_blanks_that_were_not_read_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extraction_hiding_fit, "_BLANKS_MAX", 100)
    free = batch(*queries(np.random.default_rng(61), 300), "free", features=None)
    fit = DETECTOR.fit([crowd(np.random.default_rng(1), 60, 40), free], Params(), cpu)
    assert "only 100 of 300 requests without a vector were read, each client's first ones" in fit.notes


def test_where_blanks_are_usual_more_of_them_are_no_fault_of_the_service() -> None:
    usual = fitted_with_blanks().section.arrays["hiding.0.usual"]  # type: ignore[union-attr]
    assert 0.4 < usual[UNSCORED] < 0.7
    assert (
        DETECTOR.fit([crowd(np.random.default_rng(1), 60, 40)], Params(), cpu).section.arrays["hiding.0.usual"].max()
        == 0.0
    )  # type: ignore[union-attr]
    rng = np.random.default_rng(62)
    made = [
        batch(*queries(rng, 60), f"u{i}", start=100.0 + i / 30, step=10.0, **({"features": None} if i % 2 else {}))
        for i in range(30)
    ]
    assert together(heard(make(fitted_with_blanks().section), *made, beside=0)) == []
    assert together(heard(make(), *made, beside=0)) != []


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
    assert expected_share(null, UNSCORED, np.array([0.1, 0.9])).tolist() == [0.8, 0.8]
    assert expected_share(null, RETRY, np.array([0.3, 0.9, 0.01])).tolist() == [0.3, 0.5, 0.1]


def test_decades_are_those_of_the_beta_binomial() -> None:
    null = np.array([[0.2, 1.0], [1.8, 1.0], [1.0, 1.0]])
    fired, tried = np.array([9, 20, 20, 20]), np.array([40, 40, 40, 40])
    found = decades((fired, tried), np.array([0.0, 0.0, 0.1, 0.4]), null, RETRY, cpu)
    assert found[0] == 0.0, "nine are no case"
    assert found[1] == found[2] == pytest.approx(-math.log10(betabinom.sf(19, 40, 0.2, 1.8)), rel=1e-6)
    assert found[3] == pytest.approx(-math.log10(betabinom.sf(19, 40, 0.8, 1.2)), rel=1e-6)


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
    detector = make(section)
    assert hidden(free, detector=detector) == []
    assert "what hides is not judged, fit it again" in detector.standing().why
    assert "what hides" not in make().standing().why


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


@pytest.mark.parametrize(("every", "told_of"), [(9, 0), (10, 6)])
def test_a_new_identity_key_is_an_amnesty_of_ten_queries_a_name(every: int, told_of: int) -> None:
    rng = np.random.default_rng(65)
    names = [f"thief{i // every}" for i in range(6 * every)]
    found = told(make(), batch(*odd(rng, 6 * every), names))
    assert len({one.subject for one in found}) == told_of


# What looks like a customer


def test_one_odd_query_in_a_hundred_shows_in_a_large_customer() -> None:
    rng = np.random.default_rng(66)
    x, label = queries(rng, 6_000)
    hides = np.flatnonzero(rng.random(6_000) < 0.01)
    x[hides], label[hides] = odd(rng, len(hides))
    found = told(make(), batch(x, label, "large", step=0.5))
    assert found
    assert np.searchsorted(hides, found[0].ts / 0.5) <= 45
    calm = [bool(told(make(), batch(*queries(rng, 3_000), f"calm{i}", step=0.5))) for i in range(8)]
    assert sum(calm) <= 3, "one in ten, whatever they ask"


def test_to_copy_a_customers_rate_and_mix_of_classes_helps_nobody() -> None:
    """Foreign inputs of the classes that ordinary ones have, in their shares and at their pace."""
    rng = np.random.default_rng(67)
    _, wanted = queries(rng, 40)
    made = []
    for label in wanted:
        x = rng.uniform(-9, 9, (2_000, DIMS))
        made.append(x[np.linalg.norm(x[:, None] - CENTRES[None], axis=2).argmin(axis=1) == label][0])
    found = told(make(), batch(np.array(made), wanted, "copier", step=1.0))
    assert found[0].evidence["distinct_queries"] <= 12
