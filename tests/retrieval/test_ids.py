from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hamlet.retrieval.ids import Ids

# Lone surrogates stand for bytes in the names of files.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=6)


@given(st.lists(TEXTS, max_size=20), st.lists(TEXTS, max_size=5), st.data())
def test_as_a_list_of_strings_would(first: list[str], second: list[str], data: st.DataObject) -> None:
    ids = Ids.of(first) + Ids.of(second)
    plain = first + second
    assert list(ids) == plain
    assert (ids.first_repeated() is not None) == (len(set(plain)) < len(plain))
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(plain), max_size=len(plain))), bool)
    kept = [id for id, stays in zip(plain, keep, strict=True) if stays]
    assert list(ids.kept(keep)) == kept
    asked = [*plain, "elsewhere"]
    for id, row in zip(asked, ids.find(asked), strict=True):
        assert plain[row] == id if row >= 0 else id not in plain


def test_strings_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.hash", lambda id: len(id))
    ids = Ids.of(["ab", "cd", "e"])
    assert ids.find(["cd", "ef", "e", "ab"]).tolist() == [1, -1, 2, 0]
    assert ids.first_repeated() is None


def test_rows_outside() -> None:
    for row in (-1, 1):
        with pytest.raises(IndexError, match="expected 0 to 0"):
            Ids.of(["a"])[row]
