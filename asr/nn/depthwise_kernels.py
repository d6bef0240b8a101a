"""Depthwise convolutions over time on a GPU, of frames that stay channel beside channel, and their gradients.

PyTorch's own kernels want every channel's frames side by side, two transposed copies, and take several times as long
for the gradient of the weights. Here a thread keeps the weights of its channels and a run of outputs in registers and
loads every frame around the run once. All sums are in float32 and in a fixed order. Needs Triton, which comes with
PyTorch for CUDA on Linux.
"""

# B utterances, T frames, C channels, K kernel size

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_KERNEL_SIZE = 63  # beyond it, registers run out

_CHANNELS = 64  # of a program: two of every thread of a warp, loaded at once
_RUN = 16  # successive frames of a thread
_RUNS = 4  # of a program, one for each of its warps: neighbours see the same frames
_TAPS = 16  # at most, of a program that sums gradients of weights
_PROGRAMS = 1536  # about as many sum gradients of weights: a dozen for every multiprocessor of a large GPU


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Frames (B, T, C), kernels (C, 1, K), K odd, and biases (C,) to frames (B, T, C) of the same type."""
    return _convolve(x.contiguous(), _taps_first(weight), bias.contiguous())


def gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of frames, kernels and biases, each in its own type, from that of the output (B, T, C)."""
    grad, x = grad.contiguous(), x.contiguous()
    kernel_size = weight.shape[2]
    sums = _sums(grad, x, kernel_size)
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    grad_weight[:, 0] = sums[:kernel_size].t()
    return _convolve(grad, _taps_first(weight), None).to(x.dtype), grad_weight, sums[kernel_size].to(weight.dtype)


def _taps_first(weight: Tensor) -> Tensor:
    return weight[:, 0].t().contiguous()  # (K, C)


