"""DeepSpeed in a process group, without what it would compile first."""

from __future__ import annotations

import os
import subprocess
import sys

ALONE = """
import torch.distributed as dist
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
from greenprune.models.zero3 import deepspeed_here
deepspeed_here()
dist.destroy_process_group()
"""


def test_nothing_is_compiled_before_workers_begin(tmp_path):
    """A worker killed while it compiles would leave a lock, and all later ones would wait for it."""
    where = {"TORCH_EXTENSIONS_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    subprocess.run([sys.executable, "-c", ALONE], check=True, env=os.environ | where, timeout=300)
    assert not list(tmp_path.iterdir())
