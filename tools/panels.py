"""From a panel in plain data to Grafana's JSON, by Grafana's own builders.

A panel is a :class:`Panel`; ``@`` in an expression stands for the selector that every expression needs, so that
``mlsecd_gpu_up{@}`` becomes ``mlsecd_gpu_up{job=~"$job", instance=~"$instance"}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as units
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsConfig,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = ["Board", "Panel", "as_json"]

SELECTOR: Final = 'job=~"$job", instance=~"$instance"'
RUNBOOKS: Final = "https://mlsecd.example/runbooks"  # a placeholder, as in the rules
_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HIDDEN: Final = ("Time", "Value", "__name__", "job", "slot", "campaign")
_FIRST: Final = ("severity", "detector", "finding", "instance", "index", "name")  # of a table's columns
_COLOURS: Final = {"critical": "dark-red", "high": "red", "medium": "orange", "low": "blue", "info": "#8e8e8e"}


@dataclass(frozen=True)
class Panel:
    """One panel: what it shows, and how."""

    kind: str  # stat, lines, states, table, text
    title: str
    about: str
    exprs: tuple[tuple[str, str], ...] = ()  # (expression, legend)
    unit: str = "short"
    width: int = 8
    height: int = 7
    red_from: float | None = None  # the value from which it is bad
    stacked: bool = False
    exemplars: bool = False
    top: float = 1.0  # what the axis goes up to where nothing is higher; Grafana draws 0 as a line below 100
    fill: int = 8  # per cent; none where many lines lie on each other
    words: tuple[tuple[int, str], ...] = ()  # what a stat says in place of a value
    states: tuple[tuple[int, str, str], ...] = ((0, "no", "transparent"), (1, "yes", "blue"))  # value, text, colour
    runbook: str = ""
    body: str = ""  # of a text panel, Markdown


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    about: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    gpu: bool = False  # whether it has a variable for GPUs
    finding: bool = False  # whether it is about single findings
    before: bool = False  # whether it compares with an earlier time


def as_json(board: Board) -> str:
    """The dashboard as it is committed: what the builders give, with stable order."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["mlsecd", "security"])
        .readonly()
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(_family())
    )
    for variable in _variables(board):
        made = made.with_variable(variable)
    for number, panel in _placed(board):
        row = isinstance(panel, str)
        made = made.with_row(dashboard.Row(panel)) if row else made.with_panel(_build(panel, number))
    built = json.loads(JSONEncoder(sort_keys=True, indent=2).encode(made.build()))
    built["id"] = None
    return json.dumps(built, indent=2, sort_keys=True) + "\n"


def _placed(board: Board) -> Iterator[tuple[int, Panel | str]]:
    number = 0
    for title, panels in board.rows:
        yield number, title
        for panel in panels:
            number += 1
            yield number, panel


def _family() -> Any:
    """The other dashboards, with the same host and time."""
    link = dashboard.DashboardLink("mlsecd").type(DashboardLinkType.DASHBOARDS).tags(["mlsecd"])
    return link.as_dropdown(True).include_vars(True).keep_time(True)  # noqa: FBT003 - the builders' way


def _variables(board: Board) -> Iterator[Any]:
    yield dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    yield _query("job", "Job", "label_values(mlsecd_build_info, job)")
    yield _query("instance", "Instance", 'label_values(mlsecd_build_info{job=~"$job"}, instance)')
    if board.gpu:
        yield _query("gpu", "GPU", 'label_values(mlsecd_gpu_up{job=~"$job", instance=~"$instance"}, gpu)')
    if board.finding:
        query = 'label_values(mlsecd_finding_active{job=~"$job", instance=~"$instance"}, finding)'
        yield _query("finding", "Finding", query)
    if board.before:
        yield dashboard.CustomVariable("before").label("Before").values("1d,1h,7d")
    yield dashboard.CustomVariable("synthetic").label("Synthetic").values("false,true")


def _query(name: str, label: str, query: str) -> Any:
    variable = dashboard.QueryVariable(name).label(label).query(query).datasource(_SOURCE)
    variable = variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    return variable.multi(True).include_all(True).all_value(".+")  # noqa: FBT003


