"""The forensic log: its format, and its promises to a reader."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forensic import Clock, files, finding, lines, merkle_root, numbers, numbers_in, open_log

from mlsecd.meters import Meters
from mlsecd.records import Severity, Status
from mlsecd.sinks.chain import Tree
from mlsecd.sinks.log_lines import printable
from mlsecd.sinks.log_verify import verify


def test_every_line_follows_the_one_before_across_segments(tmp_path: Path) -> None:
    log = open_log(tmp_path, max_segment_bytes=4_000)
    log.append([finding(number) for number in range(12)])
    log.close()
    assert len(files(tmp_path)) >= 4
    raw = [line for path in files(tmp_path) for line in path.read_bytes().split(b"\n")[:-1]]
    prev = "0" * 64
    for seq, line in enumerate(raw):
        assert line.startswith(b'{"seq":%d,"prev":"%s",' % (seq, prev.encode()))
        prev = hashlib.sha256(line).hexdigest()
    assert log.head == (len(raw) - 1, prev)
    assert log.seq == len(raw)
    assert numbers(tmp_path) == list(range(12))


def test_segments_begin_with_a_header_and_end_with_a_seal(tmp_path: Path) -> None:
    clock = Clock()
    log = open_log(tmp_path, clock, max_segment_bytes=4_000)
    log.append([finding(number) for number in range(12)])
    ids = set()
    for number, path in enumerate(files(tmp_path), 1):
        body = path.read_bytes().split(b"\n")[:-1]
        header, last = json.loads(body[0]), json.loads(body[-1])
        assert path.name == f"mlsecd-{header['seq']:020d}.jsonl"
        assert header | {"type": "header", "format": 1, "segment": number, "created": clock.now} == header
        assert header["host"] == "host-1"
        assert header["mlsecd"]
        ids.add(header["log"])
        if path != files(tmp_path)[-1]:
            assert last["type"] == "seal"
            assert last["count"] == len(body) - 1
            entries = [hashlib.sha256(line).digest() for line in body[:-1]]
            assert last["root"] == merkle_root(entries).hex()
    assert len(ids) == 1
    assert len(ids.pop()) == 32


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 100])
def test_the_tree_is_that_of_rfc_6962(count: int) -> None:
    entries = [hashlib.sha256(bytes([number])).digest() for number in range(count)]
    tree, at, rng = Tree(), 0, random.Random(count)
    while at < count:
        size = rng.randint(1, 5)
        if size == 1:
            tree.append(entries[at])
        else:
            tree.extend(entries[at : at + size])
        twin = tree.copy()
        at += size
    assert tree.root() == merkle_root(entries).hex()
    if count:
        twin.extend(entries[:1])
        assert tree.root() == merkle_root(entries).hex()


STATUSES = [
    (Status.NEW, (1, 200401, 1, True)),
    (Status.UPDATE, (2, 200402, 1, True)),
    (Status.RESOLVED, (3, 200403, 4, False)),
]


@pytest.mark.parametrize(("status", "expected"), STATUSES)
def test_a_finding_is_an_ocsf_detection_finding(
    tmp_path: Path, status: Status, expected: tuple[int, int, int, bool]
) -> None:
    told = finding(3, status=status, evidence={"n": 3, "life": {"first_ts": 5.0, "last_ts": 6.5, "count": 2}})
    open_log(tmp_path).append([told])
    event = lines(tmp_path)[1]
    assert (event["activity_id"], event["type_uid"], event["status_id"], event["is_alert"]) == expected
    assert (event["category_uid"], event["class_uid"], event["severity_id"]) == (2, 2004, 4)
    assert event["time"] == 1_700_000_003_250
    assert event["metadata"]["version"] == "1.6.0"
    assert event["metadata"]["product"]["name"] == "mlsecd"
    assert event["metadata"]["logged_time"] == 1_800_000_000_000
    info = event["finding_info"]
    assert info["uid"] == told.id
    assert info["title"] == "extraction_account: client k-3"
    assert (info["first_seen_time"], info["last_seen_time"]) == (5_000, 6_500)
    assert (info["analytic"]["uid"], info["analytic"]["type_id"]) == ("extraction_account", 3)
    assert info["attacks"] == [
        {"technique": {"uid": "AML.T0024"}, "sub_technique": {"uid": "AML.T0024.002"}, "version": "5.6.0"}
    ]
    assert event["evidences"] == [{"actor": {"user": {"uid": "k-3", "type_id": 1}}}]
    assert event["unmapped"]["mlsecd"] == told.line()


def test_what_a_finding_affects_is_a_resource(tmp_path: Path) -> None:
    log = open_log(tmp_path, names={"AML.T0029": "Denial of AI Service"})
    log.append([finding(detector="gpu_lost", subject_kind="gpu", subject="GPU-1", atlas=("AML.T0029",))])
    event = lines(tmp_path)[1]
    assert event["resources"] == [{"type": "gpu", "uid": "GPU-1", "role_id": 3, "role": "Affected"}]
    assert "evidences" not in event
    assert event["finding_info"]["analytic"]["type_id"] == 1
    technique = {"uid": "AML.T0029", "name": "Denial of AI Service"}
    assert event["finding_info"]["attacks"] == [{"technique": technique, "version": "5.6.0"}]


@pytest.mark.parametrize(
    ("change", "alert"),
    [
        ({"severity": Severity.MEDIUM}, True),
        ({"severity": Severity.LOW}, False),
        ({"synthetic": True}, False),
        ({"evidence": {"exception": "signed off"}}, False),
    ],
)
def test_what_may_not_page_is_no_alert(tmp_path: Path, change: dict[str, Any], alert: bool) -> None:
    open_log(tmp_path).append([finding(**change)])
    assert lines(tmp_path)[1]["is_alert"] is alert


@pytest.mark.parametrize("severity", list(Severity))
def test_severities_are_ocsf_s(tmp_path: Path, severity: Severity) -> None:
    open_log(tmp_path).append([finding(severity=severity)])
    assert lines(tmp_path)[1]["severity_id"] == severity.rank + 1


NASTY = 'a\nb\r\t\x1b[2J\x00\x7f\x9b31m\u2028\u2029\u202e\ufeff\U000e0001 ünïcode 中文 😀 \\ " </script>'


def test_text_of_an_attacker_stays_one_harmless_line(tmp_path: Path) -> None:
    told = finding(1, subject=NASTY, reason=NASTY, evidence={"n": 1, NASTY: [NASTY]})
    open_log(tmp_path).append([told])
    raw = files(tmp_path)[0].read_bytes().split(b"\n")
    assert len(raw) == 3
    assert raw[1].decode().isprintable()
    assert json.loads(raw[1])["unmapped"]["mlsecd"] == told.line()
    assert verify(tmp_path).ok


def test_every_character_survives_as_itself_or_as_an_escape() -> None:
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000), 0x1F600, 0xE0001, 0x10FFFF]))
    body = printable(json.dumps(text, ensure_ascii=False).encode())
    assert body.decode().isprintable()
    assert json.loads(body) == text


def test_numbers_in_numpy_and_what_json_has_no_word_for(tmp_path: Path) -> None:
    evidence = {"n": 0, "a": np.arange(2), "b": np.float32(0.5), "c": np.inf, "d": {1}, "e": object(), "f": 2**70}
    open_log(tmp_path).append([finding(evidence=evidence, score=float("nan"))])
    told = lines(tmp_path)[1]["unmapped"]["mlsecd"]
    assert told["score"] is None
    assert told["evidence"] | {"a": [0, 1], "b": 0.5, "c": None, "d": [1], "f": 2**70} == told["evidence"]


def test_a_finding_that_cannot_be_encoded_is_still_told(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    log = open_log(tmp_path)
    strange = [finding(evidence={"loop": loop}), finding(subject="\udcff"), finding(evidence=None), finding(ts="x")]
    assert log.append([*strange, finding(9)]) == 5
    bodies = lines(tmp_path)[1:]
    assert "unencodable" in bodies[0]["unmapped"]["mlsecd"]["evidence"]
    assert bodies[0]["finding_info"]["uid"] == finding().id
    assert bodies[1]["unmapped"]["mlsecd"]["subject"] == {"client": r"\udcff"}
    assert bodies[2]["type"] == "malformed"
    assert numbers_in(bodies[-1:]) == [9]
    assert verify(tmp_path).ok


@pytest.mark.parametrize("piece", ["x", "\x9b", "\x7f"])
def test_a_line_has_a_limit(tmp_path: Path, piece: str) -> None:
    open_log(tmp_path).append([finding(evidence={"big": piece * 1_000_000}), finding(8, reason=piece * 200_000)])
    big, wordy = lines(tmp_path)[1:]
    assert big["metadata"]["is_truncated"]
    assert big["unmapped"]["mlsecd"]["evidence"]["truncated"]["bytes"] > 1_000_000
    assert (wordy["finding_info"]["uid"], wordy["class_uid"]) == (finding(8).id, 2004)
    assert files(tmp_path)[0].stat().st_size < 100_000


def test_files_are_for_the_daemon_and_its_auditors(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        open_log(tmp_path / "deep" / "log").append([finding()])
    finally:
        os.umask(before)
    (path,) = files(tmp_path / "deep" / "log")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_drops_are_counted_from_the_start(tmp_path: Path) -> None:
    meters = Meters()
    open_log(tmp_path, meters=meters)
    assert meters.counters()["mlsecd_dropped_total"] == {(("reason", "queue_full"), ("where", "forensic_log")): 0}
