"""The CUDA attention, executed on the CPU with every access checked, against its definition in float64."""

from __future__ import annotations

import math
import re
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hamlet.ops import cross_scale_attention, explain
from hamlet.ops.cuda import attention, library
from tests.cuda import build
from tests.kernels.test_attention import definition, grids, ours
from tests.kernels.test_convolution import TOLERANCE

pytestmark = pytest.mark.usefixtures("cuda_backend")


def agrees(tensors, tolerance, **fixed):
    for got, want in zip(ours(tensors, **fixed), definition(tensors, **fixed), strict=True):
        nothing = want == -math.inf  # a query outside its extent
        assert torch.equal(got == -math.inf, nothing)
        difference = (got.double() - want).masked_fill(nothing, 0).norm()
        assert difference <= tolerance * want.masked_fill(nothing, 0).norm() + tolerance * 1e-2


@st.composite
def calls(draw):
    """Small odd grids of any ratio, windows from less than a key to the whole grid, and every optional argument."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    batch, heads, channels = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.sampled_from([16, 16, 32]))
    query_grid, key_grid = (draw(st.tuples(st.integers(1, 13), st.integers(1, 11))) for _ in range(2))
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    tensors = [*grids(batch, query_grid, key_grid, heads, channels, dtype=dtype)]
    max_radius = draw(st.sampled_from([0.6, 1.7, 3.3, 20.0]))
    if draw(st.booleans()):
        tensors.append(torch.rand(batch, *query_grid, heads) * 1.4 * max_radius)
    else:
        tensors.append(torch.rand(()) * max_radius)
    tensors.append(torch.randn(batch, *query_grid, 1) if draw(st.booleans()) else None)
    fixed = {"max_radius": max_radius, "softness": draw(st.sampled_from([0.1, 0.8, 5.0])), "scale": 0.3}
    for name, grid in (("query_extent", query_grid), ("key_extent", key_grid)):
        if draw(st.booleans()):
            fixed[name] = torch.stack([torch.randint(1, size + 1, (batch,)) for size in grid], 1)
    return tensors, 3 * TOLERANCE[dtype], fixed


@given(calls())
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_output_lse_and_gradients_agree_with_the_definition(call):
    tensors, tolerance, fixed = call
    agrees(tensors, tolerance, **fixed)


@pytest.mark.parametrize("channels", attention.CHANNELS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_every_size_of_head(channels, dtype):
    tensors = [
        *grids(1, (9, 7), (6, 11), 1, channels, dtype=dtype),
        torch.rand(1, 9, 7, 1) * 4,
        torch.randn(1, 9, 7, 1),
    ]
    agrees(tensors, 3 * TOLERANCE[dtype], max_radius=3.3, softness=0.8)


def test_tf32_only_where_pytorch_allows_it():
    tensors = [*grids(1, (9, 7), (6, 11), 1, 32), torch.rand(1, 9, 7, 1) * 4, None]
    exact, plain = (function(tensors, max_radius=3.3)[0].double() for function in (definition, ours))
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        rounded = ours(tensors, max_radius=3.3)[0].double()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert (plain - exact).norm() < 1e-6 * exact.norm()
    assert 1e-5 * exact.norm() < (rounded - exact).norm() < 2e-3 * exact.norm()


def test_views_with_any_strides_give_what_their_copies_give():
    base = torch.randn(2, 3, 8, 9, 40)
    query = base.permute(0, 3, 2, 1, 4)[:, ::2, 1:, :, 1:17]
    key = base.flip(0).permute(0, 2, 3, 1, 4)[:, :, ::3, :, 8:24]
    radius = torch.rand(5, 7, 1).expand(5, 7, 3) + 0.6
    own, copies = (
        ours([*x, radius, None], max_radius=3.0) for x in ((query, key, key), [query.clone()] + [key.clone()] * 2)
    )
    for one, other in zip(own, copies, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_what_no_window_reaches_changes_nothing(bad):
    query, key, value = grids(1, (12, 12), (12, 12), 1, 16)
    tensors, names = [query, key, value, torch.full((1, 12, 12, 1), 1.2), None], ("out", "lse", "q", "k", "v", "radius")
    clean = dict(zip(names, ours(tensors, max_radius=2.0), strict=True))
    key[0, 6, 6], value[0, 6, 6] = bad, bad
    spoiled = dict(zip(names, ours(tensors, max_radius=2.0), strict=True))
    # Reach 1.2 + 1: the bad key is seen by the 5 x 5 queries about it, which see the 9 x 9 keys about it.
    queries, keys = (torch.ones(12, 12, dtype=torch.bool) for _ in range(2))
    queries[4:9, 4:9] = keys[2:11, 2:11] = False
    for name, region in {"out": queries, "lse": queries, "q": queries, "radius": queries, "k": keys, "v": keys}.items():
        assert torch.equal(clean[name][0][region], spoiled[name][0][region]), name


def test_a_value_that_is_no_number_spoils_outputs_alone():
    query, key, value = grids(1, (12, 12), (12, 12), 2, 16)
    tensors = [query, key, value, torch.full((1, 12, 12, 2), 1.2), None]
    clean = ours(tensors, max_radius=2.0)
    value[0, 6, 6, 1, 3] = math.nan
    spoiled = ours(tensors, max_radius=2.0)
    seen = torch.zeros(12, 12, dtype=torch.bool)
    seen[4:9, 4:9] = True
    assert torch.equal(spoiled[0][0, :, :, 1].isnan().any(-1), seen)
    assert torch.equal(spoiled[0][0, :, :, 0], clean[0][0, :, :, 0])
    assert torch.equal(spoiled[1], clean[1])
    assert torch.equal(spoiled[2][0][~seen], clean[2][0][~seen])


def test_a_query_or_gradient_that_is_no_number_stays_with_the_keys_it_reaches():
    query, key, value = grids(1, (12, 12), (12, 12), 1, 16)
    query[0, 6, 6] = math.nan
    leaves = [x.requires_grad_() for x in (query, key, value)]
    out = cross_scale_attention(*leaves, radius=1.2, max_radius=2.0)
    d_out = torch.ones_like(out)
    d_out[0, 0, 0] = math.inf
    d_query, d_key, d_value = torch.autograd.grad(out, leaves, d_out)
    near = torch.zeros(12, 12, dtype=torch.bool)
    near[4:9, 4:9] = near[:3, :3] = True
    assert d_query[0].isfinite().all(-1).sum() == 142
    for gradient in (d_key, d_value):
        assert gradient[0][~near].isfinite().all()


def test_a_radius_that_is_no_number_shows():
    query, key, value = grids(1, (6, 6), (6, 6), 1, 16)
    radius = torch.ones(1, 6, 6, 1)
    radius[0, 2, 3] = math.nan
    bad = cross_scale_attention(query, key, value, radius=radius, max_radius=2.0).isnan().all(-1)[0, :, :, 0]
    assert bad[2, 3]
    assert bad.sum() == 1


def test_padding_beyond_the_extents_may_hold_anything():
    query, key, value = grids(2, (10, 9), (6, 8), 2, 16)
    fixed = {"query_extent": torch.tensor([[10, 5], [3, 9]]), "key_extent": torch.tensor([[4, 8], [6, 2]])}
    for b in range(2):
        for name, padded in (("query_extent", (query,)), ("key_extent", (key, value))):
            height, width = fixed[name][b]
            for grid in padded:
                grid[b, height:] = grid[b, :, width:] = math.nan
    tensors = [query, key, value, torch.rand(2, 10, 9, 2) * 2, None]
    got = ours(tensors, max_radius=1.5, **fixed)
    want = definition([None if t is None else t.nan_to_num(0) for t in tensors], max_radius=1.5, **fixed)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_extents_beyond_the_grids_are_clamped():
    # What a GPU cannot check without a synchronisation; the operator's own checks on the CPU are passed by.
    tensors, window = grids(2, (5, 4), (4, 6), 1, 16), (2.0, 1.0, 0.25)
    beyond = [torch.tensor([[9, 9], [0, 4]]), torch.tensor([[4, 2**40], [-1, 6]])]
    inside = [torch.tensor([[5, 4], [1, 4]]), torch.tensor([[4, 6], [1, 6]])]
    found, wanted = (attention.forward(*tensors, None, None, *extents, *window) for extents in (beyond, inside))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("shape", [(0, 3, 3, 2, 16), (2, 0, 3, 2, 16), (2, 3, 3, 0, 16)], ids=str)
def test_zero_sizes(shape):
    query = torch.randn(shape, requires_grad=True)
    key = torch.randn(shape[0], 5, 4, *shape[3:], requires_grad=True)
    out, lse = cross_scale_attention(query, key, key, radius=1.0, max_radius=2.0, return_lse=True)
    (out.sum() + lse.sum()).backward()
    assert out.shape == query.grad.shape == shape
    assert torch.equal(key.grad, torch.zeros_like(key))


def test_what_it_cannot_serve_is_told_and_it_never_volunteers(monkeypatch):
    monkeypatch.delenv("HAMLET_BACKEND", raising=False)
    fixed = {"radius": 1.0, "max_radius": 1.0}

    def told(query, key, value):
        return explain(cross_scale_attention, query, key, value, **fixed)["cuda"]

    assert told(*grids(1, (3, 3), (3, 3), 1, 16)) == []
    assert told(*grids(1, (3, 3), (3, 3), 1, 24)) == [
        "it takes 16, 32, 64, 128 channels a head, the same of values, got 24 and 24"
    ]
    assert "got 16 and 32" in told(*grids(1, (3, 3), (3, 3), 1, 16, 32))[0]
    assert told(*grids(1, (3, 3), (3, 3), 1, 16, dtype=torch.float64)) == ["it takes no torch.float64"]
    from hamlet.ops import attention as operator
    from hamlet.ops import backends

    arguments = operator.prepare(*grids(1, (3, 3), (3, 3), 1, 16), **fixed)
    assert backends.choose("cross_scale_attention", None, arguments).name != "cuda"


FAULTS = {
    "a missing barrier": (
        "attention.h",
        "        // What has landed is seen by all, and all are done with the stage that is filled next.\n"
        "        synchronise();\n",
        "",
    ),
    "a swapped stage": ("attention.h", "        body(step, own);\n", "        body(step, next);\n"),
    "a group too many under way": ("attention.h", "wait_for_copies<STAGES_AHEAD - 1>", "wait_for_copies<STAGES_AHEAD>"),
    "a warp that does not wait for its rows": (
        "attention.h",
        "    synchronise_warp();\n    constexpr int SLOTS",
        "    constexpr int SLOTS",
    ),
    "a lane without the others": (
        "attention_forward.h",
        "            most = fmaxf(most, shuffle_xor(most, 1));",
        "            if (lane_index()) most = fmaxf(most, shuffle_xor(most, 1));",
    ),
    "a tile of keys too few": (
        "attention.h",
        "for (int step = 0; step < steps; ++step) {",
        "for (int step = 1; step < steps; ++step) {",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_broken_on_purpose_is_caught(fault, tmp_path, monkeypatch):
    shutil.copytree(build.CSRC, tmp_path / "csrc")
    file, right, wrong = FAULTS[fault]
    broken, launch = (tmp_path / "csrc" / "cuda" / name for name in (file, "attention_launch.h"))
    assert broken.read_text().count(right) == 1
    broken.write_text(broken.read_text().replace(right, wrong))
    # Heads of one size are enough, and sooner built.
    launch.write_text(re.sub(r"case (32|64|128): .*", "", launch.read_text()))
    monkeypatch.setattr(library, "kernels", build.kernels(tmp_path / "csrc", "attention_forward.cu"))
    query, key, value = grids(1, (9, 7), (12, 11), 1, 16)
    arguments = (query, key, value, None, None, None, None, 4.0, 1.0, 0.25)
    wanted = cross_scale_attention(query, key, value, radius=4.0, max_radius=4.0, backend="reference")
    with pytest.raises((RuntimeError, AssertionError), match=r"attention forward, block .*|not close"):
        torch.testing.assert_close(attention.forward(*arguments)[0], wanted)
