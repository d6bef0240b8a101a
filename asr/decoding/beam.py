"""Beam search over tokens with any number of scorers: all hypotheses of all utterances at once.

With CTC and the attention decoder it is one-pass joint search (Watanabe et al. 2017, section IV-B), with the decoder
alone attention search; language models and hotwords are further scorers.
"""

# B utterances, N hypotheses of an utterance, R = B·N rows, V vocabulary, U tokens, F finished hypotheses, P scorers

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.decoding.hypothesis import Hypothesis
from asr.decoding.scorers import Weighted
from asr.tokenizer import BLANK_ID, EOS_ID


@dataclass(slots=True)
class _Lists:
    """Lists of hypotheses, one an utterance.

    Attributes:
        totals: What they are ranked by, (B, N) float64; -inf where there is none.
        parts: Unweighted scores of each scorer, (P, B, N) float64.
        tokens: (B, N, U).
        lengths: Number of tokens, (B, N).
    """

    totals: Tensor
    parts: Tensor
    tokens: Tensor
    lengths: Tensor

    def best(self, count: int) -> Self:
        """The best of each list, in order."""
        totals, columns = self.totals.topk(min(count, self.totals.shape[1]), dim=1)
        return type(self)(
            totals,
            self.parts.gather(2, columns.expand(len(self.parts), -1, -1)),
            self.tokens.gather(1, columns[:, :, None].expand(-1, -1, self.tokens.shape[2])),
            self.lengths.gather(1, columns),
        )

    def joined(self, other: Self) -> Self:
        """Both lists of each utterance as one; `other` may hold one more token."""
        tokens = F.pad(self.tokens, (0, other.tokens.shape[2] - self.tokens.shape[2]))
        return type(self)(
            torch.cat([self.totals, other.totals], dim=1),
            torch.cat([self.parts, other.parts], dim=2),
            torch.cat([tokens, other.tokens], dim=1),
            torch.cat([self.lengths, other.lengths], dim=1),
        )

    def select(self, utterances: Tensor) -> Self:
        """The lists of the chosen utterances, integers (B',)."""
        return type(self)(
            self.totals[utterances], self.parts[:, utterances], self.tokens[utterances], self.lengths[utterances]
        )


def beam_search(
    scorers: Sequence[Weighted[Any]],
    lengths: Tensor,
    *,
    beam_size: int,
    length_bonus: float = 0.0,
    end_margin: float = math.inf,
    num_best: int | None = None,
) -> list[list[Hypothesis]]:
    """Searches the transcripts with the best weighted sum of all scores.

    Every step extends each running hypothesis by every token and keeps the best of each utterance. An utterance is
    done, and leaves the batch, when none of its running hypotheses can overtake the best finished one any more.

    Args:
        scorers: With their names and weights. All are asked about the same B·N rows.
        lengths: Most tokens of each utterance, (B,) integers: its encoder frames, as CTC carries no more.
        beam_size: Hypotheses N of an utterance that are kept in every step.
        length_bonus: Added for every token.
        end_margin: Most that a running hypothesis is trusted to gain. By what the scorers may still give it is known
            when none can overtake the best finished one: the end is exact but for the pruning of the beam. With a
            bonus, rewards or negative weights that may be only after the last frame; a margin ends it earlier.
        num_best: Most hypotheses that are returned of each utterance; the beam size by default.

    Returns:
        Finished hypotheses of each utterance, best first, at least one. Its parts are the unweighted scores by name.

    Raises:
        ValueError: If there is nothing to score with.
    """
    if not scorers:
        raise ValueError("a beam search needs at least one scorer")
    device, num_utterances = lengths.device, len(lengths)
    found: list[list[Hypothesis]] = [[] for _ in range(num_utterances)]
    names = [each.name for each in scorers]
    places = torch.arange(num_utterances, device=device)  # which utterance each list belongs to
    states = [each.scorer.start(num_utterances, beam_size) for each in scorers]
    headroom = sum(_headroom(each) for each in scorers)
    running = _start(num_utterances, beam_size, len(scorers), device)
    finished = running.best(0)
    step = 0
    while len(places):
        gains = []
        for number, each in enumerate(scorers):
            scores, states[number] = each.scorer.score(states[number])
            gains.append(scores.double())
        weighted = sum(each.weight * gain for each, gain in zip(scorers, gains, strict=True))
        assert isinstance(weighted, Tensor)
        totals = running.totals[:, :, None] + weighted.unflatten(0, (-1, beam_size))  # (B, N, V)
        finished = finished.joined(_ended(running, totals, gains)).best(num_best or beam_size)

        totals += length_bonus
        totals[:, :, BLANK_ID] = -math.inf  # one by one: writing at a list of places is many times slower
        totals[:, :, EOS_ID] = -math.inf
        totals.masked_fill_((lengths <= step)[:, None, None], -math.inf)
        running, rows, tokens = _extended(running, totals, gains)
        step += 1
        best = running.totals[:, 0]
        gain = (headroom + max(0.0, length_bonus) * (lengths - step)).clamp_max(end_margin)  # (B,)
        going_on = best.isfinite() & (best + gain > finished.totals[:, 0])
        kept = going_on.nonzero()[:, 0]  # this waits for the device, once a step
        if len(kept) < len(places):
            done = (~going_on).nonzero()[:, 0]
            for place, hypotheses in zip(
                places[done].tolist(), _to_hypotheses(finished.select(done), names), strict=True
            ):
                found[place] = hypotheses
            running, finished = running.select(kept), finished.select(kept)
            rows, tokens, places, lengths = rows[kept], tokens[kept], places[kept], lengths[kept]
        if len(kept):
            states = [
                each.scorer.advance(state, rows.flatten(), tokens.flatten())
                for each, state in zip(scorers, states, strict=True)
            ]
    return found


