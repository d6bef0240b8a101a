"""The autoregressive Transformer decoder, with a key-value cache for search."""

# B sequences, U tokens, T' encoder frames, D width, V vocabulary

from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from asr.nn.attention import KeyValueCache, MultiHeadAttention, position_code
from asr.nn.dropout import Dropout
from asr.nn.masks import causal_mask, valid_mask


@dataclass(slots=True, kw_only=True)
class DecoderConfig:
    """Sizes of a Transformer decoder; its width is the encoder's.

    Attributes:
        num_layers: Number of blocks; 0 builds a model with CTC alone.
        num_heads: Attention heads; must divide the encoder's width.
        feedforward_width: Inner width of the feed-forward module.
        dropout: Probability of dropping an activation in training, in [0, 1).
    """

    num_layers: int = 3
    num_heads: int = 4
    feedforward_width: int = 576
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.num_layers < 0:
            raise ValueError(f"decoder.num_layers is {self.num_layers}; it must be 0 (CTC alone) or more")
        for name in ("num_heads", "feedforward_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"decoder.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"decoder.dropout is {self.dropout}; it must be in [0, 1)")


@dataclass(slots=True)
class DecoderState:
    """What the decoder keeps between steps of a search: explicit, and never changed in place.

    Attributes:
        memories: Projected encoder frames, one cache a layer.
        pasts: Keys and values of the tokens so far, one cache a layer; empty before the first step.
        memory_mask: Valid encoder frames, (B, 1, 1, T').
        position: Number of tokens so far.
    """

    memories: list[KeyValueCache]
    pasts: list[KeyValueCache]
    memory_mask: Tensor
    position: int

    def select(self, indices: Tensor) -> Self:
        """Returns the state of the chosen sequences, in that order; integers (B',)."""
        return type(self)(
            [cache.select(indices) for cache in self.memories],
            [cache.select(indices) for cache in self.pasts],
            self.memory_mask.index_select(0, indices),
            self.position,
        )


class DecoderBlock(nn.Module):
    """Self-attention, attention to the encoder, feed-forward; norms come first (Xiong et al. 2020)."""

    def __init__(self, width: int, config: DecoderConfig) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, num_heads=config.num_heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = MultiHeadAttention(width, num_heads=config.num_heads)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.feedforward_width),
            nn.SiLU(),
            Dropout(config.dropout),
            nn.Linear(config.feedforward_width, width),
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor, *, memory_mask: Tensor, causal: Tensor) -> Tensor:
        """Maps all tokens at once, (B, U, D) to (B, U, D), for training."""
        normed = self.self_norm(x)
        x = x + self.dropout(self.self_attention(normed, normed, mask=causal))
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), memory, mask=memory_mask))
        return x + self.dropout(self.feedforward(x))

    def step(
        self, x: Tensor, past: KeyValueCache | None, memory: KeyValueCache, memory_mask: Tensor
    ) -> tuple[Tensor, KeyValueCache]:
        """Maps one more token (B, 1, D); returns its output and the longer past."""
        normed = self.self_norm(x)
        new = self.self_attention.project_memory(normed)
        past = new if past is None else past.appended(new.keys, new.values)
        x = x + self.self_attention(normed, normed, cache=past)
        x = x + self.cross_attention(self.cross_norm(x), x, mask=memory_mask, cache=memory)
        return x + self.feedforward(x), past


class TransformerDecoder(nn.Module):
    """Predicts the next token from the tokens so far and the encoder's frames (Vaswani et al. 2017).

    Args:
        config: Sizes.
        width: Width D of the encoder.
        vocab_size: Number of tokens V, blank and end of sentence included.
    """

    def __init__(self, config: DecoderConfig, *, width: int, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.scale = width**0.5
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(width, config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocab_size)

    def layers(self) -> list[DecoderBlock]:
        """The blocks, first to last."""
        return cast(list[DecoderBlock], list(self.blocks))

    def forward(self, tokens: Tensor, frames: Tensor, frame_lengths: Tensor) -> Tensor:
        """Logits of every next token (teacher forcing).

        Args:
            tokens: (B, U) integers, each row the start token and then the transcript; padding may hold any token.
            frames: (B, T', D) of the encoder.
            frame_lengths: (B,) integers.

        Returns:
            Logits (B, U, V); row u is the prediction of what follows token u.
        """
        memory_mask = valid_mask(frame_lengths, frames.shape[1])[:, None, None, :]
        causal = causal_mask(tokens.shape[1], tokens.device)
        x = self.dropout(self._embed(tokens, start=0))
        for block in self.layers():
            x = block(x, frames, memory_mask=memory_mask, causal=causal)
        return self.output(self.norm(x))

    def start(self, frames: Tensor, frame_lengths: Tensor) -> DecoderState:
        """State before the first token, for frames (B, T', D) with lengths (B,)."""
        memories = [block.cross_attention.project_memory(frames) for block in self.layers()]
        return DecoderState(memories, [], valid_mask(frame_lengths, frames.shape[1])[:, None, None, :], 0)

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Reads one token a sequence, (B,), and returns log-probabilities of the next (B, V) and the new state."""
        x = self._embed(tokens[:, None], start=state.position)  # (B, 1, D)
        pasts = []
        for number, block in enumerate(self.layers()):
            past = state.pasts[number] if state.pasts else None
            x, past = block.step(x, past, state.memories[number], state.memory_mask)
            pasts.append(past)
        log_probs = self.output(self.norm(x[:, 0])).float().log_softmax(dim=-1)  # (B, V)
        return log_probs, DecoderState(state.memories, pasts, state.memory_mask, state.position + 1)

    def _embed(self, tokens: Tensor, *, start: int) -> Tensor:
        cosines, sines = position_code(start + tokens.shape[1], self.embedding.embedding_dim, device=tokens.device)
        positions = torch.cat([sines, cosines], dim=-1)[start:]  # (U, D)
        return self.embedding(tokens) * self.scale + positions.to(self.embedding.weight.dtype)  # (B, U, D)
