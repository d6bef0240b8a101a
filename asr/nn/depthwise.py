"""Depthwise convolutions, each channel by itself, of frames that stay as they lie in memory: channel beside channel."""

# B utterances, T frames, F frequency bins, C channels, K kernel size

from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr.devices import gpu_kernels
from asr.nn.autocast import as_autocast


class DepthwiseConv(nn.Conv1d):
    """A depthwise convolution over time that keeps the number of frames.

    A convolution in one dimension would have every channel's frames side by side: two transposed copies, and a kernel
    that is several times slower on processors. In two dimensions, one of them of size one, the frames are already what
    PyTorch calls channels-last. On GPUs that layout goes to cuDNN, which plans for every new shape anew, longer than a
    step takes: there the convolution has one dimension, and in training kernels of our own, with Triton
    (`asr.nn.depthwise_kernels`).

    Args:
        channels: Number of channels C.
        kernel_size: Frames K that an output sees, odd.
    """

    def __init__(self, channels: int, *, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, C) to (B, T, C); beyond both ends it sees zeros."""
        bias = cast(Tensor, self.bias)
        # Without a gradient, PyTorch's own kernel is fast, and nothing need be compiled before the first transcript.
        trains = x.is_cuda and torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if not trains and not torch.compiler.is_compiling():
            return _convolve(x, self.weight, bias)
        return _opaque_convolve(as_autocast(x), as_autocast(self.weight), as_autocast(bias))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Frames (B, T, C), kernels (C, 1, K) and biases (C,) to frames (B, T, C)."""
    padding, channels = weight.shape[2] // 2, len(weight)
    if x.is_cuda:
        return F.conv1d(x.transpose(1, 2).contiguous(), weight, bias, padding=padding, groups=channels).transpose(1, 2)
    planes = x.transpose(1, 2).unsqueeze(-1)  # (B, C, T, 1)
    planes = F.conv2d(planes, weight.unsqueeze(-1), bias, padding=(padding, 0), groups=channels)
    return planes.squeeze(-1).transpose(1, 2)  # (B, T, C)


# The compiler would make code anew for every number of frames that a convolution gets. As operations of their own,
# which it does not look into, forward and backward leave it at one for all. On GPUs all training goes through them.


@torch.library.custom_op("asr::depthwise_conv", mutates_args=())
def _opaque_convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if kernels := _kernels_for(x, weight):
        return cast(Tensor, kernels.convolve(x, weight, bias))
    return _convolve(x, weight, bias).contiguous()


@_opaque_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("asr::depthwise_conv_backward", mutates_args=())
def _opaque_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if kernels := _kernels_for(x, weight):
        return cast(tuple[Tensor, Tensor, Tensor], kernels.gradients(grad, x, weight))
    padding, channels = weight.shape[2] // 2, len(weight)
    if x.is_cuda:
        planes = [each.transpose(1, 2).contiguous() for each in (grad, x)] + [weight]
        shape = [[1], [padding], [1], False, [0]]
    else:
        planes = [each.transpose(1, 2).unsqueeze(-1) for each in (grad, x)] + [weight.unsqueeze(-1)]
        shape = [[1, 1], [padding, 0], [1, 1], False, [0, 0]]
    frames, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        *planes, [channels], *shape, channels, [True] * 3
    )  # (B, C, T) or (B, C, T, 1), and likewise the weight
    frames = frames.squeeze(-1) if frames.ndim == 4 else frames
    return frames.transpose(1, 2).contiguous(), grad_weight.reshape(weight.shape), grad_bias


@_opaque_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight = (torch.empty_like(each, memory_format=torch.contiguous_format) for each in (x, weight))
    return grad_x, grad_weight, weight.new_empty(len(weight))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


_opaque_convolve.register_autograd(lambda ctx, grad: _opaque_backward(grad, *ctx.saved_tensors), setup_context=_keep)


def _kernels_for(x: Tensor, weight: Tensor) -> ModuleType | None:
    """The kernels for a GPU, where they are for such frames and weights."""
    if not x.is_cuda or not (kernels := gpu_kernels("asr.nn.depthwise_kernels")):
        return None
    return kernels if x.dtype in kernels.DTYPES and weight.shape[2] <= kernels.MAX_KERNEL_SIZE else None


class HalvingDepthwiseConv(nn.Conv2d):
    """A depthwise 3x3 convolution of stride 2 over time and frequency.

    Args:
        channels: Number of channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, stride=2, padding=1, groups=channels)
        # PyTorch's own start keeps a third of the power, and the pointwise convolution behind it a third of that:
        # little of the speech would be left beside the biases.
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        nn.init.zeros_(cast(Tensor, self.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, F, C) to (B, ceil(T / 2), ceil(F / 2), C)."""
        planes = x.permute(0, 3, 1, 2)  # (B, C, T, F)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            planes = _HalvingInBfloat16.apply(planes, self.weight, self.bias)
        else:
            planes = F.conv2d(planes, self.weight, self.bias, stride=2, padding=1, groups=self.groups)
        return planes.permute(0, 2, 3, 1)


class _HalvingInBfloat16(torch.autograd.Function):
    """The convolution in bfloat16, whose input gets its gradient in float32.

    On processors, PyTorch's own gradient of the input in bfloat16 takes several times as long as that in float32.
    """

    @staticmethod
    def forward(ctx: Any, planes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(planes, weight)
        weight, bias = weight.to(planes.dtype), bias.to(planes.dtype)
        return F.conv2d(planes, weight, bias, stride=2, padding=1, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of planes, weight and bias."""
        planes, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)

        def gradients(inputs: Tensor, *, of_planes: bool) -> tuple[Tensor, Tensor, Tensor]:
            kernel = weight.to(inputs.dtype).contiguous(memory_format=torch.channels_last)
            return torch.ops.aten.convolution_backward(
                *(grad.to(inputs.dtype), inputs, kernel, [len(weight)], [2, 2], [1, 1], [1, 1], False, [0, 0]),
                *(len(weight), [of_planes, not of_planes, not of_planes]),
            )

        # For its own gradient, only the shape of the input matters: memory that is never written or read costs nothing.
        shape_alone = torch.empty_like(planes, dtype=torch.float32, memory_format=torch.channels_last)
        grad_planes, _, _ = gradients(shape_alone, of_planes=True)
        _, grad_weight, grad_bias = gradients(planes, of_planes=False)
        return grad_planes.to(planes.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
