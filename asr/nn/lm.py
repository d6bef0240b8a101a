"""The causal Transformer language model over tokens, with a key-value cache for search."""

# B sequences, U tokens, D width, V vocabulary

from dataclasses import dataclass, field
from typing import Self, cast

import torch
from torch import Tensor, nn

from asr.nn.attention import KeyValueCache, MultiHeadAttention, embed_tokens
from asr.nn.blocks import runner
from asr.nn.dropout import Dropout
from asr.nn.feedforward import FeedForward
from asr.nn.linear import linear
from asr.nn.masks import causal_mask


@dataclass(slots=True, kw_only=True)
class LanguageModelConfig:
    """Sizes of a Transformer language model.

    Attributes:
        num_layers: Number of blocks.
        width: Width D of the tokens' vectors, even.
        num_heads: Attention heads; must divide the width.
        feedforward_width: Inner width of the feed-forward module.
        dropout: Probability of dropping an activation in training, in [0, 1).
    """

    num_layers: int = 5
    width: int = 128
    num_heads: int = 4
    feedforward_width: int = 512
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("num_layers", "width", "num_heads", "feedforward_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"lm.{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % 2:
            raise ValueError(f"lm.width is {self.width}; it must be even, as sines and cosines come in pairs")
        if self.width % self.num_heads:
            raise ValueError(f"lm.width {self.width} is not a multiple of lm.num_heads {self.num_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lm.dropout is {self.dropout}; it must be in [0, 1)")


@dataclass(slots=True)
class LanguageModelState:
    """What the language model keeps between steps of a search: explicit, and never changed in place.

    Attributes:
        pasts: Keys and values of the tokens so far, one cache a layer; empty before the first step.
        position: Number of tokens so far.
    """

    pasts: list[KeyValueCache] = field(default_factory=list)
    position: int = 0

    def select(self, indices: Tensor) -> Self:
        """Returns the state of the chosen sequences, in that order; integers (B',)."""
        return type(self)([cache.select(indices) for cache in self.pasts], self.position)


class LanguageModelBlock(nn.Module):
    """Self-attention and feed-forward; norms come first (Xiong et al. 2020)."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.attention = MultiHeadAttention(config.width, num_heads=config.num_heads)
        self.feedforward = FeedForward(config.width, inner_width=config.feedforward_width, dropout=config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, *, causal: Tensor) -> Tensor:
        """Maps all tokens at once, (B, U, D) to (B, U, D)."""
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, normed, mask=causal))
        return x + self.feedforward(x)

    def step(self, x: Tensor, past: KeyValueCache | None) -> tuple[Tensor, KeyValueCache]:
        """Maps one more token (B, 1, D); returns its output and the longer past."""
        normed = self.norm(x)
        new = self.attention.project_memory(normed)
        past = new if past is None else past.appended(new.keys, new.values)
        x = x + self.attention(normed, normed, cache=past)
        return x + self.feedforward(x), past


class LanguageModel(nn.Module):
    """Predicts the next token from the tokens so far (Al-Rfou et al. 2019).

    One matrix is both the tokens' vectors and the weights of the output (Press & Wolf 2017).

    Args:
        config: Sizes.
        vocab_size: Number of tokens V, blank and end of sentence included.

    Attributes:
        checkpoint_activations: Whether training keeps activations only from block to block.
    """

    def __init__(self, config: LanguageModelConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.scale = config.width**0.5
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(LanguageModelBlock(config) for _ in range(config.num_layers))
        self.checkpoint_activations = False
        self.norm = nn.LayerNorm(config.width)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size))

    def layers(self) -> list[LanguageModelBlock]:
        """The blocks, first to last."""
        return cast(list[LanguageModelBlock], list(self.blocks))

    def blocks_to_compile(self) -> list[nn.Module]:
        """The repeated parts, where compiling pays."""
        return list(self.blocks)

    def forward(self, tokens: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Logits of every next token.

        Args:
            tokens: (B, U) integers, each row the start token and then the sentence; padding may hold any token, as
                no token looks ahead.
            positions: How many tokens lie before each, (B, U) integers; by default rows are read from left to right.
            mask: Which tokens each token attends to, (B, 1, U, U) booleans, each to itself at least; by default to
                those before it.

        Returns:
            Logits (B, U, V); row u is the prediction of what follows token u.
        """
        causal = causal_mask(tokens.shape[1], tokens.device) if mask is None else mask
        x = self.dropout(embed_tokens(self.embedding, tokens, positions, scale=self.scale))
        for block in self.layers():
            x = runner(block, recompute=self.checkpoint_activations)(x, causal=causal)
        return self._output(x)

    def step(self, tokens: Tensor, state: LanguageModelState) -> tuple[Tensor, LanguageModelState]:
        """Reads one token a sequence, (B,), and returns log-probabilities of the next (B, V) and the new state.

        The state before the first token is `LanguageModelState()`.
        """
        here = torch.full((1,), state.position, device=tokens.device)
        x = embed_tokens(self.embedding, tokens[:, None], here, scale=self.scale)  # (B, 1, D)
        pasts = []
        for number, block in enumerate(self.layers()):
            x, past = block.step(x, state.pasts[number] if state.pasts else None)
            pasts.append(past)
        log_probs = self._output(x[:, 0]).float().log_softmax(dim=-1)  # (B, V)
        return log_probs, LanguageModelState(pasts, state.position + 1)

    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _output(self, x: Tensor) -> Tensor:
        return linear(self.norm(x), self.embedding.weight, self.output_bias)  # (…, D) -> (…, V)
