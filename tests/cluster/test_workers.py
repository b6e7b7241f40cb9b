"""Groups of workers: the order in which they hold nodes, what is handed out, what is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from greenprune.cluster import workers
from greenprune.energy.exclusive import hold_node, lock_folder
from greenprune.errors import GreenpruneError
from greenprune.storage.locks import must_wait

WORKER = """
import atexit
import sys
from pathlib import Path
import torch.distributed as dist
from greenprune.cluster.workers import everybody, follow_first, in_a_group

def note(inputs):
    (Path(inputs["out"]) / str(dist.get_rank())).write_text(str(inputs["n"]))
    dist.barrier()
    return inputs["n"] + dist.get_rank()

port, rank, storage, out = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2)
atexit.register(dist.destroy_process_group)  # as Ray Train does; gloo's threads end a process that leaves them running
print("ready", flush=True)
with follow_first(storage) as first:
    if first:
        assert in_a_group()
        print(everybody(note, {"out": out, "n": 5}), everybody(note, {"out": out, "n": 7}))
        if out.endswith("broken"):
            raise ValueError("outside of the common work: the other ends all the same")
assert not in_a_group()
"""


class TwoWorkers:
    """A group of two processes, each on a "machine" of its own: another folder for locks."""

    def __init__(self, storage: Path, machines: tuple[Path, Path], out: Path) -> None:
        out.mkdir()
        with closing(socket.socket()) as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, port, str(rank), str(storage), str(out)],
                env=os.environ | {"TMPDIR": str(machine)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, machine in enumerate(machines)
        ]

    def wait_until_ready(self) -> None:
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()

    def end(self) -> list[tuple[int, str]]:
        ended = [(process.communicate(timeout=240), process.returncode) for process in self.processes]
        return [(code, out + err) for (out, err), code in ended]


@pytest.fixture
def machines(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Two folders for locks; a group holds that of the first before that of the second."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    folders.sort(key=lambda folder: str(folder_of_locks(folder, tmp_path / "runs", monkeypatch).stat().st_ino))
    return folders[0], folders[1]


def folder_of_locks(machine: Path, storage: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(machine))
    return lock_folder(str(storage))


def test_a_group_waits_for_a_window_and_holds_no_later_machine_meanwhile(machines, tmp_path, monkeypatch):
    """Else a window there and another group could wait for each other in a circle."""
    storage, (first, second) = tmp_path / "runs", machines
    folder_of_locks(first, storage, monkeypatch)
    with hold_node(str(storage), "node"):
        group = TwoWorkers(storage, (second, first), tmp_path / "out")
        group.wait_until_ready()
        with pytest.raises(subprocess.TimeoutExpired):
            group.processes[0].wait(timeout=3)
        assert not list((tmp_path / "out").iterdir())
        assert not must_wait(folder_of_locks(second, storage, monkeypatch) / "node")
    ended = group.end()
    assert [code for code, _ in ended] == [0, 0], ended
    assert ended[0][1].split() == ["5", "7"]
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"0": "7", "1": "7"}


def test_a_group_on_one_machine_ends_with_its_first(machines, tmp_path):
    group = TwoWorkers(tmp_path / "runs", (machines[0], machines[0]), tmp_path / "broken")
    group.wait_until_ready()
    (code, said), (followed, _) = group.end()
    assert (code, followed) == (1, 0)
    assert "ends all the same" in said


def test_a_cluster_that_cannot_grow_refuses_at_once(ray_here, tmp_path: Path):
    with pytest.raises(GreenpruneError, match=r"num_workers must be at most \d+, .* with cpu 1, got 999; lower it"):
        workers.run_workers(print, {}, workers.group_from_here("collect", 999), str(tmp_path))
