// The page: every number follows from the position of the threshold slider and the data of the pass.

const $ = (id) => document.getElementById(id);
const SIDES = JSON.parse($("data").textContent).sides;
const KEPT = 0.99;
const SHOWN_ROWS = 8;
const MATRIX_CLASSES = 12;
const COLORS = { policy: "var(--accent)", fixed: "var(--fixed)", full: "var(--full)", second: "var(--second)" };
const CRITERIA_COLORS = ["#0072b2", "#b35900", "#007a5a", "#b0478a", "#5a6f00", "#a33b00"];

let side = SIDES[0];
let data = null; // the decoded pass of the side
let state = null; // { position, calibrated }: the slider, or the calibrated thresholds
let list = "early";
let shownRows = SHOWN_ROWS;

// Decoding

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function array(kind, base64) {
  return new kind(bytes(base64).buffer);
}

function numbers({ low, step, data: values }) {
  return Float64Array.from(array(Uint16Array, values), (value) => low + step * value);
}

function values(stored) {
  return stored && array(stored.type === "float32" ? Float32Array : Uint16Array, stored.data);
}

function decoded(pass) {
  return pass && {
    ...pass,
    last: pass.exits.length - 1,
    passed: array(Uint8Array, pass.passed),
    certainty: numbers(pass.certainty),
    predictions: values(pass.predictions),
    labels: values(pass.labels),
    latency: pass.latency && numbers(pass.latency),
    calibrated: pass.calibrated && { ...pass.calibrated, exits: array(Uint8Array, pass.calibrated.exits) },
  };
}

// Computing

const at = (row, exit) => row * data.exits.length + exit;
const mean = (list) => list.reduce((sum, value) => sum + value, 0) / list.length;
const sum = (list) => list.reduce((total, value) => total + value, 0);

