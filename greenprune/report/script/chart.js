// A frame with two axes, and what is drawn into it.

const MARGIN = { left: 62, right: 14, top: 10, bottom: 46 };

function ticks(low, high, about) {
  const raw = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function spread(values, share = 0.06) {
  const low = Math.min(...values), high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
}

const short = (v) => {
  const size = Math.abs(v);
  for (const [limit, letter] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) if (size >= limit) return general(v / (limit === 1e4 ? 1e3 : limit)) + letter;
  return general(v);
};

/** x, y: [low, high]. Gives the element, its scales, and the group to draw into. */
function frame(holder, { x, y, xTitle, yTitle, height = 380, label, xScale = 1, yScale = 1 }) {
  const width = Math.max(280, Math.min(holder.clientWidth || 800, 960));
  const sx = (v) => MARGIN.left + ((v - x[0]) / (x[1] - x[0])) * (width - MARGIN.left - MARGIN.right);
  const sy = (v) => height - MARGIN.bottom - ((v - y[0]) / (y[1] - y[0])) * (height - MARGIN.top - MARGIN.bottom);
  const [left, right, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, height - MARGIN.bottom];
  const grid = svg("g", { class: "grid", "aria-hidden": "true" });
  for (const v of ticks(x[0] / xScale, x[1] / xScale, width / 95)) {
    grid.append(svg("line", { x1: sx(v * xScale), x2: sx(v * xScale), y1: top, y2: bottom }), svg("text", { x: sx(v * xScale), y: bottom + 16, "text-anchor": "middle" }, short(v)));
  }
  for (const v of ticks(y[0] / yScale, y[1] / yScale, 6)) {
    grid.append(svg("line", { x1: left, x2: right, y1: sy(v * yScale), y2: sy(v * yScale) }), svg("text", { x: left - 6, y: sy(v * yScale) + 4, "text-anchor": "end" }, short(v)));
  }
  grid.append(
    fitted(svg("text", { x: (left + right) / 2, y: height - 8, "text-anchor": "middle", class: "title" }, xTitle), xTitle, right - left + 2 * MARGIN.right),
    fitted(svg("text", { transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "title" }, yTitle), yTitle, height),
  );
  const layer = svg("g");
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label }, grid, layer);
  return { root, layer, sx, sy, left, right, top, bottom, width };
}

/** A title that would be longer than its axis is set narrower. */
function fitted(node, text, room) {
  if (text.length * 6.6 > room) node.setAttribute("style", `font-size:${Math.max(8, (12 * room) / (text.length * 6.6)).toFixed(1)}px`);
  return node;
}

const polyline = (points, attributes = {}) => svg("polyline", { points: points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" "), fill: "none", ...attributes });

/** A trial's mark: its method's colour and shape, filled where it was healed. */
function trialMark(i, x, y, size = 6, attributes = {}) {
  const { colour, path } = lookOf(i);
  const dense = methodOf(i) === "none";
  return svg("path", {
    d: path, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${dense ? size * 1.6 : size})`, class: dense ? "mark dense" : "mark",
    stroke: dense ? null : colour, fill: dense ? null : healed(i) ? colour : "var(--paper)", "vector-effect": "non-scaling-stroke", ...attributes,
  });
}

/** One stop of the Tab key for many marks; arrow keys go from one to the next. Drawn anew, the focus stays at its trial. */
function roving(marks, holder) {
  const focused = holder.contains(document.activeElement) ? document.activeElement.dataset.trial : null;
  const first = Math.max(0, marks.findIndex((mark) => mark.dataset.trial === focused));
  if (focused !== null) requestAnimationFrame(() => marks[first]?.focus());
  marks.forEach((mark, at) => {
    mark.setAttribute("tabindex", at === first ? 0 : -1);
    mark.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (event.key === "Enter" || event.key === " ") mark.dispatchEvent(new MouseEvent("click"));
      else if (step) marks[(at + step + marks.length) % marks.length].focus();
      else return;
      event.preventDefault();
    });
  });
}

function methodLegend(trials) {
  const methods = unique(trials.map(methodOf));
  const items = methods.map((method) => {
    const i = trials.find((trial) => methodOf(trial) === method);
    return html("li", {}, svg("svg", { width: 18, height: 18, viewBox: "-9 -9 18 18", "aria-hidden": "true" }, trialMark(i, 0, 0, method === "none" ? 4 : 6, healed(i) ? { fill: "var(--paper)" } : {})), method === "none" ? "dense model" : method);
  });
  if (trials.some(healed)) items.push(html("li", { class: "note" }, "filled: healed"));
  return html("ul", { class: "legend" }, items);
}

/** Lines of several series: {name, colour, points: [[x, y], …], dashed}; those of one group share an entry of the legend. */
function lineChart(holder, { series, xTitle, yTitle, label, height = 300, fromZero = false }) {
  const points = series.flatMap((one) => one.points);
  if (!points.length) return html("p", { class: "note" }, "Nothing to draw.");
  const range = (at) => spread([...points.map((p) => p[at]), ...(fromZero ? [0] : [])], 0.05);
  const chart = frame(holder, { x: range(0), y: range(1), xTitle, yTitle, height, label });
  const line = ({ colour, dashed }, places) => polyline(places, { stroke: colour, "stroke-width": 2, "stroke-dasharray": dashed ? "5 4" : null });
  for (const { name, colour, points: one, dashed, path } of series) {
    chart.layer.append(line({ colour, dashed }, one.map(([x, y]) => [chart.sx(x), chart.sy(y)])));
    for (const [x, y] of one.length > 60 ? [] : one) {
      const dot = path ? svg("path", { d: path, transform: `translate(${chart.sx(x)} ${chart.sy(y)}) scale(4.5)`, fill: colour }) : svg("circle", { cx: chart.sx(x), cy: chart.sy(y), r: 3, fill: colour });
      chart.layer.append(withTip(dot, () => [name, `${general(x)}: ${general(y)}`]));
    }
  }
  const legend = new Map(series.filter((one) => one.name).map((one) => [one.group ?? one.name, one]));
  const sample = (one) => svg("svg", { width: 23, height: 10, "aria-hidden": "true" }, line(one, [[0, 5], [23, 5]]));
  return html("div", {}, chart.root, html("ul", { class: "legend" }, [...legend].map(([name, one]) => html("li", {}, sample(one), name))));
}
