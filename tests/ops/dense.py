"""The operators written out in full in float64, straight from their definition: nothing is shared with the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ramp(query_grid, key_grid, radius, max_radius, softness, query_extent=None, key_extent=None) -> Tensor:
    """Weights m (B, N, Hq * Wq, Hk * Wk) for ``radius`` (B, Hq, Wq, N); zero wherever a pixel is not valid."""
    batch, heads = radius.shape[0], radius.shape[3]
    weights = []
    for b in range(batch):
        hq, wq = query_grid if query_extent is None else query_extent[b].tolist()
        hk, wk = key_grid if key_extent is None else key_extent[b].tolist()
        cy = (torch.arange(query_grid[0], dtype=torch.float64) + 0.5) * hk / hq - 0.5
        cx = (torch.arange(query_grid[1], dtype=torch.float64) + 0.5) * wk / wq - 0.5
        dy = (torch.arange(key_grid[0]) - cy[:, None]).abs()
        dx = (torch.arange(key_grid[1]) - cx[:, None]).abs()
        d = torch.maximum(dy[:, None, :, None], dx[None, :, None, :])[..., None]
        r = radius[b].clamp(0.5, max_radius)[:, :, None, None, :]
        m = ((r + softness - d) / softness).clamp(0, 1)
        m = m * (torch.arange(query_grid[0]) < hq)[:, None, None, None, None]
        m = m * (torch.arange(query_grid[1]) < wq)[:, None, None, None]
        m = m * (torch.arange(key_grid[0]) < hk)[:, None, None]
        m = m * (torch.arange(key_grid[1]) < wk)[:, None]
        weights.append(m.permute(4, 0, 1, 2, 3).reshape(heads, query_grid[0] * query_grid[1], -1))
    return torch.stack(weights)


def attention(
    query, key, value, *, radius, max_radius, softness=1.0, scale=None, gate=None, query_extent=None, key_extent=None
):
    """Output and log-sum-exp as a softmax of ``logits + log m`` over every key of the grid, by autograd's own rules."""
    batch, hq, wq, heads, channels = query.shape
    hk, wk = key.shape[1:3]
    if not isinstance(radius, Tensor):
        radius = torch.tensor(radius, dtype=torch.float64)
    radius = radius.expand(batch, hq, wq, heads)
    m = ramp((hq, wq), (hk, wk), radius, max_radius, softness, query_extent, key_extent)
    q, k, v = (x.permute(0, 3, 1, 2, 4).reshape(batch, heads, -1, x.shape[4]) for x in (query, key, value))
    scale = channels**-0.5 if scale is None else scale
    exists = m > 0
    bias = torch.where(exists, torch.where(exists, m, 1).log(), -torch.inf)
    logits = torch.where(exists, scale * torch.einsum("bnqd,bnkd->bnqk", q, k), 0) + bias
    lse = torch.logsumexp(logits, -1)
    some = exists.any(-1)
    weights = torch.where(some[..., None], torch.softmax(torch.where(some[..., None], logits, 0), -1), 0)
    out = torch.einsum("bnqk,bnkd->bqnd", weights, v).reshape(batch, hq, wq, heads, -1)
    if gate is not None:
        out = out * gate.expand(batch, hq, wq, heads)[..., None]
    return out, lse.permute(0, 2, 1).reshape(batch, hq, wq, heads)


def convolution(input, weight, bias=None, *, stride=1, dilation=1, groups=1, residual=False, extent=None):
    """One ``conv2d`` for each sample and block of groups, on the valid part of the sample alone."""
    samples = []
    for b in range(input.shape[0]):
        height, width = input.shape[2:] if extent is None else extent[b].tolist()
        steps = (
            [dilation] if isinstance(dilation, int) else list(dilation[b] if isinstance(dilation, Tensor) else dilation)
        )
        valid = input[b : b + 1, :, :height, :width]
        blocks = [
            F.conv2d(x, w, None, stride, [int(d) * (k // 2) for k in w.shape[2:]], int(d), groups // len(steps))
            for x, w, d in zip(valid.chunk(len(steps), 1), weight[b].chunk(len(steps)), steps, strict=True)
        ]
        out = torch.cat(blocks, 1)
        if bias is not None:
            out = out + (bias if bias.ndim == 1 else bias[b])[:, None, None]
        if residual:
            out = out + valid
        full = [(size + stride - 1) // stride for size in input.shape[2:]]
        samples.append(F.pad(out, (0, full[1] - out.shape[3], 0, full[0] - out.shape[2])))
    return torch.cat(samples)