function quantile(sorted, share) {
  const place = share * (sorted.length - 1);
  const [low, high] = [Math.floor(place), Math.ceil(place)];
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

// (N,) place of the exit of each row.
function exitsAt({ position, calibrated }) {
  if (calibrated) return data.calibrated.exits;
  const exits = new Uint8Array(data.rows);
  for (let row = 0; row < data.rows; row++) {
    let exit = 0;
    while (data.passed[at(row, exit)] <= position) exit++;
    exits[row] = exit;
  }
  return exits;
}

function latencies(exits) {
  return data.latency && Array.from(exits, (exit, row) => data.latency[at(row, exit)]);
}

const agree = (one, other) => (side.regression ? Math.abs(one - other) < 1e-6 : one === other);
const averageLayer = (exits) => mean(Array.from(exits, (exit) => data.exits[exit]));

function summary(chosen) {
  const exits = exitsAt(chosen);
  const times = latencies(exits);
  const sorted = times && Float64Array.from(times).sort();
  const full = data.latency && mean(Array.from({ length: data.rows }, (_, row) => data.latency[at(row, data.last)]));
  const flips = [];
  let [fixed, broken] = [0, 0];
  for (let row = 0; row < data.rows; row++) {
    const [own, deep] = [data.predictions[at(row, exits[row])], data.predictions[at(row, data.last)]];
    if (agree(own, deep)) continue;
    flips.push(row);
    if (data.labels && !side.regression) {
      fixed += own === data.labels[row];
      broken += deep === data.labels[row];
    }
  }
  const measured = chosen.calibrated ? side.points.find((point) => point.kind === "calibrated")?.latency : null;
  const score = chosen.calibrated ? data.calibrated.score : data.scores && data.scores[chosen.position];
  return {
    exits, sorted, flips, fixed, broken, score,
    average: averageLayer(exits),
    latency: times && (measured ?? { mean: mean(times), p50: quantile(sorted, 0.5), p90: quantile(sorted, 0.9), p99: quantile(sorted, 0.99) }),
    full: measured ? side.points.filter((point) => point.kind === "layer").at(-1).latency.mean : full,
    measured: Boolean(measured),
    fullScore: data.layer_scores && data.layer_scores[data.last],
  };
}

// Positions whose numbers the trade-off chart shows.
function curve() {
  return data.thresholds.map((_, position) => {
    const exits = exitsAt({ position, calibrated: false });
    const times = latencies(exits);
    return { position, average: averageLayer(exits), latency: times && mean(times), score: data.scores && data.scores[position] };
  });
}

function initialState() {
  if (data.calibrated) return { position: data.calibrated.position, calibrated: true };
  return { position: keptPosition() ?? data.thresholds.length - 1, calibrated: false };
}

// The cheapest position that keeps KEPT of full depth's score on these inputs.
function keptPosition() {
  const full = data.layer_scores && data.layer_scores[data.last];
  if (!(full > 0)) return null;
  const found = data.scores.findIndex((score) => score >= KEPT * full);
  return found < 0 ? null : found;
}

// Text

const fixed = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
const milliseconds = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(value < 10 ? 2 : 1)} ms`);
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const certain = (value) => (Number.isInteger(data.certainty[0]) && Number.isInteger(value) ? String(value) : Math.abs(value) >= 1000 ? value.toExponential(1) : value.toFixed(3));

function named(value) {
  if (value === null || value === undefined) return "–";
  return side.regression ? value.toFixed(3) : side.classes[value] ?? `class ${value}`;
}

function thresholdText() {
  if (state.calibrated) return data.calibrated.threshold === null ? "calibrated, per exit or class" : `${certain(data.calibrated.threshold)}, calibrated`;
  const value = data.thresholds[state.position];
  if (state.position === data.thresholds.length - 1) return "never exits early";
  if (state.position === 0) return "always exits at the first exit";
  return value === null ? "unbounded" : value.toPrecision(4);
}

function row(cells, header = false, className = "") {
  const made = element("tr", className);
  cells.forEach((cell, place) => {
    const one = element(header || place === 0 ? "th" : "td", "", cell);
    if (header) one.scope = "col";
    else if (place === 0) one.scope = "row";
    made.append(one);
  });
  return made;
}

function table(target, header, rows, { chosen = () => false, caption = "" } = {}) {
  const head = element("thead");
  head.append(row(header, true));
  const body = element("tbody");
  rows.forEach((cells, place) => body.append(row(cells, false, chosen(place) ? "chosen" : "")));
  target.replaceChildren(...(caption ? [element("caption", "", caption)] : []), head, body);
}

function pairs(target, entries) {
  target.replaceChildren();
  for (const [name, value, note] of entries) {
    const group = element("div");
    const description = element("dd", value === null ? "missing" : "", value ?? "not measured");
    if (note) description.append(element("small", "", note));
    group.append(element("dt", "", name), description);
    target.append(group);
  }
}

function radios(fieldset, name, options, checked, onChange) {
  const legend = fieldset.querySelector("legend");
  fieldset.replaceChildren(legend);
  for (const [value, text] of options) {
    const label = element("label");
    const input = element("input");
    Object.assign(input, { type: "radio", name, value, checked: value === checked });
    input.addEventListener("change", () => onChange(value));
    label.append(input, text);
    fieldset.append(label);
  }
}

// Head and verdict

function drawHead() {
  document.querySelector("#name").textContent = SIDES.map((each) => each.name).join(" and ");
  $("headline").replaceChildren(...SIDES.map((each) => element("span", "", `${SIDES.length > 1 ? `${each.name}: ` : ""}${each.headline}.`)));
  const chips = [];
  for (const each of SIDES.filter((one) => one.validity)) {
    const of = SIDES.length > 1 ? ` (${each.name})` : "";
    if (each.validity.valid) {
      chips.push(element("span", "chip good", `VALID${of}: preset ${each.validity.preset}`));
    } else {
      const details = element("details", "chip bad");
      details.open = SIDES.length === 1;
      const reasons = element("ul");
      for (const problem of each.validity.problems) reasons.append(element("li", "", problem));
      details.append(element("summary", "", `INVALID${of}: preset ${each.validity.preset}`), reasons);
      chips.push(details);
    }
  }
  if (side.kind === "bench" && !side.validity) chips.push(element("span", "chip", "validity unknown: bench of an older version"));
  if (side.evaluated) chips.push(element("span", "chip", `${side.kind === "bench" ? `with the evaluation ${side.evaluated.name}` : "evaluation"} of ${plural(side.evaluated.examples, "example")}`));
  $("chips").replaceChildren(...chips);
  $("warnings").replaceChildren(...side.warnings.map((text) => element("li", "", text)));
  $("warnings").hidden = !side.warnings.length;
}

function drawVerdicts() {
  $("verdict").hidden = !side.verdicts.length;
  $("verdicts").replaceChildren(...side.verdicts.map((each) => {
    const card = element("div", `verdict ${each.state}`);
    card.append(element("h3", "", each.title), element("p", "value", each.value), element("p", "state", each.label), element("p", "", each.text));
    return card;
  }));
}

// Explore

function axis(values, room = 0.06) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const extra = room * (high - low || Math.abs(high) || 1);
  return { low: low - extra, high: high + extra };
}

let curvePoints = [];

function drawTradeOff(now) {
  const kind = data.latency ? $("axis").value : "average";
  const scored = Boolean(data.scores);
  const x = (point) => (kind === "latency" ? point.latency : point.average);
  const y = (point) => (scored ? point.score : point.latency ?? point.average);
  const policy = curvePoints.map((point) => [x(point), y(point), `threshold ${data.thresholds[point.position]?.toPrecision(4) ?? "–"}`]);
  const layers = data.exits.map((layer, exit) => {
    const times = data.latency && mean(Array.from({ length: data.rows }, (_, one) => data.latency[at(one, exit)]));
    const point = { average: layer, latency: times, score: data.layer_scores && data.layer_scores[exit] };
    return [x(point), y(point), `layer ${layer}`];
  });
  const series = [
    { name: "all inputs exit at one layer", color: COLORS.fixed, points: layers, dots: true },
    { name: `${side.criterion.name} thresholds`, color: COLORS.policy, points: policy },
  ];
  if (kind === "average" && scored) {
    Object.entries(side.curves).filter(([name]) => name !== side.criterion.name || side.kind === "bench").forEach(([name, points], place) => {
      series.push({ name: side.kind === "bench" ? `${name} (evaluation)` : name, color: CRITERIA_COLORS[place % CRITERIA_COLORS.length], points, dashed: true });
    });
  }
  const all = series.flatMap((each) => each.points);
  const marker = { x: kind === "latency" ? now.latency.mean : now.average, y: scored ? now.score : now.latency?.mean ?? now.average, color: COLORS.policy, label: state.calibrated ? "calibrated" : "selected" };
  draw($("trade-off"), {
    title: `Trade-off: ${scored ? side.metric : "latency"} against ${kind === "latency" ? "mean latency" : "average exit layer"}`,
    x: { label: kind === "latency" ? "mean latency, ms" : "average exit layer", ...(kind === "latency" ? { low: 0, high: 1.06 * Math.max(...all.map((p) => p[0])) } : axis(all.map((p) => p[0]))) },
    y: { label: scored ? side.metric : "mean latency, ms", ...axis(all.map((p) => p[1])) },
    series, markers: [marker],
  });
}

function steps(sorted) {
  const count = Math.min(sorted.length, 240);
  return Array.from({ length: count + 1 }, (_, i) => [quantile(sorted, i / count), i / count]);
}

function drawDistribution(now) {
  $("distribution-figure").hidden = !data.latency;
  if (!data.latency) return;
  const of = (name) => (side.distributions[name] ?? []).map((value, i, all) => [value, i / (all.length - 1)]);
  const full = `layer ${data.exits[data.last]}`;
  const series = [
    { name: "full depth, measured", color: COLORS.full, points: of(full) },
    ...(side.distributions["one graph"] ? [{ name: "one graph, measured", color: COLORS.second, points: of("one graph"), dashed: true }] : []),
    ...(side.distributions.calibrated ? [{ name: "calibrated, measured", color: COLORS.policy, points: of("calibrated"), dashed: !now.measured }] : []),
    ...(now.measured ? [] : [{ name: "selected threshold, composed", color: COLORS.policy, points: steps(now.sorted), step: true }]),
  ].filter((each) => each.points.length);
  const high = Math.max(...series.map((each) => each.points.find((p) => p[1] >= 0.985)[0]));
  draw($("distribution"), {
    title: "Cumulative distribution of the latency of single queries",
    x: { label: "milliseconds per input", low: 0, high: 1.05 * high },
    y: { label: "share of queries", low: 0, high: 1.02 },
    series,
  });
}

function drawHistogram(now) {
  const counts = new Array(data.exits.length).fill(0);
  now.exits.forEach((exit) => counts[exit]++);
  const most = Math.max(...counts);
  $("histogram").replaceChildren(...counts.map((count, exit) => {
    const bar = element("div", "bar");
    const track = element("span", "track");
    const fill = element("span", "fill");
    fill.style.cssText = `display:block;width:${(100 * count) / most}%`;
    track.append(fill);
    bar.append(element("span", "", `layer ${data.exits[exit]}`), track, element("span", "number", `${percent(count / data.rows)} (${count})`));
    return bar;
  }));
}

function drawNumbers(now) {
  const layers = data.exits[data.last];
  const entries = [
    ["Average exit layer", fixed(now.average), `of ${layers}, ${percent(1 - now.average / layers, 0)} saved`],
  ];
  if (now.latency) {
    const how = now.measured ? "measured" : "composed";
    entries.push(
      ["Mean latency", milliseconds(now.latency.mean), `${how}; full depth ${milliseconds(now.full)}`],
      ["Speed-up", `${fixed(now.full / now.latency.mean)}x`, `over full depth, ${how}`],
      ["p90", milliseconds(now.latency.p90), `p50 ${milliseconds(now.latency.p50)}`],
      ["p99", milliseconds(now.latency.p99), how],
    );
  }
  if (now.score !== null && now.score !== undefined) {
    entries.push([side.metric, fixed(now.score, 4), now.fullScore > 0 ? `${percent(now.score / now.fullScore)} of full depth's ${fixed(now.fullScore, 4)}` : ""]);
  }
  const detail = data.labels && !side.regression ? `${now.fixed} fixed, ${now.broken} broken` : "from full depth";
  entries.push([side.regression ? "Other values" : "Flips", percent(now.flips.length / data.rows), side.regression ? "than full depth" : detail]);
  pairs($("numbers"), entries);
}

