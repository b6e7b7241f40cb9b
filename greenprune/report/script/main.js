// Each part of the page that is there is brought to life; one that has nothing to show, or fails, leaves what was printed.

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
  if (part && run.labels.length && begins(name, start, part)) {
    document.querySelectorAll(`[data-instead-of="${name}"]`).forEach((printed) => { printed.hidden = true; });
  }
}

/** Shown before it draws, so that it knows its width. */
function begins(name, start, part) {
  part.hidden = false;
  try {
    if (start(part) !== false) return true;
  } catch (problem) {
    console.error(`${name}: ${problem.stack}`);
  }
  part.hidden = true;
  return false;
}

document.documentElement.dataset.ready = "yes";