def _build(panel: Panel, number: int) -> Any:
    made = {"stat": _stat, "lines": _lines, "states": _states, "table": _table, "text": _text}[panel.kind](panel)
    made = made.title(panel.title).description(panel.about).id(number).span(panel.width).height(panel.height)
    if panel.runbook:
        made = made.links([dashboard.DashboardLink("Runbook").url(f"{RUNBOOKS}/{panel.runbook}.md").target_blank(True)])  # noqa: FBT003
    if panel.kind == "text":
        return made
    made = made.datasource(_SOURCE)
    for letter, (expr, legend) in zip("ABCDEFGH", panel.exprs, strict=False):
        made = made.with_target(_target(panel, letter, expr, legend))
    return made


def _target(panel: Panel, letter: str, expr: str, legend: str) -> Any:
    target = prometheus.Dataquery().ref_id(letter).expr(expr.replace("@", SELECTOR)).legend_format(legend)
    target = target.datasource(_SOURCE)
    if panel.kind == "table":
        return target.instant().format(PromQueryFormat.TABLE)
    if panel.kind == "stat":
        return target.instant()
    return target.exemplar(True) if panel.exemplars else target  # noqa: FBT003


def _steps(panel: Panel) -> Any:
    steps = [Threshold(value=None, color="green")]
    if panel.red_from is not None:
        steps.append(Threshold(value=panel.red_from, color="red"))
    return ThresholdsConfig(mode=ThresholdsMode.ABSOLUTE, steps=steps)


def _stat(panel: Panel) -> Any:
    made = stat.Panel().unit(panel.unit).color_mode(units.BigValueColorMode.VALUE)
    made = made.graph_mode(units.BigValueGraphMode.NONE)
    made = made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if panel.words:
        texts = {str(value): ValueMappingResult(text=word) for value, word in panel.words}
        made = made.mappings([ValueMap(options=texts)])
    return made.thresholds(_Fixed(_steps(panel)))


def _lines(panel: Panel) -> Any:
    made = timeseries.Panel().unit(panel.unit).line_width(1).fill_opacity(30 if panel.stacked else panel.fill)
    made = made.show_points(units.VisibilityMode.NEVER).min(0).axis_soft_max(panel.top)
    legend = common.VizLegendOptions().show_legend(True).display_mode(units.LegendDisplayMode.LIST)  # noqa: FBT003
    made = made.legend(legend.placement(units.LegendPlacement.BOTTOM))
    made = made.tooltip(common.VizTooltipOptions().mode(units.TooltipDisplayMode.MULTI))
    if any(legend == "{{severity}}" for _, legend in panel.exprs):
        for name, colour in _COLOURS.items():
            fixed = DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
            made = made.override_by_name(name, [fixed])
    if panel.stacked:
        made = made.stacking(common.StackingConfig().mode(units.StackingMode.NORMAL))
    return made.thresholds(_Fixed(_steps(panel)))


def _states(panel: Panel) -> Any:
    texts = {str(value): ValueMappingResult(text=word, color=colour) for value, word, colour in panel.states}
    made = statetimeline.Panel().unit(panel.unit).mappings([ValueMap(options=texts)])
    return made.show_value(units.VisibilityMode.NEVER).row_height(0.8)


def _table(panel: Panel) -> Any:
    """A row a series; its instance links to that host's landing page, its finding to the finding's dashboard."""
    made = table.Panel().unit(panel.unit)
    order = {name: place for place, name in enumerate(_FIRST)}
    options = {"excludeByName": dict.fromkeys(_HIDDEN, True), "indexByName": order}
    made = made.with_transformation(DataTransformerConfig(id_val="organize", options=options))
    colours = {name: {"text": name, "color": colour} for name, colour in _COLOURS.items()}
    mappings = DynamicConfigValue(id_val="mappings", value=[{"type": "value", "options": colours}])
    coloured = DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"})
    made = made.override_by_name("severity", [mappings, coloured])
    page = (
        "/d/mlsecd-finding?var-finding=${__value.raw}&${job:queryparam}&${instance:queryparam}&${synthetic:queryparam}"
    )
    for name, title, url in (
        ("finding", "This finding over time", page),
        ("instance", "Landing page of this host", "http://${__value.raw}/"),
    ):
        links = [{"title": title, "url": url, "targetBlank": name == "instance"}]
        made = made.override_by_name(name, [DynamicConfigValue(id_val="links", value=links)])
    return made


def _text(panel: Panel) -> Any:
    return text.Panel().content(panel.body).transparent(True)  # noqa: FBT003


class _Fixed:
    """A model where a builder is asked for."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def build(self) -> Any:
        return self._model
