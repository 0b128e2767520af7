"""Files that are either whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_SUFFIX = ".part"
# It can only be read by setting it, for all threads: once, before there are any.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


def remove_parts(folder: Path, name: str | None = None) -> None:
    """Remove what killed runs of :func:`replacing` left half-written in a folder; of the file of that name, or of all.

    What a process still writes to is held by a lock, and stays.
    """
    for path in folder.glob(f".{'*' if name is None else glob.escape(name) + '.*'}{_SUFFIX}"):
        # Another process that removes it, or puts it in its place, is as good.
        with suppress(FileNotFoundError, BlockingIOError), open(path, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def printable(name: str) -> str:
    """A file's name as text that any stream takes, on one line: what is no text or moves the cursor is escaped.

    >>> print(printable(os.fsdecode(b"caf\\xe9\\n.png")))
    caf\\udce9\\n.png
    """
    return name if name.isprintable() else repr(name)[1:-1]


def check_writable(path: Path | str) -> None:
    """Raise ValueError where :func:`replacing` could put no file; for what is to be found out before hours of work.

    >>> check_writable("/")
    Traceback (most recent call last):
    ...
    ValueError: /: a folder, expected the file to write
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a folder, expected the file to write")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise ValueError(f"{path}: {parent} is a file, expected a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: {parent} cannot be written to, expected a folder that can")


@contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of ``path`` when the block ends without an exception.

    Until then ``path`` is what it was, also when the process is killed. The parent folder is made where it is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a", "greeting.txt")) as file:
    ...         _ = file.write(b"hello")
    ...     Path(folder, "a", "greeting.txt").read_bytes()
    b'hello'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = _create_part(path)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; a result is like any other file, or like the one it replaces.
        os.chmod(beside, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_UMASK)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _create_part(path: Path) -> tuple[int, str]:
    """A file beside ``path``, locked: its descriptor and name."""
    while True:
        descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, beside
        os.close(descriptor)  # remove_parts came between.


def write_json(path: Path | str, content: object) -> None:
    """Write plain data as JSON, in one step.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "manifest.json"), {"shards": 2})
    ...     Path(folder, "manifest.json").read_text()
    '{\\n "shards": 2\\n}'
    """
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def digest_files(root: Path | str, names: Sequence[str]) -> str:
    """Sixteen hexadecimal digits that change with the names, and with the size or time of change of any file.

    >>> digest_files("/nowhere", ["a"]) == digest_files("/nowhere", ["b"])
    False
    """
    digest = hashlib.sha256()
    for name in names:
        try:
            about = os.stat(Path(root, name))
            state: tuple[int, ...] = (about.st_size, about.st_mtime_ns)
        except (OSError, ValueError):
            state = ()
        digest.update(json.dumps([name, state]).encode())
    return digest.hexdigest()[:16]
