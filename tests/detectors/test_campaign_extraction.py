from __future__ import annotations

import datetime
import functools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from support import Case, atoms, fold_of, requests

from mlsecd import baseline
from mlsecd.detectors import _campaign_excuses
from mlsecd.detectors._campaign_chances import excess, pooled, rank_sum, share_beyond
from mlsecd.detectors._campaign_memory import Memory
from mlsecd.detectors._campaign_null import Side, edge, members, spectrum
from mlsecd.detectors._campaign_sketches import Sketch
from mlsecd.detectors._campaign_telling import CHANNELS, Channel, Seen, Teller
from mlsecd.detectors._campaign_verdict import Campaign, Crowd, Verdict
from mlsecd.detectors._launches import Launch
from mlsecd.detectors.base import DetectorState, Fit, Interval, Section
from mlsecd.detectors.campaign_extraction import DETECTOR, CampaignExtraction, Params
from mlsecd.errors import BaselineError, StateError
from mlsecd.kernels import cpu
from mlsecd.records import Finding, RequestBatch, Severity, Status

DIMS, CLASSES, HOUR, DAY = 8, 4, 3_600.0, 86_400.0
CENTRES = np.random.default_rng(99).normal(0, 3, (CLASSES, DIMS))
PARAMS = Params(epoch_seconds=HOUR, false_alarms_per_week=1.0)  # it looks every 150 s


def ordinary(rng: np.random.Generator, n: int) -> Any:
    """Around the classes' centres."""
    return CENTRES[rng.integers(0, CLASSES, n)] + rng.normal(0, 1, (n, DIMS))


def copied(rng: np.random.Generator, n: int) -> Any:
    """From outside, all from the same side: one attacker's generator."""
    return np.tile([[7.0, -7.0, 7.0, 7.0, 0.0, 0.0, 0.0, 0.0]], (n, 1)) + rng.normal(0, 2, (n, DIMS))


def label_of(x: Any) -> list[str]:
    return [str(one) for one in np.linalg.norm(x[:, None] - CENTRES[None], axis=2).argmin(axis=1)]


def account(rng: np.random.Generator, name: str, n: int, share: float = 0.0, **columns: Any) -> dict[str, Any]:
    """One account's queries over an hour, a share of them from outside."""
    outside = rng.random(n) < share
    x = np.where(outside[:, None], copied(rng, n), ordinary(rng, n)) + columns.pop("moved", 0.0)
    return {"client": name, "x": x, "ts": np.sort(rng.uniform(0, columns.pop("span", HOUR), n)), **columns}


def traffic(accounts: list[dict[str, Any]], start: float = 0.0) -> RequestBatch:
    """Accounts' queries, joined in time."""
    x = np.concatenate([one["x"] for one in accounts])
    ts = np.concatenate([one["ts"] for one in accounts])
    names = np.concatenate([[one["client"]] * len(one["ts"]) for one in accounts])
    networks = np.concatenate([[one.get("network", "")] * len(one["ts"]) for one in accounts])
    principals = np.concatenate([[one.get("principal", "")] * len(one["ts"]) for one in accounts])
    synthetic = np.concatenate([[one.get("synthetic", 0)] * len(one["ts"]) for one in accounts])
    labels = np.concatenate([one.get("label") or label_of(one["x"]) for one in accounts])
    order = np.argsort(ts, kind="stable")
    return requests(
        start + ts[order],
        features=x[order],
        predicted=[str(one) for one in labels[order]],
        client=[str(name) for name in names[order]],
        network=[str(one) or None for one in networks[order]],
        principal=[str(one) or None for one in principals[order]],
        synthetic=synthetic[order],
        body_hash=[f"{start}{i}" for i in order],
    )


def crowd(rng: np.random.Generator, count: int, rows: int = 40, prefix: str = "c", **columns: Any) -> list[Any]:
    return [account(rng, f"{prefix}{i}", rows, **columns) for i in range(count)]


@functools.cache
def fitted() -> Fit:
    return DETECTOR.fit([traffic(crowd(np.random.default_rng(1), 120))], PARAMS, cpu)


def make(section: Section | None = None, params: Params = PARAMS) -> CampaignExtraction:
    return DETECTOR(params, cpu, fitted().section if section is None else section)


def told(batch: RequestBatch, detector: CampaignExtraction | None = None) -> list[Finding]:
    """Lines of a fold over the batch, and over a last row that closes what came before; not those that resolve."""
    last = traffic(crowd(np.random.default_rng(5), 1, rows=1, prefix="last"), start=float(batch.completion[-1]) + 60)
    fold = fold_of(detector or make())
    lines = fold.push([batch]) + fold.push([last]) + fold.finish()
    return [line for line in lines if line.status is not Status.RESOLVED]


@functools.cache
def hydra() -> RequestBatch:
    """Fifteen accounts with four fifths of ordinary cover among forty ordinary ones."""
    rng = np.random.default_rng(11)
    return traffic(crowd(rng, 40) + crowd(rng, 15, prefix="h", share=0.2, network="203.0.113.7"))


