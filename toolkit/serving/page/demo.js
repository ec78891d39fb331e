"use strict";

const PAUSE_MS = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 110; // between two layers on the screen
const WAIT_MS = 250; // after the last key or move of a slider
const SHOWN_CLASSES = 5;
const FINER = 3; // exponent of the threshold slider
const [SHORTEST_MS, LONGEST_MS] = [0.1, 100]; // ends of the deadline slider; its last position is "none"

const $ = (id) => document.getElementById(id);
let info; // of /demo/info
let threshold = null; // null: the calibrated thresholds
let steps = []; // predictions of all exits for the current text
let running = 0; // number of the latest run; results of older ones are ignored
let timer;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Position of a certainty on a bar: 0 is the least certain.
function place(certainty) {
  const [low, high] = info.range;
  return Math.min(1, Math.max(0, (certainty - low) / (high - low)));
}

// Threshold of an exit. It may depend on the class that the exit predicts.
function thresholdAt(exit, step) {
  if (threshold !== null) return threshold;
  const calibrated = info.thresholds[exit];
  if (!Array.isArray(calibrated)) return calibrated;
  return calibrated[step ? step.probs.indexOf(Math.max(...step.probs)) : 0];
}

const shown = (value) => (info.step === 1 ? String(value) : value.toFixed(4));
const milliseconds = (value) => `${value.toFixed(value < 10 ? 2 : 1)} ms`;
const named = (prediction) => (prediction.label === null ? prediction.probs[0].toFixed(3) : prediction.label);

function passes(exit, step) {
  if (exit === info.exits.length - 1) return true;
  if (info.off.includes(info.exits[exit])) return false;
  const limit = thresholdAt(exit, step);
  const [one, other] = info.higher_is_more_certain ? [step.certainty, limit] : [limit, step.certainty];
  return one > other || (info.inclusive && one === other);
}

function input() {
  const texts = [...document.querySelectorAll("#fields textarea")].map((field) => field.value);
  if (texts.some((text) => !text.trim())) return null;
  return texts.length === 1 ? texts[0] : [texts];
}

function deadline() {
  const position = Number($("deadline").value);
  return position === 100 ? null : SHORTEST_MS * (LONGEST_MS / SHORTEST_MS) ** (position / 99);
}

async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!answer.ok) {
    const failed = await answer.json().catch(() => null);
    throw new Error(failed?.error?.message ?? `the service answered with status ${answer.status}`);
  }
  return answer;
}

// Server-sent events of a response, as [name, data].
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const [name, data] = block.split("\n").map((line) => line.slice(line.indexOf(": ") + 2));
      yield [name, JSON.parse(data)];
    }
  }
}

function show(error) {
  $("error").hidden = error === null;
  $("error").textContent = error === null ? "" : error.message;
}

function drawLayers(exitLayer) {
  const rows = info.exits.map((layer, exit) => {
    const step = steps[exit];
    const row = element("li", step ? "" : "waiting");
    row.append(element("span", "title", `Layer ${layer}`), element("span", "of-layer", step ? named(step) : "…"));
    const track = element("span", "track");
    track.setAttribute("aria-hidden", "true");
    track.append(element("span", "fill"));
    if (info.range && exit < info.exits.length - 1 && !info.off.includes(layer)) {
      track.append(element("span", "mark"));
      track.lastChild.style.left = `${100 * place(thresholdAt(exit, step))}%`;
    }
    if (step && info.range) track.firstChild.style.width = `${100 * place(step.certainty)}%`;
    row.append(track, element("span", "number", step ? shown(step.certainty) : ""));
    row.append(element("span", "time", step ? milliseconds(step.latency_ms) : ""));
    let note = "";
    if (exitLayer !== null && layer === exitLayer) [row.className, note] = ["exit", "exits here"];
    else if (exitLayer !== null && layer > exitLayer) [row.className, note] = ["skipped", "not needed"];
    else if (exitLayer !== null && step) note = "continues";
    row.append(element("span", "note", note));
    return row;
  });
  $("layers").replaceChildren(...rows);
}

function drawClasses(prediction) {
  if (prediction.label === null) return $("classes").replaceChildren();
  const order = info.labels.map((label, number) => [prediction.probs[number], label]).sort((a, b) => b[0] - a[0]);
  const rows = order.slice(0, SHOWN_CLASSES).map(([probability, label]) => {
    const row = element("li");
    const track = element("span", "track");
    track.append(element("span", "fill"));
    track.firstChild.style.width = `${100 * probability}%`;
    row.append(element("span", "", label), element("span", "number", `${(100 * probability).toFixed(1)} %`), track);
    row.firstChild.title = label;
    return row;
  });
  $("classes").replaceChildren(...rows);
}

