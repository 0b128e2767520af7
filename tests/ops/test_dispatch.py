"""A call goes straight to its kernel where PyTorch's dispatcher has nothing to do, and only there."""

import contextlib
import enum

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


class Step(enum.IntEnum):
    ONE = 1


def tensor():
    return torch.randn(1, 3, 3, 1, 8)


def attend(query):
    return cross_scale_attention(query, query, query, radius=1.0, max_radius=1.0)


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_not_needed_where_nothing_but_autograd_looks_on(context):
    with context():
        assert not dispatch.needed([tensor(), tensor().requires_grad_()])


def test_differentiated_where_a_gradient_is_asked_for():
    wanting = tensor().requires_grad_()
    assert dispatch.differentiated([tensor(), wanting])
    assert not dispatch.differentiated([tensor()])
    with torch.no_grad():
        assert not dispatch.differentiated([wanting])
    with torch._C._AutoDispatchBelowAutograd():
        assert not dispatch.differentiated([wanting])


def test_the_body_of_an_operator_records_no_gradient_of_what_it_captures():
    weight = torch.rand(1, 2, 1, 3, 3, requires_grad=True)

    @torch.library.custom_op("hamlet_tests::convolved", mutates_args=())
    def convolved(x: torch.Tensor) -> torch.Tensor:
        return dynamic_conv2d(x, weight, groups=2)

    assert not convolved(torch.rand(1, 2, 4, 4)).requires_grad


def test_the_tensors_of_arguments_are_found_in_lists_too():
    first, second, third = (tensor() for _ in range(3))
    found = dispatch.tensors_of([first, None, [second, third], 1.0, [2, 3], "native", True, [Step.ONE], Step.ONE])
    assert [id(x) for x in found] == [id(x) for x in (first, second, third)]


@pytest.mark.parametrize("watched", [contextlib.nullcontext, Seen])
def test_a_second_gradient_where_an_argument_is_absent(watched):
    x, weight = torch.rand(1, 2, 4, 4, dtype=torch.float64), torch.rand(1, 2, 1, 3, 3, dtype=torch.float64)
    with watched():
        assert torch.autograd.gradgradcheck(
            lambda x, weight: dynamic_conv2d(x, weight, groups=2), (x.requires_grad_(), weight.requires_grad_())
        )
        assert torch.autograd.gradgradcheck(attend, tensor().double().requires_grad_())


def test_numbers_of_a_type_of_their_own_are_taken():
    x, weight = torch.rand(1, 2, 4, 4), torch.rand(1, 2, 1, 3, 3, requires_grad=True)
    out = dynamic_conv2d(x, weight, dilation=[Step.ONE, 2], groups=2, stride=Step.ONE)
    expected = dynamic_conv2d(x, weight, dilation=[1, 2], groups=2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(*(torch.autograd.grad(result.square().sum(), weight)[0] for result in (out, expected)))


@pytest.mark.parametrize(
    "argument",
    [torch._neg_view(tensor()), tensor().as_subclass(Subclass), tensor().to("meta")],
    ids=["negated", "subclass", "meta"],
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


def convolve(x, weight, bias):
    return dynamic_conv2d(x, weight, bias, dilation=[1, 2], groups=2)


def attend_with_all(query, key, radius, gate):
    return cross_scale_attention(query, key, key, radius=radius, max_radius=1.5, gate=gate, return_lse=True)


def attend_in_a_pyramid(fine, coarse, radius):
    grids = [fine, coarse]
    return pyramid_attention(grids, grids, grids, radius=[[radius, 1.0], [0.5, 2.0]], max_radius=[[2.0] * 2] * 2)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (convolve, [(2, 4, 5, 5), (2, 4, 2, 3, 3), (4,)]),
        (attend_with_all, [(1, 4, 4, 2, 8), (1, 2, 2, 2, 8), (1, 4, 4, 2), (1, 4, 4, 1)]),
        (attend_in_a_pyramid, [(1, 4, 4, 2, 8), (1, 2, 2, 2, 8), (1, 4, 4, 2)]),
    ],
)
@pytest.mark.parametrize("wanting", [slice(None), slice(1), slice(1, None)], ids=["all", "first", "rest"])
def test_both_ways_give_the_same_gradients_of_both_orders(function, shapes, wanting):
    tensors = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    for tensor in tensors[wanting]:
        tensor.requires_grad_()

    def gradients():
        leaves = tensors[wanting]
        # Of two results the first alone is used, so that the other's gradient does not exist.
        results = function(*tensors)
        first = results if isinstance(results, torch.Tensor) else results[0]
        found = torch.autograd.grad(first.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in found), leaves)
        return *found, *second

    straight = gradients()
    with Seen() as mode:
        dispatched = gradients()
    assert any("backward" in name for name in mode.names)
    for own, other in zip(straight, dispatched, strict=True):
        assert torch.equal(own, other)


def test_the_gradient_is_made_of_what_saved_tensors_are_unpacked_to():
    x, weight = torch.rand(1, 2, 5, 5, requires_grad=True), torch.rand(1, 2, 1, 3, 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved * 2):
        out = dynamic_conv2d(x, weight, groups=2)
        (doubled,) = torch.autograd.grad(out.sum(), x)
    (expected,) = torch.autograd.grad(dynamic_conv2d(x, weight, groups=2).sum(), x)
    assert torch.equal(doubled, 2 * expected)


def test_the_graph_names_the_operator_and_has_nothing_of_the_dispatcher():
    x, query = torch.rand(1, 2, 5, 5, requires_grad=True), tensor().requires_grad_()
    pyramid = attend_in_a_pyramid(query, tensor(), 1.0)[0]
    found = [out.grad_fn.name() for out in (convolve(x, torch.rand(1, 2, 1, 3, 3), None), attend(query), pyramid)]
    assert found == ["dynamic_conv2dBackward", "cross_scale_attentionBackward", "pyramid_attentionBackward"]


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_result_can_be_changed_in_place(backend, kernel):
    x, weight = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(1, 2, 1, kernel, kernel)
    dynamic_conv2d(x, weight, groups=2, backend=backend).relu_().sum().backward()
    (expected,) = torch.autograd.grad(dynamic_conv2d(x, weight, groups=2).relu().sum(), x)
    torch.testing.assert_close(x.grad, expected)
