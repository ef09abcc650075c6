// The page's own script: charts, keys, the theme, and what stays open while a view is drawn again.
"use strict";

const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6"];
const LETTERS = { o: "overview", r: "recipes", l: "lineage", d: "decisions", e: "effects", t: "time", p: "proof",
  g: "log", n: "propose" };
const plots = new Map(); // figure -> {plot, chart}
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = () => document.documentElement.dataset.theme
  ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

const short = (v) => v == null ? "" : Math.abs(v) >= 1e6 || (v !== 0 && Math.abs(v) < 1e-3)
  ? v.toExponential(2).replace(/\.?0+e/, "e") : String(+v.toFixed(4));

function options(figure, chart) {
  const axis = (label, size) => ({ label, size, labelSize: 22, stroke: css("--ink"), font: "12px system-ui",
    labelFont: "12px system-ui", ticks: { show: false },
    values: (_, ticks) => ticks.map(short), grid: { stroke: css("--line"), width: 1,
      filter: (_, ticks) => chart.log ? ticks.map((v) => Number.isInteger(Math.log10(v)) ? v : null) : ticks } });
  const series = [{ label: chart.x, value: (_, v) => short(v) }];
  chart.series.forEach((one, i) => {
    const colour = one.kind === "faint" ? css("--faint") : css(COLOURS[i % COLOURS.length]);
    const points = ["dots", "hollow", "diamond", "cross"].includes(one.kind);
    const big = one.kind === "diamond" || one.kind === "cross";
    series.push({ label: one.label, stroke: colour, width: points ? 0 : one.kind === "faint" ? 1 : 2, spanGaps: true,
      dash: one.kind === "cross" ? [3, 2] : undefined, value: (_, v) => short(v),
      paths: points ? () => null : one.kind === "step" ? uPlot.paths.stepped({ align: 1 }) : uPlot.paths.linear(),
      points: { show: points, size: big ? 11 : 7, width: 1.5, stroke: colour,
        fill: one.kind === "hollow" || one.kind === "cross" ? css("--ground") : colour } });
  });
  return { width: figure.clientWidth || 600, height: Number(figure.dataset.height) || 280, series,
    cursor: { sync: { key: chart.sync || figure.id }, focus: { prox: 24 } }, focus: { alpha: 0.5 },
    scales: { x: { time: false }, y: { distr: chart.log ? 3 : 1,
      range: chart.log ? undefined : (_, low, high) => {
        if (chart.zero) { low = Math.min(low, 0); high = Math.max(high, 0); }
        const room = 0.06 * (high - low || 1);
        return [low - room, high + room];
      } } },
    axes: [axis(chart.x, 28), axis(chart.y, 62)], hooks: { setCursor: [(plot) => pointed(figure, plot)] } };
}

function data(chart) {
  const tables = chart.series.map((one) => {
    const order = one.x.map((_, i) => i).sort((a, b) => one.x[a] - one.x[b]);
    return [order.map((i) => one.x[i]), order.map((i) => one.y[i])];
  });
  return tables.length ? uPlot.join(tables) : [[]];
}

// What a point says when the cursor is at it, and where a click on it leads.
function pointed(figure, plot) {
  const held = plots.get(figure);
  if (!held || plot.cursor.left < 0) return;
  let best = null, near = 18;
  held.chart.series.forEach((one) => (one.titles || []).forEach((title, i) => {
    const away = Math.hypot(plot.valToPos(one.x[i], "x") - plot.cursor.left,
      plot.valToPos(one.y[i], "y") - plot.cursor.top);
    if (away < near) { near = away; best = { title, link: (one.links || [])[i] }; }
  }));
  held.best = best;
  held.told.textContent = best ? best.title : "";
  plot.over.classList.toggle("link", Boolean(best && best.link));
}

