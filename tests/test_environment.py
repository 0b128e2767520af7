from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import hamlet
from hamlet import environment


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_which_holds_the_package(tmp_path: Path) -> None:
    folder = tmp_path / "hamlet"
    folder.mkdir()
    copy = Path(shutil.copy(environment.__file__, folder))
    spec = importlib.util.spec_from_file_location("copied_environment", copy)
    assert spec is not None
    assert spec.loader is not None
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    plain = f"hamlet {hamlet.__version__}"
    assert copied.commit() == {"id": "unversioned", "dirty": False}
    assert copied.version() == plain
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "Someone else's", "--allow-empty")
    # Installed below a checkout, and no part of it.
    assert copied.version() == plain
    git(tmp_path, "add", str(copy))
    git(tmp_path, "commit", "-qm", "One")
    # What importing the copy may have left.
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    identifier = git(tmp_path, "rev-parse", "HEAD")
    assert copied.commit() == {"id": identifier, "dirty": False}
    assert copied.version() == f"{plain}, commit {identifier[:12]}"
    copy.with_name("new.py").touch()
    assert copied.version() == f"{plain}, commit {identifier[:12]}, dirty tree"


def test_processors_of_one_name_and_two_generations_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(text: str) -> str:
        monkeypatch.setattr(Path, "is_file", lambda path: True)
        monkeypatch.setattr(Path, "read_text", lambda path, encoding: text)
        return environment.processor()

    one = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n"
    assert told(f"{one}\n{one.replace('25', '26')}") == "AMD EPYC (family 25, model 1)"
    assert told("model name\t: Some Processor\n") == "Some Processor"
    assert told("processor\t: 0\nBogoMIPS\t: 50.00\n") == (platform.processor() or platform.machine())
