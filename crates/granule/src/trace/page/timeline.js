// The stack of what owners held, with what was in use, the marks and the cursor.

const timeline = (() => {
  const MARGIN = { left: 62, right: 14, top: 34, bottom: 28 };
  let box = { width: 0, height: 0, inner: 0, deep: 0 };
  let top = 1;
  // Where the axis has labels, for the cursor's own not to be mixed up with them.
  let labels = [];

  // The whole recording is 0 to 1; where a time lies in it depends on the axis.
  function unit(t) {
    if (!state.byChange) return t / END;
    const n = upTo(changes, t);
    if (n >= changes.length) return 1;
    const before = changes[n - 1];
    return (n - 1 + (t - before) / (changes[n] - before)) / (changes.length - 1);
  }

  function time(u) {
    const within = Math.min(1, Math.max(0, u));
    if (!state.byChange) return within * END;
    const rank = within * (changes.length - 1), n = Math.min(Math.floor(rank), changes.length - 2);
    return changes[n] + (rank - n) * (changes[n + 1] - changes[n]);
  }

  const x = (t) => MARGIN.left + ((unit(t) - state.from) / (state.to - state.from)) * box.inner;
  const at = (px) => time(state.from + ((px - MARGIN.left) / box.inner) * (state.to - state.from));
  const y = (n) => MARGIN.top + box.deep * (1 - n / top);

  const mine = () => [...rank.keys()].filter((account) => deviceOf(account) === state.device)
    .sort((a, b) => rank.get(a) - rank.get(b));

  // Who is drawn: all, or the one that somebody singled out.
  const drawn = () => (state.solo === null ? mine() : [state.solo]);
  const sum = (curves, accounts, t) => accounts.reduce((all, account) => all + valueAt(curves[account], t), 0);

  // For each column of pixels what the owners held at its highest moment, and the least and most that was in use.
  function sampled(accounts) {
    const columns = Math.max(1, Math.floor(box.inner));
    const edges = Float64Array.from({ length: columns + 1 }, (_, i) => at(MARGIN.left + (i * box.inner) / columns));
    const places = new Map(accounts.map((account, i) => [account, i]));
    // Walks the changes of one kind: calls with the sum after each, and at each column's beginning.
    const walk = (name, curves, begin, change) => {
      const of = C[`${name}.account`], ns = C[`${name}.ns`], to = C[`${name}.bytes`];
      const now = Float64Array.from(accounts, (account) => valueAt(curves[account], edges[0] - 1e-9));
      let total = now.reduce((all, n) => all + n, 0), next = upTo(ns, edges[0] - 1e-9);
      for (let column = 0; column < columns; column++) {
        begin(column, total, now);
        for (; next < ns.length && ns[next] < edges[column + 1]; next++) {
          const i = places.get(of[next]);
          if (i === undefined) continue;
          total += to[next] - now[i];
          now[i] = to[next];
          change(column, total, now);
        }
      }
    };
    const stack = accounts.map(() => new Float64Array(columns)), totals = new Float64Array(columns);
    const take = (column, total, now) => {
      totals[column] = total;
      now.forEach((n, i) => { stack[i][column] = n; });
    };
    walk("held", held, take, (column, total, now) => { if (total > totals[column]) take(column, total, now); });
    const least = new Float64Array(columns), most = new Float64Array(columns);
    walk("used", used, (column, total) => { least[column] = most[column] = total; }, (column, total) => {
      least[column] = Math.min(least[column], total);
      most[column] = Math.max(most[column], total);
    });
    return { columns, stack, totals, least, most };
  }

  // The power of two that divides an axis of `most` into three to five parts.
  function step(most) {
    let size = 1;
    while (most / size > 5) size *= 2;
    return size;
  }

  function ticks(drawing) {
    const least = 90;
    const from = at(MARGIN.left), to = at(MARGIN.left + box.inner);
    if (state.byChange) {
      const n = Math.max(1, Math.floor(box.inner / least));
      return Array.from({ length: n + 1 }, (_, i) => at(MARGIN.left + (i * box.inner) / n));
    }
    const rough = ((to - from) * least) / box.inner, power = 10 ** Math.floor(Math.log10(rough));
    const every = power * ([1, 2, 5].find((n) => n * power >= rough) ?? 10);
    const all = [];
    for (let t = Math.ceil(from / every) * every; t <= to; t += every) all.push(t);
    return all;
  }

  // Layers of the stack as steps, from the bottom up.
  function areas(drawing, accounts, { columns, stack }) {
    const wide = box.inner / columns;
    const base = new Float64Array(columns);
    accounts.forEach((account, i) => {
      if (!stack[i].some((n) => n > 0)) return;
      const layer = base.map((n, column) => n + stack[i][column]);
      drawing.beginPath();
      for (let column = 0; column < columns; column++) {
        drawing.lineTo(MARGIN.left + column * wide, y(layer[column]));
        drawing.lineTo(MARGIN.left + (column + 1) * wide, y(layer[column]));
      }
      for (let column = columns - 1; column >= 0; column--) {
        drawing.lineTo(MARGIN.left + (column + 1) * wide, y(base[column]));
        drawing.lineTo(MARGIN.left + column * wide, y(base[column]));
      }
      drawing.globalAlpha = state.lit === null || state.lit === account ? 1 : 0.22;
      drawing.fillStyle = colour(account);
      drawing.fill();
      drawing.globalAlpha = 1;
      // A seam of the ground's colour between neighbours, so that they differ by more than hue.
      drawing.beginPath();
      for (let column = 0; column < columns; column++) {
        drawing.lineTo(MARGIN.left + column * wide, y(layer[column]));
        drawing.lineTo(MARGIN.left + (column + 1) * wide, y(layer[column]));
      }
      drawing.strokeStyle = css("--ground");
      drawing.lineWidth = 1;
      drawing.stroke();
      base.set(layer);
    });
  }

  // What was in use: between the least and the most of each column.
  function inUse(drawing, { columns, least, most }) {
    const wide = box.inner / columns;
    drawing.fillStyle = css("--ink");
    drawing.globalAlpha = 0.28;
    for (let column = 0; column < columns; column++) {
      if (most[column] > least[column]) {
        drawing.fillRect(MARGIN.left + column * wide, y(most[column]), wide, y(least[column]) - y(most[column]));
      }
    }
    drawing.globalAlpha = 1;
    for (const [style, width] of [["--ground", 3], ["--ink", 1.4]]) {
      drawing.beginPath();
      for (let column = 0; column < columns; column++) {
        drawing.lineTo(MARGIN.left + column * wide, y(most[column]));
        drawing.lineTo(MARGIN.left + (column + 1) * wide, y(most[column]));
      }
      drawing.strokeStyle = css(style);
      drawing.lineWidth = width;
      drawing.lineJoin = "round";
      drawing.stroke();
    }
  }

  function axes(drawing) {
    const every = step(top);
    drawing.textBaseline = "middle";
    drawing.textAlign = "right";
    for (let n = 0; n <= top; n += every) {
      drawing.fillStyle = css("--line");
      drawing.fillRect(MARGIN.left, Math.round(y(n)), box.inner, 1);
      drawing.fillStyle = css("--faint");
      drawing.fillText(n === 0 ? "0" : bytes(n).replace(".0 ", " "), MARGIN.left - 8, y(n));
    }
    drawing.textBaseline = "top";
    drawing.textAlign = "center";
    labels = [];
    for (const t of ticks(drawing)) {
      const half = 30, px = Math.min(Math.max(x(t), MARGIN.left + half - 24), MARGIN.left + box.inner - half + 16);
      drawing.fillStyle = css("--line");
      drawing.fillRect(Math.round(x(t)), MARGIN.top + box.deep, 1, 4);
      drawing.fillStyle = css("--faint");
const text = t === 0 ? "0" : duration(t).replace(/(\.\d*?)0+ /, "$1 ").replace(". ", " "), wide = drawing.measureText(text).width;
      drawing.fillText(text, px, MARGIN.top + box.deep + 8);
      labels.push([px - wide / 2 - 1, px + wide / 2 + 1]);
    }
  }

  // Marks of a kind of their own, "load", go before those of a series, "token 17": of these as many as there is room for.
  const series = (() => {
    const stem = (text) => text.replace(/\d+$/, "");
    const n = new Map();
    for (const { text } of marks) n.set(stem(text), (n.get(stem(text)) ?? 0) + 1);
    return marks.map(({ text }) => n.get(stem(text)) > 1);
  })();

  function phases(drawing) {
    drawing.textBaseline = "middle";
    drawing.textAlign = "left";
    const right = MARGIN.left + box.inner;
    const first = Math.max(0, upTo(markTimes, at(MARGIN.left) - 1e-9) - 1), last = upTo(markTimes, at(right));
    const taken = [];
    let lastTick = -Infinity;
    for (const later of [false, true]) {
      for (let i = first; i < last; i++) {
        if (series[i] !== later) continue;
        const px = x(marks[i].ns), from = Math.max(px, MARGIN.left);
        const inside = px >= MARGIN.left - 0.5;
        if (inside && px >= lastTick + 3) {
          drawing.fillStyle = css("--faint");
          drawing.fillRect(Math.round(px), MARGIN.top - 5, 1, 4);
          if (later) lastTick = px;
        }
        const after = Math.min(right, ...taken.map(([start]) => (start >= from ? start : right)));
        const whole = drawing.measureText(marks[i].text).width + 14, room = Math.min(whole, 190, after - from);
        if (room < (later ? whole : Math.min(whole, 44)) || taken.some(([start, end]) => from < end && from + room > start)) continue;
        const shown = fit(drawing, marks[i].text, room - 8);
        if (!shown) continue;
        drawing.fillStyle = css("--soft");
        drawing.fillText(shown, from + 5, MARGIN.top - 16);
        if (inside) {
          drawing.fillStyle = css("--faint");
          drawing.fillRect(Math.round(px), MARGIN.top - 22, 1, 21);
          drawing.globalAlpha = 0.3;
          drawing.fillStyle = css("--ground");
          drawing.fillRect(Math.round(px), MARGIN.top, 1, box.deep);
          drawing.globalAlpha = 1;
        }
        taken.push([from, from + room + 4]);
      }
    }
    // By stream.
    const begun = new Map();
    for (const event of T.moments) {
      if (event.device !== state.device && event.what !== "lost") continue;
      const px = x(event.ns);
      const shown = px >= MARGIN.left && px <= MARGIN.left + box.inner;
      if (event.what === "capture_begin") begun.set(event.stream, px);
      if (event.what === "capture_end" && begun.has(event.stream)) {
        const from = Math.max(begun.get(event.stream), MARGIN.left), to = Math.min(px, MARGIN.left + box.inner);
        drawing.fillStyle = css("--soft");
        if (to > from) drawing.fillRect(from, MARGIN.top + box.deep - 3, to - from, 3);
        begun.delete(event.stream);
      }
      if (!shown) continue;
      if (event.what === "refused" || event.what === "lost") {
        drawing.fillStyle = css("--alarm");
        drawing.beginPath();
        drawing.moveTo(px, MARGIN.top + 7);
        drawing.lineTo(px - 5, MARGIN.top - 2);
        drawing.lineTo(px + 5, MARGIN.top - 2);
        drawing.fill();
        drawing.fillRect(px - 0.5, MARGIN.top, 1, box.deep);
      }
      if (event.what === "trim") {
        drawing.strokeStyle = css("--soft");
        drawing.lineWidth = 1.2;
        drawing.beginPath();
        drawing.moveTo(px - 4, MARGIN.top);
        drawing.lineTo(px, MARGIN.top + 5);
        drawing.lineTo(px + 4, MARGIN.top);
        drawing.stroke();
      }
    }
  }

  function draw() {
    const width = $("stage").clientWidth;
    const height = Math.round(Math.min(420, Math.max(230, width * 0.3)));
    box = { width, height, inner: width - MARGIN.left - MARGIN.right, deep: height - MARGIN.top - MARGIN.bottom };
    const drawing = context($("plot"), width, height);
    const accounts = drawn(), columns = sampled(accounts);
    top = 1;
    for (let column = 0; column < columns.columns; column++) {
      top = Math.max(top, columns.totals[column], columns.most[column]);
    }
    const { budget } = T.devices[state.device];
    const near = state.solo === null && budget > 0 && budget < top * 1.6;
    top = Math.max(top * 1.06, near ? budget * 1.04 : 0);
    axes(drawing);
    areas(drawing, accounts, columns);
    phases(drawing);
    inUse(drawing, columns);
    if (near) {
      drawing.strokeStyle = css("--alarm");
      drawing.setLineDash([5, 4]);
      drawing.beginPath();
      drawing.moveTo(MARGIN.left, y(budget));
      drawing.lineTo(MARGIN.left + box.inner, y(budget));
      drawing.stroke();
      drawing.setLineDash([]);
      drawing.fillStyle = css("--alarm");
      drawing.textAlign = "right";
      drawing.textBaseline = "bottom";
      drawing.fillText(`budget ${bytes(budget)}`, MARGIN.left + box.inner - 4, y(budget) - 2);
    }
    cursor();
  }

  // The cursor, drawn over the plot so that moving it draws nothing else.
  function cursor() {
    const drawing = context($("over"), box.width, box.height);
    const px = x(state.t);
    if (px < MARGIN.left - 0.5 || px > MARGIN.left + box.inner + 0.5) return;
    const ink = css("--ink"), ground = css("--ground");
    drawing.fillStyle = ground;
    drawing.fillRect(px - 1.5, MARGIN.top - 6, 3, box.deep + 10);
    drawing.fillStyle = ink;
    drawing.fillRect(px - 0.75, MARGIN.top - 6, 1.5, box.deep + 10);
    const total = sum(held, drawn(), state.t);
    for (const n of [total, sum(used, drawn(), state.t)]) {
      drawing.beginPath();
      drawing.arc(px, y(n), 3.5, 0, 7);
      drawing.fillStyle = ink;
      drawing.fill();
      drawing.strokeStyle = ground;
      drawing.lineWidth = 1.5;
      drawing.stroke();
    }
    drawing.font = "600 11px ui-sans-serif, system-ui, sans-serif";
    const label = moment(state.t), wide = drawing.measureText(label).width + 14;
    const left = Math.min(Math.max(px - wide / 2, 2), box.width - wide - 2);
    drawing.fillStyle = ground;
    for (const [from, to] of labels) {
      if (from < left + wide + 4 && to > left - 4) drawing.fillRect(from, MARGIN.top + box.deep + 5, to - from, 20);
    }
    drawing.fillStyle = ink;
    drawing.beginPath();
    drawing.roundRect(left, MARGIN.top + box.deep + 4, wide, 20, 10);
    drawing.fill();
    drawing.fillStyle = ground;
    drawing.textAlign = "center";
    drawing.textBaseline = "middle";
    drawing.fillText(label, left + wide / 2, MARGIN.top + box.deep + 14.5);
    const slider = $("over");
    slider.setAttribute("aria-valuemax", END);
    slider.setAttribute("aria-valuenow", Math.round(state.t));
    slider.setAttribute("aria-valuetext", `${moment(state.t)}, ${bytes(total)} held, ${bytes(sum(used, drawn(), state.t))} of it in use`);
  }

  // Shows the part around `u` that is `times` as long as what is shown now.
  function zoom(times, u = unit(state.t)) {
    const long = Math.min(1, Math.max((state.to - state.from) * times, Math.min(1, 8 / changes.length) * 1e-3));
    const from = u - ((u - state.from) * long) / (state.to - state.from);
    state.from = Math.min(Math.max(0, from), 1 - long);
    state.to = state.from + long;
  }

  // Moves what is shown so that the cursor is in it.
  function follow() {
    const u = unit(state.t), long = state.to - state.from;
    if (u < state.from || u > state.to) {
      state.from = Math.min(Math.max(0, u - long / 2), 1 - long);
      state.to = state.from + long;
    }
  }

  return { draw, cursor, at, unit, time, zoom, follow, mine };
})();
