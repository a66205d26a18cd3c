from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from chats import chat, crowd, distiller, hydra, merged
from scipy.stats import beta
from support import Case, requests

from mlsecd import baseline
from mlsecd.detectors._language_account import Account, walk
from mlsecd.detectors._language_channels import CHANNELS, encode
from mlsecd.detectors.base import DetectorState, Fit, Section
from mlsecd.detectors.extraction_language import DETECTOR, ExtractionLanguage, Params
from mlsecd.errors import BaselineError, StateError
from mlsecd.kernels import cpu
from mlsecd.records import Finding, RequestBatch, Severity

ALPHA = 0.05


@functools.cache
def fitted() -> Fit:
    return DETECTOR.fit([crowd(1, 100)], Params(), cpu)


def make(section: Section | None = None, **params: Any) -> ExtractionLanguage:
    return DETECTOR(Params(**{"client_alpha": ALPHA, **params}), cpu, section or fitted().section)


def told(detector: ExtractionLanguage, *batches: RequestBatch) -> list[Finding]:
    return [finding for one in batches for finding in detector.observe(one)]


def test_a_distiller_is_found_within_a_few_requests() -> None:
    found = told(make(), distiller(7, 60))
    first = found[0]
    assert (first.subject, first.severity, first.certified) == ("k-thief", Severity.HIGH, True)
    assert first.evidence["requests"] <= 20
    assert first.score > first.threshold
    assert {one["channel"] for one in found[-1].evidence["channels"]} & {"long", "long_tail", "formed_long"}
    assert "an ordinary client gets here with a chance of 5%" in first.reason


def test_few_calibration_clients_certify_nothing_and_findings_are_low() -> None:
    first = told(make(client_alpha=None, false_alarms_per_week=0.01), distiller(7, 200))[0]
    assert (first.severity, first.certified) == (Severity.LOW, False)
    assert "uncertified" in first.reason
    assert "takes" in make(client_alpha=None).standing().why


def test_ordinary_clients_alarm_as_often_as_was_asked_for() -> None:
    """120 others at a level of 5 %: the interval of what is flagged (Clopper-Pearson) is not above the level."""
    flagged = {finding.subject for finding in told(make(), crowd(2, 120, "o"))}
    assert beta.ppf(0.025, max(len(flagged), 1), 121 - max(len(flagged), 1)) <= ALPHA


def test_ten_requests_come_before_any_verdict() -> None:
    assert told(make(), distiller(7, 9)) == []


def test_an_exact_repeat_is_a_repeat_and_nothing_else() -> None:
    reference = make()._references[0]
    same = {"body_hash": "same", "template": "form", "input_tokens": 40.0}
    rows = encode(distiller(7, 40, **same), np.arange(40), reference.cuts, reference.lengths)
    account = Account()
    assert len(list(walk(account, rows, range(40), reference, cpu))) > 5
    counted = dict(zip(CHANNELS, account.tally.T.tolist(), strict=True))
    assert counted["retry"] == [39, 40]
    assert counted["elicits"] == [1, 1]


def test_one_hash_for_all_bodies_hides_nothing() -> None:
    assert told(make(), distiller(7, 60, body_hash="same")) != []


def test_answers_whose_tokens_never_come_are_counted_as_such() -> None:
    found = told(make(), distiller(7, 60, output_tokens=None, flags=None, template=None))
    assert found[0].evidence["channels"][0]["channel"] == "unscorable"


def test_rows_that_tell_nothing_are_counted_as_such() -> None:
    bare = requests(np.arange(300.0), client="k-blank", body_hash=[str(i) for i in range(300)])
    found = told(make(), bare)
    assert found[0].evidence["channels"][0]["channel"] == "unscorable"


def test_refusals_in_a_row_show() -> None:
    found = told(make(), chat(np.random.default_rng(3), 80, "k-odd", status=[400.0, 200.0] * 40))
    assert found[0].evidence["channels"][0]["channel"] == "odd_status"


def test_a_thief_behind_an_aggregator_is_found_by_its_user_once_declared() -> None:
    rng = np.random.default_rng(5)
    users = [chat(rng, 12, "k-shop", user=f"u{i}") for i in range(60)]
    mixed = merged([*users, distiller(7, 60, "k-shop", user="u-thief")])
    alone = told(make(), mixed)
    assert [(one.severity, one.score) for one in alone if one.severity is Severity.INFO] == [(Severity.INFO, 50)]
    found = told(make(aggregators=("k-shop",)), mixed)
    assert {one.subject for one in found if one.severity is not Severity.INFO} >= {"k-shop/u-thief"}
    assert len({one.subject for one in found}) <= 6


