"""Each method's defining formula, against arithmetic done by hand or in another way."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.models import create_model
from hamlet.models.dolg import orthogonal_fusion
from hamlet.models.mace_like import MaceLike
from hamlet.models.pooling import PixelNorm, generalised_mean, token_shares
from hamlet.models.rmac import Rmac, regions
from hamlet.models.solar import SecondOrderAttention
from hamlet.models.spca import SpatialContext, Spca
from hamlet.models.spoc import centre_prior
from hamlet.models.token import Tokeniser
from hamlet.models.ultron import SCALA, CDConv, Ultron
from hamlet.retrieval.cost import flop_counter


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_spca_responsibilities_are_those_of_gaussians() -> None:
    module = SpatialContext(channels=6, width=3, tokens=4)
    module.log_weights.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    module.log_variances.copy_(torch.tensor([0.5, 1.0, 2.0, 0.8]).log())
    x = features(1, 2, 3, 6)
    found = module.responsibilities(x)[0].double().numpy()
    pixels = (x.flatten(0, 2) @ module.project.weight.T).double().numpy()
    means, weights = module.means.double().numpy(), module.log_weights.exp().double().numpy()
    variances = module.log_variances.exp().double().numpy()
    expected = np.empty((6, 4))
    for n in range(6):
        for k in range(4):
            square = ((pixels[n] - means[k]) ** 2).sum()
            expected[n, k] = weights[k] / math.sqrt(variances[k]) * math.exp(-square / (2 * variances[k]))
        expected[n] /= expected[n].sum()
    np.testing.assert_allclose(found, expected / expected.sum(0), rtol=1e-5)


@torch.no_grad()
def test_spca_context_is_walks_of_two_to_four_steps() -> None:
    module = SpatialContext(channels=6, width=3, tokens=4)
    x = features(1, 3, 4, 6)
    distances = np.array(
        [[math.hypot(a // 4 - b // 4, a % 4 - b % 4) for b in range(12)] for a in range(12)], dtype=np.float64
    )
    step = np.exp(-distances)
    step /= step.sum(1, keepdims=True)
    shares = module.responsibilities(x)[0].double().numpy()
    walks = np.concatenate([np.linalg.matrix_power(step, power) @ shares for power in (2, 3, 4)], axis=1)
    expected = (walks - walks.mean(1, keepdims=True)) / np.sqrt(walks.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(module(x).flatten(1, 2)[0].numpy(), expected, atol=1e-3)


@torch.no_grad()
def test_spca_begins_without_what_its_attention_finds() -> None:
    model = create_model("spca_mobilenetv3_small", descriptor_dim=8).eval()
    assert isinstance(model, Spca)
    assert (model.power, model.context.means.shape, model.attention.heads) == (3.0, (16, 128), 8)
    x = features(2, 3, 4, 576)
    pooled, _ = generalised_mean(x + model.mlp(x), 3.0)
    torch.testing.assert_close(model.forward_head([x])[0], F.normalize(model.whiten(pooled), dim=1))


def test_orthogonal_fusion_is_a_projection() -> None:
    local, whole = features(2, 3, 4, 5).double(), features(2, 5).double() + 1
    fused = orthogonal_fusion(local, whole)
    for b in range(2):
        projector = torch.eye(5).double() - torch.outer(whole[b], whole[b]) / (whole[b] @ whole[b])
        torch.testing.assert_close(fused[b, ..., 5:], local[b] @ projector.T)
        torch.testing.assert_close(fused[b, ..., :5], whole[b].expand(3, 4, 5))
    assert (fused[..., 5:] * whole[:, None, None]).sum(-1).abs().max() < 1e-12
    assert orthogonal_fusion(local, torch.zeros(2, 5).double()).isfinite().all()


@torch.no_grad()
def test_second_order_attention_by_its_formula() -> None:
    module = SecondOrderAttention(6).eval()
    x = features(2, 3, 4, 6)
    assert torch.equal(module(x), x)
    module.out[1].gamma.copy_(features(6))
    pixels = x.flatten(1, 2)
    # Fresh batch normalisation in evaluation divides by sqrt(1 + eps).
    query, key = ((layer(pixels) / math.sqrt(1 + 1e-5)).relu() for layer in (module.query, module.key))
    correlation = torch.einsum("bnd,bmd->bnm", query, key) / math.sqrt(3)
    weights = correlation.exp() / correlation.exp().sum(2, keepdim=True)
    expected = (
        pixels
        + torch.einsum("bnm,bmd->bnd", weights, module.value(pixels)) @ module.out[0].weight.T * module.out[1].gamma
    )
    torch.testing.assert_close(module(x).flatten(1, 2), expected)
    with flop_counter() as counter:
        module(x)
    # Attention that never writes out all pairs of pixels.
    assert torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in counter.get_flop_counts()["Global"]


def test_regions_of_maximum_are_a_plain_loops() -> None:
    assert regions(1, 1) == [(0, 0, 1)] * 14
    for height, width in [(16, 16), (12, 16), (16, 12), (7, 30), (2, 2), (1, 3)]:
        short, long = min(height, width), max(height, width)
        overlaps = {count: 1 - (long - short) / (count - 1) / short for count in range(2, 8)}
        extra = 0 if short == long else min(overlaps, key=lambda count: abs(overlaps[count] - 0.4)) - 1
        expected = []
        for scale in (1, 2, 3):
            side = max(1, math.floor(2 * short / (scale + 1)))
            counts = [scale + (extra if length == long and short != long else 0) for length in (height, width)]
            steps = [
                [math.floor(i * (length - side) / max(1, count - 1)) for i in range(count)]
                for length, count in zip((height, width), counts, strict=True)
            ]
            expected += [(y, x, side) for y in steps[0] for x in steps[1]]
        found = regions(height, width)
        assert found == expected
        assert all(y + side <= height and x + side <= width for y, x, side in found)
        assert {
            (y, x) for top, left, side in found for y in range(top, top + side) for x in range(left, left + side)
        } == {(y, x) for y in range(height) for x in range(width)}


@torch.no_grad()
def test_rmac_sums_whitened_maxima() -> None:
    model = create_model("rmac_resnet18", descriptor_dim=8).eval()
    assert isinstance(model, Rmac)
    x = features(2, 4, 6, 512)
    expected = torch.zeros(2, 8)
    for top, left, side in regions(4, 6):
        maxima = x[:, top : top + side, left : left + side].amax((1, 2))
        expected += F.normalize(model.whiten(F.normalize(maxima, dim=1)), dim=1)
    found, maps = model.forward_head([x])
    torch.testing.assert_close(found, F.normalize(expected, dim=1))
    spike = torch.zeros(1, 4, 6, 512)
    spike[:, 1, 2] = 1
    _, maps = model.forward_head([spike])
    within = sum(top <= 1 < top + side and left <= 2 < left + side for top, left, side in regions(4, 6))
    assert maps.pooling[0, 1, 2] >= within / len(regions(4, 6)) - 1e-6


def test_centre_prior_is_a_gaussian_a_third_of_the_way_to_the_border() -> None:
    weights = centre_prior(torch.zeros(1, 5, 9, 1), None)[0]
    for y in range(5):
        for x in range(9):
            expected = math.exp(-((y - 2) ** 2 + (x - 4) ** 2) / (2 * (5 / 6) ** 2))
            assert weights[y, x].item() == pytest.approx(expected, rel=1e-5)
    padded = centre_prior(torch.zeros(1, 6, 9, 1), torch.tensor([[5, 9]]))[0]
    torch.testing.assert_close(padded[:5], weights)
    assert padded[5].abs().max() == 0
    assert centre_prior(torch.zeros(1, 5, 9, 1), None, centred=False).unique().tolist() == [1]


@torch.no_grad()
def test_tokens_are_means_of_the_pixels_that_are_shared_out() -> None:
    module = Tokeniser(width=5, tokens=3)
    pixels = features(1, 6, 5)
    valid = torch.tensor([[True, True, False, True, True, True]])
    found, shares = module(pixels, valid)
    for token in range(3):
        total, weight = torch.zeros(5), 0.0
        for n in (0, 1, 3, 4, 5):
            scores = (module.score @ pixels[0, n]).exp()
            share = float(scores[token] / scores.sum())
            total, weight = total + share * pixels[0, n], weight + share
        torch.testing.assert_close(found[0, token], total / weight)
    assert shares[0, 2].abs().max() == 0


def test_shares_of_tokens_that_no_pixel_is_like_have_sums_and_gradients() -> None:
    logits = torch.tensor([[[0.0, -95.0, -300.0], [2.0, -97.0, -302.0], [1.0, 50.0, 70.0]]], requires_grad=True)
    shares = token_shares(logits, torch.tensor([[True, True, False]]))
    expected = logits[:, :2].double().softmax(-1)
    expected = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(shares[:, :2], expected.float())
    assert shares[:, 2].abs().max() == 0
    upstream = features(1, 3, 3)
    (gradient,) = torch.autograd.grad((shares * upstream).sum(), logits, retain_graph=True)
    (own,) = torch.autograd.grad((expected * upstream[:, :2]).sum(), logits)
    torch.testing.assert_close(gradient, own)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("power", [0.5, 1.0, 3.0, 8.0, 30.0])
def test_no_power_is_too_high_for_the_power_mean(power: float, padded: bool) -> None:
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    if padded:
        valid[0, 2:], valid[0, :, 3:] = False, False
    extent = torch.tensor([[2, 3], [3, 4]]) if padded else None

    def by_definition(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        powered = x.clamp(min=1e-6) ** p * valid[..., None]
        mean = powered.sum((1, 2)) / valid.sum((1, 2))[:, None]
        return mean ** (1 / p), (powered / powered.sum((1, 2), keepdim=True)).mean(-1)

    # Channels of the usual size, of zeros, and of what would be nothing or infinite to the power of 30.
    x = features(2, 3, 4, 4).abs() * torch.tensor([1.0, 0.0, 0.03, 30.0])
    upstream = features(2, 4), features(2, 3, 4)
    results = []
    for pool, dtype in ((lambda x, p: generalised_mean(x, p, extent), torch.float32), (by_definition, torch.float64)):
        leaves = x.clone().to(dtype).requires_grad_(), torch.tensor(power, dtype=dtype, requires_grad=True)
        outs = pool(*leaves)
        gradients = torch.autograd.grad(outs, leaves, [each.to(dtype) for each in upstream])
        results.append([out.double() for out in (*outs, *gradients)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_cdconv_convolves_each_channel_with_the_dilation_that_it_chose() -> None:
    module = CDConv(12, (0.4, 0.6))
    module.attend.weight.copy_(torch.tensor([2.0, -1.0, 1.0, -3.0, 1.5]))
    x = 2 * features(2, 7, 9, 12)
    attention, dilation = module.choose(x)
    mean = F.pad(x.mean((1, 2)), (2, 2))
    expected = torch.stack([(mean[:, c : c + 5] * module.attend.weight[0, 0]).sum(1) for c in range(12)], 1)
    torch.testing.assert_close(attention, torch.sigmoid(expected + module.attend.bias))
    for b in range(2):
        for c in range(12):
            a = attention[b, c]
            assert dilation[b, c] == (1 if a < 0.4 else 3 if a < 0.6 else 6)
    assert dilation.unique().tolist() == [1, 3, 6]
    planes = torch.stack(
        [
            torch.cat(
                [
                    F.conv2d(x[b : b + 1, None, :, :, c], module.kernels[c : c + 1], padding=d, dilation=d)[:, 0]
                    for c, d in enumerate(dilation[b].tolist())
                ]
            )
            for b in range(2)
        ]
    )
    branch = planes.permute(0, 2, 3, 1) * attention[:, None, None]
    torch.testing.assert_close(module(x), x + module.mlp(module.norm(branch)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_a_fresh_ultron_uses_all_dilations(seed: int) -> None:
    torch.manual_seed(seed)
    model = create_model("ultron_resnet18").eval()
    assert isinstance(model, Ultron)
    seen: list[Tensor] = []
    for stage in model.stages[:2]:
        assert isinstance(stage, CDConv)
        stage.register_forward_hook(lambda module, inputs, output: seen.append(module.choose(inputs[0])[1]))
    model(torch.rand(2, 3, 64, 64))
    for dilation in seen:
        assert all((dilation == each).float().mean() > 0.02 for each in (1, 3, 6))
    assert len(seen) == 2


@torch.no_grad()
def test_scala_attends_within_its_window_to_keys_that_hold_context() -> None:
    module = SCALA(8, heads=2, radius=1.0)
    x = features(1, 5, 6, 8)
    normed = module.norm(x)
    planes = normed.permute(0, 3, 1, 2)
    around = [
        F.conv2d(planes, layer.weight, layer.bias, padding=d, dilation=d, groups=8).permute(0, 2, 3, 1)
        for layer, d in zip(module.dilated, (1, 2, 3), strict=True)
    ]
    keys = module.key(module.context(torch.cat([normed, *around], -1)))[0]
    queries, values = module.query(normed)[0], module.value(normed)[0]
    attended = torch.zeros(5, 6, 8)
    for y in range(5):
        for x_ in range(6):
            window = [(i, j) for i in range(5) for j in range(6) if max(abs(i - y), abs(j - x_)) <= 1]
            for head in (slice(0, 4), slice(4, 8)):
                logits = torch.stack([queries[y, x_, head] @ keys[i, j, head] / 2 for i, j in window])
                attended[y, x_, head] = logits.softmax(0) @ torch.stack([values[i, j, head] for i, j in window])
    middle = x + module.out(attended)
    torch.testing.assert_close(module(x), middle + module.mlp(module.mlp_norm(middle)), rtol=1e-4, atol=1e-5)


def test_ultron_convolves_first_and_attends_last() -> None:
    model = create_model("ultron_resnet18")
    assert isinstance(model, Ultron)
    assert [type(stage) for stage in model.stages] == [CDConv, CDConv, SCALA, SCALA]
    assert model.hfe.strides == [4, 8, 16, 32]


@torch.no_grad()
def test_mace_like_weighs_its_branches_by_content_and_begins_as_gem() -> None:
    model = create_model("mace_like_resnet18", descriptor_dim=8).eval()
    assert isinstance(model, MaceLike)
    x = features(2, 5, 6, 512)
    pooled, _ = generalised_mean(x, 3.0)
    torch.testing.assert_close(model.forward_head([x])[0], F.normalize(model.whiten(pooled), dim=1))
    reduced = model.reduce(x)
    mean = reduced.mean((1, 2))
    logits = model.weigh(mean).view(2, 5, 128)
    weights = logits.exp() / logits.exp().sum(1, keepdim=True)
    total = weights[:, 4, None, None] * model.around(mean)[:, None, None]
    for branch, dilation in enumerate((1, 2, 3, 4)):
        layer = model.dilated[branch]
        planes = F.conv2d(reduced.permute(0, 3, 1, 2), layer.weight, layer.bias, padding=dilation, dilation=dilation)
        total = total + weights[:, branch, None, None] * planes.permute(0, 2, 3, 1)
    torch.testing.assert_close(model.enhance(reduced), total.relu(), rtol=1e-4, atol=1e-5)
    assert (weights[0] - weights[1]).abs().max() > 1e-4


def test_a_learnt_power_that_strays_below_zero_keeps_a_mean() -> None:
    x = features(2, 3, 4, 5)
    for value in (-1.0, 0.0, 0.1):
        power = torch.tensor(value, requires_grad=True)
        pooled, _ = generalised_mean(x, power)
        pooled.sum().backward()
        torch.testing.assert_close(pooled, x.clamp(min=1e-6).pow(0.1).mean((1, 2)).pow(10))
        assert power.grad is not None
        assert power.grad.isfinite()


def test_pixel_norm_counts_valid_pixels_alone() -> None:
    norm = PixelNorm(3)
    # What converts a model for several GPUs finds the layer inside, and leaves the way that it is called.
    assert not isinstance(norm, nn.BatchNorm1d)
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(norm)).norm, nn.SyncBatchNorm)
    x, extent = features(2, 3, 4, 3), torch.tensor([[2, 3], [3, 4]])
    found = norm(x, extent)
    valid = torch.cat([x[0, :2, :3].flatten(0, 1), x[1].flatten(0, 1)])
    expected = (valid - valid.mean(0)) / (valid.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(torch.cat([found[0, :2, :3].flatten(0, 1), found[1].flatten(0, 1)]), expected)
    assert found[0, 2].abs().max() == found[0, :, 3].abs().max() == 0


def test_spca_is_finite_beside_a_much_longer_picture() -> None:
    # Rows of the padding lie so far from the one valid pixel that float32 has no likeness left.
    context = SpatialContext(8, width=4, tokens=2)
    found = context(features(2, 130, 1, 8), torch.tensor([[1, 1], [130, 1]]))
    assert found.isfinite().all()


@torch.no_grad()
def test_spca_context_stays_float32_under_autocast() -> None:
    torch.manual_seed(0)
    context = SpatialContext(12, 8, 4)
    context.means.normal_(std=8)
    # So long that bfloat16 would lose which of two tokens is the nearer.
    x = 30 * features(2, 5, 6, 12)
    shares = context.responsibilities(x)
    assert ((shares > 1e-3).sum(-1) > 1).any()
    expected = context(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(context(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rmac_sums_its_regions_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    model = create_model("rmac_resnet18", descriptor_dim=16).eval()
    assert isinstance(model, Rmac)
    seen: list[Tensor] = []
    model.whiten.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = model.forward_head([features(2, 6, 7, 512).abs()])
        (whitened,) = seen
        vectors = F.normalize(whitened, dim=-1)
    assert whitened.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.normalize(vectors.float().sum(1), dim=1), rtol=0, atol=1e-6)
