// The four charts, drawn by uPlot. They share the time axis and the cursor. Each legend shows the values at the cursor,
// or those of the whole range.

import * as format from "./format.js";
import { make, setText } from "./page.js";

const HEIGHT = 190;
const RANGES = { "1h": 3600, "24h": 86_400 };
// Minimum width of the time axis, in steps.
const MIN_STEPS = 30;

const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
const largest = (values) => values.reduce((most, value) => (value === null ? most : Math.max(most ?? value, value)), null);
const share = (part, whole) => (whole > 0 ? part / whole : null);

/** Definition of each chart. `total` returns the value for the whole range; `isCount` marks charts of counts. */
const CHARTS = [
  {
    id: "chart-calls",
    unit: (step) => `per ${step}`,
    placeholder: "No lookups in this range",
    value: format.count,
    isCount: true,
    columns: [
      { label: "Saved", colour: "accent", fill: true, of: (h) => h.calls_saved, total: (h) => sum(h.calls_saved) },
      { label: "Sent upstream", colour: "other", of: (h) => h.calls, total: (h) => sum(h.calls) },
    ],
  },
  {
    id: "chart-rate",
    unit: () => "of the requested ids",
    placeholder: "No ids requested in this range",
    value: format.percent,
    most: 1,
    columns: [
      {
        label: "Hits",
        colour: "accent",
        fill: true,
        of: (h) => h.ids.map((ids, n) => share(h.ids_hit[n], ids)),
        total: (h) => share(sum(h.ids_hit), sum(h.ids)),
      },
    ],
  },
  {
    id: "chart-latency",
    unit: () => "of lookup calls",
    placeholder: "No upstream calls in this range",
    value: format.seconds,
    columns: [
      { label: "p99", colour: "other", of: (h) => h.upstream_p99_seconds, total: (h) => largest(h.upstream_p99_seconds) },
      { label: "p50", colour: "accent", of: (h) => h.upstream_p50_seconds, total: (h) => largest(h.upstream_p50_seconds) },
    ],
    totalPrefix: "up to ",
  },
  {
    id: "chart-limits",
    unit: (step) => `lookups, per ${step}`,
    placeholder: "No 429 in this range",
    value: format.count,
    isCount: true,
    bars: true,
    columns: [
      { label: "From upstream", colour: "other", of: (h) => h.upstream_rate_limited, total: (h) => sum(h.upstream_rate_limited) },
      { label: "Absorbed", colour: "accent", of: (h) => h.rate_limited_absorbed, total: (h) => sum(h.rate_limited_absorbed) },
      { label: "To clients", colour: "bad", of: (h) => h.rate_limited_passed_on, total: (h) => sum(h.rate_limited_passed_on) },
    ],
  },
];

