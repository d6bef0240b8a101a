"""Counts the arithmetic of an encoder's training step."""

# T feature frames, F mel bins

import math
from collections.abc import Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asr.nn.conformer import ConformerEncoder, EncoderConfig


def encoder_flops(config: EncoderConfig, *, num_mels: int, num_frames: int) -> int:
    """Floating-point operations of forward and backward for one utterance: two for each multiplication of a matrix
    product, a convolution or attention, however they are computed; nothing else is counted.

    Args:
        config: Sizes.
        num_mels: Mel bins F.
        num_frames: Feature frames T.
    """
    with torch.device("meta"):  # shapes without numbers: nothing is computed
        encoder = ConformerEncoder(config, num_mels=num_mels).train()
        features, lengths = torch.empty(1, num_frames, num_mels), torch.empty(1, dtype=torch.int64)
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    # Fused attention is not counted on every device; its plain form is two matrix products.
    with counter, sdpa_kernel(SDPBackend.MATH):
        encoder(features, lengths).frames.sum().backward()
    return counter.get_total_flops()


def _convolution_backward(
    gradient: Sequence[int],
    inputs: Sequence[int],
    weight: Sequence[int],
    _bias: Sequence[int] | None,
    _stride: Sequence[int],
    _padding: Sequence[int],
    _dilation: Sequence[int],
    _transposed: bool,
    _output_padding: Sequence[int],
    _groups: int,
    wanted: Sequence[bool],
    out_shape: object = None,
) -> int:
    """As many operations as forward for the gradient of the input, and as many for that of the weight.

    PyTorch's own formula counts a depthwise convolution's weight gradient as if every channel saw all others.
    """
    forward = 2 * math.prod(gradient) * math.prod(weight[1:])
    return forward * (wanted[0] + wanted[1])
