"""What a beam search asks of everything that scores hypotheses: the attention decoder, CTC, language models, hotwords.

A search keeps N hypotheses of each of B utterances, B·N rows, the N rows of an utterance next to each other. It asks
each scorer for the scores of all next tokens of all rows, adds them up by their weights, chooses, and tells the scorers
which row was extended by which token. A scorer's memory of the rows is a state that the search holds and never looks
into; nothing is changed in place, so a state can be used twice.
"""

# B utterances, N hypotheses of an utterance, R = B·N rows, V vocabulary, T' encoder frames, D width, H heads

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from asr.nn.decoder import DecoderState, TransformerDecoder
from asr.tokenizer import EOS_ID

State = TypeVar("State")


class Scorer(Protocol[State]):
    """Scores every next token of every hypothesis.

    Attributes:
        can_stay: Whether rows may stay as they are while others grow (see `advance`). A search over frames needs that;
            a search over tokens extends all rows in every step.
        headroom: The most that what a row has been given so far may still rise by: 0 where every score is a
            log-probability, more where scores are charged in advance and paid back, infinity where there are rewards.
    """

    can_stay: bool
    headroom: float

    def start(self, num_utterances: int, num_hypotheses: int) -> State:
        """The state of B·N rows that hold no token yet."""

    def score(self, state: State, tokens: Tensor | None = None) -> tuple[Tensor, State]:
        """Scores all next tokens.

        Args:
            state: From `start` or `advance`.
            tokens: All that will be looked at and chosen from, beside the end of sentence, (B, K), some perhaps twice;
                None for all tokens.

        Returns:
            Natural logarithms (R, V), added to what the row has already; column `EOS_ID` is what it costs to end here,
            column `BLANK_ID` is never looked at, and nor is what `tokens` leaves out; -inf rules out a token, or to
            end, in searches over frames. And the state, which may now hold
            what was computed on the way.
        """

    def advance(self, state: State, rows: Tensor, tokens: Tensor) -> State:
        """The state after a choice.

        Args:
            state: As `score` returned it.
            rows: Which row each new row goes on from, (R',) integers; R' is smaller than R when utterances are
                finished and leave, N rows at a time.
            tokens: What it is extended by, (R',) integers, never `EOS_ID`; `BLANK_ID` leaves the row as it is, for
                scorers that can stay.
        """


@dataclass(slots=True)
class Weighted(Generic[State]):
    """A scorer with its name among the parts of a hypothesis' score, and its weight."""

    name: str
    weight: float
    scorer: Scorer[State]


@dataclass(slots=True)
class AttentionState:
    """State of `AttentionScorer`: the decoder's, and the last token of each row, (R,)."""

    decoder: DecoderState
    last_tokens: Tensor


class AttentionScorer:
    """The attention decoder's log-probability of the next token.

    The N hypotheses of an utterance are N queries to the same encoder frames, so the projected frames are held once
    an utterance, not once a hypothesis.

    Args:
        decoder: In eval mode.
        frames: Encoder frames, (B, T', D).
        lengths: (B,) integers.
    """

    can_stay = False
    headroom = 0.0

    def __init__(self, decoder: TransformerDecoder, frames: Tensor, lengths: Tensor) -> None:
        self.decoder, self.frames, self.lengths = decoder, frames, lengths

    def start(self, num_utterances: int, num_hypotheses: int) -> AttentionState:
        """The state of B·N rows that hold no token yet."""
        state = self.decoder.start(self.frames, self.lengths, num_hypotheses=num_hypotheses)
        last = torch.full((num_utterances * num_hypotheses,), EOS_ID, device=self.frames.device)
        return AttentionState(state, last)

    def score(self, state: AttentionState, tokens: Tensor | None = None) -> tuple[Tensor, AttentionState]:
        """Reads the last tokens, (R,), and returns the log-probabilities of the next, (R, V)."""
        log_probs, decoder = self.decoder.step(state.last_tokens, state.decoder)
        return log_probs, AttentionState(decoder, state.last_tokens)

    def advance(self, state: AttentionState, rows: Tensor, tokens: Tensor) -> AttentionState:
        """Reorders the caches; see `Scorer.advance`."""
        return AttentionState(state.decoder.select(rows), tokens)
