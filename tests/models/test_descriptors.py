"""Each method's descriptor as a whole, from the backbone's maps on, against its formula written out anew.

Weights are random throughout, also those that begin at zero or one, so that no part can hide behind another.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hamlet.models import create_model
from hamlet.retrieval.cost import flop_counter


def make(name: str, **overrides: Any) -> Any:
    torch.manual_seed(0)
    model = create_model(f"{name}_mobilenetv3_small", descriptor_dim=8, **overrides).eval()
    head = [(key, tensor) for key, tensor in model.state_dict().items() if not key.startswith("hfe.")]
    for key, tensor in head:
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn(tensor.shape))
    return model.double()


def maps(model: Any, *sizes: tuple[int, int]) -> list[Tensor]:
    """Two samples of noise on each level that the head takes."""
    generator = torch.Generator().manual_seed(1)
    pairs = zip(sizes, model.hfe.channels, strict=True)
    return [torch.randn(2, *size, channels, generator=generator).double() for size, channels in pairs]


def linear(layer: Any, x: Tensor) -> Tensor:
    return torch.einsum("oi,...i->...o", layer.weight, x) + layer.bias


def layer_norm(layer: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def batch_norm(layer: Any, x: Tensor) -> Tensor:
    return (x - layer.running_mean) / (layer.running_var + 1e-5).sqrt() * layer.weight + layer.bias


def perceptron(layers: Any, x: Tensor) -> Tensor:
    hidden = linear(layers[0], x)
    return linear(layers[2], hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)


def power_mean(pixels: Tensor, power: float) -> Tensor:
    """Of (B, N, C) over N."""
    return pixels.clamp(min=1e-6).pow(power).mean(1).pow(1 / power)


def weighted(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """What queries find, head by head."""
    found = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        likeness = torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(q.shape[-1])
        found.append(torch.einsum("bnm,bmd->bnd", likeness.exp() / likeness.exp().sum(-1, keepdim=True), v))
    return torch.cat(found, -1)


def attend(module: Any, queries: Tensor, context: Tensor, heads: int) -> Tensor:
    query, key, value = linear(module.query, queries), linear(module.key, context), linear(module.value, context)
    return linear(module.out[0], weighted(query, key, value, heads)) * module.out[1].gamma


def check(model: Any, features: list[Tensor], vectors: Tensor) -> None:
    expected = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.forward_head(features)[0], expected, rtol=1e-6, atol=1e-9)


@torch.no_grad()
def test_spca() -> None:
    model = make("spca")
    (x,) = maps(model, (3, 4))
    pixels = x.flatten(1, 2)
    context = model.context(x).flatten(1, 2)
    pixels = pixels + attend(model.attention, layer_norm(model.norm, pixels), context, heads=8)
    pixels = pixels + perceptron(model.mlp, pixels)
    check(model, [x], linear(model.whiten, power_mean(pixels, 3)))


@torch.no_grad()
def test_solar() -> None:
    model = make("solar", power=2.5)
    (x,) = maps(model, (3, 4))
    revised = model.attention(x)
    assert (revised - x).abs().max() > 0.01
    check(model, [x], linear(model.whiten, power_mean(revised.flatten(1, 2), model.power.item())))


@torch.no_grad()
def test_spoc() -> None:
    model = make("spoc")
    (x,) = maps(model, (3, 5))
    total = torch.zeros_like(x[:, 0, 0])
    for row in range(3):
        for column in range(5):
            total += math.exp(-((row - 1) ** 2 + (column - 2) ** 2) / (2 * (3 / 6) ** 2)) * x[:, row, column]
    check(model, [x], linear(model.whiten, total / total.norm(dim=1, keepdim=True)))


@torch.no_grad()
def test_delg() -> None:
    model = make("delg")
    (x,) = maps(model, (3, 4))
    check(model, [x], linear(model.whiten, power_mean(x.flatten(1, 2), 3)))
    # The power is nothing that training could move.
    assert {name for name, _ in model.named_parameters() if not name.startswith("hfe.")} == {
        "whiten.weight",
        "whiten.bias",
    }


@torch.no_grad()
def test_dolg() -> None:
    model = make("dolg", dilations=(1, 2))
    shallow, deep = maps(model, (5, 6), (3, 3))
    local = model.local
    branches = [
        F.conv2d(shallow.permute(0, 3, 1, 2), layer.weight, layer.bias, padding=rate, dilation=rate).movedim(1, 3)
        for layer, rate in zip(local.dilated, (1, 2), strict=True)
    ]
    branches.append(linear(local.around, shallow.mean((1, 2), keepdim=True)).expand_as(branches[0]))
    joined = linear(local.join, torch.cat(branches, -1).relu()).relu()
    features = batch_norm(local.norm.norm, linear(local.features, joined))
    attention = (1 + linear(local.score, features.relu()).exp()).log()
    f = attention * features / features.norm(dim=-1, keepdim=True)
    g = linear(model.project, power_mean(deep.flatten(1, 2), 3))[:, None, None]
    beside = f - (f * g).sum(-1, keepdim=True) / (g * g).sum(-1, keepdim=True) * g
    fused = torch.cat([g.expand_as(f), beside], -1)
    check(model, [shallow, deep], linear(model.whiten, fused.mean((1, 2))))


@torch.no_grad()
def test_token() -> None:
    model = make("token", width=16, heads=2, tokens=3)
    (x,) = maps(model, (3, 4))
    pixels = batch_norm(model.reduce_norm.norm, linear(model.reduce, x)).flatten(1, 2)
    pixels = pixels + attend(model.encode.attention, pixels, pixels, heads=2)
    pixels = pixels + linear(model.encode.linear, batch_norm(model.encode.norm.norm, pixels))
    scores = (pixels @ model.tokenise.score.T).exp()
    shares = scores / scores.sum(-1, keepdim=True)
    tokens = torch.einsum("bnl,bnc->blc", shares, pixels) / shares.sum(1)[..., None]
    tokens = layer_norm(model.token_norm[1], linear(model.token_norm[0], tokens))
    assert len(model.refine) == 2
    for refine in model.refine:
        tokens = tokens + attend(refine.across, layer_norm(refine.across_norm, tokens), pixels, heads=2)
        tokens = tokens + perceptron(refine.mlp, tokens)
        among = layer_norm(refine.among_norm, tokens)
        tokens = tokens + attend(refine.among, among, among, heads=2)
    check(model, [x], batch_norm(model.centre, linear(model.whiten, tokens.flatten(1))))


@torch.no_grad()
def test_ultron() -> None:
    model = make("ultron", width=8, heads=2, radius=1.0)
    features = maps(model, (9, 12), (5, 6), (3, 3), (2, 2))
    above: Tensor | None = None
    for lateral, stage, level in zip(model.lateral, model.stages, features, strict=True):
        x = linear(lateral[1], layer_norm(lateral[0], level))
        if above is not None:
            size = (x.shape[1], x.shape[2])
            smaller = F.interpolate(above.movedim(3, 1), size, mode="bilinear", antialias=True, align_corners=False)
            x = x + smaller.movedim(1, 3)
        above = stage(x)
    assert above is not None
    pixels = above.flatten(1, 2)
    query = linear(model.pool.query, power_mean((1 + pixels.exp()).log(), 3))[:, None]
    found = weighted(query, linear(model.pool.key, pixels), linear(model.pool.value, pixels), heads=2)
    check(model, features, linear(model.whiten, found[:, 0]))
    with flop_counter() as counter:
        model.forward_head(features)
    assert {"hamlet.dynamic_conv2d", "hamlet.cross_scale_attention"} <= set(
        map(str, counter.get_flop_counts()["Global"])
    )
