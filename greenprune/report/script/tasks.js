// Accuracy and energy by task: the chosen trial against the dense model.

function startTasks(part) {
  const spaces = Object.entries(run.tasks).filter(([, columns]) => columns.length > 2);
  const holders = spaces.map(([name, columns]) => ({ name, columns, node: html("figure", { class: "radar" }) }));
  const note = html("p", { class: "note" });
  part.prepend(html("div", { class: "row" }, holders.map((one) => one.node)), note);
  listen(() => {
    const chosen = favourite();
    const trials = unique([run.dense, chosen]).filter((i) => i !== null);
    note.textContent = spaces.length ? "Choose another trial by a click on the front above." : "A radar chart needs three tasks.";
    for (const { name, columns, node } of holders) {
      const drawn = radar(columns, trials, name);
      node.hidden = drawn === null;
      node.replaceChildren(...(drawn ?? []));
    }
  });
}

/** One axis a task, from 0 to the largest; trials as rings. */
function radar(columns, trials, title) {
  const { rows: measured, problem } = comparable(columns, trials);
  if (problem || !measured.length) return null;
  const most = Math.max(...measured.flatMap((i) => columns.map((name) => value(name, i)))) || 1;
  const size = 300, middle = size / 2, reach = size / 2 - 40;
  const aside = Math.max(30, 7 * Math.max(...columns.map((name) => run.task_names[name].length)) - 20); // for the names beside it
  const at = (k, share) => {
    const angle = (2 * Math.PI * k) / columns.length - Math.PI / 2;
    return [middle + reach * share * Math.cos(angle), middle + reach * share * Math.sin(angle)];
  };
  const ring = (shares, attributes) => svg("polygon", { points: shares.map((share, k) => at(k, share).map((v) => v.toFixed(1)).join(",")).join(" "), ...attributes });
  const words = measured.map((i) => `${run.labels[i]}: ${columns.map((name) => `${run.task_names[name]} ${shown(name, value(name, i))}`).join(", ")}`);
  const root = svg("svg", { viewBox: `${-aside} 0 ${size + 2 * aside} ${size}`, width: size + 2 * aside, height: size, role: "img", "aria-label": `${title} by task. ${words.join(". ")}` });
  for (const share of [0.25, 0.5, 0.75, 1]) root.append(ring(columns.map(() => share), { class: "web" }));
  columns.forEach((name, k) => {
    const [x, y] = at(k, 1.12);
    const anchor = Math.abs(x - middle) < 8 ? "middle" : x > middle ? "start" : "end";
    root.append(svg("line", { x1: middle, y1: middle, x2: at(k, 1)[0], y2: at(k, 1)[1], class: "web" }), svg("text", { x, y: y + 4, "text-anchor": anchor }, run.task_names[name]));
  });
  measured.forEach((i) => {
    const colour = i === run.dense ? "var(--ink)" : lookOf(i).colour;
    root.append(ring(columns.map((name) => value(name, i) / most), { stroke: colour, "stroke-width": 2, fill: colour, "fill-opacity": 0.1, "stroke-dasharray": i === run.dense ? "5 4" : null }));
  });
  return [root, html("figcaption", {}, `${title}; outer ring ${shown(columns[0], most)}. `, measured.map((i) => (i === run.dense ? "dashed: dense model" : `line: ${run.labels[i]}`)).join("; "))];
}
