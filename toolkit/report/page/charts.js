"use strict";

// Line charts as inline SVG. A chart is drawn at the width of its container, so that text keeps its size on a phone.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 300;
const MARGIN = { left: 56, right: 16, top: 12, bottom: 40 };
const charts = new Map(); // container -> its description, to draw it again at another width

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function svg(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Round numbers between low and high, some four to six of them.
function ticks(low, high) {
  const raw = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= raw);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) found.push(tick);
  return { values: found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / power === 2.5 ? 1 : 0)) };
}

// chart: { title, x: {label, low, high}, y: {label, low, high}, series: [{name, color, points, dashed, dots, step, faint}], markers:
// [{x, y, color, label}] }. The data of the series are also in the page's tables.
function draw(container, chart) {
  charts.set(container, chart);
  const width = Math.max(container.clientWidth, 260);
  const [left, right, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, HEIGHT - MARGIN.bottom];
  const span = (axis) => axis.high - axis.low || 1;
  const px = (x) => left + ((x - chart.x.low) / span(chart.x)) * (right - left);
  const py = (y) => bottom - ((y - chart.y.low) / span(chart.y)) * (bottom - top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": chart.title });

  const [xt, yt] = [ticks(chart.x.low, chart.x.high), ticks(chart.y.low, chart.y.high)];
  for (const y of yt.values) {
    root.append(svg("line", { class: "gridline", x1: left, x2: right, y1: py(y), y2: py(y) }));
    root.append(svg("text", { x: left - 8, y: py(y) + 4, "text-anchor": "end" }, y.toFixed(yt.digits)));
  }
  for (const x of xt.values) {
    root.append(svg("line", { class: "gridline", x1: px(x), x2: px(x), y1: top, y2: bottom }));
    root.append(svg("text", { x: px(x), y: bottom + 18, "text-anchor": "middle" }, x.toFixed(xt.digits)));
  }
  root.append(svg("line", { class: "axisline", x1: left, x2: right, y1: bottom, y2: bottom }));
  root.append(svg("text", { x: (left + right) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, chart.x.label));
  const middle = (top + bottom) / 2;
  root.append(svg("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, chart.y.label));

  const clip = `clip-${container.id}`;
  const box = svg("clipPath", { id: clip });
  box.append(svg("rect", { x: left - 6, y: top - 6, width: right - left + 12, height: bottom - top + 12 }));
  const plot = svg("g", { "clip-path": `url(#${clip})` });
  for (const each of chart.series) {
    const path = each.points.map(([x, y], i) => {
      const command = i === 0 ? "M" : each.step ? `H${px(x).toFixed(1)}V` : "L";
      return command.endsWith("V") ? `${command}${py(y).toFixed(1)}` : `${command}${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
    });
    const style = `stroke:${each.color}`;
    const line = svg("path", { class: "series", d: path.join(""), style, opacity: each.faint ? 0.3 : 1 });
    if (each.dashed) line.setAttribute("stroke-dasharray", "5 4");
    plot.append(line);
    if (each.dots) for (const [x, y] of each.points) plot.append(svg("circle", { cx: px(x), cy: py(y), r: 3.5, style: `fill:${each.color}` }));
  }
  root.append(box, plot);
  for (const each of chart.markers ?? []) {
    const [x, y] = [px(Math.min(each.x, chart.x.high)), py(each.y)];
    root.append(svg("circle", { class: "marker", cx: x, cy: y, r: 7, style: `fill:${each.color}` }));
    const middle = Math.min(right - 30, Math.max(left + 30, x));
    root.append(svg("text", { class: "markerlabel", x: middle, y: y + (y > bottom - 34 ? -14 : 24), "text-anchor": "middle" }, each.label));
  }

  const readout = element("p", "readout");
  root.addEventListener("pointermove", (event) => {
    const area = root.getBoundingClientRect();
    const at = [event.clientX - area.left, event.clientY - area.top];
    let nearest = null;
    for (const each of chart.series) {
      if (each.faint) continue;
      for (const [x, y, note] of each.points) {
        const distance = Math.hypot(px(x) - at[0], py(y) - at[1]);
        if (distance < (nearest?.distance ?? 40)) nearest = { distance, each, x, y, note };
      }
    }
    const text = (value, digits) => value.toFixed(digits + 2);
    readout.textContent = nearest
      ? `${nearest.each.name}${nearest.note ? `, ${nearest.note}` : ""}: ${chart.x.label} ${text(nearest.x, xt.digits)}, ${chart.y.label} ${text(nearest.y, yt.digits)}`
      : "";
  });
  root.addEventListener("pointerleave", () => { readout.textContent = ""; });

  const legend = element("ul", "legend");
  for (const each of chart.series.filter((one) => !one.faint)) {
    const item = element("li");
    const key = svg("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" });
    key.append(svg("line", { x1: 0, x2: 22, y1: 5, y2: 5, style: `stroke:${each.color}`, "stroke-width": 2, ...(each.dashed ? { "stroke-dasharray": "5 4" } : {}) }));
    if (each.dots) key.append(svg("circle", { cx: 11, cy: 5, r: 3.5, style: `fill:${each.color}` }));
    item.append(key, each.name);
    legend.append(item);
  }
  container.replaceChildren(root, legend, readout);
}

function drawAgain() {
  for (const [container, chart] of charts) if (container.clientWidth) draw(container, chart);
}
let resizing;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(drawAgain, 100); });
addEventListener("beforeprint", drawAgain);