// Inputs

function lists() {
  const found = [["early", "exit early"], ["late", "exit late"]];
  if (!side.regression) found.push(["flips", "differ from full depth"]);
  if (data.labels) found.push(["wrong", side.regression ? "have the largest error" : "are wrong"]);
  return found;
}

function listed(now) {
  const rows = Array.from({ length: data.rows }, (_, i) => i);
  const certainty = (i) => (side.criterion.higher ? 1 : -1) * data.certainty[at(i, now.exits[i])];
  const prediction = (i) => data.predictions[at(i, now.exits[i])];
  const error = (i) => Math.abs(prediction(i) - data.labels[i]);
  if (list === "early") return rows.sort((a, b) => now.exits[a] - now.exits[b] || certainty(b) - certainty(a));
  if (list === "late") return rows.sort((a, b) => now.exits[b] - now.exits[a] || certainty(a) - certainty(b));
  if (list === "flips") return now.flips.slice().sort((a, b) => certainty(b) - certainty(a));
  if (side.regression) return rows.sort((a, b) => error(b) - error(a));
  return rows.filter((i) => prediction(i) !== data.labels[i]).sort((a, b) => certainty(b) - certainty(a));
}

function drawRows(now) {
  const rows = listed(now);
  const captions = {
    early: "Earliest exits first, then the most certain.",
    late: "Latest exits first, then the least certain.",
    flips: `${plural(rows.length, "prediction")} of ${data.rows} ${rows.length === 1 ? "differs" : "differ"} from full depth's; the most certain first.`,
    wrong: side.regression ? "The largest errors first." : `${plural(rows.length, "prediction")} of ${data.rows} ${rows.length === 1 ? "is" : "are"} wrong; the most certain first.`,
  };
  $("list-caption").textContent = `${captions[list]} The boxes contain the certainty (${side.criterion.name}) at every exit.`;
  const [low, high] = [Math.min(...data.certainty.slice(0, 4000)), Math.max(...data.certainty.slice(0, 4000))];
  const share = (value) => {
    const place = (value - low) / (high - low || 1);
    return Math.min(1, Math.max(0.02, side.criterion.higher ? place : 1 - place));
  };
  $("rows").replaceChildren(...rows.slice(0, shownRows).map((i) => {
    const item = element("li");
    const about = element("div");
    const parts = data.texts?.[i] ?? [`input ${i + 1}`];
    for (const part of parts) about.append(element("p", "text", part));
    const own = data.predictions[at(i, now.exits[i])];
    const facts = element("p", "facts");
    facts.append("predicts ", element("b", "", named(own)));
    if (data.labels) {
      const right = own === data.labels[i];
      if (side.regression) facts.append(`, label ${named(data.labels[i])}`);
      else facts.append(", ", element("span", right ? "right" : "wrong", right ? "right" : `wrong: ${named(data.labels[i])}`));
    }
    const deep = data.predictions[at(i, data.last)];
    if (!agree(own, deep)) facts.append(`; full depth predicts ${named(deep)}`);
    facts.append(`; exits at layer ${data.exits[now.exits[i]]}`);
    if (data.latency) facts.append(` in ${milliseconds(data.latency[at(i, now.exits[i])]).replace(" ", "\u00a0")}`);
    about.append(facts);
    const cells = element("ol", "cells");
    data.exits.forEach((layer, exit) => {
      const kind = exit === now.exits[i] ? "exit" : exit > now.exits[i] ? "after" : "";
      const cell = element("li", `cell ${kind}`);
      const value = data.certainty[at(i, exit)];
      const bar = element("i");
      bar.style.setProperty("--share", `${100 * share(value)}%`);
      cell.append(element("span", "", String(layer)), element("b", "", certain(value)), bar);
      cell.title = `layer ${layer}: ${named(data.predictions[at(i, exit)])}, certainty ${certain(value)}${kind === "exit" ? ", exits here" : kind === "after" ? ", not executed" : ""}`;
      cells.append(cell);
    });
    item.append(about, cells);
    return item;
  }));
  $("more").hidden = shownRows >= rows.length;
}

