from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from hamlet.ops import available_backends, backends, cross_scale_attention, dynamic_conv2d, explain, use_backend

INPUT, WEIGHT = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 1, 3, 3)


def call(**arguments):
    return dynamic_conv2d(INPUT, WEIGHT, groups=2, **arguments)


@pytest.fixture
def picky(monkeypatch):
    """A "native" backend of the convolution that serves kernels of 3 x 3 alone and answers with 42."""

    def reasons(input, weight, *rest):
        return [] if weight.shape[3:] == (3, 3) else [f"kernel {tuple(weight.shape[3:])} is not (3, 3)"]

    backend = backends.Backend("native", lambda input, *rest: torch.full_like(input, 42), lambda *_: (), reasons)
    monkeypatch.setitem(
        backends._backends, "dynamic_conv2d", {**backends._backends["dynamic_conv2d"], "native": backend}
    )


def test_explain_gives_the_reasons_of_every_backend():
    found = explain(dynamic_conv2d, INPUT, WEIGHT, groups=2)
    assert list(found) == ["cuda", "triton", "native", "reference"]
    assert found["reference"] == found["native"] == []
    assert found["cuda"][-1] == "it runs on a GPU, the tensors are on cpu"
    assert found["triton"][-1] == "it runs on a GPU (on the CPU with TRITON_INTERPRET=1), the tensors are on cpu"
    assert available_backends("dynamic_conv2d", INPUT, WEIGHT, groups=2) == ["native", "reference"]


def test_explain_refuses_what_is_no_operator_and_bad_arguments():
    with pytest.raises(ValueError, match="op: got 'conv2d', expected one of 'cross_scale_attention'"):
        explain("conv2d", INPUT)
    with pytest.raises(ValueError, match="groups: got 3"):
        explain(dynamic_conv2d, INPUT, WEIGHT, groups=3)


def test_the_choice_the_error_and_the_explanation_read_one_predicate(picky):
    assert call().unique().item() == 42
    wide = torch.ones(1, 2, 1, 5, 5)
    assert explain(dynamic_conv2d, INPUT, wide, groups=2)["native"] == ["kernel (5, 5) is not (3, 3)"]
    assert dynamic_conv2d(INPUT, wide, groups=2)[0, 0, 1, 1] == 16
    with pytest.raises(
        ValueError, match=r"backend: got 'native', which cannot serve dynamic_conv2d: native: kernel \(5, 5\)"
    ):
        dynamic_conv2d(INPUT, wide, groups=2, backend="native")


def test_the_ways_to_ask_and_their_order(picky, monkeypatch):
    assert call(backend="reference")[0, 0, 1, 1] == 9
    with use_backend("reference"):
        assert call()[0, 0, 1, 1] == 9
        with use_backend("native"):
            assert call().unique().item() == 42
        assert call()[0, 0, 1, 1] == 9
        assert call(backend="native").unique().item() == 42
    monkeypatch.setenv("HAMLET_BACKEND", "reference")
    assert call()[0, 0, 1, 1] == 9
    with use_backend("native"):
        assert call().unique().item() == 42


def test_a_named_backend_is_never_replaced(monkeypatch):
    with use_backend("triton"), pytest.raises(ValueError, match="'triton', which cannot serve dynamic_conv2d"):
        call()
    monkeypatch.setenv("HAMLET_BACKEND", "cuda")
    with pytest.raises(ValueError, match="'cuda', which cannot serve"):
        call()
    monkeypatch.setenv("HAMLET_BACKEND", "fast")
    with pytest.raises(ValueError, match="HAMLET_BACKEND: got 'fast', expected one of"):
        call()
    with pytest.raises(ValueError, match="name: got 'fast'"), use_backend("fast"):
        pass


