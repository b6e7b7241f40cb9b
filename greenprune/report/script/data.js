// The run's table of trials; columns, their words and formats are those of greenprune's declarations.

const run = JSON.parse(document.getElementById("run-data").textContent);
const everyTrial = run.labels.map((_, i) => i);
const known = (name) => Object.hasOwn(run.columns, name);
const value = (name, i) => (known(name) ? run.trials[name][i] : null);
const isNumber = (v) => typeof v === "number" && Number.isFinite(v);
const unique = (values) => [...new Set(values)];
const finished = (i) => value("status", i) === "ok";
const numeric = () => Object.keys(run.columns).filter((name) => !run.columns[name].text && !run.columns[name].config);
const methodOf = (i) => value("prune.method", i) ?? "none";
const healed = (i) => (value("heal.method", i) ?? "none") !== "none";
const lookOf = (i) => run.looks[methodOf(i)];
const heading = (name) => run.columns[name]?.title ?? name;

/** A number as its column is shown; the format is Python's: {:.3f}, {:,.0f}, {:.1%}, {:.4g}. */
function shown(name, v) {
  if (v === null || v === undefined) return "–";
  const column = run.columns[name];
  if (!isNumber(v) || !column) return String(v);
  const [, comma, digits, kind] = /^\{:(,)?(?:\.(\d+))?([fg%])\}$/.exec(column.shown) ?? [null, "", "4", "g"];
  const scaled = v / column.scale;
  if (kind === "%") return `${(100 * scaled).toFixed(digits)}%`;
  if (kind === "g") return general(scaled, Number(digits));
  return comma ? scaled.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }) : scaled.toFixed(digits);
}

/** A number's error: with two digits where its column shows as many digits as matter. */
const shownError = (name, v) => (run.columns[name].shown.endsWith("g}") ? general(v / run.columns[name].scale, 2) : shown(name, v));

const general = (v, digits = 4) => String(Number(v.toPrecision(digits)));

function withUnit(name, v) {
  const unit = run.columns[name]?.unit ?? "";
  const quiet = ["0–1", "count", "ratio", "bytes", ""].includes(unit) || heading(name).includes(unit);
  return shown(name, v) + (quiet || v === null ? "" : ` ${unit}`);
}

function axisTitle(name) {
  const { phrase, unit } = run.columns[name];
  const better = directionOf(name);
  const kinds = run.columns[name].kind ? unique(everyTrial.filter(finished).map((i) => value(run.columns[name].kind, i)).filter((k) => k && k !== run.contaminated)) : [];
  const notes = [unit, ...kinds.map((kind) => (kind === "estimated" ? "ESTIMATED" : kind)), better && `${better === "max" ? "higher" : "lower"} is better`];
  return `${phrase} (${notes.filter(Boolean).join("; ")})`;
}

const objectiveNames = run.objectives.map(([name]) => name);
const directionOf = (name) => run.objectives.find(([objective]) => objective === name)?.[1] ?? run.columns[name]?.better ?? null;

/** What views share: the filters, the budgets, the chosen trial. Whoever listens is told when it changes. */
const state = { excluded: {}, budgets: {}, chosen: null, listeners: [] };
const listen = (draw) => { state.listeners.push(draw); draw(); };
const changed = () => state.listeners.forEach((draw) => draw());
/** The trial that views show beside the dense model: the chosen one, else the front's knee, else any of the front, else any. */
const favourite = () => state.chosen ?? [run.knee, ...run.front, ...everyTrial.filter(finished)].find((i) => i !== null && i !== run.dense) ?? run.dense;
const choose = (i) => { state.chosen = i; changed(); };
const isShown = (i) => Object.entries(state.excluded).every(([name, values]) => !values.has(cellText(name, i)));
const cellText = (name, i) => shown(name, value(name, i));
