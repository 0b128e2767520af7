from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hamlet.ops import cross_scale_attention
from tests.ops import dense

pytestmark = pytest.mark.usefixtures("every_backend")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def grids(batch, query_grid, key_grid, heads, channels, value_channels=None, dtype=torch.float64):
    query = torch.randn(batch, *query_grid, heads, channels, dtype=dtype)
    key = torch.randn(batch, *key_grid, heads, channels, dtype=dtype)
    value = torch.randn(batch, *key_grid, heads, value_channels or channels, dtype=dtype)
    return query, key, value


@st.composite
def calls(draw):
    """Tensors and arguments of one call: any grids, radii off the bounds too, perhaps extents, perhaps a gate."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    side = st.integers(1, 17)
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    query_grid, key_grid = (draw(side), draw(side)), (draw(side), draw(side))
    tensors = list(grids(batch, query_grid, key_grid, heads, draw(st.integers(1, 9)), draw(st.integers(1, 9))))
    max_radius, softness = draw(st.floats(0.5, 20)), draw(st.floats(0.05, 3))
    shape = draw(st.sampled_from([(batch, *query_grid, heads), (1, *query_grid, 1), (heads,), (1, 1, 1, 1)]))
    tensors.append(torch.rand(shape, dtype=torch.float64) * (max_radius + 1))
    tensors.append(torch.randn(batch, *query_grid, 1, dtype=torch.float64) if draw(st.booleans()) else None)
    fixed = {"max_radius": max_radius, "softness": softness, "scale": draw(st.none() | st.floats(-2, 2))}
    if draw(st.booleans()):
        for name, grid in (("query_extent", query_grid), ("key_extent", key_grid)):
            fixed[name] = torch.stack([torch.randint(1, size + 1, (batch,)) for size in grid], 1)
    return tensors, fixed


@given(calls())
@settings(max_examples=60, deadline=None)
def test_output_lse_and_gradients_agree_with_the_definition(call):
    tensors, fixed = call
    tensors = [None if t is None else t.requires_grad_() for t in tensors]
    query, key, value, radius, gate = tensors
    out, lse = cross_scale_attention(query, key, value, radius=radius, gate=gate, return_lse=True, **fixed)
    expected, expected_lse = dense.attention(query, key, value, radius=radius, gate=gate, **fixed)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-9, atol=1e-9)
    leaves = [t for t in tensors if t is not None]
    d_out, d_lse = torch.randn_like(out), torch.randn_like(lse).masked_fill(lse == -math.inf, 0)
    got = torch.autograd.grad((out, lse), leaves, (d_out, d_lse))
    finite = expected_lse.masked_fill(expected_lse == -math.inf, 0)
    want = torch.autograd.grad((expected, finite), leaves, (d_out, d_lse))
    for gradient, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("query_grid", "key_grid", "radius"),
    [((13, 7), (9, 31), 2.3), ((15, 15), (30, 30), 6.0), ((9, 9), (9, 9), 20.0)],
    ids=["Q13x7-K9x31", "Q15x15-K30x30", "whole grid"],
)
def test_error_is_at_most_twice_that_of_plain_pytorch_in_the_same_precision(dtype, query_grid, key_grid, radius):
    tensors = grids(2, query_grid, key_grid, 3, 24, 40, dtype)
    exact_tensors = [t.double().requires_grad_() for t in tensors]
    exact, _ = dense.attention(*exact_tensors, radius=radius, max_radius=radius)
    d_out = torch.randn_like(exact)
    wanted = [exact, *torch.autograd.grad(exact, exact_tensors, d_out)]

    def results(function):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, leaves, d_out.to(dtype))]

    m = dense.ramp(query_grid, key_grid, torch.full((1, *query_grid, 1), radius, dtype=torch.float64), radius, 1.0)

    def plain(query, key, value):
        heads_first = [x.permute(0, 3, 1, 2, 4).flatten(2, 3) for x in (query, key, value)]
        out = F.scaled_dot_product_attention(*heads_first, attn_mask=m.log().to(dtype))
        return out.transpose(1, 2).unflatten(1, query_grid)

    ours = results(lambda *leaves: cross_scale_attention(*leaves, radius=radius, max_radius=radius))
    theirs = results(plain)
    for got, other, want in zip(ours, theirs, wanted, strict=True):
        assert got.dtype == dtype
        error, allowed = ((x.double() - want).norm() / want.norm() for x in (got, other))
        assert error <= 2 * allowed + 1e-14


def test_agrees_with_flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    query, key, value = grids(2, (8, 6), (4, 9), 2, 16, dtype=torch.float32)
    radius = torch.rand(2, 8, 6, 2) * 3 + 0.5
    log_ramp = dense.ramp((8, 6), (4, 9), radius.double(), 3.0, 0.7).log().float()
    heads_first = [x.permute(0, 3, 1, 2, 4).flatten(2, 3) for x in (query, key, value)]
    expected, lse = flex_attention(
        *heads_first, score_mod=lambda score, b, h, q, k: score + log_ramp[b, h, q, k], return_lse=True
    )
    out, own_lse = cross_scale_attention(
        query, key, value, radius=radius, max_radius=3.0, softness=0.7, return_lse=True
    )
    torch.testing.assert_close(out, expected.transpose(1, 2).unflatten(1, (8, 6)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own_lse, lse.transpose(1, 2).unflatten(1, (8, 6)), rtol=1e-4, atol=1e-5)


def test_a_window_over_the_whole_grid_is_full_attention():
    query, key, value = grids(2, (5, 3), (4, 6), 2, 8)
    out = cross_scale_attention(query, key, value, radius=50.0, max_radius=50.0)
    heads_first = [x.permute(0, 3, 1, 2, 4).flatten(2, 3) for x in (query, key, value)]
    expected = F.scaled_dot_product_attention(*heads_first).transpose(1, 2).unflatten(1, (5, 3))
    torch.testing.assert_close(out, expected)


def test_a_hard_edge_on_equal_grids_is_neighbourhood_attention():
    query, key, value = grids(1, (9, 9), (9, 9), 1, 4)
    out = cross_scale_attention(query, key, value, radius=1.0, max_radius=1.0, softness=1e-9)
    for y in range(1, 8):
        for x in range(1, 8):
            k = key[0, y - 1 : y + 2, x - 1 : x + 2, 0].reshape(9, 4)
            v = value[0, y - 1 : y + 2, x - 1 : x + 2, 0].reshape(9, 4)
            weights = torch.softmax(k @ query[0, y, x, 0] / 2, 0)
            torch.testing.assert_close(out[0, y, x, 0], weights @ v)


def test_hand_worked_window():
    # One row of four keys and one query at its middle: distances 1.5, 0.5, 0.5, 1.5; radius 1 and softness 1 give the
    # weights 0.5, 1, 1, 0.5. Equal logits leave (0.5 * 1 + 2 + 3 + 0.5 * 4) / 3 = 2.5, and a sum of 3 e^0.
    query, key = torch.zeros(1, 1, 1, 1, 2), torch.zeros(1, 1, 4, 1, 2)
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 4, 1, 1)
    out, lse = cross_scale_attention(query, key, value, radius=1.0, max_radius=1.0, return_lse=True)
    assert out.item() == pytest.approx(2.5)
    assert lse.item() == pytest.approx(math.log(3))


def test_radius_gradient_passes_inside_and_at_the_ends_and_not_outside():
    query, key, value = grids(1, (1, 5), (1, 40), 1, 4)
    radius = torch.tensor([0.2, 0.5, 1.3, 2.0, 2.5], dtype=torch.float64).reshape(1, 1, 5, 1).requires_grad_()
    out = cross_scale_attention(query, key, value, radius=radius, max_radius=2.0, softness=1.7)
    (gradient,) = torch.autograd.grad(out.square().sum(), radius)
    assert (gradient.flatten() != 0).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_no_window_reaches_changes_nothing(bad):
    query, key, value = grids(1, (12, 12), (12, 12), 2, 8, dtype=torch.float32)
    radius = torch.full((1, 12, 12, 2), 1.2)
    clean = run_with_gradients(query, key, value, radius)
    key[0, 6, 6], value[0, 6, 6] = bad, bad
    spoiled = run_with_gradients(query, key, value, radius)
    # Reach 1.2 + 1: the bad key is seen by the 5 x 5 queries about it, which see the 9 x 9 keys about it.
    queries = torch.ones(12, 12, dtype=torch.bool)
    queries[4:9, 4:9] = False
    keys = torch.ones(12, 12, dtype=torch.bool)
    keys[2:11, 2:11] = False
    for name, region in {"out": queries, "query": queries, "radius": queries, "key": keys, "value": keys}.items():
        assert torch.equal(clean[name][0][region], spoiled[name][0][region]), name
    if math.isnan(bad):
        assert spoiled["out"][0][~queries].isnan().all()


def test_a_value_that_is_no_number_spoils_outputs_alone():
    query, key, value = grids(1, (12, 12), (12, 12), 2, 8, dtype=torch.float32)
    radius = torch.full((1, 12, 12, 2), 1.2)
    options = {"radius": radius, "max_radius": 2.0, "return_lse": True}
    clean, clean_lse = cross_scale_attention(query, key, value, **options)
    gradients = run_with_gradients(query, key, value, radius)
    value[0, 6, 6, 1, 3] = math.nan
    spoiled, lse = cross_scale_attention(query, key, value, **options)
    assert torch.equal(lse, clean_lse)
    seen = torch.zeros(12, 12, dtype=torch.bool)
    seen[4:9, 4:9] = True
    assert torch.equal(spoiled[0, :, :, 1].isnan().any(-1), seen)
    assert torch.equal(spoiled[0, :, :, 0], clean[0, :, :, 0])
    found = run_with_gradients(query, key, value, radius)
    assert torch.equal(found["query"][0][~seen], gradients["query"][0][~seen])
    assert torch.equal(found["value"], gradients["value"])


def run_with_gradients(query, key, value, radius):
    leaves = {"query": query, "key": key, "value": value, "radius": radius}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in leaves.items()}
    out = cross_scale_attention(
        leaves["query"], leaves["key"], leaves["value"], radius=leaves["radius"], max_radius=2.0
    )
    torch.manual_seed(1)
    gradients = torch.autograd.grad(out, list(leaves.values()), torch.randn_like(out))
    return dict(zip(leaves, gradients, strict=True)) | {"out": out}


def test_padding_beyond_the_extents_may_hold_anything():
    query, key, value = grids(2, (10, 9), (6, 8), 2, 4)
    query_extent, key_extent = torch.tensor([[10, 5], [3, 9]]), torch.tensor([[4, 8], [6, 2]])
    for b in range(2):
        query[b, query_extent[b, 0] :] = query[b, :, query_extent[b, 1] :] = math.nan
        for grid in (key, value):
            grid[b, key_extent[b, 0] :] = grid[b, :, key_extent[b, 1] :] = math.nan
    leaves = [t.requires_grad_() for t in (query, key, value)]
    out, lse = cross_scale_attention(
        *leaves, radius=1.5, max_radius=1.5, query_extent=query_extent, key_extent=key_extent, return_lse=True
    )
    gradients = torch.autograd.grad(out.sum(), leaves)
    for b in range(2):
        hq, wq = query_extent[b].tolist()
        hk, wk = key_extent[b].tolist()
        alone = cross_scale_attention(
            query[b : b + 1, :hq, :wq], key[b : b + 1, :hk, :wk], value[b : b + 1, :hk, :wk], radius=1.5, max_radius=1.5
        )
        torch.testing.assert_close(out[b : b + 1, :hq, :wq], alone)
        assert not out[b, hq:].any()
        assert not out[b, :, wq:].any()
        assert (lse[b, hq:] == -math.inf).all()
        for gradient, (height, width) in zip(gradients, ((hq, wq), (hk, wk), (hk, wk)), strict=True):
            assert gradient[b].isfinite().all()
            assert not gradient[b, height:].any()
            assert not gradient[b, :, width:].any()


def test_log_sum_exp_joins_two_sets_of_heads_of_keys():
    # Attention over two key grids at once equals the two results weighted by their log-sum-exp.
    query, key, value = grids(1, (4, 4), (4, 4), 1, 4)
    other_key, other_value = torch.randn_like(key), torch.randn_like(value)
    fixed = {"radius": 9.0, "max_radius": 9.0}
    first, first_lse = cross_scale_attention(query, key, value, return_lse=True, **fixed)
    second, second_lse = cross_scale_attention(query, other_key, other_value, return_lse=True, **fixed)
    share = torch.sigmoid(first_lse - second_lse)[..., None]
    both = cross_scale_attention(query, torch.cat([key, other_key], 2), torch.cat([value, other_value], 2), **fixed)
    torch.testing.assert_close(share * first + (1 - share) * second, both)


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
    base = torch.randn(2, 3, 8, 9, 10, dtype=torch.float64)
    query = base.permute(0, 4, 2, 1, 3)[:, ::2, 1:, :, ::2]
    key = base.flip(0).permute(0, 2, 4, 1, 3)[:, :, ::3, :, 1::2][..., :4]
    query = query[..., :4]
    radius = torch.rand(5, 7, 1, dtype=torch.float64).expand(5, 7, 3)
    fixed = {"radius": radius + 0.6, "max_radius": 3.0}
    assert not query.is_contiguous()
    out = cross_scale_attention(query, key, key, **fixed)
    torch.testing.assert_close(out, cross_scale_attention(query.contiguous(), key.contiguous(), key.clone(), **fixed))


def test_results_have_the_same_bits_from_run_to_run():
    query, key, value = grids(2, (15, 15), (8, 8), 2, 16, dtype=torch.float32)
    radius = torch.rand(2, 15, 15, 2) * 3
    first, again = (run_with_gradients(query, key, value, radius) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
