"""SIGTERM, which batch systems send before they take a machine away: the step is finished, the state saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """A run that was asked to end by SIGTERM and has saved its state; uncaught it ends the process with code 143."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_CODE)
        self.step = step

    def __str__(self) -> str:
        return f"terminated after step {self.step}, which is saved"


class Termination:
    """Within this block, SIGTERM is noted in ``asked`` and does nothing else.

    Signals reach a process's main thread alone; in another thread the block changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def outlive_sigterm(worker: int) -> None:
    """For the workers of a data loader, to which the signal may be sent too: they end when their own process says so.

    That one may be at its end with a loader still alive, and sends the signal then, and waits for them. On systems that
    do not tell who sent a signal, as macOS, any ends them.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()


def _end_when_the_parent_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