// Classes

function confusionOf(exits) {
  const count = side.classes.length;
  const matrix = Array.from({ length: count }, () => new Array(count).fill(0));
  for (let i = 0; i < data.rows; i++) matrix[data.labels[i]][data.predictions[at(i, exits[i])]]++;
  return matrix;
}

function scoresOf(matrix) {
  return matrix.map((counts, place) => {
    const [right, labels, predicted] = [counts[place], sum(counts), sum(matrix.map((one) => one[place]))];
    return { labels, precision: predicted ? right / predicted : null, recall: labels ? right / labels : null, f1: labels + predicted ? (2 * right) / (labels + predicted) : null };
  });
}

function drawClasses(now) {
  $("classes").hidden = !data.labels || side.regression;
  if ($("classes").hidden) return;
  $("classes").querySelector(".pair").classList.toggle("wide", side.classes.length > 6);
  const matrix = confusionOf(now.exits);
  const deep = scoresOf(confusionOf(new Uint8Array(data.rows).fill(data.last)));
  const rows = scoresOf(matrix).map((each, place) => [side.classes[place], String(each.labels), fixed(each.precision, 3), fixed(each.recall, 3), fixed(each.f1, 3), fixed(deep[place].f1, 3)]);
  table($("class-scores"), ["class", "inputs", "precision", "recall", "F1", "F1 at full depth"], rows, { caption: "Score of each class at the selected threshold" });
  if (side.classes.length > MATRIX_CLASSES) {
    const confusions = matrix.flatMap((counts, label) => counts.map((count, predicted) => [count, label, predicted]));
    const most = confusions.filter(([count, label, predicted]) => count && label !== predicted).sort((a, b) => b[0] - a[0]).slice(0, MATRIX_CLASSES);
    table($("confusion"), ["label", "prediction", "inputs"], most.map(([count, label, predicted]) => [side.classes[label], side.classes[predicted], String(count)]), { caption: "Most frequent confusions" });
    return;
  }
  table($("confusion"), ["label", ...side.classes], matrix.map((counts, label) => [side.classes[label], ...counts.map(String)]), { caption: "Confusion matrix: rows are labels, columns are predictions" });
  [...$("confusion").tBodies[0].rows].forEach((line, label) => {
    [...line.cells].slice(1).forEach((cell, predicted) => {
      const share = matrix[label][predicted] / Math.max(1, sum(matrix[label]));
      const color = label === predicted ? "var(--good)" : "var(--bad)";
      cell.style.background = share ? `color-mix(in srgb, ${color} ${Math.round(6 + 24 * share)}%, var(--card))` : "";
      cell.className = label === predicted ? "diagonal" : "";
    });
  });
}

