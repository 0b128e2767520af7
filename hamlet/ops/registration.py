"""Every operator's registration with PyTorch: schema, kernel, fake, autograd, autocast and vmap.

An operator is two registered ones, the forward and its backward, so that ``torch.compile`` captures both and a backend
serves both. The backward is differentiable through the reference, which gives double backward.

Three conventions keep this file free of any one operator's details: every tensor argument and result has the batch
first; the backward takes the gradients of the results, then all arguments of the forward, then what was kept of the
results; a gradient that does not exist (of an argument that was None) is None, for which the registered operator, which
must return a tensor, returns one of shape (batch, 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hamlet.ops import backends, transforms
from hamlet.ops.dispatch import tensors_of
from hamlet.ops.nested import join, map_tensors, split
from hamlet.ops.transforms import Formulas

library = torch.library.Library("hamlet", "DEF")


class Operator:
    """One operator: its schema and the few things about it that PyTorch cannot derive.

    Args:
        name: registered as ``hamlet::name`` and ``hamlet::name_backward``.
        arguments: schema of the forward's arguments, less the backend.
        results: schema of the forward's results.
        incoming: schema of the backward's leading arguments, the gradients of the results.
        kept: schema of the results that the backward takes last ("" for none).
        outgoing: schema of the backward's results, one for each of ``differentiable``.
        differentiable: positions of the arguments that have a gradient.
    """

    def __init__(
        self,
        name: str,
        *,
        arguments: str,
        results: str,
        incoming: str,
        kept: str,
        outgoing: str,
        differentiable: Sequence[int],
    ) -> None:
        self.name = name
        self.differentiable = tuple(differentiable)
        self.argument_count = arguments.count(",") + 1
        self.incoming_count = incoming.count(",") + 1
        backward_arguments = ", ".join(filter(None, (incoming, arguments, kept)))
        for suffix, taken, given in (("", arguments, results), ("_backward", backward_arguments, outgoing)):
            library.define(f"{name}{suffix}({taken}, str? backend) -> {given}", tags=(torch.Tag.pt2_compliant_tag,))
        self.forward = getattr(torch.ops.hamlet, name).default
        self.backward = getattr(torch.ops.hamlet, f"{name}_backward").default
        self.lists = transforms.lists_of_tensors(self.forward)
        self.backward_lists = transforms.lists_of_tensors(self.backward)

    def forward_arguments(self, backward_arguments: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(backward_arguments[self.incoming_count : self.incoming_count + self.argument_count])


def implement(
    operator: Operator,
    reference: backends.Backend,
    *,
    check_values: Callable[..., None],
    fake: Callable[..., Any],
    fake_gradient: Callable[[Tensor], Tensor],
    kept: Callable[[Any], tuple[Any, ...]],
    incoming: Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]],
) -> None:
    """Give ``operator`` everything that PyTorch asks of it.

    Args:
        reference: the backend through which the backward is differentiated; registered here.
        check_values: takes the forward's arguments; raises on what only the tensors' contents show.
        fake: takes the forward's arguments; returns results of the right shape, dtype and strides, without data.
        fake_gradient: the same for the gradient of one argument.
        kept: the results that the backward needs.
        incoming: (gradients of the results, None where unused; arguments) -> the backward's leading arguments.
    """
    backends.register(operator.name, reference)
    _implement_forward(operator, check_values, fake, kept, incoming)
    _implement_backward(operator, reference, fake_gradient, kept)
    for device in ("cpu", "cuda"):
        library.impl(operator.forward, _autocast(operator.forward, device), f"Autocast{device.upper()}")


def _implement_forward(
    operator: Operator,
    check_values: Callable[..., None],
    fake: Callable[..., Any],
    kept: Callable[[Any], tuple[Any, ...]],
    incoming: Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]],
) -> None:
    def run(*arguments: Any) -> Any:
        *own, backend = arguments
        check_values(*own)
        return backends.choose(operator.name, backend, own).forward(*own)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, (*inputs[:-1], *kept(output), inputs[-1]))

    def differentiate(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        saved = join(ctx.layout, ctx.saved_tensors)
        inputs = saved[: operator.argument_count]
        outgoing = _no_gradients(inputs, operator.lists)
        if not tensors_of(gradients):
            return (*outgoing, None)
        found = transforms.call(operator.backward, *incoming(gradients, inputs), *saved)
        for position, gradient in zip(operator.differentiable, found, strict=True):
            outgoing[position] = None if inputs[position] is None else gradient
        return (*outgoing, None)

    _register(operator.forward, run, fake, Formulas(run, save, differentiate))


def _implement_backward(
    operator: Operator,
    reference: backends.Backend,
    fake_gradient: Callable[[Tensor], Tensor],
    kept: Callable[[Any], tuple[Any, ...]],
) -> None:
    def run(*arguments: Any) -> Any:
        *own, backend = arguments
        inputs = operator.forward_arguments(own)
        return backends.choose(operator.name, backend, inputs).backward(*own)

    def registered(*arguments: Any) -> Any:
        inputs = operator.forward_arguments(arguments)
        return tuple(_absent(inputs) if gradient is None else gradient for gradient in run(*arguments))

    def fake(*arguments: Any) -> Any:
        inputs = operator.forward_arguments(arguments)
        like = [inputs[position] for position in operator.differentiable]
        return tuple(_absent(inputs) if value is None else map_tensors(fake_gradient, value) for value in like)

    def recomputed(*arguments: Any) -> Any:
        """The backward as a function of the forward's arguments alone, what it keeps included."""
        inputs = operator.forward_arguments(arguments)
        return reference.backward(*arguments[: operator.incoming_count], *inputs, *kept(reference.forward(*inputs)))

    def differentiate(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        *arguments, _ = join(ctx.layout, ctx.saved_tensors)
        if not tensors_of(gradients):
            return (*_no_gradients(arguments, operator.backward_lists), None)
        return (*transforms.vector_jacobian(recomputed, arguments, gradients), None)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs)

    _register(operator.backward, registered, fake, Formulas(run, save, differentiate))


