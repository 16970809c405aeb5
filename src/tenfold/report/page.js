"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const PAPER_WIDTH = 680;
  const NARROW = 520;

  const TICK = 60; // pixels that a number on an axis takes, with what lies around the axes

  function thinned({ tickvals, domain = [0, 1] }, width) {
    const most = Math.max(2, Math.floor(((domain[1] - domain[0]) * width) / TICK));
    return tickvals.filter((_, place) => place % Math.ceil(tickvals.length / most) === 0);
  }

  // Charts: colours, font and sizes of text are those of the page, whatever the figure says.
  function dressed(layout, width) {
    const ink = colour("--ink"), faint = colour("--faint"), narrow = width < NARROW;
    const size = narrow ? 10 : 12;
    const own = structuredClone(layout);
    Object.assign(own, {
      width,
      margin: { t: 8, r: 8, b: 8, l: 8, ...layout.margin },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      dragmode: false,
      font: { family: colour("--font"), size, color: ink },
      hoverlabel: { align: "left", bgcolor: colour("--raised"), bordercolor: faint, font: { color: ink, size } },
    });
    for (const name of Object.keys(own).filter((key) => /^[xy]axis\d*$/.test(key))) {
      const axis = own[name];
      Object.assign(axis, { automargin: true, fixedrange: true, gridcolor: colour("--grid"), linecolor: colour("--rule") });
      Object.assign(axis, { zerolinecolor: colour("--rule"), tickcolor: colour("--rule") });
      axis.tickfont = { color: faint, size: Math.min(size, axis.tickfont?.size ?? size) };
      if (name[0] === "x" && axis.tickvals) axis.tickvals = thinned(axis, width);
      axis.title = { ...axis.title, font: { color: faint, size } };
    }
    return own;
  }

  function draw() {
    for (const chart of document.querySelectorAll("figure.chart")) {
      const plot = chart.querySelector(".plot");
      const { data, layout } = JSON.parse(chart.querySelector("script").textContent);
      const width = paper.matches ? PAPER_WIDTH : plot.clientWidth;
      Plotly.react(plot, data, dressed(layout, width), { displayModeBar: false });
    }
  }

  // Printing shows all: folded tables are opened, and closed again afterwards.
  let opened = [];
  function print() {
    for (const details of opened) details.open = false;
    opened = paper.matches ? [...document.querySelectorAll("details:not([open])")] : [];
    for (const details of opened) details.open = true;
    draw();
  }

  // Tables: a click on a heading sorts, a click on it again turns the order round. What is empty comes last.
  function key(row, column) {
    const cell = row.cells[column], value = cell.dataset.value;
    if (value === undefined) return cell.textContent.trim();
    return value === "" ? "" : Number(value);
  }

  function compared(a, b) {
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(b, "en", { numeric: true });
  }

  function sort(table, column) {
    const head = table.tHead.rows[0].cells, body = table.tBodies[0];
    const descending = head[column].getAttribute("aria-sort") === "ascending";
    for (const cell of head) cell.setAttribute("aria-sort", "none");
    head[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return descending ? compared(b, a) : compared(a, b);
    });
    body.append(...rows.map(([, row]) => row));
  }

  function sortable(table) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      button.addEventListener("click", () => sort(table, column));
      cell.append(button);
      cell.setAttribute("aria-sort", "none");
    });
  }

  function filtered(block) {
    const tools = document.createElement("div"), label = document.createElement("label");
    const field = document.createElement("input"), count = document.createElement("output");
    const rows = [...block.querySelectorAll("tbody tr")];
    tools.className = "tools";
    field.type = "search";
    label.append("Show only rows with ", field);
    tools.append(label, count);
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      count.textContent = wanted && `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
    });
    block.prepend(tools);
  }

  document.querySelectorAll("table").forEach(sortable);
  document.querySelectorAll(".table.filters").forEach(filtered);
  if (document.querySelector("figure.chart")) {
    draw();
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth !== width) draw();
      width = innerWidth;
    });
    dark.addEventListener("change", draw);
  }
  paper.addEventListener("change", print);
})();
