"""CTC in recognition: greedy search, and the score of a prefix for joint search."""

# B utterances, T' encoder frames, V vocabulary, N hypotheses, K candidates a hypothesis

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from asr.decoding.hypothesis import Hypothesis
from asr.tokenizer import BLANK_ID, EOS_ID


def greedy_search(log_probs: Tensor, lengths: Tensor) -> list[Hypothesis]:
    """Takes the best label of every frame, joins repeats and drops blanks (Graves et al. 2006, section 3.2).

    Args:
        log_probs: (B, T', V).
        lengths: (B,) integers.

    Returns:
        One hypothesis an utterance; its score is the log-probability of the best path.
    """
    scores, labels = log_probs.max(dim=-1)  # (B, T') each
    changed = torch.ones_like(labels, dtype=torch.bool)
    changed[:, 1:] = labels[:, 1:] != labels[:, :-1]
    kept = (changed & (labels != BLANK_ID) & (labels != EOS_ID)).cpu()
    labels, scores = labels.cpu(), scores.double().cpu()
    hypotheses = []
    for row, length in enumerate(lengths.tolist()):
        tokens = tuple(labels[row, :length][kept[row, :length]].tolist())
        score = float(scores[row, :length].sum())
        hypotheses.append(Hypothesis(tokens, score, {"ctc": score}))
    return hypotheses


@dataclass(slots=True)
class PrefixState:
    """Forward probabilities of N prefixes, natural logarithms, float64.

    Attributes:
        nonblank: Probability of the prefix in frames 0 … t with its last token in frame t, (N, T').
        blank: The same with a blank in frame t, (N, T').
        scores: Prefix scores, (N,).
    """

    nonblank: Tensor
    blank: Tensor
    scores: Tensor

    def select(self, hypotheses: Tensor) -> Self:
        """Returns the state of the chosen prefixes, in that order; integers (N',)."""
        return type(self)(self.nonblank[hypotheses], self.blank[hypotheses], self.scores[hypotheses])


class PrefixScorer:
    """The CTC probability that a transcript begins with a prefix (Watanabe et al. 2017, algorithm 2).

    The recursion over frames in the paper, γn(t) = (γn(t-1) + φ(t-1))·p(c|t), is a linear recurrence. With P(t) the
    product of p(c|1) … p(c|t), it is γn(t) = P(t)·Σ_{s≤t} φ(s-1)/P(s-1): one cumulative sum over all frames at once,
    for all hypotheses and candidates, in place of a loop. The sum is taken of logarithms and every term is positive,
    so nothing cancels; float64 keeps it exact to about 1e-12 of the largest exponent.

    Args:
        log_probs: CTC log-probabilities of one utterance without padding, (T', V).
    """

    def __init__(self, log_probs: Tensor) -> None:
        self.log_probs = log_probs.double().clamp_min(-1e4)  # -inf minus -inf would be NaN in the cumulative sums
        self.cumulative_blank = self.log_probs[:, BLANK_ID].cumsum(0)  # (T')

    def start(self) -> PrefixState:
        """The empty prefix: nothing but blanks so far."""
        blank = self.cumulative_blank[None]
        return PrefixState(torch.full_like(blank, -math.inf), blank, blank.new_zeros(1))

    def extend(self, state: PrefixState, last_tokens: Tensor, candidates: Tensor) -> PrefixState:
        """Scores every prefix with every candidate behind it.

        Args:
            state: State of N prefixes.
            last_tokens: Last token of each, (N,); the start token (end of sentence) for the empty prefix.
            candidates: Tokens to try, (N, K).

        Returns:
            A state of N·K prefixes, in order; a candidate that is the end of sentence gets the probability that the
            prefix is the whole transcript, and must not be extended.
        """
        frames = self.log_probs.shape[0]
        emit = self.log_probs[:, candidates].permute(1, 2, 0)  # (N, K, T')
        repeats = (candidates == last_tokens[:, None])[:, :, None]  # a repeat needs a blank between
        either = torch.logaddexp(state.nonblank, state.blank)  # (N, T')
        before = torch.where(repeats, state.blank[:, None], either[:, None])  # φ(t), (N, K, T')
        # φ(t-1); in frame 0 only the empty prefix can go on, with probability one.
        empty = torch.where(last_tokens == EOS_ID, 0.0, -math.inf).to(before)
        first = empty[:, None, None].expand(*before.shape[:2], 1)
        before = torch.cat([first, before[:, :, : frames - 1]], dim=-1)
        scores = (before + emit).logsumexp(dim=-1)  # (N, K)
        nonblank = _linear_recurrence(before, emit)
        none = torch.full_like(first, -math.inf)
        blank = _linear_recurrence(torch.cat([none, nonblank[:, :, :-1]], dim=-1), self.log_probs[:, BLANK_ID])
        scores = torch.where(candidates == EOS_ID, either[:, -1:], scores)
        return PrefixState(nonblank.flatten(0, 1), blank.flatten(0, 1), scores.flatten())


def _linear_recurrence(inputs: Tensor, factors: Tensor) -> Tensor:
    """Solves y(t) = (y(t-1) + x(t))·f(t), all logarithms, over the last dimension."""
    products = factors.cumsum(-1)
    return products + torch.logcumsumexp(inputs - (products - factors), dim=-1)
