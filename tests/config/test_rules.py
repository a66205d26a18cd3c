"""The shipped alert rules, routes and runbooks: by Prometheus' own tools, and against what mlsecd exports."""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlsecd import cli, plugins
from mlsecd.sinks.metrics_catalog import CATALOG, DETECTOR_GAUGE, DETECTOR_GAUGES, DETECTOR_STATES, PROCESS

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "config" / "prometheus"
RULES = PROMETHEUS / "mlsecd.rules.yml"
UNIT_TESTS = PROMETHEUS / "mlsecd.rules.test.yml"
ALERTMANAGER = ROOT / "config" / "alertmanager" / "alertmanager.yml"
RUNBOOKS = ROOT / "docs" / "runbooks"

SEVERITIES = {"critical": "critical", "high": "critical", "medium": "warning", "low": "info", "info": "info"}
RECEIVERS = {"critical": "page", "warning": "ticket", "info": "silent", "none": "dead-man"}

Tool = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Rule:
    """One rule, as far as the tests need it, with the text that it was read from."""

    kind: str  # alert, record
    name: str
    expr: str
    text: str

    def label(self, name: str) -> str:
        found = re.search(rf"^          {name}: (.+)$", self.text, re.MULTILINE)
        assert found, f"{self.name} has no {name}"
        return found[1]

    @property
    def severities(self) -> list[str]:
        severity = self.label("severity")
        return sorted(set(SEVERITIES.values())) if severity.startswith(("&severity", "*severity")) else [severity]


def _rules() -> Iterator[Rule]:
    lines = [line for line in RULES.read_text().splitlines() if not line.lstrip().startswith("#")]
    for block in re.split(r"^      - (?=alert:|record:)", "\n".join(lines), flags=re.MULTILINE)[1:]:
        kind, name = re.match(r"(alert|record): (\S+)", block).groups()
        expr = re.search(r"^        expr: (?:\|\n((?:          .*\n?)+)|(.*)$)", block, re.MULTILINE)
        yield Rule(kind, name, expr[1] or expr[2], block)


ALL = list(_rules())
ALERTS = {rule.name: rule for rule in ALL if rule.kind == "alert"}
SECURITY = {name: rule for name, rule in ALERTS.items() if rule.label("category") == "security"}
alerts = pytest.mark.parametrize("rule", ALERTS.values(), ids=lambda rule: rule.name)


@pytest.fixture
def tool(in_ci: bool) -> Tool:
    """Runs a program of Prometheus' and checks that it is content."""

    def run(name: str, *args: object) -> subprocess.CompletedProcess[str]:
        program = shutil.which(name)
        if program is None:
            assert not in_ci, f"{name} is not installed"
            pytest.skip(f"{name} is not installed")
        done = subprocess.run([program, *map(str, args)], capture_output=True, text=True, check=False, cwd=PROMETHEUS)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def test_the_parser_here_sees_every_rule() -> None:
    text = RULES.read_text()
    assert len(ALL) == text.count("- alert:") + text.count("- record:")
    assert len(ALERTS) == text.count("- alert:")


def test_promtool_finds_nothing_to_say_of_the_rules(tool: Tool) -> None:
    assert f"{len(ALL)} rules found" in tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES).stdout


def test_the_example_scrape_configuration_is_valid(tool: Tool) -> None:
    assert "is valid" in tool("promtool", "check", "config", "prometheus.yml").stdout


@pytest.mark.timeout(600)  # some ten seconds of a core, of which a busy machine gives little
def test_every_alert_passes_its_unit_tests(tool: Tool) -> None:
    assert "SUCCESS" in tool("promtool", "test", "rules", UNIT_TESTS).stdout


@alerts
def test_every_alert_has_a_unit_test_where_it_is_there_and_one_where_it_is_not(rule: Rule) -> None:
    text = UNIT_TESTS.read_text()
    cases = [case for case in re.split(r"^  - name:", text, flags=re.MULTILINE) if rule.name in case]
    assert any("value: 1" in case or "exp_labels" in case for case in cases)
    assert rule.expr == "vector(1)" or any("exp_samples: []" in case or "exp_alerts: []" in case for case in cases)


def _seconds(time: str) -> int:
    return sum(int(count) * {"h": 3600, "m": 60, "s": 1}[unit] for count, unit in re.findall(r"(\d+)([hms])", time))


