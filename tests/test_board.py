from __future__ import annotations

import dataclasses

from mlsecd.board import Board
from mlsecd.campaigns import Campaigns
from mlsecd.findings.ledger import ActiveFinding
from mlsecd.meters import Meters
from mlsecd.records import Finding, Severity, Status

FOUND = Finding(
    ts=1.0, detector="gpu_lost", version=1, subject_kind="gpu", subject="G", severity=Severity.LOW, score=1.0,
    threshold=1.0, reason="r", action="a", id="x",
)  # fmt: skip


def counts(board: Board) -> dict[str, int]:
    return {str(severity): n for (_, severity, _), n in board._findings.items() if n}


def test_a_finding_counts_when_new_and_when_it_gets_worse() -> None:
    board = Board(Meters())
    worse = dataclasses.replace(FOUND, status=Status.UPDATE, severity=Severity.HIGH)
    for line in (FOUND, dataclasses.replace(FOUND, status=Status.UPDATE), worse, worse):
        board.note(line, muted=False)
    assert counts(board) == {"low": 1, "high": 1}
    board.note(dataclasses.replace(worse, status=Status.RESOLVED), muted=False)
    board.note(FOUND, muted=False)
    assert counts(board) == {"low": 2, "high": 1}


def test_what_an_earlier_life_told_is_not_counted_again() -> None:
    board = Board(Meters())
    board.note(dataclasses.replace(FOUND, status=Status.UPDATE), muted=False)
    assert counts(board) == {}


def test_a_muted_finding_is_counted_apart() -> None:
    meters = Meters()
    board = Board(meters)
    board.note(FOUND, muted=True)
    assert counts(board) == {}
    assert meters.value("mlsecd_findings_muted_total", detector="gpu_lost") == 1


def account(name: str, **kw: object) -> ActiveFinding:
    kept = {"id": name, "detector": "extraction_account", "severity": Severity.HIGH, "subject_kind": "client"}
    rest = {"reason": "r", "first_ts": 1.0, "last_ts": 1.0, "synthetic": False, "certified": True, "count": 1}
    return ActiveFinding(**(kept | rest | {"subject": name} | kw))


CAMPAIGN = dataclasses.replace(
    FOUND, detector="campaign_sybil", subject_kind="campaign", subject="c1", evidence={"clients": ["k-1", "k-2"]}
)


def test_accounts_of_an_open_campaign_are_counted_apart() -> None:
    campaigns = Campaigns()
    accounts = [account("k-1"), account("k-2"), account("k-3"), account("k-1", subject_kind="model")]
    pair = ("extraction_account", Severity.HIGH)
    assert campaigns.count(accounts) == {(*pair, False): 3, (*pair, True): 0}
    campaigns.note(CAMPAIGN)
    assert campaigns.count(accounts) == {(*pair, False): 1, (*pair, True): 2}
    assert campaigns.count([]) == {(*pair, False): 0, (*pair, True): 0}  # a series that goes would leave its last value
    campaigns.note(dataclasses.replace(CAMPAIGN, status=Status.RESOLVED))
    assert campaigns.count(accounts) == {(*pair, False): 3, (*pair, True): 0}


def test_a_campaign_that_is_synthetic_or_lists_nonsense_covers_nobody() -> None:
    campaigns = Campaigns()
    campaigns.note(dataclasses.replace(CAMPAIGN, synthetic=True))
    campaigns.note(dataclasses.replace(CAMPAIGN, id="y", evidence={"clients": "k-1"}))
    campaigns.note(dataclasses.replace(CAMPAIGN, id="z", evidence={}))
    assert campaigns.count([account("k-1")])["extraction_account", Severity.HIGH, True] == 0
    assert campaigns.count([account("k-1", synthetic=True)])["extraction_account", Severity.HIGH, False] == 0


def test_the_board_puts_memberships_into_metrics() -> None:
    board = Board(Meters())
    board.note(CAMPAIGN, muted=False)
    assert board._campaigns.count([account("k-2")])["extraction_account", Severity.HIGH, True] == 1
