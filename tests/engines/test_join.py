"""Joining: the 300 recorded requests come out as the 300 that there were, and nobody's id takes another's requests."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import requests

from mlsecd.adapters import otlp
from mlsecd.adapters.base import Context, adapters
from mlsecd.engines.fold import Fold
from mlsecd.engines.join import join_key
from mlsecd.findings.ledger import Ledger
from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.taps.identity import Hasher

DATA = Path(__file__).parent.parent / "data" / "servers"
CONTEXT = Context(Hasher(bytes(32)))
PEER = CONTEXT.hasher.client("peer", "127.0.0.1")  # the decision service was down
NAMES = {
    "k-f59db9db": "alice",
    "k-1de9827e": "bob",
    "k-75504c96": "carol",
    "k-e26184f0": "bad",
    "k-a32f88b3": "limited",
    "k-9dad2faa": "unknown",
}


def fold(meters: Meters, window: float = 1.0, lateness: float = 2.0) -> tuple[Fold, list[RequestBatch]]:
    made = Fold([], Ledger(), meters, join_seconds=window, lateness_seconds=lateness)
    out: list[RequestBatch] = []
    made.on_released = lambda ordered: out.append(ordered.requests) if ordered.requests is not None else None
    return made, out


def folded(batches: list[RequestBatch], meters: Meters | None = None, **options: float) -> RequestBatch:
    made, out = fold(meters or Meters(), **options)
    made.push(batches)
    made.finish()
    return RequestBatch.concat(out)


def recorded() -> list[RequestBatch]:
    """What nginx, Envoy and vLLM said about the same requests."""
    lines = [
        adapters()[name].adapt((DATA / f"{name}_access.jsonl").read_bytes(), CONTEXT).lines
        for name in ("nginx", "envoy")
    ]
    lines += [otlp.adapt(path.read_bytes(), CONTEXT, json=False).lines for path in sorted((DATA / "otlp").glob("*.pb"))]
    decoder = Decoder(Meters(), "test")
    return [batch for data in lines for batch in decoder.decode(data) if isinstance(batch, RequestBatch)]


def rows(batch: RequestBatch) -> list[dict[str, Any]]:
    names = ("client", "identity", "source", "request_id", "route", "model")
    return [
        {name: batch.text(name).at(row) for name in names}
        | {name: float(batch.number(name)[row]) for name in ("ts", "status", "output_tokens", "duration_s")}
        | {"aborted": int(batch.flag("aborted")[row])}
        for row in range(len(batch))
    ]


@pytest.fixture(scope="module")
def joined() -> list[dict[str, Any]]:
    pytest.importorskip("opentelemetry.proto")
    batches = recorded()
    made = folded([RequestBatch.concat(batches)], lateness=60.0)
    assert sum(map(len, batches)) == 150 + 153 + 231
    return rows(made)


def test_every_span_joins_its_gateways_line(joined: list[dict[str, Any]]) -> None:
    assert Counter(row["source"] for row in joined) == {
        "nginx+otlp": 109,
        "envoy+otlp": 122,
        "nginx": 41,
        "envoy": 31,
    }


def test_the_truth_comes_out(joined: list[dict[str, Any]]) -> None:
    """Who, what status, how many tokens, of 300 requests; three more were probes before the run."""
    truth = [json.loads(line) for line in (DATA / "truth.jsonl").read_text().splitlines()]
    assert len(truth) == 300
    assert len(joined) == 303
    left = sorted(joined, key=lambda row: row["ts"])
    wrong = []
    for one in sorted(truth, key=lambda one: one["t"]):
        match = _find(one, left)
        if match is None:
            wrong.append(one)
        else:
            left.remove(match)
    assert wrong == []
    assert len(left) == 3
    assert all(row["ts"] < truth[0]["t"] - 0.1 for row in left)


def _find(one: dict[str, Any], left: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The record of one request: of the right gateway, within its time, with all that the client saw of it."""
    for row in left:
        patience = 0.1 if one["status"] else 2.0  # who hangs up does not see when the gateway notices
        inside = one["t"] - 0.02 <= row["ts"] and row["ts"] + row["duration_s"] <= one["t"] + one["secs"] + patience
        if not inside or one["gw"] not in row["source"]:
            continue
        named = NAMES.get(row["client"]) == one["client"] or row["client"] == PEER  # nobody asked who it was
        status = one["status"] == row["status"] or (one["status"] == 0 and row["status"] == 200)
        tokens = one["completion_tokens"] is None or one["completion_tokens"] == row["output_tokens"]
        if named and status and tokens:
            return row
    return None


