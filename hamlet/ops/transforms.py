"""Calling a registered operator, straight to its kernel where nothing looks on, and under torch.func's transforms.

vmap, and grad, vjp and jacrev, work alone or nested. An autograd formula registered with ``torch.library`` is refused
inside a functorch transform, which wants an ``autograd.Function`` that it can take apart: :func:`call` gives it one,
made of the same formulas. Where a gradient is all that is asked for, it calls another, which takes a fraction of the
dispatcher's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamlet.ops import dispatch
from hamlet.ops.nested import flatten, join, map_tensors, split


class Formulas(NamedTuple):
    """What a registered operator's call runs, how it saves for its backward, and the backward.

    A result that does not exist is None here; of the registered operator itself, which must return a tensor, it is one.
    """

    run: Callable[..., Any]
    save: Callable[..., None]
    differentiate: Callable[..., tuple[Any, ...]]


_formulas: dict[Any, Formulas] = {}
_differentiable: dict[Any, Callable[..., Any]] = {}


def register(op: Any, formulas: Formulas) -> None:
    _formulas[op] = formulas
    lists = lists_of_tensors(op)
    # A class of its own, so that a graph and the profiler show the operator's name.
    function: Any = type(op._opname, (_OfLists if lists else _OfTensors,), {})
    _differentiable[op] = partial(_apply, function, op) if lists else partial(function.apply, formulas)


def lists_of_tensors(op: Any) -> list[int]:
    """The positions of the arguments that are lists of tensors."""
    types = [str(argument.type) for argument in op._schema.arguments]
    return [position for position, name in enumerate(types) if name.startswith("List") and "Tensor" in name]


def call(op: Any, *arguments: Any) -> Any:
    """``op(*arguments)``, which also works inside torch.func's transforms, and may return None for an absent result."""
    if torch.compiler.is_compiling():
        return op(*arguments)
    tensors = dispatch.tensors_of(arguments)
    if dispatch.needed(tensors):
        return _apply(_Transformable, op, *arguments) if torch._C._are_functorch_transforms_active() else op(*arguments)
    if dispatch.differentiated(tensors):
        return _differentiable[op](*arguments)
    return _formulas[op].run(*arguments)


def _apply(function: type[torch.autograd.Function], op: Any, *arguments: Any) -> Any:
    layout, tensors = split(arguments)
    plan = _Plan(op, layout)
    results = function.apply(plan, *tensors)
    return join(plan.result_layout, results)


class _Plan:
    """What a call is besides its tensors."""

    def __init__(self, op: Any, layout: Any) -> None:
        self.op = op
        self.layout = layout
        self.result_layout: Any = None


class _OfTensors(torch.autograd.Function):
    # With a setup_context of its own, as a transform wants it, apply() would bind a signature in every call.
    @staticmethod
    def forward(ctx: Any, formulas: Formulas, *arguments: Any) -> Any:
        output = formulas.run(*arguments)
        ctx.formulas = formulas
        formulas.save(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        return (None, *ctx.formulas.differentiate(ctx, *gradients))


class _OfLists(torch.autograd.Function):
    """The same for lists of tensors, which autograd takes no gradient of: it is given the tensors in them."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        arguments = join(plan.layout, tensors)
        formulas = _formulas[plan.op]
        output = formulas.run(*arguments)
        plan.result_layout, results = split(output)
        ctx.plan = plan
        formulas.save(ctx, arguments, output)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        plan = ctx.plan
        results = join(plan.result_layout, gradients)
        found = _formulas[plan.op].differentiate(ctx, *(results if isinstance(results, tuple) else (results,)))
        return (None, *flatten(found, plan.layout))


class _Transformable(torch.autograd.Function):
    @staticmethod
    def forward(plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        plan.result_layout, results = split(plan.op(*join(plan.layout, tensors)))
        return tuple(results)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        plan, *tensors = inputs
        ctx.plan = plan
        _formulas[plan.op].save(ctx, join(plan.layout, tensors), join(plan.result_layout, output))

    backward = _OfLists.backward

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], plan: _Plan, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size = info.batch_size
        folded = [_fold(tensor, dim, size) for tensor, dim in zip(tensors, in_dims[1:], strict=True)]
        plan.result_layout, results = split(call(plan.op, *join(plan.layout, folded)))
        return tuple(_unfold(result, size) for result in results), (0,) * len(results)


def vmap_rule(op: Any) -> Callable[..., Any]:
    """The rule that ``torch.library.register_vmap`` takes, for calls of the registered operator itself."""

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        layout, tensors = split(arguments)
        folded = [
            _fold(tensor, dim, info.batch_size) for tensor, dim in zip(tensors, flatten(in_dims, layout), strict=True)
        ]
        results = map_tensors(lambda tensor: _unfold(tensor, info.batch_size), op(*join(layout, folded)))
        return results, map_tensors(lambda tensor: 0, results)

    return rule


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension into the batch, which every tensor of an operator has first."""
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)


def _unfold(tensor: Tensor, size: int) -> Tensor:
    return tensor.unflatten(0, (size, tensor.shape[0] // size))


def vector_jacobian(function: Callable[..., Any], arguments: Sequence[Any], gradients: Sequence[Any]) -> list[Any]:
    """Gradients of a differentiable ``function``'s arguments, None (or a list of it) where an argument has none."""
    layout, tensors = split(list(arguments))
    floating = [tensor.is_floating_point() for tensor in tensors]
    result_layout: list[Any] = []

    def of_floating(*leaves: Tensor) -> tuple[Tensor, ...]:
        given = iter(leaves)
        filled = [next(given) if is_leaf else tensor for tensor, is_leaf in zip(tensors, floating, strict=True)]
        found_layout, results = split(function(*join(layout, filled)))
        result_layout.append(found_layout)
        return tuple(results)

    leaves = [tensor for tensor, is_leaf in zip(tensors, floating, strict=True) if is_leaf]
    outputs, pull_back, *_ = torch.func.vjp(of_floating, *leaves)
    incoming = flatten(tuple(gradients), result_layout[0])
    filled = [torch.zeros_like(out) if grad is None else grad for out, grad in zip(outputs, incoming, strict=True)]
    found = iter(pull_back(tuple(filled)))
    by_tensor = [next(found) if is_leaf else None for is_leaf in floating]
    gradients_of_arguments = join(layout, by_tensor)
    return [
        gradient if flatten(gradient, place) or place == [] else None
        for gradient, place in zip(gradients_of_arguments, layout, strict=True)
    ]