def _looks(case: dict[str, Any], alert: str) -> Iterator[tuple[int, bool]]:
    """When a unit test looks for an alert, and whether it is there then."""
    for one in case.get("alert_rule_test", ()):
        if one["alertname"] == alert:
            yield _seconds(one["eval_time"]), bool(one["exp_alerts"])
    for one in case.get("promql_expr_test", ()):
        named = re.search(r'ALERTS\{[^}]*alertname="(\w+)"', one["expr"])
        if named and named[1] == alert:
            yield _seconds(one["eval_time"]), bool(one["exp_samples"])
        elif "ALERTS{" in one["expr"] and not named:  # of all alerts, or of a category
            yield _seconds(one["eval_time"]), alert in str(one["exp_samples"])


@alerts
def test_a_unit_test_sees_every_alert_before_it_fires_while_it_does_and_after(rule: Rule) -> None:
    cases = [list(_looks(case, rule.name)) for case in yaml.safe_load(UNIT_TESTS.read_text())["tests"]]
    fires = [(min(time for time, there in looks if there), looks) for looks in cases if any(x for _, x in looks)]
    assert fires, "no unit test in which it fires"
    if rule.expr != "vector(1)":
        assert any(time < first for first, looks in fires for time, there in looks if not there), "quiet before"
        assert any(time > first for first, looks in fires for time, there in looks if not there), "resolved after"


@alerts
def test_every_alert_says_what_to_do_and_names_its_runbook(rule: Rule) -> None:
    assert rule.name.startswith("Mlsecd")
    assert rule.label("category") in {"security", "meta"}
    assert set(rule.severities) <= set(RECEIVERS)
    assert rule.label("runbook_url") == f"https://mlsecd.example/runbooks/{rule.name}.md"
    assert len(rule.label("summary")) < 140
    assert "description:" in rule.text
    assert rule.expr == "vector(1)" or "dashboard_url: https://grafana.example/d/mlsecd-" in rule.text
    assert ("evidence:" in rule.text) == (rule.name in SECURITY)
    assert rule.expr == "vector(1)" or "$labels.instance" in rule.label("summary")


def test_every_metric_and_label_in_a_rule_is_exported() -> None:
    gauges = {DETECTOR_GAUGE.name.format(gauge=gauge): DETECTOR_GAUGE for gauge in DETECTOR_GAUGES}
    specs = {**CATALOG, **{spec.name: spec for spec in PROCESS}, **gauges}
    recorded = {rule.name for rule in ALL if rule.kind == "record"}
    for rule in ALL:
        plain = re.sub(r'"[^"]*"', '""', rule.expr)
        named = set(re.findall(r"[a-z_]+(?::[a-z0-9_]+)+", plain))
        assert named <= recorded, rule.name
        used = set(re.findall(r"(?<![\w:])(?:mlsecd|process)_[a-z0-9_]+(?![\w:])", plain))
        assert used <= set(specs), f"{rule.name}: {used - set(specs)}"
        for metric, selector in re.findall(r"(?<![\w:])((?:mlsecd|process)_[a-z0-9_]+)\{([^}]*)\}", plain):
            labels = set(re.findall(r"(\w+)\s*[=!]", selector))
            assert labels <= set(specs[metric].labels), f"{rule.name}: {metric}{labels}"


def test_states_in_rules_are_states_of_detectors() -> None:
    for states in re.findall(r'state=~?"([a-z|]+)"', "".join(rule.expr for rule in ALL)):
        assert set(states.split("|")) <= {*DETECTOR_STATES, "firing"}


def test_no_security_rule_sees_synthetic_findings_or_loses_sight_of_real_ones() -> None:
    for rule in ALL:
        for selector in re.findall(r"mlsecd_findings?_(?:total|active)\b(\{[^}]*\})?", rule.expr):
            assert 'synthetic="false"' in selector, rule.name
    for rule in SECURITY.values():
        assert rule.expr.strip().startswith("detector_severity:mlsecd_findings:open{"), rule.name
        assert "for:" not in rule.text, f"{rule.name}: a verdict is not waited out"


def _fits(detector: str, operator: str, value: str) -> bool:
    same = re.fullmatch(value, detector) is not None if "~" in operator else value == detector
    return same != operator.startswith("!")