def test_the_backward_runs_on_the_backend_of_its_forward(monkeypatch):
    served = []
    reference = backends._backends["cross_scale_attention"]["reference"]

    def backward(*arguments):
        served.append("native")
        return reference.backward(*arguments)

    native = backends.Backend("native", reference.forward, backward, lambda *_: [])
    monkeypatch.setitem(backends._backends, "cross_scale_attention", {"reference": reference, "native": native})
    query = torch.randn(1, 3, 3, 1, 2, requires_grad=True)
    with use_backend("native"):
        out = cross_scale_attention(query, query, query, radius=1.0, max_radius=1.0)
    with use_backend("reference"):
        out.sum().backward()
    assert served == ["native"]


def test_use_backend_holds_for_its_thread_alone(picky):
    seen = {}
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.update(other=call().unique().item()))
        thread.start()
        thread.join()
        assert call()[0, 0, 1, 1] == 9
    assert seen == {"other": 42}


@pytest.mark.parametrize(("on_gpu", "taken", "named"), [(True, "triton", "cuda"), (False, "native", "triton")])
def test_a_call_takes_the_backend_of_its_device_or_the_reference(monkeypatch, on_gpu, taken, named):
    def able(name, why):
        return backends.Backend(name, lambda *_: None, lambda *_: None, lambda *_: why)

    monkeypatch.setattr(backends, "_on_gpu", lambda arguments: on_gpu)
    monkeypatch.setitem(backends._backends, "dynamic_conv2d", {name: able(name, []) for name in backends.NAMES})
    assert backends.choose("dynamic_conv2d", None, [INPUT]).name == taken
    monkeypatch.setitem(backends._backends["dynamic_conv2d"], taken, able(taken, ["it is ill"]))
    assert backends.choose("dynamic_conv2d", None, [INPUT]).name == "reference"
    assert backends.choose("dynamic_conv2d", named, [INPUT]).name == named


def test_the_reference_on_a_gpu_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(backends, "_on_gpu", lambda arguments: True)
    for name in ("cuda", "triton", "native"):
        monkeypatch.delitem(backends._backends["dynamic_conv2d"], name)
    backends._warn_of_reference.cache_clear()
    with caplog.at_level("WARNING", logger="hamlet.ops"):
        call()
        call()
        call(backend="reference")
    assert [record.getMessage() for record in caplog.records] == [
        "dynamic_conv2d runs on the slow reference backend on this GPU (cuda: this version has no cuda kernel for "
        "dynamic_conv2d; triton: this version has no triton kernel for dynamic_conv2d; native: this version has no "
        "native kernel for dynamic_conv2d)"
    ]
    backends._warn_of_reference.cache_clear()


IMPORT = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import hamlet.ops
end = time.perf_counter()
import sys
heavy = {"timm", "faiss", "PIL", "skimage", "accelerate", "matplotlib", "typer", "hamlet.nn", "hamlet.models"}
print((end - middle) / (middle - start), *sorted(heavy & set(sys.modules)))
"""


def test_import_is_light():
    runs = [
        subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True) for _ in range(3)
    ]
    outputs = [run.stdout.split() for run in runs]
    assert all(len(output) == 1 for output in outputs), outputs
    # Beside torch's own import, of 1.5 s or more: seconds alone say more of the machine and of what else it does.
    assert min(float(output[0]) for output in outputs) < 0.2


MEMORY = """
import pathlib, re
import torch
from hamlet.ops import cross_scale_attention

def resident(peak):  # of this process alone: getrusage would begin with the peak of its parent
    return int(re.search(rf"Vm{'HWM' if peak else 'RSS'}:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

query = torch.randn(8, 56, 56, 8, 32, requires_grad=True)
key = torch.randn(8, 28, 28, 8, 32, requires_grad=True)
radius = torch.rand(8, 56, 56, 8, requires_grad=True)
before = resident(peak=False)
cross_scale_attention(query, key, key, radius=radius, max_radius=3.0).sum().backward()
print((resident(peak=True) - before) / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory of a process from /proc")
def test_reference_attention_is_lean():
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    # In GiB, forward and backward together; the output and the gradients alone are 0.06. One dense matrix of these
    # logits would be 0.6, and a dense backward holds several.
    assert 0.06 < float(run.stdout) < 0.3
