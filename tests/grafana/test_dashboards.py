"""The dashboards: the rules of Grafana's dashboard-linter, and that they are what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from boards import ROOT, boards, panels, targets

from mlsecd.sinks.metrics_catalog import CATALOG, DETECTOR_GAUGES, PROCESS

BOARDS = boards()
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in panels(board)]
RUNBOOKS = Path(__file__).resolve().parents[2] / "docs" / "runbooks"
UNITS = {"short", "percentunit", "bytes", "s", "reqps", "cps", "celsius", "watt", "hertz"}

each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
each_panel = pytest.mark.parametrize("panel", [p for _, p in PANELS], ids=[f"{b}:{p['title']}" for b, p in PANELS])
each_target = pytest.mark.parametrize("target", list(targets()), ids=lambda one: f"{one.board}:{one.panel}")


def variables(board: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in board["templating"]["list"]}


def test_they_are_what_the_code_makes() -> None:
    from tools.make_dashboards import main  # noqa: PLC0415 - Grafana's builders take a while to load

    assert main(check=True) == 0


def test_the_ones_that_alerts_link_to_are_there() -> None:
    rules = (ROOT.parent / "config" / "prometheus" / "mlsecd.rules.yml").read_text()
    linked = set(re.findall(r"https://grafana\.example/d/([\w-]+)", rules))
    assert len(linked) >= 6
    assert linked <= {board["uid"] for board in BOARDS.values()}


@each_board
def test_a_dashboard_is_stable_and_read_only(board: dict[str, Any]) -> None:
    assert board["editable"] is False  # rule: uneditable-dashboard
    assert board["id"] is None
    assert board["schemaVersion"] == 41
    assert re.fullmatch(r"mlsecd-[a-z]+", board["uid"])
    assert "__inputs" not in board
    numbers = [panel["id"] for panel in panels(board)]
    assert len(set(numbers)) == len(numbers)


@each_board
def test_panels_do_not_overlap_and_fit(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@each_board
def test_variables_choose_data_source_job_and_instance(board: dict[str, Any]) -> None:
    known = variables(board)
    source = known["datasource"]  # rule: template-datasource
    assert (source["type"], source["query"], source["label"]) == ("datasource", "prometheus", "Data source")
    for name, label in (("job", "Job"), ("instance", "Instance")):  # rules: template-job, template-instance
        one = known[name]
        assert (one["type"], one["label"], one["multi"], one["allValue"]) == ("query", label, True, ".+")
    for one in known.values():
        if one["type"] == "query":
            assert one["datasource"]["uid"] == "${datasource}"
            assert one["refresh"] == 2  # rule: template-on-time-change-reload
            assert re.fullmatch(
                r"label_values\((mlsecd_\w+)(\{.*\})?, \w+\)", one["query"]
            )  # rule: template-label-promql


@each_board
def test_synthetic_findings_show_only_on_demand(board: dict[str, Any]) -> None:
    assert variables(board)["synthetic"]["query"] == "false,true"
    for panel in panels(board):
        for target in panel.get("targets", ()):
            for selector in re.findall(r"mlsecd_findings?_(?:total|active)\{([^}]*)\}", target["expr"]):
                assert 'synthetic=~"$synthetic"' in selector


@each_panel
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]  # rule: panel-title-description
    assert len(panel["description"]) >= 5
    for link in panel.get("links", ()):
        assert (RUNBOOKS / link["url"].rpartition("/")[2]).is_file()
    if panel["type"] == "text":
        return
    assert panel["targets"]  # rule: panel-no-targets
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}  # rule: panel-datasource
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    assert panel["fieldConfig"]["defaults"].get("unit", "short") in UNITS  # rule: panel-units


@each_target
def test_an_expression_keeps_to_job_instance_and_exported_metrics(target: Any) -> None:
    selectors = re.findall(r"([a-z_]+)\{([^}]*)\}", target.expr)
    assert selectors
    known = {**CATALOG, **{f"mlsecd_detector_{name}": None for name in DETECTOR_GAUGES}, **{s.name: s for s in PROCESS}}
    for metric, selector in selectors:
        assert metric in known, metric
        assert 'job=~"$job"' in selector  # rule: target-job
        assert 'instance=~"$instance"' in selector  # rule: target-instance
    assert not re.search(r"\b(mlsecd|process)_\w+(?![\w{])", re.sub(r"\{[^}]*\}", "{}", target.expr)), "a bare metric"


@each_target
def test_counters_are_shown_as_rates_over_the_interval_that_fits(target: Any) -> None:
    for function, window in re.findall(r"(\w+)\((?:mlsecd|process)_\w+\{[^}]*\}\[([^\]]+)\]", target.expr):
        assert window == "$__rate_interval", function  # rule: target-rate-interval
    for metric in re.findall(r"(?<!rate\()(?<!increase\()\b((?:mlsecd|process)_\w+_total)\{", target.expr):
        pytest.fail(f"{metric} is a counter and is shown as it is")  # rule: target-counter-agg


def test_exemplars_and_ids_lead_to_the_dashboard_of_one_finding() -> None:
    source = (ROOT / "provisioning" / "datasources" / "mlsecd.yml").read_text()
    assert re.search(r"name: finding\n\s+url: /d/mlsecd-finding\?var-finding=\$\$\{__value\.raw\}", source)
    assert "finding" in variables(BOARDS["mlsecd-finding"])
    tables = [panel for _, panel in PANELS if panel["type"] == "table" and "finding" in panel["title"].lower()]
    assert tables
    for table in tables:
        overrides = {one["matcher"]["options"]: one["properties"] for one in table["fieldConfig"]["overrides"]}
        assert "/d/mlsecd-finding?var-finding=${__value.raw}" in overrides["finding"][0]["value"][0]["url"]
        assert overrides["instance"][0]["value"][0]["url"] == "http://${__value.raw}/"
