// What can be dragged on the page "What is a logit?". No dependencies; works from a file, offline.
"use strict";

// The mathematics, written as the library writes it: with log1p, and differences to the largest.

const sigmoid = (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));

// log(p / (1 - p)); near 1/2 the logarithm of a quotient close to 1 would lose digits.
const logit = (p) =>
  p > 0.25 && p < 0.75 ? Math.log1p((2 * p - 1) / (1 - p)) : Math.log(p) - Math.log1p(-p);

const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

const softCap = (z, cap) => cap * Math.tanh(z / cap);

// The largest of z and log(sum of exp(z_j) / exp(largest)), for finite logits. Kept apart, because
// their sum would lose the second one's digits.
function topAndRest(z) {
  const top = z.indexOf(Math.max(...z));
  const rest = z.reduce((sum, x, j) => sum + (j === top ? 0 : Math.exp(x - z[top])), 0);
  return [z[top], Math.log1p(rest)];
}

const logsumexp = (z) => topAndRest(z).reduce((top, rest) => top + rest);

// Each class against all others together.
const classLogOdds = (z) =>
  z.map((x, k) => {
    const [top, rest] = topAndRest(z.filter((_, j) => j !== k));
    return x - top - rest;
  });

const softmax = (z) => classLogOdds(z).map(sigmoid);

// -log p_y: 2e-9 at a margin of 20, where log of the rounded p would be 0.
const crossEntropy = (z, y) => softplus(-classLogOdds(z)[y]);

// In the order of linear_softmax_cross_entropy: the cap first.
const shape = (z, cap, temperature) => z.map((x) => (cap ? softCap(x, cap) : x) / temperature);

// Showing it.

function format(x, digits = 3) {
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  const size = Math.abs(x);
  const text = size !== 0 && size < 0.001 ? x.toExponential(1) : x.toFixed(digits);
  return text.replace("-", "−").replace("e−", "e-");
}

// p : 1 - p with the smaller one as 1.
function odds(x) {
  if (!Number.isFinite(x)) return x > 0 ? "1 : 0" : "0 : 1";
  const ratio = Math.exp(Math.abs(x));
  const digits = ratio < 10 ? 2 : 1;
  const many = ratio < 100 ? ratio.toFixed(digits) : Math.round(ratio).toLocaleString("en");
  return x >= 0 ? `${many} : 1` : `1 : ${many}`;
}

function make(parent, tag, attributes = {}, text = "") {
  const svg = ["svg", "path", "circle", "line", "text"].includes(tag);
  const node = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return parent.appendChild(node);
}