def conformance() -> Case:
    rng = np.random.default_rng(12)
    parts = crowd(rng, 25, rows=24, span=1_000.0) + crowd(rng, 10, rows=24, prefix="h", share=0.4, span=1_000.0)
    parts += crowd(rng, 2, rows=5, prefix="s", synthetic=1, span=1_000.0)
    joined = traffic(parts)
    tail = traffic(crowd(rng, 1, rows=2, prefix="tail", span=10.0), start=1_300.0)
    return Case(
        detector=DETECTOR,
        params=PARAMS,
        records=[joined.slice(i, min(i + 100, len(joined))) for i in range(0, len(joined), 100)] + [tail],
        limited=Params(epoch_seconds=HOUR, max_clients=50, max_compared_rows=256),
        flood=lambda count: [traffic(crowd(np.random.default_rng(8), count, rows=2))],
        section=fitted().section,
    )


# What it finds


def test_a_campaign_under_cover_is_told_with_its_accounts() -> None:
    found = [one for one in told(hydra()) if one.subject_kind == "campaign"]
    last = found[-1]
    assert {one.subject for one in found} == {last.subject}, "one campaign, one name"
    assert (last.severity, last.certified, last.synthetic) == (Severity.HIGH, False, False)
    named = set(last.evidence["clients"])
    members_ = {f"h{i}" for i in range(15)}
    assert len(named & members_) >= 14
    assert len(named - members_) <= 3  # of forty; one ordinary client in twenty lies as far out
    assert last.score > last.threshold
    assert last.evidence["channels"][0]["channel"] == "very_odd_f"
    assert last.evidence["networks"] == [{"network": "203.0.113.0/24", "members": len(named & members_)}]
    assert last.evidence["cells_seen_together"] > last.evidence["cells_seen_by_the_median_member"] > 0
    assert 'accounts act as one on model "m"' in last.reason
    assert "unlike what others send" in last.reason
    assert 0.0 <= last.evidence["first_ts"] < last.evidence["last_ts"] <= HOUR


def test_ordinary_accounts_are_no_campaign() -> None:
    assert told(traffic(crowd(np.random.default_rng(21), 60))) == []


def test_accounts_that_move_together_are_a_shift_and_no_attack() -> None:
    rng = np.random.default_rng(22)
    moved = np.array([0.0, 0, 0, 0, 1.2, 1.2, 0, 0])
    detector = make()
    found = told(traffic(crowd(rng, 40) + crowd(rng, 25, prefix="new", moved=moved)), detector)
    assert {(one.subject_kind, one.severity) for one in found} == {("model", Severity.INFO)}
    assert "clients" not in found[-1].evidence
    assert "a season, a launch" in found[-1].reason
    assert detector.standing().state is DetectorState.SHIFTED


def turned(odd_ones: int, newcomers: int) -> RequestBatch:
    """Thirty customers on one day; two days later some of them, and newcomers, send what nobody sent before."""
    rng = np.random.default_rng(40)
    before = traffic(crowd(rng, 30))
    later = [account(rng, f"c{i}", 40, share=0.9 * (i < odd_ones)) for i in range(30)]
    after = traffic(later + crowd(rng, newcomers, prefix="n", share=0.9), start=2 * DAY)
    return RequestBatch.concat([before, after])


def test_a_season_as_foreign_as_theft_is_told_by_those_who_had_been_calm() -> None:
    detector = make()
    found = told(turned(20, 10), detector)
    assert {(one.subject_kind, one.severity) for one in found} == {("model", Severity.INFO)}
    assert re.search(r": \d+ of \d+ accounts that had been calm for a day have turned: a season", found[-1].reason)
    assert found[-1].evidence["accounts"] >= 28
    assert detector.standing().state is DetectorState.SHIFTED
    again = make()
    again.restore(detector.snapshot())
    assert again.snapshot() == detector.snapshot()


def test_accounts_that_are_odd_from_the_start_are_no_season_however_many() -> None:
    found = [one for one in told(turned(6, 40)) if one.subject_kind == "campaign"]
    assert found[-1].severity is Severity.HIGH
    assert sum(name.startswith("n") for name in found[-1].evidence["clients"]) >= 36


def returning(rng: np.random.Generator, name: str) -> dict[str, Any]:
    """Odd queries, many of them beside one that it had left behind."""
    x = np.where(rng.random(90)[:, None] < 0.3, copied(rng, 90), ordinary(rng, 90))
    for i in range(36, 90):
        if rng.random() < 0.4:
            x[i] = x[i - 35] + rng.normal(0, 0.05, DIMS)
    return {"client": name, "x": x, "ts": np.sort(rng.uniform(0, HOUR, 90))}


