"""CTC prefix beam search: frame by frame, all prefixes of all utterances at once.

The prefixes and their two probabilities are those of Graves 2012, section 7.5.3, and Hannun et al. 2014, algorithm 1;
language models and hotwords are asked as the prefixes grow.
"""

# B utterances, N prefixes of an utterance, R = B·N rows, T' encoder frames, V vocabulary, K tokens tried in a frame,
# P scorers, L frames in which a token was tried

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asr.decoding.hashing import mix
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.scorers import Weighted
from asr.tokenizer import BLANK_ID, EOS_ID

_EMPTY = 0  # hash of the empty prefix
_NOWHERE = -1  # stands for the parent of a prefix that has none; no hash is negative


@dataclass(slots=True)
class _Frames:
    """What the encoder said.

    Attributes:
        log_probs: (B, T', V); behind a length the blank is certain, so that nothing changes there.
        tried: The same where a token may extend a prefix, else -inf.
        num_tried: Most such tokens of any utterance, for each frame up to the longest length.
    """

    log_probs: Tensor
    tried: Tensor
    num_tried: list[int]


@dataclass(slots=True)
class _Beam:
    """The prefixes of each utterance, no two of them equal but where a score is -inf.

    Attributes:
        blank: CTC log-probability of all alignments that end in blank, (B, N) float64.
        token: The same of those that end in the prefix' last token.
        others: Weighted sum of the scorers and the length bonus, (B, N) float64.
        parts: Unweighted scores of each scorer, (P, B, N) float64.
        last: Last token, (B, N); the end of sentence stands for none.
        prefixes: Hash of each prefix, (B, N).
        parents: Hash of each prefix less its last token, (B, N).
    """

    blank: Tensor
    token: Tensor
    others: Tensor
    parts: Tensor
    last: Tensor
    prefixes: Tensor
    parents: Tensor

    def ctc(self) -> Tensor:
        """CTC log-probability of each prefix, (B, N)."""
        return torch.logaddexp(self.blank, self.token)


@dataclass(slots=True)
class _Extensions:
    """Every prefix of a beam with every tried token behind it.

    Attributes:
        tokens: What is tried in each utterance, (B, K).
        ctc: CTC log-probability, (B, N, K) float64; -inf where another row of the beam is that prefix.
        gains: What each scorer adds, (P, B, N, K) float64.
        others: Weighted sum of the scorers and the length bonus, (B, N, K) float64.
    """

    tokens: Tensor
    ctc: Tensor
    gains: Tensor
    others: Tensor


def prefix_beam_search(
    log_probs: Tensor,
    lengths: Tensor,
    *,
    beam_size: int,
    scorers: Sequence[Weighted[Any]] = (),
    length_bonus: float = 0.0,
    token_margin: float = math.inf,
    num_best: int | None = None,
) -> list[list[Hypothesis]]:
    """Searches the transcripts with the best log p_ctc + Σ weight·score + bonus·length.

    In every frame a prefix stays as it is, by a blank or by its last token once more, or grows by a token. The best N
    of each utterance are kept. p_ctc sums all alignments that lie in the beam, so it is never more than the truth.

    Args:
        log_probs: CTC log-probabilities, (B, T', V); anything may stand behind a length.
        lengths: Frames of each utterance, (B,) integers, at least 1.
        beam_size: Prefixes N of an utterance that are kept in every frame.
        scorers: With their names and weights, all able to stay. They are asked when a prefix grows, and what it costs
            to end is added when the utterance ends.
        length_bonus: Added for every token.
        token_margin: In each frame, tokens extend a prefix only if their log-probability is less than this below that
            of the frame's best label; infinity tries all.
        num_best: Most hypotheses that are returned of each utterance; the beam size by default.

    Returns:
        Hypotheses of each utterance, best first, at least one. Their parts are `ctc`, the log-probability of the
        transcript as the beam summed it, and the unweighted scores by name.

    Raises:
        ValueError: If a scorer cannot stay, a setting is out of range, or a log-probability is not a number.
    """
    _check_settings(beam_size, scorers, token_margin)
    frames = _prepare(log_probs, lengths, token_margin)
    beam = _start(len(lengths), beam_size, len(scorers), log_probs.device)
    states = [each.scorer.start(len(lengths), beam_size) for each in scorers]
    history = []
    for frame, num_tried in enumerate(frames.num_tried):
        emissions, tried = frames.log_probs[:, frame], frames.tried[:, frame]
        is_parent = beam.prefixes[:, :, None] == beam.parents[:, None]  # (B, N, N), the first of the second
        stayed = _stay(beam, is_parent, emissions, tried)
        if not num_tried:
            beam = stayed
            continue
        if not scorers:
            # A prefix with a token that is not among the N + 1 best has at least N better ones beside it: the same
            # prefix with each of these, or all but one, as a repeat of its last token may be worse.
            num_tried = min(num_tried, beam_size + 1)
        best, tokens = tried.topk(num_tried, dim=1, sorted=False)  # (B, K)
        scores = []
        for number, each in enumerate(scorers):
            score, states[number] = each.scorer.score(states[number], tokens)
            scores.append(score)
        extensions = _extend(beam, is_parent, best, tokens, scores, scorers, length_bonus)
        beam, columns, tokens = _choose(stayed, extensions)
        history.append((columns, tokens))
        rows = (columns + beam_size * torch.arange(len(columns), device=columns.device)[:, None]).flatten()
        states = [
            each.scorer.advance(state, rows, tokens.flatten()) for each, state in zip(scorers, states, strict=True)
        ]
    nothing = torch.empty((len(lengths), 0), dtype=torch.int64, device=log_probs.device)
    endings = [each.scorer.score(state, nothing)[0][:, EOS_ID] for each, state in zip(scorers, states, strict=True)]
    return _finish(beam, endings, scorers, history, num_best or beam_size)


