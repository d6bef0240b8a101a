"""Attention weights of a model's own forward pass, for plots and analysis; nothing is computed twice without need."""

# B utterances, H heads, T frames, T' encoder frames, F mel bins, U tokens

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asr.nn.attention import MultiHeadAttention, RelativeAttention
from asr.nn.model import Recognizer

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(slots=True)
class AttentionMaps:
    """Attention weights by layer, first to last; each row sums to one.

    Attributes:
        encoder: Self-attention of the encoder, (B, H, T', T') each.
        decoder: Attention of the decoder to the encoder, (B, H, U, T') each; empty without a decoder.
    """

    encoder: list[Tensor]
    decoder: list[Tensor]


@torch.no_grad()
def attention_maps(model: Recognizer, features: Tensor, lengths: Tensor, tokens: Tensor) -> AttentionMaps:
    """Runs the model and returns where it looked.

    Args:
        model: In eval mode, or the weights are those of one draw of dropout.
        features: (B, T, F).
        lengths: (B,) integers.
        tokens: What the decoder reads, (B, U) integers, the start token first.
    """
    own = [block.attention for block in model.encoder.layers()]
    with recorded(own) as calls:
        encoded = model.encoder(features, lengths)
    encoder = [module.weights(*args, **kwargs) for module, (args, kwargs) in zip(own, calls, strict=True)]
    if model.decoder is None:
        return AttentionMaps(encoder, [])
    cross = [block.cross_attention for block in model.decoder.layers()]
    with recorded(cross) as calls:
        model.decoder(tokens, encoded.frames, encoded.lengths)
    decoder = [module.weights(*args, **kwargs) for module, (args, kwargs) in zip(cross, calls, strict=True)]
    return AttentionMaps(encoder, decoder)


@contextmanager
def recorded(modules: list[RelativeAttention] | list[MultiHeadAttention]) -> Iterator[list[Call]]:
    """Collects the arguments, by place and by name, with which modules are called, in order."""
    calls: list[Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
