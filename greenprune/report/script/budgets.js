// Budgets: what may it cost, how good must it be? The best trial is named at once.

const AFTER_OBJECTIVES = ["accuracy", "energy_j_per_token", "peak_memory_bytes"];

function startBudgets(part) {
  const names = unique([...objectiveNames, ...AFTER_OBJECTIVES]).filter((name) => known(name) && directionOf(name) && hasSeveral(name));
  let objective = objectiveNames.find(known);
  if (!objective) return false;
  const answer = html("div", { class: "answer", "aria-live": "polite", id: "best-trial" });
  const sliders = names.map((name) => slider(name));
  part.replaceChildren(
    html("p", {}, chooser("best", objectiveNames.filter(known).map((name) => [name, heading(name)]), objective, (name) => { objective = name; draw(); }), " among the trials that keep these budgets:"),
    html("div", { class: "sliders" }, sliders), answer,
  );

  function draw() {
    const { best, problem } = bestUnder(objective, state.budgets);
    if (problem) answer.replaceChildren(html("p", { class: "caution" }, problem));
    else if (best === null) answer.replaceChildren(html("p", {}, "No trial keeps all of these."));
    else answer.replaceChildren(...named(best));
  }
  listen(draw);
  return true;
}

function hasSeveral(name) {
  const { rows, problem } = comparable([name]);
  return !problem && rows.length > 1;
}

/** A slider whose loose end is no budget at all. */
function slider(name) {
  const values = comparable([name]).rows.map((i) => value(name, i));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const least = directionOf(name) === "max";
  const output = html("output", {}, "any");
  const input = html("input", {
    type: "range", min: 0, max: 1000, step: 1, value: least ? 0 : 1000, "data-column": name,
    oninput: () => {
      const limit = low + ((high - low) * Number(input.value)) / 1000;
      const loose = Number(input.value) === (least ? 0 : 1000);
      if (loose) delete state.budgets[name]; else state.budgets[name] = limit;
      output.textContent = loose ? "any" : withUnit(name, limit);
      input.setAttribute("aria-valuetext", output.textContent);
      changed();
    },
  });
  return html("label", {}, html("span", {}, `${heading(name)} at ${least ? "least" : "most"}`), input, output);
}

function named(i) {
  const facts = unique([...objectiveNames, ...AFTER_OBJECTIVES, "parameters_removed_ratio"]).filter((name) => known(name) && value(name, i) !== null)
    .map((name) => `${heading(name)} ${withUnit(name, value(name, i))}${errorText(name, i)}`);
  return [
    html("p", {}, html("strong", {}, run.labels[i]), ` (${value("trial_id", i)}): ${facts.join(", ")}. `, button("choose it below", () => choose(i))),
    html("ul", {}, savings(i).map((line) => html("li", {}, line))),
    commandLine(run.commands.export.replace("TRIAL", value("trial_id", i))),
  ];
}

/** Against the dense model, by the ratio on the trial's own machine. */
function savings(i) {
  if (i === run.dense) return ["It is the dense model."];
  const ratio = value("energy_ratio", i);
  if (!isNumber(ratio) || !ratio || value("energy_kind", i) === run.contaminated) return ["What it saves against the dense model isn't known."];
  const kind = value("energy_kind", i);
  const lines = ["energy_wh_per_1k_requests", "co2e_g_per_1k_requests"].filter((name) => isNumber(value(name, i))).map((name) => {
    const saved = value(name, i) / ratio - value(name, i);
    return `${saved < 0 ? "costs" : "saves"} ${shown(name, Math.abs(saved))} ${run.columns[name].unit} in 1,000 requests against the dense model (${(100 * Math.abs(1 - ratio)).toFixed(1)}%, ${kind})`;
  });
  const requests = value("break_even_requests", i);
  if (isNumber(requests)) lines.push(`the energy of making it is paid back after ${shown("break_even_requests", requests)} requests`);
  else if (methodOf(i) !== "none") lines.push(ratio >= 1 ? "the energy of making it is never paid back" : "after how many requests its making is paid back isn't known: not all of it was metered alike");
  return lines;
}