// Reliability

function drawQuality() {
  const criteria = Object.keys(side.quality);
  $("reliability").hidden = !criteria.length;
  if (!criteria.length) return;
  const layers = side.quality[criteria[0]].map((each) => each.exit_layer);
  const cell = (each) => {
    if (!each) return "–";
    const value = each.auroc ?? each.rank_correlation;
    return value === null ? "–" : `${value.toFixed(3)}${each.ece === null ? "" : ` (${each.ece.toFixed(3)})`}`;
  };
  $("quality-caption").textContent = side.regression
    ? "Rank correlation of the certainty with the negative absolute error."
    : "Probability that a right prediction is more certain than a wrong one (AUROC; 0.5 is chance). In brackets the expected calibration error (ECE), if the certainty is a probability.";
  table($("quality"), ["exit layer", ...criteria], layers.map((layer, place) => [String(layer), ...criteria.map((name) => cell(side.quality[name][place]))]));
  const curves = (side.quality[side.criterion.name] ?? []).some((each) => each.bins.length) ? side.criterion.name : criteria.find((name) => side.quality[name].some((each) => each.bins.length));
  $("reliability-chart").closest("figure").hidden = !curves;
  if (!curves) return;
  const select = $("exit");
  select.replaceChildren(...layers.map((layer, place) => Object.assign(element("option", "", String(layer)), { value: place })));
  select.value = 0;
  const show = () => {
    const chosen = Number(select.value);
    const points = (place) => side.quality[curves][place].bins.map((bin) => [bin.certainty, bin.accuracy, plural(bin.examples, "input")]);
    const all = layers.flatMap((_, place) => points(place));
    const low = Math.max(0, Math.min(...all.map((p) => Math.min(p[0], p[1]))) - 0.03);
    draw($("reliability-chart"), {
      title: `Reliability of ${curves} at exit layer ${layers[chosen]}: share of right predictions against certainty`,
      x: { label: `certainty (${curves})`, low, high: 1.01 },
      y: { label: "share that is right", low, high: 1.02 },
      series: [
        { name: "calibrated certainty", color: COLORS.fixed, points: [[low, low], [1, 1]], dashed: true },
        ...layers.map((layer, place) => ({ name: `exit layer ${layer}`, color: COLORS.policy, points: points(place), dots: place === chosen, faint: place !== chosen })),
      ],
    });
  };
  select.onchange = show;
  show();
}

