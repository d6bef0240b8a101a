"""The autoregressive Transformer decoder, with a key-value cache for search."""

# B sequences, U tokens, T' encoder frames, D width, V vocabulary

from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from asr.nn.attention import KeyValueCache, MultiHeadAttention, embed_tokens
from asr.nn.blocks import runner
from asr.nn.dropout import Dropout
from asr.nn.feedforward import FeedForward
from asr.nn.linear import Linear
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
        memories: Projected encoder frames, one cache a layer; B of them for B·N sequences.
        pasts: Keys and values of the tokens so far, one cache a layer; empty before the first step.
        memory_mask: Valid encoder frames, (B, 1, 1, T').
        position: Number of tokens so far.
        num_hypotheses: N, sequences that attend to the same encoder frames.
    """

    memories: list[KeyValueCache]
    pasts: list[KeyValueCache]
    memory_mask: Tensor
    position: int
    num_hypotheses: int

    def select(self, indices: Tensor) -> Self:
        """Returns the state of the chosen sequences, in that order; integers (B'·N,).

        Where N is above 1, the N sequences of an utterance stay together and utterances in their order; some may be
        left out.
        """
        memories, memory_mask = self.memories, self.memory_mask
        if self.num_hypotheses == 1 or len(indices) < len(memory_mask) * self.num_hypotheses:
            utterances = indices.view(-1, self.num_hypotheses)[:, 0] // self.num_hypotheses
            memories = [cache.select(utterances) for cache in memories]
            memory_mask = memory_mask.index_select(0, utterances)
        pasts = [cache.select(indices) for cache in self.pasts]
        return type(self)(memories, pasts, memory_mask, self.position, self.num_hypotheses)


class DecoderBlock(nn.Module):
    """Self-attention, attention to the encoder, feed-forward; norms come first (Xiong et al. 2020)."""

    def __init__(self, width: int, config: DecoderConfig) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, num_heads=config.num_heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = MultiHeadAttention(width, num_heads=config.num_heads)
        self.feedforward = FeedForward(width, inner_width=config.feedforward_width, dropout=config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor, *, memory_mask: Tensor, causal: Tensor) -> Tensor:
        """Maps all tokens at once, (B·N, U, D) to (B·N, U, D). The memory is that of B sequences."""
        normed = self.self_norm(x)
        x = x + self.dropout(self.self_attention(normed, normed, mask=causal))
        # Nothing but the frames is attended to here, so N sequences of an utterance are N·U queries of one.
        queries = self.cross_norm(x).view(len(memory), -1, x.shape[2])  # (B, N·U, D)
        x = x + self.dropout(self.cross_attention(queries, memory, mask=memory_mask).view_as(x))
        return x + self.feedforward(x)

    def step(
        self, x: Tensor, past: KeyValueCache | None, memory: KeyValueCache, memory_mask: Tensor
    ) -> tuple[Tensor, KeyValueCache]:
        """Maps one more token (B·N, 1, D); returns its output and the longer past. The memory is as in `forward`."""
        normed = self.self_norm(x)
        new = self.self_attention.project_memory(normed)
        past = new if past is None else past.appended(new.keys, new.values)
        x = x + self.self_attention(normed, normed, cache=past)
        queries = self.cross_norm(x).view(len(memory_mask), -1, x.shape[2])  # (B, N, D), as in `forward`
        x = x + self.cross_attention(queries, queries, mask=memory_mask, cache=memory).view_as(x)
        return x + self.feedforward(x), past


class TransformerDecoder(nn.Module):
    """Predicts the next token from the tokens so far and the encoder's frames (Vaswani et al. 2017).

    Args:
        config: Sizes.
        width: Width D of the encoder.
        vocab_size: Number of tokens V, blank and end of sentence included.

    Attributes:
        checkpoint_activations: Whether training keeps activations only from block to block.
    """

    def __init__(self, config: DecoderConfig, *, width: int, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.scale = width**0.5
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(width, config) for _ in range(config.num_layers))
        self.checkpoint_activations = False
        self.norm = nn.LayerNorm(width)
        self.output = Linear(width, vocab_size)

    def layers(self) -> list[DecoderBlock]:
        """The blocks, first to last."""
        return cast(list[DecoderBlock], list(self.blocks))

    def forward(
        self,
        tokens: Tensor,
        frames: Tensor,
        frame_lengths: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of every next token (teacher forcing).

        Args:
            tokens: (B·N, U) integers, each row the start token and then a transcript, N of them an utterance; padding
                may hold any token.
            frames: (B, T', D) of the encoder.
            frame_lengths: (B,) integers.
            positions: How many tokens lie before each, (B·N, U) integers; by default rows are read from left to right.
            mask: Which tokens each token attends to, (B·N, 1, U, U) booleans, each to itself at least; by default to
                those before it.

        Returns:
            Logits (B·N, U, V); row u is the prediction of what follows token u.
        """
        memory_mask = valid_mask(frame_lengths, frames.shape[1])[:, None, None, :]
        causal = causal_mask(tokens.shape[1], tokens.device) if mask is None else mask
        x = self.dropout(embed_tokens(self.embedding, tokens, positions, scale=self.scale))
        for block in self.layers():
            run = runner(block, recompute=self.checkpoint_activations)
            x = run(x, frames, memory_mask=memory_mask, causal=causal)
        return self.output(self.norm(x))

    def start(self, frames: Tensor, frame_lengths: Tensor, *, num_hypotheses: int = 1) -> DecoderState:
        """State before the first token, for N sequences to each of the frames (B, T', D) with lengths (B,)."""
        memories = [block.cross_attention.project_memory(frames) for block in self.layers()]
        memory_mask = valid_mask(frame_lengths, frames.shape[1])[:, None, None, :]
        return DecoderState(memories, [], memory_mask, 0, num_hypotheses)

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Reads one token a sequence, (B·N,), and returns log-probabilities of the next (B·N, V) and the new state."""
        here = torch.full((1,), state.position, device=tokens.device)
        x = embed_tokens(self.embedding, tokens[:, None], here, scale=self.scale)  # (B·N, 1, D)
        pasts = []
        for number, block in enumerate(self.layers()):
            past = state.pasts[number] if state.pasts else None
            x, past = block.step(x, past, state.memories[number], state.memory_mask)
            pasts.append(past)
        log_probs = self.output(self.norm(x[:, 0])).float().log_softmax(dim=-1)  # (B, V)
        state = DecoderState(state.memories, pasts, state.memory_mask, state.position + 1, state.num_hypotheses)
        return log_probs, state
