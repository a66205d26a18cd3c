"""The landing page: what it says, what it keeps to itself, and that nobody can write on it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from views import CLIENT, Source, active, finding, gpu, status_view

from mlsecd.records import Severity, Status
from mlsecd.sinks.metrics_view import DetectorHealth, LogHealth
from mlsecd.web import landing
from mlsecd.web.cells import ago, span
from mlsecd.web.status import present
from mlsecd.web.style import CSP
from mlsecd.web.verdict import Verdict

VOID = {"meta", "link", "wbr"}
TAGS = {
    *VOID,
    *("html", "head", "title", "style", "body", "header", "main", "div", "section", "footer", "h1", "h2", "ul", "li"),
    *("table", "thead", "tbody", "tr", "th", "td", "span", "small", "b", "strong", "em", "code", "time", "a", "p"),
    *("details", "summary"),
}


class Reader(HTMLParser):
    """Reads a page as a browser would, and insists that it is well formed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def page(*, detail: bool = True, refresh: int = 0, **kw: Any) -> str:
    return landing.render(present(status_view(**kw), detail=detail), refresh).decode()


def words(*, detail: bool = True, **kw: Any) -> str:
    return " ".join("".join(Reader(page(detail=detail, **kw)).words).split())


def verdict(**kw: Any) -> Verdict:
    return present(status_view(**kw)).verdict


@pytest.mark.parametrize(
    ("detector", "certified", "told"),
    [("extraction_account", False, True), ("extraction_account", True, False), ("gpu_lost", False, False)],
)
def test_not_certified_is_said_only_where_a_rate_is_promised(detector: str, *, certified: bool, told: bool) -> None:
    shown = words(active=(active(detector=detector, certified=certified),))
    assert ("not certified" in shown) == told


def test_the_page_is_well_formed_in_every_state() -> None:
    states = ("mismatch", "stale", "saturated", "shifted", "learning", "off", "armed", "a new one")
    detectors = [DetectorHealth(f"d_{state}", state, "why", {}, None, "sandbox", "what") for state in states]
    Reader(page(detectors=detectors, refresh=5))
    Reader(page(active=[], recent=[], sources=[], detectors=[], gpus=[], dropped={}, coverage={}, log=None))


def test_nobody_writes_on_the_page() -> None:
    evil = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\"' onload='x\x1b[2J\u202e\ud800"
    got = page(
        active=[active(subject=evil, subject_kind="process", detector=evil, reason=evil)],
        recent=[finding(subject=evil, subject_kind="process", reason=evil, action=evil, detector=evil)],
        sources=[Source(evil, up=False, why=evil)],
        detectors=[DetectorHealth(evil, "stale", evil, {}, None, evil, evil)],
        gpus=[gpu(name=evil, gpu=evil)],
        dropped={(evil, evil): 1.0},
        coverage={"requests": 1.0, evil: 1.0},
        blind=[(evil, evil)],
        log=LogHealth(blocked=True, why=evil),
        host=evil,
    )
    reader = Reader(got)  # refuses unknown tags and event handlers
    assert "<script" not in got
    assert "<img" not in got
    assert not set(got) & set("\x1b\u202e\ud800")
    assert "</td><script>alert(1)</script>" in "".join(reader.words)


def test_long_texts_and_long_tables_are_bounded() -> None:
    long = "x" * 100_000
    many = [active(f"{i:016x}", subject=long, reason=long) for i in range(5_000)]
    got = page(
        active=many,
        recent=[finding(f"{i:016x}", reason=long, action=long) for i in range(5_000)],
        gpus=[gpu(i) for i in range(500)],
        dropped={(f"w{i}", "r"): 1.0 for i in range(500)},
        blind=[(long, long)] * 500,
    )
    assert len(got) < 250_000
    assert "and 4950 more, in the forensic log" in got


