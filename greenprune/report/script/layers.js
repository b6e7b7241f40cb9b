// What goes by layer: angular distance of blocks, influence, heads and channels kept.

/** Dark to bright as the share grows; perceptually even enough for a heatmap, and readable in grey. */
const shade = (share) => `hsl(${(250 - 195 * share).toFixed(0)} 62% ${(22 + 58 * share).toFixed(0)}%)`;

function startLayers(part) {
  const holder = html("div", {});
  part.replaceChildren(holder);
  const draw = () => {
    const views = run.layers.statistics.flatMap((one) => [
      one.angular && distances(one, holder), one.influence && influence(one, holder),
    ]);
    if (run.layers.kept.length) views.push(keptByLayer());
    holder.replaceChildren(...views.filter(Boolean));
  };
  listen(draw);
  onResize(holder, draw);
}

/** angular[n-1][start]: the distance over the block start … start+n-1. Chosen blocks are outlined. */
function distances({ model, angular }, holder) {
  const layers = angular.length;
  const flat = angular.flat().filter((v) => v !== null);
  const [low, high] = [Math.min(...flat), Math.max(...flat)];
  const side = Math.max(7, Math.min(18, (Math.min(holder.clientWidth || 700, 760) - 60) / layers));
  const size = layers * side;
  const root = svg("svg", { width: size + 56, height: size + 44, viewBox: `0 0 ${size + 56} ${size + 44}`, role: "img", "aria-label": `Angular distance by first layer and block size, ${general(low, 3)} to ${general(high, 3)}. ${run.layers.blocks.map((b) => `${b.label} chose ${b.size} layers from ${b.start}`).join("; ")}` });
  angular.forEach((row, n) => row.forEach((v, start) => {
    if (v === null) return;
    const cell = svg("rect", { x: 46 + start * side, y: 4 + (layers - 1 - n) * side, width: side - 0.5, height: side - 0.5, fill: shade((v - low) / (high - low || 1)) });
    root.append(withTip(cell, () => [`layers ${start} to ${start + n}`, `angular distance ${general(v, 3)}`]));
  }));
  for (const block of run.layers.blocks.filter((b) => b.model === model)) {
    const mark = svg("rect", { x: 46 + block.start * side, y: 4 + (layers - block.size) * side, width: side - 0.5, height: side - 0.5, class: "chosen", fill: shade(((angular[block.size - 1]?.[block.start] ?? low) - low) / (high - low || 1)) });
    root.append(withTip(mark, () => [block.label, `layers ${block.start} to ${block.start + block.size - 1}`]));
  }
  const every = Math.ceil(24 / side);
  for (let k = 0; k < layers; k += every) {
    root.append(svg("text", { x: 46 + (k + 0.5) * side, y: size + 20, "text-anchor": "middle" }, String(k)), svg("text", { x: 40, y: 4 + (layers - 1 - k + 0.5) * side + 4, "text-anchor": "end" }, String(k + 1)));
  }
  root.append(svg("text", { x: 46 + size / 2, y: size + 38, "text-anchor": "middle" }, "first layer of the block"), svg("text", { transform: `translate(13 ${size / 2}) rotate(-90)`, "text-anchor": "middle" }, "block size"));
  return html("figure", {}, root, html("figcaption", {}, `Angular distance of the last token's state before and after each block of layers (${model}); dark ${general(low, 3)}, bright ${general(high, 3)}, in units of π. Outlined: blocks that trials removed.`));
}

function influence({ model, influence: values }, holder) {
  const chart = frame(holder, { x: [-0.7, values.length - 0.3], y: [0, Math.max(...values) * 1.05], xTitle: "layer", yTitle: "block influence", height: 240, label: `Block influence of ${values.length} layers` });
  values.forEach((v, layer) => {
    const bar = svg("rect", { x: chart.sx(layer - 0.4), width: chart.sx(0.8) - chart.sx(0), y: chart.sy(v), height: chart.sy(0) - chart.sy(v), fill: "var(--accent)" });
    chart.layer.append(withTip(bar, () => [`layer ${layer}`, `block influence ${general(v, 3)}`]));
  });
  return html("figure", {}, chart.root, html("figcaption", {}, `How much each layer turns the hidden states (${model}).`));
}

/** A row a trial, a cell a layer: the share of its heads and channels that stays. */
function keptByLayer() {
  const rows = run.layers.kept.map((trial) => {
    const cells = Array.from({ length: trial.layers }, (_, layer) => {
      const gone = trial.removed.includes(layer);
      const parts = [["heads", trial.heads[layer]], ["channels", trial.channels[layer]]].filter(([, share]) => share !== undefined);
      const share = gone ? 0 : parts.length ? parts.reduce((sum, [, v]) => sum + v, 0) / parts.length : 1;
      const words = gone ? "removed" : parts.length ? parts.map(([what, v]) => `${(100 * v).toFixed(0)}% of ${what}`).join(", ") : "whole";
      return withTip(svg("rect", { x: layer * 14, y: 0, width: 13, height: 15, fill: shade(share), class: gone ? "gone" : null }), () => [trial.label, `layer ${layer}: ${words}`]);
    });
    const words = `${trial.label}: ${trial.removed.length ? `layers ${trial.removed.join(", ")} removed` : "no layer removed"}`;
    return html("tr", {}, html("th", { scope: "row", class: "text" }, trial.label), html("td", {}, svg("svg", { width: trial.layers * 14, height: 15, role: "img", "aria-label": words }, cells)));
  });
  return html("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "What stays of each layer" }, html("table", { class: "strips" }, html("caption", {}, "What stays of each layer, first to last: bright whole, dark gone. Point at a cell for heads and channels."), html("tbody", {}, rows)));
}
