"""Convolutional subsampling: fewer, wider frames for the encoder."""

# B utterances, T feature frames, T' encoder frames, F mel bins, C channels, D width

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from asr.devices import gpu_kernels
from asr.nn.autocast import as_autocast
from asr.nn.depthwise import HalvingDepthwiseConv
from asr.nn.linear import Linear, linear, product
from asr.nn.masks import halved, valid_mask

FACTORS = (4, 8)
SUBSAMPLING_KINDS = ("conv", "separable")

# From that many channels on, PyTorch's gradient of the weights is slow on processors in float32.
_WIDE = 96
_POSITIONS = 4096  # of the output, whose inputs are laid side by side at a time


class ConvSubsampling(nn.Module):
    """Two or three 3x3 convolutions of stride 2 over time and frequency, then a projection.

    The input of every convolution is masked, so a valid frame sees zeros beyond the end of its utterance whatever the
    batch holds there: exactly what it sees when the utterance stands alone.

    Args:
        num_mels: Number of mel bins F.
        width: Width D of the output.
        factor: Feature frames to one encoder frame, 4 or 8.
        channels: Number of channels C of the convolutions.
        kind: `conv` for plain convolutions; `separable` for depthwise and then pointwise ones after the first
            (Rekesh et al. 2023, arXiv 2305.05084), which are about a ninth of the work.
    """

    def __init__(self, num_mels: int, width: int, *, factor: int, channels: int, kind: str = "conv") -> None:
        super().__init__()
        if factor not in FACTORS:
            raise ValueError(f"subsampling factor {factor} is not one of {FACTORS}")
        if kind not in SUBSAMPLING_KINDS:
            raise ValueError(f"subsampling kind {kind!r} is not one of {', '.join(SUBSAMPLING_KINDS)}")
        self.factor = factor
        num_layers = factor.bit_length() - 1
        further = HalvingConv if kind == "conv" else SeparableHalvingConv
        self.convs = nn.ModuleList(
            [HalvingConv(1, channels), *(further(channels, channels) for _ in range(num_layers - 1))]
        )
        num_bins = num_mels
        for _ in range(num_layers):
            num_bins = (num_bins + 1) // 2
        self.project = Linear(channels * num_bins, width)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Encoder frames for these numbers of feature frames, both integers (B,)."""
        for _ in self.convs:
            lengths = halved(lengths)
        return lengths

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns frames (B, T', D) and their lengths (B,) for features (B, T, F) and their lengths (B,)."""
        x = self._first(features, lengths)  # (B, T/2, F/2, C)
        lengths = halved(lengths)
        for number, conv in enumerate(list(self.convs)[1:]):
            if number > 0:
                x = x * _frame_mask(lengths, x).to(x.dtype)
            x = F.silu(conv(x))
            lengths = halved(lengths)
        # The projection's weights have the channels first. They are smaller than the frames, so it is they that turn.
        weight = self.project.weight.unflatten(1, (x.shape[3], x.shape[2])).transpose(1, 2).flatten(1)
        return linear(x.flatten(2), weight, self.project.bias), lengths  # (B, T', D)

    def _first(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The first convolution and its activation, (B, T/2, F/2, C), zeros beyond the ends."""
        conv = cast(HalvingConv, self.convs[0])
        bias = cast(Tensor, conv.bias)
        trains = features.is_cuda and torch.is_grad_enabled() and (conv.weight.requires_grad or bias.requires_grad)
        if trains and not features.requires_grad and (kernels := gpu_kernels("asr.nn.subsampling_kernels")):
            weight, bias = as_autocast(conv.weight), as_autocast(bias)
            if weight.dtype in kernels.CHANNELS:
                return cast(Tensor, kernels.convolve(features, lengths, weight, bias))
        # Filled, not multiplied: what lies beyond the end may be infinite or NaN.
        x = features.masked_fill(~_frame_mask(lengths, features)[:, :, 0], 0.0)[..., None]  # (B, T, F, 1)
        x = F.silu(conv(x))
        return x * _frame_mask(halved(lengths), x).to(x.dtype)


class HalvingConv(nn.Conv2d):
    """A 3x3 convolution of stride 2 with the channels last, the layout that the kernels of all devices like best.

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels C' of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, F, C) to (B, ceil(T / 2), ceil(F / 2), C')."""
        planes = x.permute(0, 3, 1, 2)  # (B, C, T, F)
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        if x.device.type == "cpu" and x.dtype == torch.float32 and self.in_channels >= _WIDE:
            planes = _WideConvolution.apply(planes, weight, self.bias)
        else:
            planes = F.conv2d(planes, weight, self.bias, stride=2, padding=1)
        return planes.permute(0, 2, 3, 1)


class SeparableHalvingConv(nn.Module):
    """A depthwise 3x3 convolution of stride 2, then a pointwise one, a matrix product since the channels are last.

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels C' of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = HalvingDepthwiseConv(in_channels)
        self.pointwise = Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, F, C) to (B, ceil(T / 2), ceil(F / 2), C')."""
        return self.pointwise(self.depthwise(x))


def _frame_mask(lengths: Tensor, x: Tensor) -> Tensor:
    return valid_mask(lengths, x.shape[1])[:, :, None, None]  # (B, T, 1, 1)


class _WideConvolution(torch.autograd.Function):
    """The 3x3 convolution of stride 2 and padding 1, the gradient of its weights as a product of matrices."""

    @staticmethod
    def forward(ctx: Any, planes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(planes, weight)
        return F.conv2d(planes, weight, bias, stride=2, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of planes, weight and bias."""
        planes, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_planes, _, _ = torch.ops.aten.convolution_backward(
            *(grad, planes, weight, [len(weight)], [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
            [True, False, False],
        )
        grad = grad.permute(0, 2, 3, 1)
        return grad_planes, _weight_gradient(planes.permute(0, 2, 3, 1), grad), grad.sum(dim=(0, 1, 2))


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the weights (C', C, 3, 3) from input (B, T, F, C) and the output's gradient (B, T/2, F/2, C').

    What each output sees is laid side by side, a part of an utterance at a time, so that it stays in the cache.
    """
    (_, num_frames, num_bins, width), channels = grad.shape, x.shape[3]
    step = max(1, _POSITIONS // num_bins)
    total = grad.new_zeros(width, 9 * channels)
    for own, own_grad in zip(x, grad, strict=True):
        padded = F.pad(own, (0, 0, 1, 1, 1, 1))  # (T + 2, F + 2, C)
        row = padded.stride(0)
        for start in range(0, num_frames, step):
            part = own_grad[start : start + step]
            # Of three bins, one behind the other, the channels lie in one piece.
            seen = padded.as_strided(
                (len(part), num_bins, 3, 3 * channels), (2 * row, 2 * channels, row, 1), 2 * start * row
            )
            total += product(part.flatten(0, 1).t(), seen.contiguous().view(-1, 9 * channels).t())
    return total.view(width, 3, 3, channels).permute(0, 3, 1, 2)