def test_accounts_are_shortened_wherever_they_are_named() -> None:
    why = f"{CLIENT} and k-ffffffffffffffffffffffffffffffff"
    view = status_view(
        recent=[finding(reason=why, action=f"block {CLIENT}"), finding("b" * 16, subject="alice@example.com")],
        detectors=[DetectorHealth("d", "stale", why)],
    )
    shown = landing.render(present(view)).decode() + msgspec.json.encode(present(view)).decode()
    assert "k-3f9a1c77…" in shown
    assert CLIENT not in shown
    assert not re.search(r"k-[0-9a-f]{9}", shown)
    assert "alice@exam…" in shown
    assert "alice@example" not in shown


def test_no_scores_on_an_open_page() -> None:
    shown = page() + msgspec.json.encode(present(status_view())).decode()
    assert "77.1" not in shown
    assert "12.5" not in shown


def test_reasons_stay_at_home_where_others_can_read() -> None:
    at_home, elsewhere = words(), words(detail=False)
    for secret in ("walks along a boundary", "Revoke the key."):
        assert secret in at_home
        assert secret not in elsewhere
    assert f"""jq 'select(.unmapped.mlsecd.id? == "{"a" * 16}")' /var/log/mlsecd/*.jsonl""" in elsewhere


def test_what_is_only_told_is_folded_away_under_what_wants_somebody() -> None:
    many = [active(f"{i:016x}", detector="gpu_short_jobs", severity=Severity.INFO) for i in range(8)]
    shown = page(active=[*many, active("f" * 16, severity=Severity.HIGH)])
    assert words(active=many).count("8 for information: gpu_short_jobs") == 1
    assert shown.index("extraction_<wbr>account") < shown.index("<details><summary>8 for information")


def test_quiet_says_so_and_only_when_it_is() -> None:
    quiet = {"active": [], "recent": []}
    assert verdict(**quiet) == Verdict("quiet", "All quiet", ())
    assert verdict().headline == "1 active finding, worst: high"
    two = [active(), active("b" * 16, severity=Severity.CRITICAL), active("c" * 16, synthetic=True)]
    assert verdict(active=two).headline == "2 active findings, worst: critical"
    assert verdict(active=two).notes == ("1 synthetic finding besides: no real alarm",)


@pytest.mark.parametrize(
    ("view", "level", "note"),
    [
        ({"sources": [Source("nvml", up=False)]}, "impaired", "1 source down: nvml"),
        (
            {"sources": [Source(f"s{i}", up=False) for i in range(5)]},
            "impaired",
            "5 sources down: s0, s1, s2 and 2 more",
        ),
        ({"sources": [Source("nvml", up=False, unsupported=True)]}, "quiet", ""),
        ({"detectors": [DetectorHealth("d", "off")]}, "quiet", ""),
        ({"detectors": [DetectorHealth("d", "mismatch")]}, "impaired", "1 detector impaired: d (mismatch)"),
        (
            {"detectors": [DetectorHealth("d", "learning")]},
            "learning",
            "1 detector still learning what is ordinary here",
        ),
        ({"log": LogHealth(blocked=True, why="ENOSPC")}, "impaired", "The forensic log is blocked: ENOSPC"),
        (
            {"log": LogHealth(chain_ok=False)},
            "impaired",
            "The forensic log's hash chain is broken: it was changed after it was written",
        ),
    ],
)
def test_quiet_is_qualified(view: dict[str, Any], level: str, note: str) -> None:
    got = verdict(active=[], recent=[], **view)
    assert (got.level, got.notes) == (level, (note,) if note else ())
    assert (got.headline == "All quiet") == (level == "quiet")


def test_synthetic_findings_are_badged_and_never_alarm() -> None:
    kw = {"active": [active(synthetic=True)], "recent": [finding(synthetic=True)]}
    got = page(**kw)
    assert verdict(**kw).level == "synthetic"
    assert "1 synthetic finding, no real ones" in got
    assert "Synthetic: from the bundled recording, not a real alarm" in got
    assert got.count(">synthetic</span>") == 2
    assert 'class="verdict violet"' in got
    assert not re.search(r'class="(verdict|chip) red', got)
    assert "Synthetic" not in page(gpus=[])


