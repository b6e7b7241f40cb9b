// Which trials take part in a comparison, as greenprune/comparability.py and pareto.py have it.

/** The finished trials with a number for each of these columns, clean energies only; or the problem why they share no front. */
function comparable(names, trials = everyTrial) {
  const kinds = names.map((name) => run.columns[name].kind).filter(Boolean);
  const rows = trials.filter((i) => finished(i) && names.every((name) => isNumber(value(name, i))))
    .filter((i) => kinds.every((kind) => value(kind, i) !== run.contaminated));
  for (const name of names) {
    for (const tells of run.columns[name].must_agree) {
      const found = unique(rows.map((i) => value(tells, i)).filter((v) => v !== null));
      if (found.length > 1) {
        return { rows, problem: `${heading(name)} can't be compared between trials whose ${tells} differs (${found.join(", ")}): filter, or take a ratio to the dense model` };
      }
    }
  }
  return { rows, problem: null };
}

const atLeastAsGood = (name, a, b) => (directionOf(name) === "max" ? value(name, a) >= value(name, b) : value(name, a) <= value(name, b));

/** Those of the rows that no other row dominates. */
function frontOf(rows, names) {
  const dominates = (a, b) => names.every((name) => atLeastAsGood(name, a, b)) && names.some((name) => value(name, a) !== value(name, b));
  return rows.filter((b) => !rows.some((a) => a !== b && dominates(a, b)));
}

/** The trial with the best objective among those that keep every constraint ({column: limit}); of equals, the one that keeps them by more. */
function bestUnder(objective, constraints) {
  const names = unique([objective, ...Object.keys(constraints)]);
  const { rows, problem } = comparable(names);
  const keeps = (i) => Object.entries(constraints).every(([name, limit]) => (directionOf(name) === "max" ? value(name, i) >= limit : value(name, i) <= limit));
  const better = (a, b) => {
    for (const name of names) {
      const difference = value(name, a) - value(name, b);
      if (difference) return directionOf(name) === "max" ? -difference : difference;
    }
    return a - b;
  };
  return { best: rows.filter(keeps).sort(better)[0] ?? null, problem };
}
