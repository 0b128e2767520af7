"""Millions of different strings in an order, in little more memory than their letters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_BLOCK = 65_536


class Ids:
    """The ids of an index's rows: UTF-8 in one array, and where each ends in another.

    Ten million paths of 32 letters take 0.4 GB, as Python strings in a list and a set 1.3 GB. What names the rows of
    given ids is made when it is first asked for, and takes 16 bytes an id more.

    >>> ids = Ids.of(["a.jpg", "b/é.jpg"])
    >>> ids[1], ids.find(["b/é.jpg", "c.jpg"]).tolist(), list(ids + Ids.of(["c.jpg"]))
    ('b/é.jpg', [1, -1], ['a.jpg', 'b/é.jpg', 'c.jpg'])

    Args:
        letters: uint8 (bytes,), all ids one after another; memory-mapped if need be.
        ends: int64 (n,), where each id ends in ``letters``.
    """

    def __init__(self, letters: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.letters, self.ends = letters, ends
        self._table: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    @classmethod
    def of(cls, ids: Sequence[str]) -> Ids:
        """Pack strings, repeated ones too; TypeError for what is no string."""
        letters, lengths = [], []
        for start in range(0, len(ids), _BLOCK):
            packed = [_encode(id) for id in ids[start : start + _BLOCK]]
            letters.append(np.frombuffer(b"".join(packed), np.uint8))
            lengths.append(np.fromiter(map(len, packed), np.int64, len(packed)))
        if not lengths:
            return cls(np.empty(0, np.uint8), np.empty(0, np.int64))
        return cls(np.concatenate(letters), np.cumsum(np.concatenate(lengths)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(f"row: got {row}, expected 0 to {len(self) - 1}")
        start = self.ends[row - 1] if row else 0
        return self.letters[start : self.ends[row]].tobytes().decode(errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        blocks = (np.arange(start, min(start + _BLOCK, len(self))) for start in range(0, len(self), _BLOCK))
        return (id for block in blocks for id in self.take(block))

    def take(self, rows: NDArray[np.int64]) -> list[str]:
        """The ids of rows, int64 (n,), each from 0 to len - 1, in half the time of one by one.

        >>> Ids.of(["a.jpg", "b.jpg", ""]).take(np.array([2, 0, 1, 0]))
        ['', 'a.jpg', 'b.jpg', 'a.jpg']
        """
        letters = self.letters.data
        starts = np.where(rows > 0, self.ends[rows - 1], 0)
        bounds = zip(starts.tolist(), self.ends[rows].tolist(), strict=True)
        return [str(letters[start:end], errors="surrogatepass") for start, end in bounds]

    def __add__(self, more: Ids) -> Ids:
        return Ids(
            np.concatenate([self.letters, more.letters]),
            np.concatenate([self.ends, more.ends + len(self.letters)]),
        )

    def kept(self, keep: NDArray[np.bool_]) -> Ids:
        """Those where ``keep``, bool (n,), is true, in the same order."""
        lengths = np.diff(self.ends, prepend=0)
        return Ids(self.letters[np.repeat(keep, lengths)], np.cumsum(lengths[keep]))

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each id, int64 (len(ids),); -1 for one that is not there."""
        order, hashes = self._hashed()
        wanted = np.fromiter(map(hash, ids), np.int64, len(ids))
        rows = np.full(len(ids), -1, np.int64)
        first = np.searchsorted(hashes, wanted)
        last = np.searchsorted(hashes, wanted, side="right")
        for position in np.flatnonzero(last > first).tolist():
            # Strings that differ may have one hash.
            for row in order[first[position] : last[position]]:
                if self[row] == ids[position]:
                    rows[position] = row
                    break
        return rows

    def first_repeated(self) -> str | None:
        """An id that comes twice, if there is one."""
        order, hashes = self._hashed()
        alike = hashes[1:] == hashes[:-1]
        seen: set[str] = set()
        for row in order[np.append(alike, False) | np.append(False, alike)] if len(self) else ():
            if self[row] in seen:
                return self[row]
            seen.add(self[row])
        return None

    def _hashed(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows in the order of their ids' hashes, and those hashes."""
        if self._table is None:
            hashes = np.fromiter(map(hash, self), np.int64, len(self))
            order = np.argsort(hashes, kind="stable")
            self._table = order, hashes[order]
        return self._table


def _encode(id: str) -> bytes:
    if not isinstance(id, str):
        raise TypeError(f"ids: got {id!r} of type {type(id).__name__}, expected strings")
    # A file's name may hold bytes that are no text, which Python keeps as lone surrogates.
    return id.encode(errors="surrogatepass")
