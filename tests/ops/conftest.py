from __future__ import annotations

import pytest
import torch

from hamlet.ops import use_backend
from hamlet.ops.native.library import module as native

BACKENDS = ["reference", *(f"native {name}" for name in (native.instruction_sets() if native else ()))]


@pytest.fixture(scope="module", params=BACKENDS)
def every_backend(request):
    """Run the module's tests on each backend that takes CPU tensors, the native one in each instruction set.

    Its value is the backend's name.
    """
    name, _, instruction_set = request.param.partition(" ")
    before = native.instruction_set() if native else None
    if instruction_set:
        native.use_instruction_set(instruction_set)
    with use_backend(name):
        yield name
    if instruction_set:
        native.use_instruction_set(before)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill what ``new_empty``, ``empty`` and ``empty_like`` return with NaN, so that an element nobody wrote shows."""

    def poison(function):
        def filled(*args, **kwargs):
            tensor = function(*args, **kwargs)
            real = type(tensor) is torch.Tensor and tensor.device.type != "meta" and tensor.is_floating_point()
            if real and not torch.compiler.is_compiling():
                with torch.no_grad():
                    tensor.fill_(torch.nan)
            return tensor

        return filled

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
