"""``hamlet train`` in two processes that the real ``torchrun`` starts, and ends when it gets SIGTERM itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.training.test_sets import SMALL

STEPS = 1000


def test_sigterm_to_torchrun_ends_the_processes_with_their_step_saved(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    line += [sys.executable, "-c", "from hamlet.cli import main; main()", "train", "folder", *SMALL]
    line += [f"steps={STEPS}", f"data.root={photos}", f"checkpoint_every={STEPS}", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    history = out / "history.jsonl"
    deadline = time.monotonic() + 120
    while not history.is_file() or history.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[1]
    # torchrun has an exit code of its own.
    assert process.returncode == 1
    step = torch.load(out / "checkpoint.pt", weights_only=True)["state"]["curriculum"]["step"]
    assert 3 <= step < STEPS
    assert history.read_bytes().count(b"\n") == step
    assert told.count(f"terminated after step {step}, which is saved; the same command again goes on from here") == 1
