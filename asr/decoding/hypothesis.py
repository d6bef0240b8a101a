"""What a search returns, and where its tokens lie in time."""

# T' encoder frames, U tokens, V vocabulary

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torchaudio.functional
from torch import Tensor

from asr.tokenizer import BLANK_ID


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One transcript that a search proposes.

    Attributes:
        tokens: Token ids, without blank and end of sentence.
        score: What the search ranks by, a natural logarithm.
        parts: The unweighted scores that the total is made of, by name.
    """

    tokens: tuple[int, ...]
    score: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Where one token lies.

    Attributes:
        start: First encoder frame.
        end: The frame after its last.
        confidence: Mean CTC probability of the token over its frames, in [0, 1].
    """

    start: int
    end: int
    confidence: float


def align(log_probs: Tensor, tokens: tuple[int, ...]) -> list[TokenSpan]:
    """The most probable CTC alignment of a transcript (Viterbi; Graves et al. 2006, section 4.1 on paths).

    Args:
        log_probs: CTC log-probabilities of one utterance without padding, (T', V), float32.
        tokens: Token ids, U of them.

    Returns:
        U spans, in order, without overlap. Where there is a frame for each token but none for the blanks that must
        part repeated ones, the spans are even and their confidence is 0.

    Raises:
        ValueError: If the frames cannot carry the tokens.
    """
    if not tokens:
        return []
    num_needed = len(tokens) + sum(first == second for first, second in pairwise(tokens))
    if len(tokens) <= len(log_probs) < num_needed:
        # A search without CTC may repeat a token more often than there is room for the blanks between: no path exists.
        edges = [place * len(log_probs) // len(tokens) for place in range(len(tokens) + 1)]
        return [TokenSpan(start, end, 0.0) for start, end in pairwise(edges)]
    log_probs = log_probs.cpu()
    targets = torch.tensor([tokens], dtype=torch.int32)
    try:
        path, scores = torchaudio.functional.forced_align(log_probs[None], targets, blank=BLANK_ID)
    except RuntimeError as error:
        raise ValueError(f"{len(tokens)} tokens cannot be aligned with {len(log_probs)} frames") from error
    return _spans(path[0].tolist(), scores[0].exp().tolist())


def _spans(path: list[int], probabilities: list[float]) -> list[TokenSpan]:
    """Groups a path of one label a frame into the spans of its tokens."""
    spans = []
    start = 0
    for frame in range(1, len(path) + 1):
        if frame < len(path) and path[frame] == path[start]:
            continue
        if path[start] != BLANK_ID:
            spans.append(TokenSpan(start, frame, sum(probabilities[start:frame]) / (frame - start)))
        start = frame
    return spans
