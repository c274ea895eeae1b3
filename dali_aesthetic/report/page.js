"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const id = (name) => document.getElementById(name);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const whole = (n) => n.toLocaleString("en-US");
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const percent = (share) => {
    const value = 100 * share;
    if (!value || value >= 99.995) return value.toFixed(0) + "%";
    return (value >= 10 ? value.toFixed(1) : String(Number(value.toPrecision(2)))) + "%";
  };
  const OPTIONS = { displayModeBar: false, responsive: true };
  const slider = id("slider"), upperSlider = id("upper");
  const last = data.edges.length - 1; // as an upper bound it leaves nothing out: there is none
  let place = data.start, upper = data.startUpper;
  const isBounded = () => upper < last;
  const keptOf = (one) => Math.max(0, one.atLeast[place] - one.above[upper]);

  const layout = (more) => ({
    margin: { l: 56, r: 12, t: 26, b: 44 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--ink"), size: 12, family: "inherit" },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } },
    showlegend: false,
    dragmode: false,
    ...more,
  });
  const axis = (title, more) => ({
    title: { text: title, standoff: 8 },
    gridcolor: css("--line"),
    zerolinecolor: css("--line"),
    linecolor: css("--soft"),
    fixedrange: true,
    automargin: true,
    ...more,
  });
  const lineAt = (x, color, dash) => ({
    type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color, width: dash ? 1 : 2, dash },
  });

  const range = () => {
    const e = data.bars.edges;
    const pad = (e[e.length - 1] - e[0]) * 0.02;
    return [e[0] - pad, e[e.length - 1] + pad];
  };
  // Presets of one cut share a mark; names too close to the one before stay away, the table has them all.
  const marks = () => {
    const [low, high] = range();
    const byRaw = new Map();
    for (const p of data.presets) if (p.raw > low && p.raw < high && !byRaw.has(p.raw)) byRaw.set(p.raw, p.name);
    return [...byRaw].map(([raw, name]) => ({ raw, name }));
  };
  const shapes = () => [
    ...marks().map((m) => lineAt(m.raw, css("--soft"), "dot")),
    lineAt(data.edges[place], css("--mark")),
    ...(isBounded() ? [lineAt(data.edges[upper], css("--mark"))] : []),
  ];
  const labels = () => {
    const [low, high] = range();
    const room = ((high - low) / Math.max(200, id("histogram").clientWidth - 70)) * 13;
    let last = -Infinity;
    return marks().filter((m) => m.raw - last >= room && (last = m.raw, true)).map((m) => ({
      x: m.raw, yref: "paper", y: 1, yanchor: "bottom", xanchor: "center", text: plain(m.name),
      textangle: -90, showarrow: false, font: { size: 10, color: css("--soft") },
    }));
  };
  const barColors = () => {
    const e = data.bars.edges, from = data.edges[place], to = isBounded() ? data.edges[upper] : Infinity;
    return data.bars.counts.map((_, i) => css(e[i + 1] <= from || e[i] >= to ? "--dropped" : "--kept"));
  };
  const barTrace = (bars, colors) => {
    const e = bars.edges;
    return {
      type: "bar", x: bars.counts.map((_, i) => (e[i] + e[i + 1]) / 2),
      width: bars.counts.map((_, i) => e[i + 1] - e[i]), y: bars.counts, marker: { color: colors, line: { width: 0 } },
      customdata: bars.counts.map((_, i) => [e[i], e[i + 1]]),
      hovertemplate: "%{customdata[0]} to %{customdata[1]}: %{y:,} images<extra></extra>",
    };
  };

  const histogram = () => Plotly.react("histogram", [barTrace(data.bars, barColors())], layout({
    xaxis: axis("raw score", { range: range() }), yaxis: axis("images", { rangemode: "tozero" }),
    bargap: 0.04, shapes: shapes(), annotations: labels(), margin: { l: 56, r: 12, t: 74, b: 44 },
  }), OPTIONS);

  const curve = () => {
    const log = id("log").checked;
    const shares = data.atLeast.map((n) => (log && !n ? null : (100 * n) / data.total));
    const traces = [{
      type: "scatter", mode: "lines", name: "here", x: data.edges, y: shares, line: { color: css("--kept"), width: 2.5 },
      customdata: data.atLeast, hovertemplate: "raw ≥ %{x}: %{customdata:,} images, %{y:.3g}%<extra></extra>",
    }];
    const known = data.presets.filter((p) => p.laion !== null && p.name.startsWith("laion"));
    if (known.length) traces.push({
      type: "scatter", mode: "markers", name: "LAION-2B-en", x: known.map((p) => p.raw), y: known.map((p) => 100 * p.laion),
      marker: { color: css("--mark"), size: 8, symbol: "diamond" }, hovertemplate: "LAION-2B-en, raw ≥ %{x}: %{y:.2g}%<extra></extra>",
    });
    return Plotly.react("curve", traces, layout({
      xaxis: axis("threshold (raw)", { range: range() }),
      yaxis: axis("kept", log ? { type: "log", ticksuffix: "%", dtick: 1 } : { range: [0, 102], ticksuffix: "%" }),
      shapes: shapes(), showlegend: known.length > 0, legend: { x: 1, xanchor: "right", y: 1, bgcolor: css("--card") },
    }), OPTIONS);
  };

  const others = () => document.querySelectorAll("[data-head]").forEach((box) => {
    const bars = data.otherHeads[Number(box.dataset.head)];
    Plotly.react(box, [barTrace(bars, css("--kept"))], layout({
      xaxis: axis(bars.axis || "score"), yaxis: axis("images", { rangemode: "tozero" }), bargap: 0.04,
    }), OPTIONS);
  });

  const shardMeans = () => {
    const s = data.shards;
    if (!id("shard-means")) return;
    Plotly.react("shard-means", [{
      type: "scatter", mode: "markers", x: s.index, y: s.mean,
      marker: {
        size: s.odd.map((odd) => (odd ? 9 : 6)), color: s.odd.map((odd) => css(odd ? "--mark" : "--kept")),
        symbol: s.odd.map((odd) => (odd ? "diamond" : "circle")),
      },
      customdata: s.name.map((name, i) => [plain(name), percent(s.keep[i]), percent(s.bad[i])]),
      hovertemplate: "%{customdata[0]}<br>mean %{y:.3f}, kept %{customdata[1]}, bad %{customdata[2]}<extra></extra>",
    }], layout({
      xaxis: axis(s.every > 1 ? `shard (every ${s.every}th, and those that stand out)` : "shard", {
        range: [-0.5, Math.max(...s.index) + 0.5], tickformat: ",d", zeroline: false,
      }),
      yaxis: axis("mean score"),
    }), OPTIONS);
  };

  const rate = () => {
    const s = data.speed;
    if (!s || !id("rate")) return;
    const colors = ["--kept", "--mark", "--dropped", "--soft"];
    const stages = [...new Set(s.bound)];
    const unit = s.width * s.rate.length > 300 ? [60, "minutes"] : [1, "seconds"];
    Plotly.react("rate", stages.map((stage, i) => ({
      type: "bar", name: stage ? `bound by ${plain(stage)}` : "no work", x: s.seconds.map((t) => t / unit[0]),
      y: s.rate.map((r, j) => (s.bound[j] === stage ? r : null)), width: s.width / unit[0],
      marker: { color: css(colors[i % colors.length]) }, hovertemplate: "%{y:,.1f} images/s<extra></extra>",
    })), layout({
      xaxis: axis(unit[1]), yaxis: axis("images/s", { rangemode: "tozero" }), barmode: "overlay", bargap: 0,
      showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    }), OPTIONS);
  };

  const shots = [...document.querySelectorAll("#cut details .shot, #look .shot")];
  const unique = new Map(shots.map((shot) => [shot.title + "\n" + shot.dataset.score, shot]));
  const ranked = [...unique.values()].sort((a, b) => a.dataset.score - b.dataset.score);
  const reaches = (score, cut) => Math.fround(score) >= Math.fround(cut);
  const isKept = (score) => reaches(score, data.edges[place]) &&
    !(isBounded() && Math.fround(score) > Math.fround(data.edges[upper]));
  const pictures = (cut) => {
    let first = ranked.findIndex((shot) => reaches(shot.dataset.score, cut));
    if (first < 0) first = ranked.length;
    const copies = (list) => list.map((shot) => {
      const copy = shot.cloneNode(true);
      copy.classList.remove("out");
      return copy;
    });
    const fill = (box, list) => {
      box.replaceChildren(...copies(list));
      if (!list.length) box.textContent = "none on this page";
    };
    fill(id("just-below"), ranked.slice(Math.max(0, first - 8), first).reverse());
    fill(id("just-above"), ranked.slice(first, first + 8));
    shots.forEach((shot) => shot.classList.toggle("out", !isKept(shot.dataset.score)));
  };
  const groups = () => document.querySelectorAll("#groups tbody tr").forEach((row, i) => {
    const one = data.groups[i];
    const share = keptOf(one) / one.total;
    row.querySelector(".kept").textContent = whole(keptOf(one));
    row.querySelector(".share").textContent = percent(share);
    row.querySelector("meter").value = share;
  });

  const words = () => {
    const cut = data.edges[place], kept = keptOf(data), share = percent(kept / data.total);
    const to = isBounded() ? data.edges[upper] : null;
    id("t-raw").textContent = cut;
    id("t-count").textContent = whole(kept);
    id("t-share").textContent = share;
    id("t-upper").textContent = to === null ? "" : ` and ≤ ${to}`;
    if (id("command")) {
      const bounds = `--raw-threshold ${cut}` + (to === null ? "" : ` --max-raw-threshold ${to}`);
      id("command").textContent = [data.command[0], bounds, data.command[1]].join(" ");
    }
    upperSlider.setAttribute("aria-valuetext", to === null ? "no upper bound" : `raw ${to}, keeps ${whole(kept)}, ${share}`);
    slider.setAttribute("aria-valuetext", `raw ${cut}, keeps ${whole(kept)}, ${share}`);
    document.querySelectorAll(".preset").forEach((b) => b.closest("tr").classList.toggle("chosen", Number(b.dataset.raw) === cut));
    pictures(cut);
    groups();
  };
  let waiting = false;
  const marksOnly = () => {
    waiting = false;
    Plotly.update("histogram", { "marker.color": [barColors()] }, { shapes: shapes() });
    Plotly.relayout("curve", { shapes: shapes() });
  };
  const show = (from) => {
    if (from !== slider) slider.value = place;
    if (from !== upperSlider) upperSlider.value = upper;
    if (from !== id("typed")) id("typed").value = data.edges[place];
    if (from !== id("typed-upper")) id("typed-upper").value = isBounded() ? data.edges[upper] : "";
    words();
    if (!waiting) {
      waiting = true;
      requestAnimationFrame(marksOnly);
    }
  };
  // The bound that is moved pushes the other one along.
  const choose = (to, from) => {
    place = Math.min(Math.max(to, 0), last);
    upper = Math.max(upper, place);
    show(from);
  };
  const chooseUpper = (to, from) => {
    upper = Math.min(Math.max(to, 0), last);
    place = Math.min(place, upper);
    show(from);
  };
  const nearest = (raw) => data.edges.reduce((best, edge, i) => (Math.abs(edge - raw) < Math.abs(data.edges[best] - raw) ? i : best), 0);

  // Without leave to write the clipboard the text is selected, for the reader's own keys.
  const copied = (box) => navigator.clipboard.writeText(box.textContent).then(() => true).catch(() => {
    getSelection().selectAllChildren(box);
    return document.execCommand("copy");
  });

  const draw = () => {
    if (slider) {
      histogram();
      curve();
      others();
    }
    shardMeans();
    rate();
  };
  if (slider) {
    slider.addEventListener("input", () => choose(Number(slider.value), slider));
    id("typed").addEventListener("input", (event) => {
      const raw = event.target.valueAsNumber;
      if (Number.isFinite(raw)) choose(nearest(raw), event.target);
    });
    id("typed").addEventListener("change", () => choose(place, null));
    upperSlider.addEventListener("input", () => chooseUpper(Number(upperSlider.value), upperSlider));
    id("typed-upper").addEventListener("input", (event) => {
      const raw = event.target.valueAsNumber;
      chooseUpper(Number.isFinite(raw) ? nearest(raw) : last, event.target);
    });
    id("typed-upper").addEventListener("change", () => chooseUpper(upper, null));
    id("reset").addEventListener("click", () => {
      [place, upper] = [data.start, data.startUpper];
      show(null);
    });
    id("log").addEventListener("change", curve);
    id("copy")?.addEventListener("click", () => copied(id("command")).then((done) => {
      id("copy").textContent = done ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { id("copy").textContent = "Copy command"; }, 2000);
    }));
    document.querySelectorAll(".preset").forEach((button) =>
      button.addEventListener("click", () => choose(nearest(Number(button.dataset.raw)), null)));
    show(null); // a reload would else bring back where they stood
  }
  draw();
  for (const query of ["(prefers-color-scheme: dark)", "(max-width: 46rem)"]) matchMedia(query).addEventListener("change", draw);
  document.documentElement.dataset.ready = "yes";
})();
