"""A call goes straight to its kernel where PyTorch's dispatcher has nothing to do, and only there."""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from hamlet.ops import cross_scale_attention, dispatch, dynamic_conv2d, pyramid_attention


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Overriding(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


def tensor():
    return torch.randn(1, 3, 3, 1, 8)


def attend(query):
    return cross_scale_attention(query, query, query, radius=1.0, max_radius=1.0)


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_not_needed_where_nothing_looks_on(context):
    with context():
        assert not dispatch.needed([tensor(), None, [tensor()], 1.0, [2, 3], "native"])
    with torch.no_grad():
        assert not dispatch.needed([tensor().requires_grad_()])


@pytest.mark.parametrize(
    "argument",
    [
        tensor().requires_grad_(),
        [tensor(), tensor().requires_grad_()],
        torch._neg_view(tensor()),
        tensor().as_subclass(Subclass),
        tensor().to("meta"),
    ],
    ids=["gradient", "gradient in a list", "negated", "subclass", "meta"],
)
def test_needed_for_a_tensor_that_is_more_than_its_data(argument):
    assert dispatch.needed([tensor(), argument])


@pytest.mark.parametrize(
    "context",
    [
        *(Seen, Overriding, torch.autograd.forward_ad.dual_level, lambda: torch.autocast("cpu")),
        *(lambda: profile(activities=[ProfilerActivity.CPU]), torch._subclasses.FakeTensorMode),
    ],
    ids=["dispatch mode", "function mode", "forward gradient", "autocast", "profiler", "fake tensors"],
)
def test_needed_where_something_looks_on(context):
    argument = tensor()
    with context():
        assert dispatch.needed([argument])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_needed_under_a_transform_and_a_trace():
    argument = tensor()
    seen = []

    def look(x):
        seen.append(dispatch.needed([argument]))
        return x * 1

    torch.func.vmap(look)(argument)
    torch.func.functionalize(look)(argument)
    torch.jit.trace(look, argument, check_trace=False)
    assert seen == [True, True, True]


def test_a_mode_and_the_profiler_see_the_operators():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(1, 2, 1, 3, 3)
    with torch.no_grad(), Seen() as mode, profile(activities=[ProfilerActivity.CPU]) as profiled:
        attend(tensor())
        dynamic_conv2d(x, weight, groups=2)
        pyramid_attention([tensor()], [tensor()], [tensor()], radius=[[1.0]], max_radius=[[1.0]])
    names = {event.key for event in profiled.key_averages()}
    for operator in ("cross_scale_attention", "dynamic_conv2d", "pyramid_attention"):
        assert f"hamlet.{operator}.default" in mode.names
        assert f"hamlet::{operator}" in names


def test_a_negated_view_is_read_negated():
    query = tensor()
    with torch.no_grad():
        assert torch.equal(attend(torch._neg_view(query)), attend(-query))


def test_both_ways_give_the_same_bits():
    query = tensor()
    straight = attend(query)
    assert not straight.requires_grad
    assert torch.equal(straight, attend(query.clone().requires_grad_()))
