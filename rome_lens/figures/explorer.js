"use strict";
/* The page of one trace: grids of cells, and a panel that compares what is chosen. All text is set as text. */
(() => {
  const { grids, states, measure } = JSON.parse(document.getElementById("trace").textContent);
  const panel = document.getElementById("panel");
  // What is chosen: a cell {grid, row, layer}, a token {grid, row} or a layer {grid, layer}; `pinned` stays.
  let pinned = null;

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  function drawn(tag, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function number(value) {
    if (value === 0 || !Number.isFinite(value)) return String(value);
    const shown = value.toFixed(4);
    return Number(shown) === 0 ? value.toExponential(1) : shown;
  }

  const hue = (grid) => `--hue: var(--${grid.stream})`;
  const risen = (grid, score) => (grid.falls ? grid.low - score : score - grid.low);
  // Where the colours of a grid begin and end: the same for all that share a scale.
  const scale = (grid) => (grid.falls ? [grid.ends[1], grid.ends[0]] : grid.ends);
  const level = (grid, score) => {
    const [pale, deep] = scale(grid);
    return pale === deep ? 0 : Math.min(1, Math.max(0, (score - pale) / (deep - pale)));
  };
  const share = (grid, score) => (score - grid.low) / (grid.high - grid.low);
  // Rows of other grids of the same kind stand for the same token or head.
  const alike = (grid) => grids.filter((other) => other.heads === grid.heads);
  // Grids of one stream, severed and not, are told apart by their lines; before an edit is paler.
  const styled = (grid) => {
    const nth = grids.filter((other) => other.stream === grid.stream && other.state === grid.state).indexOf(grid);
    return `${["solid", "dotted", "dashed"][nth]}${states.length > 1 && grid.state === 0 ? " before" : ""}`;
  };
  const peakOf = (grid) => (grid.peak === null ? "no peak: every score is 0"
    : `peak ${number(grid.scores[grid.peak[0]][grid.peak[1]])}: layer ${grid.peak[0]}, ${place(grid, grid.peak[1])}`);
  const place = (grid, row) =>
    grid.heads ? grid.labels[row] : `“${grid.labels[row]}”, position ${grid.first + row}`;
  const named = (grid) => (states.length > 1 ? `${grid.name}, ${states[grid.state]}` : grid.name);

  function reading(grid, row, layer) {
    const score = grid.scores[layer][row], said = grid.said.length ? grid.said[layer][row] : "";
    const of = grid.high === grid.low ? "" : `, ${(100 * share(grid, score)).toFixed(1)} % of what was lost`;
    const effect = score - grid.low;
    return make("div", { class: `reading ${styled(grid)}`, style: hue(grid) },
      make("b", {}, named(grid)),
      make("span", {}, `${measure} = ${number(score)}, effect ${effect < 0 ? "" : "+"}${number(effect)}${of}`),
      said ? make("span", { class: "quiet" }, `says ${said}`) : null);
  }

  function showCell({ grid, row, layer }) {
    panel.replaceChildren(
      make("h2", {}, `Layer ${layer}, ${place(grid, row)}`),
      ...alike(grid).map((other) => reading(other, row, layer)),
      hint());
  }

  /* A line a grid: along the layers of one token, or along the tokens of one layer. */
  function showLine({ grid, row, layer }) {
    const along = row === undefined ? "token" : "layer", several = alike(grid);
    const lines = several.map((other) =>
      along === "layer" ? other.scores.map((scores) => scores[row]) : other.scores[layer]);
    const ends = several.flatMap((other) => [other.low, other.high]).concat(...lines);
    const least = Math.min(...ends), reach = Math.max(...ends) - least || 1;
    const width = 330, height = 190, left = 44, bottom = along === "layer" ? 26 : 62, count = lines[0].length;
    const x = (at) => left + (count > 1 ? (at * (width - left - 6)) / (count - 1) : 0);
    const y = (value) => 6 + (1 - (value - least) / reach) * (height - 12);
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height + bottom}`, role: "img", "aria-label": `${measure} by ${along === "token" && grid.heads ? "head" : along}` });
    svg.append(drawn("rect", { class: "frame", x: left, y: 0, width: width - left, height }));
    for (const value of [least, least + reach]) {
      svg.append(drawn("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, number(value)));
    }
    const step = along === "layer" ? Math.ceil(count / 8) : Math.ceil(count / 24);
    for (let at = 0; at < count; at += step) {
      const text = along === "layer" ? String(at) : grid.labels[at].slice(0, 12);
      const turned = along === "layer" ? { "text-anchor": "middle" }
        : { "text-anchor": "end", transform: `rotate(-50 ${x(at)} ${height + 12})` };
      svg.append(drawn("text", { x: x(at), y: height + 14, ...turned }, text));
    }
    several.forEach((other, index) => {
      const points = lines[index].map((value, at) => `${x(at)},${y(value)}`).join(" ");
      svg.append(drawn("polyline", { class: `line ${styled(other)}`, style: hue(other), points }));
      lines[index].forEach((value, at) => {
        const dot = drawn("circle", { class: "dot", style: hue(other), cx: x(at), cy: y(value), r: 2.6 });
        const where = along === "layer" ? `layer ${at}` : place(other, at);
        dot.append(drawn("title", {}, `${named(other)}, ${where}: ${number(value)}`));
        svg.append(dot);
      });
    });
    const best = (other, values) => values.reduce((a, b, at) => (risen(other, b) > risen(other, values[a]) ? at : a), 0);
    panel.replaceChildren(
      make("h2", {}, along === "layer" ? `All layers at ${place(grid, row)}` : `Layer ${layer} at all ${grid.heads ? "heads" : "tokens"}`),
      svg,
      ...several.map((other, index) => {
        const at = best(other, lines[index]);
        const where = along === "layer" ? `layer ${at}` : place(other, at);
        return make("div", { class: `reading ${styled(other)}`, style: hue(other) },
          make("b", {}, named(other)), make("span", {}, `most at ${where}: ${number(lines[index][at])}`));
      }),
      hint());
  }

  function hint() {
    return make("p", { class: "quiet" },
      "Choose a cell, a token or a layer. ", make("kbd", {}, "←↑→↓"), " moves, ", make("kbd", {}, "Enter"), " holds, ",
      make("kbd", {}, "Esc"), " or the same again lets go.");
  }

  function showStart() {
    panel.replaceChildren(make("h2", {}, "What brings the answer back"),
      ...grids.map((grid) => make("div", { class: `reading ${styled(grid)}`, style: hue(grid) },
        make("b", {}, named(grid)), make("span", {}, peakOf(grid)))),
      hint());
  }

  function show(chosen) {
    if (chosen === null) showStart();
    else if (chosen.row !== undefined && chosen.layer !== undefined) showCell(chosen);
    else showLine(chosen);
  }

  function pin(chosen) {
    const same = pinned && chosen && pinned.row === chosen.row && pinned.layer === chosen.layer && pinned.grid === chosen.grid;
    pinned = same ? null : chosen;
    for (const grid of grids) {
      const here = pinned !== null && alike(pinned.grid).includes(grid);
      grid.table.querySelectorAll('td[aria-selected="true"]').forEach((cell) => cell.setAttribute("aria-selected", "false"));
      grid.table.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", "false"));
      if (!here) continue;
      const { row, layer } = pinned;
      if (row !== undefined && layer !== undefined) cellAt(grid, row, layer).setAttribute("aria-selected", "true");
      else if (row !== undefined) cellAt(grid, row, -1).setAttribute("aria-pressed", "true");
      else cellAt(grid, -1, layer).setAttribute("aria-pressed", "true");
    }
    show(pinned);
  }

  /* The cell, or with -1 the button that stands for its token or its layer. */
  function cellAt(grid, row, layer) {
    const place = grid.table.rows[row + 1].cells[layer + 1];
    return place.querySelector("button") || place;
  }

  function chosenAt(grid, element) {
    const place = element.closest("td, th");
    if (place === null || !grid.table.contains(place)) return null;
    const row = place.parentElement.rowIndex - 1, layer = place.cellIndex - 1;
    if (row < 0 && layer < 0) return null;
    return { grid, ...(row < 0 ? {} : { row }), ...(layer < 0 ? {} : { layer }) };
  }

  function onKey(grid, event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const chosen = chosenAt(grid, event.target);
    if (chosen === null) return undefined;
    // A button is clicked by these keys itself.
    if ((event.key === "Enter" || event.key === " ") && event.target.matches("td")) {
      event.preventDefault();
      return pin(chosen);
    }
    const move = moves[event.key];
    if (move === undefined) return undefined;
    event.preventDefault();
    const row = Math.min(grid.labels.length - 1, Math.max(-1, (chosen.row ?? -1) + move[0]));
    const layer = Math.min(grid.scores.length - 1, Math.max(-1, (chosen.layer ?? -1) + move[1]));
    if (row < 0 && layer < 0) return undefined;
    grid.table.querySelectorAll('[tabindex="0"]').forEach((element) => element.setAttribute("tabindex", "-1"));
    const next = cellAt(grid, row, layer);
    next.setAttribute("tabindex", "0");
    return next.focus();
  }

  function draw(grid) {
    const layers = grid.scores.map((_, layer) => layer), [peakLayer, peakRow] = grid.peak || [0, 0];
    const every = [1, 2, 5, 10, 20, 50].find((step) => layers.length / step <= 12) || 100;
    const button = (text, label) => make("button", { type: "button", tabindex: "-1", "aria-pressed": "false", "aria-label": label, title: label }, text);
    const head = make("tr", {}, make("th", {}),
      ...layers.map((layer) => make("th", { scope: "col" }, button(layer % every ? "·" : String(layer), `layer ${layer}`))));
    const rows = grid.labels.map((label, row) =>
      make("tr", {},
        make("th", { scope: "row" }, button(label, grid.heads ? label : `token ${place(grid, row)}`)),
        ...layers.map((layer) => make("td", {
          style: `--v: ${level(grid, grid.scores[layer][row]).toFixed(3)}`,
          tabindex: row === peakRow && layer === peakLayer ? "0" : "-1",
          "aria-selected": "false",
          "aria-label": `layer ${layer}, ${place(grid, row)}: ${number(grid.scores[layer][row])}`,
          ...(grid.peak !== null && row === peakRow && layer === peakLayer ? { class: "peak" } : {}),
        }))));
    const longest = Math.max(...grid.labels.map((label) => label.length));
    const label = Math.min(14, Math.max(4, longest)) * 7 + 8;
    grid.table = make("table", { class: "cells", role: "grid", "aria-label": named(grid), style: `--label: ${label}px; min-width: ${label + 7 * layers.length}px` },
      make("thead", {}, head), make("tbody", {}, ...rows));
    grid.table.addEventListener("click", (event) => {
      const chosen = chosenAt(grid, event.target);
      if (chosen !== null) pin(chosen);
    });
    grid.table.addEventListener("pointerover", (event) => {
      const chosen = event.pointerType === "touch" ? null : chosenAt(grid, event.target);
      if (chosen !== null) show(chosen);
    });
    grid.table.addEventListener("pointerleave", () => show(pinned));
    grid.table.addEventListener("focusin", (event) => {
      const chosen = event.target.matches(":focus-visible") ? chosenAt(grid, event.target) : null;
      if (chosen !== null) show(chosen);
    });
    grid.table.addEventListener("keydown", (event) => onKey(grid, event));
    return make("figure", { style: hue(grid) },
      make("figcaption", {}, grid.title, make("span", {}, peakOf(grid))),
      make("div", { class: "scroll" }, grid.table),
      make("div", { class: "axis" }, grid.axis),
      make("div", { class: "ramp" }, number(scale(grid)[0]), make("i"), number(scale(grid)[1])));
  }

  const holder = document.getElementById("grids");
  holder.style.setProperty("--least", `${Math.max(280, Math.min(640, 60 + 8 * grids[0].scores.length))}px`);
  if (states.length > 1) {
    // Each grid beside the same one of the other state.
    holder.classList.add("pairs");
    const half = grids.length / 2;
    for (let index = 0; index < half; index += 1) holder.append(draw(grids[index]), draw(grids[half + index]));
  } else {
    holder.append(...grids.map(draw));
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") pin(null);
  });
  showStart();
})();
