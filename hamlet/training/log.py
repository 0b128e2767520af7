"""What a run tells while it goes: history.jsonl, timing.jsonl, TensorBoard's files and a progress bar."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from hamlet.files import replacing

History = list[dict[str, float]]


class Log:
    """A run's records, one a step: none twice and none missing in the file, however often the run was killed.

    Args:
        out: the run's folder.
        step: steps that the run has taken, as its checkpoint knows them. What a killed run told after that is taken
            back here, as it will be done again.
        steps: steps of the whole run.
        writes: False in all processes but one, which tell of nothing.
        progress: show a bar on stderr.

    Raises:
        ValueError: a history that lacks some of the steps that were taken.
    """

    def __init__(self, out: Path, step: int, steps: int, *, writes: bool = True, progress: bool = True) -> None:
        self.out, self.step, self.writes = out, step, writes
        self._last = _last_record(out / "history.jsonl", step)
        self._taken = 0
        shown = progress and writes
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True, quiet=not shown), disable=not shown
        )
        loss = f"loss {self._last['loss']:.3f}" if self._last else ""
        self._task = self._bar.add_task("", total=steps, completed=step, told=loss)
        self._file: TextIO | None = None
        self._timing: TextIO | None = None
        self._spent: dict[str, float] = {}
        self._board: SummaryWriter | None = None

    def __enter__(self) -> Log:
        if self.writes:
            self._file = _open_at(self.out / "history.jsonl", self.step)
            self._timing = _open_at(self.out / "timing.jsonl", self.step)
            self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step + 1)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._spent:
            self._bar.console.print(f"a step took {shares(self._spent, self._taken)}", soft_wrap=True)
        for open_file in (self._file, self._timing, self._board):
            if open_file is not None:
                open_file.close()

    def append(self, record: dict[str, float], seconds: dict[str, float]) -> None:
        """Tell of a step: its record, which is the same in every run of the recipe, and where its time went."""
        self._last, self._taken = record, self._taken + 1
        self._bar.update(self._task, advance=1, told=f"loss {record['loss']:.3f}")
        for part, spent in seconds.items():
            self._spent[part] = self._spent.get(part, 0.0) + spent
        if self._file is None or self._timing is None or self._board is None:
            return
        for file, line in ((self._file, record), (self._timing, {"step": record["step"], **seconds})):
            file.write(_line(line))
            file.flush()
        for name, value in record.items():
            if name != "step":
                self._board.add_scalar(name, value, int(record["step"]))

    def amend(self, **more: float) -> None:
        """Add to the last record what was found after it was written, such as a validation."""
        if self._file is None or self._board is None or self._last is None:
            return
        self._last |= more
        step = int(self._last["step"])
        self._file.close()
        self._file = _open_at(self.out / "history.jsonl", step - 1, self._last)
        for name, value in more.items():
            self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Make sure that all is on the disk, as it must be before a checkpoint counts on it."""
        if self._file is not None:
            os.fsync(self._file.fileno())


def shares(seconds: dict[str, float], steps: int) -> str:
    """What a step took on average, and each part's share of it.

    Example:
        >>> shares({"data": 1.0, "forward": 3.0}, 8)
        '0.500 s: data 25%, forward 75%'
    """
    total = sum(seconds.values()) or 1.0
    parts = ", ".join(f"{part} {100 * spent / total:.0f}%" for part, spent in seconds.items())
    return f"{total / max(1, steps):.3f} s: {parts}"


def _line(record: dict[str, float]) -> str:
    # With float16 the gradient's norm may be infinite, which JSON does not know.
    finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
    return json.dumps(finite) + "\n"


def read_records(path: Path) -> History:
    """The records in a file of JSON lines, up to the first that a killed run left torn."""
    return [record for _, record in _whole_lines(path)]


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, float]]]:
    if not path.is_file():
        return
    with open(path, "rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(record, dict):
                return
            yield line, record


def _last_record(path: Path, steps: int) -> dict[str, float] | None:
    """The record of the last of so many steps, None before the first."""
    number, last = 0, None
    for number, (_, last) in enumerate(islice(_whole_lines(path), steps), start=1):
        if last.get("step") != number:
            break
    if number != steps or (last is not None and last.get("step") != steps):
        raise ValueError(f"out: {path} lacks steps that the checkpoint beside it has; give another folder")
    return last


def _open_at(path: Path, steps: int, *last: dict[str, float]) -> TextIO:
    """Open a file of records for more: cut to those of so many steps, with the last ones in place of what followed."""
    with replacing(path) as file:
        file.writelines(line for line, record in _whole_lines(path) if record.get("step", steps + 1) <= steps)
        file.writelines(_line(record).encode() for record in last)
    return open(path, "a", encoding="utf-8")
