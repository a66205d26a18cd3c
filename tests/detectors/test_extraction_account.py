from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy.stats import beta
from support import Case, fold_of, listen, requests

from mlsecd import baseline
from mlsecd.detectors import _extraction_calibration, _extraction_cross
from mlsecd.detectors._extraction_channels import Reference, centrality, residual
from mlsecd.detectors._extraction_clients import split
from mlsecd.detectors._extraction_fit import materials_of
from mlsecd.detectors._extraction_level import clients_needed, level_of, tail_of
from mlsecd.detectors._extraction_null import RARE_TAILS, cuts_of, null_of, scale_of, sharp_null_of
from mlsecd.detectors._launches import Launch
from mlsecd.detectors._seasons import Course
from mlsecd.detectors.base import DetectorState, Fit, Section
from mlsecd.detectors.extraction_account import DETECTOR, ExtractionAccount, Params
from mlsecd.errors import BaselineError, StateError
from mlsecd.kernels import cpu
from mlsecd.records import Finding, Ragged, RequestBatch, Severity

DIMS, CLASSES = 8, 4
HOUR, DAY = 3_600.0, 86_400.0
ALPHA = 0.1  # what 40 calibration clients certify
CENTRES = np.random.default_rng(99).normal(0, 3, (CLASSES, DIMS))


def queries(rng: np.random.Generator, n: int, dims: int = DIMS) -> tuple[Any, Any]:
    """Ordinary queries: around one of the classes' centres."""
    label = rng.integers(0, CLASSES, n)
    centres = CENTRES if dims == DIMS else np.random.default_rng(98).normal(0, 3, (CLASSES, dims))
    return centres[label] + rng.normal(0, 1, (n, dims)), label


def odd(rng: np.random.Generator, n: int, dims: int = DIMS) -> tuple[Any, Any]:
    """Queries from nowhere, as of one who has no data."""
    return rng.uniform(-9, 9, (n, dims)), rng.integers(0, CLASSES, n)


def batch(x: Any, label: Any, client: Any, *, start: float = 0.0, step: float = 1.0, **columns: Any) -> RequestBatch:
    n = len(x)
    rng = np.random.default_rng(n)
    top = np.sort(rng.dirichlet([8, 1, 1], n), axis=1)[:, ::-1]
    given = {
        "features": x,
        "predicted": [str(one) for one in label],
        "scores": top,
        "client": client,
        "body_hash": [f"{start}{client if isinstance(client, str) else ''}{i}" for i in range(n)],
        **columns,
    }
    return requests(start + step * np.arange(n), **{name: one for name, one in given.items() if one is not None})


def crowd(rng: np.random.Generator, clients: int, rows: int, prefix: str = "c", **columns: Any) -> RequestBatch:
    """Ordinary clients, one query each in turn."""
    x, label = queries(rng, clients * rows)
    names = [f"{prefix}{i % clients}" for i in range(clients * rows)]
    return batch(x, label, names, **columns)


@functools.cache
def fitted() -> Fit:
    return DETECTOR.fit([crowd(np.random.default_rng(1), 60, 40)], Params(), cpu)


@functools.cache
def fitted_both() -> Fit:
    rng = np.random.default_rng(2)
    x, label = queries(rng, 60 * 40)
    names = [f"c{i % 60}" for i in range(60 * 40)]
    return DETECTOR.fit([batch(np.tanh(x), label, names, input_features=x)], Params(), cpu)


def make(section: Section | None = None, **params: Any) -> ExtractionAccount:
    section = fitted().section if section is None else section
    return DETECTOR(Params(**{"client_alpha": ALPHA, **params}), cpu, section)


def told(detector: ExtractionAccount, *batches: RequestBatch) -> list[Finding]:
    return [finding for one in batches for finding in detector.observe(one)]


def conformance() -> Case:
    rng = np.random.default_rng(7)
    parts = [crowd(rng, 10, 30), batch(*odd(rng, 60), "thief", start=30.5, step=3.0)]
    parts += [batch(*odd(rng, 40), "c3", start=50.2, step=2.0, synthetic=True)]
    parts += [batch(*odd(rng, 30), None, start=55.2), batch(*odd(rng, 30), "c4", start=60.1, features=None)]
    parts += [batch(*odd(rng, 20), "c5", start=70.1, body_hash=None, predicted=None, scores=None)]
    parts += [batch(*odd(rng, 40), "blank", start=20.3, step=7.0, features=None)]
    parts += [batch(*queries(rng, 60), "forger", start=21.3, step=3.0, body_hash=["same"] * 60)]
    joined = RequestBatch.concat(parts)
    joined = joined.take(np.argsort(joined.completion, kind="stable"))
    return Case(
        detector=DETECTOR,
        params=Params(client_alpha=ALPHA),
        records=[joined.slice(i, min(i + 100, len(joined))) for i in range(0, len(joined), 100)],
        limited=Params(client_alpha=ALPHA, max_clients=50, max_hot_clients=20),
        flood=lambda count: [crowd(np.random.default_rng(8), count, 2)],
        section=fitted().section,
    )


# What it finds


def test_what_is_odd_but_not_past_the_certified_threshold_is_a_ticket_until_it_is() -> None:
    detector = make()
    level = detector._calibration.levels[0]
    detector._calibration.levels[0] = dataclasses.replace(level, threshold=40.0, ticket=2.0)
    found = told(detector, batch(*odd(np.random.default_rng(72), 60), "thief"))
    low = [one for one in found if one.severity is Severity.LOW]
    high = [one for one in found if one.severity is Severity.HIGH]
    assert low
    assert high
    assert all(one.score <= 40.0 and one.threshold == 2.0 and not one.certified for one in low)
    assert all(one.score > 40.0 and one.threshold == 40.0 and one.certified for one in high)
    assert "some of the 40 calibration clients scored as high" in low[0].reason
    alone = make()
    alone._calibration.levels[0] = dataclasses.replace(level, threshold=40.0, ticket=40.0)
    first = told(alone, batch(*odd(np.random.default_rng(72), 60), "thief"))[0]
    assert high[0].ts == first.ts, "a page waits for no ticket's turn"


