// Quality against size by method, healing, and what the search found by when.

function startCurves(part) {
  const qualities = numeric().filter((name) => run.qualities.includes(name));
  let quality = qualities[0];
  const [size, healing, progress] = ["", "", ""].map(() => html("div", { class: "chart" }));
  let clock = "hours";
  part.replaceChildren(
    html("h3", {}, "Quality against size"), chooser("quality", qualities.map((name) => [name, heading(name)]), quality, (name) => { quality = name; draw(); }), size,
    ...(run.healing.length ? [html("h3", {}, "Healing"), healing] : []),
    ...(run.progress.length > 1 ? [html("h3", {}, "The search"), chooser("against", [["hours", "hours"], ["kwh", "kWh"]], clock, (name) => { clock = name; draw(); }), progress] : []),
  );

  function draw() {
    if (quality) size.replaceChildren(qualityAgainstSize(size, quality));
    healing.replaceChildren(lineChart(healing, { series: run.healing.map((one) => ({ name: one.label, group: one.method, colour: one.colour, points: one.points })), xTitle: "optimizer step", yTitle: "validation loss (nats/token)", label: "Validation loss of healing by step" }));
    const points = run.progress.filter((p) => p[clock] !== null).map((p) => [p[clock], p.hypervolume]);
    progress.replaceChildren(lineChart(progress, { series: [{ name: "", colour: "var(--accent)", points }], xTitle: clock === "hours" ? "hours since the first trial began" : "kWh that the search took", yTitle: "hypervolume, relative to dense", label: "Hypervolume of the front as trials ended" }));
  }
  listen(draw);
  onResize(size, draw);
}

function qualityAgainstSize(holder, quality) {
  const removed = "parameters_removed_ratio";
  const rows = everyTrial.filter((i) => finished(i) && isShown(i) && isNumber(value(quality, i)) && isNumber(value(removed, i)));
  if (!rows.length) return html("p", { class: "note" }, "No trial has it.");
  const marks = rows.map((i) => value(quality, i));
  const dense = run.dense === null ? null : value(quality, run.dense);
  const floor = run.floors[quality];
  const guides = [[dense, "dense model"], [floor, "no knowledge (floor)"]].filter(([v]) => isNumber(v));
  const chart = frame(holder, { x: spread(rows.map((i) => value(removed, i))), y: spread([...marks, ...guides.map(([v]) => v)]), xTitle: axisTitle(removed), yTitle: axisTitle(quality), height: 340, label: `${heading(quality)} against the share of parameters removed` });
  for (const [v] of guides) chart.layer.append(svg("line", { x1: chart.left, x2: chart.right, y1: chart.sy(v), y2: chart.sy(v), class: "guide" }));
  for (const key of unique(rows.map((i) => `${methodOf(i)} ${healed(i)}`))) {
    const curve = rows.filter((i) => `${methodOf(i)} ${healed(i)}` === key);
    const sizes = unique(curve.map((i) => value(removed, i))).sort((a, b) => a - b);
    const best = sizes.map((s) => curve.filter((i) => value(removed, i) === s).reduce((a, b) => (atLeastAsGood(quality, a, b) ? a : b)));
    chart.layer.append(polyline(best.map((i) => [chart.sx(value(removed, i)), chart.sy(value(quality, i))]), { stroke: lookOf(curve[0]).colour, "stroke-width": 1.5, "stroke-dasharray": healed(curve[0]) ? null : "4 3", opacity: 0.8 }));
  }
  const drawn = rows.map((i) => {
    const mark = trialMark(i, chart.sx(value(removed, i)), chart.sy(value(quality, i)), 5, { role: "button", "data-trial": i, onclick: () => choose(i), "aria-label": `${run.labels[i]}: ${heading(quality)} ${cellText(quality, i)}` });
    chart.layer.append(withTip(mark, () => trialLines(i)));
    return mark;
  });
  for (const [v, text] of guides) {
    const near = rows.filter((i) => Math.abs(chart.sy(value(quality, i)) - chart.sy(v)) < 24).map((i) => chart.sx(value(removed, i)));
    const places = [1, 0.75, 0.5, 0.25].map((share) => chart.left + share * (chart.right - chart.left) - 4);
    const x = places.find((end) => !near.some((at) => at > end - 7 * text.length - 8 && at < end + 8)) ?? places[0];
    chart.layer.append(svg("text", { x, y: chart.sy(v) - 4, "text-anchor": "end", class: "note" }, text));
  }
  roving(drawn, holder);
  return html("div", {}, chart.root, methodLegend(rows), html("p", { class: "note" }, "Lines join the best trial of each size of a method; dashed without healing."));
}
