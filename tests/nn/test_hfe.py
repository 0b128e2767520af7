from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from hamlet.nn.hfe import HFE


@pytest.fixture(scope="module")
def hfe() -> HFE:
    torch.manual_seed(0)
    return HFE("resnet18").eval()


@torch.no_grad()
def test_gives_what_the_backbone_gives_on_normalised_images(hfe: HFE) -> None:
    image = torch.rand(2, 3, 97, 131)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (image - mean[None, :, None, None]) / std[None, :, None, None]
    maps, extents = hfe(image)
    assert extents is None
    assert hfe.strides == [8, 16, 32]
    for own, expected, channels in zip(maps, hfe.backbone(normalised), hfe.channels, strict=True):
        assert own.shape[3] == channels
        torch.testing.assert_close(own, expected.permute(0, 2, 3, 1))


@torch.no_grad()
def test_images_of_several_sizes_keep_their_order_and_their_own_features(hfe: HFE) -> None:
    images = [torch.rand(3, 64, 33), torch.rand(3, 97, 131), torch.rand(3, 64, 33), torch.rand(3, 33, 64)]
    maps, extents = hfe(images)
    assert extents is not None
    for index, image in enumerate(images):
        alone, _ = hfe(image[None])
        for level, expected in enumerate(alone):
            h, w = extents[level][index].tolist()
            assert (h, w) == tuple(expected.shape[1:3])
            torch.testing.assert_close(maps[level][index, :h, :w], expected[0], rtol=0, atol=1e-5)
            assert maps[level][index, h:].abs().sum() == 0
            assert maps[level][index, :, w:].abs().sum() == 0


@torch.no_grad()
def test_a_list_of_one_size_is_the_batch(hfe: HFE) -> None:
    images = torch.rand(3, 3, 40, 64)
    listed, extents = hfe(list(images))
    assert extents is None
    for own, expected in zip(listed, hfe(images)[0], strict=True):
        assert torch.equal(own, expected)


def test_levels_are_chosen() -> None:
    hfe = HFE("resnet18", levels=(1, 4))
    assert hfe.strides == [4, 32]
    assert hfe.channels == [64, 512]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_pretrained_weights_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(3)
    source = timm.create_model("mobilenetv3_small_050", pretrained=False)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path)
    loaded = HFE("mobilenetv3_small_050", pretrained=path).backbone.state_dict()
    expected = source.state_dict()
    assert loaded
    assert all(torch.equal(value, expected[name.replace("blocks_", "blocks.")]) for name, value in loaded.items())


def test_damaged_or_foreign_weights_are_refused(tmp_path: Path) -> None:
    damaged, foreign, other = tmp_path / "damaged.pth", tmp_path / "foreign.pth", tmp_path / "other.pth"
    damaged.write_bytes(b"PK\x03\x04 nothing")
    torch.save([1, 2], foreign)
    torch.save({"a": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match=r"cannot read weights from .*damaged"):
        HFE("resnet18", pretrained=damaged)
    with pytest.raises(ValueError, match="holds no state dict"):
        HFE("resnet18", pretrained=foreign)
    with pytest.raises(ValueError, match=r"other\.pth has 0 of the 20 weight tensors"):
        HFE("resnet18", pretrained=other)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        HFE("resnet18", pretrained=tmp_path / "nowhere.pth")


def test_refuses_unknown_backbones_and_levels() -> None:
    with pytest.raises(ValueError, match="backbone: got 'resnet19'"):
        HFE("resnet19")
    with pytest.raises(ValueError, match="levels: got"):
        HFE("resnet18", levels=(2, 9))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "divide uint8 by 255"),
        (torch.zeros(3, 32, 32), ValueError, r"images: got shape \(3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), ValueError, r"expected \(B, 3, H, W\)"),
        ([torch.zeros(3, 32, 32), torch.zeros(1, 3, 32, 32)], ValueError, r"images\[1\]"),
        ([torch.zeros(3, 32, 32), "picture"], TypeError, r"images\[1\]: got str"),
        ([], ValueError, "images: got none"),
    ],
)
def test_refuses_what_is_no_image(hfe: HFE, images: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hfe(images)