// Measured points, device, conditions

function drawMeasured() {
  $("measured").hidden = !side.points.length;
  if (!side.points.length) return;
  const full = side.points.filter((point) => point.kind === "layer").at(-1).latency.mean;
  const scored = side.points.some((point) => point.score !== null);
  const name = (point) => (point.kind === "layer" ? `${point.name}, all inputs` : point.kind === "threshold" ? `threshold ${point.name}` : point.name);
  const rows = side.points.map((point) => [
    name(point), fixed(point.average), ...["mean", "p50", "p90", "p99"].map((key) => fixed(point.latency[key])), `${fixed(full / point.latency.mean)}x`,
    ...(scored ? [fixed(point.score, 4)] : []), point.queries.toLocaleString("en"),
  ]);
  table($("points"), ["operating point", "average exit layer", "mean ms", "p50", "p90", "p99", "speed-up", ...(scored ? [side.metric] : []), "queries"], rows, { chosen: (place) => side.points[place].kind === "calibrated" });
}

function memoryEntries(start) {
  const known = Object.entries(start?.memory_by_layer ?? {}).filter(([, mib]) => mib !== null);
  if (!known.length) return [["Peak memory", null]];
  const note = start.lazy ? "deeper layers are not loaded" : "all layers are loaded";
  return [["Peak memory by deepest layer", known.map(([layer, mib]) => `${layer}:\u00a0${mib.toFixed(0)}`).join(" · "), `MiB, new process, ${note}; ${start.memory_before_mib.toFixed(0)} MiB without the bundle`]];
}