def test_who_comes_back_to_vary_queries_is_told_in_a_season_too() -> None:
    rng = np.random.default_rng(60)
    before = traffic(crowd(rng, 30) + crowd(rng, 12, prefix="h"))
    customers = [account(rng, f"c{i}", 40, share=0.9 * (i < 20)) for i in range(30)]
    found = told(
        RequestBatch.concat([before, traffic(customers + [returning(rng, f"h{i}") for i in range(12)], 2 * DAY)])
    )
    assert any("had been calm" in one.reason for one in found)
    last = [one for one in found if one.subject_kind == "campaign"][-1]
    assert last.severity is Severity.HIGH
    assert sum(name.startswith("h") for name in last.evidence["clients"]) >= 10
    assert "comes_back" in {one["channel"] for one in last.evidence["channels"]}


def test_a_campaign_of_before_goes_on_in_a_season() -> None:
    rng = np.random.default_rng(61)

    def thieves() -> list[Any]:
        return crowd(rng, 15, prefix="h", share=0.6)

    parts = [traffic(crowd(rng, 40) + thieves())]
    parts += [traffic(crowd(rng, 40) + thieves(), start=2 * DAY)]
    turn = [account(rng, f"c{i}", 40, share=0.9 * (i < 30)) for i in range(40)]
    parts += [traffic(turn + thieves(), start=4 * DAY)]
    found = [one for one in told(RequestBatch.concat(parts)) if one.ts > 4 * DAY + HOUR / 2]
    assert any("had been calm" in one.reason for one in found)
    campaigns = [one for one in found if one.subject_kind == "campaign"]
    assert campaigns
    assert sum(name.startswith("h") for name in campaigns[-1].evidence["clients"]) >= 13


@pytest.mark.parametrize("customers", [30, 8])
def test_where_everybody_is_explained_nobody_is_left_to_judge(customers: int) -> None:
    rng = np.random.default_rng(62)
    before, detector = traffic(crowd(rng, customers, network="198.51.100.4")), make()
    turn = traffic(crowd(rng, customers, share=0.9, network="198.51.100.4"), start=2 * DAY)
    found = told(RequestBatch.concat([before, turn]), detector)
    assert found[-1].severity is Severity.INFO
    assert found[-1].evidence["accounts"] == customers


def launched(**columns: str) -> Params:
    given = {"model": "*", "begins": "2027-01-11", "ends": "2027-01-12", "reason": "scanner 2.0", **columns}
    return msgspec.structs.replace(PARAMS, launches=(msgspec.convert(given, Launch),))


LAUNCHED = datetime.datetime(2027, 1, 11, tzinfo=datetime.UTC).timestamp()


def test_an_announced_launch_is_a_shift_and_hides_nobody_who_was_there_before() -> None:
    rng = np.random.default_rng(41)
    thieves = crowd(rng, 12, prefix="h")
    before = traffic(crowd(rng, 40) + thieves, start=LAUNCHED - HOUR)
    new, calm = crowd(rng, 25, prefix="n", share=0.6), crowd(rng, 40)
    launch = traffic(calm + new, start=LAUNCHED)
    for params, kinds in ((launched(), {"model"}), (launched(model="other"), {"campaign"}), (PARAMS, {"campaign"})):
        found = told(RequestBatch.concat([before, launch]), make(params=params))
        assert {one.subject_kind for one in found} == kinds
    found = told(RequestBatch.concat([before, launch]), make(params=launched()))
    assert {one.severity for one in found} == {Severity.INFO}
    assert "first seen since an announced launch began (scanner 2.0)" in found[-1].reason
    assert set(found[-1].evidence["explained_clients"]) >= {f"n{i}" for i in range(24)}
    assert found[-1].evidence["accounts"] >= 24
    turn = [account(rng, f"h{i}", 40, share=0.5) for i in range(12)]
    both = told(RequestBatch.concat([before, traffic(calm + new + turn, start=LAUNCHED)]), make(params=launched()))
    campaigns = [one for one in both if one.subject_kind == "campaign"]
    assert campaigns[-1].severity is Severity.HIGH
    named = campaigns[-1].evidence["clients"]
    assert sum(name.startswith("h") for name in named) >= 10
    assert sum(name.startswith("n") for name in named) <= 2
    late = told(traffic(calm + new, start=LAUNCHED + 2 * DAY), make(params=launched()))
    assert "campaign" in {one.subject_kind for one in late}, "it is over"


def campaign_of(channel: str, *names: str) -> Campaign:
    return Campaign(names, (Channel(channel, len(names), 0.5, 0.01, 1e-9),), 9.0, 3.0)


