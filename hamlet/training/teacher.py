"""A teacher's embeddings, made once and kept in a file: training never runs the teacher."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from hamlet.files import replacing
from hamlet.images import inside

FORMAT = "hamlet-teacher"
FOLDER_VERSION = 1


@dataclass(frozen=True)
class TeacherCache:
    """What a teacher says of a set of pictures, and of the texts that belong to them.

    Any embeddings serve: those of CLIP (:func:`hamlet.training.teach.teach`), of another model, or the descriptors
    of a larger HAMLET.

    Args:
        ids: the pictures, as the training set names them; at most one row each.
        embeddings: (n, W), one row for each of ``ids``.
        prototypes: (P, W), embeddings of texts such as the classes' names; they make the teacher's outputs.
        captions: (n, W), the embedding of each picture's caption; a row of zeros where it has none.
        logits: (n, P), the teacher's own outputs, such as a classifier's; they take the place of those that embeddings
            and prototypes give.
        logit_scale: the teacher's inverse temperature, which CLIP learns.
        name: which teacher it was.
        failures: (picture, reason) of those that have no row, which training leaves out.

    Raises:
        ValueError: shapes that do not agree, ids that come twice, or numbers that are not finite.

    Example:
        >>> cache = TeacherCache(ids=("a.jpg", "b.jpg"), embeddings=torch.eye(2), prototypes=torch.eye(2))
        >>> cache.aligned(["b.jpg"]).embeddings
        tensor([[0., 1.]])
    """

    ids: tuple[str, ...]
    embeddings: Tensor
    prototypes: Tensor | None = None
    captions: Tensor | None = None
    logits: Tensor | None = None
    logit_scale: float = 100.0
    name: str = ""
    failures: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        count, width = len(self.ids), self.embeddings.shape[-1]
        if len(set(self.ids)) != count:
            raise ValueError("ids: some come twice, expected each once")
        outputs = None if self.prototypes is None else len(self.prototypes)
        shapes = {
            "embeddings": (count, width),
            "captions": (count, width),
            "prototypes": (None, width),
            "logits": (count, outputs),
        }
        for name, expected in shapes.items():
            tensor = getattr(self, name)
            if tensor is None:
                continue
            fits = tensor.ndim == 2 and all(e in (None, s) for e, s in zip(expected, tensor.shape, strict=True))
            if not fits:
                told = ", ".join("any number" if side is None else str(side) for side in expected)
                raise ValueError(f"{name}: got {tuple(tensor.shape)}, expected ({told})")
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ValueError(f"{name}: expected finite floating-point numbers")
        if not 0 < self.logit_scale < float("inf"):
            raise ValueError(f"logit_scale: got {self.logit_scale}, expected a finite number above 0")

    def aligned(self, ids: Sequence[str]) -> TeacherCache:
        """The cache with the rows of these pictures, in this order.

        Raises:
            ValueError: pictures that the teacher has not seen.
        """
        places = {name: row for row, name in enumerate(self.ids)}
        if missing := [name for name in ids if name not in places]:
            raise ValueError(f"teacher: no embedding of {len(missing)} of {len(ids)} pictures, such as {missing[0]!r}")
        rows = torch.tensor([places[name] for name in ids], dtype=torch.long)
        captions, logits = (None if table is None else table[rows] for table in (self.captions, self.logits))
        return replace(self, ids=tuple(ids), embeddings=self.embeddings[rows], captions=captions, logits=logits)

    def confidence(self) -> Tensor:
        """The largest probability that the teacher gives to a prototype or in its own outputs, a picture: (n,).

        Raises:
            ValueError: a teacher without prototypes and logits.
        """
        if self.logits is not None:
            return self.logits.float().softmax(1).amax(1)
        if self.prototypes is None:
            raise ValueError("teacher: it has no prototypes and no logits, so no confidence either")
        towards = F.normalize(self.prototypes.float(), dim=1)
        cosines = F.normalize(self.embeddings.float(), dim=1) @ towards.T
        return (self.logit_scale * cosines).softmax(1).amax(1)

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that tell caches apart by what is in them."""
        digest = hashlib.sha256(json.dumps([self.ids, self.logit_scale]).encode())
        for tensor in (self.embeddings, self.prototypes, self.captions, self.logits):
            # A block at a time: the whole as float32 may be twice what the cache takes.
            for rows in () if tensor is None else tensor.detach().split(4096):
                digest.update(rows.cpu().float().contiguous().numpy())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the cache as a safetensors file, in one step."""
        named = {name: getattr(self, name) for name in ("embeddings", "prototypes", "captions", "logits")}
        tensors = {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}
        plain = json.dumps({each: getattr(self, each) for each in ("ids", "logit_scale", "name", "failures")})
        metadata = {"format": FORMAT, "version": "1", "plain": plain}
        with replacing(path) as file:
            file.write(save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> TeacherCache:
        """Read what :meth:`save` or ``hamlet teach`` wrote; nothing in the files is executed.

        Raises:
            ValueError: a file that is missing, damaged or foreign.
        """
        if Path(path).is_dir():
            return load_folder(Path(path))
        if not Path(path).is_file():
            raise ValueError(f"teacher: {path} is not a file, and no folder either")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        except SafetensorError as error:
            raise ValueError(f"teacher: {path} is damaged, or no teacher cache ({error})") from error
        if metadata.get("format") != FORMAT or metadata.get("version") != "1":
            raise ValueError(f"teacher: {path} was not written by TeacherCache.save")
        try:
            plain = json.loads(metadata["plain"])
            failures = tuple((name, why) for name, why in plain.get("failures", ()))
            ids, logit_scale, name = tuple(plain["ids"]), plain["logit_scale"], plain["name"]
            return cls(ids=ids, logit_scale=logit_scale, name=name, failures=failures, **tensors)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"teacher: {path} is damaged, or no teacher cache ({error!r})") from error


def load_folder(folder: Path) -> TeacherCache:
    """The cache in a folder that :func:`hamlet.training.teach.teach` made; its embeddings stay float16.

    Raises:
        ValueError: a folder that holds none, an unfinished one, or a damaged one.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        known = manifest["format"] == FORMAT and manifest["version"] == FOLDER_VERSION
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(f"teacher: {folder} is no folder that hamlet teach made")
    if "ids" not in manifest:
        raise ValueError(f"teacher: {folder} is not finished; give the same hamlet teach command again")
    try:
        # Names from a file: nothing but what lies in the folder is read.
        shards = [load_file(inside(folder / "shards", name)) for name in manifest["shards"]]
        texts = folder / "texts.safetensors"
        prototypes = load_file(texts)["prototypes"] if texts.is_file() else None
        rows = {
            name: torch.cat([shard[name] for shard in shards if name in shard])
            for name in ("embeddings", "captions")
            if any(name in shard for shard in shards)
        }
        return TeacherCache(
            ids=tuple(manifest["ids"]),
            prototypes=prototypes,
            logit_scale=manifest["logit_scale"],
            name=manifest["name"],
            failures=tuple((name, why) for name, why in manifest["failures"]),
            **rows,
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"teacher: {folder} is damaged ({error}); remove it and make it again") from error