def test_identity_is_known_but_where_the_gateway_did_not_ask(joined: list[dict[str, Any]]) -> None:
    assert all(row["client"] for row in joined)
    unasked = [row for row in joined if row["client"] == PEER]
    assert len(unasked) == 19 + 18  # as many as the logs mark with fail_open
    assert all(row["identity"] == "unverified" for row in unasked)
    assert {row["status"] for row in joined if row["identity"] == "unverified" and row["client"] != PEER} == {401.0}


def test_batches_and_order_of_arrival_change_nothing() -> None:
    pytest.importorskip("opentelemetry.proto")
    whole = RequestBatch.concat(recorded())
    want = rows(folded([whole], lateness=60.0))
    order = np.argsort(whole.completion, kind="stable")
    for step in (1, 7, 100):
        cut = [whole.take(order[at : at + step]) for at in range(0, len(order), step)]
        made, out = fold(Meters(), lateness=2.0)
        for batch in cut:
            made.push([batch])
        made.finish()
        got = rows(RequestBatch.concat(out))
        assert sorted(map(repr, got)) == sorted(map(repr, want))


def pair(**columns: Any) -> RequestBatch:
    """A gateway's record and a tap's of one request, [10, 11] and [10.01, 10.9]."""
    given_ = {
        "source": ["nginx", "tap"],
        "request_id": ["r", "chatcmpl-r"],
        "duration_s": [1.0, 0.89],
        "status": [200, 200],
        "identity": ["verified", None],
        "client": ["k-a", "k-b"],
    }
    return requests([10.0, 10.01], **(given_ | columns))


def test_one_request_of_two_sources() -> None:
    meters = Meters()
    made = folded([pair(input_tokens=[np.nan, 7.0], aborted=[0, 1])], meters)
    (row,) = rows(made)
    assert row["client"] == "k-a"  # the gateway checked it
    assert row["source"] == "nginx+tap"
    assert (row["ts"], row["duration_s"], row["aborted"]) == (10.0, 1.0, 1)
    assert made.number("input_tokens").tolist() == [7.0]
    assert meters.value("mlsecd_requests_joined_total") == 1


@pytest.mark.parametrize(
    "columns",
    [
        {"identity": [None, None]},  # two clients
        {"identity": ["verified", "verified"]},
        {"source": ["nginx", "nginx"]},  # one log twice is two requests
        {"status": [403, 200]},  # the gateway turned it away: the other was answered
        {"request_id": ["r", "s"]},
        {"request_id": [None, None]},
        {"host": ["one", "two"]},
        {"synthetic": [0, 1]},
        {"duration_s": [3.5, 0.5]},  # completes too late
    ],
)
def test_what_is_not_one_request(columns: dict[str, Any]) -> None:
    assert len(folded([pair(**columns)], lateness=60.0)) == 2


def test_a_request_that_began_after_the_other_was_under_way() -> None:
    batch = requests(
        [10.0, 10.5], source=["tap", "nginx"], request_id=["r", "r"], duration_s=[0.7, 0.5], client=["k-a", None]
    )
    assert len(folded([batch])) == 2


def test_three_sources_become_one() -> None:
    batch = requests(
        [10.0, 10.01, 10.02],
        source=["envoy", "tap", "otlp"],
        request_id=["r", "r", "cmpl-r-0"],
        duration_s=[1.0, 0.95, 0.9],
        client=["k-a", "k-a", None],
        output_tokens=[np.nan, np.nan, 5],
    )
    (row,) = rows(folded([batch]))
    assert (row["source"], row["client"], row["output_tokens"]) == ("envoy+otlp+tap", "k-a", 5)


def test_a_stolen_id_takes_nobodys_request() -> None:
    """Mallory sends Victor's id straight to the server while Victor's request runs through the gateway."""
    batch = requests(
        [10.0, 10.01, 10.02],
        source=["nginx", "tap", "tap"],
        request_id=["r", "r", "r"],
        duration_s=[1.0, 0.9, 0.9],
        client=["k-victor", "k-victors-key", "k-mallory"],
        identity=["verified", None, None],
        output_tokens=[np.nan, 5, 7],
    )
    made = rows(folded([batch]))
    assert len(made) == 3  # nobody knows which is which, so nothing is joined
    assert [row["output_tokens"] for row in made if row["client"] == "k-mallory"] == [7]
    assert {row["client"] for row in made if row["source"] == "nginx"} == {"k-victor"}