def _check_settings(beam_size: int, scorers: Sequence[Weighted[Any]], token_margin: float) -> None:
    """Refuses what the search cannot do."""
    if beam_size < 1:
        raise ValueError(f"beam_size is {beam_size}; it must be at least 1")
    if not token_margin > 0:
        raise ValueError(f"token_margin is {token_margin}; it must be above 0, or infinity to try all tokens")
    for each in scorers:
        if not each.scorer.can_stay:
            raise ValueError(
                f"scorer {each.name!r} must extend all rows in every step, but prefix beam search extends some rows "
                "of a frame; use it in asr.decoding.beam.beam_search"
            )


def _prepare(log_probs: Tensor, lengths: Tensor, token_margin: float) -> _Frames:
    """Silences what stands behind the lengths, and finds which tokens each frame tries."""
    valid = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]  # (B, T')
    padding = torch.full_like(log_probs[:1, :1], -math.inf)
    padding[..., BLANK_ID] = 0.0
    log_probs = torch.where(valid[:, :, None], log_probs, padding)
    best = log_probs.amax(dim=2, keepdim=True)
    tried = log_probs.masked_fill(log_probs <= best - token_margin, -math.inf)
    for label in (BLANK_ID, EOS_ID):  # one by one: writing at a list of places is many times slower
        tried[..., label] = -math.inf
    counts = (tried > -math.inf).sum(dim=2, dtype=torch.int32).amax(dim=0)  # (T',)
    # The best label of a frame is not a number where any is not. This waits for the device, once a search.
    if best.isnan().any():
        raise ValueError("the CTC log-probabilities have NaN in them; the model's weights or its input are damaged")
    return _Frames(log_probs, tried, counts.tolist()[: int(lengths.max())])


def _start(num_utterances: int, num_prefixes: int, num_scorers: int, device: torch.device) -> _Beam:
    """The empty prefix of each utterance, as if a blank came before the first frame; the other rows hold nothing."""
    shape = (num_utterances, num_prefixes)
    nothing = torch.full(shape, -math.inf, dtype=torch.float64, device=device)
    blank = nothing.clone()
    blank[:, 0] = 0.0
    return _Beam(
        blank=blank,
        token=nothing,
        others=torch.zeros_like(nothing),
        parts=torch.zeros((num_scorers, *shape), dtype=torch.float64, device=device),
        last=torch.full(shape, EOS_ID, device=device),
        prefixes=torch.full(shape, _EMPTY, device=device),
        parents=torch.full(shape, _NOWHERE, device=device),
    )


def _stay(beam: _Beam, is_parent: Tensor, emissions: Tensor, tried: Tensor) -> _Beam:
    """The same prefixes one frame later.

    Where the parent of a prefix is in the beam too, the parent's extension by the last token is the same transcript
    and joins it here; `_extend` leaves it out.

    Args:
        beam: Before the frame.
        is_parent: Whether the first prefix is the second without its last token, (B, N, N).
        emissions: Log-probabilities of the frame, (B, V).
        tried: The same of tokens that may extend a prefix, (B, V).
    """
    either = beam.ctc()
    is_repeat = beam.last[:, :, None] == beam.last[:, None]
    # A repeat of the last token needs a blank between.
    before = torch.where(is_repeat, beam.blank[:, :, None], either[:, :, None])
    from_parent = before.masked_fill(~is_parent, -math.inf).amax(dim=1)  # (B, N); no prefix has two parents
    return _Beam(
        blank=either + emissions[:, BLANK_ID, None],
        token=torch.logaddexp(beam.token + emissions.gather(1, beam.last), from_parent + tried.gather(1, beam.last)),
        others=beam.others,
        parts=beam.parts,
        last=beam.last,
        prefixes=beam.prefixes,
        parents=beam.parents,
    )