def test_a_few_thieves_among_the_calibration_clients_move_the_page_but_not_the_ticket() -> None:
    scores = np.sort(np.random.default_rng(73).exponential(0.6, 300) + 0.5)
    poisoned = np.sort(np.concatenate([scores, np.full(9, 40.0)]))
    clean, moved = (level_of(one, 0.02, on_average=True) for one in (scores, poisoned))
    assert clean.ticket <= clean.threshold
    assert moved.threshold == 40.0
    assert tail_of(poisoned, 0.02) <= 1.2 * tail_of(scores, 0.02)
    assert moved.ticket == pytest.approx(1.3 * tail_of(poisoned, 0.02))
    assert 0.001 < float((np.random.default_rng(74).exponential(0.6, 100_000) + 0.5 > moved.ticket).mean()) < 0.02


def test_a_clock_set_back_neither_silences_a_thief_nor_keeps_an_epoch_for_ever() -> None:
    rng = np.random.default_rng(77)
    year, day = 365 * 86_400.0, 86_400.0
    detector = make()
    early = batch(*odd(rng, 40), "thief", start=year)
    assert detector.observe(early)
    found = detector.observe(batch(*odd(rng, 20), "thief", start=0.0, step=60.0))
    assert found[0].ts == 0.0, "the year in which it would have been told again has not come"
    assert [one.ts for one in found[1:]] == [300.0, 600.0, 900.0]
    (account,) = [one for _, _, one in detector._accounts._cold.dump()]
    assert account.seen[0] == 60
    detector.observe(batch(*odd(rng, 1), "thief", start=8 * day))
    assert account.seen[0] == 1, "an epoch is a week"


def turned(customers: int, odd_ones: int) -> list[RequestBatch]:
    """Customers on one day, calm; and two days later some of them send what nobody sent before."""
    rng = np.random.default_rng(78)
    names = [f"c{i}" for i in range(customers)]
    later = [odd(rng, 20) if i < odd_ones else queries(rng, 20) for i in range(customers)]
    return [
        batch(*queries(rng, 20 * customers), names * 20, step=30.0),
        *(
            batch(*one, name, start=2 * DAY + 7.0 * i, step=170.0)
            for i, (name, one) in enumerate(zip(names, later, strict=True))
        ),
    ]


def newcomers(start: float) -> list[RequestBatch]:
    """After them, one who sends what nobody sent before, and one who varies a single query."""
    rng = np.random.default_rng(79)
    x = np.tile(CENTRES[0], (60, 1)) + rng.normal(0, 0.02, (60, DIMS))
    return [
        batch(*odd(rng, 60), "new", start=start, step=5.0),
        batch(x, [0] * 60, "walker", start=start + 1.0, step=5.0),
    ]


def folded(detector: ExtractionAccount, *batches: RequestBatch) -> dict[str, list[Finding]]:
    """What a fold tells of each client, in order."""
    whole = RequestBatch.concat(list(batches))
    fold = fold_of(detector)
    heard = listen(fold)
    fold.push([whole.take(np.argsort(whole.completion, kind="stable"))])
    fold.finish()
    return {who: [one for one in heard if one.subject == who] for who in {one.subject for one in heard}}


def test_a_season_explains_oddness_and_nothing_else() -> None:
    for odd_ones, severity in ((8, Severity.INFO), (3, Severity.HIGH)):
        detector = make()
        found = folded(detector, *turned(12, odd_ones), *newcomers(2 * DAY + 2 * HOUR))
        assert {one.severity for one in found["new"]} == {severity}
        assert {one.certified for one in found["new"]} == {severity is Severity.HIGH}
        assert found["walker"], "what an account does with its queries is explained by nothing"
        assert {one.severity for one in found["walker"]} <= {Severity.LOW, Severity.HIGH}
        assert found["c0"][0].severity is Severity.HIGH, "the first to turn are not known to be most"
        if odd_ones == 8:
            assert re.search(
                r"; but \d+ of \d+ accounts that had been calm for a day have turned", found["new"][0].reason
            )
            assert found["new"][0].action.startswith("Nothing to stop")
            assert detector.standing().state is DetectorState.SHIFTED
            assert re.search(r'"m": \d+ of 1\d accounts that had been calm', detector.standing().why)
        else:
            assert detector.standing().state is DetectorState.ARMED


def severities(found: list[Finding], since: float = 0.0) -> set[Severity]:
    return {one.severity for one in found if one.ts >= since}


def test_a_season_explains_no_thief_of_a_day_before() -> None:
    rng = np.random.default_rng(81)
    thief = [batch(*odd(rng, 100), "thief", start=start, step=60.0) for start in (HOUR, 2 * DAY + HOUR)]
    found = folded(make(), *turned(12, 9), *thief, *newcomers(2 * DAY + 2 * HOUR))
    assert severities(found["new"]) == {Severity.INFO}
    assert severities(found["thief"], since=2 * DAY) == {Severity.HIGH}


def test_a_season_ends_where_nobody_comes_and_a_gap_hides_no_hour() -> None:
    rng = np.random.default_rng(82)
    late = batch(*odd(rng, 300), "late", start=32 * DAY + 10.0, step=10.0)
    for more in (newcomers(2 * DAY + 2 * HOUR), []):
        detector = make()
        found = folded(detector, *turned(12, 9), *more, late)
        assert severities(found["late"]) == {Severity.HIGH}
        courses = {name: one.course for name, _, one in detector._accounts._cold.dump()}
        assert {courses[f"0:0:c{i}"] for i in range(9)} <= {Course.TURNED, Course.ODD}
        assert detector.standing().state is DetectorState.ARMED


def both(x: Any, label: Any, client: str, *, start: float, step: float, whole: bool = True) -> RequestBatch:
    """With both vectors, or the inputs alone."""
    features = np.tanh(x) if whole else None
    return batch(x, label, client, start=start, step=step, features=features, input_features=x, scores=None)


def test_to_leave_out_a_vector_makes_nobody_new_and_no_season_of_a_few() -> None:
    rng = np.random.default_rng(83)
    start = datetime.datetime(2027, 1, 11, tzinfo=datetime.UTC).timestamp()
    town = [both(*queries(rng, 20), f"c{i}", start=at + i, step=120.0) for at in (0.0, 2 * DAY) for i in range(40)]
    few = [both(*queries(rng, 20), f"s{i}", start=50.5 + i, step=30.0, whole=False) for i in range(7)]
    few += [both(*odd(rng, 12), f"s{i}", start=2 * DAY + 0.5 + i, step=60.0, whole=False) for i in range(7)]
    thief = both(*odd(rng, 60), "thief", start=2 * DAY + 1.9 * HOUR, step=5.0)
    detector = make(fitted_both().section)
    found = folded(detector, *town, *few, thief)
    assert severities(found["thief"]) == {Severity.HIGH}
    assert detector.standing().state is DetectorState.ARMED
    launch = Launch(model="m", begins="2027-01-11", ends="2027-01-12", reason="scanner 2.0")
    older = both(*queries(rng, 30), "older", start=start - HOUR, step=10.0)
    for whole in (True, False):
        turns = both(*odd(rng, 60), "older", start=start + HOUR, step=5.0, whole=whole)
        found = folded(make(fitted_both().section, launches=(launch,)), older, turns)
        assert severities(found["older"]) <= {Severity.HIGH, Severity.LOW}