@pytest.mark.parametrize(
    ("first", "rest", "left"),
    [
        (campaign_of("comes_back_flipped", *"abcdef"), [], [campaign_of("comes_back_flipped", *"abcdef")]),
        (campaign_of("very_odd_f", *"abcdef"), [], []),
        (campaign_of("near_others", *"abcdef"), [], []),
        (campaign_of("very_odd_f", *"uvwxyz"), [], [campaign_of("very_odd_f", *"uvwxyz")]),  # nobody is new
        (
            campaign_of("very_odd_f", *"abcdefuvwxyz"),
            [campaign_of("odd_u", *"uvwxyz")],
            [campaign_of("odd_u", *"uvwxyz")],
        ),
        (campaign_of("very_odd_f", *"abuvwxyz"), [], [campaign_of("very_odd_f", *"abuvwxyz")]),  # most are not new
        (campaign_of("very_odd_f", *"abcdef"), [campaign_of("odd_u", *"abcu")], []),  # what was set aside comes back
        (
            campaign_of("very_odd_f", *"abcdef"),
            [campaign_of("comes_back", *"abcu")],
            [campaign_of("comes_back", *"abcu")],
        ),
    ],
)
def test_what_a_launch_explains(
    monkeypatch: pytest.MonkeyPatch, first: Campaign, rest: list[Campaign], left: list[Campaign] | None
) -> None:
    """Accounts a to f are new; ``left`` is what is told, None: what the rest shows."""
    names, fold = list("abcdefuvwxyz"), make()
    sketches = [Sketch.new(fold._views[0]) for _ in names]
    among = Crowd(fold._views[0], fold._nulls[0], names, sketches)
    judged: list[list[str]] = []

    def judge(crowd: Crowd, level: float, kernels: Any) -> Verdict:
        judged.append(list(crowd.names))
        nobody = np.zeros(len(crowd.names), bool)
        return Verdict(rest, None, moving=False, odd=nobody, returning=nobody)

    monkeypatch.setattr(_campaign_excuses, "judge", judge)
    nobody = np.zeros(len(names), bool)
    verdict = Verdict([first], None, moving=False, odd=nobody, returning=nobody)
    excuse = _campaign_excuses.Excuse(np.array([name <= "f" for name in names]), "why", season=False)
    made = _campaign_excuses.excused(verdict, among, excuse, 0.01, cpu)
    assert made.campaigns == (rest if left is None else left)
    if made is not verdict:
        assert judged == [[name for name in names if not ("a" <= name <= "f" and name in first.members)]]
        assert made.shift is not None
        assert (made.shift.why, made.shift.accounts, made.moving) == (
            "why",
            len(set(first.members) & set("abcdef")),
            False,
        )


def faint(rng: np.random.Generator, name: str, n: int, share: float) -> dict[str, Any]:
    """Among ordinary queries, a share that lies off the first class, farther than 19 of 20 but not than 199 of 200."""
    one = account(rng, name, n)
    away = CENTRES[0] - CENTRES[1:].mean(axis=0)
    outside = rng.random(n) < share
    one["x"][outside] = CENTRES[0] + 3.9 * away / np.linalg.norm(away) + rng.normal(0, 0.6, (int(outside.sum()), DIMS))
    return one


def test_faint_oddness_under_cover_is_a_ticket() -> None:
    rng = np.random.default_rng(29)
    accounts = crowd(rng, 60) + [faint(rng, f"h{i}", 40, 0.2) for i in range(20)]
    found = [one for one in told(traffic(accounts)) if one.subject_kind == "campaign"]
    last = found[-1]
    assert {one.severity for one in found} == {Severity.MEDIUM}
    assert {one["channel"] for one in last.evidence["channels"]} == {"odd_f"}
    named = set(last.evidence["clients"])
    assert len(named & {f"h{i}" for i in range(20)}) >= 15
    assert sum(name.startswith("c") for name in named) <= 6
    assert last.evidence["channels"][0]["odd_members"] <= len(named)
    assert "they send more of what looks to the model unlike what others send" in last.reason


def test_a_small_share_of_many_accounts_is_named() -> None:
    rng = np.random.default_rng(30)
    found = told(traffic(crowd(rng, 300) + crowd(rng, 10, prefix="h", share=0.4)))
    campaigns = [one for one in found if one.subject_kind == "campaign"]
    named = set(campaigns[-1].evidence["clients"])
    assert len(named & {f"h{i}" for i in range(10)}) >= 9
    assert len(named) <= 14


def test_oddness_alone_after_half_a_day_of_everybody_moving_is_a_ticket() -> None:
    rng = np.random.default_rng(28)
    accounts = crowd(rng, 40) + crowd(rng, 15, prefix="h", share=0.3)
    calm, moving = make(), make()
    for _ in range(24):  # and down again with each quiet look
        moving._memory.looked("0:0", moving=True)
    for detector, severity in ((calm, Severity.HIGH), (moving, Severity.MEDIUM)):
        found = [one for one in told(traffic(accounts), detector) if one.subject_kind == "campaign"]
        assert {one["channel"] for one in found[0].evidence["channels"]} <= {"very_odd_f", "odd_u", "very_odd_u"}
        assert found[0].severity is severity


