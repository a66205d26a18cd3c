"""Many accounts that distil together, each too little to be told alone; and what only looks so."""

from __future__ import annotations

import datetime
import functools
from typing import Any

import numpy as np
import pytest
from chats import REASONS, chat, crowd, hydra, merged
from support import fold_of, lines, regroup, requests

from mlsecd.detectors._language_channels import CHANNELS
from mlsecd.detectors._language_crowd import FEWEST
from mlsecd.detectors._language_forms import Alike, alike, common_forms
from mlsecd.detectors._language_recent import CROWD, FORMS, HALF, Recent, half_of
from mlsecd.detectors._launches import Launch
from mlsecd.detectors.base import DetectorState, Section
from mlsecd.detectors.extraction_language import DETECTOR, ExtractionLanguage, Params
from mlsecd.errors import BaselineError, StateError
from mlsecd.kernels import cpu
from mlsecd.records import RequestBatch

HOUR = 3_600.0


def reasoner(rng: np.random.Generator, client: str, n: int = 40, share: float = 0.5, **columns: Any) -> RequestBatch:
    """Someone with real problems who wants the steps."""
    flags = [[REASONS] if asks else [] for asks in rng.random(n) < share]
    tokens = (400 * rng.lognormal(0, 0.5, n)).round()
    forms = [f"{client}-{form}" for form in rng.integers(0, 4, n)]
    return chat(rng, n, client, **{"flags": flags, "output_tokens": tokens, "template": forms} | columns)


