"""JSON lines to columns and back: what each field may be, and that no line, chunk or layout changes it."""

from __future__ import annotations

import base64
import itertools
import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsecd.jsonlines import Decoder, columns, decoder, encode, layout, wire
from mlsecd.meters import Meters
from mlsecd.records import (
    FIELDS,
    Field,
    GpuProcess,
    GpuSample,
    Kind,
    Process,
    ProcessTable,
    Records,
    RequestBatch,
    SourceStatus,
    XidEvent,
)

DEEP = 100_000
MIN = {"ts": 1.5, "model": "m"}


class Slow(Decoder):
    """Never learns: each line takes the tolerant path."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._learner.layout.decode = decoder._refuse
        self._learner.see = lambda keys: None


def fast(keys: Any) -> Decoder:
    """A decoder whose layout has these keys already."""
    made = Decoder(Meters(), "here")
    made._learner.layout = layout.Layout(keys)
    made._learner.see = lambda keys: None
    return made


def cell(batch: RequestBatch, name: str, row: int) -> Any:
    column = batch.columns[name]
    match FIELDS[name]:
        case Field.NUMBER | Field.FLAG:
            value = column[row].item()
            return None if math.isnan(value) or (value == -1 and FIELDS[name] is Field.FLAG) else value
        case Field.TEXT:
            return column.at(row)
        case Field.TEXTS:
            return column.at(row) or None
        case _:
            return column.at(row).tolist() or None


def rows(records: list[Records]) -> list[Any]:
    """Every record apart: requests as dicts of what they have, others as they are."""
    found: list[Any] = []
    for piece in records:
        if not isinstance(piece, RequestBatch):
            found.append(piece)
            continue
        for row in range(len(piece)):
            cells = {name: cell(piece, name, row) for name in piece.columns}
            found.append({"seq": int(piece.seq[row]), **{key: held for key, held in cells.items() if held is not None}})
    return found


def check(batch: RequestBatch) -> None:
    """What the contract of a batch asks of every column."""
    assert len(batch) > 0
    assert list(batch.columns) == [name for name in FIELDS if name in batch.columns]
    for name, column in batch.columns.items():
        assert len(column) == len(batch)
        assert any(cell(batch, name, row) is not None for row in range(len(batch))), f"{name} is held for nothing"
        if FIELDS[name] in {Field.TEXT, Field.TEXTS}:
            assert all(type(value) is str and value for value in column.values)
            assert len(set(column.values)) == len(column.values)
        if FIELDS[name] is Field.VECTOR:
            assert column.values.dtype == np.float32
            assert column.values.flags.writeable


def drops(made: Decoder) -> dict[str, int]:
    series = made._meters.counters().get("mlsecd_dropped_total", {})
    return {dict(labels)["reason"]: int(n) for labels, n in series.items()}


def unknown(made: Decoder) -> float:
    return made._meters.value("mlsecd_unknown_fields_total", where=made._where)


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def one(data: bytes) -> tuple[list[Any], dict[str, int]]:
    """Rows and drops of one line; the tolerant path and a layout made for the line must agree."""
    try:
        keys = [key for key in json.loads(data) if layout._PLAIN.fullmatch(key)]
    except (ValueError, RecursionError, TypeError):
        keys = list(MIN)
    paths = (Slow(Meters(), "here"), fast(keys), fast([*FIELDS, "kind", "seq"]), Decoder(Meters(), "here"))
    answers = [(rows(made.decode(data)), drops(made), unknown(made)) for made in paths]
    assert all(answer == answers[0] for answer in answers)
    return answers[0][:2]


def b64(*values: float) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


NUMBERS = [name for name, kind in FIELDS.items() if kind is Field.NUMBER and name != "ts"]
SIGNED = ["n", "logprobs", "prompt_logprobs", "max_tokens", "temperature"]
TEXTS = [name for name, kind in FIELDS.items() if kind is Field.TEXT and name not in {"predicted", "labels"}]
LISTS = [name for name, kind in FIELDS.items() if kind is Field.TEXTS]
FLAGS = [name for name, kind in FIELDS.items() if kind is Field.FLAG]
PLAIN = {"seq": -1, **MIN}

GOOD: list[tuple[str, Any, Any]] = [
    *[(name, 0, 0.0) for name in NUMBERS],
    *[(name, 3.5, 3.5) for name in NUMBERS if name != "logit_bias_count"],
    *[(name, None, None) for name in [*FIELDS, "seq", "kind"] if name not in MIN],
    *[(name, -1, -1.0) for name in SIGNED],
    ("output_tokens", 2**53, float(2**53)),
    ("max_tokens", 10**30, 1e30),
    *[(name, "x" * 256, "x" * 256) for name in TEXTS],
    *[(name, "a\0é😀\n", "a\0é😀\n") for name in TEXTS],
    *[(name, "", None) for name in [*TEXTS, "predicted"] if name != "model"],
    *[(name, flag, int(flag)) for name in FLAGS for flag in (True, False)],
    *[(name, ["a", "b", "a"], ("a", "b", "a")) for name in LISTS],
    *[(name, ["", "b", ""], ("b",)) for name in LISTS],
    *[(name, empty, None) for name in LISTS for empty in ([], [""])],
    ("predicted", 3, "3"),
    ("predicted", "3", "3"),
    ("predicted", -(2**63), str(-(2**63))),
    ("predicted", 0, "0"),
    *[(name, [1, -2.5], [1.0, -2.5]) for name in ("features", "input_features", "scores")],
    *[(name, b64(1, -2.5), [1.0, -2.5]) for name in ("features", "input_features")],
    *[(name, empty, None) for name in ("features", "input_features") for empty in ([], "")],
    ("features", [0.5] * 1024, [0.5] * 1024),
    ("features", b64(*[0.5] * 1024), [0.5] * 1024),
    ("sketch", [1, -(2**63), 2**63 - 1], [1, -(2**63), 2**63 - 1]),
    ("labels", {"b": 1, "a": {"d": 2, "c": [None]}}, '{"a":{"c":[null],"d":2},"b":1}'),
    ("labels", {"é": "ü"}, '{"é":"ü"}'),
    ("labels", {}, None),
    ("seq", 2**63 - 1, 2**63 - 1),
    ("seq", -1, -1),
    ("kind", "request", None),
]


@pytest.mark.parametrize(("name", "value", "held"), GOOD)
def test_a_good_value(name: str, value: Any, held: Any) -> None:
    expected = PLAIN if held is None else {**PLAIN, name: held}
    assert one(line(**{**MIN, name: value})) == ([expected], {})


BAD: list[tuple[str, Any, str]] = [
    *[(name, -1, "range") for name in NUMBERS if name not in SIGNED],
    *[(name, value, "type") for name in NUMBERS for value in (True, "1", [1], {})],
    *[(name, value, "range") for name in ("duration_s", "ttft_s") for value in (366 * 86400 + 1,)],
    ("output_tokens", 2**53 + 2, "range"),
    *[(name, "x" * 257, "range") for name in [*TEXTS, "predicted"]],
    *[(name, value, "type") for name in TEXTS for value in (5, True, ["a"], {})],
    *[(name, value, "type") for name in FLAGS for value in (1, "true")],
    *[(name, value, "type") for name in LISTS for value in ("a", [1], [None], {"a": 1})],
    *[(name, value, "range") for name in LISTS for value in (["x" * 257], ["x"] * 1025)],
    *[("predicted", value, "type") for value in (1.5, True, [1])],
    ("predicted", 2**63, "range"),
    *[
        (name, value, "type")
        for name in ("features", "input_features")
        for value in (5, ["1"], [None], [True], "AAAA AAA=", "AAAAA", "AAAAAA", "____", "é")
    ],
    *[
        (name, value, "range")
        for name in ("features", "input_features")
        for value in (b64(np.nan), b64(1, np.inf), [1e300], [1] * 1025, b64(*[1] * 1025), "AAAA", "AAA=")
    ],
    ("scores", b64(1.0), "type"),
    ("scores", [-1e39], "range"),
    ("sketch", [1] * 1025, "range"),
    ("sketch", [2**63], "range"),
    ("sketch", [1.5], "type"),
    ("logit_bias", {"5": -100}, "type"),
    ("logit_bias", -1, "range"),
    ("logit_bias_count", 1.5, "type"),
    ("logit_bias", [2**63], "range"),
    ("labels", [1], "type"),
    ("labels", {"a": "x" * 2048}, "range"),
    ("seq", -2, "range"),
    ("seq", 2**63, "range"),
    ("seq", 1.5, "type"),
    *[("ts", value, "range") for value in (-1, 7_289_654_400, 1.7e12, "1969-12-31T23:59:59Z", "2201-01-01T00:00:00Z")],
    *[("ts", value, "type") for value in (True, "5", "2026-01-01", "2026-01-01T00:00:00", [1])],
    *[(name, value, "missing") for name in MIN for value in (None, "")],
    ("kind", 5, "type"),
    ("kind", "", "kind"),
    ("kind", "other", "kind"),
]


@pytest.mark.parametrize(("name", "value", "reason"), BAD)
def test_a_bad_value(name: str, value: Any, reason: str) -> None:
    assert one(line(**{**MIN, name: value})) == ([], {reason: 1})


@pytest.mark.parametrize(
    ("value", "ts"),
    [
        ("2026-01-01T00:00:00Z", 1767225600.0),
        ("2026-01-01T02:00:00.25+02:00", 1767225600.25),
        ("2026-01-01t00:00:00z", 1767225600.0),
        ("1970-01-01T00:00:00Z", 0.0),
        (0, 0.0),
        (1767225600, 1767225600.0),
        (7_289_654_399.5, 7_289_654_399.5),
    ],
)
def test_time(value: Any, ts: float) -> None:
    assert one(line(model="m", ts=value)) == ([{**PLAIN, "ts": ts}], {})


@pytest.mark.parametrize(
    ("given_", "ids", "n"),
    [
        ([5, 7, 5], [5, 7, 5], 3),
        ([], None, 0),
        (300, None, 300),
        (0, None, 0),
        (list(range(5000)), list(range(1024)), 5000),
    ],
)
def test_biases_are_ids_or_their_count(given_: Any, ids: Any, n: int) -> None:
    (found,), counted = one(line(**MIN, logit_bias=given_))
    assert (found.get("logit_bias"), found["logit_bias_count"], counted) == (ids, n, {})


def test_a_stated_count_of_biases_stands() -> None:
    data = b"\n".join(
        [
            line(**MIN, logit_bias=[1, 2], logit_bias_count=9),
            line(**MIN, logit_bias=[1]),
            line(**MIN, logit_bias_count=4),
        ]
    )
    assert [row["logit_bias_count"] for row in one(data)[0]] == [9, 1, 4]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"ts":1,"model":"m"', "json"),
        (b'{"ts":1,"model":"m"} x', "json"),
        (b'{"ts":1,"model":"m"}{"ts":1,"model":"m"}', "json"),
        (b'{"ts":NaN,"model":"m"}', "json"),
        (b'{"ts":1,"model":"m","n":Infinity}', "json"),
        (b'{"ts":1,"model":"m","n":1e999}', "range"),
        (b'{"ts":1,"model":"m","n":' + b"9" * 400 + b"}", "range"),
        (b'{"ts":1,"model":"m","x":NaN}', "json"),
        (b'{"ts":01,"model":"m"}', "json"),
        (b'{"ts":1,"model":"m",}', "json"),
        (b'{"ts":1,"model":"m\0"}', "json"),
        (b'{"ts":1,"model":"m"}\0', "json"),
        (b'{"ts":1,"model":"\xff"}', "encoding"),
        (b'{"ts":1,"model":"m","\xff":1}', "encoding"),
        (b'{"ts":1,"model":"\\ud800"}', "json"),
        (b'{"ts":1,"model":"\\ud800x"}', "json"),
        (b'{"ts":1,"model":"\xed\xa0\x80"}', "encoding"),
        (b"[1]", "type"),
        (b"null", "type"),
        (b'"x"', "type"),
        (b"{}", "missing"),
        (b'{"ts":1}', "missing"),
        (b'{"model":"m"}', "missing"),
        ('{"ts":1,"model":"m"}'.encode("utf-16"), "json"),
        (b'{"ts":1,"model":"m","x":' + b"[" * DEEP + b"]" * DEEP + b"}", "json"),
        (b'{"ts":1,"model":"m","labels":{"a":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}}", "json"),
        (b"[" * DEEP, "type"),
        (b'{"a":' * DEEP, "json"),
    ],
)
def test_a_bad_line(data: bytes, reason: str) -> None:
    assert one(data) == ([], {reason: 1})


@pytest.mark.parametrize(
    "data",
    [
        b'{"ts":1.5,"model":"m"}\r\n',
        b'\xef\xbb\xbf{"ts":1.5,"model":"m"}',
        b'\n\r\n  \n{"ts":1.5,"model":"m"}\n\n',
        b' { "ts" : 15e-1 , "model" : "\\u006d" } ',
        b'{"\\u0074s":1.5,"model":"m"}',
        b'{"ts":1.5,"model":"x","model":"m"}',
        b'{"ts":"x","ts":1.5,"model":"","model":"m"}',
        b'{"ts":1.5,"model":"m","seq":null,"kind":null}',
    ],
)
def test_forms_of_one_record(data: bytes) -> None:
    assert one(data) == ([PLAIN], {})


def test_a_line_is_a_line() -> None:
    """An object over two lines is two bad lines, even beside one that holds two objects."""
    data = b'{"ts":1,"model":"a"}{"ts":2,"model":"b"}\n{"ts":3,\n"model":"c"}\n{"ts":4,"model":"d"}'
    for made in (Slow(Meters(), "here"), fast(MIN)):
        assert [row["ts"] for row in rows(made.decode(data))] == [4.0]
        assert drops(made) == {"json": 2, "type": 1}


def test_three_is_three_whatever_it_is_written_as() -> None:
    data = b"\n".join(line(**MIN, predicted=value) for value in (3, "3", 4, "x", None, 3))
    (batch,) = fast(["predicted"]).decode(data)
    assert batch.text("predicted").values == ("3", "4", "x")
    assert batch.text("predicted").codes.tolist() == [0, 0, 1, 2, -1, 0]


def test_unknown_keys_are_counted_on_both_paths() -> None:
    data = b"\n".join(line(**MIN, zone=zone, **{"a b": 1}) for zone in ("x", None, {"deep": [1]}))
    for made in (Slow(Meters(), "here"), Decoder(Meters(), "here"), fast(["zone"])):
        assert len(rows(made.decode(data))) == 3
        assert unknown(made) == 6
    learned = fast(["zone"])
    learned.decode(line(**MIN, zone=1) + b"\n" + line(**MIN))
    assert unknown(learned) == 1


def test_a_producer_fills_the_source_that_is_missing() -> None:
    data = line(**MIN) + b"\n" + line(**MIN, source="own") + b"\n" + line(**MIN, source="")
    (batch,) = Decoder(Meters(), "here").decode(data, producer="uid-5")
    assert [batch.text("source").at(row) for row in range(3)] == ["uid-5", "own", "uid-5"]
    (batch,) = Decoder(Meters(), "here").decode([line(**MIN)] * 3, producer="uid-5")
    assert [batch.text("source").at(row) for row in range(3)] == ["uid-5"] * 3
    check(batch)


def test_accept_takes_some_kinds_only() -> None:
    data = [line(**MIN), line(kind="source", ts=1, source="s", ok=True), line(kind="socket", ts=1)]
    requests = Decoder(Meters(), "here", accept=frozenset({Kind.REQUEST}))
    assert [type(piece) for piece in requests.decode(data)] == [RequestBatch]
    assert drops(requests) == {"kind": 2}
    sources = Decoder(Meters(), "here", accept=frozenset({Kind.SOURCE}))
    assert [type(piece) for piece in sources.decode(data)] == [SourceStatus]
    assert drops(sources) == {"kind": 2}


def test_order_of_arrival() -> None:
    status = {"kind": "source", "source": "s", "ok": True}
    data = [
        line(ts=1, model="m"),
        line(ts=2, model="m"),
        line(ts=3, **status),
        line(ts=4, model="m"),
        line(ts=5, **status),
    ]
    found = Decoder(Meters(), "here").decode(data)
    assert [type(piece).__name__ for piece in found] == ["RequestBatch", "SourceStatus", "RequestBatch", "SourceStatus"]
    assert [piece.ts if piece.kind is Kind.SOURCE else piece.ts.tolist() for piece in found] == [[1, 2], 3, [4], 5]


GPU = {"kind": "gpu", "ts": 5, "gpu": "GPU-1"}
TABLE = {"kind": "process", "ts": 5, "processes": []}
STATUS = {"kind": "source", "ts": 5, "source": "s", "ok": False}


@pytest.mark.parametrize(
    ("data", "record"),
    [
        (GPU, GpuSample(ts=5.0, gpu="GPU-1")),
        (
            {
                **GPU,
                "ts": "2026-01-01T00:00:00Z",
                "state": None,
                "utilization": 1,
                "processes": [{"pid": 7, "exe": None, "extra": 1}],
                "xid": [{"xid": 79, "ts": "2026-01-01T00:00:00Z"}],
                "ecc_mode": "enabled",
                "posture": {"ecc_mode": "old", "mine": "x"},
                "blind": ["power: not supported"],
                "seq": 4,
            },
            GpuSample(
                ts=1767225600.0,
                gpu="GPU-1",
                utilization=1.0,
                processes=(GpuProcess(pid=7),),
                xid=(XidEvent(xid=79, ts=1767225600.0),),
                posture={"ecc_mode": "enabled", "mine": "x"},
                blind=("power: not supported",),
                seq=4,
            ),
        ),
        (TABLE, ProcessTable(ts=5.0, processes=())),
        (
            {**TABLE, "processes": [{"pid": 1, "start_ticks": 9, "cmdline": ["a", "b"], "uid": 2**32 - 1}]},
            ProcessTable(ts=5.0, processes=(Process(pid=1, start_ticks=9, cmdline=("a", "b"), uid=2**32 - 1),)),
        ),
        (STATUS, SourceStatus(ts=5.0, source="s", ok=False)),
        ({**STATUS, "seen": 3, "synthetic": True}, SourceStatus(ts=5.0, source="s", ok=False, seen=3, synthetic=True)),
    ],
)
def test_samples(data: dict[str, Any], record: Any) -> None:
    made = Decoder(Meters(), "here")
    assert made.decode(line(**data, unheard=1)) == [record]
    assert unknown(made) == 1
    assert Decoder(Meters(), "here").decode(encode(record)) == [record]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({**GPU, "gpu": ""}, "missing"),
        ({**GPU, "gpu": None}, "missing"),
        ({**GPU, "utilization": 87}, "range"),
        ({**GPU, "power_watts": -1}, "range"),
        ({**GPU, "memory_used_bytes": 2**63}, "range"),
        ({**GPU, "ts": "2300-01-01T00:00:00Z"}, "range"),
        ({**GPU, "processes": [{"pid": 1}] * 4097}, "range"),
        ({**GPU, "processes": [{}]}, "type"),
        ({**GPU, "name": "x" * 4097}, "range"),
        ({**GPU, "posture": {"a": 1}}, "type"),
        ({**TABLE, "processes": [{"pid": 1}]}, "type"),
        ({**TABLE, "processes": [{"pid": 1, "start_ticks": 1, "cmdline": ["a"] * 1025}]}, "range"),
        ({**STATUS, "ok": None}, "missing"),
        ({**STATUS, "ok": 1}, "type"),
    ],
)
def test_bad_samples(data: dict[str, Any], reason: str) -> None:
    made = Decoder(Meters(), "here", max_line_bytes=1 << 24)
    assert made.decode(line(**data)) == []
    assert drops(made) == {reason: 1}


def test_many_processes() -> None:
    made = Decoder(Meters(), "here", max_line_bytes=1 << 24)
    many = [{"pid": pid, "start_ticks": 1} for pid in range(65_537)]
    (table,) = made.decode(line(**{**TABLE, "processes": many[:-1]}))
    assert len(table.processes) == 65_536
    assert made.decode(line(**{**TABLE, "processes": many})) == []


# Values near what a field takes, and values near no field.
texts = st.one_of(st.sampled_from(["", "a", "b", "é", "3"]), st.text(max_size=6))
numbers = st.one_of(st.integers(-3, 300), st.floats(0, 1e4), st.sampled_from([1e300, 2**60, -0.0]))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
vectors = st.one_of(
    st.lists(st.floats(-2, 2, width=32), max_size=4),
    st.binary(max_size=12).map(lambda raw: base64.b64encode(raw).decode()),
    st.lists(st.floats(width=32), max_size=2).map(lambda values: b64(*values)),
)
BY_KIND = {
    Field.NUMBER: numbers,
    Field.FLAG: st.booleans(),
    Field.TEXT: texts,
    Field.TEXTS: st.lists(texts, max_size=3),
    Field.VECTOR: vectors,
    Field.IDS: st.lists(st.integers(-5, 5), max_size=3),
}
OWN = {
    "ts": st.one_of(st.floats(0, 7e9), st.sampled_from(["2026-01-01T00:00:00Z", "1960-01-01T00:00:00Z", -1, None])),
    "labels": st.dictionaries(texts, anything, max_size=3),
    "logit_bias": st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=3)),
    "logit_bias_count": st.integers(0, 9),
    "predicted": st.one_of(st.integers(-1, 3), texts),
    "seq": st.integers(-2, 9),
    "kind": st.sampled_from(["request", "request", "gpu", "source", "file", "other"]),
    "zone": anything,
    "a b": anything,
    "ok": st.booleans(),
}
VALUES = {name: st.one_of(OWN.get(name, BY_KIND.get(FIELDS.get(name))), st.none()) for name in [*FIELDS, *OWN]}  # type: ignore[arg-type]


@st.composite
def good_lines(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(st.sampled_from([name for name in VALUES if name not in MIN]), max_size=8))
    fields = {"ts": draw(OWN["ts"]), "model": draw(texts)} | {name: draw(VALUES[name]) for name in names}
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")


wild_lines = st.dictionaries(st.sampled_from(list(VALUES)), anything, max_size=6).map(
    lambda fields: json.dumps({**MIN, **fields}).encode()
)


@st.composite
def broken_lines(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(good_lines()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=3))
    return bytes(data).replace(b"\n", b" ")


some_lines = st.lists(
    st.one_of(good_lines(), good_lines(), wild_lines, broken_lines(), st.binary(max_size=20), st.just(b"")), max_size=12
)


@given(some_lines, st.sets(st.sampled_from([*VALUES, "zone"])), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_no_path_and_no_cut_changes_the_records(lines: list[bytes], keys: set[str], seed: int) -> None:
    data = b"\n".join(lines)
    slow = Slow(Meters(), "here")
    found = slow.decode(data)
    for batch in found:
        if isinstance(batch, RequestBatch):
            check(batch)
    expected = rows(found), drops(slow), unknown(slow)
    learned = Decoder(Meters(), "here")
    learned._learner._age = 0
    cut = Decoder(Meters(), "here")
    rng = np.random.default_rng(seed)
    parts = np.split(np.arange(len(whole := data.split(b"\n"))), np.sort(rng.integers(0, len(whole) + 1, 3)))
    pieces = [piece for part in parts for piece in cut.decode(b"\n".join(whole[at] for at in part))]
    assert (rows(pieces), drops(cut), unknown(cut)) == expected
    for made in (learned, fast(keys - {"a b"}), fast(["zone", "kind"])):
        assert (rows(made.decode(data)), drops(made), unknown(made)) == expected
    again = Decoder(Meters(), "here", max_line_bytes=1 << 24)
    assert rows(again.decode(b"".join(map(encode, found)))) == expected[0]
    assert drops(again) == {}


@given(st.lists(good_lines(), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_small_parts_and_quick_learning_change_nothing(lines: list[bytes]) -> None:
    data = b"\n".join(lines * 3)
    expected = rows(Slow(Meters(), "here").decode(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "PART", 5)
        patch.setattr(layout, "REST", 3)
        patch.setattr(layout, "LEARN_AT", 2)
        patch.setattr(layout, "FORGET_AFTER", 11)
        made = Decoder(Meters(), "here")
        assert rows(made.decode(data)) == expected
        assert rows(made.decode(data.split(b"\n"))) == expected


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_stray_bytes_never_raise(data: bytes) -> None:
    made = Decoder(Meters(), "here")
    assert made.decode(data) == []
    assert sum(drops(made).values()) == sum(1 for part in data.split(b"\n") if part.removeprefix(decoder.BOM).strip())
    assert all(len(sample) <= 120 and sample.isascii() and sample.isprintable() for sample in made.samples.values())


def test_distinct_and_repeated_strings() -> None:
    """Columns of one value, of all different values and of some repeated ones are made in different ways."""
    n = 600
    shapes = {
        "client": ["same"] * n,
        "request_id": [f"r{at}" for at in range(n)],
        "route": [f"r{at % 7}" for at in range(n)],
        "host": [f"h{at}" if at < 300 else "h1" for at in range(n)],
        "user": [None] * (n - 1) + ["last"],
        "network": [f"n{at}" if at != 400 else None for at in range(n)],
        "principal": [f"n{at}" if at != 400 else "" for at in range(n)],
    }
    data = [line(**MIN, **{name: values[at] for name, values in shapes.items()}) for at in range(n)]
    (batch,) = fast(shapes).decode(data)
    check(batch)
    for name, values in shapes.items():
        assert [batch.text(name).at(row) for row in range(n)] == [value or None for value in values]


def test_vectors_of_both_forms_mix() -> None:
    values = [[1.0, 2.0], b64(3), None, [], b64(4, 5, 6), [0.25]]
    (batch,) = fast(["features"]).decode([line(**MIN, features=value) for value in values])
    assert batch.ragged("features").lengths.tolist() == [2, 1, 0, 0, 3, 1]
    assert batch.ragged("features").values.tolist() == [1, 2, 3, 4, 5, 6, 0.25]


def test_everything_round_trips() -> None:
    full = {
        **dict.fromkeys(NUMBERS, 3),
        **{name: name for name in TEXTS},
        **dict.fromkeys(FLAGS, True),
        **{name: ["a", "b"] for name in LISTS},
        "features": [0.1, 0.2],
        "input_features": b64(1),
        "scores": [0.9, 0.1],
        "sketch": [1, 2],
        "logit_bias": [1, 2],
        "predicted": 3,
        "labels": {"b": [1], "a": "é"},
        "seq": 12,
        **MIN,
    }
    assert set(full) == {*FIELDS, "seq"}
    (batch,) = Decoder(Meters(), "here").decode(line(**full))
    assert set(batch.columns) == set(FIELDS)
    text = encode(batch)
    assert text.count(b"\n") == 1
    assert json.loads(text)["features"] == b64(0.1, 0.2)
    assert json.loads(text)["labels"] == full["labels"]
    assert rows(Decoder(Meters(), "here").decode(text)) == rows([batch])
    assert encode(Decoder(Meters(), "here").decode(text)[0]) == text


def test_encode_writes_what_is_there_and_nothing_else() -> None:
    batch = RequestBatch({"ts": np.array([1.5, 2.0]), "status": np.array([200.0, np.nan])}, np.array([7, -1]))
    assert encode(batch) == b'{"ts":1.5,"status":200,"seq":7}\n{"ts":2}\n'
    assert json.loads(encode(GpuSample(ts=1.0, gpu="g", posture={"ecc_mode": "on", "x": "y"}))) == {
        "kind": "gpu",
        "ts": 1.0,
        "gpu": "g",
        "ecc_mode": "on",
        "posture": {"x": "y"},
    }


def test_encode_escapes_what_is_not_unicode() -> None:
    table = ProcessTable(ts=1.0, processes=(Process(pid=1, start_ticks=2, exe="/x\udcff", cmdline=("\ud800\n",)),))
    (again,) = Decoder(Meters(), "here").decode(encode(table))
    assert again.processes[0].exe == "/x\\udcff"
    assert again.processes[0].cmdline == ("\\ud800\n",)


def test_long_lines_are_counted_and_not_copied() -> None:
    long = b'{"ts":1,"model":"' + b"x" * 100_000_000 + b'"}'
    good = line(**MIN)
    data = b"\n".join([good, long, good, good])
    del long
    made = Decoder(Meters(), "here")
    made.decode(good)
    tracemalloc.start()
    try:
        found = rows(made.decode(data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 3
    assert drops(made) == {"too_long": 1}
    assert len(made.samples["too_long"]) == 120
    assert peak < 1 << 20


@pytest.mark.parametrize("limit", [22, 23, 30, 64])
def test_the_limit_is_a_lines_length(limit: int) -> None:
    for order in itertools.permutations([22, 23, 30, 31, 64, 65]):
        lines = [b'{"ts":1,"model":"m"}'.ljust(length) for length in order]
        made = Decoder(Meters(), "here", max_line_bytes=limit)
        assert len(rows(made.decode(b"\n".join(lines)))) == sum(length <= limit for length in order)
        assert sum(drops(made).values()) == sum(length > limit for length in order)


def test_a_layout_is_learned_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "REST", 10)
    monkeypatch.setattr(layout, "FORGET_AFTER", 50)
    made = Decoder(Meters(), "here")
    made.decode([line(**MIN, client="c", zone=1)])
    assert list(made._learner.layout.keys) == ["ts", "model", "client", "zone"]
    made.decode([line(**MIN, client="c", status=200)] * 30)
    assert "status" in made._learner.layout.keys
    for _ in range(10):
        made.decode([line(**MIN, client="c")] * 10)
    assert list(made._learner.layout.keys) == ["ts", "model", "client"]


def test_invented_keys_are_not_held() -> None:
    made = Decoder(Meters(), "here")
    for batch in range(12):
        for name in range(60):
            made.decode([line(**MIN, client="c", **{f"k{batch}_{name}": 1})] * 12)
        made.decode([line(**MIN, client="c", **{f"k{batch}_{name}": 1 for name in range(2000)})] * 9)
    learner = made._learner
    assert len(learner._sightings) <= layout.MAX_SIGHTINGS + 1
    assert len(learner.layout.carried) <= layout.MAX_CARRIED
    assert "client" in learner.layout.keys
    assert all(name.startswith("_") for name in learner.layout.carried)


def test_one_sample_of_each_reason_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(decoder.time, "monotonic", lambda: now)
    made = Decoder(Meters(), "here")
    made.decode(b"first\x1b[2J\nsecond\n{}")
    assert made.samples == {"json": "first\\x1b[2J\\n", "missing": "{}"}
    made.samples.clear()
    now += 59
    made.decode(b"third")
    assert made.samples == {}
    now += 1
    made.decode(b"fourth\n" + line(**MIN, features=b64(np.nan), request_id="bad one"))
    assert made.samples["json"] == "fourth\\n"
    assert "bad one" in made.samples["range"]


def test_limits_are_what_the_documents_say() -> None:
    assert (wire.MAX_TEXT, wire.MAX_ITEMS) == (256, 1024)
    assert columns.plan(["logit_bias"])[0][0] == "logit_bias"
