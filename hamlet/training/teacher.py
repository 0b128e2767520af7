"""A teacher's embeddings, made once and kept in a file: training never runs the teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hamlet.files import replacing

FORMAT = "hamlet-teacher"


@dataclass(frozen=True)
class TeacherCache:
    """What a teacher says of a set of pictures, and of the texts that belong to them.

    Any embeddings serve: those of CLIP (:func:`hamlet.training.clip.make_cache`), of another model, or the descriptors
    of a larger HAMLET.

    Args:
        ids: the pictures, as the training set names them; at most one row each.
        embeddings: (n, W), one row for each of ``ids``.
        prototypes: (P, W), embeddings of texts such as the classes' names; they make the teacher's outputs.
        captions: (n, W), the embedding of each picture's caption; a row of zeros where it has none.
        logit_scale: the teacher's inverse temperature, which CLIP learns.
        name: which teacher it was.

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
    logit_scale: float = 100.0
    name: str = ""

    def __post_init__(self) -> None:
        count, width = len(self.ids), self.embeddings.shape[-1]
        if len(set(self.ids)) != count:
            raise ValueError("ids: some come twice, expected each once")
        for name, rows in (("embeddings", count), ("captions", count), ("prototypes", None)):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if tensor.ndim != 2 or tensor.shape[1] != width or (rows is not None and len(tensor) != rows):
                raise ValueError(f"{name}: got {tuple(tensor.shape)}, expected ({rows or 'any number'}, {width})")
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
        captions = None if self.captions is None else self.captions[rows]
        return replace(self, ids=tuple(ids), embeddings=self.embeddings[rows], captions=captions)

    def confidence(self) -> Tensor:
        """The largest probability that the teacher gives to a prototype, for each picture: (n,).

        Raises:
            ValueError: a teacher without prototypes.
        """
        if self.prototypes is None:
            raise ValueError("teacher: it has no prototypes, so no confidence either")
        towards = F.normalize(self.prototypes.float(), dim=1)
        cosines = F.normalize(self.embeddings.float(), dim=1) @ towards.T
        return (self.logit_scale * cosines).softmax(1).amax(1)

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that tell caches apart by what is in them."""
        digest = hashlib.sha256(json.dumps([self.ids, self.logit_scale]).encode())
        for tensor in (self.embeddings, self.prototypes, self.captions):
            if tensor is not None:
                digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the cache as a safetensors file, in one step."""
        named = {"embeddings": self.embeddings, "prototypes": self.prototypes, "captions": self.captions}
        tensors = {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}
        plain = json.dumps({"ids": self.ids, "logit_scale": self.logit_scale, "name": self.name})
        metadata = {"format": FORMAT, "version": "1", "plain": plain}
        with replacing(path) as file:
            file.write(save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> TeacherCache:
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Raises:
            ValueError: a file that is missing, damaged or foreign.
        """
        if not Path(path).is_file():
            raise ValueError(f"teacher: {path} is not a file")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        except SafetensorError as error:
            raise ValueError(f"teacher: {path} is damaged, or no teacher cache ({error})") from error
        if metadata.get("format") != FORMAT or metadata.get("version") != "1":
            raise ValueError(f"teacher: {path} was not written by TeacherCache.save")
        plain = json.loads(metadata["plain"])
        return cls(ids=tuple(plain["ids"]), logit_scale=plain["logit_scale"], name=plain["name"], **tensors)


def read_captions(path: str | Path) -> dict[str, str]:
    """Captions from a JSON-lines file, as any multimodal model can write it: picture -> caption.

    Each line is ``{"image": "cats/1.jpg", "caption": "A cat on a mat"}``; other keys and empty lines are passed over.

    Raises:
        ValueError: a line that is not that, or a picture that comes twice, with the number of the line.
    """
    captions: dict[str, str] = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                image, caption = entry["image"], entry["caption"]
            except (json.JSONDecodeError, KeyError, TypeError):
                image = caption = None
            if not isinstance(image, str) or not isinstance(caption, str):
                raise ValueError(f'{path}, line {number}: expected {{"image": "...", "caption": "..."}}')
            if image in captions:
                raise ValueError(f"{path}, line {number}: {image!r} comes twice")
            captions[image] = caption
    return captions
