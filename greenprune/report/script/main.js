// Each part of the page that is there is brought to life; one that fails leaves what was printed.

const PARTS = { front: startFront, budgets: startBudgets, compare: startCompare, tasks: startTasks, layers: startLayers, curves: startCurves, energy: startEnergy, trials: startTrials };

function onResize(holder, draw) {
  let width = holder.clientWidth;
  new ResizeObserver(() => {
    if (holder.clientWidth === width) return;
    width = holder.clientWidth;
    draw();
  }).observe(holder);
}

document.body.append(tip);
for (const [name, start] of Object.entries(PARTS)) {
  const part = document.querySelector(`[data-part="${name}"]`);
  if (part && run.labels.length) {
    start(part);
    part.hidden = false;
    document.querySelectorAll(`[data-instead-of="${name}"]`).forEach((printed) => { printed.hidden = true; });
  }
}
document.documentElement.dataset.ready = "yes";
