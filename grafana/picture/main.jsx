// One dashboard, drawn with Grafana's own components from what a real Prometheus answers.
import 'uplot/dist/uPlot.min.css';
import React, { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { ThemeContext, PanelChrome, TimeSeries, BigValue, GlobalStyles, BigValueColorMode, BigValueGraphMode } from '@grafana/ui';
import { createTheme, toDataFrame, getDisplayProcessor, FieldType, dateTime } from '@grafana/data';

const theme = createTheme({ colors: { mode: 'light' } });
const CELL = { width: 58, height: 34 };
const params = new URLSearchParams(window.location.search);
const end = Number(params.get('end'));
const start = end - Number(params.get('seconds'));
const VALUES = JSON.parse(params.get('values'));

const plain = (expr) => Object.entries(VALUES).reduce((text, [name, value]) => text.split(name).join(value), expr);
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
              values: values.map((pair) => Number(pair[1])),
              config: { displayName: named(target.legendFormat, series.metric) },
            },
          ],
        }),
      });
    }
  }
  return made;
}

// What Grafana's panel host does to fields: their configuration, colours by series, and how values are written.
function dressed(panel, data) {
  const { custom, ...rest } = panel.fieldConfig.defaults;
  const steps = panel.type === 'state-timeline';
  data.forEach((frame, index) => {
    for (const field of frame.fields) {
      if (field.type === FieldType.time) continue;
      field.config = {
        ...rest,
        mappings: steps ? [] : rest.mappings,
        color: { mode: panel.type === 'stat' ? 'thresholds' : 'palette-classic' },
        custom: steps ? { drawStyle: 'line', lineInterpolation: 'stepAfter', fillOpacity: 20, showPoints: 'never' } : custom,
        ...field.config,
      };
      field.state = { seriesIndex: index };
      field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
    }
    frame.fields[0].display = getDisplayProcessor({ field: frame.fields[0], theme, timeZone: 'utc' });
  });
  return data;
}

// Grafana's own table wants the whole of Grafana around it; this one shows the same columns.
function Rows({ made, panel }) {
  const hidden = new Set(['__name__', ...Object.keys(panel.transformations?.[0]?.options?.excludeByName ?? {})]);
  const keys = [...new Set(made.flatMap((one) => Object.keys(one.metric)))].filter((key) => !hidden.has(key)).sort();
  const cell = { textAlign: 'left', padding: '4px 8px', borderBottom: '1px solid #ddd', whiteSpace: 'nowrap' };
  return (
    <table style={{ margin: 4, fontSize: 12 }}>
      <thead><tr>{keys.map((key) => <th key={key} style={cell}>{key}</th>)}</tr></thead>
      <tbody>
        {made.map((one, index) => <tr key={index}>{keys.map((key) => <td key={key} style={cell}>{one.metric[key]}</td>)}</tr>)}
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
  if (panel.type === 'row') return <div style={{ ...box, fontWeight: 500, fontSize: 16 }}>{panel.title}</div>;
  if (panel.type === 'text')
    return <pre style={{ ...box, ...size, background: 'none', border: 0, whiteSpace: 'pre-wrap' }}>{panel.options.content}</pre>;
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
