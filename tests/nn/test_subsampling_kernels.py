"""The subsampling's first convolution on a GPU: compiled there, and by Triton's interpreter on any machine."""

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asr.nn.subsampling import ConvSubsampling

pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for CUDA")

# B utterances, T feature frames, F mel bins, C channels
SHAPES = [(3, 21, 80, 24), (2, 40, 7, 200), (1, 1, 1, 16), (2, 6, 5, 3), (0, 4, 5, 16), (2, 0, 5, 16)]
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the whole, as a share of its norm


def example(shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Features (B, T, F) that are NaN beyond the lengths (B,), weight, bias, and a gradient of the output."""
    batch, num_frames, num_bins, channels = shape
    random = torch.Generator().manual_seed(sum(shape))
    features = torch.randn(batch, num_frames, num_bins, generator=random).to(dtype).float()
    lengths = torch.tensor([max(min(1, num_frames), num_frames - 3 * number) for number in range(batch)])
    if batch > 2:
        lengths[-1] = 0  # and one that says more than there is
        lengths[0] += 1
    for row, length in enumerate(lengths.tolist()):
        features[row, length:] = float("nan")
    sizes = [(channels, 1, 3, 3), (channels,), (batch, (num_frames + 1) // 2, (num_bins + 1) // 2, channels)]
    return [features, lengths.long(), *(torch.randn(size, generator=random).to(dtype) for size in sizes)]


def plain(features: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    """The output and the gradients of weight and bias, in float64 from rounded inputs."""
    inputs = [each.double().requires_grad_() for each in (weight, bias)]
    if features.numel() == 0:
        return [torch.zeros_like(grad, dtype=torch.float64), *(torch.zeros_like(each) for each in inputs)]
    inside = torch.arange(features.shape[1]) < lengths[:, None]
    planes = torch.where(inside[:, :, None], features, 0.0)[:, None].double()
    y = F.silu(F.conv2d(planes, *inputs, stride=2, padding=1)).permute(0, 2, 3, 1)
    y = y * (torch.arange(y.shape[1]) < (lengths.clamp_max(features.shape[1])[:, None] + 1) // 2)[:, :, None, None]
    return [y.detach(), *torch.autograd.grad(y, inputs, grad.double())]


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        assert float((one.cpu().double() - other).norm()) <= ROUNDING[dtype] * float(other.norm())


def check(kernels: ModuleType, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    tensors = example(shape, dtype)
    features, lengths, weight, bias, grad = (each.to(device) for each in tensors)
    y = kernels.convolve(features, lengths, weight.requires_grad_(), bias.requires_grad_())
    expected = plain(*tensors)
    assert_close([y.detach(), *torch.autograd.grad(y, [weight, bias], grad)], expected, dtype)
    assert (y[expected[0].to(device) == 0] == 0).all(), "exactly zero beyond the ends"


def check_many_programs(kernels: ModuleType) -> None:
    """Several tiles of a program, and several programs, for a gradient and features that are every second number."""
    kernels._PROGRAMS = 3
    features, lengths, weight, bias, grad = tensors = example((2, 40, 9, 20), torch.float32)
    apart, every_second = (torch.stack([each, each], dim=-1)[..., 0] for each in (features, lengths))
    y = kernels.convolve(apart, every_second, weight.requires_grad_(), bias.requires_grad_())
    found = [y.detach(), *torch.autograd.grad(y, [weight, bias], torch.stack([grad, grad], dim=-1)[..., 0])]
    assert_close(found, plain(*(each.detach() for each in tensors)), torch.float32)


def test_the_interpreter_gives_what_pytorch_gives() -> None:
    # In a process of its own: Triton asks for its interpreter when it is imported.
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["compared", str(len(SHAPES))]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("shape", [*SHAPES, (8, 700, 80, 256), (2, 100, 80, 512)])
def test_a_gpu_gives_what_a_processor_gives(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    from asr.nn import subsampling_kernels

    check(subsampling_kernels, shape, dtype, torch.device("cuda"))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_training_on_a_gpu_is_the_same_with_and_without_the_kernels(
    precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = ConvSubsampling(80, 32, factor=4, channels=48).to("cuda").train()
    features, lengths = torch.randn(3, 90, 80, device="cuda"), torch.tensor([90, 71, 4], device="cuda")
    found = []
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr("asr.nn.subsampling.gpu_kernels", lambda name: None)
        module.zero_grad()
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            frames, _ = module(features, lengths)
        frames.float().square().sum().backward()
        found.append([frames.float(), *(each.grad for each in module.parameters())])
    bound = 2e-2 if precision == torch.bfloat16 else 1e-3  # cuDNN may use TF32 in float32
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm()) <= bound * float(other.norm())


if __name__ == "__main__":
    from triton_interpreter import let_numbers_of_one_element_be_bounds_of_loops

    from asr.nn import subsampling_kernels

    let_numbers_of_one_element_be_bounds_of_loops()
    for each in SHAPES:
        check(subsampling_kernels, each, torch.float32, torch.device("cpu"))
    check(subsampling_kernels, SHAPES[0], torch.float16, torch.device("cpu"))
    check_many_programs(subsampling_kernels)
    torch.library.opcheck(subsampling_kernels.convolve, tuple(example(SHAPES[0], torch.float32)[:4]))
    print("compared", len(SHAPES))
