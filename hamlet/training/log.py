"""What a run tells while it goes: history.jsonl, timing.jsonl, TensorBoard's files and a progress bar."""

from __future__ import annotations

import json
import os
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
        writes: False in all processes but one, which keep the records in memory alone.
        progress: show a bar on stderr.

    Raises:
        ValueError: a history that lacks some of the steps that were taken.
    """

    def __init__(self, out: Path, step: int, steps: int, *, writes: bool = True, progress: bool = True) -> None:
        self.out, self.step, self.writes = out, step, writes
        self.records = _first_records(out / "history.jsonl", step)
        shown = progress and writes
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True, quiet=not shown), disable=not shown
        )
        loss = f"loss {self.records[-1]['loss']:.3f}" if self.records else ""
        self._task = self._bar.add_task("", total=steps, completed=step, told=loss)
        self._file: TextIO | None = None
        self._timing: TextIO | None = None
        self._spent: dict[str, float] = {}
        self._board: SummaryWriter | None = None

    def __enter__(self) -> Log:
        if self.writes:
            path = self.out / "history.jsonl"
            text = "".join(map(_line, self.records))
            with replacing(path) as file:
                file.write(text.encode())
            self._file = open(path, "a", encoding="utf-8")
            self._timing = open(self.out / "timing.jsonl", "a", encoding="utf-8")
            self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step + 1)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._spent:
            self._bar.console.print(f"a step took {shares(self._spent, len(self.records) - self.step)}", soft_wrap=True)
        for open_file in (self._file, self._timing, self._board):
            if open_file is not None:
                open_file.close()

    def append(self, record: dict[str, float], seconds: dict[str, float]) -> None:
        """Tell of a step: its record, which is the same in every run of the recipe, and where its time went."""
        self.records.append(record)
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
    return json.dumps(record) + "\n"


def _first_records(path: Path, steps: int) -> History:
    records: History = []
    lines = path.read_text(encoding="utf-8").splitlines()[:steps] if steps and path.is_file() else []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    if [record.get("step") for record in records] != list(range(1, steps + 1)):
        raise ValueError(f"out: {path} lacks steps that the checkpoint beside it has; give another folder")
    return records
