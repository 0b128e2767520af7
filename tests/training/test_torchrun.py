"""``hamlet train`` in two processes that the real ``torchrun`` or ``accelerate launch`` starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.training.test_sets import SMALL

STEPS = 1000
HAMLET = [sys.executable, "-c", "from hamlet.cli import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_sigterm_to_torchrun_ends_the_processes_with_their_step_saved(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    line += [*HAMLET, "train", "folder", *SMALL]
    line += [f"steps={STEPS}", f"data.root={photos}", f"checkpoint_every={STEPS}", "--out", str(out)]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
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


def test_accelerate_launch_trains_in_two_processes(photos: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--no_python"]
    line += [*HAMLET, "train", "folder", *SMALL, "steps=2", f"data.root={photos}", "--out", str(tmp_path / "run")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    assert [record["step"] for record in told] == [1, 2]
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["identity"]["processes"] == 2