/** Returns the current colour of a class of the style sheet. */
function colour(name) {
  const probe = make("span", "", `ink-${name}`);
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

class Chart {
  constructor(shape) {
    this.shape = shape;
    this.figure = document.getElementById(shape.id);
    this.plot = this.figure.querySelector(".plot");
    this.legend = this.figure.querySelector(".legend");
    this.unit = make("span", "", "unit");
    this.figure.querySelector("h3").after(this.unit);
    this.placeholder = make("p", shape.placeholder, "placeholder");
    this.plot.after(this.placeholder);
    for (const column of shape.columns) {
      const entry = make("li");
      entry.append(make("span", "", `swatch ink-${column.colour}`), make("span", column.label), make("strong", "–"));
      this.legend.append(entry);
    }
    new ResizeObserver(() => this.u?.setSize({ width: this.plot.clientWidth, height: HEIGHT })).observe(this.plot);
  }

  show(history) {
    this.history = history;
    const values = this.shape.columns.map((column) => column.of(history));
    const data = [history.at, ...values];
    const isEmpty = this.shape.isCount
      ? values.every((column) => sum(column) === 0)
      : values.every((column) => column.every((value) => value === null));
    this.placeholder.hidden = !isEmpty;
    this.figure.classList.toggle("empty", isEmpty);
    setText(this.unit, this.shape.unit(format.seconds(history.step_seconds)));
    if (this.u) this.u.setData(data);
    else this.u = new uPlot(this.options(), data, this.plot);
    this.showValues(this.u.cursor.idx);
  }

  /** Shows the values of one step, or of the whole range, in the legend. */
  showValues(step) {
    const { columns, value, totalPrefix = "" } = this.shape;
    const isTotal = step === null || step === undefined;
    const words = columns.map((column, n) => {
      const figure = isTotal ? column.total(this.history) : column.of(this.history)[step];
      const text = (isTotal && figure !== null ? totalPrefix : "") + value(figure);
      setText(this.legend.children[n].lastElementChild, text);
      return `${column.label}: ${text}`;
    });
    const title = this.figure.querySelector("h3").textContent;
    if (isTotal) this.plot.setAttribute("aria-label", `${title} over time. ${words.join(", ")}.`);
  }

  redraw() {
    this.u?.destroy();
    this.u = null;
    if (this.history) this.show(this.history);
  }

  options() {
    const grid = { stroke: colour("line"), width: 1 };
    const axis = { stroke: colour("muted"), font: `11px ${getComputedStyle(document.body).fontFamily}`, grid, ticks: { show: false } };
    const { value, most } = this.shape;
    return {
      width: this.plot.clientWidth,
      height: HEIGHT,
      padding: [8, 20, 0, 0],
      legend: { show: false },
      cursor: { y: false, sync: { key: "refrain" }, drag: { x: false, y: false }, points: { size: 7 } },
      scales: {
        x: { time: true, range: () => this.window() },
        y: { range: (_, __, highest) => [0, most ?? (highest > 0 ? highest * 1.15 : 1)] },
      },
      axes: [
        { ...axis, grid: { show: false }, size: 30, space: 70, values: (_, splits) => splits.map(format.time) },
        { ...axis, size: 58, gap: 6, space: 36, incrs: this.shape.isCount ? wholeSteps : undefined, values: (_, splits) => splits.map(value) },
      ],
      series: [{}, ...this.shape.columns.map((column) => line(column, this.shape.bars))],
      hooks: { setCursor: [(u) => this.history && this.showValues(u.cursor.left >= 0 ? u.cursor.idx : null)] },
    };
  }

  /** Returns the bounds of the time axis: the range, or the part of it that has data. */
  window() {
    const { at, range, step_seconds: step } = this.history;
    const end = at.at(-1) ?? Math.floor(Date.now() / 1000);
    const known = Math.max(at.length, MIN_STEPS) * step;
    // Half a step more, so that the last bar fits.
    return [end - Math.min(known, RANGES[range]), end + step / 2];
  }
}

function line(column, isBar) {
  const stroke = colour(column.colour);
  if (isBar) {
    // Bars are at least two pixels wide, and values of zero have none.
    return { label: column.label, width: 0, fill: stroke, paths: uPlot.paths.bars({ size: [0.7, 9, 2] }), points: { show: false } };
  }
  return {
    label: column.label,
    stroke,
    width: 1.75,
    fill: column.fill ? colour(`${column.colour}-soft`) : undefined,
    points: { show: true, size: 5, width: 0, fill: stroke, filter: isolated },
  };
}

/** Steps of an axis of whole numbers. */
const wholeSteps = [1, 2, 5].flatMap((n) => Array.from({ length: 10 }, (_, power) => n * 10 ** power)).sort((a, b) => a - b);

/** Returns the indexes of values without neighbours, which a line would not show. */
function isolated(u, series, show) {
  const values = u.data[series];
  const known = (n) => values[n] !== null && values[n] !== undefined;
  return values.flatMap((_, n) => (known(n) && !known(n - 1) && !known(n + 1) ? [n] : []));
}

let charts = [];

/** Draws the response of `/api/history`. */
export function showHistory(history) {
  document.getElementById("charts").hidden = false;
  if (charts.length === 0) charts = CHARTS.map((shape) => new Chart(shape));
  for (const chart of charts) chart.show(history);
}

/** Draws all charts again, with the current colours. */
export const redraw = () => charts.forEach((chart) => chart.redraw());