def test_who_looks_only_since_a_launch_takes_nobody_of_its_first_day_for_new() -> None:
    rng = np.random.default_rng(84)
    start = datetime.datetime(2027, 1, 13, tzinfo=datetime.UTC).timestamp()
    launch = Launch(model="m", begins="2027-01-11", ends="2027-01-20", reason="scanner 2.0")
    detector = make(launches=(launch,))
    there = [batch(*odd(rng, 60), "there", start=start + days * DAY + HOUR, step=60.0) for days in (0, 1.5)]
    found = folded(detector, batch(*queries(rng, 30), "c", start=start), *there, *newcomers(start + 1.5 * DAY))
    assert severities(found["there"]) == {Severity.HIGH}
    assert severities(found["new"]) == {Severity.INFO}
    standing = detector.standing()
    assert (standing.state, standing.why) == (DetectorState.ARMED, '"m": new accounts are context (scanner 2.0)')
    again = make(launches=(launch,))
    again.restore(detector.snapshot())
    assert again._excuses.launches.dump() == detector._excuses.launches.dump() == start


def test_synthetic_accounts_make_no_season() -> None:
    made_up = [RequestBatch({**one.columns, "synthetic": np.ones(len(one), np.bool_)}) for one in turned(12, 12)]
    detector = make()
    found = folded(detector, *made_up, *newcomers(2 * DAY + 2 * HOUR))
    assert {one.severity for one in found["new"]} == {Severity.HIGH}
    assert detector.standing().state is DetectorState.ARMED


def test_an_announced_launch_explains_who_is_new() -> None:
    rng = np.random.default_rng(80)
    start = datetime.datetime(2027, 1, 11, tzinfo=datetime.UTC).timestamp()
    launch = Launch(model="m", begins="2027-01-11", ends="2027-01-12", reason="scanner 2.0")
    older = batch(*queries(rng, 30), "older", start=start - HOUR)
    turns = batch(*odd(rng, 60), "older", start=start + HOUR, step=5.0)
    for launches, severity in (((launch,), Severity.INFO), ((), Severity.HIGH)):
        found = folded(make(launches=launches), older, turns, *newcomers(start + HOUR))
        assert {one.severity for one in found["new"]} == {severity}
        assert {one.severity for one in found["older"]} == {Severity.HIGH}, "it was there before"
        assert {one.severity for one in found["walker"]} <= {Severity.LOW, Severity.HIGH}
        words = "but first seen since an announced launch began (scanner 2.0)"
        assert (words in found["new"][0].reason) == bool(launches)
    late = folded(make(launches=(launch,)), *newcomers(start + 2 * DAY))
    assert {one.severity for one in late["new"]} == {Severity.HIGH}, "it is over"
    other = folded(make(launches=(msgspec.structs.replace(launch, model="other"),)), *newcomers(start + HOUR))
    assert {one.severity for one in other["new"]} == {Severity.HIGH}, "it is of another model"


def test_whom_a_person_left_out_of_the_baseline_stands_beside_every_certificate() -> None:
    """Honest clients left out by mistake make the level a wish: 3 % instead of 1 % were seen (the top twentieth)."""
    whole = fitted().section
    assert whole is not None
    thief = batch(*odd(np.random.default_rng(72), 60), "thief")
    for count in (0, 5):
        detector = make(Section({**whole.header, "left_out": count}, whole.arrays))
        page = next(one for one in told(detector, thief) if one.certified)
        standing = detector.standing()
        assert standing.gauges["calibration_left_out"] == page.evidence["calibration_left_out"] == count
        assert ("if the 5 clients left out of the baseline are none" in page.reason) == bool(count)
        assert ("5 clients were left out of the baseline" in standing.why) == bool(count)
        upper = page.evidence["level_upper_95_if_those_are_ordinary"]
        assert (upper > page.evidence["level_upper_95"]) == bool(count)
    for damaged in (-1, 1.5, "5", None, True):
        with pytest.raises(BaselineError):
            make(Section({**whole.header, "left_out": damaged}, whole.arrays))


def test_the_level_with_those_who_were_left_out_holds_for_any_of_them() -> None:
    """Ordinary clients, the loudest of whom are left out of the calibration, cross as often as it says at most."""
    rng = np.random.default_rng(76)
    beyond, worst = [], []
    for _ in range(200):
        scores = np.sort(rng.exponential(0.6, 200) + 1.0)
        level = level_of(scores[:190], 0.02, on_average=True, left_out=10)
        beyond.append(math.exp(-(level.threshold - 1.0) / 0.6))
        worst.append(level.upper_if_ordinary)
    assert np.mean(np.array(beyond) <= worst) >= 0.92, "95 % asked, of 200 draws"
    assert np.mean(beyond) > 0.04, "twice of what was asked for"


def test_the_ticket_is_of_all_clients_and_the_page_of_those_whom_the_reference_has_not_seen() -> None:
    rng = np.random.default_rng(75)
    scores, crossed = np.sort(rng.exponential(0.6, 200) ** 2 + 0.5), np.sort(rng.exponential(0.2, 600) + 1.0)
    alone, both = (level_of(scores, 0.005, on_average=True, crossed=one) for one in (None, crossed))
    assert (both.threshold, both.level, both.certified) == (alone.threshold, alone.level, alone.certified)
    assert both.ticket < alone.ticket <= both.threshold
    assert both.ticket == pytest.approx(1.3 * tail_of(crossed, 0.005))


@functools.cache
def fitted_among_thieves() -> tuple[Fit, RequestBatch]:
    """200 ordinary clients, and 6 thieves who were there already."""
    rng = np.random.default_rng(76)
    thieves = [batch(*odd(rng, 40), f"thief{i}", start=0.3 + i) for i in range(6)]
    recorded = RequestBatch.concat([crowd(rng, 200, 40), *thieves])
    recorded = recorded.take(np.argsort(recorded.completion, kind="stable"))
    return DETECTOR.fit([recorded], Params(), cpu), recorded


