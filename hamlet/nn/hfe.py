"""HFE, the hierarchical feature extractor (HAMLET architecture, §3.1): any timm backbone, tapped at several depths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

Images = Tensor | Sequence[Tensor]


class HFE(nn.Module):
    """Feature maps of a timm backbone at chosen depths, for images of one size or of several.

    Args:
        backbone: any timm model's name that timm can build with ``features_only``.
        levels: which of the backbone's feature levels, from shallow to deep; negative ones count from the deepest. The
            last three have strides 8, 16 and 32 in the usual pyramid.
        pretrained: True fetches timm's weights from the hub; a path reads a local ``.safetensors`` file or a
            ``torch.save``-d state dict.

    Attributes:
        channels: of each level.
        strides: pixels of the image a pixel of each level.

    Raises:
        ValueError: an unknown backbone, one that has no feature levels, levels that it does not have, or a file of
            weights that cannot be read or does not fit.

    Example:
        >>> hfe = HFE("resnet18").eval()
        >>> maps, extents = hfe([torch.rand(3, 64, 96), torch.rand(3, 96, 64)])
        >>> [tuple(level.shape) for level in maps]
        [(2, 12, 12, 128), (2, 6, 6, 256), (2, 3, 3, 512)]
        >>> extents[0].tolist()
        [[8, 12], [12, 8]]
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: str, levels: Sequence[int] = (-3, -2, -1), pretrained: bool | str | Path = False
    ) -> None:
        super().__init__()
        self.backbone = _build(backbone, tuple(levels), pretrained)
        self.channels: list[int] = list(self.backbone.feature_info.channels())
        self.strides: list[int] = list(self.backbone.feature_info.reduction())
        self._channels_last = getattr(self.backbone, "output_fmt", None) == "NHWC"
        for name in ("mean", "std"):
            values = torch.tensor(self.backbone.pretrained_cfg[name])[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Images) -> tuple[list[Tensor], list[Tensor] | None]:
        """Normalise images as the backbone was trained on, and extract their features.

        Args:
            images: (B, 3, H, W), or a sequence of B images (3, h, w) of any sizes; floating point, in [0, 1].

        Returns:
            Maps (B, Hl, Wl, Cl), one a level, and their extents, int (B, 2) a level, or None where nothing is padded.
            The backbone runs once for each size among the images, so no image sees another's padding.

        Raises:
            TypeError: anything but floating-point tensors.
            ValueError: another number of dimensions or channels, or no image.
        """
        if isinstance(images, Tensor):
            check_images("images", images, 4, "(B, 3, H, W)")
            return self._extract(images), None
        for index, image in enumerate(images):
            check_images(f"images[{index}]", image, 3, "(3, H, W)")
        if not images:
            raise ValueError("images: got none, expected at least one")
        places: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(images):
            places.setdefault(image.shape, []).append(index)
        if len(places) == 1:
            return self._extract(torch.stack(list(images))), None
        found: list[list[Tensor]] = [[] for _ in images]
        for indices in places.values():
            for level in self._extract(torch.stack([images[index] for index in indices])):
                for index, sample in zip(indices, level, strict=True):
                    found[index].append(sample)
        maps, extents = zip(*(pad(level) for level in zip(*found, strict=True)), strict=True)
        return list(maps), list(extents)

    def _extract(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone((images - self.mean) / self.std)
        return list(maps) if self._channels_last else [level.permute(0, 2, 3, 1) for level in maps]


def pad(samples: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack maps (h, w, C) of different sizes with zeros below and to the right: (B, H, W, C) and extents int (B, 2).

    Example:
        >>> grid, extent = pad([torch.ones(1, 2, 4), torch.ones(3, 1, 4)])
        >>> tuple(grid.shape), extent.tolist()
        ((2, 3, 2, 4), [[1, 2], [3, 1]])
    """
    sizes = [tuple(sample.shape[:2]) for sample in samples]
    height, width = (max(axis) for axis in zip(*sizes, strict=True))
    padded = [F.pad(s, (0, 0, 0, width - s.shape[1], 0, height - s.shape[0])) for s in samples]
    return torch.stack(padded), torch.tensor(sizes, device=samples[0].device)


def check_images(name: str, images: object, ndim: int, shape: str) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"{name}: got {type(images).__name__}, expected a tensor {shape}")
    if not images.is_floating_point():
        raise TypeError(f"{name}: got dtype {images.dtype}, expected floating point in [0, 1]; divide uint8 by 255")
    if images.ndim != ndim or images.shape[-3] != 3 or 0 in images.shape:
        raise ValueError(f"{name}: got shape {tuple(images.shape)}, expected {shape}")


def _build(name: str, levels: tuple[int, ...], pretrained: bool | str | Path) -> Any:
    if not timm.is_model(name):
        raise ValueError(f"backbone: got {name!r}, which timm does not know; see timm.list_models()")
    if not levels:
        raise ValueError("levels: got none, expected at least one")
    if isinstance(pretrained, bool):
        return _create(name, levels, pretrained=pretrained)
    weights = read_weights(Path(pretrained))
    backbone = _create(name, levels, pretrained=True, pretrained_cfg_overlay={"state_dict": weights})
    # timm takes over what fits and says nothing of the rest.
    kernels = [tensor for tensor in backbone.parameters() if tensor.ndim > 1]
    given = [tensor for tensor in weights.values() if tensor.ndim > 1]
    found = sum(any(k.shape == g.shape and torch.equal(k, g.to(k.dtype)) for g in given) for k in kernels)
    if found < len(kernels):
        raise ValueError(f"pretrained: {pretrained} has {found} of the {len(kernels)} weight tensors of {name}")
    return backbone


def _create(name: str, levels: tuple[int, ...], **options: Any) -> Any:
    # Transformers that insist on one size can be told not to, each family by its own option.
    fixed = getattr(timm.models.get_pretrained_cfg(name), "fixed_input_size", False)
    flexible: list[dict[str, Any]] = [{"dynamic_img_size": True, "dynamic_img_pad": True}, {"strict_img_size": False}]
    for extra in (*flexible, {}) if fixed else ({},):
        try:
            return timm.create_model(name, features_only=True, out_indices=levels, **options, **extra)
        except TypeError:
            if not extra:
                raise
        except (AssertionError, IndexError) as error:
            raise ValueError(f"levels: got {levels}, expected feature levels that {name} has ({error})") from error
        except (AttributeError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"backbone: timm cannot build {name} with these weights and levels: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a ``.safetensors`` file or from one that ``torch.save`` wrote; nothing else is unpickled.

    Raises:
        ValueError: a file that holds no state dict, or a damaged one.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"pretrained: got {path}, which is not a file")
    try:
        weights = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"pretrained: cannot read weights from {path}: {reason}") from error
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"pretrained: {path} holds no state dict")
    return weights
