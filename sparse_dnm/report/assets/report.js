"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  const trouble = (text) => {
    byId("trouble").textContent = text;
    byId("trouble").hidden = false;
  };

  // -- arrays: base64 of gzip of little-endian numbers --------------------------------------------------------

  const TYPES = { Uint8Array, Int8Array, Int16Array, Uint16Array, Uint32Array, Float32Array };
  const unpack = async ({ type, gzip }) => {
    const bytes = Uint8Array.from(atob(gzip), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new TYPES[type](await new Response(stream).arrayBuffer());
  };
  if (typeof DecompressionStream === "undefined") {
    trouble("This browser cannot unpack the page (no DecompressionStream): use one of 2023 or later.");
    return;
  }
  const arrays = {};
  for (const [name, packed] of Object.entries(data.arrays)) arrays[name] = await unpack(packed);

  // -- colours ------------------------------------------------------------------------------------------------

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const axis = (extra) => ({ gridcolor: colour("grid"), zerolinecolor: colour("grid"), linecolor: colour("rule"),
    tickcolor: colour("rule"), ...extra });
  const layout = (extra) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("ink"), size: 12 },
    margin: { l: 60, r: 15, t: 10, b: 45 }, hoverlabel: { namelength: -1 }, showlegend: false, ...extra,
  });
  const CONFIG = { responsive: true, displayModeBar: false };
  const diverging = () => [[0, colour("negative")], [0.5, colour("panel")], [1, colour("positive")]];
  const LINES = () => [
    { color: colour("negative"), dash: "solid" }, { color: colour("positive"), dash: "dash" },
    { color: colour("green"), dash: "dot" }, { color: colour("purple"), dash: "dashdot" },
    { color: colour("ink"), dash: "longdash" },
  ];

  // -- the structure at a snapshot ----------------------------------------------------------------------------

  // full: an edge's strength at the limit of colours; exact: a cell's at the snapshot's largest
  const { frames, grid, n_neurons: n, n_inputs, n_sources, limit, full, exact } = data;
  const first = [0];
  for (const frame of frames) first.push(first[first.length - 1] + frame.shown);

  const matrix = (k) => {
    const size = grid.rows * grid.columns, rows = [];
    for (let i = 0; i < grid.rows; i++) {
      const row = new Float32Array(grid.columns);
      for (let j = 0; j < grid.columns; j++) {
        const value = arrays.cells[k * size + i * grid.columns + j];
        row[j] = value === 0 ? NaN : (value * frames[k].largest) / exact;
      }
      rows.push(row);
    }
    return rows;
  };

  const half = (grid.step - 1) / 2;
  const strengthTraces = (k) => [{
    type: "heatmap", z: matrix(k), x0: half, dx: grid.step, y0: n_inputs + half, dy: grid.step, zmin: -limit, zmax: limit,
    colorscale: diverging(), hoverongaps: false, colorbar: { title: { text: "strength" }, thickness: 12 },
    hovertemplate: "source %{x:.0f}, reader %{y:.0f}<br>strength %{z:.3f}<extra></extra>",
  }];
  // A reader's zoom outlives the next snapshot, until "Whole ..." is chosen or the plot is double-clicked.
  const zoomed = {};
  const kept = (id, fresh) => {
    if (zoomed[id]) for (const name of ["xaxis", "yaxis"]) fresh[name].range = byId(id).layout[name].range;
    return fresh;
  };
  const watch = (id, whole) => {
    byId(id).on("plotly_relayout", (change) => {
      if ("xaxis.range[0]" in change || "yaxis.range[0]" in change) zoomed[id] = true;
      else if (change["xaxis.autorange"] || change["yaxis.autorange"]) whole();
    });
  };
  const strengthLayout = () => layout({
    xaxis: axis({ title: { text: "source neuron" }, showgrid: false, zeroline: false, range: [-0.5, n_sources - 0.5] }),
    yaxis: axis({ title: { text: "reading neuron" }, showgrid: false, zeroline: false, range: [n - 0.5, n_inputs - 0.5] }),
  });

  const webgl = (() => {
    try {
      return Boolean(document.createElement("canvas").getContext("webgl"));
    } catch {
      return false;
    }
  })();
  const SCATTER = webgl ? "scattergl" : "scatter";
  const WIDTHS = [0.5, 1, 1.8], OPACITIES = [0.15, 0.4, 0.8];

  const TURNS = 4; // of two traces the second would hide the first: the signs take turns
  const edgeTraces = (k) => {
    const { levels, heights, sources, readers, strengths } = arrays;
    const faint = Math.min(1, Math.sqrt(1500 / Math.max(1, first[k + 1] - first[k])));
    const strongerThan = (q) => Math.min(2, Math.floor((Math.abs(q) * 3) / full));
    const bin = (e) => (strongerThan(strengths[e]) * TURNS + (e % TURNS)) * 2 + (strengths[e] < 0 ? 0 : 1);
    const counts = new Array(6 * TURNS).fill(0);
    for (let e = first[k]; e < first[k + 1]; e++) counts[bin(e)]++;
    const xs = counts.map((c) => new Float32Array(3 * c)), ys = counts.map((c) => new Float32Array(3 * c));
    const at = counts.map(() => 0);
    for (let e = first[k]; e < first[k + 1]; e++) {
      const b = bin(e), j = sources[e], i = readers[e], p = at[b];
      xs[b].set([levels[k * n + j], levels[k * n + i], NaN], p);
      ys[b].set([heights[j], heights[i], NaN], p);
      at[b] = p + 3;
    }
    return counts.map((_, b) => {
      const strength = Math.floor(b / (2 * TURNS)), name = b % 2 ? "positive" : "negative";
      return {
        type: SCATTER, mode: "lines", x: xs[b], y: ys[b], hoverinfo: "skip", opacity: OPACITIES[strength] * faint,
        line: { color: colour(name), width: WIDTHS[strength] * faint }, name, showlegend: false, legendgroup: name,
      };
    });
  };
  // What stands for the edges in the legend, at full strength
  const signs = () => ["negative", "positive"].map((name) => ({
    type: SCATTER, mode: "lines", x: [null], y: [null], line: { color: colour(name), width: 2 }, name, legendgroup: name,
    hoverinfo: "skip",
  }));

  const KINDS = () => [
    ["idle", "x", colour("idle"), 4], ["input", "square", colour("sky-blue"), 5],
    ["hidden neuron", "circle", colour("hidden"), 5], ["output", "diamond", colour("purple"), 10],
  ];
  const neuronTraces = (k) => {
    const groups = [[], [], [], []];
    const small = n > 2000 ? 0.5 : 1;
    for (let i = 0; i < n; i++) {
      const kind = i < n_inputs ? 1 : i < n_sources ? 2 : 3;
      groups[arrays.live[k * n + i] ? kind : 0].push(i);
    }
    return KINDS().map(([name, symbol, color, size], g) => ({
      type: SCATTER, mode: "markers", x: groups[g].map((i) => arrays.levels[k * n + i]),
      y: groups[g].map((i) => arrays.heights[i]), text: groups[g].map((i) => `${name} ${i}`),
      hovertemplate: "%{text}, level %{x}<extra></extra>", marker: { symbol, color, size: size * small }, name,
    }));
  };
  const networkTraces = (k) => [...edgeTraces(k), ...neuronTraces(k), ...signs()];
  const networkLayout = (k) => layout({
    hovermode: "closest", margin: { l: 20, r: 15, t: 10, b: 45 }, showlegend: true,
    legend: { orientation: "h", y: -0.14, itemsizing: "constant" },
    xaxis: axis({ title: { text: "level" }, zeroline: false, range: [-0.03 * frames[k].depth - 0.2, 1.03 * frames[k].depth + 0.2] }),
    yaxis: axis({ visible: false, range: [1.03, -0.03] }),
  });

  let shown = -1;
  const show = async (k) => {
    shown = k;
    const { words } = frames[k];
    byId("now").textContent = words;
    byId("moment").setAttribute("aria-valuetext", words);
    byId("strengths").setAttribute("aria-label", `Matrix of strengths, ${words}`);
    byId("network").setAttribute("aria-label", `Network by levels, ${words}`);
    await Promise.all([
      Plotly.react("strengths", strengthTraces(k), kept("strengths", strengthLayout()), CONFIG),
      Plotly.react("network", networkTraces(k), kept("network", networkLayout(k)), CONFIG),
    ]);
    document.documentElement.dataset.shown = k;
  };

  // -- curves and fields --------------------------------------------------------------------------------------

  const last = (panel) => Math.max(...panel.series.map((series) => series.x[series.x.length - 1]));
  // Ticks of a logarithmic axis: powers of ten, or over few decades 1, 2 and 5 of each, in full
  const decades = (values) => {
    const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), 0);
    return high / low > 300 ? { dtick: 1, exponentformat: "power" } : { dtick: "D2", tickformat: ",~g" };
  };
  // The band between quartiles: its lower edge, and its upper one filled down to that
  const band = ({ x, low, high }) => [low, high].map((y, k) => ({
    type: "scatter", mode: "lines", x, y, line: { width: 0, color: LINES()[0].color }, showlegend: false,
    ...(k ? { fill: "tonexty", fillcolor: LINES()[0].color + "40" } : {}),
    hovertemplate: `%{y:.5~g}<extra>${k ? "upper" : "lower"} quartile</extra>`,
  }));
  const curve = (panel, index) => Plotly.react(`curve-${index}`, (panel.band ? band(panel.band) : []).concat(panel.series.map((series, s) => ({
    type: "scatter", mode: series.x.length < 12 ? "lines+markers" : "lines", x: series.x, y: series.y, name: series.name,
    line: { ...LINES()[s % 5], width: 2 },
    hovertemplate: `%{y:.5~g}<extra>${series.name}</extra>`,
  }))), layout({
    hovermode: "x unified", showlegend: panel.series.length > 1,
    legend: { orientation: "h", y: -0.25 }, hoverlabel: { bgcolor: colour("paper") },
    xaxis: axis({ title: { text: "step", standoff: 4 }, ...(last(panel) < 10 ? { dtick: 1 } : {}) }),
    yaxis: axis({ type: panel.logarithmic ? "log" : "linear", title: { text: panel.unit },
      ...(panel.logarithmic ? decades(panel.series.flatMap((series) => series.y)) : {}) }),
  }), CONFIG);

  const density = () => Plotly.react("density", [{
    type: "scatter", mode: "markers", x: data.density.x, y: data.density.y, text: data.density.steps,
    hovertemplate: "step %{text}<br>density %{x:.4f}<br>%{y:.5~g} µs<extra></extra>",
    marker: { color: data.density.steps, colorscale: "Viridis", size: 7, line: { color: colour("quiet"), width: 0.5 } },
  }], layout({
    xaxis: axis({ type: "log", title: { text: "density (active / possible edges)" }, ...decades(data.density.x) }),
    yaxis: axis({ type: "log", title: { text: "µs" }, ...decades(data.density.y) }),
  }), CONFIG);

  const field = (f, index) => Plotly.react(`field-${index}`, [{
    type: "heatmap", z: f.picture, zmin: -1, zmax: 1, colorscale: diverging(), hoverongaps: false, showscale: false,
    text: f.names, hovertemplate: "%{text}: %{z:.2f}<extra></extra>",
  }], layout({
    margin: { l: 10, r: 10, t: 10, b: 10 }, plot_bgcolor: colour("rule"),
    xaxis: { visible: false, constrain: "domain" },
    yaxis: { visible: false, autorange: "reversed", scaleanchor: "x", constrain: "domain" },
  }), CONFIG);

  // Names of classes are text: Plotly would read tags in them, links among these
  const text = (name) => name.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  // gaps between fields are null in JSON; the names of tiles are spread over their pixels
  for (const f of data.fields) {
    f.names = f.picture.map((row, y) => row.map((_, x) =>
      text(f.tiles[Math.floor(y / (f.height + 1))][Math.floor(x / (f.width + 1))])));
  }

  const FEW_ROWS = 20; // up to so many have their names beside them
  const along = (part, index) => {
    const names = part.names.map(text), numbers = names.map((_, row) => row);
    return Plotly.react(`along-${index}`, [{
      type: "heatmap", z: part.values, zmin: -part.limit, zmax: part.limit, colorscale: diverging(), hoverongaps: false,
      colorbar: { thickness: 10, outlinewidth: 0 }, text: part.values.map((row, k) => row.map(() => names[k])),
      hovertemplate: "%{text}, time step %{x}: %{z:.4~g}<extra></extra>",
    }], layout({
      margin: { l: 80, r: 10, t: 10, b: 40 },
      xaxis: axis({ title: { text: "time step", standoff: 4 } }),
      yaxis: axis({ autorange: "reversed", showgrid: false,
        ...(names.length > FEW_ROWS ? { showticklabels: false } : { tickvals: numbers, ticktext: names }) }),
    }), CONFIG);
  };

  const rest = () => Promise.all([...data.panels.map(curve), density(), ...data.fields.map(field), ...data.along.map(along)]);

  // -- what a reader can do -----------------------------------------------------------------------------------

  const slider = byId("moment"), play = byId("play"), now = byId("now");
  let playing = 0; // the number of the run that moves the slider; 0: none
  let runs = 0;
  const stop = () => {
    playing = 0;
    play.textContent = "Play";
    now.setAttribute("aria-live", "polite");
  };
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const run = async () => {
    const mine = (playing = ++runs);
    play.textContent = "Pause";
    now.setAttribute("aria-live", "off"); // a screen reader would not come to an end
    if (Number(slider.value) >= frames.length - 1) slider.value = 0;
    while (playing === mine) {
      await Promise.all([show(Number(slider.value)), pause(100)]);
      if (playing !== mine) return;
      if (Number(slider.value) >= frames.length - 1) stop();
      else slider.value = Number(slider.value) + 1;
    }
  };
  let busy = false;
  slider.addEventListener("input", async () => {
    stop();
    if (busy) return; // the loop below sees the newest value
    busy = true;
    while (shown !== Number(slider.value)) await show(Number(slider.value));
    busy = false;
  });
  play.disabled = frames.length < 2;
  play.addEventListener("click", () => (playing ? stop() : run()));
  const whole = {};
  for (const [id, fresh] of [["strengths", strengthLayout], ["network", () => networkLayout(shown)]]) {
    whole[id] = () => {
      zoomed[id] = false;
      const { xaxis, yaxis } = fresh();
      return Plotly.relayout(id, { "xaxis.range": xaxis.range, "yaxis.range": yaxis.range });
    };
  }
  for (const button of document.querySelectorAll("button.reset")) {
    button.addEventListener("click", () => whole[button.dataset.plot]());
  }

  const THEMES = ["system", "light", "dark"], NAMES = { system: "as the system", light: "light", dark: "dark" };
  let theme = 0;
  const redraw = () => Promise.all([show(Math.max(shown, 0)), rest()]);
  byId("theme").addEventListener("click", () => {
    theme = (theme + 1) % 3;
    if (theme) document.documentElement.dataset.theme = THEMES[theme];
    else delete document.documentElement.dataset.theme;
    byId("theme").textContent = `Colours: ${NAMES[THEMES[theme]]}`;
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  await show(frames.length - 1);
  for (const id of Object.keys(whole)) watch(id, whole[id]);
  await rest();
  document.documentElement.dataset.ready = "yes";
})().catch((error) => {
  const note = document.getElementById("trouble");
  note.textContent = `The figures cannot be drawn: ${error.message}`;
  note.hidden = false;
  console.error(error);
});
