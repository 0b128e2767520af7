from __future__ import annotations

import pytest
import torch


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


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