def test_those_who_copy_each_other_without_another_sign_are_a_ticket() -> None:
    rng = np.random.default_rng(23)
    shared = ordinary(rng, 40)
    accounts = crowd(rng, 40)
    for i in range(12):
        own = account(rng, f"t{i}", 40)
        own["x"] = shared + rng.normal(0, 0.02, shared.shape)
        accounts.append(own)
    found = [one for one in told(traffic(accounts)) if one.subject_kind == "campaign"]
    assert found
    assert {one["channel"] for one in found[0].evidence["channels"]} == {"near_others"}
    assert found[0].severity is Severity.MEDIUM


def test_exact_repeats_of_one_body_by_many_accounts_are_nothing() -> None:
    rng = np.random.default_rng(24)
    accounts = crowd(rng, 60)
    batch = traffic(accounts)
    health = traffic(
        [
            {"client": f"c{i}", "x": np.tile(CENTRES[0], (30, 1)), "ts": np.sort(rng.uniform(0, HOUR, 30))}
            for i in range(20)
        ]
    )
    same = RequestBatch({**health.columns, "body_hash": requests(health.ts, body_hash="health").columns["body_hash"]})
    joined = RequestBatch.concat([batch, same])
    assert told(joined.take(np.argsort(joined.completion, kind="stable"))) == []


def test_a_network_whose_accounts_do_what_attackers_do_is_told_below_twenty_accounts() -> None:
    rng = np.random.default_rng(25)
    found = told(traffic(crowd(rng, 8) + crowd(rng, 8, prefix="n", share=0.5, network="198.51.100.4")))
    assert found
    assert set(found[-1].evidence["clients"]) == {f"n{i}" for i in range(8)}
    assert found[-1].evidence["found_by"] == "network 198.51.100.0/24"


@pytest.mark.parametrize(
    ("columns", "links", "told_by"),
    [
        ({"principal": "acme"}, (), "principal acme"),
        ({}, ("partners," + ",".join(f"n{i}" for i in range(8)),), "link partners"),
    ],
)
def test_a_tenant_or_a_link_is_a_group_like_a_network(columns: Any, links: tuple[str, ...], told_by: str) -> None:
    rng = np.random.default_rng(25)
    detector = make(params=msgspec.structs.replace(PARAMS, links=links))
    found = told(traffic(crowd(rng, 8) + crowd(rng, 8, prefix="n", share=0.5, **columns)), detector)
    assert found
    assert set(found[-1].evidence["clients"]) == {f"n{i}" for i in range(8)}
    assert found[-1].evidence["found_by"] == told_by


def test_accounts_that_share_two_groups_are_told_once() -> None:
    rng = np.random.default_rng(25)
    both = {"network": "198.51.100.4", "principal": "acme"}
    found = told(traffic(crowd(rng, 8) + crowd(rng, 8, prefix="n", share=0.5, **both)))
    assert len({one.subject for one in found}) == 1


def test_a_campaign_that_goes_on_next_epoch_keeps_its_name() -> None:
    rng = np.random.default_rng(26)
    detector = make()
    days = [crowd(rng, 40) + crowd(rng, 15, prefix="h", share=0.3) for _ in range(2)]
    fold = fold_of(detector)
    lines = fold.push([traffic(days[0]), traffic(days[1], start=HOUR + 30)]) + fold.finish()
    campaigns = [one for one in lines if one.subject_kind == "campaign"]
    assert len({one.subject for one in campaigns}) == 1
    assert max(one.ts for one in campaigns) > HOUR


def test_who_does_for_a_day_what_a_tool_does_does_not_go_on_under_its_name() -> None:
    """A customer's tool is signed off by an exception to its campaign's name; thieves must not inherit that."""
    memory = Memory(1_000, 86_400.0)
    tool, thieves = [f"0:0:tool{i:02}" for i in range(12)], [f"0:0:thief{i:02}" for i in range(10)]
    name, _ = memory.name(tool[:6], 0.0)
    assert memory.name(tool, 3_600.0) == (name, 0), "who belongs to it is found out in its first day"
    assert memory.name(tool[4:], 200_000.0) == (name, 4)
    assert memory.name(tool + thieves, 300_000.0) == (name, 0)
    theirs, _ = memory.name(thieves, 400_000.0)
    assert theirs != name
    assert memory.name(thieves[:5] + tool[:4], 500_000.0)[0] == theirs
    assert memory.name(tool, 600_000.0)[0] == name
    again = Memory.load(1_000, 86_400.0, memory.dump())
    assert again.dump() == memory.dump()


