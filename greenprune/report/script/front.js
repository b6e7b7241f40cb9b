// The front: any two columns as axes, filters, error bars, budgets shaded.

const FEW = 12; // a column with more values than these is no filter

function filterColumns() {
  return Object.keys(run.columns).filter((name) => run.columns[name].config && unique(everyTrial.map((i) => cellText(name, i))).length <= FEW);
}

function filters() {
  const boxes = filterColumns().map((name) => {
    const excluded = (state.excluded[name] = new Set());
    const values = unique(everyTrial.map((i) => cellText(name, i)));
    const box = (text) => html("label", {}, html("input", {
      type: "checkbox", checked: true, name, value: text,
      onchange: (event) => { excluded[event.target.checked ? "delete" : "add"](text); changed(); },
    }), ` ${text}`);
    return html("fieldset", {}, html("legend", {}, name), values.map(box));
  });
  return boxes.length ? html("details", { class: "filters" }, html("summary", {}, "Filter trials"), html("div", { class: "row" }, boxes)) : null;
}

function trialLines(i) {
  const numbers = unique([...objectiveNames, "energy_ratio", "parameters_removed_ratio", "peak_memory_bytes"]).filter((name) => known(name) && value(name, i) !== null);
  const lines = [run.labels[i], ...numbers.map((name) => `${heading(name)}: ${withUnit(name, value(name, i))}${errorText(name, i)}`)];
  if (run.probability?.[i] != null) lines.push(`probability of being on the front: ${(100 * run.probability[i]).toFixed(0)}%`);
  const config = Object.keys(run.columns).filter((name) => run.columns[name].config && value(name, i) !== null);
  return [...lines, config.map((name) => `${name} ${cellText(name, i)}`).join(", ")].filter(Boolean);
}

const errorOf = (name, i) => run.errors[name]?.[i] ?? 0;
const errorText = (name, i) => (errorOf(name, i) ? ` ± ${shownError(name, errorOf(name, i))}` : "");

function startFront(part) {
  const names = numeric();
  if (!everyTrial.some(finished)) return false;
  const [first, second] = [...objectiveNames, "trial_number"].filter(known);
  const axes = { y: first, x: second ?? first };
  const holder = html("div", { class: "chart" });
  const problem = html("p", { class: "caution", role: "status", hidden: true });
  const absent = html("p", { class: "note", role: "status" });
  const options = names.map((name) => [name, heading(name)]);
  const pick = (axis) => (name) => { axes[axis] = name; draw(); };
  const controls = html("div", { class: "row" }, chooser("upwards", options, axes.y, pick("y")), chooser("to the right", options, axes.x, pick("x")));

  function draw() {
    const { x, y } = axes;
    const asked = everyTrial.filter(isShown);
    const { rows, problem: why } = comparable(unique([y, x]), asked);
    absent.textContent = rows.length < asked.length ? notDrawn(asked.filter((i) => !rows.includes(i)), [y, x]) : "";
    problem.hidden = why === null && rows.length > 0;
    problem.textContent = why ?? "No trial that the filters leave has both numbers.";
    if (!rows.length) return holder.replaceChildren();
    const judged = !why && directionOf(x) && directionOf(y);
    const best = judged ? frontOf(rows, unique([y, x])) : rows;
    const ends = (name) => rows.flatMap((i) => [value(name, i) - errorOf(name, i), value(name, i) + errorOf(name, i)]);
    const chart = frame(holder, {
      x: spread(ends(x)), y: spread(ends(y)), xTitle: axisTitle(x), yTitle: axisTitle(y), height: 440, xScale: run.columns[x].scale, yScale: run.columns[y].scale,
      label: `${rows.length} trials, ${heading(y)} against ${heading(x)}; arrow keys go from one to the next, Enter chooses`,
    });
    shadeBudgets(chart, x, y);
    if (judged && x !== y) chart.layer.append(polyline(steps(chart, best, x, y), { class: "step" }));
    const marks = [...rows].sort((a, b) => value(x, a) - value(x, b)).map((i) => drawTrial(chart, i, x, y, best.includes(i)));
    roving(marks, holder);
    holder.replaceChildren(chart.root, methodLegend(rows));
  }

  part.replaceChildren(controls, filters() ?? "", problem, holder, absent, html("p", { class: "note" },
    "Bars: one standard error of a score, the 95 % interval of an energy over its windows. Faded: beaten by another trial on both axes. Shaded: outside of the budgets below. Click a trial to choose it for what follows."));
  listen(draw);
  onResize(holder, draw);
  return true;
}