async function draw(figure) {
  if (!figure.isConnected || !window.uPlot) return;
  let chart;
  try {
    const answer = await fetch(figure.dataset.src, { credentials: "same-origin" });
    if (!answer.ok) return;
    chart = await answer.json();
  } catch (_) { return; } // the page's server is gone; what is drawn stays
  const held = plots.get(figure);
  if (held && held.chart.series.length === chart.series.length && chart.series.length) {
    held.chart = chart;
    held.plot.setData(data(chart));
    return;
  }
  if (held) held.plot.destroy();
  figure.replaceChildren();
  if (!chart.series.length) { figure.append(Object.assign(document.createElement("p"),
    { className: "dim", textContent: "nothing to draw yet" })); plots.delete(figure); return; }
  const told = Object.assign(document.createElement("figcaption"), { className: "told" });
  const plot = new uPlot(options(figure, chart), data(chart), figure);
  figure.append(told);
  plots.set(figure, { plot, chart, told, best: null });
  plot.root.querySelectorAll(".u-legend .u-series").forEach((row, i) => {
    row.hidden = i > 0 && chart.series[i - 1].kind === "faint" && chart.series.length > 3;
  });
  plot.over.addEventListener("click", () => {
    const best = (plots.get(figure) || {}).best;
    if (best && best.link) location.href = location.pathname.replace(/[^/]+$/, "recipe") + "?id=" + best.link;
  });
}

function drawAll(again) {
  for (const figure of plots.keys()) if (!figure.isConnected) { plots.get(figure).plot.destroy(); plots.delete(figure); }
  document.querySelectorAll("figure.chart").forEach((figure) => { if (again || !plots.has(figure)) draw(figure); });
}

function redraw() {
  for (const [figure, held] of plots) { held.plot.destroy(); figure.replaceChildren(); plots.delete(figure); }
  drawAll(true);
}

// What was open and where the keyboard was, over a view that is drawn again.
let open = new Set(), focused = null;
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target.id === "main") event.detail.shouldSwap = true; // why there is nothing, too
  if (event.detail.target.id !== "view") return;
  open = new Set([...document.querySelectorAll("#view details[open]")].map((one) => one.id));
  focused = document.activeElement && document.activeElement.id;
});
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.target.id === "view") {
    open.forEach((id) => { const one = id && document.getElementById(id); if (one) one.open = true; });
    const one = focused && document.getElementById(focused);
    if (one && document.activeElement !== one) one.focus({ preventScroll: true });
  }
  drawAll(false);
});
let waiting = null;
document.addEventListener("htmx:sseMessage", () => {
  if (!waiting) waiting = setTimeout(() => { waiting = null; drawAll(true); }, 1500);
});

let resized = null;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => plots.forEach((held, figure) =>
    held.plot.setSize({ width: figure.clientWidth, height: held.plot.height })), 100);
});

function toggle() {
  const now = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = now;
  try { localStorage.setItem("theme", now); } catch (_) { /* for this page alone */ }
  redraw();
}

// Keys: g and a letter for a view, j and k for rows, / to search, b for the theme, ? for help.
let going = false;
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === "Escape" && typing) { event.target.blur(); return; }
  if (typing) return;
  if (going) {
    going = false;
    const link = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
    if (link && LETTERS[event.key]) { event.preventDefault(); link.click(); }
    return;
  }
  const rows = [...document.querySelectorAll("#view [tabindex='0']")];
  const at = rows.indexOf(document.activeElement);
  switch (event.key) {
    case "g": going = true; setTimeout(() => { going = false; }, 1200); break;
    case "j": case "k": {
      const next = rows[Math.max(0, Math.min(rows.length - 1, at + (event.key === "j" ? 1 : -1)))];
      if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
      break;
    }
    case "Enter": {
      const link = at >= 0 && rows[at].querySelector("a");
      if (link && event.target === rows[at]) link.click();
      break;
    }
    case "/": {
      const search = document.querySelector("input[type=search]");
      if (search) { event.preventDefault(); search.focus(); }
      break;
    }
    case "b": toggle(); break;
    case "?": document.getElementById("keys").showModal(); break;
  }
});

document.addEventListener("DOMContentLoaded", () => {
  document.getElementById("theme").addEventListener("click", toggle);
  const here = document.querySelector("nav a[aria-current]");
  if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.clientWidth / 2; // on a phone
  drawAll(true);
});
if (document.readyState !== "loading") drawAll(true);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