def test_a_neighbour_that_was_there_before_makes_nobody_a_page() -> None:
    """Attackers who send the other side of the boundary of inputs that are known in public, before the victims do."""
    rng = np.random.default_rng(41)
    public = ordinary(rng, 8)
    accounts = crowd(rng, 40)
    for i in range(12):
        own = account(rng, f"v{i}", 40)
        own["x"][:8], own["ts"] = public + rng.normal(0, 0.02, public.shape), np.sort(rng.uniform(600, HOUR, 40))
        accounts.append(own)
    framers = [account(rng, f"a{i}", 8) for i in range(3)]
    for one in framers:
        one["x"], one["ts"], one["label"] = public + 0.03, np.linspace(1, 60, 8), ["other"] * 8
    found = [one for one in told(traffic(accounts + framers)) if one.subject_kind == "campaign"]
    assert found
    assert {one.severity for one in found} == {Severity.MEDIUM}
    shown = {one["channel"] for line in found for one in line.evidence["channels"]}
    assert "near_others_flipped" in shown
    assert shown <= {"near_others", "near_others_flipped"}


def test_decoys_that_moved_yesterday_make_no_ticket_of_todays_page() -> None:
    """What counts is whether those move whom no campaign names: the counter falls while one is told, too."""
    rng = np.random.default_rng(42)
    detector = make()
    for _ in range(24):
        detector._memory.looked("0:0", moving=True)
    fold = fold_of(detector)
    days = [traffic(crowd(rng, 40) + crowd(rng, 15, prefix="h", share=0.3), start=i * (HOUR + 30)) for i in range(3)]
    lines = [one for one in fold.push(days) + fold.finish() if one.subject_kind == "campaign"]
    assert lines[0].severity is Severity.MEDIUM
    assert lines[-1].severity is Severity.HIGH


def test_bystanders_of_a_network_of_attackers_are_hardly_ever_named() -> None:
    named: set[str] = set()
    for seed in range(500, 506):
        rng = np.random.default_rng(seed)
        accounts = crowd(rng, 8, prefix=f"by{seed}.", network="192.0.2.9")
        accounts += crowd(rng, 8, rows=12, prefix=f"h{seed}.", share=1.0, network="192.0.2.7")
        found = [one for one in told(traffic(accounts)) if one.subject_kind == "campaign"]
        assert found[-1].evidence["found_by"] == "network 192.0.2.0/24"
        named.update(*(one.evidence["clients"] for one in found))
    assert sum(name.startswith("h") for name in named) == 48
    assert sum(name.startswith("by") for name in named) <= 5, "one in ten; by a third of the level it was one in five"


def test_whose_name_sorts_last_is_compared_too_where_more_accounts_come_than_can_be() -> None:
    """4,096 rows an interval are; 4,500 accounts with one each must not leave out the same ones every time."""
    rng = np.random.default_rng(2)
    shared, seen = ordinary(rng, 30), {}
    for prefix in ("a", "zz"):
        detector = make()
        for k in range(8):
            alike = np.repeat(shared[k : k + 1], 24, axis=0) + rng.normal(0, 0.02, (24, DIMS))
            x = np.concatenate([ordinary(rng, 4_500), alike])
            names = [f"c{i:05d}" for i in range(4_500)] + [f"{prefix}{i}" for i in range(24)]
            ts, hashes = 10.0 * k + np.linspace(0, 9, len(x)), [f"{k}.{i}" for i in range(len(x))]
            detector.observe(requests(ts, features=x, predicted=label_of(x), client=names, body_hash=hashes))
            detector.close(Interval(10.0 * k, 10.0 * k + 10.0), sorted(detector.states()))
        own = [sketch for name, sketch in detector.states() if name.split(":")[2].startswith(prefix)]
        seen[prefix] = sum(int(sketch.sums[-2]) for sketch in own) / cpu.FIXED_POINT
    assert min(seen.values()) > 0.7 * 8 * 24


@pytest.mark.parametrize("huge", [1e3, 1e38])
def test_a_few_clients_with_huge_numbers_while_it_is_recorded_blind_nobody(huge: float) -> None:
    """Two of 120, one of their queries in four: axes were theirs, and a radius of NaN was no section that loads."""
    for seed in (1, 2):
        recording = traffic(crowd(np.random.default_rng(seed), 120))
        client, column = recording.text("client"), recording.ragged("features")
        vectors = column.values.reshape(-1, DIMS)
        for name in ("c0", "c1"):
            at = np.flatnonzero(client.codes == client.values.index(name))[::4]
            vectors[at] = np.random.default_rng(1).choice([huge, -huge], (len(at), DIMS))
        section = DETECTOR.fit([recording], PARAMS, cpu).section
        found = [one for one in told(hydra(), make(section)) if one.subject_kind == "campaign"]
        named = set().union(*(one.evidence["clients"] for one in found))
        assert sum(name.startswith("h") for name in named) >= 14


def test_synthetic_accounts_are_held_against_synthetic_ones() -> None:
    rng = np.random.default_rng(27)
    found = told(traffic(crowd(rng, 40, synthetic=1) + crowd(rng, 15, prefix="h", share=0.3, synthetic=1)))
    assert found
    assert all(one.synthetic for one in found)


# What it is made of


