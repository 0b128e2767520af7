"""The cache of a teacher's embeddings, and captions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hamlet.training import TeacherCache, read_captions
from tests.training import tiny


def test_saved_cache_is_the_same(tmp_path: Path) -> None:
    cache = tiny.teacher()
    cache.save(tmp_path / "deep" / "teacher.safetensors")
    read = TeacherCache.load(tmp_path / "deep" / "teacher.safetensors")
    assert (read.ids, read.logit_scale, read.name) == (cache.ids, cache.logit_scale, cache.name)
    for name in ("embeddings", "prototypes", "captions"):
        assert torch.equal(getattr(read, name), getattr(cache, name))
    assert read.fingerprint() == cache.fingerprint()
    own = replace(cache, logits=torch.randn(len(cache.ids), tiny.CLASSES))
    own.save(tmp_path / "own")
    assert torch.equal(TeacherCache.load(tmp_path / "own").logits, own.logits)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["teacher.safetensors"]


def test_optional_parts_stay_away(tmp_path: Path) -> None:
    TeacherCache(("ü",), torch.ones(1, 3).half()).save(tmp_path / "t")
    read = TeacherCache.load(tmp_path / "t")
    assert read.ids == ("ü",)
    assert read.embeddings.dtype == torch.float16
    assert read.prototypes is None
    assert read.captions is None


def test_aligned_follows_the_ids() -> None:
    cache = TeacherCache(("a", "b", "c"), torch.eye(3), captions=2 * torch.eye(3), logits=torch.arange(6.0).view(3, 2))
    chosen = cache.aligned(["c", "a"])
    assert chosen.ids == ("c", "a")
    assert chosen.embeddings.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert chosen.captions is not None
    assert chosen.captions.tolist() == [[0, 0, 2], [2, 0, 0]]
    assert chosen.logits is not None
    assert chosen.logits.tolist() == [[4, 5], [0, 1]]
    with pytest.raises(ValueError, match="no embedding of 2 of 3 pictures, such as 'x'"):
        cache.aligned(["a", "x", "y"])


def test_confidence_is_the_largest_probability() -> None:
    embeddings = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    cache = TeacherCache(("a", "b"), embeddings, prototypes=torch.eye(2) * 7, logit_scale=math.log(3))
    assert cache.confidence().tolist() == pytest.approx([0.75, 0.5])
    own = replace(cache, logits=torch.tensor([[0.0, 0.0], [math.log(9), 0.0]]))
    assert own.confidence().tolist() == pytest.approx([0.5, 0.9])
    with pytest.raises(ValueError, match="no prototypes"):
        TeacherCache(("a",), torch.ones(1, 2)).confidence()


def test_fingerprint_sees_every_part() -> None:
    one = torch.ones(1, 2)
    caches = [
        TeacherCache(("a",), one),
        TeacherCache(("b",), one),
        TeacherCache(("a",), 2 * one),
        TeacherCache(("a",), one, captions=one),
        TeacherCache(("a",), one, logit_scale=3.0),
        TeacherCache(("a",), one, prototypes=torch.eye(2)),
        TeacherCache(("a",), one, logits=3 * one),
    ]
    assert len({cache.fingerprint() for cache in caches}) == len(caches)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": ("a", "a"), "embeddings": torch.ones(2, 2)}, "ids: some come twice"),
        ({"ids": ("a",), "embeddings": torch.ones(2, 2)}, r"embeddings: got \(2, 2\), expected \(1, 2\)"),
        ({"ids": ("a",), "embeddings": torch.ones(1, 2), "captions": torch.ones(1, 3)}, "captions: got"),
        ({"ids": ("a",), "embeddings": torch.ones(1, 2), "prototypes": torch.ones(4, 3)}, "prototypes: got"),
        ({"ids": ("a",), "embeddings": torch.ones(1, 2), "logits": torch.ones(2, 3)}, r"logits: got \(2, 3\)"),
        (
            {"ids": ("a",), "embeddings": torch.ones(1, 2), "prototypes": torch.eye(2), "logits": torch.ones(1, 3)},
            r"logits: got \(1, 3\), expected \(1, 2\)",
        ),
        ({"ids": ("a",), "embeddings": torch.full((1, 2), torch.nan)}, "embeddings: expected finite"),
        ({"ids": ("a",), "embeddings": torch.ones(1, 2, dtype=torch.int64)}, "embeddings: expected finite"),
        ({"ids": ("a",), "embeddings": torch.ones(1, 2), "logit_scale": 0.0}, "logit_scale: got"),
    ],
)
def test_bad_caches_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherCache(**arguments)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    with pytest.raises(ValueError, match="is not a file"):
        TeacherCache.load(path)
    tiny.teacher().save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="is damaged, or no teacher cache"):
        TeacherCache.load(path)
    from safetensors.torch import save_file

    save_file({"embeddings": torch.ones(1, 2)}, path)
    with pytest.raises(ValueError, match="was not written by TeacherCache"):
        TeacherCache.load(path)
    about = {"format": "hamlet-teacher", "version": "1"}
    plain = json.dumps({"ids": ["a"], "logit_scale": 1.0, "name": ""})
    for tensors, metadata in (
        ({"embeddings": torch.ones(1, 2)}, about),
        ({"embeddings": torch.ones(1, 2)}, {**about, "plain": '{"ids": ["a"]}'}),
        ({"embeddings": torch.ones(1, 2)}, {**about, "plain": "[1]"}),
        ({"embeddings": torch.ones(1, 2)}, {**about, "plain": "{torn"}),
        ({"embeddings": torch.ones(1, 2), "foreign": torch.ones(1)}, {**about, "plain": plain}),
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(ValueError, match="is damaged, or no teacher cache"):
            TeacherCache.load(path)


def test_captions(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "a/1.jpg", "caption": "Ein Käse", "model": "x"}\n\n{"image": "b", "caption": ""}\n')
    assert read_captions(path) == {"a/1.jpg": "Ein Käse", "b": ""}


@pytest.mark.parametrize("line", ["{", "[1]", '{"image": "a"}', '{"image": "a", "caption": 3}', "3"])
def test_bad_captions_are_named_by_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "b", "caption": "c"}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2: expected"):
        read_captions(path)


def test_captions_that_come_twice(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "b", "caption": "c"}\n' * 2)
    with pytest.raises(ValueError, match="line 2: 'b' comes twice"):
        read_captions(path)
