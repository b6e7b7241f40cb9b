"""The files for Kubernetes and SLURM: read by Ray's own autoscaler, by Kubernetes' schema, and by a dry run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

KUBERAY = ROOT / "scripts" / "cluster" / "kuberay.yaml"
CLUSTER, JOB = yaml.safe_load_all(KUBERAY.read_text())
GROUPS = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
SLURM = ROOT / "scripts" / "cluster" / "slurm.sh"
# Each says what it is told, in a line. srun runs its command once, as on the first node.
STUBS = {
    "scontrol": 'echo "scontrol $*" >> "$SAID"; printf "node7\\nnode8\\n"',
    "srun": 'echo "srun $*" >> "$SAID"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": 'echo "ray $*" >> "$SAID"; echo "token ${#RAY_AUTH_TOKEN} $RAY_AUTH_MODE" >> "$SAID"',
    "greenprune": 'echo "greenprune $*" >> "$SAID"',
    "python": f'exec "{os.sys.executable}" "$@"',
}


def test_the_autoscaler_reads_kuberay_as_it_reads_cluster_yaml():
    """The same node types as on AWS: a head without cores, nodes that prepare, nodes that meter, from nothing."""
    types = _derive_autoscaling_config_from_ray_cr(CLUSTER)["available_node_types"]
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    for name in ("prepare", "meter"):
        assert types[name]["max_workers"] == aws[name]["max_workers"]
        assert types[name]["min_workers"] == 0
        assert types[name]["resources"]["GPU"] == 1
    assert types["meter"]["resources"]["energy_meter"] == 1
    assert "energy_meter" not in types["prepare"]["resources"]


def test_the_sweep_runs_on_that_cluster():
    assert JOB["spec"]["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    assert "--address auto" in JOB["spec"]["entrypoint"]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.get("groupName", "head"))
def test_kubernetes_accepts_the_pods(group):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
    kubernetes_validate.validate(pod, "1.34", strict=True)
    broken = {**pod, "spec": {**pod["spec"], "contaners": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.34", strict=True)


@pytest.fixture
def submitted(tmp_path: Path):
    """Runs slurm.sh as sbatch would, its programs being stubs; gives what they were told."""
    binaries, said = tmp_path / ".venv" / "bin", tmp_path / "said"
    binaries.mkdir(parents=True)
    for name, body in STUBS.items():
        (binaries / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (binaries / name).chmod(0o755)
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n')

    def run(*arguments: str, **more: str) -> tuple[int, list[str], str]:
        said.write_text("")
        slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
        slurm |= {"SLURM_JOB_ID": "40017", "SLURM_CPUS_PER_TASK": "16"}
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SAID": str(said)} | slurm | more
        done = subprocess.run(["bash", SLURM, *arguments], env=environment, capture_output=True, text=True)
        return done.returncode, said.read_text().splitlines(), done.stderr

    return run


def test_slurm_starts_ray_on_all_nodes_and_the_sweep_on_the_first(submitted):
    code, said, problem = submitted("study.yaml", "heal.rank=4")
    assert code == 0, problem
    asked, started, ray, token = said
    assert asked == "scontrol show hostnames node[7-8]"
    assert started.startswith("srun --ntasks=2 --ntasks-per-node=1 --cpus-per-task=16 ray symmetric-run")
    assert ray == (
        "ray symmetric-run --address node7:20017 --min-nodes 2 --num-cpus 16 -- "
        "greenprune sweep study.yaml heal.rank=4 --address node7:20017"
    )
    assert token == "token 64 token"


def test_ray_takes_these_arguments():
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    given = ["--address", "node7:20017", "--min-nodes", "2", "--num-cpus", "16"]
    assert curate_and_validate_ray_start_args(given) == ["--num-cpus", "16"]


def test_an_array_runs_a_trial_a_task(submitted, tmp_path):
    (tmp_path / "study.overrides").write_text("prune.block_size=1\nprune.block_size=2 heal.method=none\n")
    code, said, problem = submitted("study.yaml", SLURM_ARRAY_TASK_ID="1")
    assert code == 0, problem
    assert said[-1] == "greenprune trial study.yaml prune.block_size=2 heal.method=none"
    code, said, problem = submitted("study.yaml", SLURM_ARRAY_TASK_ID="2")
    assert code != 0
    assert not said
    assert "must have a line for every task" in problem


def test_slurm_without_an_experiment_says_how_to_use_it(submitted):
    code, _, problem = submitted()
    assert code != 0
    assert "usage: sbatch" in problem