def test_the_spectrum_of_noise_ends_at_its_edge() -> None:
    rng = np.random.default_rng(31)
    y = rng.normal(0, 1, (4_000, 40))
    assert spectrum(y, 1e9).value == pytest.approx(edge(40, 4_000), rel=0.03)


def test_members_are_told_from_others_and_a_loud_account_owns_no_axis() -> None:
    rng = np.random.default_rng(32)
    detector = make()
    null = detector._nulls[0]
    dims = len(null.mean)
    y = rng.normal(0, 1, (100, dims))
    y[:30, 3] += 6.0
    y[40] *= 1_000.0
    top = spectrum(y, null.cap)
    assert abs(top.direction[3]) > 0.8
    sides = list(members(y, null.held, null.cap, top.direction))
    best = max((side.chosen for side in sides), key=lambda chosen: int(chosen[:30].sum()))
    assert best[:30].all()


def teller(tails: Any, fired: Any, means: Any, null: Any, level: float = 0.001) -> Teller:
    """Of accounts with 40 queries each, that fire ``odd_f`` alone."""
    view = make()._views[0]
    names = [name for name in CHANNELS if name in view.names]
    at, counts = names.index("odd_f"), np.full(len(tails), 40.0)
    sums = np.zeros((len(tails), len(view.names)))
    sums[:, [i for i, name in enumerate(view.names) if name[0] == "f"]] = 40.0 * means
    many, shown = np.zeros((2, len(tails), len(names)))
    many[:, at], shown[:, at] = fired, tails
    tried = np.full(many.shape, 40, np.int32)
    return Teller(names, view.names, Seen(counts, sums, many.astype(np.int32), tried, shown), null, level, cpu)


@pytest.mark.parametrize(
    ("others", "moved", "told_"),
    [
        (2, 0.0, True),  # 20 of 80 accounts fire it 4 to 5 times as often, and their mean has not moved
        (2, 1.3, False),  # all of their queries have moved, which explains it: a launch
        (4, 0.0, False),  # the day's other accounts fire it twice as often as they used to: a season
    ],
)
def test_faint_oddness_is_held_against_the_day_and_against_a_move(others: int, moved: float, told_: bool) -> None:
    null = make()._nulls[0]
    chosen = np.arange(80) < 20
    tails, fired = np.where(chosen, 4.0, 0.3), np.where(chosen, 9, others)
    judged = teller(tails, fired, np.where(chosen, moved, 0.0)[:, None], null)
    for sure in (True, False):
        assert [one.name for one in judged.distant(chosen, None, sure=sure)] == ["odd_f"] * told_
    assert judged.distant(np.arange(80) < 70, None, sure=True) == [], "too few others to hold it against"


def test_so_many_are_named_that_few_should_be_ordinary() -> None:
    null = replace(make()._nulls[0], tails=np.zeros((100, len(make()._nulls[0].rates[0]))))
    null.tails[:, 0] = 1.0
    judged = teller(np.ones(220), np.full(220, 10), np.zeros((220, 1)), null)
    channel = Channel("odd_f", 20, 0.25, 0.05, 1e-9)
    everybody, held = np.ones(220, bool), np.ones(100, bool)
    along = np.concatenate([np.linspace(3.0, 5.0, 20), np.linspace(-2.0, 2.0, 200)])
    usual = np.linspace(-2.0, 2.0, 100)  # like the other 200
    loose = judged.named(Side(along > 0.0, along, usual), everybody, held, [channel])
    assert 20 <= loose.sum() <= 24
    assert loose[:20].all()
    assert judged.crowded(Side(along > 2.5, along, usual), everybody, held, [channel])
    assert not judged.crowded(Side((along > 0.0) & (along < 2.0), along, usual), everybody, held, [channel])


def test_chances() -> None:
    rng = np.random.default_rng(41)
    tails = -np.log10(rng.random((4_000, 8)))
    assert np.mean([pooled(row) <= 0.05 for row in tails]) == pytest.approx(0.05, abs=0.01)
    assert pooled(np.full(20, 3.0)) < 1e-20
    assert pooled(np.zeros(5)) == 1.0
    ordinary = rng.poisson(2.0, 200).astype(float)
    ranks = [rank_sum(rng.poisson(2.0, 20).astype(float), ordinary) for _ in range(2_000)]
    assert np.mean(np.array(ranks) <= 0.05) == pytest.approx(0.05, abs=0.04)
    assert rank_sum(ordinary[:20] + 9.0, ordinary) < 1e-9
    assert rank_sum(np.zeros(3), np.zeros(9)) == 1.0
    assert excess(3, 100, 6, 200, cpu) > 0.3
    assert excess(30, 100, 6, 200, cpu) < 1e-6
    assert excess(20, 100, 1, 10, cpu) > excess(20, 100, 10, 100, cpu), "few clients leave more open"


