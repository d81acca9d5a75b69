// Figures, owners and tables.

const tables = (() => {
  const LISTED = 12;
  const figures = () => T.summary[state.device];

  function tiles() {
    const { leases, granules, left, ...device } = figures();
    const all = [
      ["Held, at most", bytes(device.peak_held_bytes), `at ${moment(device.peak_held_at_ns)}`],
      ["In use, at most", bytes(device.peak_used_bytes), "leased, charged, grown"],
      ["Leases", count(leases.count), leases.lifetime_ns.p50 === null ? "none ended" : `half lived under ${duration(leases.lifetime_ns.p50)}`],
      ["Class waste", leases.waste_percent === null ? "–" : `${leases.waste_percent.toFixed(1)}%`, "of what leases took up"],
      ["Granules made", count(granules.created), `${many(granules.map_calls, "mapping")}, ${many(granules.unmap_calls, "unmapping")}`],
      ["Live at the end", count(left.length), left.length === 0 ? "no lease" : bytes(left.reduce((sum, lease) => sum + lease.given_bytes, 0))],
    ];
    $("tiles").replaceChildren(...all.map(([name, value, note]) =>
      element("div", {}, element("dt", { text: name }), element("dd", { text: value }), element("dd", { text: note, class: "note" }))));
  }

  // The owners, as a legend that counts.
  function owners() {
    const most = Math.max(1, ...timeline.mine().map((account) => held[account].bytes.reduce((a, b) => Math.max(a, b), 0)));
    const rows = timeline.mine().filter((account) => held[account].n > 0).map((account) => {
      const bar = element("span", { class: "level" });
      const button = element("button", { type: "button", "aria-pressed": "false" },
        swatch(account), element("span", { class: "name", text: T.accounts[account].name }),
        element("span", { class: "number" }), bar);
      bar.style.background = colour(account);
      const light = (on) => () => {
        state.lit = on ? account : null;
        changed.light();
      };
      button.addEventListener("pointerenter", light(true));
      button.addEventListener("pointerleave", light(false));
      button.addEventListener("focus", light(true));
      button.addEventListener("blur", light(false));
      button.addEventListener("click", () => {
        state.solo = state.solo === account ? null : account;
        changed.view();
      });
      return { account, button, bar };
    });
    $("owners").replaceChildren(...rows.map(({ button }) => element("li", {}, button)));
    owners.now = () => {
      for (const { account, button, bar } of rows) {
        const n = valueAt(held[account], state.t);
        const use = percent(valueAt(used[account], state.t), n);
        button.querySelector(".number").textContent = n === 0 ? "–" : `${bytes(n)}, ${use}`;
        button.title = `${T.accounts[account].name}: ${bytes(n)} held, ${use} of it in use. Click to see it alone.`;
        bar.style.transform = `scaleX(${n / most})`;
        button.setAttribute("aria-pressed", state.solo === account);
      }
    };
    owners.now();
  }

  const HEAD = ["size", "taken up", "owner", "stream", "since", "range + offset"];

  function row(lease, largest) {
    const account = C["lease.account"][lease], range = C["lease.range"][lease], stream = C["lease.stream"][lease];
    const at = C["lease.at"][lease], requested = C["lease.requested"][lease], given = C["lease.given"][lease];
    const where = range === NONE ? `0x${at.toString(16)}` : `${T.ranges[range].id} + ${bytes(at)}`;
    const size = element("td", { class: "number", text: bytes(requested), title: `${count(requested)} bytes` });
    size.style.setProperty("--part", given / largest);
    size.style.setProperty("--colour", colour(account));
    const made = element("tr", {}, size,
      element("td", { class: "number", text: bytes(given), title: `${count(given)} bytes` }),
      element("td", { class: "owner" }, swatch(account), element("span", { text: T.accounts[account].name, title: T.accounts[account].name })),
      element("td", { text: stream === NONE ? "own threads" : T.streams[stream] }),
      element("td", { class: "number", text: moment(C["lease.from"][lease]) }),
      element("td", { class: "number", text: where }));
    made.addEventListener("pointerenter", () => { map.lease = lease; map.draw(); });
    made.addEventListener("pointerleave", () => { map.lease = -1; map.draw(); });
    return made;
  }

  function list(table, leases, nothing) {
    if (leases.length === 0) {
      table.replaceChildren(element("tbody", {}, element("tr", {}, element("td", { class: "nothing", text: nothing }))));
      return;
    }
    const largest = leases.reduce((most, lease) => Math.max(most, C["lease.given"][lease]), 1);
    const head = element("thead", {}, element("tr", {}, ...HEAD.map((text) => element("th", { scope: "col", text }))));
    table.replaceChildren(head, element("tbody", {}, ...leases.map((lease) => row(lease, largest))));
  }

  // The largest of what is live, without sorting all of it.
  function largest() {
    const best = [], given = C["lease.given"];
    let n = 0, sum = 0, asked = 0;
    eachLive(state.t, (lease) => {
      if (deviceOf(C["lease.account"][lease]) !== state.device) return;
      n++;
      sum += given[lease];
      asked += C["lease.requested"][lease];
      if (best.length === LISTED && given[lease] <= given[best[LISTED - 1]]) return;
      let i = best.length;
      while (i > 0 && given[best[i - 1]] < given[lease]) i--;
      best.splice(i, 0, lease);
      best.length = Math.min(best.length, LISTED);
    });
    list($("leases"), best, "No lease is live here.");
    // What is below does not jump about while the cursor moves.
    const box = $("leases").parentElement;
    box.style.minHeight = `${Math.max(parseFloat(box.style.minHeight) || 0, $("leases").offsetHeight)}px`;
    const waste = sum > asked ? `, ${percent(sum - asked, sum)} of it waste` : "";
    $("largest-note").textContent = n === 0 ? "" : `${Math.min(n, LISTED)} of ${many(n, "live lease")}, ${bytes(sum)}${waste}`;
  }

  function left() {
    const to = C["lease.to"], given = C["lease.given"], all = [];
    for (let i = 0; i < LEASES; i++) if (to[i] === Infinity && deviceOf(C["lease.account"][i]) === state.device) all.push(i);
    all.sort((a, b) => given[b] - given[a]);
    const still = T.broken === null ? "" : " where the recording breaks off";
    list($("leaks"), all.slice(0, 50), "Every lease that began in this recording ended in it.");
    const parts = [];
    if (all.length) parts.push(`${many(all.length, "lease")}, ${bytes(all.reduce((sum, i) => sum + given[i], 0))}`);
    if (all.length > 50) parts.push("the largest 50");
    const { held_bytes: kept } = figures();
    parts.push(kept > 0 ? `owners still hold ${bytes(kept)}` : "nothing is held");
    $("left-note").textContent = parts.join("; ") + still;
  }

  function histogram() {
    const { sizes } = figures();
    $("sizes").hidden = sizes.length === 0;
    if (sizes.length === 0) return;
    const wide = $("histogram").parentElement.clientWidth, line = 20, high = sizes.length * line + 4;
    const drawing = context($("histogram"), wide, high);
    const most = Math.max(...sizes.map((size) => size.count));
    drawing.textBaseline = "middle";
    sizes.forEach(({ up_to_bytes: size, count: n }, i) => {
      const y = i * line + line / 2;
      drawing.fillStyle = css("--soft");
      drawing.textAlign = "right";
      drawing.fillText(`≤ ${bytes(size).replace(".0 ", " ")}`, 72, y);
      const long = Math.max(2, (wide - 150) * (n / most));
      drawing.fillStyle = css("--bar");
      drawing.beginPath();
      drawing.roundRect(82, y - 6, long, 12, 2);
      drawing.fill();
      drawing.fillStyle = css("--soft");
      drawing.textAlign = "left";
      drawing.fillText(count(n), 82 + long + 7, y);
    });
    $("sizes-note").textContent = `${many(figures().leases.count, "lease")} by the power of two they fit into`;
  }

  return { tiles, owners, largest, left, histogram };
})();
