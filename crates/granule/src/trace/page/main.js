// What happens when, and the first look.

const changed = (() => {
  let asked = 0;
  let all = false;
  // Once a frame, whatever changed.
  const soon = (whole) => {
    all ||= whole;
    asked ||= requestAnimationFrame(() => {
      const everything = all;
      [asked, all] = [0, false];
      if (everything) timeline.draw(); else timeline.cursor();
      map.draw();
      tables.owners.now();
      tables.largest();
    });
  };
  return {
    time: () => soon(false),
    light: () => soon(true),
    view: () => soon(true),
    all: () => {
      tables.tiles();
      tables.owners();
      tables.left();
      tables.histogram();
      map.layout();
      soon(true);
    },
  };
})();

function go(t) {
  state.t = Math.min(END, Math.max(0, t));
  hideTip();
  const before = state.from;
  timeline.follow();
  if (state.from === before) changed.time(); else changed.view();
}

function zoom(times) {
  timeline.zoom(times);
  changed.view();
}

// The next or last time of a sorted list, from where the cursor is.
function neighbour(list, forward) {
  if (list.length === 0) return state.t;
  if (forward) return list[Math.min(upTo(list, state.t), list.length - 1)];
  let n = upTo(list, state.t) - 1;
  if (n >= 0 && list[n] === state.t) n--;
  return list[Math.max(n, 0)];
}

const play = (() => {
  const SECONDS = 14;
  let last = null;
  const tick = (now) => {
    if (last === null) return;
    const u = timeline.unit(state.t) + ((now - last) / 1000 / SECONDS) * (state.to - state.from);
    last = now;
    go(timeline.time(u));
    if (u >= 1) toggle(); else requestAnimationFrame(tick);
  };
  function toggle() {
    last = last === null ? performance.now() : null;
    $("play").textContent = last === null ? "Play" : "Pause";
    $("play").setAttribute("aria-pressed", last !== null);
    if (last === null) return;
    if (state.t >= END) go(0);
    requestAnimationFrame(tick);
  }
  return toggle;
})();

function axis(byChange) {
  state.byChange = byChange;
  [state.from, state.to] = [0, 1];
  $("by-time").setAttribute("aria-pressed", !byChange);
  $("by-change").setAttribute("aria-pressed", byChange);
  changed.view();
}

function whole() {
  [state.from, state.to] = [0, 1];
  changed.view();
}

const over = $("over");
let dragging = false;
over.addEventListener("pointerdown", (event) => {
  dragging = true;
  over.setPointerCapture(event.pointerId);
  go(timeline.at(event.offsetX));
});
over.addEventListener("pointermove", (event) => { if (dragging) go(timeline.at(event.offsetX)); });
for (const end of ["pointerup", "pointercancel"]) over.addEventListener(end, () => { dragging = false; });
over.addEventListener("wheel", (event) => {
  if (event.ctrlKey || event.metaKey) timeline.zoom(Math.exp(event.deltaY / 300), timeline.unit(timeline.at(event.offsetX)));
  else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    const long = state.to - state.from;
    state.from = Math.min(Math.max(0, state.from + (event.deltaX / over.clientWidth) * long), 1 - long);
    state.to = state.from + long;
  } else return;
  event.preventDefault();
  changed.view();
}, { passive: false });

const KEYS = {
  ArrowRight: (event) => go(neighbour(event.shiftKey ? markTimes : changes, true)),
  ArrowLeft: (event) => go(neighbour(event.shiftKey ? markTimes : changes, false)),
  PageDown: () => go(timeline.time(timeline.unit(state.t) + (state.to - state.from) / 20)),
  PageUp: () => go(timeline.time(timeline.unit(state.t) - (state.to - state.from) / 20)),
  Home: () => go(0),
  End: () => go(END),
  " ": () => play(),
  "+": () => zoom(0.5),
  "=": () => zoom(0.5),
  "-": () => zoom(2),
  0: () => whole(),
  e: () => axis(!state.byChange),
};
over.addEventListener("keydown", (event) => {
  const act = KEYS[event.key];
  if (act === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act(event);
});
$("play").addEventListener("click", play);
$("by-time").addEventListener("click", () => axis(false));
$("by-change").addEventListener("click", () => axis(true));
$("in").addEventListener("click", () => zoom(0.5));
$("out").addEventListener("click", () => zoom(2));
$("all").addEventListener("click", whole);

const tip = $("tip");
function hideTip() {
  tip.hidden = true;
}

function showTip(told) {
  if (told === null) {
    hideTip();
    return;
  }
  const lines = told.lines.flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: value })]);
  const leases = told.leases.slice(0, 5).map((lease) => {
    const account = C["lease.account"][lease];
    return element("li", {}, swatch(account), element("b", { text: bytes(C["lease.given"][lease]) }),
      element("span", { text: T.accounts[account].name }));
  });
  if (told.leases.length > 5) leases.push(element("li", { text: `and ${count(told.leases.length - 5)} more` }));
  tip.replaceChildren(element("h3", {}, swatch(told.account), element("span", { text: told.title })), element("dl", {}, ...lines),
    element("ul", {}, ...leases));
  tip.hidden = false;
  const at = $("map").getBoundingClientRect(), { width, height } = tip.getBoundingClientRect();
  const left = at.left + told.x + told.size + 10, below = at.top + told.y + told.size + 8;
  const x = left + width < innerWidth - 8 ? left : Math.max(8, at.left + told.x - width - 10);
  const y = below + height < innerHeight - 8 ? below : Math.max(8, at.top + told.y - height - 8);
  tip.style.transform = `translate(${Math.min(x, innerWidth - width - 8) + scrollX}px, ${y + scrollY}px)`;
}