function drawDevice() {
  const { size_mib: size, start, throughput, energy } = side.telemetry;
  $("device").hidden = side.kind !== "bench";
  if (side.kind !== "bench") return;
  const rate = (batch) => {
    const found = throughput.filter((each) => each.batch_size === batch);
    const policy = found.find((each) => each.point === "calibrated") ?? found[0];
    const full = found.find((each) => each.point === "full depth");
    return policy ? [`Throughput, batch ${batch}`, `${policy.inputs_per_second.toFixed(0)} inputs/s`, full ? `full depth ${full.inputs_per_second.toFixed(0)}` : ""] : [`Throughput, batch ${batch}`, null];
  };
  const joules = energy.calibrated ?? energy["full depth"];
  pairs($("telemetry"), [
    ["Size on disk", size === null ? null : `${size.toFixed(1)} MiB`],
    ["Load time", start ? `${start.load_s.toFixed(2)} s` : null, start ? `new process, after ${start.import_s.toFixed(2)} s of imports` : ""],
    ["First prediction", start ? milliseconds(start.first_ms) : null, start ? `median of ${plural(start.starts, "start")}` : ""],
    rate(8), rate(32),
    ["Energy per input", joules ? `${joules.millijoules.toPrecision(3)} mJ` : null, joules ? `full depth ${energy["full depth"].millijoules.toPrecision(3)} mJ, idle power included` : "no power sensor that the process may read"],
    ...memoryEntries(start),
  ]);
  $("notes").replaceChildren(...side.notes.map((text) => element("li", "", text)));
}