const REASONS = {
  certainty: "Its certainty passed the threshold.",
  deadline: "The next exit would be too late.",
  last_layer: "No earlier layer was certain enough.",
};

function drawVerdict(prediction) {
  $("label").textContent = named(prediction);
  $("label").className = "";
  $("reason").textContent = prediction.late ? "The first exit was later than the deadline." : REASONS[prediction.stopped_by];
  drawClasses(prediction);
  $("exit").replaceChildren(`${prediction.exit_layer} `, element("small", "", `of ${info.layers}`));
  $("latency").textContent = milliseconds(prediction.latency_ms);
  const deepest = steps[info.exits.length - 1];
  if (!deepest) return;
  $("depth").textContent = milliseconds(deepest.latency_ms);
  $("agreement").textContent =
    named(deepest) === named(prediction) ? "Full depth gives the same prediction." : `Full depth predicts ${named(deepest)}.`;
}

// Asks the service for the prediction with the current threshold and deadline.
async function predict(number) {
  const body = { input: input(), deadline_ms: deadline() };
  if (threshold !== null) body.threshold = threshold;
  const answer = await (await post("/v1/classify", body)).json();
  if (number !== running) return;
  drawVerdict(answer.data[0]);
  drawLayers(answer.data[0].exit_layer);
}

async function run() {
  clearTimeout(timer);
  if (input() === null) return;
  const number = ++running;
  $("verdict").setAttribute("aria-busy", "true");
  show(null);
  try {
    steps = [];
    drawLayers(null);
    let found = null;
    for await (const [name, data] of eventsOf(await post("/demo/stream", { input: input() }))) {
      if (number !== running) return;
      if (name === "error") throw new Error(data.error.message);
      if (name !== "layer") continue;
      steps.push(data);
      if (found === null && passes(steps.length - 1, data)) found = data.exit_layer;
      drawLayers(found);
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
    if (number === running) await predict(number);
  } catch (error) {
    if (number === running) show(error);
  } finally {
    if (number === running) $("verdict").setAttribute("aria-busy", "false");
  }
}

function later(action) {
  clearTimeout(timer);
  timer = setTimeout(action, WAIT_MS);
}

function settingsChanged() {
  $("threshold-value").textContent = threshold === null ? (info.calibrated ? "calibrated" : "full depth") : shown(threshold);
  $("calibrated").disabled = threshold === null;
  const limit = deadline();
  $("deadline-value").textContent = limit === null ? "none" : milliseconds(limit);
  if (steps.length < info.exits.length) return;
  drawLayers(info.exits.find((layer, exit) => passes(exit, steps[exit])));
  later(() => predict(++running).catch(show));
}

// The slider is finer towards "never exits early", where most certainties are.
function moveThreshold() {
  const [low, high] = info.range;
  const value = high + (low - high) * (1 - Number($("threshold").value) / 1000) ** FINER;
  threshold = info.step === 1 ? Math.round(value) : value;
  settingsChanged();
}

function resetThreshold() {
  threshold = null;
  const first = info.range && info.thresholds.length ? place(thresholdAt(0)) : 1;
  $("threshold").value = 1000 * (1 - (1 - first) ** (1 / FINER));
  settingsChanged();
}

function addFields() {
  const pair = info.text_columns.length === 2;
  info.text_columns.forEach((column, number) => {
    const label = element("label", "", pair ? `${number ? "Second" : "First"} text` : "Text");
    const field = element("textarea");
    field.rows = 2;
    field.addEventListener("input", () => later(run));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        run();
      }
    });
    label.append(field);
    $("fields").append(label);
  });
  for (const texts of info.examples) {
    const button = element("button", "", texts.join("  |  "));
    button.type = "button";
    button.title = texts.join("\n");
    button.addEventListener("click", () => {
      document.querySelectorAll("#fields textarea").forEach((field, number) => (field.value = texts[number]));
      run();
    });
    $("examples").append(button);
  }
}

async function start() {
  info = await (await fetch("/demo/info")).json();
  document.title = `${info.id} – berxit demo`;
  $("name").textContent = info.id;
  $("about").textContent =
    `${info.task === "custom" ? "" : `${info.task}, `}${info.kind}, ${info.layers} layers, ${info.precision}, ${info.backend}, ` +
    `${info.threads} ${info.threads === 1 ? "thread" : "threads"}`;
  $("certainty-of").textContent = `Criterion: ${info.criterion}.`;
  $("threshold-control").hidden = !info.range;
  addFields();
  drawLayers(null);
  resetThreshold();
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("threshold").addEventListener("input", moveThreshold);
  $("deadline").addEventListener("input", settingsChanged);
  $("calibrated").addEventListener("click", resetThreshold);
}

start().catch(show);