const canvas = $("map");
const pointed = (event) => showTip(map.choose(map.hit(event.offsetX, event.offsetY)));
canvas.addEventListener("pointermove", pointed);
canvas.addEventListener("pointerdown", pointed);
canvas.addEventListener("pointerleave", () => showTip(map.choose(-1)));
canvas.addEventListener("blur", () => showTip(map.choose(-1)));
canvas.addEventListener("keydown", (event) => {
  const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
  if (event.key === "Escape") showTip(map.choose(-1));
  if (way === undefined) return;
  event.preventDefault();
  showTip(map.choose(map.move(...way)));
});

function logo() {
  const drawing = context($("logo"), 44, 44);
  const colours = (dark.matches ? DARK : LIGHT).owners;
  const full = [0.35, 1, 0.8, 1, 1, 0.55, 1, 0.7, 0];
  full.forEach((part, i) => {
    const [x, y] = [(i % 3) * 15, Math.floor(i / 3) * 15];
    drawing.fillStyle = colours[[0, 0, 1, 4, 0, 2, 4, 4, 2][i]];
    drawing.globalAlpha = 0.22;
    drawing.fillRect(x, y, 13, 13);
    drawing.globalAlpha = 1;
    drawing.fillRect(x, y + 13 * (1 - part), 13, 13 * part);
  });
}

function key() {
  const entries = [["full", "full"], ["half", "half in use"], ["bare", "mapped, nothing live in it"], ["shared", "behind several places"],
    ["retiring", "waits for device work"], ["round", "counted, not granules"], ["none", "nothing mapped"]];
  $("key").replaceChildren(...entries.map(([kind, text]) => element("li", {}, element("i", { class: `square ${kind}` }), element("span", { text }))));
}

function devices() {
  if (T.devices.length < 2) return;
  $("devices").replaceChildren(...T.devices.map(({ name }, device) => {
    const button = element("button", { type: "button", text: `${device + 1} ${name}`, "aria-pressed": device === state.device });
    button.addEventListener("click", () => {
      Object.assign(state, { device, lit: null, solo: null });
      start();
    });
    return button;
  }));
}

function start() {
  $("label").textContent = T.label || "A recording of memory";
  const { name, granule, budget } = T.devices[state.device] ?? { name: "no device", granule: 0, budget: 0 };
  const facts = [name, `granules of ${bytes(granule)}`, `budget ${bytes(budget)}`, T.when, moment(T.end), many(T.events, "event")];
  $("meta").replaceChildren(...facts.map((text) => element("span", { text })));
  const wrong = [];
  if (T.broken !== null) wrong.push(`Incomplete: ${T.broken}. This is what could be read.`);
  if (T.lost > 0) wrong.push(`${many(T.lost, "event")} are missing: the disk did not keep up.`);
  if (T.unknown > 0) wrong.push(`${many(T.unknown, "event")} name memory that the recording did not see taken, and are left out.`);
  $("warning").textContent = wrong.join(" ");
  $("warning").hidden = wrong.length === 0;
  devices();
  logo();
  key();
  changed.all();
}

if (T.devices.length === 0) {
  T.devices.push({ name: "no device", granule: 0, budget: 0 });
  T.summary.push({ leases: { count: 0, lifetime_ns: { p50: null }, waste_percent: null }, granules: { created: 0, map_calls: 0, unmap_calls: 0 },
    left: [], sizes: [], peak_held_bytes: 0, peak_held_at_ns: 0, peak_used_bytes: 0, held_bytes: 0 });
}
// The most interesting moment first: the peak.
state.device = T.summary.reduce((best, figures, i) => (figures.peak_held_bytes > T.summary[best].peak_held_bytes ? i : best), 0);
state.t = T.summary[state.device].peak_held_at_ns;
new ResizeObserver(() => { map.layout(); tables.histogram(); changed.view(); }).observe($("stage"));
dark.addEventListener("change", start);
start();
