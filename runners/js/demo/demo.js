// The demo page: the prediction of every layer, until one is certain enough.
import { EarlyExitRunner } from "berxit";

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const start = performance.now();
let runner;
let ready;
let first = true;

function fetched() {
  const bytes = performance.getEntriesByType("resource").reduce((sum, each) => sum + each.encodedBodySize, 0);
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function milliseconds(value) {
  return `${value.toFixed(1)} ms`;
}

function row(layer, prediction) {
  const line = document.createElement("tr");
  const cells = prediction
    ? [layer, prediction.name, "", prediction.certainty.toFixed(3), milliseconds(prediction.latencyMs)]
    : [layer, "not needed", "", "", ""];
  for (const text of cells) line.append(Object.assign(document.createElement("td"), { textContent: text }));
  if (prediction) {
    const bar = Object.assign(document.createElement("div"), { className: "bar" });
    bar.style.width = `${100 * Math.min(1, prediction.share)}%`;
    line.cells[2].append(bar);
  }
  line.className = prediction ? (prediction.stoppedBy ? "exit" : "") : "skipped";
  line.dataset.layer = layer;
  return line;
}

/** The prediction in words. */
function shownLabel({ label, labels, spans }, text) {
  if (spans) return spans.map((each) => `${each.label}: ${text.slice(each.start, each.end)}`).join(", ") || "no spans";
  if (labels) return labels.join(", ") || "no label";
  return typeof label === "number" ? label.toFixed(3) : label;
}

async function predict() {
  const pair = runner.manifest.model.text_columns.length === 2;
  const text = pair ? [$("first").value, $("second").value] : $("first").value;
  const seen = [];
  try {
    const options = { onExit: (prediction) => seen.push(prediction) };
    if (!$("certainty").hidden && $("threshold").dataset.changed) options.threshold = Number($("threshold").value);
    const prediction = await runner.predict(text, options);
    const { exitLayer, latencyMs } = prediction;
    const shown = new Map(seen.map((each) => [each.exitLayer, {
      ...each, name: shownLabel(each, text), share: each.scores[each.label] ?? each.certainty,
    }]));
    const layers = runner.manifest.segments.slice(1).map((segment) => segment.layer);
    $("layers").replaceChildren(...layers.map((layer) => row(layer, shown.get(layer))));
    $("result").textContent =
      `${shownLabel(prediction, text)}, after ${exitLayer} of ${layers.at(-1)} layers and ${milliseconds(latencyMs)}`;
    document.body.dataset.latency = latencyMs;
    document.body.dataset.exitLayer = exitLayer;
  } catch (error) {
    $("result").textContent = error.message;
  }
  if (first) {
    first = false;
    $("status").textContent = `${ready} Fetched before the first prediction: ${fetched()}.`;
    if (!query.has("rows")) await runner.warmUp(); // the rest of the model, so that no later text waits for the network
  }
  document.body.dataset.predictions = 1 + Number(document.body.dataset.predictions ?? 0);
}

function showThreshold(value) {
  $("threshold").value = value;
  $("limit").textContent = $("threshold").dataset.changed ? Number(value).toFixed(3) : "the calibrated threshold";
}

try {
  const bundle = new URL(query.get("bundle") ?? "bundle/", location.href);
  const backend = query.get("backend") ?? "wasm";
  runner = await EarlyExitRunner.load(bundle, { backend, lazy: true });
  const { model, policy } = runner.manifest;
  ready = `Ready after ${((performance.now() - start) / 1e3).toFixed(1)} s: ${model.layers} layers, ${runner.manifest.precision}, ${backend}.`;
  $("status").textContent = ready;
  $("second").hidden = model.text_columns.length === 1;
  $("second").required = !$("second").hidden;
  if (["confidence", "lte", "learned"].includes(policy.criterion)) {
    const typical = policy.thresholds.flat().sort((a, b) => a - b)[policy.thresholds.length >> 1] ?? 1;
    $("certainty").hidden = false;
    $("threshold").addEventListener("input", (event) => {
      $("threshold").dataset.changed = "yes";
      showThreshold(event.target.value);
      if (!first) void predict();
    });
    $("calibrated").addEventListener("click", () => {
      delete $("threshold").dataset.changed;
      showThreshold(typical);
      if (!first) void predict();
    });
    showThreshold(typical);
  }
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    void predict();
  });
  $("predict").disabled = false;
} catch (error) {
  $("status").textContent = error.message;
}
