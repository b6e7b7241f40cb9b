// All trials: sort, filter, choose columns, copy as CSV.

function startTrials(part) {
  const names = Object.keys(run.columns);
  const varies = (name) => unique(everyTrial.map((i) => value(name, i)).filter((v) => v !== null)).length > 1;
  const shownNames = new Set(["trial_number", ...names.filter((name) => run.columns[name].config && varies(name)), ...run.first_columns.filter(known)]);
  const order = { name: "trial_number", up: true };
  const words = html("input", { type: "search", placeholder: "e.g. lora", oninput: () => draw() });
  const holder = html("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "All trials" });
  const counted = html("span", { class: "note", role: "status" });

  function rows() {
    const wanted = words.value.trim().toLowerCase();
    const fits = (i) => !wanted || [run.labels[i], ...names.map((name) => cellText(name, i))].some((text) => text.toLowerCase().includes(wanted));
    const key = (i) => (order.name === "trial_id" ? run.labels[i] : value(order.name, i));
    return everyTrial.filter((i) => isShown(i) && fits(i)).sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what is missing comes last
      const difference = isNumber(x) && isNumber(y) ? x - y : String(x).localeCompare(String(y));
      return order.up ? difference : -difference;
    });
  }

  const texts = new Set(["trial_id", ...names.filter((name) => everyTrial.some((i) => typeof value(name, i) === "string"))]);
  const asText = (name) => (texts.has(name) ? "text" : null);

  function head(name) {
    const sorted = order.name === name ? (order.up ? "ascending" : "descending") : null;
    const sort = () => { order.up = order.name === name ? !order.up : true; order.name = name; draw(); holder.querySelector(`[data-sort="${CSS.escape(name)}"]`).focus(); };
    return html("th", { scope: "col", class: asText(name), "aria-sort": sorted, title: run.columns[name].meaning }, button(heading(name) + (sorted ? (order.up ? " ▲" : " ▼") : ""), sort, { "data-sort": name }));
  }

  function csv() {
    const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const wanted = ["trial_id", ...names.filter((name) => shownNames.has(name) && name !== "trial_id")];
    const line = (i) => wanted.map((name) => quoted(String(value(name, i) ?? ""))).join(",");
    return [wanted.map(quoted).join(","), ...rows().map(line)].join("\n") + "\n";
  }

  function draw() {
    const columns = names.filter((name) => shownNames.has(name) && name !== "trial_id");
    const found = rows();
    const cell = (name, i) => html("td", { class: asText(name) }, cellText(name, i) + (isNumber(value(name, i)) ? errorText(name, i) : ""));
    holder.replaceChildren(html("table", {}, html("caption", {}, "Click a heading to sort. ● is on the front; – is not measured."),
      html("thead", {}, html("tr", {}, head("trial_id"), columns.map(head))),
      html("tbody", {}, found.map((i) => html("tr", {}, html("th", { scope: "row", class: "text", title: value("trial_id", i) }, `${run.front.includes(i) ? "● " : ""}${run.labels[i]}`), columns.map((name) => cell(name, i)))))));
    counted.textContent = `${found.length} of ${everyTrial.length} trials`;
  }

  const boxes = names.filter((name) => name !== "trial_id").map((name) => html("label", {}, html("input", {
    type: "checkbox", checked: shownNames.has(name), value: name,
    onchange: (event) => { shownNames[event.target.checked ? "add" : "delete"](name); draw(); },
  }), ` ${heading(name)}`));
  part.replaceChildren(
    html("div", { class: "row" }, html("label", {}, "search ", words), copyButton("copy as CSV", csv), counted),
    html("details", { class: "filters" }, html("summary", {}, "Choose columns"), html("div", { class: "columns" }, boxes)), holder);
  listen(draw);
}
