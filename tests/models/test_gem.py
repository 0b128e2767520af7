from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hamlet.models import Gem, create_model


@pytest.fixture
def model() -> Gem:
    torch.manual_seed(0)
    model = create_model("gem_resnet18", descriptor_dim=16)
    assert isinstance(model, Gem)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_pools_the_generalised_mean(model: Gem, power: float) -> None:
    model.power.fill_(power)
    image = torch.rand(2, 3, 97, 131)
    normalised = (image - model.hfe.mean) / model.hfe.std
    features = model.hfe.backbone(normalised)[-1]
    # The power mean is the L_p norm over the pixels, shrunk by their number.
    pooled = features.flatten(2).norm(power, dim=2) / 20 ** (1 / power)
    expected = F.normalize(model.whiten(pooled), dim=1)
    torch.testing.assert_close(model(image), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_images_of_several_sizes_are_described_as_if_each_came_alone(model: Gem) -> None:
    images = [torch.rand(3, 97, 131), torch.rand(3, 64, 33), torch.rand(3, 131, 97)]
    together, maps = model(images, return_maps=True)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    assert maps.pooling_extent is not None
    assert maps.pooling_extent.tolist() == [[4, 5], [2, 2], [5, 4]]
    torch.testing.assert_close(maps.pooling.sum((1, 2)), torch.ones(3))
    torch.testing.assert_close(maps.pooling[1, :2, :2].sum(), torch.tensor(1.0))
    assert maps.radius == maps.gate == []
    assert maps.fusion_weights is None
    assert maps.mean_radius == 0
    assert [e.shape for e in maps.level_embeddings] == [(3, 512)]


def test_every_parameter_learns_the_power_too(model: Gem) -> None:
    model.train()
    (model(torch.rand(3, 3, 64, 64)) * torch.randn(3, 16)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # timm begins a ResNet's residual branches at zero, so they have no gradient yet.
        assert name.startswith("hfe.") or parameter.grad.abs().max() > 0, name


def test_starts_at_the_power_of_its_configuration() -> None:
    assert create_model("gem_resnet18", power=2.5).get_parameter("power").item() == 2.5


@torch.no_grad()
def test_centred_descriptors_are_normalised_over_the_batch_before_their_length() -> None:
    torch.manual_seed(0)
    plain, centred = (
        create_model("gem_resnet18", descriptor_dim=16),
        create_model("gem_resnet18", descriptor_dim=16, centre=True),
    )
    centred.load_state_dict(plain.state_dict(), strict=False)
    assert {name.partition(".")[0] for name in centred.state_dict().keys() - plain.state_dict().keys()} == {"centre"}
    for model in (plain, centred):
        model.train().hfe.eval()
    images = torch.rand(4, 3, 64, 64)
    _, maps = plain(images, return_maps=True)
    vectors = plain.get_submodule("whiten")(maps.level_embeddings[0])
    normalised = (vectors - vectors.mean(0)) / (vectors.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(centred(images), F.normalize(normalised, dim=1), rtol=1e-3, atol=1e-4)
