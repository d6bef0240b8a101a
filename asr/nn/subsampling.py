"""Convolutional subsampling: fewer, wider frames for the encoder."""

# B utterances, T feature frames, T' encoder frames, F mel bins, C channels, D width

import torch.nn.functional as F
from torch import Tensor, nn

from asr.nn.masks import halved, valid_mask

FACTORS = (4, 8)


class ConvSubsampling(nn.Module):
    """Two or three 3x3 convolutions of stride 2 over time and frequency, then a projection.

    The input of every convolution is masked, so a valid frame sees zeros beyond the end of its utterance whatever the
    batch holds there: exactly what it sees when the utterance stands alone.

    Args:
        num_mels: Number of mel bins F.
        width: Width D of the output.
        factor: Feature frames to one encoder frame, 4 or 8.
        channels: Number of channels C of the convolutions.
    """

    def __init__(self, num_mels: int, width: int, *, factor: int, channels: int) -> None:
        super().__init__()
        if factor not in FACTORS:
            raise ValueError(f"subsampling factor {factor} is not one of {FACTORS}")
        self.factor = factor
        num_layers = factor.bit_length() - 1
        inputs = [1] + [channels] * (num_layers - 1)
        self.convs = nn.ModuleList(nn.Conv2d(n, channels, kernel_size=3, stride=2, padding=1) for n in inputs)
        num_bins = num_mels
        for _ in range(num_layers):
            num_bins = (num_bins + 1) // 2
        self.project = nn.Linear(channels * num_bins, width)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Encoder frames for these numbers of feature frames, both integers (B,)."""
        for _ in self.convs:
            lengths = halved(lengths)
        return lengths

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns frames (B, T', D) and their lengths (B,) for features (B, T, F) and their lengths (B,)."""
        x = features[:, None]  # (B, 1, T, F)
        for conv in self.convs:
            # Filled, not multiplied: what lies beyond the end may be infinite or NaN.
            x = x.masked_fill(~valid_mask(lengths, x.shape[2])[:, None, :, None], 0.0)
            x = F.silu(conv(x))  # (B, C, T/2, F/2)
            lengths = halved(lengths)
        return self.project(x.transpose(1, 2).flatten(2)), lengths  # (B, T', D)
