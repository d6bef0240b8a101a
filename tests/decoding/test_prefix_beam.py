"""Prefix beam search against the scores of all transcripts of a tiny vocabulary."""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from alignments import transcript_probabilities
from torch import Tensor

from asr.decoding.ctc import greedy_search
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.prefix_beam import prefix_beam_search
from asr.decoding.scorers import Weighted
from asr.tokenizer import BLANK_ID, EOS_ID

VOCAB_SIZE = 5
EXACT = {"abs": 1e-9, "rel": 0}
WIDE = 1000  # more prefixes than there are

Transcript = tuple[int, ...]


class BigramScorer:
    """A table of log-probabilities, (V, V), of the next token after the last; the end of sentence stands for none."""

    can_stay = True
    headroom = 0.0

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def start(self, num_utterances: int, num_hypotheses: int) -> Tensor:
        return torch.full((num_utterances * num_hypotheses,), EOS_ID, device=self.table.device)

    def score(self, state: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.table[state], state

    def advance(self, state: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        return torch.where(tokens == BLANK_ID, state[rows], tokens)

    def score_of(self, tokens: Transcript) -> float:
        rows = self.table.tolist()
        return sum(rows[last][token] for last, token in itertools.pairwise((EOS_ID, *tokens, EOS_ID)))


@dataclass
class Settings:
    """What a search is asked for, beside its size."""

    seeds: tuple[int, ...] = ()  # of the bigram scorers
    length_bonus: float = 0.0

    def arguments(self) -> dict[str, Any]:
        return {"scorers": make_scorers(*self.seeds), "length_bonus": self.length_bonus}


ALL_SETTINGS = [Settings(), Settings(length_bonus=0.7), Settings((7,)), Settings((7, 8), -0.3)]


def make_scorers(*seeds: int) -> list[Weighted[Tensor]]:
    """Bigram scorers of weights 1, 1/2, …; they never see a blank, and their scores of it would spoil everything."""
    weighted = []
    for number, seed in enumerate(seeds, start=1):
        table = torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        table = table.mul(1.5).log_softmax(dim=-1)
        table[:, BLANK_ID] = table[BLANK_ID] = math.nan
        weighted.append(Weighted(f"bigram{seed}", 1 / number, BigramScorer(table)))
    return weighted


def make_log_probs(num_frames: int, *, seed: int = 0, vocab_size: int = VOCAB_SIZE, sharpness: float = 1.5) -> Tensor:
    """(T', V) float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_frames, vocab_size, generator=generator, dtype=torch.float64)
    return (logits * sharpness).log_softmax(dim=-1)


def search_one(log_probs: Tensor, *, beam_size: int, **settings: Any) -> list[Hypothesis]:
    """Searches one utterance, (T', V)."""
    [found] = prefix_beam_search(log_probs[None], torch.tensor([len(log_probs)]), beam_size=beam_size, **settings)
    return found


@functools.cache
def probabilities(num_frames: int, seed: int) -> dict[Transcript, float]:
    """Of all transcripts without the end of sentence in them."""
    found = transcript_probabilities(make_log_probs(num_frames, seed=seed))
    return {tokens: probability for tokens, probability in found.items() if EOS_ID not in tokens}


def exhaustive(num_frames: int, seed: int, settings: Settings) -> list[Hypothesis]:
    """All transcripts, best first."""
    found = []
    for tokens, probability in probabilities(num_frames, seed).items():
        parts = {"ctc": math.log(probability)}
        score = parts["ctc"] + settings.length_bonus * len(tokens)
        for each in make_scorers(*settings.seeds):
            assert isinstance(each.scorer, BigramScorer)
            parts[each.name] = each.scorer.score_of(tokens)
            score += each.weight * parts[each.name]
        found.append(Hypothesis(tokens, score, parts))
    return sorted(found, key=lambda hypothesis: -hypothesis.score)


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, **EXACT)
        assert one.parts == pytest.approx(other.parts, **EXACT)


# Scores


@pytest.mark.parametrize("settings", ALL_SETTINGS)
@pytest.mark.parametrize(("num_frames", "seed"), [(1, 0), (2, 0), (4, 0), (4, 1), (5, 2), (6, 3)])
def test_a_full_beam_finds_all_transcripts_with_the_scores_of_exhaustive_search(
    num_frames: int, seed: int, settings: Settings
) -> None:
    found = search_one(make_log_probs(num_frames, seed=seed), beam_size=WIDE, **settings.arguments())
    assert_same(found, exhaustive(num_frames, seed, settings))


@pytest.mark.parametrize("settings", ALL_SETTINGS)
@pytest.mark.parametrize("beam_size", [1, 2, 3])
def test_a_narrow_beam_gives_lower_bounds_of_the_true_scores(beam_size: int, settings: Settings) -> None:
    gaps = []
    for seed in range(8):
        expected = {each.tokens: each for each in exhaustive(5, seed, settings)}
        found = search_one(make_log_probs(5, seed=seed), beam_size=beam_size, **settings.arguments())
        assert len(found) == beam_size
        assert len({each.tokens for each in found}) == beam_size
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        for each in found:
            true = expected[each.tokens]
            assert {**each.parts, "ctc": 0} == pytest.approx({**true.parts, "ctc": 0}, **EXACT)
            assert each.score - each.parts["ctc"] == pytest.approx(true.score - true.parts["ctc"], **EXACT)
            gaps.append(true.parts["ctc"] - each.parts["ctc"])
    assert min(gaps) > -1e-9
    assert max(gaps) > 1e-3, "a beam of this size loses nothing here, so the test shows nothing"


def slow_search(log_probs: Tensor, beam_size: int, token_margin: float) -> dict[Transcript, float]:
    """One prefix after another, with dictionaries."""
    beam = {(): (0.0, -math.inf)}
    for frame in log_probs.tolist():
        grown: dict[Transcript, tuple[float, float]] = {}

        def add(prefix: Transcript, blank: float, token: float, grown: dict[Transcript, Any] = grown) -> None:
            before = grown.get(prefix, (-math.inf, -math.inf))
            grown[prefix] = (log_add(before[0], blank), log_add(before[1], token))

        for prefix, (blank, token) in beam.items():
            add(prefix, log_add(blank, token) + frame[BLANK_ID], -math.inf)
            if prefix:
                add(prefix, -math.inf, token + frame[prefix[-1]])
            for label in range(2, len(frame)):
                if frame[label] > max(frame) - token_margin:
                    before = blank if prefix[-1:] == (label,) else log_add(blank, token)
                    add((*prefix, label), -math.inf, before + frame[label])
        ranked = sorted(grown.items(), key=lambda item: -log_add(*item[1]))
        beam = dict(ranked[:beam_size])
    return {prefix: log_add(*scores) for prefix, scores in beam.items() if log_add(*scores) > -math.inf}


def log_add(one: float, other: float) -> float:
    return float(torch.logaddexp(torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)))


@pytest.mark.parametrize("token_margin", [math.inf, 4.0, 1.0])
@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_a_narrow_beam_keeps_what_a_plain_loop_over_prefixes_keeps(beam_size: int, token_margin: float) -> None:
    """Long enough for prefixes to leave the beam, and to come back while what grew from them is still there."""
    for seed in range(3):
        log_probs = make_log_probs(25, seed=seed, vocab_size=9)
        found = search_one(log_probs, beam_size=beam_size, token_margin=token_margin)
        expected = slow_search(log_probs, beam_size, token_margin)
        assert {each.tokens: each.score for each in found} == pytest.approx(expected, **EXACT)
        assert [each.tokens for each in found] == list(expected)


@pytest.mark.parametrize(
    ("path", "tokens"),
    [
        ([2, 2, 2], (2,)),
        ([2, 0, 2], (2, 2)),
        ([0, 2, 3], (2, 3)),
        ([2, 3, 2], (2, 3, 2)),
        ([0, 0, 0], ()),
        ([3], (3,)),
        ([0], ()),
    ],
)
def test_repeats_are_one_token_without_a_blank_between(path: list[int], tokens: Transcript) -> None:
    log_probs = torch.full((len(path), VOCAB_SIZE), -math.inf)
    log_probs[torch.arange(len(path)), torch.tensor(path)] = 0.0
    assert search_one(log_probs, beam_size=4) == [Hypothesis(tokens, 0.0, {"ctc": 0.0})]


def test_a_prefix_that_repeats_and_its_parent_that_grows_are_one_transcript() -> None:
    """Of two frames with blank and `a` alike, three of four paths say `a`; to say `aa`, a blank must fit between."""
    log_probs = torch.full((2, VOCAB_SIZE), -math.inf, dtype=torch.float64)
    log_probs[:, [BLANK_ID, 2]] = math.log(0.5)
    found = search_one(log_probs, beam_size=WIDE)
    assert {each.tokens: math.exp(each.score) for each in found} == pytest.approx({(2,): 0.75, (): 0.25}, **EXACT)
    found = search_one(log_probs[[0, 0, 0]], beam_size=WIDE)
    expected = {(2,): 6 / 8, (): 1 / 8, (2, 2): 1 / 8}
    assert {each.tokens: math.exp(each.score) for each in found} == pytest.approx(expected, **EXACT)


def test_the_best_transcript_is_not_the_best_path() -> None:
    """Three paths of one token are together more likely than the one of blanks, though each is less."""
    log_probs = torch.tensor([[0.6, 0.0, 0.4], [0.6, 0.0, 0.4]]).log()
    assert greedy_search(log_probs[None], torch.tensor([2]))[0].tokens == ()
    assert search_one(log_probs, beam_size=2)[0].tokens == (2,)


def test_the_score_of_a_long_utterance_is_near_ctc_loss() -> None:
    """A hundred tokens of three frames with a blank before each; the beam misses a little of what the loss sums."""
    tokens = torch.randint(2, 30, (100, 1), generator=torch.Generator().manual_seed(0))
    path = torch.nn.functional.pad(tokens.expand(-1, 3), (1, 0), value=BLANK_ID).flatten()
    log_probs = make_log_probs(400, vocab_size=30) + 10.0 * torch.nn.functional.one_hot(path, 30)
    log_probs = log_probs.log_softmax(dim=-1)
    loss = torch.nn.functional.ctc_loss(log_probs[:, None], tokens.T, [400], [100], reduction="sum")
    best = search_one(log_probs, beam_size=10)[0]
    assert best.tokens == tuple(tokens[:, 0].tolist())
    assert -float(loss) - 0.1 < best.score <= -float(loss) + 1e-9


def test_labels_that_are_never_emitted_leave_the_transcripts_without_them() -> None:
    log_probs = make_log_probs(4)
    log_probs[:, EOS_ID] += 5.0
    found = search_one(log_probs.log_softmax(dim=-1), beam_size=WIDE)
    assert found
    assert all(BLANK_ID not in each.tokens and EOS_ID not in each.tokens for each in found)


def test_frames_where_no_label_is_possible_leave_the_empty_transcript() -> None:
    found = search_one(torch.full((3, VOCAB_SIZE), -math.inf), beam_size=3)
    assert found == [Hypothesis((), -math.inf, {"ctc": -math.inf})]


# The beam


def test_a_scorer_decides_between_transcripts_that_sound_alike() -> None:
    log_probs = torch.full((1, VOCAB_SIZE), -math.inf)
    log_probs[0, 2:] = -math.log(3)
    for wanted in range(2, VOCAB_SIZE):
        table = torch.full((VOCAB_SIZE, VOCAB_SIZE), -3.0)
        table[EOS_ID, wanted] = -1.0
        found = search_one(log_probs, beam_size=3, scorers=[Weighted("lm", 0.5, BigramScorer(table))])
        assert found[0].tokens == (wanted,)
        assert found[0].parts == pytest.approx({"ctc": -math.log(3), "lm": -4.0})
        assert found[0].score == pytest.approx(-math.log(3) - 2.0)


def test_what_it_costs_to_end_counts_in_the_ranking() -> None:
    log_probs = torch.full((1, VOCAB_SIZE), -math.inf)
    log_probs[0, 2:] = torch.tensor([0.5, 0.3, 0.2]).log()
    table = torch.zeros(VOCAB_SIZE, VOCAB_SIZE)
    table[2, EOS_ID] = -9.0
    found = search_one(log_probs, beam_size=3, scorers=[Weighted("lm", 1.0, BigramScorer(table))])
    assert [each.tokens for each in found] == [(3,), (4,), (2,)]


def test_fewer_hypotheses_are_returned_on_request() -> None:
    log_probs = make_log_probs(4)
    expected = search_one(log_probs, beam_size=8)
    assert search_one(log_probs, beam_size=8, num_best=3) == expected[:3]


def test_a_narrow_margin_tries_only_the_labels_that_are_close_to_the_best() -> None:
    log_probs = torch.tensor([[0.4, 0.0, 0.35, 0.2, 0.05], [0.9, 0.0, 0.04, 0.03, 0.03]]).log()
    found = search_one(log_probs, beam_size=WIDE, token_margin=math.log(3))
    assert {each.tokens for each in found} == {(), (2,), (3,)}
    # The second frame adds nothing but blanks and repeats.
    assert {each.tokens: math.exp(each.score) for each in found} == pytest.approx(
        {(): 0.36, (2,): 0.35 * 0.94, (3,): 0.2 * 0.93}, rel=1e-6
    )


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_a_wide_margin_changes_nothing(settings: Settings) -> None:
    log_probs = make_log_probs(6, seed=5)
    found = search_one(log_probs, beam_size=5, token_margin=1e6, **settings.arguments())
    assert_same(found, search_one(log_probs, beam_size=5, **settings.arguments()))


# The batch


@pytest.mark.parametrize("padding", [0.0, 1e4, math.nan, -math.inf])
@pytest.mark.parametrize("token_margin", [math.inf, 1.5])
@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_a_batch_equals_batches_of_one_whatever_the_padding(
    settings: Settings, token_margin: float, padding: float
) -> None:
    lengths = [12, 1, 7, 12, 3]
    batch = torch.full((len(lengths), 15, VOCAB_SIZE), padding, dtype=torch.float64)
    for row, length in enumerate(lengths):
        batch[row, :length] = make_log_probs(length, seed=row, sharpness=3.0)
    arguments: dict[str, Any] = {"beam_size": 6, "token_margin": token_margin, **settings.arguments()}
    found = prefix_beam_search(batch, torch.tensor(lengths), **arguments)
    for row, length in enumerate(lengths):
        assert_same(found[row], search_one(batch[row, :length], **arguments))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_a_gpu_finds_what_a_processor_finds(settings: Settings) -> None:
    log_probs = torch.stack([make_log_probs(40, seed=seed) for seed in range(3)])
    lengths = torch.tensor([40, 9, 25])
    expected = prefix_beam_search(log_probs, lengths, beam_size=6, **settings.arguments())
    arguments = settings.arguments()
    for each in arguments["scorers"]:
        each.scorer.table = each.scorer.table.cuda()
    found = prefix_beam_search(log_probs.cuda(), lengths.cuda(), beam_size=6, **arguments)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0; it must be at least 1"),
        ({"token_margin": 0.0}, "token_margin is 0.0; it must be above 0, or infinity to try all tokens"),
        ({"token_margin": math.nan}, "token_margin is nan; it must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_one(make_log_probs(2), **{"beam_size": 2, **settings})


def test_a_scorer_that_cannot_stay_is_refused_by_its_name() -> None:
    [weighted] = make_scorers(7)
    weighted.scorer.can_stay = False
    with pytest.raises(ValueError, match="scorer 'bigram7' must extend all rows in every step"):
        search_one(make_log_probs(2), beam_size=2, scorers=[weighted])


def test_a_log_probability_that_is_not_a_number_is_refused() -> None:
    log_probs = make_log_probs(3)
    log_probs[1, 3] = math.nan
    with pytest.raises(ValueError, match="the CTC log-probabilities have NaN in them"):
        search_one(log_probs, beam_size=2)