def test_what_is_blind_and_why() -> None:
    shown = words(
        sources=[
            Source("nvml", up=False, unsupported=True, why="no NVIDIA driver"),
            Source("otlp", up=False, why="EIO"),
        ],
        detectors=[
            DetectorHealth("gpu_mining", "off", "switched off by the configuration"),
            DetectorHealth("drift_input", "stale", "no input since 02:11"),
            DetectorHealth("campaign_sybil", "learning", "612 of 2,000"),
        ],
        blind=[("executables of other users", "CAP_SYS_PTRACE is not granted")],
    )
    blind = shown[shown.index("Not watched") :]
    for pair in (
        "source nvmlno NVIDIA driver",
        "source otlpEIO",
        "detector gpu_miningswitched off by the configuration",
        "detector drift_inputno input since 02:11",
        "executables of other usersCAP_SYS_PTRACE is not granted",
    ):
        assert pair in blind
    assert "campaign_sybil" not in blind
    assert "Not watched Nothing that mlsecd knows of" in words().replace("watchedNothing", "watched Nothing")


def test_the_worst_stands_first() -> None:
    rows = present(
        status_view(
            active=[
                active("syn", severity=Severity.CRITICAL, synthetic=True),
                active("low", severity=Severity.LOW),
                active("old", last_ts=1.0),
                active("new", last_ts=2.0),
                active("top", severity=Severity.CRITICAL, last_ts=0.0),
            ],
            detectors=[DetectorHealth("z", "armed"), DetectorHealth("a", "armed"), DetectorHealth("m", "mismatch")],
        )
    )
    assert [row.id for row in rows.active] == ["top", "new", "old", "low", "syn"]
    assert [row.name for row in rows.detectors] == ["m", "a", "z"]


def test_a_line_of_each_thing() -> None:
    shown = words(
        recent=[finding(status=Status.RESOLVED)],
        gpus=[gpu(ts=1_700_000_199.0), gpu(1, ts=1_700_000_199.0, state="lost", utilization=None)],
    )
    for part in (
        "resolved",
        "0 NVIDIA H100GPU-00000000",
        "50%40.0 of 80 GiB",
        "412 W61 °C1",
        "lost",
        "GPUs answering1 of 2",
        "client75%",
        "inboxfull12",
        "processesup612",
        "Forensic logok 42 lines",
        "Pages in a week0 budget: 1 false",
    ):
        assert part in shown, part
    assert "False-page budget1 a week" in words(pages_past_week=None)
    assert "None is configured" in words(sources=[])
    assert "foldlate" not in shown  # nothing was dropped there


def test_a_gpu_that_fell_silent_is_not_shown_as_ok() -> None:
    assert present(status_view(gpus=[gpu(ts=1_700_000_100.0)])).gpus[0].state == "stale"


def test_the_sheet_is_allowed_by_its_hash_and_nothing_else_is() -> None:
    [sheet] = re.findall(r"<style>(.*?)</style>", page(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in CSP
    assert "default-src 'none'" in CSP
    assert "unsafe" not in CSP
    assert not re.findall(r'(?:src|href)="(?!/)', page())


def test_times_as_people_say_them() -> None:
    assert [span(seconds) for seconds in (-5, 0, 119, 120, 7_199, 7_200, 172_800)] == [
        *("0 s", "0 s", "119 s", "2 min", "119 min", "2 h", "2 d")
    ]
    assert "never" in ago(None, 0.0)
    assert "in 2 min" in ago(1_120.0, 1_000.0)
    for wild in (float("nan"), float("inf"), 1e300, -1e300):
        assert "unknown" in ago(wild, 0.0)


def test_the_public_status_is_plain_json() -> None:
    got = msgspec.json.decode(msgspec.json.encode(present(status_view())))
    assert got["coverage"] == {"requests": 200, "fields": {"client": 150}}
    assert got["sources"][0]["up"] is True
    assert got["sources"][0]["unsupported"] is False
    assert got["active_total"] == 1
    assert got["log"]["tree_size"] == 42