def _headroom(scorer: Weighted[Any]) -> float:
    """The most that a scorer may still add to a hypothesis."""
    if scorer.weight < 0:
        return math.inf
    return scorer.weight * scorer.scorer.headroom if scorer.weight else 0.0


def _start(num_utterances: int, num_hypotheses: int, num_scorers: int, device: torch.device) -> _Lists:
    """One empty hypothesis an utterance; the other rows hold nothing yet."""
    totals = torch.full((num_utterances, num_hypotheses), -math.inf, dtype=torch.float64, device=device)
    totals[:, 0] = 0.0
    shape = (num_utterances, num_hypotheses)
    return _Lists(
        totals,
        torch.zeros((num_scorers, *shape), dtype=torch.float64, device=device),
        torch.zeros((*shape, 0), dtype=torch.int64, device=device),
        torch.zeros(shape, dtype=torch.int64, device=device),
    )


def _ended(running: _Lists, totals: Tensor, gains: list[Tensor]) -> _Lists:
    """Every running hypothesis with the end of sentence behind it."""
    shape = running.totals.shape
    parts = torch.stack([gain[:, EOS_ID].view(shape) for gain in gains])
    return _Lists(totals[:, :, EOS_ID], running.parts + parts, running.tokens, running.lengths)


def _extended(running: _Lists, totals: Tensor, gains: list[Tensor]) -> tuple[_Lists, Tensor, Tensor]:
    """The best extensions of each utterance, from which row each goes on, and by which token, (B, N) each."""
    num_utterances, num_hypotheses, vocab_size = totals.shape
    best, chosen = totals.flatten(1).topk(num_hypotheses, dim=1)
    columns, tokens = chosen // vocab_size, chosen % vocab_size  # (B, N)
    rows = columns + num_hypotheses * torch.arange(num_utterances, device=totals.device)[:, None]
    parts = torch.stack([gain[rows, tokens] for gain in gains])
    before = running.tokens.gather(1, columns[:, :, None].expand(-1, -1, running.tokens.shape[2]))
    lists = _Lists(
        best,
        running.parts.gather(2, columns.expand(len(gains), -1, -1)) + parts,
        torch.cat([before, tokens[:, :, None]], dim=2),
        running.lengths.gather(1, columns) + 1,
    )
    return lists, rows, tokens


def _to_hypotheses(lists: _Lists, names: list[str]) -> list[list[Hypothesis]]:
    """Lists as data, without the places that hold nothing."""
    found = []
    parts = lists.parts.permute(1, 2, 0).tolist()
    all_lengths, all_tokens = lists.lengths.tolist(), lists.tokens.tolist()
    for row, totals in enumerate(lists.totals.tolist()):
        found.append(
            [
                Hypothesis(tuple(tokens[:length]), total, dict(zip(names, scores, strict=True)))
                for rank, (total, length, tokens, scores) in enumerate(
                    zip(totals, all_lengths[row], all_tokens[row], parts[row], strict=True)
                )
                if math.isfinite(total) or rank == 0
            ]
        )
    return found
