"""Which device is taken, and what it computes matrix products in."""

import pytest
import torch

from asr import devices
from asr.devices import gpu_kernels, pick_device, pick_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("has_instructions", [True, False])
def test_automatic_precision_on_a_processor_depends_on_its_instructions(monkeypatch, has_instructions):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    assert pick_dtype("auto", device=CPU) == (torch.bfloat16 if has_instructions else torch.float32)


@pytest.mark.parametrize("has_instructions", [True, False])
def test_automatic_precision_on_a_gpu_depends_on_its_instructions(monkeypatch, has_instructions):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_instructions)
    assert pick_dtype("auto", device=torch.device("cuda")) == (torch.bfloat16 if has_instructions else torch.float32)


def test_precision_is_as_asked_and_automatic_never_on_other_devices():
    assert pick_dtype("bfloat16", device=CPU) == torch.bfloat16
    assert pick_dtype("float32", device=torch.device("cuda")) == torch.float32
    assert pick_dtype("auto", device=torch.device("meta")) == torch.float32


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"^precision is 'int8'; choose one of auto, float32, bfloat16$"):
        pick_dtype("int8", device=CPU)


@pytest.mark.parametrize(
    ("name", "num_threads", "message"),
    [
        ("gpu", 0, "device is 'gpu'; choose auto, cpu, cuda or cuda:N"),
        ("meta", 0, "device is 'meta'; choose auto, cpu, cuda or cuda:N"),
        ("cuda:99", 0, r"device is 'cuda:99', but \d+ CUDA devices were found; use device=cpu"),
        ("cpu", -1, r"num_threads is -1; it must be 0 \(all\) or more"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name, num_threads, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        pick_device(name, num_threads=num_threads)


def test_attention_does_not_plan_for_every_shape():
    torch.backends.cuda.enable_cudnn_sdp(True)
    pick_device("cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("name", ["asr.ctc_kernels", "asr.lattice_free_kernels", "asr.nn.depthwise_kernels"])
def test_kernels_are_there_where_triton_is(name):
    pytest.importorskip("triton")
    assert gpu_kernels(name).__name__ == name


def test_without_triton_there_are_no_kernels_and_other_faults_show(monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert gpu_kernels.__wrapped__("asr.ctc_kernels") is None
    monkeypatch.setattr(devices, "find_spec", lambda name: object())
    with pytest.raises(ImportError):
        gpu_kernels.__wrapped__("asr.no_such_kernels")