def town(seed: int, clients: int, prefix: str, start: float = 0.0, **columns: Any) -> RequestBatch:
    """Ordinary clients, one in thirty a reasoner."""
    rng = np.random.default_rng([seed, 1])
    some = [reasoner(rng, f"{prefix}-r{i}", **columns) for i in range(clients // 30)]
    whole = merged([crowd(seed, clients - len(some), prefix, **columns), *some])
    return RequestBatch({**whole.columns, "ts": whole.ts + start})


@functools.cache
def section() -> Section:
    made = DETECTOR.fit([town(1, 240, "c")], Params(), cpu).section
    assert made is not None
    return made


def make(own: Section | None = None, **params: Any) -> ExtractionLanguage:
    return DETECTOR(Params(**{"false_alarms_per_week": 0.2, "client_alpha": 1e-4, **params}), cpu, own or section())


def told(detector: ExtractionLanguage, *batches: RequestBatch) -> list[dict[str, Any]]:
    """Lines about many accounts; one row an hour after all others lets the last look pass."""
    whole = merged(list(batches))
    last = requests([float(whole.ts.max()) + HOUR], client="last", model="other")
    got = lines(fold_of(detector), [[merged([whole, last])]])
    return [line for line in got if "expected_ordinary" in line["evidence"] and line["status"] != "resolved"]


def severities(found: list[dict[str, Any]]) -> set[str]:
    return {line["severity"] for line in found}


def test_a_campaign_under_cover_is_a_warning_that_names_its_accounts() -> None:
    found = told(make(), town(2, 120, "o"), hydra(3, 30, network="198.51.100.7"))
    assert severities(found) == {"medium"}
    assert {next(iter(line["subject"])) for line in found} == {"campaign"}
    evidence = found[-1]["evidence"]
    named = set(evidence["clients"])
    assert sum(name.startswith("hydra") for name in named) >= 25
    assert sum(not name.startswith("hydra") for name in named) <= 2
    assert evidence["networks"] == [{"network": "198.51.100.0/24", "members": 30}]
    assert 0.0 <= evidence["first_ts"] < evidence["last_ts"] <= 5_000.0
    assert not found[-1]["certified"]
    assert "forms among other requests" in found[-1]["reason"]


def test_nobody_of_it_is_told_alone() -> None:
    got = lines(fold_of(make()), [[merged([town(2, 120, "o"), hydra(3, 30)])]])
    assert not [line for line in got if str(line["subject"].get("client", "")).startswith("hydra")]


def test_without_a_list_of_forms_it_is_a_ticket_that_says_what_else_it_may_be() -> None:
    found = told(make(), town(2, 120, "o"), hydra(3, 40, forms=0))
    assert severities(found) == {"low"}
    assert "looks the same" in found[-1]["reason"]
    assert found[-1]["evidence"]["expected_ordinary"] > 0.1


def test_one_prompt_under_cover_is_a_ticket() -> None:
    assert severities(told(make(), town(2, 120, "o"), hydra(3, 40, forms=1))) == {"low"}


def asking(prefix: str, accounts: int, forms: list[str], tokens: float = 250.0) -> RequestBatch:
    """Accounts that ask for reasons in ten of fifty requests, in these forms by turns."""
    rng, made, n = np.random.default_rng([4, 2]), [], 50
    for i in range(accounts):
        client, asks = f"{prefix}{i:02d}", np.zeros(n, bool)
        asks[rng.choice(n, 10, replace=False)] = True
        turn = np.cumsum(asks) - 1
        templates = [forms[turn[j] % len(forms)] if asks[j] else f"{client}-{j}" for j in range(n)]
        long = np.where(asks, tokens, 150.0) * rng.lognormal(0, 0.4, n)
        flags = [[REASONS] if one else [] for one in asks]
        made.append(chat(rng, n, client, template=templates, output_tokens=long, flags=flags))
    return merged(made)


def test_a_few_accounts_with_forms_of_their_own_hide_no_campaign_of_one_prompt() -> None:
    ordinary, campaign = town(2, 240, "o"), asking("hydra", 17, ["form0"])
    for decoys in (0, 3):
        others = [asking("decoy", decoys, ["form0", "x0", "x1", "x2", "x3"])] if decoys else []
        found = told(make(), ordinary, campaign, *others)
        assert severities(found) == {"low"}
        assert "They use the same forms" in found[-1]["reason"]
        named = set(found[-1]["evidence"]["clients"])
        assert sum(name.startswith("hydra") for name in named) >= 14


def test_a_few_strangers_make_no_list_of_an_applications_forms() -> None:
    customers = asking("customer", 30, ["a", "b"], tokens=900.0)
    for strangers in (0, 4):
        others = [asking("stranger", strangers, ["a", "b", "x0", "x1", "x2", "x3"], tokens=900.0)] if strangers else []
        found = told(make(), town(2, 120, "o"), customers, *others)
        assert severities(found) == {"low"}
        assert "customers who take up an application" in found[-1]["reason"]


def test_a_launch_of_one_application_is_context() -> None:
    """Its accounts send little else, in one form: nobody is accused, and the names are in the evidence."""
    found = told(make(), town(2, 120, "o"), hydra(3, 40, forms=1, odd=45))
    assert severities(found) == {"info"}
    assert found[-1]["subject"] == {"model": "m"}
    assert found[-1]["evidence"]["members"] >= 35


def test_a_launch_with_many_forms_is_a_ticket_not_a_warning() -> None:
    found = told(make(), town(2, 120, "o"), hydra(3, 40, odd=45))
    assert severities(found) == {"low"}
    assert "application" in found[-1]["reason"]


LAUNCHED = datetime.datetime(2027, 1, 11, tzinfo=datetime.UTC).timestamp()


def at(start: float, *batches: RequestBatch) -> RequestBatch:
    whole = merged(list(batches))
    return RequestBatch({**whole.columns, "ts": whole.ts + start})


@pytest.mark.parametrize(("model", "severity"), [("*", "info"), ("other", "low")])
def test_an_announced_launch_is_context_whatever_its_forms(model: str, severity: str) -> None:
    launch = Launch(model=model, begins="2027-01-11", ends="2027-01-12", reason="assistant 2.0")
    ordinary = town(2, 120, "o")
    before, after = at(LAUNCHED - 2 * HALF, ordinary), at(LAUNCHED, ordinary, hydra(3, 40, odd=45))
    found = told(make(launches=(launch,)), before, after)
    assert severities(found) == {severity}
    assert found[-1]["evidence"]["members"] >= 35
    if model == "*":
        assert found[-1]["subject"] == {"model": "m"}
        assert "new since an announced launch began" in found[-1]["reason"]
        assert found[-1]["evidence"]["kind"] == "new since an announced launch began"


def test_an_announced_launch_hides_nobody_who_was_there_before() -> None:
    launch = Launch(model="m", begins="2027-01-11", ends="2027-01-12", reason="assistant 2.0")
    ordinary, thieves = town(2, 120, "o"), hydra(3, 30)
    rest = [f"hydra{i:02d}" for i in range(30)]
    names = {who for who in thieves.text("client").values if who.startswith("hydra")}
    assert names == set(rest)
    calm = merged([chat(np.random.default_rng(i), 40, who) for i, who in enumerate(rest)])
    before = at(LAUNCHED - 2 * HALF, ordinary, calm)
    new = asking("new", 30, [f"n{i}" for i in range(20)], tokens=900.0)
    found = told(make(launches=(launch,)), before, at(LAUNCHED, ordinary, thieves, new))
    told_of = [line for line in found if line["severity"] == "medium"]
    assert told_of
    named = set(told_of[-1]["evidence"]["clients"])
    assert len(named & names) >= 25
    assert not any(name.startswith("new") for name in named)
    younger = told(make(launches=(launch,)), at(LAUNCHED - 2 * HALF, ordinary), at(LAUNCHED, ordinary, thieves))
    assert severities(younger) == {"medium"}, "customers have nothing to hide among other requests"


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_a_season_is_a_shift_and_the_detector_says_so(share: float) -> None:
    """Everybody asks for reasons more often, some enough to be odd: the others show that they moved too."""
    detector, rng = make(), np.random.default_rng(8)
    ordinary = town(2, 120, "o")
    asks = [[REASONS] if one else [] for one in rng.random(len(ordinary)) < share]
    found = told(detector, _flagged(ordinary, asks))
    assert severities(found) == {"info"}
    assert found[-1]["subject"] == {"model": "m"}
    assert detector.standing().state is DetectorState.SHIFTED
    assert "season" in detector.standing().why


def _flagged(batch: RequestBatch, flags: list[list[str]]) -> RequestBatch:
    made = chat(np.random.default_rng(0), len(batch), "x", flags=flags)
    return RequestBatch({**batch.columns, "flags": made.columns["flags"]})


def test_answers_that_get_longer_for_all_are_a_season_though_few_are_odd() -> None:
    ordinary = town(2, 120, "o")
    longer = np.minimum(2.2 * ordinary.number("output_tokens"), 2_048.0)
    found = told(make(), RequestBatch({**ordinary.columns, "output_tokens": longer.astype(np.float64)}))
    assert severities(found) == {"info"}
    assert found[-1]["evidence"]["kind"] == "everybody moved"
    assert found[-1]["evidence"]["members"] < found[-1]["evidence"]["active_accounts"] / 3


def test_a_season_of_half_a_day_is_no_campaign_once_its_others_have_calmed() -> None:
    detector = make()
    for _ in range(12):
        detector._crowds.memory.looked("0:0", moving=True)
    assert severities(told(detector, town(2, 120, "o"), hydra(3, 40, forms=0))) == {"info"}


def test_a_popular_tool_of_the_baseline_is_no_campaign() -> None:
    """One list of forms that many ordinary accounts used at calibration too."""
    own = DETECTOR.fit([merged([town(1, 240, "c"), hydra(5, 40)])], Params(), cpu).section
    assert told(make(own), town(2, 120, "o"), hydra(6, 20)) == []
    assert told(make(), town(2, 120, "o"), hydra(6, 20)) != []


def test_a_list_is_held_against_lists_and_not_against_a_phrase_that_many_use() -> None:
    """Ordinary reasoners of the baseline share one form; a campaign that shares thirty is told all the same."""
    rng = np.random.default_rng(9)
    phrase = [reasoner(rng, f"c-p{i}", template="explain step by step") for i in range(12)]
    own = DETECTOR.fit([merged([town(1, 240, "c"), *phrase])], Params(), cpu).section
    assert own is not None
    assert own.arrays["0/crowd_shared"].sum() > own.arrays["0/crowd_listed"].sum() == 0
    assert severities(told(make(own), town(2, 120, "o"), hydra(3, 10, forms=12))) == {"medium"}


def test_ordinary_populations_tell_nothing() -> None:
    """Ten of them, at 50 times the level of the default budget's share."""
    for seed in range(20, 30):
        assert told(make(false_alarms_per_week=7.0), town(seed, 90, "o")) == []


def test_fewer_than_six_or_among_fewer_than_twenty_are_not_told() -> None:
    generous = make(false_alarms_per_week=1_000.0)
    assert told(generous, crowd(2, 60, "o"), hydra(3, 5)) == []
    assert told(make(false_alarms_per_week=1_000.0), hydra(3, FEWEST - 1)) == []
    assert told(make(false_alarms_per_week=1_000.0), hydra(3, FEWEST)) != []


def test_synthetic_accounts_are_held_apart() -> None:
    apart = hydra(3, 15, synthetic=1)
    assert told(make(), town(2, 120, "o", synthetic=0), apart) == []
    found = told(make(), town(2, 120, "o", synthetic=1), apart)
    assert {line["synthetic"] for line in found} == {True}


def test_a_campaign_keeps_its_name_while_it_goes_on() -> None:
    whole = [town(2, 120, "o"), hydra(3, 30)]
    later = [town(4, 120, "o", start=2 * HOUR), hydra(5, 30, start=2 * HOUR)]
    found = told(make(), *whole, *later)
    assert len({line["subject"]["campaign"] for line in found}) == 1


def test_a_new_epoch_of_the_account_does_not_hide_it() -> None:
    """The epoch turns between two looks: what lies within the day counts on."""
    found = told(make(epoch_seconds=HOUR), town(2, 120, "o"), hydra(3, 30))
    assert severities(found) == {"medium"}
    assert found[-1]["ts"] > HOUR
    assert found[-1]["evidence"]["requests"] == 30 * 50


def test_what_is_older_than_a_day_no_longer_counts() -> None:
    recent, bits = Recent(), np.ones(13, np.int32)
    recent.add(10.0, bits, bits, 7)
    assert recent.counts(half_of(HALF))[1] == 1
    assert recent.counts(half_of(2 * HALF))[1] == 1
    assert recent.counts(half_of(2 * HALF + 1))[1] == 0
    recent.add(3 * HALF, bits, bits, 8)
    assert (recent.rows, list(recent.forms), recent.first_ts) == ([1, 0], [8], 3 * HALF)


def test_an_account_remembers_few_forms() -> None:
    recent, bits = Recent(), np.ones(13, np.int32)
    for form in range(100):
        recent.add(float(form), bits, bits, form)
        recent.add(float(form), 0 * bits, bits, 1_000 + form)
    assert list(recent.forms) == list(range(100 - FORMS, 100))
    assert len(recent.dump()[3]) == FORMS


def test_common_forms_are_those_of_many_accounts_and_lists_have_many_that_few_use() -> None:
    forms = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5], [9]]
    assert common_forms(forms) == {1, 2, 3}
    assert alike(forms) == (Alike(3, [0, 1, 2]), Alike(3, []))
    assert alike([[1, 2, 3, 4]] * 6 + [[1]])[1] == Alike(4, [0, 1, 2, 3, 4, 5]), "a short list, of which each uses all"
    some, listed = alike([[1, 10 + i % 5, 10 + (i + 1) % 5] for i in range(15)] + [[1], [1, 10], [7]])
    assert some == Alike(6, list(range(17)))
    assert listed == Alike(6, list(range(15))), "the one that most use is an application's"
    assert common_forms([[1]] * 3 + [[2]] * 57) == {2}


