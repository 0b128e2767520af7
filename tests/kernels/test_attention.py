"""The Triton attention in the interpreter, against its definition in float64."""

from __future__ import annotations

import math

import pytest
import torch

from hamlet.ops import available_backends, cross_scale_attention, explain, use_backend
from tests.ops import dense


@pytest.fixture(autouse=True)
def on_triton():
    with use_backend("triton"):
        yield


def grids(batch, query_grid, key_grid, heads, channels, value_channels=None, dtype=torch.float32):
    query = torch.randn(batch, *query_grid, heads, channels, dtype=dtype)
    key = torch.randn(batch, *key_grid, heads, channels, dtype=dtype)
    value = torch.randn(batch, *key_grid, heads, value_channels or channels, dtype=dtype)
    return query, key, value


def results(attention, tensors, **fixed):
    """Output, log-sum-exp and the gradients of both in all of ``tensors``: query, key, value, radius, gate."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    query, key, value, radius, gate = leaves
    out, lse = attention(query, key, value, radius=radius, gate=gate, **fixed)
    torch.manual_seed(1)
    d_out, d_lse = torch.randn(out.shape), torch.randn(lse.shape).masked_fill(lse == -math.inf, 0)
    finite = lse.masked_fill(lse == -math.inf, 0)
    wanted = [leaf for leaf in leaves if leaf is not None]
    gradients = torch.autograd.grad((out, finite), wanted, (d_out.to(out.dtype), d_lse.to(lse.dtype)))
    return [out, lse, *gradients]


def ours(tensors, **fixed):
    return results(lambda *args, **kwargs: cross_scale_attention(*args, **kwargs, return_lse=True), tensors, **fixed)


def definition(tensors, **fixed):
    return results(dense.attention, [None if t is None else t.double() for t in tensors], **fixed)


SHAPES = {
    "Q9x7-K6x11": ((9, 7), (6, 11), 5, 7),
    "Q3x5-K19x11": ((3, 5), (19, 11), 16, 16),
    "Q17x6-K5x6": ((17, 6), (5, 6), 24, 3),
    "Q1x1-K1x4": ((1, 1), (1, 4), 1, 40),
}


@pytest.mark.parametrize("extents", [False, True], ids=["whole", "extents"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_lse_and_gradients_agree_with_the_definition(shape, extents):
    query_grid, key_grid, channels, value_channels = shape
    tensors = [
        *grids(2, query_grid, key_grid, 2, channels, value_channels),
        torch.rand(2, *query_grid, 2) * 4,  # below 0.5 and above max_radius too
        torch.randn(2, *query_grid, 1),
    ]
    fixed = {"max_radius": 3.3, "softness": 0.8, "scale": -0.7}
    if extents:
        for name, grid in (("query_extent", query_grid), ("key_extent", key_grid)):
            fixed[name] = torch.stack([torch.randint(1, size + 1, (2,)) for size in grid], 1)
    for got, want in zip(ours(tensors, **fixed), definition(tensors, **fixed), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("radius", [0.6, 2.1, 30.0], ids=["little", "some", "whole grid"])
def test_a_radius_for_all_and_no_gate(radius):
    tensors = [*grids(1, (10, 9), (10, 9), 1, 8), torch.tensor(radius), None]
    fixed = {"max_radius": 40.0}
    for got, want in zip(ours(tensors, **fixed), definition(tensors, **fixed), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    query, key, value, _, _ = tensors
    number = cross_scale_attention(query, key, value, radius=radius, **fixed)
    torch.testing.assert_close(number, cross_scale_attention(query, key, value, radius=torch.tensor(radius), **fixed))


def test_half_precision_errs_as_little_as_plain_pytorch():
    dtype = torch.float16  # bfloat16 is beyond the interpreter
    query_grid, key_grid = (13, 7), (9, 11)
    tensors = [*grids(1, query_grid, key_grid, 2, 24, 40, dtype), torch.rand(1, *query_grid, 2) * 3, None]
    fixed = {"max_radius": 2.5}
    m = dense.ramp(query_grid, key_grid, tensors[3].double(), 2.5, 1.0)

    def plain(query, key, value, **_):
        q, k, v = (x.permute(0, 3, 1, 2, 4).flatten(2, 3) for x in (query, key, value))
        logits = (q @ k.mT).float() * query.shape[4] ** -0.5 + m.log().float()
        out = (torch.softmax(logits, -1).to(dtype) @ v).transpose(1, 2).unflatten(1, query_grid)
        return out, torch.logsumexp(logits, -1).transpose(1, 2).unflatten(1, query_grid)

    wanted = definition(tensors, **fixed)
    got, other = ours(tensors, **fixed), results(plain, [*tensors[:3], None, None], **fixed)
    for index in (0, 1, 2, 3, 4):  # the radius is not among plain PyTorch's leaves
        error, allowed = ((x[index].double() - wanted[index]).norm() for x in (got, other))
        assert error <= 2 * allowed + 1e-6 * wanted[index].norm()
    assert [x.dtype for x in got] == [dtype, torch.float32, dtype, dtype, dtype, torch.float32]
    torch.testing.assert_close(got[5].double(), wanted[5], rtol=0.1, atol=0.02)


def test_radius_and_gate_keep_their_dtypes():
    tensors = [*grids(1, (4, 4), (4, 4), 1, 8), torch.rand(1, 4, 4, 1).half() + 1, torch.rand(1, 4, 4, 1).bfloat16()]
    *_, d_radius, d_gate = ours(tensors, max_radius=3.0)
    *_, want_radius, want_gate = definition(tensors, max_radius=3.0)
    assert (d_radius.dtype, d_gate.dtype) == (torch.float16, torch.bfloat16)
    torch.testing.assert_close(d_radius.double(), want_radius, rtol=2e-3, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(d_gate.double(), want_gate, rtol=1e-2, atol=1e-5, check_dtype=False)


def test_a_hard_edge_takes_the_keys_at_the_radius():
    tensors = [*grids(1, (9, 9), (9, 9), 1, 4), torch.ones(1, 9, 9, 1), None]
    fixed = {"max_radius": 1.0, "softness": 1e-9}
    for got, want in zip(ours(tensors, **fixed)[:5], definition(tensors, **fixed)[:5], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_radius_gradient_passes_inside_and_at_the_ends_and_not_outside():
    query, key, value = grids(1, (1, 5), (1, 40), 1, 4)
    radius = torch.tensor([0.2, 0.5, 1.3, 2.0, 2.5]).reshape(1, 1, 5, 1).requires_grad_()
    out = cross_scale_attention(query, key, value, radius=radius, max_radius=2.0, softness=1.7)
    (gradient,) = torch.autograd.grad(out.square().sum(), radius)
    assert (gradient.flatten() != 0).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_no_window_reaches_changes_nothing(bad):
    query, key, value = grids(1, (12, 12), (12, 12), 1, 8)
    tensors, names = [query, key, value, torch.full((1, 12, 12, 1), 1.2), None], ("out", "lse", "q", "k", "v", "radius")
    clean = dict(zip(names, ours(tensors, max_radius=2.0), strict=True))
    key[0, 6, 6], value[0, 6, 6] = bad, bad
    spoiled = dict(zip(names, ours(tensors, max_radius=2.0), strict=True))
    # Reach 1.2 + 1: the bad key is seen by the 5 x 5 queries about it, which see the 9 x 9 keys about it.
    queries = torch.ones(12, 12, dtype=torch.bool)
    queries[4:9, 4:9] = False
    keys = torch.ones(12, 12, dtype=torch.bool)
    keys[2:11, 2:11] = False
    for name, region in {"out": queries, "lse": queries, "q": queries, "radius": queries, "k": keys, "v": keys}.items():
        assert torch.equal(clean[name][0][region], spoiled[name][0][region]), name
    if math.isnan(bad):
        assert spoiled["out"][0][~queries].isnan().all()


def test_a_value_that_is_no_number_spoils_outputs_alone():
    query, key, value = grids(1, (12, 12), (12, 12), 2, 8)
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
    assert torch.equal(spoiled[4], clean[4])


def test_a_query_or_gradient_that_is_no_number_stays_with_the_keys_it_reaches():
    query, key, value = grids(1, (12, 12), (12, 12), 1, 8)
    query[0, 6, 6] = math.nan
    query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
    out = cross_scale_attention(query, key, value, radius=1.2, max_radius=2.0)
    d_out = torch.ones_like(out)
    d_out[0, 0, 0] = math.inf
    d_query, d_key, d_value = torch.autograd.grad(out, (query, key, value), d_out)
    near = torch.zeros(12, 12, dtype=torch.bool)
    near[4:9, 4:9] = near[:3, :3] = True
    assert d_query[0].isfinite().all(-1).sum() == 142
    for gradient in (d_key, d_value):
        assert gradient[0][~near].isfinite().all()


def test_a_radius_that_is_no_number_shows():
    query, key, value = grids(1, (6, 6), (6, 6), 1, 8)
    radius = torch.ones(1, 6, 6, 1)
    radius[0, 2, 3] = math.nan
    out = cross_scale_attention(query, key, value, radius=radius, max_radius=2.0)
    bad = out.isnan().all(-1)[0, :, :, 0]
    assert bad[2, 3]
    assert bad.sum() == 1


def test_padding_beyond_the_extents_may_hold_anything():
    query, key, value = grids(2, (10, 9), (6, 8), 2, 4)
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


@pytest.mark.parametrize(
    "shape",
    [(0, 3, 3, 2, 4), (2, 0, 3, 2, 4), (2, 3, 3, 0, 4), (2, 3, 3, 2, 0)],
    ids=["no samples", "no queries", "no heads", "no channels"],
)
def test_zero_sizes(shape):
    query = torch.randn(shape, requires_grad=True)
    key = torch.randn(shape[0], 5, 4, *shape[3:], requires_grad=True)
    out, lse = cross_scale_attention(query, key, key, radius=1.0, max_radius=2.0, return_lse=True)
    assert out.shape == shape
    assert lse.shape == shape[:4]
    (out.sum() + lse.sum()).backward()
    assert query.grad.shape == query.shape
    assert torch.equal(key.grad, torch.zeros_like(key))


def test_strided_views_give_what_their_copies_give():
    base = torch.randn(2, 3, 8, 9, 10)
    query = base.permute(0, 4, 2, 1, 3)[:, ::2, 1:, :, :4]
    key = base.flip(0).permute(0, 2, 4, 1, 3)[:, :, ::3, :, 1::2][..., :4]
    radius = torch.rand(5, 7, 1).expand(5, 7, 3) + 0.6
    got = ours([query, key, key, radius, None], max_radius=3.0)
    for one, other in zip(
        got, ours([query.clone(), key.clone(), key.clone(), radius, None], max_radius=3.0), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_rows_that_begin_between_two_vectors():
    tensors = [x[..., 1:17] for x in grids(1, (6, 7), (5, 5), 2, 20)]
    radius = torch.rand(1) + 1
    got, want = (ours([*own, radius, None], max_radius=2.0) for own in (tensors, [x.clone() for x in tensors]))
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_results_have_the_same_bits_from_run_to_run():
    tensors = [*grids(1, (9, 9), (8, 8), 2, 16), torch.rand(1, 9, 9, 2) * 3, torch.rand(1, 9, 9, 2)]
    for first, again in zip(*(ours(tensors, max_radius=3.0) for _ in range(2)), strict=True):
        assert torch.equal(first, again)


def test_the_interpreter_is_never_chosen_by_itself(monkeypatch):
    query, key, value = grids(1, (3, 3), (3, 3), 1, 4)
    fixed = {"radius": 1.0, "max_radius": 1.0}
    assert "triton" in available_backends("cross_scale_attention", query, key, value, **fixed)
    from hamlet.ops import attention, backends

    arguments = attention.prepare(query, key, value, **fixed)
    assert backends.choose("cross_scale_attention", None, arguments).name != "triton"


def test_reasons_name_what_it_does_not_take():
    query, key, value = grids(1, (3, 3), (3, 3), 1, 4)
    fixed = {"radius": 1.0, "max_radius": 1.0}
    assert explain("cross_scale_attention", *(x.double() for x in (query, key, value)), **fixed)["triton"] == [
        "it takes no torch.float64"
    ]
    assert explain("cross_scale_attention", *(x.bfloat16() for x in (query, key, value)), **fixed)["triton"] == [
        "Triton's interpreter multiplies the bits of bfloat16 as if they were whole numbers"
    ]
    wide = torch.randn(1, 3, 3, 1, 300)
    assert explain("cross_scale_attention", wide, wide, wide, **fixed)["triton"] == [
        "it takes at most 256 channels a head, got 300"
    ]
