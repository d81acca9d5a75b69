// The recording: lists and columns as the page came with them, and what is asked of them over and over.

const T = JSON.parse(document.getElementById("data").textContent);

function column({ f64, u32 }) {
  const text = atob(f64 ?? u32), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return f64 === undefined ? new Uint32Array(bytes.buffer) : new Float64Array(bytes.buffer);
}

const C = Object.fromEntries(Object.entries(T.columns).map(([name, data]) => [name, column(data)]));
const NONE = 0xffffffff;
const END = Math.max(T.end, 1);

// How many numbers of a sorted column are at most `t`.
function upTo(sorted, t) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= t) low = middle + 1; else high = middle;
  }
  return low;
}

// Curves by account or range: the times, and the value from each time on.
function curves(count, of, ns, bytes) {
  const sizes = new Uint32Array(count);
  for (const index of of) sizes[index]++;
  const all = Array.from(sizes, (n) => ({ ns: new Float64Array(n), bytes: new Float64Array(n), n: 0 }));
  of.forEach((index, i) => {
    const curve = all[index];
    curve.ns[curve.n] = ns[i];
    curve.bytes[curve.n++] = bytes[i];
  });
  return all;
}

const held = curves(T.accounts.length, C["held.account"], C["held.ns"], C["held.bytes"]);
const used = curves(T.accounts.length, C["used.account"], C["used.ns"], C["used.bytes"]);
const lengths = curves(T.ranges.length, C["length.range"], C["length.ns"], C["length.bytes"]);

function valueAt(curve, t) {
  const n = upTo(curve.ns, t);
  return n === 0 ? 0 : curve.bytes[n - 1];
}

// Every time at which something changed, once, in order.
const changes = (() => {
  const moments = Float64Array.from(T.moments, (moment) => moment.ns);
  const lists = [C["held.ns"], C["used.ns"], C["length.ns"], C["placement.from"], moments];
  const all = new Float64Array(2 + lists.reduce((sum, list) => sum + list.length, 0));
  let n = 1;
  for (const list of lists) {
    all.set(list, n);
    n += list.length;
  }
  all[n] = END;
  return all.sort().filter((t, i) => i === 0 || t !== all[i - 1]);
})();

const marks = T.moments.filter((moment) => moment.what === "mark");
const markTimes = Float64Array.from(marks, (mark) => mark.ns);

const LEASES = C["lease.from"].length;
const PLACEMENTS = C["placement.from"].length;

const deviceOf = (account) => T.accounts[account].device;

// Calls for each lease that is live at `t`.
function eachLive(t, call) {
  const to = C["lease.to"], n = upTo(C["lease.from"], t);
  for (let i = 0; i < n; i++) if (to[i] > t) call(i);
}

// Calls for each placement that is there at `t`.
function eachPlaced(t, call) {
  const to = C["placement.to"], n = upTo(C["placement.from"], t);
  for (let i = 0; i < n; i++) if (to[i] > t) call(i);
}
