from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsecd import config
from mlsecd.errors import ConfigError
from mlsecd.toml_lines import line_of

ROOT = Path(__file__).parent.parent


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "mlsecd.toml", overrides)
    return str(caught.value).splitlines()


def test_an_unknown_key_is_told_with_its_line_and_a_hint() -> None:
    text = "# one\n\n[sources.nvml]\nenabled = true\nintervall = 2\n"
    assert problems(text) == ['mlsecd.toml:5: [sources.nvml] unknown key "intervall": did you mean "interval_seconds"?']


def test_every_problem_is_told_at_once() -> None:
    text = "[daemon]\ntick_seconds = 99\n[fold]\nlateness = 1\n[webb]\n"
    assert problems(text) == [
        'mlsecd.toml:5: unknown table "webb": did you mean "web"?',
        'mlsecd.toml:2: [daemon] "tick_seconds": Expected `float` <= 10.0',
        'mlsecd.toml:4: [fold] unknown key "lateness": did you mean "lateness_seconds"?',
    ]


def test_unknown_detectors_and_sources_name_what_there_is() -> None:
    (line,) = problems("[detectors.extraction_acount]\n")
    assert line == 'mlsecd.toml:1: [detectors] unknown detector "extraction_acount": did you mean "extraction_account"?'


def test_text_that_is_not_toml_says_where() -> None:
    (line,) = problems("[daemon\n")
    assert line.startswith("mlsecd.toml: not valid TOML: ")
    assert "line 1" in line


def test_a_wrong_type_names_the_key() -> None:
    (line,) = problems("[web]\nlisten = 9847\n")
    assert line == 'mlsecd.toml:2: [web] "listen": Expected `str`, got `int`'


def test_a_table_where_a_value_belongs_is_no_traceback() -> None:
    assert problems("sources = 3\n") == ['mlsecd.toml:1: "sources" must be a table']
    assert problems("exceptions = 3\n") == ['mlsecd.toml:1: "exceptions" must be an array of tables: [[exceptions]]']
    assert problems("[detectors]\ngpu_lost = true\n")
    assert problems("daemon = []\n")


def test_overrides_are_typed_and_checked_like_the_file() -> None:
    loaded = config.parse(
        "", "x", ("web.listen=127.0.0.1:1", "detectors.gpu_lost.enabled=false", "budget.false_alarms_per_week=3")
    )
    assert loaded.web.listen == "127.0.0.1:1"
    assert loaded.disabled == {"gpu_lost"}
    assert loaded.budget.false_alarms_per_week == 3.0
    assert problems("", "web.lissten=x") == ['mlsecd.toml: [web] unknown key "lissten": did you mean "listen"?']
    assert problems("", "nonsense") == ['--set wants section.key=value, not "nonsense"']


def test_the_budget_is_shared_among_those_who_spend_and_set_none() -> None:
    loaded = config.parse("[budget]\nfalse_alarms_per_week = 2.0\n")
    shares = [
        params.false_alarms_per_week for params in loaded.detectors.values() if hasattr(params, "false_alarms_per_week")
    ]
    assert len(shares) >= 2
    assert sum(shares) == pytest.approx(2.0)
    one_off = config.parse("[budget]\nfalse_alarms_per_week = 2.0\n[detectors.drift_requests]\nenabled = false\n")
    assert one_off.detectors["extraction_account"].false_alarms_per_week == pytest.approx(2.0 / (len(shares) - 1))  # type: ignore[attr-defined]


def test_an_exception_needs_a_reason_a_real_day_and_a_detector() -> None:
    row = '[[exceptions]]\ndetector = "gpu_lost"\nsubject = "*"\nreason = "burn-in"\nexpires = "{}"\n'
    assert len(config.parse(row.format("2027-01-31")).exceptions) == 1
    assert problems(row.format("2027-02-31")) == [
        'mlsecd.toml:5: [exceptions] "expires": 2027-02-31 is no day of the calendar'
    ]
    assert "unknown detector" in problems(row.replace("gpu_lost", "gpu_los").format("2027-01-31"))[0]


@pytest.mark.parametrize("listen", ["foo", "127.0.0.1", ":x", "::1:9847", "a b:1"])
def test_an_address_that_is_none_is_told_in_words(listen: str) -> None:
    assert problems(f'[web]\nlisten = "{listen}"\n') == [
        'mlsecd.toml:2: [web] "listen": must be address:port; [::1]:port for IPv6'
    ]


