// The map: every granule a square where it lies, as full as what is live in it. The places do not move with the cursor.

const map = (() => {
  const HEAD = 22, GAP = 18, EDGE = 2;
  let size = 10, pitch = 12, wide = 0, high = 0;
  let sections = [];
  // By cell: which range (or, below zero, which account's charges), which place, where on the canvas.
  let cells = { range: [], place: [], x: [], y: [] };
  let firstCell = new Int32Array(0);
  let shown = null;
  let chosen = -1;

  const granule = () => T.devices[state.device].granule || 2 ** 21;

  // How many places of each range are worth a square: up to the last that ever had memory.
  const tall = (() => {
    const n = new Float64Array(T.ranges.length), range = C["placement.range"], place = C["placement.place"];
    for (let i = 0; i < PLACEMENTS; i++) n[range[i]] = Math.max(n[range[i]], place[i] + 1);
    return n;
  })();

  // The most that each account was charged with at once.
  const charged = (() => {
    const most = new Float64Array(T.accounts.length), now = new Float64Array(T.accounts.length);
    const steps = [];
    C["charge.size"].forEach((n, i) => {
      const account = C["charge.account"][i];
      steps.push([C["charge.from"][i], account, n], [C["charge.to"][i], account, -n]);
    });
    steps.sort((a, b) => a[0] - b[0] || a[2] - b[2]);
    for (const [, account, n] of steps) {
      now[account] += n;
      most[account] = Math.max(most[account], now[account]);
    }
    return most;
  })();

  // More squares than this would be smaller than a pixel can show: the rest of a range is told in its tooltip.
  const MOST = 60000;

  function layout() {
    wide = $("map-stage").clientWidth;
    const parts = timeline.mine().map((account) => {
      const ranges = T.ranges.map((_, i) => i).filter((i) => T.ranges[i].account === account && tall[i] > 0);
      const round = Math.ceil(charged[account] / granule());
      return { account, ranges, round, n: round + ranges.reduce((sum, i) => sum + tall[i] + 1, 0) };
    }).filter((part) => part.n > 0);
    const total = Math.min(MOST, parts.reduce((sum, part) => sum + part.n, 0));
    const area = wide * Math.min(460, Math.max(260, wide * 0.42));
    pitch = Math.max(5, Math.min(38, Math.floor(Math.sqrt(area / Math.max(total, 1)))));
    size = pitch - Math.max(1, Math.round(pitch * 0.14));
    cells = { range: [], place: [], x: [], y: [] };
    firstCell = new Int32Array(T.ranges.length).fill(-1);
    sections = [];
    let left = EDGE, top = 0, shelf = 0;
    for (const part of parts) {
      const fits = Math.floor((wide - 2 * EDGE) / pitch);
      const columns = Math.max(1, Math.min(fits, Math.max(part.n, Math.ceil(230 / pitch))));
      const rows = Math.ceil(Math.min(part.n, MOST) / columns);
      if (left > EDGE && left + columns * pitch > wide - EDGE) {
        left = EDGE;
        top += shelf + GAP;
        shelf = 0;
      }
      const section = { ...part, x: left, y: top, columns, rows, slots: [] };
      const put = (range, place) => {
        const k = section.slots.length, cell = cells.range.length;
        section.slots.push(cell);
        cells.range.push(range);
        cells.place.push(place);
        cells.x.push(section.x + (k % columns) * pitch);
        cells.y.push(section.y + HEAD + Math.floor(k / columns) * pitch);
      };
      for (let i = 0; i < part.round && cells.range.length < MOST; i++) put(-1 - part.account, i);
      if (part.round > 0) section.slots.push(-1);
      for (const range of part.ranges) {
        // A range that is long begins on a line of its own, where it would not fit into what is left of this one.
        const left = columns - (section.slots.length % columns);
        if (left < columns && tall[range] > left && tall[range] * 2 > columns) section.slots.push(...Array(left).fill(-1));
        firstCell[range] = cells.range.length;
        for (let place = 0; place < tall[range] && cells.range.length < MOST; place++) put(range, place);
        section.slots.push(-1);
      }
      sections.push(section);
      left += columns * pitch + GAP;
      shelf = Math.max(shelf, HEAD + Math.ceil((section.slots.length - 1) / columns) * pitch);
    }
    high = Math.max(80, top + shelf + 4);
  }

  // What is where at the cursor.
  function look() {
    const n = cells.range.length, t = state.t;
    const now = {
      placed: new Int32Array(n).fill(-1), live: new Float64Array(n), leases: new Uint32Array(n),
      known: new Uint8Array(n), holders: new Map(), mapped: 0, retiring: 0,
    };
    eachPlaced(t, (i) => {
      const range = C["placement.range"][i], place = C["placement.place"][i];
      if (firstCell[range] < 0 || deviceOf(T.ranges[range].account) !== state.device) return;
      const id = C["placement.granule"][i];
      const retiring = C["placement.retired"][i] <= t;
      if (!now.holders.has(id)) now[retiring ? "retiring" : "mapped"]++;
      now.holders.set(id, (now.holders.get(id) ?? 0) + 1);
      const cell = firstCell[range] + place;
      if (cell >= n || cells.range[cell] !== range) return;
      now.placed[cell] = i;
      const { growable, arena, place: step } = T.ranges[range];
      now.known[cell] = growable || arena ? 1 : 0;
      if (growable) now.live[cell] = Math.min(step, Math.max(0, valueAt(lengths[range], t) - place * step));
    });
    eachLive(t, (i) => {
      const range = C["lease.range"][i];
      if (range === NONE || firstCell[range] < 0) return;
      const step = T.ranges[range].place, from = C["lease.at"][i], to = from + C["lease.given"][i];
      for (let place = Math.floor(from / step); place * step < to || place * step === from; place++) {
        const cell = firstCell[range] + place;
        if (cells.range[cell] !== range) return;
        now.live[cell] += Math.min(to, (place + 1) * step) - Math.max(from, place * step);
        now.leases[cell]++;
        if (to === from) break;
      }
    });
    const rounds = new Map();
    C["charge.from"].forEach((from, i) => {
      if (from > t || C["charge.to"][i] <= t) return;
      const account = C["charge.account"][i];
      rounds.set(account, (rounds.get(account) ?? 0) + C["charge.size"][i]);
    });
    now.rounds = rounds;
    return now;
  }

  function holder(cell) {
    if (cells.range[cell] < 0) return -1 - cells.range[cell];
    return shown.placed[cell] < 0 ? T.ranges[cells.range[cell]].account : C["placement.account"][shown.placed[cell]];
  }

  // How full, 0 to 1; 1 where nobody told.
  function fill(cell) {
    if (cells.range[cell] < 0) {
      const bytes = shown.rounds.get(-1 - cells.range[cell]) ?? 0;
      return Math.min(1, Math.max(0, bytes / granule() - cells.place[cell]));
    }
    return shown.known[cell] ? Math.min(1, shown.live[cell] / T.ranges[cells.range[cell]].place) : 1;
  }

  const SHADE = 0.2;

  function cell(drawing, i) {
    const px = cells.x[i], py = cells.y[i], round = cells.range[i] < 0;
    const empty = round ? fill(i) === 0 : shown.placed[i] < 0;
    if (empty) {
      drawing.fillStyle = css.line;
      const dot = Math.max(1, size * 0.16);
      drawing.fillRect(px + (size - dot) / 2, py + (size - dot) / 2, dot, dot);
      return;
    }
    const account = holder(i), lit = state.lit ?? state.solo;
    const dim = lit === null || lit === account ? 1 : 0.25;
    drawing.fillStyle = drawing.strokeStyle = colour(account);
    if (round) {
      drawing.globalAlpha = dim * (SHADE + (1 - SHADE) * fill(i));
      drawing.beginPath();
      drawing.arc(px + size / 2, py + size / 2, size / 2, 0, 7);
      drawing.fill();
    } else if (C["placement.retired"][shown.placed[i]] <= state.t) {
      drawing.globalAlpha = dim;
      drawing.lineWidth = Math.max(1, size / 10);
      drawing.save();
      drawing.beginPath();
      drawing.rect(px, py, size, size);
      drawing.clip();
      drawing.beginPath();
      for (let d = -size; d < size; d += Math.max(3, size / 3)) {
        drawing.moveTo(px + d, py + size);
        drawing.lineTo(px + d + size, py);
      }
      drawing.stroke();
      drawing.restore();
      drawing.strokeRect(px + 0.5, py + 0.5, size - 1, size - 1);
    } else {
      const r = size * 0.16;
      drawing.globalAlpha = dim * SHADE;
      drawing.beginPath();
      drawing.roundRect(px, py, size, size, r);
      drawing.fill();
      const full = fill(i);
      drawing.globalAlpha = dim * (0.35 + 0.65 * full);
      if (full > 0) {
        // As a vessel where it is large enough to be read as one, as a shade where it is not.
        const level = size >= 8 ? Math.max(1, Math.round(size * full)) : size;
        drawing.globalAlpha = size >= 8 ? dim : dim * (SHADE + (1 - SHADE) * full);
        drawing.save();
        drawing.clip();
        drawing.fillRect(px, py + size - level, size, level);
        drawing.restore();
      }
      if (shown.holders.get(C["placement.granule"][shown.placed[i]]) > 1) {
        drawing.globalAlpha = dim;
        drawing.fillStyle = css.ground;
        drawing.beginPath();
        drawing.arc(px + size / 2, py + size / 2, Math.max(1, size * 0.18), 0, 7);
        drawing.fill();
      }
    }
    drawing.globalAlpha = 1;
  }

  const css = { line: "", ground: "", ink: "" };

  function draw() {
    if (wide !== $("map-stage").clientWidth) layout();
    for (const name of Object.keys(css)) css[name] = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    const drawing = context($("map"), wide, high);
    shown = look();
    for (const section of sections) {
      const now = valueAt(held[section.account], state.t);
      drawing.textBaseline = "alphabetic";
      drawing.textAlign = "left";
      const room = section.columns * pitch - 4;
      drawing.font = "600 12px ui-sans-serif, system-ui, sans-serif";
      drawing.fillStyle = css.ink;
      const name = fit(drawing, T.accounts[section.account].name, room * 0.6);
      drawing.fillText(name, section.x, section.y + 13);
      const after = section.x + drawing.measureText(name).width + 8;
      drawing.font = "12px ui-sans-serif, system-ui, sans-serif";
      drawing.globalAlpha = 0.65;
      const use = now > 0 ? `${bytes(now)}, ${percent(valueAt(used[section.account], state.t), now)} in use` : "nothing";
      drawing.fillText(fit(drawing, use, section.x + room - after), after, section.y + 13);
      drawing.globalAlpha = 1;
    }
    for (let i = 0; i < cells.range.length; i++) cell(drawing, i);
    outline(drawing);
    const total = T.devices[state.device].granule;
    const free = many(shown.mapped, "granule");
    $("map-note").textContent = `${free} of ${bytes(total)} mapped${shown.retiring ? `, ${count(shown.retiring)} retiring` : ""} at ${moment(state.t)}`;
  }

  // Cells that somebody points at, here or in a table.
  function outline(drawing) {
    const marked = new Set(chosen >= 0 ? [chosen] : []);
    if (map.lease >= 0) {
      const range = C["lease.range"][map.lease];
      if (range !== NONE && firstCell[range] >= 0) {
        const step = T.ranges[range].place, from = C["lease.at"][map.lease];
        const to = from + Math.max(1, C["lease.given"][map.lease]);
        const last = Math.min(Math.ceil(to / step), tall[range], MOST);
        for (let place = Math.floor(from / step); place < last; place++) marked.add(firstCell[range] + place);
      }
    }
    drawing.strokeStyle = css.ink;
    drawing.lineWidth = 2;
    for (const i of marked) if (cells.x[i] !== undefined) drawing.strokeRect(cells.x[i] - 1, cells.y[i] - 1, size + 2, size + 2);
  }

  function hit(px, py) {
    for (const section of sections) {
      const column = Math.floor((px - section.x) / pitch), row = Math.floor((py - section.y - HEAD) / pitch);
      if (column < 0 || column >= section.columns || row < 0) continue;
      const cell = section.slots[row * section.columns + column];
      if (cell >= 0) return cell;
    }
    return -1;
  }

  // What there is to say of a cell: its name, and lines of what and how much.
  function tell(i) {
    const account = holder(i), owner = T.accounts[account].name;
    if (cells.range[i] < 0) {
      return { account, title: owner, lines: [["charged", bytes(shown.rounds.get(account) ?? 0)], ["", "memory that is not granules"]], leases: [] };
    }
    const range = T.ranges[cells.range[i]], place = cells.place[i], placed = shown.placed[i];
    const address = `0x${(BigInt(range.base) + BigInt(place) * BigInt(range.place)).toString(16)}`;
    const lines = [["range", `${range.id}, place ${count(place)} of ${count(range.places)}`], ["address", address]];
    if (placed < 0) return { account, title: owner, lines: [...lines, ["", "nothing is mapped here now"]], leases: [] };
    const id = C["placement.granule"][placed], behind = shown.holders.get(id);
    lines.push(["granule", `${count(id)}${behind > 1 ? `, behind ${behind} places` : ""}`]);
    lines.push(["since", moment(C["placement.from"][placed])]);
    if (C["placement.retired"][placed] <= state.t) lines.push(["", "retiring: waits for device work"]);
    else if (shown.known[i]) lines.push(["in use", `${bytes(shown.live[i])}, ${percent(shown.live[i], range.place)}`]);
    else lines.push(["in use", "not told"]);
    const leases = [];
    if (range.arena) {
      lines.push(["leases", count(shown.leases[i])]);
      const from = place * range.place, to = from + range.place;
      eachLive(state.t, (lease) => {
        if (C["lease.range"][lease] !== cells.range[i]) return;
        const at = C["lease.at"][lease];
        if (at < to && at + C["lease.given"][lease] > from) leases.push(lease);
      });
      leases.sort((a, b) => C["lease.given"][b] - C["lease.given"][a]);
    }
    return { account, title: owner, lines, leases };
  }

  function choose(cell) {
    chosen = cell;
    draw();
    if (cell < 0) return null;
    return { ...tell(cell), x: cells.x[cell], y: cells.y[cell], size };
  }

  // The next cell in a direction, by rows as they are drawn.
  function move(dx, dy) {
    if (cells.range.length === 0) return -1;
    if (chosen < 0) return 0;
    if (dy === 0) return Math.min(Math.max(chosen + dx, 0), cells.range.length - 1);
    const px = cells.x[chosen], py = cells.y[chosen];
    let best = chosen, least = Infinity;
    for (let i = 0; i < cells.range.length; i++) {
      const down = (cells.y[i] - py) * dy;
      if (down <= 0) continue;
      const far = down * 4 + Math.abs(cells.x[i] - px);
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  return { draw, layout, hit, choose, move, lease: -1, fits: () => cells.range.length < MOST };
})();
