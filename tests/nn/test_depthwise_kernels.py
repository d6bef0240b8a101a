"""Depthwise convolutions on a GPU: compiled there, and by Triton's interpreter on any machine."""

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asr.nn import depthwise
from asr.nn.depthwise import DepthwiseConv

pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for CUDA")

# B utterances, T frames, C channels, K kernel size
SHAPES = [(2, 20, 6, 3), (2, 9, 70, 31), (2, 80, 4, 31), (1, 5, 3, 1), (1, 70, 5, 33), (0, 4, 3, 3), (2, 0, 3, 3)]
# A wrong tap would be off by far more than what sums in float32, or rounded to 11 or 8 bits in the end, are off by.
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
CASES = [*((shape, torch.float32) for shape in SHAPES), (SHAPES[1], torch.float16), (SHAPES[1], torch.bfloat16)]


def example(shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Frames (B, T, C), kernels (C, 1, K), biases (C,) and a gradient of the output (B, T, C), none of them ordered."""
    batch, num_frames, channels, kernel_size = shape
    random = torch.Generator().manual_seed(sum(shape))
    sizes = [(batch, num_frames, channels), (channels, 1, kernel_size), (channels,), (batch, num_frames, channels)]
    return [torch.randn(size, generator=random).to(dtype) for size in sizes]


def plain(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    """The output and the three gradients in float64 from rounded inputs."""
    inputs = [each.double().requires_grad_() for each in (x, weight, bias)]
    if x.numel() == 0:
        return [x.double()] + [torch.zeros_like(each) for each in inputs]
    padding = weight.shape[2] // 2
    y = F.conv1d(inputs[0].transpose(1, 2), *inputs[1:], padding=padding, groups=len(weight)).transpose(1, 2)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad.double())]


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        largest = float(other.abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(one.cpu().double(), other, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * largest)


def check_against_pytorch(kernels: ModuleType, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    x, weight, bias, grad = example(shape, dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own = [each.to(device) for each in (x, weight, bias, grad)]
    found = [kernels.convolve(*own[:3]), *kernels.gradients(own[3], own[0], own[1])]
    assert_close(found, plain(x, weight, bias, grad), dtype)
    assert all(each.is_contiguous() for each in found)


def check_many_programs(kernels: ModuleType) -> None:
    """Sums of several blocks each, and frames that are every second one of others."""
    kernels._PROGRAMS = 4
    x, weight, bias, grad = example((2, 40, 5, 31), torch.float32)
    apart = torch.stack([x, grad], dim=-1)
    found = [kernels.convolve(apart[..., 0], weight, bias), *kernels.gradients(apart[..., 1], apart[..., 0], weight)]
    assert_close(found, plain(x, weight, bias, grad), torch.float32)


def check_within_autograd(kernels: ModuleType) -> None:
    depthwise._kernels_for = lambda x, weight: kernels
    x, weight, bias, grad = example((2, 9, 5, 3), torch.float32)
    inputs = [each.requires_grad_() for each in (x, weight, bias)]
    y = depthwise._opaque_convolve(*inputs)
    found = [y.detach(), *torch.autograd.grad(y, inputs, grad)]
    assert_close(found, plain(*(each.detach() for each in inputs), grad), torch.float32)


def test_the_interpreter_gives_what_pytorch_gives():
    # In a process of its own: Triton asks for its interpreter when it is imported.
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["compared", str(len(CASES))]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("shape", "dtype"), [*CASES, *(((32, 470, 400, 31), dtype) for dtype in ROUNDING)])
def test_a_gpu_gives_what_a_processor_gives(shape: tuple[int, int, int, int], dtype: torch.dtype):
    from asr.nn import depthwise_kernels

    check_against_pytorch(depthwise_kernels, shape, dtype)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("autocast", [True, False])
def test_a_compiled_module_computes_what_a_plain_one_does_on_a_gpu(autocast: bool):
    torch.manual_seed(0)
    conv = DepthwiseConv(70, kernel_size=31).cuda()
    compiled = torch.compile(conv, backend="aot_eager", dynamic=True, fullgraph=True)
    dtype = torch.bfloat16 if autocast else torch.float32
    for batch, length in [(3, 20), (2, 133)]:
        x = torch.randn(batch, length, 70)
        found = []
        for run in (conv, compiled):
            conv.zero_grad()
            own = x.cuda().requires_grad_()
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                y = run(own)
            y.backward(torch.ones_like(y))
            assert y.dtype == dtype
            found.append([y.detach(), own.grad, conv.weight.grad, conv.bias.grad])
        torch.testing.assert_close(found[1], found[0])
        assert [each.dtype for each in found[0][1:]] == [torch.float32] * 3
        rounded = [each.detach().cpu().to(dtype) for each in (x, conv.weight, conv.bias)]
        expected = plain(*rounded, torch.ones_like(x))
        assert_close([each.to(dtype) for each in found[0]], expected, dtype)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_module_in_any_precision_recognises_on_a_gpu(dtype: torch.dtype):
    conv, (x, weight, bias, grad) = DepthwiseConv(6, kernel_size=3), example((2, 20, 6, 3), dtype)
    conv.load_state_dict({"weight": weight, "bias": bias})
    with torch.inference_mode():
        found = conv.to("cuda", dtype)(x.cuda())
    assert_close([found], plain(x, weight, bias, grad)[:1], dtype)


if __name__ == "__main__":
    from asr.nn import depthwise_kernels

    for case in CASES:
        check_against_pytorch(depthwise_kernels, *case)
    check_many_programs(depthwise_kernels)
    check_within_autograd(depthwise_kernels)
    print("compared", len(CASES))