def test_cuda_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.util, "find_spec", lambda _name: None)
    assert "mlsecd[cuda]" in problems('[daemon]\nkernels = "cuda"\n')[0]
    monkeypatch.setattr(config.util, "find_spec", lambda name: name)
    assert config.parse('[daemon]\nkernels = "cuda"\n', "mlsecd.toml", ()).daemon.kernels == "cuda"


def test_what_would_fail_only_later_is_told_now() -> None:
    row = '[[exceptions]]\ndetector = "gpu_lost"\nsubject = "*"\nreason = "never again"\nexpires = "9999-12-31"\n'
    assert "no expiry" in problems(row)[0]
    assert "NUL" in problems('[daemon]\nbaseline = "a\\u0000b"\n')[0]
    assert "not valid TOML" in problems("x = " + "[" * 5000)[0]


def test_announced_launches_are_handed_down_to_those_who_look_at_accounts() -> None:
    row = '[[launches]]\nmodel = "faces"\nbegins = "2027-01-11"\nends = "2027-01-24"\nreason = "scanner 2.0"\n'
    made = config.parse(row)
    (launch,) = made.launches
    told = {name for name, params in made.detectors.items() if getattr(params, "launches", ()) == (launch,)}
    assert told == {"extraction_account", "extraction_language", "campaign_extraction"}
    assert problems("launches = 3\n") == ['mlsecd.toml:1: "launches" must be an array of tables: [[launches]]']
    for wrong, line, words in (
        (row.replace("2027-01-24", "2027-01-10"), 1, "a launch lasts 1 to 31 days, and this one 0"),
        (row.replace("2027-01-24", "2027-03-24"), 1, "a launch lasts 1 to 31 days, and this one 73"),
        (row.replace("01-24", "01-32"), 1, "day is out of range for month"),
        (row.replace('"2027-01-24"', '"soon"'), 4, '"ends": must be its last day, YYYY-MM-DD (UTC), of 31 at most'),
        (row.replace("ends", "expires"), 4, 'unknown key "expires"'),
    ):
        (problem, *_) = problems(wrong)
        assert problem.startswith(f"mlsecd.toml:{line}: [launches]"), problem
        assert words in problem


def test_a_missing_file_is_told_plainly(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(str(tmp_path / "binary.toml"))


def test_the_shipped_file_is_made_from_the_code_and_holds_the_defaults() -> None:
    made = subprocess.run([sys.executable, ROOT / "tools" / "make_config.py", "--check"], check=False)
    assert made.returncode == 0, "run: python tools/make_config.py"
    shipped = config.load(str(ROOT / "config" / "mlsecd.toml"))
    default = config.parse("")
    assert (shipped.daemon, shipped.sources, shipped.detectors) == (default.daemon, default.sources, default.detectors)


def test_the_generated_pages_are_made_from_the_code() -> None:
    made = subprocess.run([sys.executable, ROOT / "tools" / "make_docs.py", "--check"], check=False)
    assert made.returncode == 0, "run: python tools/make_docs.py"


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_either_a_configuration_or_an_explained_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert config.parse(text).host


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a",), 1),
        (("a", "b"), 2),
        (("a", "c", "d"), 3),
        (("x y", "k"), 6),
        (("a", "none"), 1),
        (("nowhere",), None),
    ],
)
def test_lines_are_found(path: tuple[str, ...], line: int | None) -> None:
    text = '[a]\nb = 1\nc.d = 2\n# [nowhere]\n[ "x y" ] # why\n"k" = 3\n'
    assert line_of(text, path) == line


def test_a_byte_order_mark_is_no_statement_and_a_switch_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "mlsecd.toml"
    file.write_bytes(b"\xef\xbb\xbf[detectors.gpu_lost]\nenabled = false\n")
    assert config.load(str(file)).disabled == {"gpu_lost"}
    file.write_text('\n[detectors.gpu_lost]\nenabled = "false"\n')
    with pytest.raises(ConfigError, match=r'mlsecd.toml:3: \[detectors.gpu_lost\] "enabled": write true or false'):
        config.load(str(file))
