"""The workers of a data loader outlive a SIGTERM that others send, and never outlive their own process."""

import os
import signal
import subprocess
import sys

LOADER = """
import multiprocessing
from torch.utils.data import DataLoader
from hamlet.training.termination import outlive_sigterm

loader = DataLoader(range(64), num_workers=1, persistent_workers=True, worker_init_fn=outlive_sigterm)
iterator = iter(loader)
next(iterator)
print(multiprocessing.active_children()[0].pid, flush=True)
input()
print(1 + sum(1 for _ in iterator), flush=True)
"""


def test_workers_outlive_the_signal_of_others_and_end_with_their_process() -> None:
    command = [sys.executable, "-c", LOADER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        os.kill(int(process.stdout.readline()), signal.SIGTERM)
        try:
            counted, _ = process.communicate("\n", timeout=60)
        finally:
            process.kill()
    assert counted == "64\n"
    assert process.returncode == 0
