"""Attention: multi-head scaled dot-product attention, with and without relative positions.

Every form ends in `attend`, so that the fastest kernels of a device serve all of them. `weights` recomputes the
attention weights of a call for plots and analysis.
"""

# B sequences, T queries, S keys, D width, H heads, E width of a head (D / H), P width of the position code

import math
from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr.devices import gpu_kernels
from asr.nn.autocast import as_autocast
from asr.nn.dropout import byte_dropout
from asr.nn.linear import Linear, linear

# Looked up once and not where it is used, which is compiled; without a GPU, importing Triton is for nothing.
attention_kernels = gpu_kernels("asr.nn.attention_kernels") if torch.cuda.is_available() else None


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values that a layer has already computed, each (B, H, S, E)."""

    keys: Tensor
    values: Tensor

    def appended(self, keys: Tensor, values: Tensor) -> Self:
        """Returns a cache with new positions behind the old ones; both arguments (B, H, T, E)."""
        return type(self)(torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2))

    def select(self, indices: Tensor) -> Self:
        """Returns the cache of the chosen sequences, in that order; integers (B',)."""
        return type(self)(self.keys.index_select(0, indices), self.values.index_select(0, indices))


class MultiHeadAttention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, eq. 1 and section 3.2.2).

    Args:
        width: Width D of queries, keys and values; a multiple of `num_heads`.
        num_heads: Number of heads H.
        dropout: Probability of dropping an attention weight in training, in [0, 1).
    """

    def __init__(self, width: int, *, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}; choose a width that is")
        self.num_heads = num_heads
        self.head_width = width // num_heads
        self.dropout = dropout
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.output = Linear(width, width)

    def forward(
        self, query: Tensor, memory: Tensor, *, mask: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Attends from every query to the memory.

        Args:
            query: (B, T, D).
            memory: (B, S, D), the query itself for self-attention. Ignored where a cache is given.
            mask: Booleans that broadcast to (B, H, T, S); False hides a key. Every query must see at least one key.
            cache: Keys and values already projected by `project_memory`, in place of `memory`.

        Returns:
            (B, T, D)
        """
        if cache is None:
            cache = self.project_memory(memory)
        dropout = self.dropout if self.training else 0.0
        heads = self._split(self.query(query))  # (B, H, T, E)
        context = attend(heads, cache.keys, cache.values, mask=mask, dropout=dropout)
        return self.output(self._merge(context))

    def project_memory(self, memory: Tensor) -> KeyValueCache:
        """Projects a memory (B, S, D) to keys and values, so that several calls can share them."""
        keys, values = self.key_value(memory).chunk(2, dim=-1)
        return KeyValueCache(self._split(keys), self._split(values))

    @torch.no_grad()
    def weights(self, query: Tensor, memory: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The attention weights (B, H, T, S) that `forward` uses on these arguments; rows sum to one."""
        heads, keys = self._split(self.query(query)), self.project_memory(memory).keys
        return _softmax_scores(heads, keys, scale=1 / math.sqrt(self.head_width), mask=mask)

    def log_weights(self, query: Tensor, memory: Tensor, *, head: int, mask: Tensor | None = None) -> Tensor:
        """The logarithms of one head's attention weights, (B, T, S) float32, with gradient; arguments as of `forward`.

        The mask broadcasts to (B, 1, T, S).
        """
        rows = slice(head * self.head_width, (head + 1) * self.head_width)
        queries = linear(query, self.query.weight[rows], self.query.bias[rows])  # (B, T, E)
        keys = linear(memory, self.key_value.weight[rows], self.key_value.bias[rows])  # keys come first
        scores = (queries @ keys.transpose(1, 2)).float() / math.sqrt(self.head_width)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, 0], -math.inf)
        return scores.log_softmax(dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_width)).transpose(1, 2)  # (B, T, D) -> (B, H, T, E)

    def _merge(self, heads: Tensor) -> Tensor:
        return heads.transpose(1, 2).flatten(2)  # (B, H, T, E) -> (B, T, D)


class RelativeAttention(nn.Module):
    """Self-attention with relative positions (Transformer-XL, Dai et al. 2019, section 3.3), as one fused product.

    The score of query i and key j is (q_i + u)ᵀ k_j + (q_i + v)ᵀ W r_{i-j}, where r is a sinusoidal code. Usually the
    second term is a (T, 2T) product, shifted into place and added as a bias, which keeps the fused kernels out. Here
    the angle sums sin((i-j)w) = sin(iw)cos(jw) - cos(iw)sin(jw) and cos((i-j)w) = cos(iw)cos(jw) + sin(iw)sin(jw)
    split the code into a part of i and a part of j: with [a, b] = Wᵀ(q_i + v) for sines and cosines,

        a·sin((i-j)w) + b·cos((i-j)w) = [a·sin(iw) + b·cos(iw)]·cos(jw) + [b·sin(iw) - a·cos(iw)]·sin(jw),

    so both terms are one inner product of a longer query with a longer key: exact, with no bias and no shift.

    Args:
        width: Width D; a multiple of `num_heads`.
        num_heads: Number of heads H.
        dropout: Probability of dropping an attention weight in training, in [0, 1).
        position_width: Width P of the position code, even; 0 takes the width of a head, rounded up to even.
    """

    def __init__(self, width: int, *, num_heads: int, dropout: float = 0.0, position_width: int = 0) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}; choose a width that is")
        if position_width % 2:
            raise ValueError(f"position_width {position_width} is odd; sines and cosines come in pairs")
        self.num_heads = num_heads
        self.head_width = width // num_heads
        self.position_width = position_width or self.head_width + self.head_width % 2
        self.dropout = dropout
        self.query_key_value = Linear(width, 3 * width)
        self.output = Linear(width, width)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, self.head_width))  # u
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 1, self.head_width))  # v
        self.position_weight = nn.Parameter(torch.empty(num_heads, self.head_width, self.position_width))  # W
        nn.init.xavier_uniform_(self.position_weight)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, code: Tensor | None = None) -> Tensor:
        """Attends from every frame to every frame.

        Args:
            x: (B, T, D).
            mask: Booleans that broadcast to (B, H, T, T); False hides a key. Every query must see at least one key.
            code: What `code` gives for T, which layers of the same sizes can share; by default computed here.

        Returns:
            (B, T, D)

        Raises:
            ValueError: If the code is of another shape.
        """
        queries, keys, values = self._queries_keys_values(x, self.code(x) if code is None else code)
        dropout = self.dropout if self.training else 0.0
        context = attend(queries, keys, values, mask=mask, dropout=dropout)
        return self.output(context.transpose(1, 2).flatten(2))  # (B, T, D)

    @torch.no_grad()
    def weights(self, x: Tensor, *, mask: Tensor | None = None, code: Tensor | None = None) -> Tensor:
        """The attention weights (B, H, T, T) that `forward` uses on these arguments; rows sum to one."""
        queries, keys, _ = self._queries_keys_values(x, self.code(x) if code is None else code)
        return _softmax_scores(queries, keys, scale=1 / math.sqrt(self.head_width), mask=mask)

    def code(self, x: Tensor) -> Tensor:
        """The code of the positions of frames (B, T, D): cosines, then sines, (T, P) float32."""
        return torch.cat(position_code(torch.arange(x.shape[1], device=x.device), self.position_width), dim=-1)

    def _queries_keys_values(self, x: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # This also tells the compiler that the width never changes.
        if code.shape != (x.shape[1], self.position_width):
            raise ValueError(
                f"a code of shape {tuple(code.shape)} is not of {x.shape[1]} positions and {self.position_width} wide; "
                "take what `code` gives for these frames"
            )
        heads = self.query_key_value(x).unflatten(-1, (3, self.num_heads, self.head_width))
        query, key, value = heads.unbind(2)  # (B, T, H, E) each
        cosines, sines = code.chunk(2, dim=-1)  # (T, P/2) each
        query = query.transpose(1, 2)  # (B, H, T, E)
        a, b = ((query + self.position_bias) @ self.position_weight).chunk(2, dim=-1)  # (B, H, T, P/2) each
        turned = torch.cat([a * sines + b * cosines, b * sines - a * cosines], dim=-1)  # (B, H, T, P)
        code = code.to(key.dtype)[:, None].expand(*key.shape[:3], -1)  # (B, T, H, P)
        queries = torch.cat([query + self.content_bias, turned.to(query.dtype)], dim=-1)  # (B, H, T, E + P)
        # With the heads side by side, as they come from the projection, the keys are two copies of whole rows.
        keys = torch.cat([key, code], dim=-1).transpose(1, 2)  # (B, H, T, E + P)
        return queries.to(key.dtype), keys, value.transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention, softmax(q kᵀ / √E) v, by the fastest kernel of the device.

    Args:
        queries: (B, H, T, E'); E' is the width E of the values or more.
        keys: (B, H, S, E').
        values: (B, H, S, E).
        mask: Booleans that broadcast to (B, H, T, S); False hides a key.
        dropout: Probability of dropping a weight, in [0, 1).

    Returns:
        (B, H, T, E); zeros for a query that sees no key.
    """
    scale = 1 / math.sqrt(values.shape[-1])
    extra = queries.shape[-1] - values.shape[-1]
    if queries.device.type == "cpu" and extra and not dropout and queries.dtype == torch.float32:
        # PyTorch's fused kernel for processors wants values as wide as the keys. Zeros more are cheaper than scores in
        # memory: half the time for long sequences, the same for short ones.
        values = F.pad(values, (0, extra))
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)[..., :-extra]
    if attention_kernels is not None and queries.is_cuda and torch.is_grad_enabled():
        queries, keys, values = (as_autocast(each) for each in (queries, keys, values))
        trains = queries.requires_grad or keys.requires_grad or values.requires_grad
        if trains and attention_kernels.fits(queries, keys, values):
            return cast(Tensor, attention_kernels.attention(queries, keys, values, mask, dropout)[0])
    if queries.device.type != "cpu" or not (extra or queries.dtype == torch.bfloat16):
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout, scale=scale)
    # With dropout there is no fused kernel on processors, and that for bfloat16 computes in float32; the plain products
    # are two to five times as fast.
    scores = (queries * scale) @ keys.transpose(-2, -1)  # (B, H, T, S)
    if mask is not None:
        sees = mask.any(dim=-1, keepdim=True)
        scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(sees & ~mask, -math.inf)
    weights = scores.softmax(dim=-1)
    if dropout:
        weights = byte_dropout(weights, dropout)
    context = weights @ values
    return context if mask is None else context * sees.to(context.dtype)


def position_code(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions, (…) integers, at geometric frequencies (Vaswani et al. 2017, section 3.5).

    Returns:
        Two float32 tensors (…, width / 2).
    """
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = positions.float()[..., None] * 10_000.0**-exponents
    return angles.cos(), angles.sin()


def embed_tokens(embedding: nn.Embedding, tokens: Tensor, positions: Tensor | None, *, scale: float) -> Tensor:
    """Vectors of tokens, (B, U) to (B, U, D), times a scale, with the code of their positions.

    Args:
        embedding: Of width D.
        tokens: (B, U).
        positions: (U,) or (B, U); by default 0 to U - 1.
        scale: Of the vectors.
    """
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
    cosines, sines = position_code(positions, embedding.embedding_dim)
    code = torch.cat([sines, cosines], dim=-1).to(embedding.weight.dtype)  # (U, D) or (B, U, D)
    return embedding(tokens) * scale + code


def _softmax_scores(queries: Tensor, keys: Tensor, *, scale: float, mask: Tensor | None) -> Tensor:
    scores = (queries.float() @ keys.float().transpose(-2, -1)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1)
