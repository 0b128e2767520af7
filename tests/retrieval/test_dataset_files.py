from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hamlet.retrieval.datasets import load_labelled_csv, load_oxford, load_plain_pickle
from hamlet.retrieval.datasets.files import check_images, read_lines, read_rows

# Anything at all, and what looks like a dataset's file until one looks closer.
CONTENT = st.one_of(st.binary(max_size=200), st.text(',"\n\r\0 aimgelb.-/1é', max_size=60).map(str.encode))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENT, header=st.sampled_from([b"", b"image,label\n", b"label,role,image\n"]))
def test_whatever_a_file_holds_an_error_is_one_line(tmp_path: Path, content: bytes, header: bytes) -> None:
    path = tmp_path / "all_souls_1_query.txt"
    path.write_bytes(header + content)
    (tmp_path / "a.jpg").touch()
    for load in (load_labelled_csv, load_plain_pickle, lambda _: load_oxford("oxford5k", tmp_path)):
        told = ""
        try:
            load(path)
        except ValueError as error:
            told = str(error)
        assert "\n" not in told


def test_a_value_may_be_long(tmp_path: Path) -> None:
    ids = " ".join(f"{number:016x}" for number in range(20_000))
    (tmp_path / "a.csv").write_text(f"landmark_id,images\n7,{ids}\n")
    before = csv.field_size_limit()
    assert list(read_rows(tmp_path / "a.csv", ("images",))) == [(2, [ids])]
    assert csv.field_size_limit() == before


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,label\n\na.jpg,x\n\n\n")
    assert list(read_rows(tmp_path / "a.csv", ("label", "image"))) == [(3, ["x", "a.jpg"])]


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks 2 of 2 images"):
        check_images(tmp_path, ["x" * 5000 + "/a.jpg", "x" * 5000])
    with pytest.raises(ValueError, match="null character"):
        check_images(tmp_path, ["a\0b"])
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match="lacks 1 of 1 images, such as a/b"):
        check_images(tmp_path, ["a/b"])


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\n  two \n")
    assert read_lines(tmp_path / "a.txt", "names") == ["one", "two"]
    with pytest.raises(ValueError, match=r"b\.txt: no such file, expected names"):
        read_lines(tmp_path / "b.txt", "names")