def _alerts_of(detector: str) -> list[str]:
    matchers = {rule.name: re.findall(r'detector(=~|!~|!=|=)"([^"]+)"', rule.expr) for rule in SECURITY.values()}
    return [name for name, all_of in matchers.items() if all(_fits(detector, *one) for one in all_of)]


@pytest.mark.parametrize("detector", [*plugins.detectors(), "some_future_detector"])
def test_every_detector_has_exactly_one_alert(detector: str) -> None:
    assert len(_alerts_of(detector)) == 1


@pytest.mark.parametrize(
    ("detector", "alert"),
    [
        ("extraction_exposure", "MlsecdExtraction"),
        ("extraction_campaign", "MlsecdCampaign"),
        ("campaign_sybil", "MlsecdCampaign"),
        ("drift_answers", "MlsecdDrift"),
        ("gpu_xid", "MlsecdGpu"),
        ("gpu_lost", "MlsecdGpuLost"),
        ("process_miner", "MlsecdProcess"),
        ("exposure_notebook", "MlsecdExposure"),
        ("integrity_weights", "MlsecdIntegrity"),
        ("egress_volume", "MlsecdEgress"),
        ("access_new_network", "MlsecdFinding"),
    ],
)
def test_a_new_detector_is_caught_by_the_beginning_of_its_name(detector: str, alert: str) -> None:
    assert _alerts_of(detector) == [alert]


def test_the_routes_are_valid(tool: Tool) -> None:
    assert "SUCCESS" in tool("amtool", "check-config", ALERTMANAGER).stdout


@alerts
def test_every_alert_goes_to_the_right_place(rule: Rule, tool: Tool) -> None:
    for severity in rule.severities:
        labels = [f"alertname={rule.name}", f"severity={severity}", f"category={rule.label('category')}"]
        where = tool("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", *labels).stdout.strip()
        assert where == RECEIVERS[severity], labels


def test_what_no_route_knows_is_a_ticket_and_nothing_goes_nowhere(tool: Tool) -> None:
    for severity, category in itertools.product(("page", ""), ("other", "")):
        labels = ["alertname=Foreign", f"severity={severity}", f"category={category}"]
        where = tool("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", *labels).stdout.strip()
        assert where == "ticket", labels


def test_alerts_in_inhibitions_exist_and_only_a_campaign_holds_findings_back() -> None:
    text = ALERTMANAGER.read_text()
    for names in re.findall(r'alertname [=!]~? "([\w|]+)"', text):
        assert set(names.split("|")) <= set(ALERTS)
    inhibitions = re.findall(r"source_matchers: \[(.*)\]\n +target_matchers: \[(.*)\]", text)
    assert len(inhibitions) == 5
    for source, target in inhibitions:
        if "MlsecdCampaign" in source:
            assert 'in_campaign = "all"' in target
            assert "MlsecdExtraction" in target
            continue
        reached = re.search(r'alertname =~ "([\w|]+)"', target)
        assert 'category = "meta"' in target or not set(reached[1].split("|")) & set(SECURITY)


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    pages = {page.stem: page.read_text() for page in RUNBOOKS.glob("*.md")}
    index = pages.pop("README")
    assert set(pages) == set(ALERTS)
    for name, text in pages.items():
        assert text.startswith(f"# {name}\n")
        assert f"({name}.md)" in index
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
        assert [link for link in links if not (RUNBOOKS / link).exists()] == [], name
        sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert sections == ["Meaning", "False alarms", "First five minutes", "Evidence", "Silence", "Close"], name


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next((action.choices for action in parser._actions if isinstance(action.choices, dict)), {})


def test_runbooks_and_alerts_name_only_commands_that_exist() -> None:
    known = _commands(cli._parser())
    texts = [*(page.read_text() for page in RUNBOOKS.glob("*.md")), (ROOT / "docs" / "alerting.md").read_text()]
    code = re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", "\n".join(texts), re.DOTALL)
    lines = "\n".join(block or span for block, span in code)
    named = re.findall(r"(?:^|\| |sudo )mlsecd ([a-z-]+)(?: ([a-z]+))?", lines, re.MULTILINE)
    named += re.findall(r"\bmlsecd (log|baseline) ([a-z]+)", RULES.read_text())
    assert len(named) > 20
    for command, inner in named:
        assert command in known, command
        if command in {"log", "baseline"}:
            assert inner in _commands(known[command]), f"{command} {inner}"