def test_any_cut_and_a_restart_give_the_same_lines() -> None:
    whole = merged([town(2, 60, "o"), hydra(3, 20), requests([9_000.0, 12_000.0], client="last", model="other")])
    straight = lines(fold_of(make()), [[whole]])
    told_at = [line["ts"] for line in straight if line["severity"] == "medium" and line["status"] != "resolved"]
    assert min(told_at) < 4_000.0 < max(told_at)
    pieces = [whole.slice(i, min(i + 61, len(whole))) for i in range(0, len(whole), 61)]
    assert lines(fold_of(make()), regroup(pieces, [1] * len(pieces))) == straight
    cut = int(np.searchsorted(whole.completion, 4_000.0))
    before = fold_of(make())
    first = lines(before, [[whole.slice(0, cut)]], finish=False)
    after = fold_of(make())
    assert after.restore(before.snapshot()) == []
    key = lambda line: (line["ts"], line["id"], line["status"])  # noqa: E731
    assert sorted(first + lines(after, [[whole.slice(cut, len(whole))]]), key=key) == straight


def test_a_baseline_of_before_loads_and_says_what_it_lacks() -> None:
    arrays = {name: array for name, array in section().arrays.items() if "crowd" not in name}
    old = make(Section(section().header, arrays))
    assert told(old, town(2, 120, "o"), hydra(3, 30)) == []
    assert "no campaigns are told" in old.standing().why
    assert old.standing().gauges["crowd_clients"] == 0
    assert "no campaigns" not in make().standing().why


