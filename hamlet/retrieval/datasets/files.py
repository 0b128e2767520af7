"""Reading a dataset's files, with one line about what is missing or broken, and where it was expected."""

from __future__ import annotations

import csv
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from hamlet.images import ImageList, relative

_LONGEST_VALUE = 1 << 24


def find_folder(folder: Path | str, below: str, file: str) -> Path:
    """The first of ``folder`` and ``folder/below`` that holds ``file``; ValueError if neither does."""
    for root in (Path(folder), Path(folder, below)):
        if (root / file).is_file():
            return root
    raise ValueError(f"{folder}: no {file}, expected it there or in {Path(folder, below)}")


def check_images(
    folder: Path, names: Sequence[str], source: Path | None = None, lines: Sequence[int] = ()
) -> ImageList:
    """Those images of a folder, all of which are there.

    Args:
        folder: where they are.
        names: paths below it.
        source: the file that lists them, and ``lines`` on which line each, for errors to tell; or None.

    Raises:
        ValueError: no such folder, a name that leaves it or comes twice, or images that are missing, with their number
            and the first.
    """

    def where(number: int) -> str:
        return str(folder) if source is None else f"{source}, line {lines[number]}"

    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder, expected {len(names)} images in it")
    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(n for n, name in enumerate(names) if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{where(twice)}: {names[twice]!r} is listed twice, expected every image once")
    # One listing a folder is quicker than asking for millions of files.
    listings: dict[str, set[str]] = {}
    missing = []
    for number, name in enumerate(names):
        try:
            parent, _, file = relative(name, folder).rpartition("/")
        except ValueError as error:
            raise ValueError(f"{where(number)}: {error}") from None
        if parent not in listings:
            try:
                listings[parent] = set(os.listdir(folder / parent))
            except OSError:
                listings[parent] = set()
        if file not in listings[parent]:
            missing.append(number)
    if missing:
        listed = f" ({where(missing[0])})" if source is not None else ""
        first = names[missing[0]]
        raise ValueError(f"{folder}: lacks {len(missing)} of {len(names)} images, such as {first}{listed}")
    return ImageList(folder, names)


def read_lines(path: Path, expected: str) -> list[str]:
    """Lines of a UTF-8 text file without the blank ones; ``expected`` says in an error what should be in it."""
    _check_there(path, expected)
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text, expected {expected}") from None


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file with a header: (line, values of ``columns`` and of ``optional``).

    An optional column that the header lacks gives empty strings; further columns are passed over.

    Raises:
        ValueError: no such file, a column that is missing, a row of another length than the header, or no CSV text.
    """
    expected = f"a CSV file with the columns {','.join(columns)}"
    _check_there(path, expected)
    # A landmark's images are one value, of more characters than the module takes unless told so.
    limit = csv.field_size_limit(_LONGEST_VALUE)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if missing := [column for column in columns if column not in header]:
                raise ValueError(f"{path}: no column {missing[0]!r}, expected {expected}")
            places = [header.index(column) if column in header else None for column in (*columns, *optional)]
            for row in reader:
                # A blank line, as editors leave at the end.
                if not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(row)} values, expected {len(header)} as in the header"
                    )
                yield reader.line_num, ["" if place is None else row[place] for place in places]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: broken ({error}), expected {expected}") from None
    finally:
        csv.field_size_limit(limit)


def _check_there(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected {expected}")


def load_plain_pickle(path: Path | str) -> Any:
    """Unpickle dicts, lists, tuples, strings and numbers, and refuse whatever names a class or a function.

    Raises:
        ValueError: any other content, or a file that is no pickle.
    """
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file).load()
        except _Refused as refused:
            raise ValueError(f"{path}: {refused}, expected dicts, lists, strings and numbers only") from None
        except Exception as error:  # A broken pickle may raise nearly anything.
            raise ValueError(f"{path}: not a whole pickle file ({type(error).__name__})") from error


class _Refused(Exception):
    pass


class _PlainUnpickler(pickle.Unpickler):
    # Plain containers and numbers have opcodes of their own; only what could run code is looked up by name.
    def find_class(self, module: str, name: str) -> NoReturn:
        raise _Refused(f"names {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("refers to an outside object")


def is_box(box: Sequence[Any]) -> bool:
    """Whether it is (left, top, right, bottom) around at least something."""
    return (
        len(box) == 4
        and all(isinstance(side, (int, float)) and abs(side) < float("inf") for side in box)
        and box[0] < box[2]
        and box[1] < box[3]
    )


def stem(name: str) -> str:
    """A picture's name without folder and extension."""
    return PurePosixPath(name).stem