def _convolve(x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """Without a bias, the kernels are flipped: the gradient of the input."""
    batch, num_frames, channels = x.shape
    y = torch.empty_like(x)
    if x.numel() > 0:
        grid = batch * triton.cdiv(num_frames, _RUNS * _RUN), triton.cdiv(channels, _CHANNELS)
        with torch.cuda.device_of(x):  # Triton launches on PyTorch's present device
            _convolution_kernel[grid](
                x, taps, bias, y, num_frames, num_channels=channels, kernel_size=len(taps), flipped=bias is None,
                runs=_RUNS, run=_RUN, block=_CHANNELS, num_warps=_RUNS,
            )  # fmt: skip
    return y


def _sums(grad: Tensor, x: Tensor, kernel_size: int) -> Tensor:
    """The gradients of kernels and, last, of biases, (K + 1, C) in float32."""
    batch, num_frames, channels = x.shape
    if x.numel() == 0:
        return x.new_zeros(kernel_size + 1, channels, dtype=torch.float32)
    num_blocks = batch * triton.cdiv(num_frames, _RUN)
    channel_blocks, groups = triton.cdiv(channels, _CHANNELS), triton.cdiv(kernel_size, _TAPS)
    blocks_each = triton.cdiv(num_blocks, max(1, _PROGRAMS // (channel_blocks * groups)))
    num_parts = triton.cdiv(num_blocks, blocks_each)
    parts = x.new_empty(num_parts, kernel_size + 1, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _weights_kernel[(num_parts, channel_blocks, groups)](
            grad, x, parts, num_frames, num_blocks, blocks_each, num_channels=channels, kernel_size=kernel_size,
            taps=triton.cdiv(kernel_size, groups), run=_RUN, block=_CHANNELS, num_warps=1,
        )  # fmt: skip
    return parts.sum(dim=0)


# Sizes change from batch to batch; Triton would compile anew for those that are multiples of 16.
_SIZES = ["num_frames", "num_blocks", "blocks_each"]


@triton.jit(do_not_specialize=_SIZES)
def _convolution_kernel(  # type: ignore[no-untyped-def]
    x, taps, bias, y, num_frames, num_channels: tl.constexpr, kernel_size: tl.constexpr, flipped: tl.constexpr,
    runs: tl.constexpr, run: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Some channels of `runs` runs of frames of one utterance; every tensor is (runs, block)."""
    blocks = tl.cdiv(num_frames, runs * run)
    utterance = tl.program_id(0) // blocks
    channel = tl.program_id(1) * block + tl.arange(0, block)[None, :] + tl.zeros([runs, 1], tl.int32)
    first = (tl.program_id(0) % blocks) * (runs * run) + tl.arange(0, runs)[:, None] * run
    exists = channel < num_channels

    weights = ()  # type: tuple[Tensor, ...]
    for k in tl.static_range(kernel_size):
        tap = kernel_size - 1 - k if flipped else k
        weight = tl.load(taps + (tap * num_channels + channel), mask=exists, other=0.0)
        weights += (weight.to(tl.float32),)
    sums = ()  # type: tuple[Tensor, ...]
    for _ in tl.static_range(run):
        if flipped:
            start = tl.zeros([runs, block], tl.float32)
        else:
            start = tl.load(bias + channel, mask=exists, other=0.0).to(tl.float32)
        sums += (start,)

    offset = (utterance.to(tl.int64) * num_frames + first) * num_channels + channel
    x += offset - kernel_size // 2 * num_channels
    y += offset
    for i in tl.static_range(run + kernel_size - 1):
        frame = first + (i - kernel_size // 2)
        inside = (frame.to(tl.uint32) < num_frames.to(tl.uint32)) & exists  # frames before the first are large numbers
        seen = tl.load(x, mask=inside, other=0.0).to(tl.float32)
        x += num_channels
        added = ()  # type: tuple[Tensor, ...]
        for j in tl.static_range(run):
            if i - j >= 0 and i - j < kernel_size:
                added += (sums[j] + seen * weights[i - j],)
            else:
                added += (sums[j],)
        sums = added
    for j in tl.static_range(run):
        inside = (first + j < num_frames) & exists
        tl.store(y, sums[j].to(y.dtype.element_ty), mask=inside)
        y += num_channels


@triton.jit(do_not_specialize=_SIZES)
def _weights_kernel(  # type: ignore[no-untyped-def]
    grad, x, parts, num_frames, num_blocks, blocks_each, num_channels: tl.constexpr, kernel_size: tl.constexpr,
    taps: tl.constexpr, run: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Sums over some runs of frames for some channels: the gradients of `taps` weights each, and of the biases."""
    part, first_tap = tl.program_id(0), tl.program_id(2) * taps
    channel = tl.program_id(1) * block + tl.arange(0, block)
    exists = channel < num_channels
    blocks = tl.cdiv(num_frames, run)

    of_bias = tl.zeros([block], tl.float32)
    sums = ()  # type: tuple[Tensor, ...]
    for _ in tl.static_range(taps):
        sums += (tl.zeros([block], tl.float32),)
    at = part * blocks_each
    end = tl.minimum(at + blocks_each, num_blocks)
    while at < end:
        first = (at % blocks) * run
        offset = ((at // blocks).to(tl.int64) * num_frames + first) * num_channels + channel
        own = grad + offset
        grads = ()  # type: tuple[Tensor, ...]
        for j in tl.static_range(run):
            inside = (first + j < num_frames) & exists
            each = tl.load(own, mask=inside, other=0.0).to(tl.float32)
            own += num_channels
            grads += (each,)
            of_bias += each
        around = x + offset + (first_tap - kernel_size // 2) * num_channels
        for i in tl.static_range(run + taps - 1):
            frame = first + first_tap - kernel_size // 2 + i
            inside = (frame.to(tl.uint32) < num_frames.to(tl.uint32)) & exists
            seen = tl.load(around, mask=inside, other=0.0).to(tl.float32)
            around += num_channels
            added = ()  # type: tuple[Tensor, ...]
            for k in tl.static_range(taps):
                if i - k >= 0 and i - k < run:
                    added += (sums[k] + seen * grads[i - k],)
                else:
                    added += (sums[k],)
            sums = added
        at += 1

    parts += part.to(tl.int64) * (kernel_size + 1) * num_channels + channel
    for k in tl.static_range(taps):
        tl.store(parts + (first_tap + k) * num_channels, sums[k], mask=exists & (first_tap + k < kernel_size))
    tl.store(parts + kernel_size * num_channels, of_bias, mask=exists & (first_tap == 0))