def _extend(
    beam: _Beam,
    is_parent: Tensor,
    emissions: Tensor,
    tokens: Tensor,
    scores: list[Tensor],
    scorers: Sequence[Weighted[Any]],
    length_bonus: float,
) -> _Extensions:
    """All prefixes with all tried tokens behind them.

    Args:
        beam: Before the frame.
        is_parent: Whether the first prefix is the second without its last token, (B, N, N).
        emissions: Log-probabilities of the tried tokens in this frame, (B, K).
        tokens: Which these are, (B, K).
        scores: What each scorer adds for all next tokens, (R, V) each.
        scorers: For their weights.
        length_bonus: Added for every token.
    """
    is_last = tokens[:, None] == beam.last[:, :, None]  # (B, N, K)
    before = torch.where(is_last, beam.blank[:, :, None], beam.ctc()[:, :, None])
    # Prefix with token is in the beam if a row has the prefix for its parent and the token for its last: a product of
    # (N, N) and (N, K) tells.
    in_beam = (is_parent.float() @ is_last.float()) > 0
    others = beam.others[:, :, None] + length_bonus
    columns = tokens[:, None].expand_as(before)
    untried = emissions[:, None] == -math.inf  # in an utterance that tries fewer than K; a blank may be among them
    gains = before.new_empty((len(scorers), *before.shape))
    for number, (each, score) in enumerate(zip(scorers, scores, strict=True)):
        gains[number] = score.unflatten(0, beam.last.shape).gather(2, columns).masked_fill(untried, 0.0)
        others = others + each.weight * gains[number]
    ctc = (before + emissions[:, None]).masked_fill_(in_beam | (others == -math.inf), -math.inf)
    return _Extensions(tokens, ctc, gains, others.expand_as(ctc))


def _choose(stayed: _Beam, extensions: _Extensions) -> tuple[_Beam, Tensor, Tensor]:
    """The best prefixes among those that stayed and those that grew.

    Returns:
        The beam, from which column each of its rows goes on, and by which token, blank where it stays, (B, N) each.
    """
    num_prefixes, num_tried = extensions.ctc.shape[1:]
    grown = (extensions.ctc + extensions.others).flatten(1)  # (B, N·K)
    best, chosen = torch.cat([stayed.ctc() + stayed.others, grown], dim=1).topk(num_prefixes, dim=1)
    stays, nothing = chosen < num_prefixes, best == -math.inf
    places = (chosen - num_prefixes).clamp_min_(0)  # among those that grew
    columns = torch.where(stays, chosen, places // num_tried)
    tokens = extensions.tokens.gather(1, places % num_tried).masked_fill_(stays | nothing, BLANK_ID)

    before, parents = stayed.prefixes.gather(1, columns), stayed.parents.gather(1, columns)
    gains = extensions.gains.flatten(2).gather(2, places.expand(len(stayed.parts), -1, -1))
    beam = _Beam(
        blank=stayed.blank.gather(1, columns).masked_fill_(~stays, -math.inf),
        token=torch.where(stays, stayed.token.gather(1, columns), extensions.ctc.flatten(1).gather(1, places)),
        others=torch.where(stays, stayed.others.gather(1, columns), extensions.others.flatten(1).gather(1, places)),
        parts=stayed.parts.gather(2, columns.expand_as(gains)) + gains.masked_fill_(stays, 0.0),
        last=torch.where(stays, stayed.last.gather(1, columns), tokens),
        prefixes=torch.where(stays, before, mix(before, tokens)),
        # A row that holds nothing may be the double of another, so it must never come to hold something again.
        parents=torch.where(stays, parents, before).masked_fill_(nothing, _NOWHERE),
    )
    return beam, columns, tokens


def _finish(
    beam: _Beam,
    endings: list[Tensor],
    scorers: Sequence[Weighted[Any]],
    history: list[tuple[Tensor, Tensor]],
    num_best: int,
) -> list[list[Hypothesis]]:
    """Adds what it costs to end, (R,) from each scorer, and reads the best transcripts back."""
    ctc = beam.ctc()
    totals = ctc + beam.others
    parts = [ctc]
    for each, ending, part in zip(scorers, endings, beam.parts, strict=True):
        totals = totals + each.weight * ending.view_as(totals).double()
        parts.append(part + ending.view_as(totals))
    totals, order = totals.sort(dim=1, descending=True, stable=True)
    order = order[:, :num_best]
    found_tokens = _trace_back(history, order)
    found_parts = torch.stack(parts, dim=2).gather(1, order[:, :, None].expand(-1, -1, len(parts))).tolist()
    names = ["ctc", *(each.name for each in scorers)]
    return [
        [
            Hypothesis(tokens, total, dict(zip(names, scores, strict=True)))
            for rank, (tokens, total, scores) in enumerate(zip(*row, strict=True))
            if rank == 0 or math.isfinite(total)
        ]
        for row in zip(found_tokens, totals[:, :num_best].tolist(), found_parts, strict=True)
    ]


def _trace_back(history: list[tuple[Tensor, Tensor]], columns: Tensor) -> list[list[tuple[int, ...]]]:
    """Follows rows, (B, N'), from the last frame to the first and returns their tokens."""
    labels = []
    for before, tokens in reversed(history):
        labels.append(tokens.gather(1, columns))
        columns = before.gather(1, columns)
    if not labels:
        return [[()] * columns.shape[1] for _ in columns]
    path = torch.stack(labels[::-1], dim=2).cpu()  # (B, N', L)
    grown = path != BLANK_ID
    found = iter(path[grown].tolist())
    return [[tuple(itertools.islice(found, count)) for count in row] for row in grown.sum(dim=2).tolist()]