def test_an_epoch_begins_afresh() -> None:
    detector = make(epoch_seconds=86_400.0)
    told(detector, distiller(7, 60))
    later = distiller(8, 9, start=90_000.0)
    assert told(detector, later) == []


def test_an_unknown_model_is_counted_not_judged() -> None:
    detector = make()
    assert told(detector, distiller(7, 60, model="other")) == []
    assert detector.standing().gauges["unscored_rows"] == 60


def test_fewer_than_thirty_clients_are_refused() -> None:
    fit = DETECTOR.fit([crowd(1, 29)], Params(), cpu)
    assert fit.section is None
    assert "29 clients, too few" in str(fit.refused)


def test_a_classifier_is_no_language_model() -> None:
    vectors = [requests(np.arange(20.0), client=f"c{i}", predicted="7") for i in range(40)]
    fit = DETECTOR.fit(vectors, Params(), cpu)
    assert fit.section is None
    assert "no request has a client and tokens" in str(fit.refused)


def test_fitting_does_not_depend_on_batches() -> None:
    whole = crowd(1, 60)
    one = DETECTOR.fit([whole], Params(), cpu).section
    parts = DETECTOR.fit(
        [whole.slice(i, min(i + 97, len(whole))) for i in range(0, len(whole), 97)], Params(), cpu
    ).section
    assert one is not None
    assert parts is not None
    assert one.header == parts.header
    assert all(np.array_equal(one.arrays[name], parts.arrays[name]) for name in one.arrays)


def test_without_a_baseline_it_learns() -> None:
    detector = DETECTOR(Params(), cpu)
    assert told(detector, distiller(7, 60)) == []
    assert detector.standing().state is DetectorState.LEARNING


def test_the_baseline_survives_its_file(tmp_path: Any) -> None:
    section = fitted().section
    assert section is not None
    baseline.write(tmp_path / "b.npz", {"mlsecd": "0"}, {DETECTOR.name: section})
    again = baseline.read(tmp_path / "b.npz").sections[DETECTOR.name]
    lines = [finding.line() for finding in told(make(again), distiller(7, 60))]
    assert lines == [finding.line() for finding in told(make(), distiller(7, 60))]


def test_a_baseline_of_another_shape_is_refused() -> None:
    section = fitted().section
    assert section is not None
    for name in section.arrays:
        with pytest.raises(BaselineError):
            make(Section(section.header, {**section.arrays, name: np.zeros((0, 7))}))
    with pytest.raises(BaselineError):
        make(Section({"references": []}, section.arrays))


def test_a_snapshot_of_another_baseline_is_refused() -> None:
    other = DETECTOR.fit([crowd(3, 60)], Params(), cpu).section
    with pytest.raises(StateError, match="another baseline"):
        make(other).restore(make().snapshot())


def test_a_flood_of_accounts_does_not_push_out_a_suspect() -> None:
    detector = make(max_clients=50, max_suspects=10)
    assert told(detector, distiller(7, 30)) != []
    flood = crowd(9, 400, "f", template=None)
    shifted = RequestBatch({**flood.columns, "ts": flood.ts + 10_000.0})
    told(detector, shifted)
    assert detector.standing().gauges["evicted_clients"] > 300
    assert any(name.endswith("k-thief") for name, _ in detector._accounts.items())


def conformance() -> Case:
    rng = np.random.default_rng(11)
    parts = [
        distiller(7, 40),
        distiller(8, 30, "k-other", synthetic=1),
        *(chat(rng, 25, f"k-{i}") for i in range(5)),
        *(chat(rng, 4, "k-shop", user=f"u{i}") for i in range(12)),
        chat(rng, 10, "k-gateway", user="u1"),
        chat(rng, 10, "k-none", model="another"),
        hydra(13, 20, n=24, odd=8, network="192.0.2.9"),
    ]
    return Case(
        detector=DETECTOR,
        params=Params(client_alpha=ALPHA, reseller_users=8, aggregators=("k-gateway",)),
        records=[merged(parts)],
        limited=Params(client_alpha=ALPHA, max_clients=50, max_suspects=20),
        flood=lambda n: [requests(np.arange(n) * 3.0, client=[f"f{i}" for i in range(n)], user="u", output_tokens=9.0)],
        section=fitted().section,
    )
