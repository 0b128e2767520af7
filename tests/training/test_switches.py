"""What a recipe switches on to spend less time or memory changes no result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from hamlet.training import build_model, load_recipe, train
from tests.training import tiny
from tests.training.runs import run


@pytest.mark.parametrize("switch", ["channels_last=true", "activation_checkpointing=true"])
def test_switches_of_speed_and_memory_give_the_same_weights(tmp_path: Path, switch: str) -> None:
    def go(out: Path, *settings: str) -> dict[str, torch.Tensor]:
        plain = (
            "steps=3",
            "batch_size=4",
            "image_size=64",
            "optimizer.warmup=1",
            # AdamW makes steps of one length of gradients that are nothing but rounding.
            "optimizer.name=sgd",
            "optimizer.lr=0.05",
            "data.workers=0",
            "data.samples_per_class=1",
        )
        recipe = load_recipe("folder", ["model.name=gem_resnet18", "model.descriptor_dim=8", *plain, *settings])
        train(build_model(recipe), recipe, tiny.Blobs(), out=out, progress=False)
        found: dict[str, torch.Tensor] = torch.load(out / "model.pt", weights_only=True)["state_dict"]
        return found

    layouts: list[bool] = []

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    with register_module_forward_hook(look):
        expected = go(tmp_path / "plain")
        plain, layouts[:] = list(layouts), []
        switched = go(tmp_path / "switched", switch)
    assert not any(plain)
    # Where activations are not kept, the backbone's stages run again in the backward, each but for its last layer.
    again = len(layouts) / len(plain)
    assert again == 1 if "channels_last" in switch else 1.5 < again < 2
    assert all(layouts) == ("channels_last" in switch)
    for name in expected:
        torch.testing.assert_close(switched[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_parts_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="activation_checkpointing: tiny has no part"):
        run(tmp_path, "activation_checkpointing=true")
    with pytest.raises(ValueError, match="accumulate: got 4, expected a divisor of a process's 6 samples"):
        run(tmp_path, "accumulate=4")


def test_compiled_model_takes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_eagerly(model: tiny.Tiny) -> None:
        compiled.append(model)
        torch.nn.Module.compile(model, backend="aot_eager")

    monkeypatch.setattr(tiny.Tiny, "compile", compile_eagerly)
    plain = ("steps=3", "stages=[{}]")
    for name, switch in (("compiled", "compile=true"), ("plain", "compile=false")):
        model = tiny.make(tiny.TinyConfig(dropout=0.0))
        train(model, tiny.recipe(*plain, switch), tiny.Blobs(), out=tmp_path / name, progress=False)
    assert len(compiled) == 1
    one, other = (
        torch.load(tmp_path / name / "model.pt", weights_only=True)["state_dict"] for name in ("compiled", "plain")
    )
    assert one.keys() == other.keys()
    for name in other:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5, msg=name)


def test_bfloat16_learns_too(tmp_path: Path) -> None:
    dtypes: set[torch.dtype] = set()

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.training:
            dtypes.add(output.dtype)

    with register_module_forward_hook(look):
        run(tmp_path / "few", "precision=bfloat16", "steps=2", "optimizer.warmup=1", "stages=[{}]")
    assert dtypes == {torch.bfloat16}
    history = run(tmp_path, "precision=bfloat16", "steps=60", "optimizer.lr=0.05", "stages=[{}]", "loss.margin=0.0")
    assert history[-1]["loss"] < history[0]["loss"] / 2
    model = torch.load(tmp_path / "model.pt", weights_only=True)["state_dict"]
    assert model["head.weight"].dtype == torch.float32
