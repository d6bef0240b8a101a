"""The encoder: subsampling and a stack of blocks, those of the Conformer (Gulati et al. 2020) or others."""

# B utterances, T feature frames, T' encoder frames, F mel bins, D width

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from asr.nn.attention import RelativeAttention
from asr.nn.blocks import runner
from asr.nn.depthwise import DepthwiseConv
from asr.nn.dropout import Dropout
from asr.nn.ebranchformer import EBranchformerBlock
from asr.nn.feedforward import FeedForward
from asr.nn.linear import Linear
from asr.nn.masks import valid_mask
from asr.nn.subsampling import FACTORS, SUBSAMPLING_KINDS, ConvSubsampling

BLOCKS = ("conformer", "ebranchformer")


@dataclass(slots=True, kw_only=True)
class EncoderConfig:
    """Kind and sizes of an encoder.

    Attributes:
        block: `conformer`, or `ebranchformer` (Kim et al. 2022), whose attention and convolution work side by side.
        num_layers: Number of blocks.
        width: Width D of the frames; a multiple of `num_heads`.
        num_heads: Attention heads.
        feedforward_width: Inner width of the two feed-forward modules.
        kernel_size: Frames that the depthwise convolution sees, odd.
        cgmlp_width: Inner width of the convolutional gating MLP of an E-Branchformer block, even; 0 for a Conformer.
        merge_kernel_size: Frames that the convolution of its merged branches sees, odd; 0 for a Conformer.
        subsampling_kind: `conv`, or `separable` (Rekesh et al. 2023) for less work with as many channels.
        subsampling: Feature frames to one encoder frame, 4 or 8.
        subsampling_channels: Channels of the subsampling convolutions.
        dropout: Probability of dropping an activation in training, in [0, 1).
        attention_dropout: Probability of dropping an attention weight in training, in [0, 1).
        intermediate_layers: Blocks, counted from 1, whose output also gets a CTC loss (Lee & Watanabe 2021).
    """

    block: str = "conformer"
    num_layers: int = 8
    width: int = 144
    num_heads: int = 4
    feedforward_width: int = 576
    kernel_size: int = 15
    cgmlp_width: int = 0
    merge_kernel_size: int = 0
    subsampling_kind: str = "conv"
    subsampling: int = 4
    subsampling_channels: int = 64
    dropout: float = 0.1
    attention_dropout: float = 0.0
    intermediate_layers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, known in (("block", BLOCKS), ("subsampling_kind", SUBSAMPLING_KINDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"encoder.{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        for name in ("num_layers", "width", "num_heads", "feedforward_width", "subsampling_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"encoder.{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(f"encoder.width {self.width} is not a multiple of encoder.num_heads {self.num_heads}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"encoder.kernel_size is {self.kernel_size}; it must be odd, so that frames stay in place")
        if self.subsampling not in FACTORS:
            raise ValueError(f"encoder.subsampling is {self.subsampling}; choose one of {FACTORS}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"encoder.{name} is {getattr(self, name)}; it must be in [0, 1)")
        outside = [n for n in self.intermediate_layers if not 1 <= n < self.num_layers]
        if outside:
            raise ValueError(f"encoder.intermediate_layers has {outside}; choose from 1 to {self.num_layers - 1}")
        self._check_branches()

    def _check_branches(self) -> None:
        if self.block == "conformer":
            for name in ("cgmlp_width", "merge_kernel_size"):
                if getattr(self, name):
                    raise ValueError(
                        f"encoder.{name} is {getattr(self, name)}, which encoder.block=conformer has no use for; "
                        "set it to 0, or encoder.block=ebranchformer"
                    )
            return
        if self.cgmlp_width < 2 or self.cgmlp_width % 2:
            raise ValueError(
                f"encoder.cgmlp_width is {self.cgmlp_width}; encoder.block=ebranchformer splits it in two halves: "
                f"it must be even and at least 2, such as 6 times the width, {6 * self.width}"
            )
        if self.merge_kernel_size < 1 or self.merge_kernel_size % 2 == 0:
            raise ValueError(
                f"encoder.merge_kernel_size is {self.merge_kernel_size}; it must be odd, so that frames stay in place, "
                f"such as encoder.kernel_size, {self.kernel_size}"
            )


@dataclass(slots=True)
class EncoderOutput:
    """What the encoder returns.

    Attributes:
        frames: (B, T', D), zero beyond a length.
        lengths: Integers, (B,).
        intermediate: Outputs of the chosen blocks, normalised like `frames`, each (B, T', D).
    """

    frames: Tensor
    lengths: Tensor
    intermediate: list[Tensor]


class ConvModule(nn.Module):
    """Gated pointwise convolution, depthwise convolution, norm, SiLU, pointwise (Gulati et al. 2020, section 2.1.2).

    The norm is over channels, not over the batch and time as in the paper: a frame's output then depends neither on
    the padding nor on the other utterances of the batch.
    """

    def __init__(self, width: int, *, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = Linear(width, 2 * width)
        self.gate = nn.GLU()
        self.depthwise = DepthwiseConv(width, kernel_size=kernel_size)
        self.depthwise_norm = nn.LayerNorm(width)
        self.activation = nn.SiLU()
        self.project = Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Maps (B, T', D) to (B, T', D); `valid` is (B, T', 1), False on padding."""
        x = self.gate(self.expand(self.norm(x)))
        x = self.depthwise(x * valid.to(x.dtype))  # a product with booleans is slow on processors
        return self.dropout(self.project(self.activation(self.depthwise_norm(x))))


class ConformerBlock(nn.Module):
    """One block: half a feed-forward, attention, convolution, half a feed-forward, norm (Gulati et al. 2020, eq. 1)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        self.feedforward_in = FeedForward(width, inner_width=config.feedforward_width, dropout=dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = RelativeAttention(width, num_heads=config.num_heads, dropout=config.attention_dropout)
        self.attention_dropout = Dropout(dropout)
        self.conv = ConvModule(width, kernel_size=config.kernel_size, dropout=dropout)
        self.feedforward_out = FeedForward(width, inner_width=config.feedforward_width, dropout=dropout)
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
        x = x + self.attention_dropout(self.attention(self.attention_norm(x), mask=keys, code=code))
        x = x + self.conv(x, valid)
        x = torch.add(x, self.feedforward_out(x), alpha=0.5)
        return self.norm(x)


Block = ConformerBlock | EBranchformerBlock


def _build_block(config: EncoderConfig) -> Block:
    if config.block == "conformer":
        return ConformerBlock(config)
    return EBranchformerBlock(
        config.width,
        num_heads=config.num_heads,
        feedforward_width=config.feedforward_width,
        cgmlp_width=config.cgmlp_width,
        kernel_size=config.kernel_size,
        merge_kernel_size=config.merge_kernel_size,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
    )


class ConformerEncoder(nn.Module):
    """Subsampling and a stack of blocks, of the Conformer or of another kind.

    Args:
        config: Kind and sizes.
        num_mels: Number of mel bins F of the features.

    Attributes:
        checkpoint_activations: Whether training keeps activations only from block to block.
    """

    def __init__(self, config: EncoderConfig, *, num_mels: int) -> None:
        super().__init__()
        self.intermediate_layers = frozenset(config.intermediate_layers)
        self.width = config.width
        self.subsampling = ConvSubsampling(
            num_mels,
            config.width,
            factor=config.subsampling,
            channels=config.subsampling_channels,
            kind=config.subsampling_kind,
        )
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(_build_block(config) for _ in range(config.num_layers))
        self.checkpoint_activations = False

    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return cast(list[Block], list(self.blocks))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Encoder frames for these numbers of feature frames, both integers (B,)."""
        return self.subsampling.output_lengths(lengths)

    def forward(self, features: Tensor, lengths: Tensor) -> EncoderOutput:
        """Encodes features (B, T, F) with lengths (B,); what lies beyond a length has no effect."""
        x, lengths = self.subsampling(features, lengths)
        x = self.dropout(x)
        valid = valid_mask(lengths, x.shape[1])[:, :, None]  # (B, T', 1)
        code = self.layers()[0].attention.code(x)  # once for all blocks
        intermediate = []
        for number, block in enumerate(self.layers(), start=1):
            x = runner(block, recompute=self.checkpoint_activations)(x, valid, code)
            if number in self.intermediate_layers:
                intermediate.append(x)
        return EncoderOutput(frames=x * valid, lengths=lengths, intermediate=intermediate)