def read_captions(path: str | Path) -> dict[str, str]:
    """Captions from a JSON-lines file, as any multimodal model can write it: picture -> caption.

    Each line is ``{"image": "cats/1.jpg", "caption": "A cat on a mat"}``; other keys and empty lines are passed over.

    Raises:
        ValueError: a line that is not that, or a picture that comes twice, with the number of the line.
    """
    return _read_lines(path, "caption", str, '"..."')


def read_difficulty(path: str | Path, ids: Sequence[str]) -> list[float]:
    """The difficulty of each picture from a JSON-lines file; lines as ``{"image": "cats/1.jpg", "difficulty": 0.3}``.

    Raises:
        ValueError: a line that is not that, a number that is not finite, a picture that comes twice or is missing.
    """
    found = _read_lines(path, "difficulty", (int, float), "a finite number")
    if missing := [name for name in ids if name not in found]:
        raise ValueError(f"{path}: no difficulty of {len(missing)} of {len(ids)} pictures, such as {missing[0]!r}")
    return [float(found[name]) for name in ids]


def _read_lines(path: str | Path, key: str, kind: type | tuple[type, ...], expected: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file, expected JSON lines")
    found: dict[str, Any] = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                image, value = entry["image"], entry[key]
            except (json.JSONDecodeError, KeyError, TypeError):
                image = value = None
            fits = (
                isinstance(value, kind)
                and not isinstance(value, bool)
                and (not isinstance(value, float) or math.isfinite(value))
            )
            if not isinstance(image, str) or not fits:
                raise ValueError(f'{path}, line {number}: expected {{"image": "...", "{key}": {expected}}}')
            if image in found:
                raise ValueError(f"{path}, line {number}: {image!r} comes twice")
            found[image] = value
    return found
