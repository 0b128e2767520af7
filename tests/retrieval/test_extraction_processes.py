"""Extractions that are killed, and extractions by several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.retrieval.processes import KILLS, SHARD

Pictures = Callable[[Path, int], list[str]]


def play(scene: str, folder: Path) -> str:
    command = [sys.executable, "-m", "tests.retrieval.processes", scene, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return done.stdout


def described(log: Path) -> int:
    return sum(map(int, log.read_text().split()))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_ten_random_moments_it_comes_to_the_same_bytes(write_pictures: Pictures, tmp_path: Path) -> None:
    names = write_pictures(tmp_path / "in", 130)
    (tmp_path / "in" / "1" / "broken.png").write_bytes(b"")
    play("killed", tmp_path)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    manifest = json.loads((tmp_path / "killed" / "manifest.json").read_text())
    assert manifest["ids"] == names
    assert manifest["failures"] == [["1/broken.png", "the file is empty"]]
    assert len(names) < described(tmp_path / "killed.log") <= len(names) + KILLS * SHARD


def test_two_processes_share_the_shards(write_pictures: Pictures, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 22)
    told = play("shared", tmp_path)
    assert content(tmp_path / "two") == content(tmp_path / "one")
    # Six shards: three of four images each to one, two of four and one of two to the other.
    assert [described(tmp_path / f"two{rank}.log") for rank in range(2)] == [12, 10]
    assert "there: not the folder of the first process, expected one that all processes reach" in told


def test_the_first_of_two_processes_may_remove_the_result(write_pictures: Pictures, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 6)
    play("removed", tmp_path)
    assert not (tmp_path / "out").exists()


def test_two_runs_in_one_folder_do_not_mix(write_pictures: Pictures, tmp_path: Path) -> None:
    names = write_pictures(tmp_path / "in", 30)
    told = play("disturbed", tmp_path)
    assert "out: another process is at work in it; wait for its end, or name another folder" in told
    assert not (tmp_path / "second.log").exists()
    assert described(tmp_path / "first.log") == len(names)
    assert sorted(content(tmp_path / "out")) == ["descriptors.npy", "manifest.json"]
