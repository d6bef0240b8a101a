"""Second pass: hypotheses of a first search, scored whole by slower models and ranked anew."""

# B utterances, N hypotheses of an utterance, U tokens, T' encoder frames, D width, V vocabulary

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.decoding.hypothesis import Hypothesis
from asr.decoding.neural_lm import SentenceScorer
from asr.decoding.prefix_tree import PrefixTrees, list_log_probs
from asr.decoding.spelling import LOG_ZERO
from asr.nn.decoder import TransformerDecoder
from asr.tokenizer import BLANK_ID


def rescore(
    found: Sequence[Sequence[Hypothesis]],
    decoder: TransformerDecoder | None,
    frames: Tensor,
    lengths: Tensor,
    *,
    weights: Mapping[str, float],
    length_bonus: float = 0.0,
    neural: SentenceScorer | None = None,
) -> list[list[Hypothesis]]:
    """Adds the attention decoder's score, and a language model's, and ranks by the weighted sum of all parts.

    Args:
        found: Hypotheses of each utterance, at least one, with the parts of their score.
        decoder: In eval mode; None for a model without, whose hypotheses get no such score.
        frames: Encoder frames, (B, T', D).
        lengths: (B,) integers.
        weights: Of each part by name: those that are there, `attention`, and `neural` where that is given.
        length_bonus: Added for every token.
        neural: A language model's scores of whole sentences.

    Returns:
        The same hypotheses with more parts, best first.
    """
    attention = [[0.0] * len(own) for own in found]
    if decoder is not None:
        attention = attention_log_probs(decoder, frames, lengths, found)
    language = [[0.0] * len(own) for own in found]
    if neural is not None:
        language = neural([[each.tokens for each in own] for own in found])
    ranked = []
    for own, heard, expected in zip(found, attention, language, strict=True):
        scored = []
        for each, attention_score, language_score in zip(own, heard, expected, strict=True):
            parts = each.parts | ({} if decoder is None else {"attention": attention_score})
            if neural is not None:
                parts["neural"] = language_score
            scored.append(combine(replace(each, parts=parts), weights=weights, length_bonus=length_bonus))
        ranked.append(sorted(scored, key=lambda hypothesis: -hypothesis.score))
    return ranked


def add_ctc(found: Sequence[Sequence[Hypothesis]], log_probs: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
    """Adds the part `ctc`, the log-probability of each hypothesis over all its alignments, at least `LOG_ZERO`.

    Args:
        found: Hypotheses of each utterance.
        log_probs: CTC log-probabilities, (B, T', V).
        lengths: Frames of each utterance, (B,) integers.
    """
    scored = []
    for own, heard, length in zip(found, log_probs.float().cpu(), lengths.tolist(), strict=True):
        tokens = torch.tensor([token for each in own for token in each.tokens], dtype=torch.int64, device="cpu")
        sizes = torch.tensor([len(each.tokens) for each in own])
        copies = heard[:length, None].expand(-1, len(own), -1)  # (T', N, V)
        losses = F.ctc_loss(
            copies, tokens, torch.full_like(sizes, length), sizes, blank=BLANK_ID, reduction="none"
        )  # (N,)
        scores = (-losses.double()).clamp_min(LOG_ZERO).tolist()
        scored.append(
            [replace(each, parts=each.parts | {"ctc": score}) for each, score in zip(own, scores, strict=True)]
        )
    return scored


def combine(hypothesis: Hypothesis, *, weights: Mapping[str, float], length_bonus: float) -> Hypothesis:
    """The hypothesis with the weighted sum of its parts as score; a part without a weight counts nothing."""
    score = sum(weights[name] * value for name, value in hypothesis.parts.items() if weights.get(name))
    return replace(hypothesis, score=score + length_bonus * len(hypothesis.tokens))


@torch.inference_mode()
def attention_log_probs(
    decoder: TransformerDecoder, frames: Tensor, lengths: Tensor, found: Sequence[Sequence[Hypothesis]]
) -> list[list[float]]:
    """The decoder's log-probability of each hypothesis, end of sentence included.

    Args:
        decoder: In eval mode.
        frames: Encoder frames, (B, T', D).
        lengths: (B,) integers.
        found: Hypotheses of each utterance.
    """

    def logits(trees: PrefixTrees, rows: list[int]) -> Tensor:
        return decoder(trees.tokens, frames[rows], lengths[rows], positions=trees.positions, mask=trees.mask)

    lists = [[each.tokens for each in own] for own in found]
    return list_log_probs(lists, logits, vocab_size=decoder.output.out_features, device=frames.device)
