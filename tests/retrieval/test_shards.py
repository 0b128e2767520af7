"""What a folder of the network, another run in it, and a bad disk do to an extraction."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from hamlet.images import list_images
from hamlet.retrieval import extraction, shards
from hamlet.retrieval.extraction import extract

Pictures = Callable[[Path, int], list[str]]


def test_a_file_that_comes_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PATIENCE", 30.0)
    paths = [tmp_path / "early", tmp_path / "late"]
    paths[0].touch()
    other = threading.Timer(0.2, paths[1].touch)
    other.start()
    began = time.monotonic()
    assert shards.wait_for(paths) == []
    assert 0.2 <= time.monotonic() - began < 10
    other.join()


def test_a_file_that_does_not_come_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PATIENCE", 0.1)
    assert shards.wait_for([tmp_path, tmp_path / "never"]) == [tmp_path / "never"]


def test_the_lock_of_a_file_that_was_taken_away_keeps_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run ends, and removes its lock, between this one's opening of the file and its lock on it."""
    lockf, locks = shards.fcntl.lockf, []

    def ending(file: object, how: int) -> None:
        locks.append(file)
        if len(locks) == 1:
            (tmp_path / "lock").unlink()
        lockf(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(shards.fcntl, "lockf", ending)
    with shards.alone_in(tmp_path):
        assert len(locks) == 2
        child = os.fork()
        if not child:
            try:
                with shards.alone_in(tmp_path):
                    os._exit(0)
            except ValueError:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_what_another_run_ended_before_the_lock_was_had_is_not_repeated(
    model: nn.Module, write_pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "in", 5)
    images = list_images(tmp_path / "in")
    is_done = shards.is_done

    def ending(*arguments: object) -> bool:
        """Say no, as was true a moment ago; meanwhile the other run ends."""
        monkeypatch.setattr(shards, "is_done", is_done)
        first.append(extract(model, images, tmp_path / "out", progress=False))
        monkeypatch.setattr(extraction, "_run", None)
        return False

    first: list[shards.Extraction] = []
    monkeypatch.setattr(shards, "is_done", ending)
    second = extract(model, images, tmp_path / "out", progress=False)
    assert second.ids == first[0].ids
    assert np.array_equal(second.descriptors, first[0].descriptors)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["descriptors.npy", "manifest.json"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_shard_alone_is_done_again(
    model: nn.Module, write_pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    write_pictures(tmp_path / "in", 10)
    images, out = list_images(tmp_path / "in"), tmp_path / "out"
    whole = extract(model, images, tmp_path / "whole", shard_size=3, progress=False)
    monkeypatch.setattr(shards, "assemble", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(model, images, out, shard_size=3, progress=False)
    monkeypatch.undo()
    kept = sorted((out / "shards").iterdir())
    assert len(kept) == 4
    content = bytearray(kept[1].read_bytes())
    content[content.index(whole.descriptors[3].tobytes())] ^= 1
    kept[1].write_bytes({"flipped": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[damage])
    written: list[range] = []

    def recorded(folder: Path, shard: range, *rest: object) -> None:
        written.append(shard)
        write(folder, shard, *rest)  # type: ignore[arg-type]

    write = shards.write_shard
    monkeypatch.setattr(shards, "write_shard", recorded)
    resumed = extract(model, images, out, shard_size=3, progress=False)
    assert written == [range(3, 6)]
    assert resumed.ids == whole.ids
    assert np.array_equal(resumed.descriptors, whole.descriptors)


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt
