// Two trials side by side: paired tests, every number, every task.

const MARKED = { "A better": "A better", "B better": "B better" };

function startCompare(part) {
  const done = everyTrial.filter(finished);
  if (done.length < 2) return part.replaceChildren(html("p", { class: "note" }, "Two finished trials are needed."));
  const picked = { a: favourite() ?? done[1], b: run.dense ?? done[0] };
  const options = done.map((i) => [i, `${value("trial_number", i)}: ${run.labels[i]}`]);
  const body = html("div", {});
  const controls = html("div", { class: "row" });
  let former = null;

  function draw() {
    if (state.chosen !== null && state.chosen !== former && finished(state.chosen)) picked.a = former = state.chosen;
    const pick = (side) => (i) => { picked[side] = Number(i); draw(); };
    controls.replaceChildren(chooser("A", options, picked.a, pick("a")), chooser("B", options, picked.b, pick("b")));
    body.replaceChildren(verdict(picked.a, picked.b), numbersOfBoth(picked.a, picked.b));
  }
  part.replaceChildren(controls, body);
  listen(draw);
}

/** The paired test of greenprune/paired.py where the page holds it; else the command that makes it. */
function verdict(a, b) {
  const found = run.tests[`${a},${b}`] ?? turned(run.tests[`${b},${a}`]);
  if (!found) {
    const command = run.commands.compare.replace("A", value("trial_id", a)).replace("B", value("trial_id", b));
    return html("div", {}, html("p", { class: "note" }, "The paired test of these two isn't on this page; this makes it:"), commandLine(command));
  }
  const signed = (v) => (v === null ? "–" : `${v > 0 ? "+" : ""}${v.toFixed(3)}`);
  const rows = found.map((t) => [t.task, t.a.toFixed(3), t.b.toFixed(3), signed(t.difference), t.low === null ? "–" : `${signed(t.low)} … ${signed(t.high)}`, general(t.p, 2), MARKED[t.verdict] ?? t.verdict, String(t.documents)]);
  return plainTable("Paired test of both trials' answers to the same documents, at the 5 % level. p of single tasks is raised for their number (Holm); the intervals aren't.", ["task", "A", "B", "A − B", "95 % interval", "p", "verdict", "documents"], rows);
}

function turned(tests) {
  const other = { "A better": "B better", "B better": "A better" };
  const minus = (v) => (v === null ? null : -v);
  return tests?.map((t) => ({ ...t, a: t.b, b: t.a, difference: -t.difference, low: minus(t.high), high: minus(t.low), verdict: other[t.verdict] ?? t.verdict }));
}

function numbersOfBoth(a, b) {
  const names = Object.keys(run.columns).filter((name) => ![null, undefined].includes(value(name, a)) || ![null, undefined].includes(value(name, b)));
  const rows = names.filter((name) => name !== "trial_number" && name !== "status").map((name) => {
    const [va, vb] = [value(name, a), value(name, b)];
    const apart = run.columns[name].must_agree.some((tells) => value(tells, a) !== value(tells, b));
    const change = isNumber(va) && isNumber(vb) && vb && !apart && !run.columns[name].config ? `${va >= vb ? "+" : "−"}${(100 * Math.abs(va / vb - 1)).toFixed(1)}%` : apart ? "not comparable" : "";
    return [heading(name), cellText(name, a), cellText(name, b), change];
  });
  return html("details", {}, html("summary", {}, "All numbers of both"), plainTable("A against B", ["", "A", "B", "A against B"], rows));
}