def _register(op: Any, run: Callable[..., Any], fake: Callable[..., Any], formulas: Formulas) -> None:
    library.impl(op, run, "CompositeExplicitAutograd")
    torch.library.register_fake(op, lambda *arguments: fake(*arguments[:-1]), lib=library)
    torch.library.register_autograd(op, formulas.differentiate, setup_context=formulas.save, lib=library)
    torch.library.register_vmap(op, transforms.vmap_rule(op), lib=library)
    transforms.register(op, formulas)


def _absent(arguments: Sequence[Any]) -> Tensor:
    first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
    return first.new_empty((first.shape[0], 0))


def _no_gradients(arguments: Sequence[Any], lists: Sequence[int]) -> list[Any]:
    """What autograd wants where nothing has a gradient: None, and a list of None for a list of tensors."""
    outgoing: list[Any] = [None] * len(arguments)
    for position in lists:
        outgoing[position] = [None] * len(arguments[position])
    return outgoing


def _save(ctx: Any, arguments: Sequence[Any]) -> None:
    """Keep ``arguments`` for the backward: tensors where autograd can see them, the rest as they are."""
    ctx.set_materialize_grads(False)
    ctx.layout, tensors = split(arguments)
    ctx.save_for_backward(*tensors)


CAST_ARGUMENTS = 3
"""Autocast casts an operator's leading arguments, as it does a matrix product's; what steers it keeps its precision."""


def _autocast(op: Any, device: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)

        def cast(tensor: Tensor) -> Tensor:
            eligible = tensor.is_floating_point() and tensor.dtype != torch.float64 and tensor.device.type == device
            return tensor.to(dtype) if eligible else tensor

        with torch.autocast(device, enabled=False):
            return op(*map_tensors(cast, arguments[:CAST_ARGUMENTS]), *arguments[CAST_ARGUMENTS:])

    return run