def test_a_stolen_id_does_not_part_records_that_name_their_client() -> None:
    batch = requests(
        [10.0, 10.01, 10.02],
        source=["nginx", "tap", "tap"],
        request_id=["r", "r", "r"],
        duration_s=[1.0, 0.9, 0.9],
        client=["k-victor", "k-victor", "k-mallory"],
        identity=["verified", None, None],
        output_tokens=[np.nan, 5, 7],
    )
    made = {row["client"]: row["output_tokens"] for row in rows(folded([batch]))}
    assert made == {"k-victor": 5, "k-mallory": 7}


def test_one_id_with_everything_is_bounded() -> None:
    n = 4_000
    batch = requests(
        np.linspace(10, 10.5, n),
        source=["tap", "nginx"] * (n // 2),
        request_id="r",
        duration_s=0.1,
        client=[f"k-{at % 50}" for at in range(n)],
    )
    meters = Meters()
    assert len(folded([batch], meters)) == n
    assert meters.value("mlsecd_dropped_total", where="join", reason="crowded") > n - 100


def test_recorded_rows_were_joined_when_they_were_recorded() -> None:
    batch = pair()
    batch.seq = np.arange(2)
    assert len(folded([batch])) == 2


def test_held_rows_join_after_a_restart() -> None:
    batch = pair(client=["k-a", "k-a"])
    made, out = fold(Meters())
    made.push([batch.slice(1, 2)])
    kept = made.snapshot()
    again, out = fold(Meters())
    assert again.restore(kept) == []
    again.push([batch.slice(0, 1)])
    again.finish()
    assert [row["source"] for row in rows(RequestBatch.concat(out))] == ["nginx+tap"]


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ("chatcmpl-a-b", "a-b"),
        ("cmpl-abc-0", "abc"),
        ("cmpl-8eeebe21-56f2-4fa6-a898-a137389a1d9f-12", "8eeebe21-56f2-4fa6-a898-a137389a1d9f"),
        ("8eeebe21-56f2-4fa6-a898-a137389a1d9f", "8eeebe21-56f2-4fa6-a898-a137389a1d9f"),
        ("resp_1", "1"),
        ("chatcmpl-", "chatcmpl-"),
        ("abc-0", "abc-0"),
        ("chatcmpl-a\nb", "a\nb"),
    ],
)
def test_what_servers_put_around_an_id(raw: str, key: str) -> None:
    assert join_key(raw) == key


record = st.fixed_dictionaries(
    {
        "ts": st.integers(0, 24).map(lambda at: at / 8),
        "took": st.integers(0, 8).map(lambda at: at / 8),
        "source": st.sampled_from(["nginx", "tap", "otlp"]),
        "request_id": st.sampled_from(["r", "s", None]),
        "client": st.sampled_from(["k-a", "k-b", None]),
        "identity": st.sampled_from(["verified", "unverified", None]),
    }
)


@settings(deadline=None, max_examples=150)
@given(st.lists(record, min_size=2, max_size=14), st.data())
def test_it_is_decided_by_the_records_alone(records: list[dict[str, Any]], data: st.DataObject) -> None:
    """However a stream is cut, the same rows are joined; and no client's row ends under another's verified name."""
    records.sort(key=lambda one: one["ts"] + one["took"])
    whole = requests(
        [one["ts"] for one in records],
        duration_s=[one["took"] for one in records],
        output_tokens=list(range(len(records))),
        **{name: [one[name] for one in records] for name in ("source", "request_id", "client", "identity")},
    )
    want = rows(folded([whole], lateness=0.0))
    made, out = fold(Meters(), lateness=0.0)
    at = 0
    while at < len(records):
        size = data.draw(st.integers(1, 4))
        made.push([whole.slice(at, min(at + size, len(records)))])
        at += size
    made.finish()
    got = rows(RequestBatch.concat(out))
    assert sorted(map(repr, got)) == sorted(map(repr, want))
    for client in ("k-a", "k-b"):  # nobody is given a request that no record of theirs tells of
        assert sum(row["client"] == client for row in got) <= sum(one["client"] == client for one in records)
