"""What the sweep's command knows reaches the nodes, and its token no file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from greenprune.cluster.surroundings import JOB, PASSED_ON, keep_token, learn_token, runtime_env

SECRET = "hf_" + "s3cret" * 5


def test_settings_travel_and_a_jobs_own_come_first(monkeypatch):
    for name in (*PASSED_ON, JOB):
        monkeypatch.delenv(name, raising=False)
    assert runtime_env() == {}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("GREENPRUNE_CACHE", "/shared/cache")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert runtime_env() == {"env_vars": {"HF_HUB_OFFLINE": "1", "GREENPRUNE_CACHE": "/shared/cache"}}
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"env_vars": {"GREENPRUNE_CACHE": "/of/the/job"}}}))
    assert runtime_env() == {"env_vars": {"HF_HUB_OFFLINE": "1"}}


def test_a_token_reaches_every_process_and_no_log(ray_here, monkeypatch):
    def token() -> str | None:
        learn_token()
        return os.environ.pop("HF_TOKEN", None)

    monkeypatch.setenv("HF_TOKEN", SECRET)
    kept = keep_token()
    assert ray_here.get(ray_here.remote(token).remote()) == SECRET
    session = Path(ray_here._private.worker.global_worker.node.get_session_dir_path())
    written = [path for path in session.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not written
    ray_here.kill(kept)
