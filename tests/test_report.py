"""``mlsecd replay --report``: the page, and the classifier's word on a change."""

from __future__ import annotations

import html.parser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import requests

from mlsecd import explaining
from mlsecd.cli import main
from mlsecd.commands.report_page import Latest, render
from mlsecd.jsonlines import encode
from mlsecd.kernels import select
from mlsecd.records import Finding, RequestBatch, Severity

KERNELS = select("cpu")


class Parsed(html.parser.HTMLParser):
    """Tags that were opened and not closed, and what was met."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.met: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.met.append(tag)
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.met.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def rows(count: int, start: float, seed: int, by: float = 0.0, model: str = "m") -> RequestBatch:
    rng = np.random.default_rng(seed)
    return requests(
        start + np.arange(count) * 2.0,
        model=model,
        output_tokens=np.floor(np.exp(rng.normal(4.0 + by, 1.0, count))),
        input_tokens=np.floor(np.exp(rng.normal(5.0, 1.0, count))),
        predicted=[f"c{i}" for i in rng.integers(0, 3, count)],
        features=rng.standard_normal((count, 4)),
    )


def test_a_replay_writes_what_moved_and_what_a_classifier_makes_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording, page = tmp_path / "day.jsonl", tmp_path / "report.html"
    recording.write_bytes(encode(rows(2_600, 1e9, 1)) + encode(rows(900, 1e9 + 5_200.0, 2, by=1.0)))
    config = tmp_path / "mlsecd.toml"
    config.write_text(f'[daemon]\nstate_dir = "{tmp_path}"\n')
    assert main(["replay", str(recording), "--config", str(config), "--report", str(page)]) == 0
    text = page.read_text()
    parsed = Parsed(page.read_bytes())
    assert parsed.open == []
    assert "svg" in parsed.met
    assert not {"script", "img", "iframe"} & set(parsed.met)
    assert "output_tokens" in text
    assert "A classifier tells rows after from rows before with AUC 0.7" in text
    assert "It leans on (AUC lost without): output_tokens" in text
    assert f"wrote {page}" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = tmp_path / "day.jsonl"
    recording.write_bytes(encode(rows(5, 1e9, 1)))
    assert main(["replay", str(recording), "--report", str(tmp_path / "no" / "page.html")]) != 0
    assert "page.html: cannot be written: No such file or directory" in capsys.readouterr().err


def finding(place: int, **fields: Any) -> Finding:
    plain: dict[str, Any] = {
        "ts": 1e9,
        "detector": "drift_requests",
        "version": 2,
        "subject_kind": "model",
        "subject": "<b>m</b>",
        "severity": Severity.LOW,
        "score": 1.0,
        "threshold": 1.0,
        "reason": "<script>alert(1)</script>",
        "action": "look",
        "id": f"{place:016x}",
    }
    return Finding(**{**plain, **fields})


def test_nothing_of_a_finding_becomes_markup() -> None:
    evil = "</svg><script>"
    moved = {"stream": evil, "from": 1.0, "to": 2.0, "effect": 0.5, "rows": 9, "onset": 1e300}
    drawn = {"edges": [0.0] * 17, "after": [1 / 16] * 16, "rows": 200}
    evidence = {"streams": [moved], "pictures": {evil: drawn}, "onset": 1e300, "uncertified": [evil]}
    told = explaining.Told(0.9, 0.0, (300, 300), ((evil, 0.1),))
    page = render(evil, {"records": 1, "new": 1}, [finding(1, evidence=evidence)], {f"{1:016x}": told}, 3)
    parsed = Parsed(page)
    assert parsed.open == []
    assert "script" not in parsed.met
    assert b"and 3 more" in page


def test_as_many_findings_are_kept_as_fit_each_with_its_last_word() -> None:
    latest = Latest(2)
    for place in (1, 2, 3, 4, 3):
        latest.add(finding(place, evidence={"n": 1}))
    latest.add(finding(1, reason="again", evidence={"n": 2}))
    latest.add(finding(2, reason="over"))
    assert [one.reason[:5] for one in latest.lines.values()] == ["again", "<scri"]
    assert len(latest.left) == 2


def explained(by: float, seed: int) -> explaining.Told | None:
    change = explaining.Change("m", 4_000.0)
    other = rows(500, 0.0, 9, model="other")
    explaining.gather([other, rows(2_000, 0.0, seed), rows(2_000, 4_000.0, seed + 1, by)], [change])
    assert set(np.unique(change.before[0].text("model").values)) <= {"m"}
    return explaining.explain(change, KERNELS)


def test_a_classifier_names_what_changed_and_finds_nothing_where_nothing_did() -> None:
    told = explained(0.8, 1)
    assert told is not None
    assert told.auc == pytest.approx(0.71, abs=0.05)
    assert told.p < 1e-12
    assert told.features[0][0] == "output_tokens"
    same = explained(0.0, 11)
    assert same is not None
    assert same.auc == pytest.approx(0.5, abs=0.06)
    assert same.p > 1e-4


def test_too_few_rows_are_not_explained() -> None:
    change = explaining.Change("m", 100.0)
    explaining.gather([rows(80, 0.0, 1)], [change])
    assert explaining.explain(change, KERNELS) is None


def test_rows_nearest_to_the_change_are_held_and_no_more() -> None:
    change = explaining.Change("m", 8_000.0)
    explaining.gather([rows(1_000, 2_000.0 * part, part) for part in range(9)], [change])
    assert 3_000 <= sum(map(len, change.before)) < 4_000
    assert sum(map(len, change.after)) == 3_000
    assert change.after[0].completion[0] == 8_000.0
