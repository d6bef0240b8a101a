"""CTC in recognition: greedy search, and CTC's part in a search over tokens."""

# B utterances, N hypotheses of an utterance, R = B·N rows, T' encoder frames, V vocabulary

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from asr.decoding.hypothesis import Hypothesis
from asr.tokenizer import BLANK_ID, EOS_ID

# Stands for log 0 where -inf would make NaN: in cumulative sums, and as the score of a row that holds nothing.
_LOG_ZERO = -1e4
_NOTHING = -1e30


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
class _Frames:
    """Label probabilities of the utterances that are still searched, float64.

    Attributes:
        probs: (B, T', V); zero beyond a length.
        log_probs: Their logarithms, (B, V, T').
        last: Last valid frame of each utterance, (B,).
    """

    probs: Tensor
    log_probs: Tensor
    last: Tensor

    def select(self, utterances: Tensor) -> Self:
        """The frames of the chosen utterances, integers (B',)."""
        return type(self)(self.probs[utterances], self.log_probs[utterances], self.last[utterances])


@dataclass(slots=True)
class CtcState:
    """Forward probabilities of the prefixes in R rows, natural logarithms, float64.

    Attributes:
        frames: Of the utterances that the rows belong to.
        nonblank: Probability of the prefix in frames 0 … t with its last token in frame t, (R, T').
        blank: The same with a blank in frame t, (R, T').
        scores: Prefix scores, (R,).
        last_tokens: Last token of each prefix, (R,); the end of sentence stands for the empty prefix.
        next_scores: Prefix scores of every prefix with every token behind it, (R, V), once they were asked for.
    """

    frames: _Frames
    nonblank: Tensor
    blank: Tensor
    scores: Tensor
    last_tokens: Tensor
    next_scores: Tensor | None = None


class CtcScorer:
    """The CTC probability that a transcript begins with a prefix (Watanabe et al. 2017, algorithm 2), as a `Scorer`.

    With φ(t) the probability of a prefix g in frames 0 … t, in any state that the next token c can follow, the prefix
    score of g·c is Σ_t φ(t-1)·p(c|t). For all hypotheses and all tokens that is one matrix product, φ scaled by its
    largest value, in place of a loop over frames for a few candidates: no token has to be left out beforehand.

    Only what is then chosen needs its own forward probabilities. Their recursion, γ(t) = (γ(t-1) + φ(t-1))·p(c|t), is
    linear: with P(t) the product of p(c|1) … p(c|t), γ(t) = P(t)·Σ_{s≤t} φ(s-1)/P(s-1), one cumulative sum over all
    frames. The sum is taken of logarithms and every term is positive, so nothing cancels.

    Args:
        log_probs: CTC log-probabilities, (B, T', V); anything may stand behind a length.
        lengths: Frames of each utterance, (B,), at least 1.
    """

    can_stay = False
    headroom = 0.0

    def __init__(self, log_probs: Tensor, lengths: Tensor) -> None:
        valid = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]  # (B, T')
        # Behind the end, no token is possible, and nothing is lost by blanks that are certain.
        padding = torch.full_like(log_probs[:1, :1], -math.inf)
        padding[..., BLANK_ID] = 0.0
        log_probs = torch.where(valid[:, :, None], log_probs, padding).double()
        self._frames = _Frames(log_probs.exp(), log_probs.clamp_min(_LOG_ZERO).mT.contiguous(), lengths - 1)

    def start(self, num_utterances: int, num_hypotheses: int) -> CtcState:
        """Rows of empty prefixes: nothing but blanks so far."""
        blank = self._frames.log_probs[:, BLANK_ID].cumsum(-1).repeat_interleave(num_hypotheses, dim=0)  # (R, T')
        last = torch.full((len(blank),), EOS_ID, device=blank.device)
        return CtcState(self._frames, torch.full_like(blank, -math.inf), blank, torch.zeros_like(blank[:, 0]), last)

    def score(self, state: CtcState, tokens: Tensor | None = None) -> tuple[Tensor, CtcState]:
        """What the prefix score becomes less what it is, (R, V) float64; see `Scorer.score`.

        The end of sentence gets the probability that the prefix is the whole transcript.
        """
        num_rows, num_frames = state.blank.shape
        num_hypotheses = num_rows // len(state.frames.probs)
        either = torch.logaddexp(state.nonblank, state.blank)
        before = _shifted(either, state.last_tokens == EOS_ID)  # φ(t-1), (R, T')
        peak = before.amax(dim=1, keepdim=True).clamp_min(_NOTHING)
        weights = (before - peak).exp().view(-1, num_hypotheses, num_frames)
        next_scores = (weights @ state.frames.probs).flatten(0, 1).log() + peak  # (R, V)

        # A repeat of the last token needs a blank between.
        emit = self._emissions(state.frames, state.last_tokens, num_hypotheses)
        after_blank = _shifted(state.blank, state.last_tokens == EOS_ID) - peak + emit  # (R, T')
        repeated = after_blank.exp().sum(dim=1, keepdim=True).log() + peak
        next_scores.scatter_(1, state.last_tokens[:, None], repeated)
        ends = state.frames.last.repeat_interleave(num_hypotheses)[:, None]
        next_scores[:, EOS_ID] = either.gather(1, ends)[:, 0]
        state = CtcState(state.frames, state.nonblank, state.blank, state.scores, state.last_tokens, next_scores)
        return next_scores - state.scores[:, None], state

    def advance(self, state: CtcState, rows: Tensor, tokens: Tensor) -> CtcState:
        """Forward probabilities of the chosen prefixes alone; see `Scorer.advance`."""
        assert state.next_scores is not None, "a choice follows its scores"
        num_hypotheses = len(state.scores) // len(state.frames.probs)
        frames = state.frames
        if len(rows) < len(state.scores):
            frames = frames.select(rows.view(-1, num_hypotheses)[:, 0] // num_hypotheses)
        last, blank, nonblank = state.last_tokens[rows], state.blank[rows], state.nonblank[rows]
        before = torch.where((tokens == last)[:, None], blank, torch.logaddexp(nonblank, blank))
        nonblank = _linear_recurrence(_shifted(before, last == EOS_ID), self._emissions(frames, tokens, num_hypotheses))
        blank_emissions = frames.log_probs[:, BLANK_ID].repeat_interleave(num_hypotheses, dim=0)
        never = torch.zeros_like(last, dtype=torch.bool)
        blank = _linear_recurrence(_shifted(nonblank, never), blank_emissions)
        scores = state.next_scores[rows, tokens].clamp_min(_NOTHING)
        return CtcState(frames, nonblank, blank, scores, tokens)

    @staticmethod
    def _emissions(frames: _Frames, tokens: Tensor, num_hypotheses: int) -> Tensor:
        """Log-probabilities of one token a row, (R,), in every frame, (R, T')."""
        utterances = torch.arange(len(tokens), device=tokens.device) // num_hypotheses
        return frames.log_probs[utterances, tokens]


def _shifted(values: Tensor, starts: Tensor) -> Tensor:
    """Moves (R, T') one frame on; before the first frame, log 1 where `starts`, (R,), else log 0."""
    first = torch.where(starts, 0.0, -math.inf).to(values)[:, None]
    return torch.cat([first, values[:, :-1]], dim=1)


def _linear_recurrence(inputs: Tensor, factors: Tensor) -> Tensor:
    """Solves y(t) = (y(t-1) + x(t))·f(t), all logarithms, over the last dimension."""
    products = factors.cumsum(-1)
    return products + torch.logcumsumexp(inputs - (products - factors), dim=-1)
