// Where the energy went: the search by stage and by trial, and when a model has paid for itself.

function startEnergy(part) {
  const holder = html("div", { class: "chart" });
  const even = html("div", { class: "chart" });
  part.replaceChildren(holder, even);
  const draw = () => {
    holder.replaceChildren(...(run.stages.total_wh === null ? [html("p", {}, "Nothing of the search was metered.")] : [stageBars(), trialBars()]));
    even.replaceChildren(breakEven(even));
  };
  listen(draw);
  onResize(holder, draw);
}

function bars(caption, rows) {
  const most = Math.max(...rows.map(([, v]) => v)) || 1;
  return html("table", { class: "bars-table" }, html("caption", {}, caption), html("tbody", {}, rows.map(([name, v]) =>
    html("tr", {}, html("th", { scope: "row", class: "text" }, name), html("td", {}, html("div", { class: "bar", style: `width:${((100 * v) / most).toFixed(1)}%` })), html("td", {}, `${general(v, 3)} Wh`)))));
}

function stageBars() {
  return bars(`The search took ${general(run.stages.total_wh, 3)} Wh (${run.stages.kinds.join(" and ")}), by stage; each shared artifact counts once`, Object.entries(run.stages.by_stage));
}

function trialBars() {
  const rows = everyTrial.filter((i) => run.stages.by_trial[i] > 0).sort((a, b) => run.stages.by_trial[b] - run.stages.by_trial[a]);
  const shownRows = rows.slice(0, 15).map((i) => [run.labels[i], run.stages.by_trial[i]]);
  const rest = rows.slice(15).reduce((sum, i) => sum + run.stages.by_trial[i], 0);
  if (rest) shownRows.push([`${rows.length - 15} others`, rest]);
  return html("details", {}, html("summary", {}, "By trial"), bars("What each trial ran itself; what it took from the store counts for the trial that made it", shownRows));
}

/** Energy against requests: the dense model's line from nothing, the trial's from what its making took. */
function breakEven(holder) {
  const makes = (i) => run.stages.making_wh[i];
  const cheap = (i) => isNumber(value("break_even_requests", i)) && isNumber(makes(i));
  const chosen = [favourite(), ...run.front].find((i) => i !== null && cheap(i));
  if (chosen === undefined) return html("p", { class: "note" }, "Neither the chosen trial nor any on the front has a known break-even.");
  const each = value("energy_wh_per_1k_requests", chosen) / 1000;
  const dense = each / value("energy_ratio", chosen);
  const requests = value("break_even_requests", chosen);
  const until = 2.5 * requests;
  const chart = lineChart(holder, {
    series: [{ name: "dense model", colour: "var(--ink)", dashed: true, points: [[0, 0], [until, dense * until]] }, { name: run.labels[chosen], colour: lookOf(chosen).colour, points: [[0, makes(chosen)], [requests, makes(chosen) + each * requests], [until, makes(chosen) + each * until]] }],
    xTitle: "requests served", yTitle: `Wh, making included (${value("energy_kind", chosen)})`, label: `Break-even of ${run.labels[chosen]} after ${shown("break_even_requests", requests)} requests`,
  });
  return html("figure", {}, chart, html("figcaption", {}, `${run.labels[chosen]}: making it took ${general(makes(chosen), 3)} Wh, paid back after ${shown("break_even_requests", requests)} requests. The whole search took ${run.stages.total_wh === null ? "an unknown amount" : `${general(run.stages.total_wh, 3)} Wh`}.`));
}
