// One dashboard, drawn with Grafana's own components from what a real Prometheus answers.
import 'uplot/dist/uPlot.min.css';
import React, { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { ThemeContext, PanelChrome, TimeSeries, BigValue, GlobalStyles, BigValueColorMode, BigValueGraphMode } from '@grafana/ui';
import { createTheme, toDataFrame, getDisplayProcessor, renderMarkdown, FieldType, dateTime } from '@grafana/data';

const theme = createTheme({ colors: { mode: 'light' } });
const CELL = { width: 58, height: 34 };
const params = new URLSearchParams(window.location.search);
const end = Number(params.get('end'));
const start = end - Number(params.get('seconds'));
const VALUES = JSON.parse(params.get('values'));

const plain = (expr) => Object.entries(VALUES).reduce((text, [name, value]) => text.split(name).join(value), expr);
// Prometheus writes "NaN" and "+Inf"; what is no number is a gap
const number = (text) => (Number.isFinite(Number(text)) ? Number(text) : null);
const ask = async (path, query) => (await fetch(`/api/v1/${path}?${new URLSearchParams(query)}`)).json();
const named = (legend, metric) => {
  const { __name__: name, ...labels } = metric;
  if (legend) return legend.replace(/\{\{(\w+)\}\}/g, (_, key) => metric[key] ?? '');
  return Object.entries(labels).map(([key, value]) => `${key}=${value}`).join(' ') || 'value';
};

async function frames(panel) {
  const made = [];
  for (const target of panel.targets ?? []) {
    const instant = target.instant || panel.type === 'stat' || panel.type === 'table';
    const query = plain(target.expr);
    const answer = instant
      ? await ask('query', { query, time: end })
      : await ask('query_range', { query, start, end, step: Math.max(1, Math.round((end - start) / 300)) });
    for (const series of answer.data.result) {
      const values = instant ? [series.value] : series.values;
      made.push({
        metric: series.metric,
        frame: toDataFrame({
          fields: [
            { name: 'Time', type: FieldType.time, values: values.map((pair) => pair[0] * 1000) },
            {
              name: named(target.legendFormat, series.metric),
              type: FieldType.number,
              values: values.map((pair) => number(pair[1])),
              config: { displayName: named(target.legendFormat, series.metric) },
            },
          ],
        }),
      });
    }
  }
  return made;
}

const override = (panel, name, id) =>
  panel.fieldConfig.overrides.find((one) => one.matcher.options === name)?.properties.find((one) => one.id === id)?.value;

// What Grafana's panel host does to fields: their configuration, colours by series, and how values are written.
function dressed(panel, data) {
  const { custom, ...rest } = panel.fieldConfig.defaults;
  data.forEach((frame, index) => {
    for (const field of frame.fields) {
      if (field.type === FieldType.time) continue;
      field.config = {
        ...rest,
        color: override(panel, field.name, 'color') ?? { mode: panel.type === 'stat' ? 'thresholds' : 'palette-classic' },
        custom,
        ...field.config,
      };
      field.state = { seriesIndex: index };
      field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
    }
    frame.fields[0].display = getDisplayProcessor({ field: frame.fields[0], theme, timeZone: 'utc' });
  });
  return data;
}

const paint = (colour) => theme.visualization.getColorByName(colour);
const mappings = (config) => (config.mappings ?? []).reduce((all, one) => ({ ...all, ...one.options }), {});

// Grafana's state timeline is not among its components: a row a series, a bar from one state to the next.
function Timeline({ panel, made, width, height }) {
  const states = mappings(panel.fieldConfig.defaults);
  const names = made.map((one) => one.frame.fields[1].name);
  const left = Math.min(360, 16 + 6.7 * Math.max(...names.map((name) => name.length)));
  const row = Math.min(24, (height - 40) / made.length);
  const at = (time) => left + ((time / 1000 - start) / (end - start)) * (width - left - 8);
  const bars = (fields) => {
    const [times, values] = fields.map((field) => field.values);
    const step = times.length > 1 ? times[1] - times[0] : 1000;
    const runs = [];
    times.forEach((time, i) => {
      const last = runs[runs.length - 1];
      if (last && last.value === values[i] && time - last.to < 1.5 * step) last.to = time;
      else runs.push({ value: values[i], from: time, to: time });
      if (last && last !== runs[runs.length - 1] && runs[runs.length - 1].from - last.to < 1.5 * step) last.to = time;
    });
    return runs;
  };
  const used = Object.entries(states).filter(([value]) => made.some((one) => one.frame.fields[1].values.includes(Number(value))));
  const text = { fontSize: 11, fill: theme.colors.text.primary };
  const ticks = [0, 1, 2, 3, 4].map((i) => start + ((end - start) * (i + 0.5)) / 5);
  return (
    <svg width={width} height={height}>
      {made.map((one, i) => (
        <g key={i}>
          <text x={left - 8} y={i * row + row / 2 + 4} textAnchor="end" {...text}>{names[i]}</text>
          {bars(one.frame.fields).map((bar, j) => (
            <rect key={j} x={at(bar.from)} y={i * row + 2} width={Math.max(2, at(bar.to) - at(bar.from))} height={row - 4} rx={2}
              fill={paint(states[bar.value]?.color ?? 'transparent')} fillOpacity={0.75} />
          ))}
        </g>
      ))}
      {ticks.map((tick) => (
        <text key={tick} x={at(tick * 1000)} y={made.length * row + 14} textAnchor="middle" {...text}>
          {new Date(tick * 1000).toISOString().slice(11, 19)}
        </text>
      ))}
      {used.map(([value, { text: word, color }], i) => (
        <g key={value}>
          <rect x={left + i * 90} y={made.length * row + 26} width={14} height={5} rx={2} fill={paint(color)} />
          <text x={left + i * 90 + 20} y={made.length * row + 32} {...text}>{word}</text>
        </g>
      ))}
    </svg>
  );
}

// Grafana's own table wants the whole of Grafana around it; this one shows the same columns in the same order and colours.
function Rows({ made, panel }) {
  const options = panel.transformations?.[0]?.options ?? {};
  const hidden = new Set(['__name__', ...Object.keys(options.excludeByName ?? {})]);
  const place = (key) => options.indexByName?.[key] ?? 99;
  const keys = [...new Set(made.flatMap((one) => Object.keys(one.metric)))].filter((key) => !hidden.has(key));
  keys.sort((a, b) => place(a) - place(b) || a.localeCompare(b));
  const colours = Object.fromEntries(keys.map((key) => [key, mappings({ mappings: override(panel, key, 'mappings') })]));
  const linked = new Set(keys.filter((key) => override(panel, key, 'links')));
  const cell = { textAlign: 'left', padding: '6px 10px', borderBottom: `1px solid ${theme.colors.border.weak}`, whiteSpace: 'nowrap' };
  const look = (key, value) => ({
    ...cell,
    color: linked.has(key) ? theme.colors.text.link : colours[key][value] ? paint(colours[key][value].color) : undefined,
    fontWeight: colours[key][value] ? 500 : undefined,
  });
  return (
    <table style={{ margin: 4, fontSize: 12, width: 'calc(100% - 8px)', borderCollapse: 'collapse' }}>
      <thead><tr>{keys.map((key) => <th key={key} style={{ ...cell, color: theme.colors.text.secondary, fontWeight: 500 }}>{key}</th>)}</tr></thead>
      <tbody>
        {made.map((one, index) => <tr key={index}>{keys.map((key) => <td key={key} style={look(key, one.metric[key])}>{one.metric[key]}</td>)}</tr>)}
      </tbody>
    </table>
  );
}

function Body({ panel, made, width, height }) {
  if (!made.length) return <div style={{ padding: 16, color: '#888' }}>No data</div>;
  if (panel.type === 'stat') {
    const [frame] = dressed(panel, [made[0].frame]);
    const field = frame.fields[1];
    const value = field.display(field.values[0]);
    return (
      <BigValue theme={theme} width={width} height={height} value={{ ...value, title: '' }}
        colorMode={BigValueColorMode.Value} graphMode={BigValueGraphMode.None} />
    );
  }
  if (panel.type === 'state-timeline') return <Timeline panel={panel} made={made} width={width} height={height} />;
  if (panel.type === 'table') return <Rows made={made} panel={panel} />;
  const range = { from: dateTime(start * 1000), to: dateTime(end * 1000), raw: { from: 'now-1h', to: 'now' } };
  return (
    <TimeSeries frames={dressed(panel, made.map((one) => one.frame))} timeRange={range} timeZone="utc" width={width}
      height={height} structureRev={1} legend={{ showLegend: true, displayMode: 'list', placement: 'bottom', calcs: [] }} />
  );
}

function Panel({ panel }) {
  const [made, setMade] = useState(null);
  useEffect(() => { frames(panel).then(setMade); }, []);
  const at = panel.gridPos;
  const box = { position: 'absolute', left: at.x * CELL.width, top: at.y * CELL.height, padding: 4 };
  const size = { width: at.w * CELL.width - 8, height: at.h * CELL.height - 8 };
  if (panel.type === 'row') return <div style={{ ...box, fontWeight: 500, fontSize: 16 }}>{plain(panel.title)}</div>;
  if (panel.type === 'text')
    return <div className="markdown-html" style={{ ...box, ...size }} dangerouslySetInnerHTML={{ __html: renderMarkdown(plain(panel.options.content)) }} />;
  return (
    <div style={box}>
      <PanelChrome {...size} title={panel.title} description={panel.description}>
        {(width, height) => made && <Body panel={panel} made={made} width={width} height={height} />}
      </PanelChrome>
    </div>
  );
}

function Board({ board }) {
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <h3 style={{ margin: '8px 12px' }}>{board.title}</h3>
      <div style={{ position: 'relative' }}>{board.panels.map((panel) => <Panel key={`${panel.type} ${panel.id} ${panel.title}`} panel={panel} />)}</div>
    </ThemeContext.Provider>
  );
}

const board = await (await fetch(`/boards/${params.get('board')}.json`)).json();
createRoot(document.getElementById('root')).render(<Board board={board} />);
