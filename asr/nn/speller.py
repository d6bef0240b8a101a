"""The speller: an attention model that reads the phones that were heard, and writes the words they spell.

It learns from text, as what is heard can be made up for any text whose words have pronunciations (text injection, as
in JOIST, Sainath et al. 2022), so that a recogniser of a few hours writes like one that has read millions of words,
with no language model beside it in a search.
"""

# B utterances, R runs of frames, R' pairs of runs, P phones, U tokens, D width, V vocabulary

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr.nn.attention import position_code
from asr.nn.conformer import ConformerBlock, ConvModule, EncoderConfig
from asr.nn.decoder import DecoderConfig, TransformerDecoder
from asr.nn.linear import Linear
from asr.nn.lm import LanguageModel
from asr.nn.masks import valid_mask

_NEAR = 5  # runs that the first convolution sees


@dataclass(slots=True, kw_only=True)
class SpellerConfig:
    """Sizes of a speller.

    Attributes:
        width: Width D of all vectors, even.
        num_heads: Attention heads; must divide the width.
        num_reader_layers: Conformer blocks over what was heard.
        reader_feedforward_width: Inner width of their feed-forward modules.
        kernel_size: Pairs of runs that their convolutions see, odd.
        num_layers: Blocks of the decoder.
        feedforward_width: Inner width of its feed-forward modules.
        dropout: Probability of dropping an activation in training, in [0, 1).
    """

    width: int = 256
    num_heads: int = 4
    num_reader_layers: int = 2
    reader_feedforward_width: int = 512
    kernel_size: int = 15
    num_layers: int = 4
    feedforward_width: int = 1024
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("width", "num_heads", "num_reader_layers", "reader_feedforward_width", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"speller.{name} is {getattr(self, name)}; it must be at least 1")
        if self.feedforward_width < 1:
            raise ValueError(f"speller.feedforward_width is {self.feedforward_width}; it must be at least 1")
        if self.width % 2:
            raise ValueError(f"speller.width is {self.width}; it must be even, as sines and cosines come in pairs")
        if self.width % self.num_heads:
            raise ValueError(f"speller.width {self.width} is not a multiple of speller.num_heads {self.num_heads}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"speller.kernel_size is {self.kernel_size}; it must be odd, so that all stays in place")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"speller.dropout is {self.dropout}; it must be in [0, 1)")


class Speller(nn.Module):
    """Reads runs of phones (`asr.decoding.phone_runs`) in pairs, and decodes tokens.

    Args:
        config: Sizes.
        num_features: Of a run.
        vocab_size: Number of tokens V, blank and end of sentence included.
    """

    def __init__(self, config: SpellerConfig, *, num_features: int, vocab_size: int) -> None:
        super().__init__()
        width = config.width
        blocks = EncoderConfig(
            width=width,
            num_heads=config.num_heads,
            feedforward_width=config.reader_feedforward_width,
            kernel_size=config.kernel_size,
            dropout=config.dropout,
        )
        self.project = Linear(num_features, width)
        self.near = ConvModule(width, kernel_size=_NEAR, dropout=config.dropout)
        self.join = Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(ConformerBlock(blocks) for _ in range(config.num_reader_layers))
        self.decoder = TransformerDecoder(
            DecoderConfig(
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                feedforward_width=config.feedforward_width,
                dropout=config.dropout,
            ),
            width=width,
            vocab_size=vocab_size,
        )

    def read(self, runs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder attends to.

        Args:
            runs: (B, R, 1 + P + 2), zero beyond a length.
            lengths: (B,) integers; one of 0 is read as one run of zeros.

        Returns:
            Frames (B, R', D), one for two runs, zero beyond a length, and lengths (B,), at least 1.
        """
        lengths = lengths.clamp_min(1)
        x = self.project(F.pad(runs, (0, 0, 0, runs.shape[1] % 2)))  # (B, 2·R', D)
        valid = valid_mask(lengths, x.shape[1])[:, :, None]
        x = (x + self.near(x, valid)) * valid
        x = self.norm(self.join(x.reshape(len(x), -1, 2 * x.shape[2])))  # (B, R', D)
        lengths = (lengths + 1) // 2
        valid = valid_mask(lengths, x.shape[1])[:, :, None]
        cosines, sines = position_code(torch.arange(x.shape[1], device=x.device), x.shape[2])
        x = x + torch.cat([sines, cosines], dim=-1).to(x.dtype)
        blocks = cast(list[ConformerBlock], list(self.blocks))
        code = blocks[0].attention.code(x) if blocks else None
        for block in blocks:
            x = block(x, valid, code)
        return x * valid, lengths

    def forward(self, tokens: Tensor, runs: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, U, V) of every next token, for tokens (B, U), each row the start token and then a transcript."""
        return self.decoder(tokens, *self.read(runs, lengths))

    def frame_logits(self, frames: Tensor) -> Tensor:
        """Logits of tokens from frames (…, D) alone, (…, V), by the decoder's last layer: for training."""
        logits: Tensor = self.decoder.output(self.decoder.norm(frames))
        return logits

    @torch.no_grad()
    def start_from(self, lm: LanguageModel) -> None:
        """Takes the weights of a language model with the same sizes and tokens; at first, nothing is attended to.

        Raises:
            ValueError: If there is a size that differs.
        """
        decoder = self.decoder
        pairs: list[tuple[nn.Module, nn.Module]] = [(decoder.embedding, lm.embedding), (decoder.norm, lm.norm)]
        if len(decoder.layers()) != len(lm.layers()):
            raise ValueError(f"{len(lm.layers())} blocks, but the speller's decoder has {len(decoder.layers())}")
        for own, other in zip(decoder.layers(), lm.layers(), strict=True):
            if own.self_attention.num_heads != other.attention.num_heads:
                raise ValueError(
                    f"{other.attention.num_heads} heads, but the speller's decoder has {own.self_attention.num_heads}"
                )
            pairs += [(own.self_norm, other.norm), (own.self_attention, other.attention)]
            pairs += [(own.feedforward, other.feedforward)]
            nn.init.zeros_(own.cross_attention.output.weight)
            nn.init.zeros_(own.cross_attention.output.bias)
        try:
            for own_part, other_part in pairs:
                own_part.load_state_dict(other_part.state_dict())
            decoder.output.load_state_dict({"weight": lm.embedding.weight, "bias": lm.output_bias})
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    def blocks_to_compile(self) -> list[nn.Module]:
        """The repeated parts, where compiling pays; training looks into the decoder's."""
        return list(self.blocks)

    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())