@pytest.mark.parametrize("damage", ["odd", "shared", "listed", "looks", "calm"])
@pytest.mark.parametrize("value", [np.nan, -1.0, 1e9])
def test_a_damaged_baseline_is_refused(damage: str, value: float) -> None:
    array = section().arrays[f"0/crowd_{damage}"].copy()
    array.ravel()[0] = value
    if damage in {"looks", "calm"} and value > 0:
        array = array.ravel()[:-1]
    with pytest.raises(BaselineError):
        make(Section(section().header, {**section().arrays, f"0/crowd_{damage}": array}))
    rest = {name: held for name, held in section().arrays.items() if name != f"0/crowd_{damage}"}
    if damage != "odd":
        with pytest.raises(BaselineError):
            make(Section(section().header, rest))


def test_damaged_recent_counts_are_refused() -> None:
    good = Recent().dump()
    assert Recent.load(good).dump()[2] == good[2]
    for place, value in (
        (0, np.zeros((2, 9), np.int32)),
        (1, np.zeros((2, 4))),
        (3, np.zeros(FORMS + 1, np.uint64)),
        (3, np.zeros(2)),
    ):
        with pytest.raises(StateError):
            Recent.load([*good[:place], value, *good[place + 1 :]])


def test_too_few_calibration_clients_tell_no_campaigns_and_fitting_says_so() -> None:
    fit = DETECTOR.fit([crowd(1, 30)], Params(), cpu)
    assert fit.section is not None
    if any("crowd" in name for name in fit.section.arrays):
        assert len(fit.section.arrays["0/crowd_looks"]) >= FEWEST
    else:
        assert any("too few clients" in note for note in fit.notes)


def test_a_clock_set_back_begins_a_recent_past_anew() -> None:
    one, none = Recent(), np.zeros(len(CHANNELS), np.int32)
    one.add(365 * 86_400.0, none, none + 1, None)
    one.add(86_400.0 - 1.0, none, none + 1, None)
    one.add(86_400.0 + 1.0, none, none + 1, None)
    one.add(86_400.0 - 2.0, none, none + 1, None)  # late by little: it does not turn the page back
    counts, rows = one.counts(half_of(86_400.0 + 1.0))
    assert rows == 3
    assert counts[1].tolist() == [3] * len(CROWD)
