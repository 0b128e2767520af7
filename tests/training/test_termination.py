"""The workers of a data loader outlive a SIGTERM that others send, and never outlive their own process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from hamlet.training.termination import outlive_sigterm

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


def test_where_a_signal_has_no_sender_the_workers_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "sigwaitinfo")
    threads = threading.active_count()
    outlive_sigterm(0)
    assert threading.active_count() == threads
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