def suspects_in(fit: Fit) -> list[str]:
    return [note for note in fit.notes if "beyond what the others explain" in note]


def test_thieves_in_the_baseline_are_named_and_do_not_hide_the_next_one() -> None:
    fit, _ = fitted_among_thieves()
    assert fit.section is not None
    (note,) = suspects_in(fit)
    assert note.startswith('model "m" by features: 6 of 206 clients score beyond')
    assert all(f"thief{i} (" in note for i in range(6))
    assert "baseline fit --leave-out NAME" in note
    detector = make(fit.section, client_alpha=0.02)
    assert detector.standing().gauges["calibration_suspects"] == 6.0
    assert told(detector, batch(*odd(np.random.default_rng(77), 60), "next"))[0].evidence["queries"] < 20
    ordinary = told(make(fit.section, client_alpha=0.02), crowd(np.random.default_rng(78), 300, 40, "fresh"))
    assert len({one.subject for one in ordinary}) <= 12  # 2 % of 300, and what 95 % of such draws stay below


def test_a_reference_that_suspects_shaped_would_be_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    _, recorded = fitted_among_thieves()
    monkeypatch.setattr(_extraction_cross, "_FEWEST", 1_000)
    fit = DETECTOR.fit([recorded], Params(), cpu)
    assert fit.section is not None
    thief = batch(*odd(np.random.default_rng(77), 60), "next")
    blind, seeing = (
        told(make(one.section, client_alpha=0.02), thief)[0].evidence["queries"]
        for one in (fit, fitted_among_thieves()[0])
    )
    assert blind > 1.4 * seeing


def test_suspects_stay_in_the_calibration() -> None:
    fit, recorded = fitted_among_thieves()
    assert fit.section is not None
    scores, crossed = fit.section.arrays["0.scores"], fit.section.arrays["0.crossed"]
    assert (len(scores), len(crossed)) == (137, 412)  # two thirds, and everybody twice
    _, calibrating = split([f"c{i}" for i in range(200)] + [f"thief{i}" for i in range(6)])
    thieves = sum(name.startswith("thief") for name in calibrating)
    assert thieves > 0
    assert ((scores > 10.0).sum(), (crossed > 10.0).sum()) == (thieves, 12)
    client = recorded.text("client")
    honest = np.array([not name.startswith("thief") for name in client.values])
    clean = DETECTOR.fit([recorded.take(np.flatnonzero(honest[client.codes]))], Params(), cpu)
    assert clean.section is not None
    assert not suspects_in(clean)
    assert clean.section.header["references"][0]["facts"]["suspects"] == 0.0


def test_who_asks_more_than_others_shapes_a_reference_no_more_than_they_do() -> None:
    rng = np.random.default_rng(80)
    recorded = RequestBatch.concat([crowd(rng, 9, 40), batch(*odd(rng, 400), "loud"), batch(*odd(rng, 12), "quiet")])
    (material,), _ = materials_of("m", recorded, np.arange(len(recorded)), 1, cpu)
    names = [f"c{i}" for i in range(9)] + ["loud", "quiet"]
    assert [len(rows) for rows in _extraction_calibration.balanced(material, names, cpu)] == [40] * 10 + [12]


