// Colours, numbers for people, and how things are put on the page.

const $ = (id) => document.getElementById(id);

// Paul Tol's "bright" scheme, told apart with every kind of colour vision; a little lighter on dark ground.
const LIGHT = { owners: ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"], rest: "#9b9890" };
const DARK = { owners: ["#4f86bf", "#e26a7c", "#38994f", "#cfbd50", "#66c1e2", "#bb4f8f"], rest: "#85827b" };
const dark = matchMedia("(prefers-color-scheme: dark)");

// Owners of a device in the order in which they are stacked: those that held most have colours of their own and come in the
// order in which they began to hold, so that what stays lies below what comes and goes; the others share a colour, on top.
const rank = new Map();
T.devices.forEach((_, device) => {
  const peak = (account) => held[account].bytes.reduce((most, bytes) => Math.max(most, bytes), 0);
  const mine = T.accounts.map((_, account) => account).filter((account) => deviceOf(account) === device);
  const peaks = new Map(mine.map((account) => [account, peak(account)]));
  const since = (account) => held[account].ns[0] ?? Infinity;
  mine.sort((a, b) => peaks.get(b) - peaks.get(a) || a - b);
  const first = mine.slice(0, LIGHT.owners.length).sort((a, b) => (since(a) === since(b) ? a - b : since(a) - since(b)));
  [...first, ...mine.slice(first.length)].forEach((account, i) => rank.set(account, i));
});

function colour(account) {
  const { owners, rest } = dark.matches ? DARK : LIGHT;
  return owners[rank.get(account)] ?? rest;
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

// As `granule` prints them: rounded down to tenths.
function bytes(n) {
  let unit = 0;
  while (n >= 1024 ** (unit + 1) && unit < UNITS.length - 1) unit++;
  if (unit === 0) return `${n} B`;
  return `${(Math.floor((n * 10) / 1024 ** unit) / 10).toFixed(1)} ${UNITS[unit]}`;
}

function duration(ns) {
  if (ns < 1e3) return `${Math.round(ns)} ns`;
  if (ns < 1e6) return `${(ns / 1e3).toFixed(1)} µs`;
  if (ns < 1e9) return `${(ns / 1e6).toFixed(1)} ms`;
  return `${(ns / 1e9).toFixed(2)} s`;
}

// A moment, exactly enough to tell it from its neighbours.
function moment(ns) {
  if (END < 1e7) return `${(ns / 1e3).toFixed(3)} µs`;
  return END < 1e9 ? `${(ns / 1e6).toFixed(3)} ms` : `${(ns / 1e9).toFixed(END < 1e11 ? 4 : 2)} s`;
}

const count = (n) => n.toLocaleString("en-US");
const many = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;
const percent = (part, whole) => (whole > 0 ? `${((100 * part) / whole).toFixed(part < whole / 100 ? 1 : 0)}%` : "–");

// An element; text is only ever text.
function element(tag, { text, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

function swatch(account) {
  const made = element("i", { class: "swatch" });
  made.style.background = colour(account);
  return made;
}

// Sizes a canvas to its box at the screen's own resolution; answers a context that counts in CSS pixels.
function context(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const drawing = canvas.getContext("2d");
  drawing.setTransform(scale, 0, 0, scale, 0, 0);
  drawing.clearRect(0, 0, width, height);
  drawing.font = "11px ui-sans-serif, system-ui, sans-serif";
  return drawing;
}

// The longest beginning of a text that is not wider than `width`.
function fit(drawing, text, width) {
  if (drawing.measureText(text).width <= width) return text;
  let shown = text.slice(0, Math.max(0, Math.floor(width / 4)));
  while (shown && drawing.measureText(`${shown}…`).width > width) shown = shown.slice(0, -1);
  return shown && `${shown}…`;
}

// What everything shows. Whoever changes it calls `changed`.
const state = { device: 0, t: 0, from: 0, to: 1, byChange: false, lit: null, solo: null };
