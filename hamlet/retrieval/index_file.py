"""The file of an index: faiss's own bytes first, so that they can be memory-mapped, then ids and what is known of them.

    faiss's bytes | ends of the ids, int64 (n,) | stamps, int64 (n,) | letters of the ids | JSON | footer

One file rather than faiss's beside a description: of two files, one can be moved, copied or replaced without the other.
The footer holds the lengths of the parts and two SHA-256: of faiss's bytes, and of all that is not faiss's bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from hamlet.files import remove_parts, replacing
from hamlet.retrieval.ids import Ids

MAGIC = b"HAMLETIX"
VERSION = 2
# Lengths of faiss's bytes, of the letters and of the JSON; rows; SHA-256 of faiss's bytes.
_PARTS = struct.Struct("<QQQQ32s")
# SHA-256 of all between faiss's bytes and itself; version; magic.
_END = struct.Struct("<32sQ8s")
_FOOTER = _PARTS.size + _END.size
_CHUNK = 1 << 20

Write = Callable[[bytes | memoryview], None]


@dataclass(frozen=True)
class Content:
    """What the file of an index holds.

    Args:
        faiss_index: read, or memory-mapped.
        ids: of its rows.
        stamps: int64 (n,), of its rows.
        about: plain data.
    """

    faiss_index: Any
    ids: Ids
    stamps: NDArray[np.int64]
    about: dict[str, Any]


def write_file(
    path: Path | str, write_faiss: Callable[[Write], None], ids: Ids, stamps: NDArray[np.int64], about: dict[str, Any]
) -> None:
    """Write the file of an index, atomically; what killed runs have left beside it goes.

    Args:
        path: the file.
        write_faiss: calls what it is given with faiss's bytes, piece by piece.
        ids, stamps, about: see :class:`Content`.

    Raises:
        TypeError: ``about`` is not JSON.
    """
    text = json.dumps(about).encode()
    remove_parts(Path(path).parent, Path(path).name)
    with replacing(path) as file:
        digest = hashlib.sha256()

        def write(content: bytes | memoryview) -> None:
            digest.update(content)
            file.write(content)

        write_faiss(write)
        parts = _PARTS.pack(file.tell(), len(ids.letters), len(text), len(ids), digest.digest())
        digest = hashlib.sha256()
        for array in (ids.ends.astype("<i8"), stamps.astype("<i8"), ids.letters):
            write(np.ascontiguousarray(array).data)
        write(text)
        write(parts)
        file.write(_END.pack(digest.digest(), VERSION, MAGIC))


def write_faiss_index(index: Any) -> Callable[[Write], None]:
    """What writes a whole faiss index, for :func:`write_file`."""
    return lambda write: faiss.write_index(index, faiss.PyCallbackIOWriter(write, _CHUNK))  # type: ignore[attr-defined]


def read_file(path: Path | str, *, memory_map: bool) -> Content:
    """Read what :func:`write_file` wrote, after checking it: all of it, or without faiss's bytes where they are mapped.

    Raises:
        ValueError: the file is missing, foreign, truncated, damaged, or of another version.
    """
    try:
        with open(path, "rb") as file:
            ids, stamps, about = _read_checked(file, path, faiss_too=not memory_map)
            if memory_map:
                # Not by its name, which may be that of another file by now.
                index = faiss.read_index(f"/dev/fd/{file.fileno()}", faiss.IO_FLAG_MMAP_IFC)
            else:
                file.seek(0)
                index = faiss.read_index(faiss.PyCallbackIOReader(file.read, _CHUNK))  # type: ignore[attr-defined]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}, expected an index file") from error
    except RuntimeError as error:
        raise ValueError(f"{path}: faiss cannot read it ({faiss_reason(error)})") from error
    if index.ntotal != len(ids) or index.d != about["dim"]:
        raise ValueError(f"{path}: {index.ntotal} descriptors of {index.d} do not match its {len(ids)} ids")
    return Content(index, ids, stamps, about)


def faiss_reason(error: RuntimeError) -> str:
    """What faiss has to say, without the C++ function and file that it puts before it."""
    text = " ".join(str(error).split())
    return re.sub(r"^Error in .*? at \S+:\d+: (Error: )?", "", text)[:300]


def _read_checked(
    file: BinaryIO, path: Path | str, *, faiss_too: bool
) -> tuple[Ids, NDArray[np.int64], dict[str, Any]]:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _FOOTER))
    footer = file.read(_FOOTER)
    if len(footer) < _FOOTER or not footer.endswith(MAGIC):
        raise ValueError(f"{path}: not an index of hamlet, or one that was cut short; expected a file of `Index.save`")
    faiss_length, letters, text, rows, faiss_digest = _PARTS.unpack(footer[: _PARTS.size])
    digest, version, _magic = _END.unpack(footer[_PARTS.size :])
    if version != VERSION:
        raise ValueError(f"{path}: version {version}, expected {VERSION}; make the index again")
    whole = faiss_length + 16 * rows + letters + text + _FOOTER
    if size != whole:
        raise ValueError(f"{path}: {size} bytes, expected {whole}: a part of it is missing, or does not belong to it")
    damaged = ValueError(f"{path}: checksum does not match, the file is damaged")
    file.seek(faiss_length)
    description = np.fromfile(file, np.uint8, 16 * rows + letters + text)
    found = hashlib.sha256(description.data)
    found.update(footer[: _PARTS.size])
    if found.digest() != digest:
        raise damaged
    if faiss_too and _digest(file, faiss_length) != faiss_digest:
        raise damaged
    ends, stamps = description[: 16 * rows].view("<i8").astype(np.int64, copy=False).reshape(2, rows)
    about: dict[str, Any] = json.loads(description[16 * rows + letters :].tobytes())
    return Ids(description[16 * rows :][:letters], ends), stamps, about


def _digest(file: BinaryIO, length: int) -> bytes:
    file.seek(0)
    digest = hashlib.sha256()
    while length and (chunk := file.read(min(_CHUNK, length))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.digest()