@pytest.mark.parametrize("clients", [87, 90])
def test_fewer_than_thirty_clients_in_a_part_do_not_tell_who_is_odd_among_them(
    clients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = []

    def learn(material: Any, names: Any, *rest: Any) -> Any:
        learned.append(names)
        return _extraction_calibration.learn(material, names, *rest)

    monkeypatch.setattr(_extraction_cross, "learn", learn)
    fit = DETECTOR.fit([crowd(np.random.default_rng(79), clients, 20)], Params(), cpu)
    assert fit.section is not None
    assert (len(learned) == 3) == (clients < 90)  # a reference a part, and three folds before it where it can be told


def test_who_varies_one_query_again_and_again_searches_for_adversarial_inputs() -> None:
    rng = np.random.default_rng(71)
    x = CENTRES[:1] + np.cumsum(rng.normal(0, 0.02, (200, DIMS)), axis=0)
    found = told(make(), batch(x, rng.integers(0, 2, 200), "walker"))
    assert found[-1].atlas == ("AML.T0043.001",)
    assert found[-1].owasp == ()
    assert "as one who searches for adversarial inputs does" in found[-1].reason


def test_a_thief_without_data_is_told_at_the_tenth_query() -> None:
    detector = make()
    found = told(detector, batch(*odd(np.random.default_rng(3), 11), "thief", start=1_000.0, duration_s=0.5))
    first = found[0]
    assert [one.ts for one in found] == [1_009.5]
    assert (first.subject_kind, first.subject, first.synthetic) == ("client", "thief", False)
    assert (first.severity, first.certified) == (Severity.HIGH, True)
    assert first.score > first.threshold
    assert (first.atlas, first.owasp) == (("AML.T0024.002",), ("LLM10:2025",))
    leading = first.evidence["channels"][0]
    assert (leading["channel"], leading["count"], leading["of"]) == ("resid_f_tail", 9, 10)
    assert leading["expected"] == pytest.approx(0.05, abs=0.04)
    wanted = "9 of 10 queries look to the model very unlike others' where those hardly vary (oddest 0.5%)"
    assert first.reason.startswith(wanted)
    wanted = 'it probes model "m" as one who copies it does; an ordinary client gets here with a chance of 10%'
    assert wanted in first.reason
    facts = {"model": "m", "inputs": ["features"], "queries": 10, "distinct_queries": 10, "first_ts": 1_000.5}
    assert {key: first.evidence[key] for key in facts} == facts
    assert (first.evidence["level"], first.evidence["calibration_clients"]) == (ALPHA, 40)
    assert first.evidence["calibration_ts"] == 2_399.0
    json.dumps(first.line(), allow_nan=False)


def test_one_who_mixes_odd_queries_into_ordinary_ones_is_told_at_an_exact_row() -> None:
    rng = np.random.default_rng(4)
    x, label = queries(rng, 200)
    strange, labels = odd(rng, 20)
    x[::10], label[::10] = strange, labels
    found = told(make(client_alpha=0.02), batch(x, label, "mixer"))
    assert found[0].ts == 30.0
    leading = found[0].evidence["channels"][0]
    assert (leading["channel"], leading["count"], leading["of"]) == ("ood_f_tail", 4, 31)


# Single channels


def fired(x: Any, label: Any, section: Section) -> dict[str, float]:
    """The share of an account's queries at which each channel fired, of those where it was tried."""
    detector = make(section, client_alpha=0.001)
    told(detector, batch(x, label, "one"))
    ((_, _, account),) = detector._accounts._cold.dump()
    return dict(zip(cpu.CHANNELS, (account.tally[0] / np.maximum(account.tally[1], 1)).tolist(), strict=True))


@functools.cache
def correlated() -> Section:
    """A model whose features have six coordinates that follow from two others, up to a little noise."""
    rng = np.random.default_rng(31)
    section = DETECTOR.fit([batch(*tied(rng, 60 * 60), [f"c{i % 60}" for i in range(3_600)])], Params(), cpu).section
    assert section is not None
    return section


def tied(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    free = rng.normal(0, 2, (n, 2))
    mixed = free @ np.random.default_rng(30).normal(0, 1, (2, 6))
    return np.hstack([free, mixed + rng.normal(0, 0.3, (n, 6))]), np.zeros(n, int)


def test_the_residual_is_the_distance_on_the_axes_that_hardly_vary() -> None:
    section = correlated()
    reference = Reference.of(section.header["references"][0], section.arrays, "0", cpu)
    space = reference.spaces["f"]
    x, _ = tied(np.random.default_rng(32), 50)
    u = cpu.project(x.astype(np.float32), space.offset, space.matrix)
    classes = np.zeros(50, np.int32)
    white = u.astype(np.float64) @ space.whiten - space.centroids[0]
    np.testing.assert_allclose(residual(u, space, classes, cpu), (white[:, space.first :] ** 2).sum(axis=1), rtol=1e-3)
    assert space.first >= 2, "two axes bear all but a tenth of the variance"
    np.testing.assert_allclose(centrality(u, cpu), -(u.astype(np.float64) ** 2).sum(axis=1), rtol=1e-6)


def test_columns_drawn_apart_show_in_the_residual_first() -> None:
    rng = np.random.default_rng(33)
    x, label = tied(rng, 200)
    apart = fired(rng.permuted(x, axis=0), label, correlated())
    assert apart["resid_f_tail"] > 0.9
    near = x + rng.normal(0, 0.3, x.shape)
    assert fired(near, label, correlated())["resid_f_tail"] > fired(near, label, correlated())["ood_f_tail"]
    assert fired(*tied(np.random.default_rng(34), 200), correlated())["resid_f_tail"] < 0.05


def test_mixtures_lie_nearer_the_middle() -> None:
    rng = np.random.default_rng(35)
    section = fitted().section
    assert section is not None
    x, label = queries(rng, 400)
    mixed = (x + queries(rng, 400)[0] + queries(rng, 400)[0] + queries(rng, 400)[0]) / 4
    assert fired(mixed, label, section)["central_f_tail"] > 0.2
    assert fired(x, label, section)["central_f_tail"] < 0.03


def test_one_who_comes_back_among_ordinary_queries_is_told_and_a_video_is_not() -> None:
    rng = np.random.default_rng(36)
    x, label = queries(rng, 400)
    for i in range(60, 400, 4):  # every fourth varies one that lies fifty back
        x[i] = x[i - 50] + rng.normal(0, 0.1, DIMS)
        label[i] = label[i - 50]
    section = DETECTOR.fit([crowd(np.random.default_rng(1), 60, 120)], Params(), cpu).section
    assert section is not None
    found = told(make(section, client_alpha=0.02), batch(x, label, "grower"))
    assert found[0].evidence["queries"] < 120
    assert fired(x, label, section)["back_tail"] > 0.15
    frames = np.repeat(queries(rng, 10)[0], 40, axis=0) + np.cumsum(rng.normal(0, 0.01, (400, DIMS)), axis=0)
    shares = fired(frames, np.repeat(rng.integers(0, CLASSES, 10), 40), section)
    assert shares["far"] > 0.1, "the end of a long scene is like its beginning"
    assert shares["back_tail"] < 0.05


def test_one_who_walks_a_boundary_is_told() -> None:
    rng = np.random.default_rng(5)
    x, _ = queries(rng, 1)
    walk = x + rng.normal(0, 0.05, (80, DIMS))
    found = told(make(), batch(walk, rng.integers(0, 2, 80), "walker"))
    assert found[0].evidence["queries"] < 40
    assert {one["channel"] for one in found[-1].evidence["channels"]} & {"flip", "knn_tail", "crowd"}


def test_ordinary_clients_alarm_no_more_often_than_promised() -> None:
    detector = make()
    found = told(detector, crowd(np.random.default_rng(6), 300, 40, "fresh"))
    alarmed = len({one.subject for one in found})
    assert alarmed / 300 <= detector.standing().gauges["calibration_level_upper"]


def test_what_it_cannot_promise_is_low() -> None:
    found = told(make(client_alpha=0.001), batch(*odd(np.random.default_rng(3), 60), "thief"))
    assert found
    assert {one.severity for one in found} == {Severity.LOW}
    assert not any(one.certified for one in found)
    assert "uncertified: only 40 calibration clients" in found[0].reason
    assert found[0].evidence["level"] == pytest.approx(1 / 41)


def test_synthetic_queries_are_an_account_of_their_own() -> None:
    rng = np.random.default_rng(3)
    detector = make()
    assert told(detector, batch(*queries(rng, 30), "c", start=0.0)) == []
    found = told(detector, batch(*odd(rng, 30), "c", start=100.0, synthetic=True))
    assert {(one.subject, one.synthetic) for one in found} == {("c", True)}
    assert found[0].evidence["queries"] == 10
    assert told(detector, batch(*queries(rng, 30), "c", start=200.0)) == []


@pytest.mark.parametrize("hashes", [True, False])
def test_exact_retries_are_never_counted(hashes: bool) -> None:
    rng = np.random.default_rng(3)
    x, label = odd(rng, 9)
    x, label = np.repeat(x, 50, axis=0), np.repeat(label, 50)
    bodies = [f"b{i // 50}" for i in range(450)] if hashes else None
    detector = make()
    assert told(detector, batch(x, label, "stubborn", body_hash=bodies)) == []
    assert detector.standing().gauges["retried_rows"] == 441


def test_a_forged_hash_hides_nothing() -> None:
    assert told(make(), batch(*odd(np.random.default_rng(3), 30), "forger", body_hash=["same"] * 30))


def test_a_finding_is_repeated_when_it_grows_or_lasts() -> None:
    rng = np.random.default_rng(3)
    found = told(make(repeat_seconds=100.0), batch(*odd(rng, 600), "thief"))
    scores = [one.score for one in found]
    for i in range(1, len(found)):
        grown = scores[i] >= max(max(scores[:i]) * 1.25, max(scores[:i]) + 1.0)
        assert grown or found[i].ts >= found[i - 1].ts + 100.0
    assert found[-1].ts >= 500.0
    assert len(found) < 30


def test_a_finding_that_cannot_page_is_not_repeated_with_every_query() -> None:
    found = told(make(client_alpha=0.001), batch(*odd(np.random.default_rng(3), 600), "thief"))
    assert {one.severity for one in found} == {Severity.LOW}
    assert len(found) < 30


def test_an_epoch_starts_afresh() -> None:
    rng = np.random.default_rng(3)
    detector = make(epoch_seconds=3_600.0)
    first = told(detector, batch(*odd(rng, 11), "thief"))
    again = told(detector, batch(*odd(rng, 11), "thief", start=3_700.0))
    assert [one.ts for one in first] == [9.0]
    assert [one.ts for one in again] == [3_709.0]
    assert again[0].evidence["queries"] == 10


# Views and widths


@pytest.mark.parametrize("has", ["features", "input_features", "both"])
def test_rows_use_the_inputs_that_they_have(has: str) -> None:
    rng = np.random.default_rng(3)
    x, label = odd(rng, 30)
    given = {
        "features": None if has == "input_features" else np.tanh(x),
        "input_features": None if has == "features" else x,
    }
    detector = make(fitted_both().section)
    assert told(detector, batch(*queries(rng, 30), "fine", features=None, input_features=None)) == []
    found = told(detector, batch(x, label, "thief", start=100.0, **given))
    assert found[0].evidence["inputs"] == (["features", "input_features"] if has == "both" else [has])
    gauges = detector.standing().gauges
    assert (gauges["unscored_rows"], gauges["mismatched_rows"]) == (30, 0)


def test_a_row_with_both_falls_back_to_what_the_baseline_has() -> None:
    x, label = odd(np.random.default_rng(3), 30)
    found = told(make(), batch(x, label, "thief", input_features=x[:, :3]))
    assert found[0].evidence["inputs"] == ["features"]


def test_wide_vectors_are_projected() -> None:
    rng = np.random.default_rng(9)
    x, label = queries(rng, 40 * 40, 100)
    section = DETECTOR.fit([batch(x, label, [f"c{i % 40}" for i in range(1_600)])], Params(), cpu).section
    assert section is not None
    assert section.arrays["0.f.matrix"].shape == (100, 64)
    assert len(section.arrays["0.near"]) == 512 + 1  # half the rows, for the same memory
    detector = make(section, client_alpha=0.02)
    x, label = queries(rng, 50 * 40, 100)
    fresh = told(detector, batch(x, label, [f"f{i % 50}" for i in range(2_000)]))
    assert len({one.subject for one in fresh}) <= 5
    assert told(detector, batch(*odd(rng, 40, 100), "thief"))


def test_unknown_clients_models_and_widths_are_counted_and_skipped() -> None:
    rng = np.random.default_rng(3)
    detector = make()
    x, label = odd(rng, 30)
    nan = x.copy()
    nan[:, 0] = np.nan
    assert told(detector, batch(x, label, None)) == []
    assert told(detector, batch(x, label, "a", model="another")) == []
    assert told(detector, batch(x, label, "b", features=None)) == []
    assert told(detector, batch(nan, label, "d")) == []
    assert detector.standing().state is DetectorState.ARMED
    assert told(detector, *(batch(x[:, :5], label, "e", start=float(i)) for i in range(4))) == []
    standing = detector.standing()
    assert standing.gauges["unattributed_rows"] == 30
    assert standing.gauges["unscored_rows"] == 30 * 7
    assert standing.gauges["mismatched_rows"] == 30 * 5
    assert (standing.gauges["hot_clients"], standing.gauges["cold_clients"]) == (0, 0)
    assert standing.state is DetectorState.MISMATCH
    assert "was the model replaced?" in standing.why
    told(detector, batch(*queries(rng, 1), "fine"))
    assert detector.standing().state is DetectorState.ARMED


# State


def test_batches_may_be_cut_anywhere_and_state_goes_over_a_restart() -> None:
    records = conformance().records
    whole = told(make(), RequestBatch.concat(records))  # type: ignore[arg-type]
    assert len({one.subject for one in whole}) >= 2
    detector, found = make(), []
    for i, one in enumerate(records):
        for row in range(len(one)):  # type: ignore[arg-type]
            found += detector.observe(one.slice(row, row + 1))  # type: ignore[union-attr]
        if i % 2:
            blob = detector.snapshot()
            detector = make()
            detector.restore(blob)
    assert [one.line() for one in found] == [one.line() for one in whole]


def test_a_snapshot_belongs_to_its_baseline() -> None:
    blob = make(fitted_both().section).snapshot()
    with pytest.raises(StateError, match="another baseline"):
        make().restore(blob)


def test_the_quiet_lose_their_window_and_the_flood_finds_no_room() -> None:
    rng = np.random.default_rng(3)
    detector = make(max_clients=50, max_hot_clients=10)
    told(detector, crowd(rng, 40, 2, "a"))
    gauges = detector.standing().gauges
    assert (gauges["hot_clients"], gauges["cold_clients"]) == (10, 30)
    told(detector, crowd(rng, 200, 1, "flood", start=1_000.0, step=0.001))
    gauges = detector.standing().gauges
    assert (gauges["evicted_clients"], gauges["refused_rows"]) == (40, 150)
    assert gauges["hot_clients"] + gauges["cold_clients"] == 50
    assert told(detector, batch(*odd(rng, 30), "thief", start=2_000.0, step=0.1))


def test_an_account_without_a_window_is_still_judged_by_its_single_queries() -> None:
    rng = np.random.default_rng(3)
    detector = make(max_hot_clients=1)
    told(detector, batch(*queries(rng, 1), "holder"))
    found = told(detector, batch(*odd(rng, 9), "thief", step=0.5), batch(*odd(rng, 9), "thief", start=5.0, step=0.5))
    assert found[0].evidence["window_queries"] == 0


# Learning


def test_without_a_baseline_it_learns_and_counts() -> None:
    detector = DETECTOR(Params(), cpu, None)
    assert (
        told(detector, batch(*odd(np.random.default_rng(3), 30), "a"), batch(*odd(np.random.default_rng(3), 5), None))
        == []
    )
    standing = detector.standing()
    assert standing.state is DetectorState.LEARNING
    assert "baseline fit" in standing.why
    assert (standing.gauges["unscored_rows"], standing.gauges["unattributed_rows"]) == (30, 5)


@pytest.mark.parametrize(("clients", "rows"), [(29, 40), (60, 9)])
def test_too_few_clients_are_refused_with_what_is_needed(clients: int, rows: int) -> None:
    fit = DETECTOR.fit([crowd(np.random.default_rng(1), clients, rows)], Params(), cpu)
    assert fit.section is None
    assert fit.refused == (
        f'model "m": {clients if rows >= 10 else 0} clients, too few; needs 30 clients with 10 distinct queries each'
    )


def test_nothing_to_learn_from_is_refused() -> None:
    for records in ([], [batch(*odd(np.random.default_rng(3), 30), None)]):
        fit = DETECTOR.fit(records, Params(), cpu)
        assert fit.section is None
        assert "no request has a client" in (fit.refused or "")


def test_synthetic_rows_teach_nothing() -> None:
    rng = np.random.default_rng(1)
    fit = DETECTOR.fit([crowd(rng, 60, 40), crowd(rng, 60, 40, "s", synthetic=True)], Params(), cpu)
    assert fit.section is not None
    assert fit.section.header["references"][0]["facts"]["clients"] == 40.0


def test_a_fit_does_not_depend_on_how_records_come() -> None:
    whole = crowd(np.random.default_rng(1), 60, 40)
    fit = DETECTOR.fit([whole.slice(i, min(i + 700, len(whole))) for i in range(0, len(whole), 700)], Params(), cpu)
    assert fit.section is not None
    assert fitted().section is not None
    for name, array in fitted().section.arrays.items():  # type: ignore[union-attr]
        np.testing.assert_array_equal(fit.section.arrays[name], array, err_msg=name)


def test_several_models_are_kept_apart() -> None:
    rng = np.random.default_rng(1)
    shifted = crowd(rng, 30, 30, "s", model="n", start=5.0)
    shifted.columns["features"] = Ragged(shifted.ragged("features").offsets, shifted.ragged("features").values + 50)
    fit = DETECTOR.fit([crowd(rng, 60, 40), shifted], Params(), cpu)
    assert fit.section is not None
    assert [one["model"] for one in fit.section.header["references"]] == ["m", "n"]
    detector = make(fit.section)
    assert detector.standing().gauges["calibration_models"] == 2
    found = told(
        detector, batch(*queries(rng, 20), "c", start=0.0), batch(*queries(rng, 20), "c", start=30.0, model="n")
    )
    assert {one.evidence["model"] for one in found} == {"n"}
    limited = DETECTOR.fit([crowd(rng, 60, 40), shifted], Params(max_models=1), cpu)
    assert limited.section is not None
    assert [one["model"] for one in limited.section.header["references"]] == ["m"]
    assert any("1 smaller models left out" in note for note in limited.notes)


def test_a_section_goes_through_the_baseline_file(tmp_path: Path) -> None:
    section = fitted().section
    assert section is not None
    baseline.write(tmp_path / "b.npz", {}, {DETECTOR.name: section})
    read = baseline.read(tmp_path / "b.npz").sections[DETECTOR.name]
    one = batch(*odd(np.random.default_rng(3), 30), "thief")
    assert [found.line() for found in told(make(read), one)] == [found.line() for found in told(make(), one)]


@pytest.mark.parametrize("damage", ["missing", "shape", "header", "channels"])
def test_a_section_that_does_not_fit_is_refused(damage: str) -> None:
    section = fitted().section
    assert section is not None
    header, arrays = dict(section.header), dict(section.arrays)
    match damage:
        case "missing":
            del arrays["0.f.whiten"]
        case "shape":
            arrays["0.f.centroids"] = arrays["0.f.centroids"][:-1]
        case "channels":
            arrays["0.null"] = arrays["0.null"][:, :-1]
        case "header":
            header = {"references": 3}
    with pytest.raises(BaselineError):
        DETECTOR(Params(), cpu, Section(header, arrays))


# Levels


def test_the_level_comes_from_the_budget() -> None:
    detector = make(client_alpha=None, false_alarms_per_week=0.5, clients_per_week=10.0)
    assert detector.standing().gauges["calibration_level"] == 0.05  # 0.5 a week over 10 clients: too low for 40
    assert detector.standing().gauges["calibration_certified"] == 0.0
    assert "takes 59" in detector.standing().why
    loose = make(client_alpha=None, false_alarms_per_week=1.0, clients_per_week=10.0).standing().gauges
    assert (loose["calibration_level"], loose["calibration_certified"]) == (0.1, 1.0)
    assert loose["calibration_level_upper"] <= 0.1
    daily = make(client_alpha=None, false_alarms_per_week=1.0, clients_per_week=10.0, epoch_seconds=86_400.0)
    assert daily.standing().gauges["calibration_level"] == pytest.approx(1 / 41)  # 1/70 is out of reach
    seen = make(client_alpha=None).standing().gauges["calibration_level"]
    assert seen == pytest.approx(1 / 41)


@pytest.mark.parametrize("n", [1, 20, 49, 99, 149, 150, 500])
@pytest.mark.parametrize("alpha", [0.001, 0.02, 0.1])
def test_thresholds_against_their_definition(n: int, alpha: float) -> None:
    scores = np.arange(1.0, n + 1)
    average = level_of(scores, alpha, on_average=True)
    level = max(alpha, 1 / (n + 1))
    assert average.level == level
    assert average.threshold == scores[min(math.ceil((1 - level) * (n + 1) - 1e-9), n) - 1]
    assert average.upper == pytest.approx(beta.ppf(0.95, n + 1 - average.threshold, average.threshold), abs=1e-9)
    strict = level_of(scores, alpha, on_average=False)
    assert average.certified == strict.certified == (n >= clients_needed(alpha))
    if strict.certified:
        assert strict.upper <= alpha
        rank = strict.threshold
        assert rank == 1 or beta.ppf(0.95, n + 2 - rank, rank - 1) > alpha  # and no lower one would do
    else:
        assert strict == average


def test_a_calibration_calmer_than_evidence_does_not_lower_the_threshold() -> None:
    assert level_of(np.zeros(100), 0.02, on_average=True).threshold == 1.0


def test_a_calibration_as_loud_as_can_be_is_said_to_be_saturated() -> None:
    section = fitted().section
    assert section is not None
    every = {"0.scores": np.full(40, 300.0), "0.crossed": np.full(120, 300.0)}
    loud = Section(section.header, section.arrays | every)
    standing = make(loud).standing()
    assert standing.state is DetectorState.SATURATED
    assert "health checks" in standing.why
    assert told(make(loud), batch(*odd(np.random.default_rng(3), 50), "thief")) == []
    half = Section(section.header, {**section.arrays, "0.scores": np.full(40, 3.0)})
    assert make(half).standing().state is DetectorState.ARMED


@pytest.mark.parametrize("n", [0, 18, 19, 20, 199, 1_000])
def test_cuts_are_conformal(n: int) -> None:
    scores = np.random.default_rng(n).normal(size=n).round(1)  # with ties
    cuts = cuts_of(scores)
    for s in [*np.unique(scores), 99.0]:
        p = (1 + (scores >= s).sum()) / (n + 1)
        assert (s > cuts[0]) == (p <= 0.05)
        assert (s > cuts[1]) == (p <= 0.005)


def test_the_null_finds_mean_and_overdispersion() -> None:
    rng = np.random.default_rng(0)
    tried = rng.integers(20, 400, 4_000)
    rate = rng.beta(0.1 * 9, 0.9 * 9, 4_000)  # mean 0.1, intraclass correlation 1 / (1 + 9)
    tallies = np.stack([rng.binomial(tried, rate), tried], axis=1)[:, :, None].astype(np.int32)
    a, b, scale = null_of(tallies, ("ood_f",))[:, 0]
    assert a / (a + b) == pytest.approx(0.1, abs=0.01)
    assert 1 / (a + b + 1) == pytest.approx(0.1, abs=0.01)
    assert scale == 1.0


def test_the_null_of_nothing_is_the_prior() -> None:
    a, b, _ = null_of(np.zeros((0, 2, 2), np.int32), ("ood_f", "flip"))
    np.testing.assert_allclose(a / (a + b), [0.05, 0.005])
    np.testing.assert_allclose(1 / (a + b + 1), 0.05)


def test_the_sharp_null_leaves_the_loudest_clients_out() -> None:
    rng = np.random.default_rng(1)
    tried = np.full(200, 300)
    rate = np.full(200, 0.005)
    rate[:6] = 0.3  # a few honest clients of an odd kind
    tallies = np.stack([rng.binomial(tried, rate), tried], axis=1)[:, :, None].astype(np.int32)
    sharp, wide = sharp_null_of(tallies, ("resid_f_tail",), cpu), null_of(tallies, ("resid_f_tail",))
    assert sharp[0, 0] / (sharp[0, 0] + sharp[1, 0]) == pytest.approx(0.005, abs=0.002)
    thief = np.array([[40], [800]], np.int32)  # a tenth of his queries are odd, and half of those show
    assert cpu.tails(thief, sharp)[0] > 8.0
    assert cpu.tails(thief, wide)[0] < 2.0


def test_what_whole_kinds_of_clients_do_keeps_the_wide_null() -> None:
    tallies = np.zeros((80, 2, 2), np.int32)
    tallies[:, 1] = 60
    tallies[0, 0] = 50  # the one video among the clients that the reference was drawn from
    sharp, wide = (one(tallies, ("crowd", "unc_tail"), *more) for one, more in ((sharp_null_of, [cpu]), (null_of, [])))
    np.testing.assert_array_equal(sharp[:, 0], wide[:, 0])
    always = np.full((2, 2), 60, np.int32)
    assert cpu.tails(always, sharp)[1] > 20.0
    assert cpu.tails(always, wide).max() < 6.0


def test_the_sharp_null_shrinks_spread_relative_to_the_mean() -> None:
    nothing = np.zeros((0, 2, 3), np.int32)
    a, b, _ = sharp_null_of(nothing, ("unc", "unc_tail", "back_rare"), cpu)
    np.testing.assert_allclose(a / (a + b), [0.05, 0.005, 0.0005])
    mean, rho = a / (a + b), 1 / (a + b + 1)
    np.testing.assert_allclose(np.sqrt(rho * (1 - mean) / mean), 1.0)  # standard deviation over mean
    calm = np.tile(np.array([[50], [1_000]], np.int32), (1_000, 1, 1))
    a, b, _ = sharp_null_of(calm, ("unc",), cpu)
    assert np.sqrt(b / a / (a + b + 1)) == pytest.approx(0.5), "never nearer to binomial than this"


def test_rarer_cuts_are_conformal_too() -> None:
    scores = np.random.default_rng(3).normal(size=4_000)
    cuts = cuts_of(scores, RARE_TAILS)
    assert ((scores >= np.nextafter(cuts, np.inf)[:, None]).sum(axis=1) + 1).tolist() == [20, 2]
    assert np.isinf(cuts_of(scores[:1_000], RARE_TAILS)[1])


def test_what_ordinary_clients_always_do_accuses_nobody_who_does_it_longer() -> None:
    tallies = np.full((100, 2, 2), 40, np.int32)
    tallies[:, 0, 1] = np.random.default_rng(0).binomial(40, 0.9, 100)
    null = null_of(tallies, ("unscorable", "retry"))
    assert null[0] / (null[0] + null[1]) == pytest.approx([0.99, 0.89], abs=0.02)
    assert (null[1] >= 1.0).all()
    assert cpu.tails(np.full((2, 2), 2_048, np.int32), null)[0] < 2.0


def test_scales_bring_one_percent_to_two() -> None:
    best = np.random.default_rng(0).exponential(3.0, (20_000, 1))
    assert scale_of(best)[0] * np.quantile(best, 0.99) == pytest.approx(2.0, rel=0.05)
    assert scale_of(np.zeros((10, 1)))[0] == 1.0
    few = np.zeros((1_000, 1))
    few[:20] = 3.0  # one in fifty has a score at all, so one in a hundred has no more than that one
    assert scale_of(few)[0] == pytest.approx(2.0 / (3.0 * math.log(2.0)))
