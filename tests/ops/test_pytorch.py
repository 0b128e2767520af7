"""What PyTorch does with operators: compile, export, transform, cast, checkpoint, count."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hamlet.ops import (
    attention,
    convolution,
    cross_scale_attention,
    dynamic_conv2d,
    pyramid,
    pyramid_attention,
    use_backend,
)


def attend(query, key, radius, gate):
    return cross_scale_attention(query, key, key, radius=radius, max_radius=3.0, gate=gate, return_lse=True)


def attend_in_pyramid(query, key, radius, gate):
    return tuple(
        pyramid_attention(
            [query, key], [query, key], [query, key], radius=[[radius, 1.0], [None, 2.0]],
            max_radius=[[2.0, 2.0], [2.0, 2.0]], gate=[[gate, None], [None, None]],
        )
    )  # fmt: skip


def attention_tensors(batch=2, side=6, dtype=torch.float32):
    return (
        torch.randn(batch, side, side + 1, 2, 4, dtype=dtype, requires_grad=True),
        torch.randn(batch, side // 2, side, 2, 4, dtype=dtype, requires_grad=True),
        (torch.rand(batch, side, side + 1, 2, dtype=dtype) * 2 + 0.6).requires_grad_(),
        torch.rand(side + 1, 1, dtype=dtype, requires_grad=True),
    )


def convolve(input, weight, bias, dilation):
    return (dynamic_conv2d(input, weight, bias, dilation=dilation, groups=4, residual=True),)


def convolution_tensors(batch=2, side=6, dtype=torch.float32):
    return (
        torch.randn(batch, 4, side, side + 1, dtype=dtype, requires_grad=True),
        torch.randn(batch, 4, 1, 3, 3, dtype=dtype, requires_grad=True),
        torch.randn(4, dtype=dtype, requires_grad=True),
        torch.randint(1, 3, (batch, 2)),
    )


CALLS = [(attend, attention_tensors), (attend_in_pyramid, attention_tensors), (convolve, convolution_tensors)]
calls = pytest.mark.parametrize(("call", "tensors"), CALLS, ids=["attention", "pyramid", "convolution"])


def gradients_of(call, tensors):
    outs = call(*tensors)
    leaves = [t for t in tensors if t.requires_grad]
    return [*outs, *torch.autograd.grad(sum(out.square().sum() for out in outs), leaves)]


def registered_calls():
    query, key, radius, gate = attention_tensors()
    extents = [torch.tensor([[6, 4], [5, 7]]), torch.tensor([[3, 2], [1, 6]])]
    fixed = {"query_extent": extents[0], "key_extent": extents[1]}
    yield attention, attention.prepare(query, key, key, radius=radius, max_radius=3.0, gate=gate)
    yield attention, attention.prepare(query, key, key, radius=1.0, max_radius=3.0, **fixed)
    levels, nested = [query, key], [[radius, 1.0], [None, 2.0]]
    bounds = [[2.0, 2.0], [2.0, 2.0]]
    yield pyramid, pyramid.prepare(levels, levels, levels, radius=nested, max_radius=bounds, extents=extents)
    yield (
        pyramid,
        pyramid.prepare(levels, levels, levels, radius=bounds, max_radius=bounds, gate=[[gate, None], [None] * 2]),
    )
    input, weight, bias, dilation = convolution_tensors()
    last = input.detach().to(memory_format=torch.channels_last)
    yield convolution, convolution.prepare(input, weight, bias, dilation=[1, 2], groups=4, residual=True)
    yield convolution, convolution.prepare(last, weight, dilation=dilation, groups=4, stride=2, extent=extents[0])


@pytest.mark.parametrize(
    ("module", "arguments"),
    list(registered_calls()),
    ids=["attention", "extents", "pyramid", "gate", "static", "run-time"],
)
def test_opcheck(module, arguments):
    def fresh(value):
        return value.detach().clone() if isinstance(value, torch.Tensor) else value

    def with_gradient(value):
        return fresh(value).requires_grad_(value.is_floating_point()) if isinstance(value, torch.Tensor) else value

    operator = module.operator
    arguments = tree_map(with_gradient, (*arguments, None))
    assert set(torch.library.opcheck(operator.forward, arguments).values()) == {"SUCCESS"}
    outs = operator.forward(*arguments)
    outs = outs if isinstance(outs, tuple) else (outs,)
    incoming = tree_map(torch.randn_like, outs)[: operator.incoming_count]
    arguments = (*incoming, *arguments[:-1], *outs[1:], None)
    assert set(torch.library.opcheck(operator.backward, tree_map(fresh, arguments)).values()) == {"SUCCESS"}
    # Second derivatives go through the reference, which reads sizes: they run eagerly and are not traced.
    untraced = ("test_schema", "test_autograd_registration", "test_faketensor")
    results = torch.library.opcheck(operator.backward, tree_map(with_gradient, arguments), test_utils=untraced)
    assert set(results.values()) == {"SUCCESS"}


@calls
def test_compile_whole_with_dynamic_shapes(call, tensors):
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, side in ((2, 6), (3, 8), (4, 10)):
        inputs = tensors(batch, side)
        for got, want in zip(gradients_of(compiled, inputs), gradients_of(call, inputs), strict=True):
            torch.testing.assert_close(got, want)


def test_compile_by_inductor():
    inputs = attention_tensors()
    compiled = torch.compile(lambda *tensors: attend(*tensors)[0].relu() + 1, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), attend(*inputs)[0].relu() + 1)


def test_a_compiled_call_follows_use_backend():
    inputs = attention_tensors()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    compiled(*inputs)
    with use_backend("cuda"), pytest.raises(ValueError, match="'cuda', which cannot serve cross_scale_attention"):
        compiled(*inputs)


@calls
def test_export(call, tensors):
    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return call(*inputs)

    inputs = tuple(t.detach() for t in tensors())
    exported = torch.export.export(Module(), inputs)
    for got, want in zip(exported.module()(*inputs), call(*inputs), strict=True):
        torch.testing.assert_close(got, want)


@calls
def test_autocast_casts_the_data_and_not_what_steers(call, tensors):
    inputs = tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outs = call(*inputs)
    assert outs[0].dtype == torch.bfloat16
    gradients = torch.autograd.grad(outs[0].float().square().sum(), [inputs[0], inputs[1]])
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    halves = [t.bfloat16() if i < (3 if call is convolve else 2) else t for i, t in enumerate(inputs)]
    torch.testing.assert_close(outs[0], call(*halves)[0])


def test_autocast_takes_mixed_dtypes():
    query, key, radius, gate = attention_tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attend(query.bfloat16(), key, radius, gate)[0].dtype == torch.bfloat16


@calls
def test_functional_gradient(call, tensors):
    inputs = tensors(dtype=torch.float64)

    def loss(first):
        return sum(out.square().sum() for out in call(first, *inputs[1:]))

    (want,) = torch.autograd.grad(loss(inputs[0]), inputs[0])
    torch.testing.assert_close(torch.func.grad(loss)(inputs[0].detach()), want)


@calls
def test_functional_second_gradient(call, tensors):
    inputs = tensors(batch=1, side=4, dtype=torch.float64)

    def loss(first):
        return sum(out.pow(3).sum() for out in call(first, *inputs[1:]))

    first = inputs[0]
    (gradient,) = torch.autograd.grad(loss(first), first, create_graph=True)
    (want,) = torch.autograd.grad(gradient.square().sum(), first)
    got = torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(first.detach())
    torch.testing.assert_close(got, want)


@calls
def test_vmap_over_a_new_leading_dimension(call, tensors):
    inputs = tensors(dtype=torch.float64)
    many = torch.randn(3, *inputs[0].shape, dtype=torch.float64)
    got = torch.func.vmap(lambda first: call(first, *inputs[1:]))(many)
    one_by_one = [call(first, *inputs[1:]) for first in many]
    for mapped, singles in zip(got, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(mapped, torch.stack(singles))


@calls
def test_vmap_of_a_gradient(call, tensors):
    inputs = tensors(dtype=torch.float64)
    many = torch.randn(3, *inputs[0].shape, dtype=torch.float64)

    def gradient(first):
        return torch.func.grad(lambda x: sum(out.square().sum() for out in call(x, *inputs[1:])))(first)

    torch.testing.assert_close(torch.func.vmap(gradient)(many), torch.stack([gradient(first) for first in many]))


@calls
def test_activation_checkpointing(call, tensors):
    inputs = tensors()
    want = gradients_of(call, inputs)
    got = gradients_of(lambda *args: checkpoint(call, *args, use_reentrant=False), inputs)
    for gradient, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_counted_operations_of_attention():
    # Distances on equal grids are whole, so a reach of 2 + 1 sees 5 keys a side, fewer at the border: on 6 pixels
    # 3 + 4 + 5 + 5 + 4 + 3 = 24 pairs an axis. Two operations for each of D + Dv = 8 + 4 channels; backward 3 D + 2 Dv.
    query, value = torch.randn(2, 6, 6, 3, 8, requires_grad=True), torch.randn(2, 6, 6, 3, 4)
    with FlopCounterMode(display=False) as counter:
        out = cross_scale_attention(query, query, value, radius=torch.full((1,), 2.0), max_radius=2.0)
    assert counter.get_total_flops() == 2 * 2 * 3 * 24**2 * (8 + 4)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 3 * 24**2 * (3 * 8 + 2 * 4)
    with FlopCounterMode(display=False) as counter:
        pyramid_attention(
            [query] * 2, [query] * 2, [value] * 2, radius=[[2.0, None], [None, 2.0]], max_radius=[[2.0] * 2] * 2
        )
    assert counter.get_total_flops() == 2 * 2 * 2 * 3 * 24**2 * (8 + 4)


def test_counted_operations_of_convolution_are_those_of_conv2d():
    input, weight = torch.randn(1, 8, 7, 5), torch.randn(1, 12, 2, 3, 3)
    with FlopCounterMode(display=False) as counter:
        dynamic_conv2d(input, weight, groups=4, stride=2)
    with FlopCounterMode(display=False) as wanted:
        torch.nn.functional.conv2d(input, weight[0], groups=4, stride=2, padding=1)
    assert counter.get_total_flops() == wanted.get_total_flops() > 0