/** How many of these trials failed, are contaminated, or miss a number. */
function notDrawn(trials, names) {
  const kinds = names.map((name) => run.columns[name].kind).filter(Boolean);
  const reasons = { failed: 0, "contaminated by other work on their node": 0, "without a number": 0 };
  for (const i of trials) reasons[!finished(i) ? "failed" : kinds.some((kind) => value(kind, i) === run.contaminated) ? "contaminated by other work on their node" : "without a number"] += 1;
  return `Not drawn: ${Object.entries(reasons).filter(([, count]) => count).map(([why, count]) => `${count} ${why}`).join(", ")}.`;
}

function drawTrial(chart, i, x, y, onFront) {
  const [px, py] = [chart.sx(value(x, i)), chart.sy(value(y, i))];
  const bars = svg("g", { class: "bars", opacity: onFront ? 1 : 0.35 });
  if (errorOf(x, i)) bars.append(svg("line", { x1: chart.sx(value(x, i) - errorOf(x, i)), x2: chart.sx(value(x, i) + errorOf(x, i)), y1: py, y2: py }));
  if (errorOf(y, i)) bars.append(svg("line", { x1: px, x2: px, y1: chart.sy(value(y, i) - errorOf(y, i)), y2: chart.sy(value(y, i) + errorOf(y, i)) }));
  if (state.chosen === i) bars.append(svg("circle", { cx: px, cy: py, r: 12, class: "ring" }));
  const mark = trialMark(i, px, py, 6, {
    role: "button", opacity: onFront ? 1 : 0.35, "aria-pressed": state.chosen === i, "data-trial": i, onclick: () => choose(i),
    "aria-label": `${run.labels[i]}${onFront ? ", on the front" : ""}: ${heading(y)} ${withUnit(y, value(y, i))}, ${heading(x)} ${withUnit(x, value(x, i))}`,
  });
  chart.layer.append(bars, withTip(mark, () => trialLines(i)));
  return mark;
}

/** The corners between which no trial reached. */
function steps(chart, best, x, y) {
  const ordered = [...best].sort((a, b) => value(x, a) - value(x, b) || value(y, a) - value(y, b));
  return ordered.flatMap((i, at) => {
    const point = [chart.sx(value(x, i)), chart.sy(value(y, i))];
    if (!at) return [point];
    const before = ordered[at - 1];
    const corner = directionOf(x) === "min" ? [point[0], chart.sy(value(y, before))] : [chart.sx(value(x, before)), point[1]];
    return [corner, point];
  });
}

function shadeBudgets(chart, x, y) {
  const { left, right, top, bottom } = chart;
  const within = (v, low, high) => Math.max(low, Math.min(high, v));
  const rectangle = (x1, y1, x2, y2) => chart.layer.append(svg("rect", { class: "shade", x: x1, y: y1, width: x2 - x1, height: y2 - y1 }));
  if (x in state.budgets) {
    const edge = within(chart.sx(state.budgets[x]), left, right);
    if (directionOf(x) === "max") rectangle(left, top, edge, bottom); else rectangle(edge, top, right, bottom);
  }
  if (y in state.budgets) {
    const edge = within(chart.sy(state.budgets[y]), top, bottom);
    if (directionOf(y) === "max") rectangle(left, edge, right, bottom); else rectangle(left, top, right, edge);
  }
}