// A labelled slider with its value beside it. say(value) is what is shown, and read aloud.
function slider(parent, id, text, [min, max, step, start], say, changed) {
  const row = make(parent, "div", { class: "logit-row" });
  make(row, "label", { for: id }, text);
  const input = make(row, "input", { type: "range", id, min, max, step, value: start });
  const shown = make(row, "output", { for: id });
  const show = () => {
    shown.textContent = say(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => {
    show();
    changed();
  });
  show();
  return {
    get: () => Number(input.value),
    set: (value) => {
      input.value = value;
      show();
    },
  };
}

// One probability: three scales of the same thing.
function scale(box) {
  const picture = make(box, "svg", { viewBox: "-6.6 -0.15 13.2 1.3", "aria-hidden": "true" });
  picture.setAttribute("preserveAspectRatio", "none");
  const at = (x) => `${x},${1 - sigmoid(x)}`;
  const points = Array.from({ length: 133 }, (_, i) => at(-6.6 + i / 10));
  make(picture, "line", { x1: -6.6, x2: 6.6, y1: 0.5, y2: 0.5, class: "logit-axis" });
  make(picture, "line", { x1: 0, x2: 0, y1: -0.15, y2: 1.15, class: "logit-axis" });
  make(picture, "path", { d: `M${points.join("L")}`, class: "logit-curve" });
  // A line of no length with round ends is a dot that the stretched picture doesn't squeeze.
  const dot = make(picture, "path", { class: "logit-dot" });

  let x = logit(0.55);
  const said = make(box, "p", { class: "logit-said", "aria-live": "polite" });
  const show = () => {
    const place = Math.min(Math.max(x, -6.5), 6.5);
    dot.setAttribute("d", `M${at(place)}h0`);
    said.textContent = `probability ${format(sigmoid(x))} · odds ${odds(x)} · logit ${format(x)}`;
  };
  const probability = slider(box, "logit-p", "probability", [0, 1, 0.001, 0.55], format, () => {
    x = logit(probability.get());
    ofLogit.set(Math.min(Math.max(x, -10), 10));
    show();
  });
  const say = (value) => format(value, 2);
  const ofLogit = slider(box, "logit-x", "logit", [-10, 10, 0.01, x.toFixed(2)], say, () => {
    x = ofLogit.get();
    probability.set(sigmoid(x));
    show();
  });
  show();
}

// Three logits: softmax, temperature, soft cap and loss.
function classes(box) {
  const names = ["a", "b", "c"];
  const say = (value) => format(value, 1);
  const logits = [2, 1, 0].map((start, k) =>
    slider(box, `logit-z${k}`, `logit of ${names[k]}`, [-20, 20, 0.1, start], say, () => show()),
  );
  const buttons = make(box, "p", { class: "logit-buttons" });
  for (const shift of [-1, 1]) {
    const text = shift < 0 ? "all − 1" : "all + 1";
    const button = make(buttons, "button", { type: "button" }, text);
    button.addEventListener("click", () => {
      const moved = logits.map((z) => z.get() + shift);
      if (moved.every((z) => Math.abs(z) <= 20)) logits.forEach((z, k) => z.set(moved[k]));
      show();
    });
  }
  // The slider moves by factors: the middle is 1.
  const factor = (value) => 10 ** value;
  const sayFactor = (value) => format(factor(value), 2);
  const powers = [-1, 1, 0.01, 0];
  const id = "logit-temperature";
  const temperature = slider(box, id, "temperature", powers, sayFactor, () => show());
  const none = 30.5;
  const sayCap = (value) => (value >= none ? "none" : format(value, 1));
  const cap = slider(box, "logit-cap", "soft cap", [0.5, none, 0.5, none], sayCap, () => show());

  const choice = make(box, "fieldset", { class: "logit-truth" });
  make(choice, "legend", {}, "the truth");
  const truths = names.map((name, k) => {
    const label = make(choice, "label");
    const input = make(label, "input", { type: "radio", name: "logit-truth", value: k });
    label.append(` ${name}`);
    input.addEventListener("change", () => show());
    return input;
  });
  truths[0].checked = true;

  const table = make(make(box, "div", { class: "logit-scroll" }), "table");
  const head = make(make(table, "thead"), "tr");
  for (const title of ["class", "shaped logit", "probability", "", "log-odds"])
    make(head, "th", { scope: "col" }, title);
  const body = make(table, "tbody");
  const rows = names.map((name) => {
    const row = make(body, "tr");
    make(row, "th", { scope: "row" }, name);
    const [shaped, p] = [make(row, "td"), make(row, "td")];
    const bar = make(make(row, "td", { class: "logit-bar", "aria-hidden": "true" }), "div");
    return { shaped, p, bar, logOdds: make(row, "td") };
  });
  const said = make(box, "p", { class: "logit-said", "aria-live": "polite" });

  function show() {
    const limit = cap.get() >= none ? 0 : cap.get();
    const z = shape(logits.map((one) => one.get()), limit, factor(temperature.get()));
    const p = softmax(z);
    const logOdds = classLogOdds(z);
    rows.forEach((row, k) => {
      row.shaped.textContent = format(z[k], 2);
      row.p.textContent = format(p[k]);
      row.bar.style.width = `${100 * p[k]}%`;
      row.logOdds.textContent = format(logOdds[k], 2);
    });
    const y = truths.findIndex((truth) => truth.checked);
    said.textContent = `loss −log p of ${names[y]} = ${format(crossEntropy(z, y))}`;
  }
  show();
}

if (typeof module !== "undefined") {
  const rows = { logsumexp, classLogOdds, softmax, crossEntropy, shape };
  module.exports = { sigmoid, logit, softplus, softCap, ...rows };
} else {
  const start = () => {
    for (const [id, fill] of [["logit-scale", scale], ["logit-classes", classes]]) {
      const box = document.getElementById(id);
      if (box) fill(box);
    }
  };
  document.addEventListener("DOMContentLoaded", start);
}
