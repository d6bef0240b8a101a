"""The E-Branchformer block (Kim et al. 2022, arXiv 2210.00077): attention beside a convolutional gating MLP."""

# B utterances, T' encoder frames, D width, M inner width of the gating MLP, K kernel size

from typing import cast

import torch
from torch import Tensor, nn

from asr.nn.attention import RelativeAttention
from asr.nn.depthwise import DepthwiseConv
from asr.nn.dropout import Dropout
from asr.nn.feedforward import FeedForward
from asr.nn.linear import Linear


class GatingMLP(nn.Module):
    """The convolutional gating MLP (Peng et al. 2022, arXiv 2207.02971): what is near decides what passes.

    With the halves U and V of the expanded and activated frames, both (B, T', M/2), what is projected back is
    U ⊙ conv(norm(V)). Kernels begin near zero and their biases at one, so that training starts from open gates
    (Liu et al. 2021, arXiv 2105.08050).

    Args:
        width: Width D of the frames.
        inner_width: Width M of the expansion, even.
        kernel_size: Frames that a gate sees, odd.
        dropout: Probability of dropping an activation in training, in [0, 1).
    """

    def __init__(self, width: int, *, inner_width: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = Linear(width, inner_width)
        self.activation = nn.GELU()
        self.gate_norm = nn.LayerNorm(inner_width // 2)
        self.gate = DepthwiseConv(inner_width // 2, kernel_size=kernel_size)
        self.gate_dropout = Dropout(dropout)
        self.project = Linear(inner_width // 2, width)
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.gate.weight, std=1e-6)
        nn.init.ones_(cast(Tensor, self.gate.bias))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Maps (B, T', D) to (B, T', D); `valid` is (B, T', 1), False on padding."""
        x, gate = self.activation(self.expand(self.norm(x))).chunk(2, dim=-1)  # (B, T', M/2) each
        gate = self.gate_norm(gate)
        gate = self.gate(gate * valid.to(gate.dtype))
        return self.dropout(self.project(self.gate_dropout(x * gate, marker=gate)))


class Merge(nn.Module):
    """One sequence of two: concatenation, a depthwise convolution added to it, projection (Kim et al. 2022).

    Args:
        width: Width D of both and of the result.
        kernel_size: Frames that the convolution sees, odd.
        dropout: Probability of dropping an activation in training, in [0, 1).
    """

    def __init__(self, width: int, *, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(2 * width, kernel_size=kernel_size)
        self.project = Linear(2 * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, far: Tensor, near: Tensor, valid: Tensor) -> Tensor:
        """Maps two of (B, T', D) to one of (B, T', D); `valid` is (B, T', 1), False on padding."""
        x = torch.cat([far, near], dim=-1)  # (B, T', 2D)
        x = x * valid.to(x.dtype)
        return self.dropout(self.project(x + self.depthwise(x)))


class EBranchformerBlock(nn.Module):
    """Half a feed-forward, attention beside gating, merge, half a feed-forward, norm (Kim et al. 2022).

    Args:
        width: Width D of the frames; a multiple of `num_heads`.
        num_heads: Attention heads.
        feedforward_width: Inner width of the two feed-forward modules.
        cgmlp_width: Inner width of the convolutional gating MLP, even.
        kernel_size: Frames that a gate sees, odd.
        merge_kernel_size: Frames that the convolution of the merged branches sees, odd.
        dropout: Probability of dropping an activation in training, in [0, 1).
        attention_dropout: Probability of dropping an attention weight in training, in [0, 1).
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        feedforward_width: int,
        cgmlp_width: int,
        kernel_size: int,
        merge_kernel_size: int,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.feedforward_in = FeedForward(width, inner_width=feedforward_width, dropout=dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = RelativeAttention(width, num_heads=num_heads, dropout=attention_dropout)
        self.attention_dropout = Dropout(dropout)
        self.gating = GatingMLP(width, inner_width=cgmlp_width, kernel_size=kernel_size, dropout=dropout)
        self.merge = Merge(width, kernel_size=merge_kernel_size, dropout=dropout)
        self.feedforward_out = FeedForward(width, inner_width=feedforward_width, dropout=dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, valid: Tensor, code: Tensor | None = None) -> Tensor:
        """Maps (B, T', D) to (B, T', D).

        Args:
            x: (B, T', D).
            valid: Booleans (B, T', 1), False on padding.
            code: Of the positions, as `RelativeAttention.code` gives it, for all blocks; by default computed here.
        """
        x = torch.add(x, self.feedforward_in(x), alpha=0.5)
        keys = valid[:, None, None, :, 0]  # (B, 1, 1, T')
        far = self.attention_dropout(self.attention(self.attention_norm(x), mask=keys, code=code))
        x = x + self.merge(far, self.gating(x, valid), valid)
        x = torch.add(x, self.feedforward_out(x), alpha=0.5)
        return self.norm(x)
