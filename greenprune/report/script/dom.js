// Elements by function, so that what a trial says is only ever text.

function create(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) node.setAttribute(name, String(value));
    else if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const html = (tag, attributes = {}, ...children) => create(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  create(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** A labelled list to choose from; options: [value, text]. */
function chooser(label, options, chosen, onchange) {
  const list = html("select", { "aria-label": label, onchange: () => onchange(list.value) });
  for (const [value, text] of options) list.append(html("option", { value, selected: String(value) === String(chosen) }, text));
  return html("label", { class: "chooser" }, `${label} `, list);
}

function button(text, onclick, attributes = {}) {
  return html("button", { type: "button", onclick, ...attributes }, text);
}

/** A table of texts; rows: lists of cells, of which the first heads its row. */
function plainTable(caption, heads, rows) {
  return html("div", { class: "wide", tabindex: 0, role: "region", "aria-label": caption }, html("table", {},
    html("caption", {}, caption),
    html("thead", {}, html("tr", {}, heads.map((head, i) => html("th", { scope: "col", class: i ? null : "text" }, head)))),
    html("tbody", {}, rows.map((row) => html("tr", {}, row.map((cell, i) =>
      i ? html("td", {}, cell) : html("th", { scope: "row", class: "text" }, cell)))))));
}

/** A command with a button that copies it. */
function commandLine(command) {
  return html("div", { class: "command" }, html("code", {}, command), copyButton("copy", () => command));
}

function copyButton(text, content) {
  const done = html("span", { role: "status", class: "note" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(content());
    } catch {
      copyBySelection(content());
    }
    done.textContent = " copied";
    setTimeout(() => done.replaceChildren(), 2000);
  };
  return html("span", {}, button(text, copy), done);
}

/** For pages opened as files, where browsers may keep the clipboard's newer interface to themselves. */
function copyBySelection(content) {
  const area = html("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = content;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

const tip = html("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });

/** Shows lines beside a mark that is pointed at or has the focus. */
function withTip(mark, lines) {
  const show = () => {
    tip.replaceChildren(...lines().map((line) => html("div", {}, line)));
    tip.hidden = false;
    const at = mark.getBoundingClientRect();
    const left = Math.min(at.right + 8, window.innerWidth - tip.offsetWidth - 8);
    const below = at.bottom + 8 + tip.offsetHeight < window.innerHeight;
    tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
    tip.style.top = `${(below ? at.bottom + 8 : Math.max(0, at.top - tip.offsetHeight - 8)) + window.scrollY}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, hide);
  return mark;
}
