"""MLflow's runs, in an experiment named as the sweep: each trial's parameters, metrics, text, and the front's tag.

MLFLOW_TRACKING_URI=http://host:5000 greenprune sweep experiments/demo.yaml 'sweep.track=[mlflow]'
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Any

from ray.air.integrations.mlflow import MLflowLoggerCallback

from greenprune.sweep.run_folder import RunFolder

RUN, FRONT = "greenprune.run", "front"  # tags


class ToMLflow(MLflowLoggerCallback):
    def __init__(self, run: RunFolder) -> None:
        self.uri = f"{run.storage.uri}/{run.name}"
        super().__init__(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"),
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.name,
            tags={RUN: self.uri},
        )

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        numbers = {name: value for name, value in result.items() if name != "config"}
        super().log_trial_result(iteration, trial, numbers)
        for name, text in result["config"].items():
            self._client().set_tag(self._trial_runs[trial], name, text)

    def tell_front(self, front: Collection[str] | None) -> None:
        """Tag every trial's newest run as on the front or not; end those that an interruption left running."""
        seen: set[str] = set()
        for run in self._runs():
            name = run.data.tags.get("trial_name", "")
            on_it = name in (front or ()) and name not in seen
            seen.add(name)
            self._client().set_tag(run.info.run_id, FRONT, str(on_it).lower())
            if run.info.status == "RUNNING":
                self._client().set_terminated(run.info.run_id, "KILLED")

    def _runs(self) -> Iterator[Any]:
        """MLflow's runs of this sweep's trials, the newest first, those of earlier commands too."""
        token, where = None, f"tags.`{RUN}` = '{self.uri}'"
        while True:
            experiment = [self.mlflow_util.experiment_id]
            page = self._client().search_runs(experiment, where, order_by=["start_time DESC"], page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _client(self) -> Any:
        import mlflow

        return mlflow.MlflowClient()  # of the tracking URI that `setup` set
