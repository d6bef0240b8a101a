"""The first convolution of the subsampling in training on a GPU, with what is around it, forward and backward.

Its input has one channel, which suits no kernel of cuDNN: several passes over the largest tensor of a model only change
its layout, and SiLU and the mask are passes of their own. Here the nine numbers that an output sees, and a one for the
bias, are one row of a small product, and everything else happens before the result leaves the registers. The backward
pass computes the convolution anew, so nothing but the output is kept. All sums are in float32 and in a fixed order.
Needs Triton, which comes with PyTorch for CUDA on Linux.
"""

# B utterances, T feature frames, F mel bins, C channels

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Of a program, at most, by the type: larger tiles of float32 do not fit into the shared memory of small GPUs.
CHANNELS = {torch.float32: 64, torch.bfloat16: 256, torch.float16: 256}

_ROWS = tl.constexpr(16)  # nine weights, the bias, and zeros: the least that tensor cores take
_POSITIONS = 32  # of the output, of one tile
_PROGRAMS = 1056  # about as many sum gradients: eight for every multiprocessor of a large GPU


@torch.library.custom_op("asr::first_convolution", mutates_args=())
def convolve(features: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of a 3x3 convolution of stride 2 and padding 1, zeros beyond the ends.

    Args:
        features: (B, T, F); what lies beyond a length counts as zeros.
        lengths: Integers, (B,); one beyond T counts as T.
        weight: (C, 1, 3, 3), in the type of the result.
        bias: (C,), likewise.

    Returns:
        (B, ceil(T / 2), ceil(F / 2), C), zero from ceil(length / 2) on.
    """
    features, lengths = features.contiguous(), lengths.contiguous()
    y = _output(features, weight)
    num_positions, sizes, columns = _sizes(features, y)
    if num_positions:
        grid = triton.cdiv(num_positions, _POSITIONS), triton.cdiv(len(weight), columns)
        with torch.cuda.device_of(features):  # Triton launches on PyTorch's present device
            _forward_kernel[grid](
                features, lengths, _rows(weight, bias), y, num_positions, **sizes, block=_POSITIONS, columns=columns
            )
    return y


@convolve.register_fake
def _(features: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _output(features, weight)


@torch.library.custom_op("asr::first_convolution_backward", mutates_args=())
def _gradients(grad: Tensor, features: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias."""
    features, lengths, grad = features.contiguous(), lengths.contiguous(), grad.to(weight.dtype).contiguous()
    num_positions, sizes, columns = _sizes(features, grad)
    num_blocks, channel_blocks = triton.cdiv(num_positions, _POSITIONS), triton.cdiv(len(weight), columns)
    blocks_each = max(1, triton.cdiv(num_blocks, max(1, _PROGRAMS // channel_blocks)))
    parts = grad.new_empty(triton.cdiv(num_blocks, blocks_each), _ROWS.value, len(weight), dtype=torch.float32)
    if num_positions:
        with torch.cuda.device_of(features):
            _gradient_kernel[(len(parts), channel_blocks)](
                grad, features, lengths, _rows(weight, bias), parts, num_positions, blocks_each, **sizes,
                block=_POSITIONS, columns=columns,
            )  # fmt: skip
    sums = parts.sum(dim=0).to(weight.dtype)
    return sums[:9].t().contiguous().view(weight.shape), sums[9].clone()


@_gradients.register_fake
def _(grad: Tensor, features: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return None, None, *_gradients(grad, *ctx.saved_tensors)


convolve.register_autograd(_backward, setup_context=_keep)


def _output(features: Tensor, weight: Tensor) -> Tensor:
    batch, num_frames, num_bins = features.shape
    return weight.new_empty(batch, (num_frames + 1) // 2, (num_bins + 1) // 2, len(weight))


def _rows(weight: Tensor, bias: Tensor) -> Tensor:
    """Weights and bias as the rows (16, C) that a row of numbers seen is multiplied by."""
    rows = weight.new_zeros(_ROWS.value, len(weight))
    rows[:9] = weight.flatten(1).t()
    rows[9] = bias
    return rows


def _sizes(features: Tensor, y: Tensor) -> tuple[int, dict[str, int], int]:
    """Positions of the output in all; what both kernels are told; and the channels of a program."""
    _, num_frames, num_bins = features.shape
    sizes = {
        "num_frames": num_frames, "out_frames": y.shape[1], "num_bins": num_bins, "out_bins": y.shape[2],
        "num_channels": y.shape[3],
    }  # fmt: skip
    return y.shape[:3].numel(), sizes, min(CHANNELS[y.dtype], max(16, triton.next_power_of_2(y.shape[3])))


@triton.jit
def _seen(  # type: ignore[no-untyped-def]
    features, lengths, position, num_positions, num_frames, out_frames, num_bins: tl.constexpr, out_bins: tl.constexpr
):
    """What the outputs at some positions (N,) see: nine numbers, a one, and zeros (N, 16); which of them are valid."""
    exists = position < num_positions
    frame, place = position // out_bins, position % out_bins
    utterance, frame = frame // out_frames, frame % out_frames
    length = tl.minimum(tl.load(lengths + utterance, mask=exists, other=0), num_frames)
    number = tl.arange(0, _ROWS)[None, :]
    row, column = 2 * frame[:, None] - 1 + number // 3, 2 * place[:, None] - 1 + number % 3
    inside = (number < 9) & (row >= 0) & (row < length[:, None]) & (column >= 0) & (column < num_bins)
    first = features + utterance[:, None].to(tl.int64) * num_frames * num_bins
    x = tl.load(first + (row * num_bins + column), mask=inside, other=0.0).to(tl.float32)
    return tl.where(number == 9, 1.0, x), exists & (2 * frame < length)


# Sizes change from batch to batch; Triton would compile anew for those that are multiples of 16.
_CHANGING = ["num_positions", "num_frames", "out_frames", "blocks_each"]


@triton.jit(do_not_specialize=_CHANGING)
def _forward_kernel(  # type: ignore[no-untyped-def]
    features, lengths, rows, y, num_positions, num_frames, out_frames, num_bins: tl.constexpr, out_bins: tl.constexpr,
    num_channels: tl.constexpr, block: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Some channels of a tile of positions."""
    position = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.program_id(1) * columns + tl.arange(0, columns)[None, :]
    weights = tl.load(
        rows + tl.arange(0, _ROWS)[:, None] * num_channels + channel, mask=channel < num_channels, other=0.0
    )
    seen, valid = _seen(features, lengths, position, num_positions, num_frames, out_frames, num_bins, out_bins)
    z = tl.dot(seen.to(weights.dtype), weights, input_precision="ieee")
    z = tl.where(valid[:, None], z * tl.sigmoid(z), 0.0)
    exists = (position < num_positions)[:, None] & (channel < num_channels)
    tl.store(y + position[:, None].to(tl.int64) * num_channels + channel, z.to(y.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=_CHANGING)
def _gradient_kernel(  # type: ignore[no-untyped-def]
    grad, features, lengths, rows, parts, num_positions, blocks_each, num_frames, out_frames,
    num_bins: tl.constexpr, out_bins: tl.constexpr, num_channels: tl.constexpr, block: tl.constexpr,
    columns: tl.constexpr,
):  # fmt: skip
    """Sums over some tiles of positions for some channels: the gradients of weights and biases."""
    channel = tl.program_id(1) * columns + tl.arange(0, columns)[None, :]
    number = tl.arange(0, _ROWS)[:, None]
    weights = tl.load(rows + number * num_channels + channel, mask=channel < num_channels, other=0.0)
    sums = tl.zeros([_ROWS, columns], tl.float32)
    for number_of_tile in range(blocks_each):  # beyond the last, no position exists
        position = (tl.program_id(0) * blocks_each + number_of_tile) * block + tl.arange(0, block)
        seen, valid = _seen(features, lengths, position, num_positions, num_frames, out_frames, num_bins, out_bins)
        z = tl.dot(seen.to(weights.dtype), weights, input_precision="ieee")
        wanted = valid[:, None] & (channel < num_channels)
        of_y = tl.load(grad + position[:, None].to(tl.int64) * num_channels + channel, mask=wanted, other=0.0)
        share = tl.sigmoid(z)
        of_z = of_y.to(tl.float32) * share * (1 + z * (1 - share))
        sums += tl.dot(tl.trans(seen).to(weights.dtype), of_z.to(weights.dtype), input_precision="ieee")
    out = parts + tl.program_id(0).to(tl.int64) * _ROWS * num_channels
    tl.store(out + number * num_channels + channel, sums, mask=channel < num_channels)