function drawConditions() {
  $("condition-list").replaceChildren(...side.conditions.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
  $("reproduce").textContent = side.reproduce.join("\n");
  $("downloads").replaceChildren(...Object.entries(side.raw).map(([name, stored]) => {
    const button = Object.assign(element("button", "", `Download ${name}`), { type: "button" });
    button.addEventListener("click", () => download(name, stored));
    return button;
  }));
}

async function download(name, stored) {
  const stream = new Blob([bytes(stored)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const url = URL.createObjectURL(new Blob([await new Response(stream).arrayBuffer()], { type: "application/json" }));
  const link = Object.assign(element("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// Side by side

function comparedValues(each) {
  const point = (kind) => each.points.filter((one) => one.kind === kind).at(-1);
  const [policy, full] = [point("calibrated"), point("layer")];
  const { size_mib: size, start, throughput = [], energy = {} } = each.telemetry;
  const peak = Object.values(start?.memory_by_layer ?? {}).filter((mib) => mib !== null).at(-1);
  const rate = throughput.find((one) => one.batch_size === 32 && one.point === "calibrated");
  return [
    ["mean latency, calibrated, ms", policy?.latency.mean, 2], ["p90, calibrated, ms", policy?.latency.p90, 2], ["p99, calibrated, ms", policy?.latency.p99, 2],
    ["mean latency, full depth, ms", full?.latency.mean, 2], ["average exit layer", policy?.average, 2],
    [`${each.metric ?? "score"}, calibrated`, policy?.score, 4], [`${each.metric ?? "score"}, full depth`, full?.score, 4],
    ["throughput at batch 32, inputs/s", rate?.inputs_per_second, 0], ["energy per input, mJ", energy.calibrated?.millijoules, 2],
    ["size on disk, MiB", size, 1], ["load time, s", start?.load_s, 2], ["first prediction, ms", start?.first_ms, 1], ["peak memory, MiB", peak, 0],
  ];
}

function drawComparison() {
  $("compare").hidden = SIDES.length < 2;
  if (SIDES.length < 2) return;
  const [a, b] = SIDES;
  if (a.kind === "bench") {
    const second = comparedValues(b);
    const shown = (value, digits) => (value === null || value === undefined ? "not measured" : value.toFixed(digits));
    const rows = comparedValues(a).map(([name, value, digits], place) => {
      const other = second[place][1];
      const both = value !== null && value !== undefined && other !== null && other !== undefined && value !== 0;
      return [name, shown(value, digits), shown(other, digits), both ? `${(other / value).toFixed(3)}x` : "–"];
    });
    table($("compare-table"), ["", a.name, b.name, "second / first"], rows);
  } else {
    const rows = a.pass && b.pass ? [a, b].map((each) => [each.name, each.metric, ...[0, -1].map((i) => fixed(each.pass.layer_scores.at(i), 4))]) : [];
    table($("compare-table"), ["evaluation", "metric", "first layer", "last layer"], rows);
  }
  const others = new Map(b.conditions);
  const differences = a.conditions.flatMap(([name, value]) => {
    const other = others.get(name);
    return !["self-check", "thresholds"].includes(name) && other !== value ? [`${name} differs: ${value}; ${other}`] : [];
  });
  $("compare-differences").replaceChildren(...differences.map((text) => element("li", "note", text)));
  const lines = SIDES.flatMap((each, place) => {
    const measured = each.points.filter((point) => ["threshold", "calibrated"].includes(point.kind)).sort((one, other) => one.average - other.average);
    const fixedExits = each.points.filter((point) => point.kind === "layer");
    const y = (point) => point.score ?? point.average;
    const color = place ? COLORS.second : COLORS.policy;
    return [
      { name: `${each.name}: thresholds`, color, dots: true, points: measured.map((point) => [point.latency.mean, y(point), point.name]) },
      { name: `${each.name}: fixed exits`, color, dashed: true, points: fixedExits.map((point) => [point.latency.mean, y(point), point.name]) },
    ];
  }).filter((each) => each.points.length);
  if (lines.length) {
    const all = lines.flatMap((each) => each.points);
    draw($("compare-chart"), {
      title: "Measured operating points of both benches",
      x: { label: "mean latency, ms", low: 0, high: 1.05 * Math.max(...all.map((p) => p[0])) },
      y: { label: a.metric ?? "average exit layer", ...axis(all.map((p) => p[1])) },
      series: lines,
    });
  }
  radios($("sides"), "side", SIDES.map((each, place) => [String(place), each.name]), String(SIDES.indexOf(side)), (place) => show(SIDES[Number(place)]));
}

// Updates

function update() {
  const now = summary(state);
  $("threshold").value = state.position;
  $("threshold-value").textContent = thresholdText();
  $("threshold").setAttribute("aria-valuetext", `${thresholdText()}, average exit layer ${fixed(now.average)}`);
  $("to-calibrated").setAttribute("aria-pressed", String(state.calibrated));
  $("to-kept").setAttribute("aria-pressed", String(!state.calibrated && state.position === keptPosition()));
  $("to-full").setAttribute("aria-pressed", String(!state.calibrated && state.position === data.thresholds.length - 1));
  drawNumbers(now);
  drawTradeOff(now);
  drawDistribution(now);
  drawHistogram(now);
  drawRows(now);
  drawClasses(now);
}

function move(position, calibrated = false) {
  state = { position, calibrated };
  shownRows = SHOWN_ROWS;
  update();
}

function show(chosen) {
  side = chosen;
  data = decoded(side.pass);
  charts.clear();
  drawHead();
  drawComparison();
  drawVerdicts();
  drawQuality();
  drawMeasured();
  drawDevice();
  drawConditions();
  for (const id of ["explore", "inputs", "classes"]) $(id).hidden = !data;
  if (!data) return;
  const oneExit = data.exits.length === 1;
  $("explore").hidden = oneExit;
  $("axis").parentElement.hidden = !data.latency;
  $("explore-caption").textContent = [
    "Every number below follows the threshold.",
    data.latency ? "The calibrated policy was measured. Other latencies are composed of those of each input at each exit (the median of its queries that exited there)." : "",
    side.composition ? `Composed and measured means differ by at most ${percent(side.composition.largest)} at the ${side.composition.points} measured thresholds.` : "",
    "A threshold that is chosen here looks better than it is on new inputs: calibrate on other data.",
  ].join(" ");
  $("threshold").max = data.thresholds.length - 1;
  $("to-calibrated").disabled = !data.calibrated;
  $("to-kept").disabled = keptPosition() === null;
  curvePoints = curve();
  state = initialState();
  if (!lists().some(([name]) => name === list)) list = "early";
  radios($("lists"), "list", lists(), list, (name) => { list = name; shownRows = SHOWN_ROWS; drawRows(summary(state)); });
  update();
}

$("threshold").addEventListener("input", () => move(Number($("threshold").value)));
$("axis").addEventListener("change", update);
$("to-calibrated").addEventListener("click", () => move(data.calibrated.position, true));
$("to-kept").addEventListener("click", () => move(keptPosition()));
$("to-full").addEventListener("click", () => move(data.thresholds.length - 1));
$("more").addEventListener("click", () => { shownRows += 20; drawRows(summary(state)); });
show(side);