@pytest.mark.parametrize("moved", [0.0, 1.0, 6.0])
def test_the_share_beyond_a_distance_is_what_moved_noise_gives(moved: float) -> None:
    rows = np.random.default_rng(42).normal(0, 1, (400_000, 12))
    cut = np.quantile((rows**2).sum(axis=1), 0.95)
    rows[:, 0] += np.sqrt(moved)
    assert share_beyond(0.05, 12, moved) == pytest.approx(float(((rows**2).sum(axis=1) > cut).mean()), abs=0.004)


def test_the_threshold_falls_with_the_number_of_accounts_and_rises_with_certainty() -> None:
    null = make()._nulls[0]
    assert null.threshold(0.001, 50) > null.threshold(0.01, 50) > null.threshold(0.01, 500)


def test_states_and_limits() -> None:
    assert DETECTOR(PARAMS, cpu).standing().state is DetectorState.LEARNING
    assert DETECTOR(PARAMS, cpu).observe(hydra()) == []
    detector = make(params=Params(epoch_seconds=HOUR, max_clients=10))
    told(hydra(), detector)
    standing = detector.standing()
    assert standing.state is DetectorState.ARMED
    assert standing.gauges["accounts"] == 10
    assert standing.gauges["refused_rows"] + standing.gauges["evicted_clients"] > 0


def test_an_account_costs_three_kibibytes() -> None:
    detector = make()
    told(hydra(), detector)
    sketches = [sketch for _, sketch in detector.states()]
    size = max(sketch.recent.nbytes + sketch.sums.nbytes + sketch.cells.nbytes for sketch in sketches)
    assert size <= 3 * 1024


def test_rows_that_cannot_be_measured_are_counted() -> None:
    rng = np.random.default_rng(33)
    detector = make()
    batch = requests([1.0, 2.0, 3.0], client=["a", None, "b"], features=rng.normal(0, 1, (3, DIMS + 1)))
    assert detector.observe(batch) == []
    assert list(detector.states()) == []
    assert detector.standing().gauges["unscored_rows"] == 3


# What it learns


def test_fit_says_what_it_needs() -> None:
    few = DETECTOR.fit([traffic(crowd(np.random.default_rng(41), 30))], PARAMS, cpu)
    assert few.section is None
    assert few.refused is not None
    assert 'model "m": 30 clients, too few' in few.refused
    assert "needs 60 clients" in few.refused
    empty = DETECTOR.fit([], PARAMS, cpu)
    assert empty.section is None
    assert fitted().refused is None
    assert "ordinary clients" in fitted().notes[0]


def test_a_damaged_baseline_is_refused() -> None:
    section = fitted().section
    assert section is not None
    for name in ("0.axes", "0.rates", "0.grid.f", "0.f.whiten"):
        arrays = {**section.arrays, name: section.arrays[name][:1]}
        with pytest.raises(BaselineError):
            make(Section(section.header, arrays))
        with pytest.raises(BaselineError):
            make(Section(section.header, {key: value for key, value in section.arrays.items() if key != name}))
    with pytest.raises(BaselineError):
        make(Section({}, section.arrays))


def test_a_snapshot_of_another_baseline_is_refused() -> None:
    other = DETECTOR.fit([traffic(crowd(np.random.default_rng(42), 70))], PARAMS, cpu).section
    detector = make()
    detector.observe(hydra())
    assert list(detector.states())
    with pytest.raises(StateError):
        make(other).restore(detector.snapshot())


def test_a_single_row_batch_is_as_good_as_a_large_one() -> None:
    whole, single = make(), make()
    told(hydra(), whole)
    fold = fold_of(single)
    for one in atoms([hydra()])[:300]:
        fold.push([one])
    assert 0 < single.standing().gauges["accounts"] <= whole.standing().gauges["accounts"]


# The first look


def signatures() -> dict[str, int]:
    """How often each kernel was compiled, or read from its cache, in this process."""
    modules = [module for name, module in sys.modules.items() if name.startswith("mlsecd.kernels.cpu")]
    found = {name: one for module in modules for name, one in vars(module).items() if hasattr(one, "signatures")}
    return {name: len(one.signatures) for name, one in found.items()}


REHEARSED = """if True:
    import sys
    from pathlib import Path
    import numpy as np
    from detectors.test_campaign_extraction import DETECTOR, account, make, signatures, told, traffic
    from mlsecd import baseline
    detector = make(baseline.read(Path(sys.argv[1])).sections[DETECTOR.name])
    before = signatures()
    rng = np.random.default_rng(11)
    told(traffic([account(rng, f"c{i}", 40) for i in range(30)] + [account(rng, "once", 1)]), detector)
    after = signatures()
    print({name for name in after if after[name] != before[name]})
"""


def test_nothing_is_left_to_compile_for_the_first_interval(tmp_path: Path) -> None:
    """In a process of its own, as other tests and the fit have compiled what they needed."""
    section = fitted().section
    assert section is not None
    baseline.write(tmp_path / "b.npz", {}, {DETECTOR.name: section})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", REHEARSED, str(tmp_path / "b.npz")],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == "set()", done.stderr
