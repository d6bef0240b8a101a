"""CTC in recognition: greedy search against a loop, prefix scores against all alignments."""

import itertools
import math

import pytest
import torch
from alignments import transcript_probabilities
from torch import Tensor

from asr.decoding.ctc import CtcScorer, greedy_search
from asr.tokenizer import BLANK_ID, EOS_ID

TOKENS = (2, 3)  # with blank and end of sentence, a vocabulary of four
EXACT = {"abs": 1e-9, "rel": 0}


def random_log_probs(num_frames: int, vocab_size: int = 4, *, seed: int = 0, sharpness: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_frames, vocab_size, generator=generator, dtype=torch.float64)
    return (logits * sharpness).log_softmax(dim=-1)


# Greedy search


def slow_greedy(log_probs: Tensor) -> tuple[tuple[int, ...], float]:
    tokens: list[int] = []
    score, last = 0.0, None
    for frame in log_probs.tolist():
        label = max(range(len(frame)), key=lambda n: frame[n])
        score += frame[label]
        if label not in (last, BLANK_ID, EOS_ID):
            tokens.append(label)
        last = label
    return tuple(tokens), score


@pytest.mark.parametrize("seed", range(5))
def test_greedy_search_equals_a_loop_over_frames_whatever_the_padding(seed: int) -> None:
    lengths = [30, 1, 17, 29]
    log_probs = torch.stack([random_log_probs(30, seed=10 * seed + row) for row in range(len(lengths))])
    hypotheses = greedy_search(log_probs, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        tokens, score = slow_greedy(log_probs[row, :length])
        assert hypotheses[row].tokens == tokens
        assert hypotheses[row].score == pytest.approx(score)
        assert hypotheses[row].parts == {"ctc": hypotheses[row].score}


@pytest.mark.parametrize(
    ("path", "tokens"),
    [
        ([0, 0, 0], ()),
        ([2, 2, 2], (2,)),
        ([2, 0, 2], (2, 2)),
        ([2, 3, 2], (2, 3, 2)),
        ([1, 1, 1], ()),
        ([2, 1, 2], (2, 2)),
        ([3, 3, 0], (3,)),
    ],
)
def test_greedy_search_joins_repeats_and_drops_blanks(path: list[int], tokens: tuple[int, ...]) -> None:
    log_probs = torch.nn.functional.one_hot(torch.tensor([path]), 4).double().log_softmax(dim=-1)
    assert greedy_search(log_probs, torch.tensor([3]))[0].tokens == tokens


# Prefix scores


def score_prefix(scorer: CtcScorer, tokens: tuple[int, ...]) -> tuple[float, Tensor]:
    """The score of a prefix, extended token by token, and what each next token adds, (V,)."""
    state = scorer.start(1, 1)
    total = 0.0
    for token in tokens:
        gains, state = scorer.score(state)
        total += float(gains[0, token])
        state = scorer.advance(state, torch.tensor([0]), torch.tensor([token]))
    return total, scorer.score(state)[0][0]


def make_scorer(log_probs: Tensor) -> CtcScorer:
    return CtcScorer(log_probs[None], torch.tensor([len(log_probs)]))


def prefixes(max_length: int) -> list[tuple[int, ...]]:
    return [tokens for length in range(max_length + 1) for tokens in itertools.product(TOKENS, repeat=length)]


def check_against_all_alignments(log_probs: Tensor) -> None:
    """A prefix scores the probability of all transcripts that begin with it, its end that of exactly this one."""
    probabilities, scorer = transcript_probabilities(log_probs), make_scorer(log_probs)
    for prefix in prefixes(3):
        expected = sum(p for tokens, p in probabilities.items() if tokens[: len(prefix)] == prefix)
        total, gains = score_prefix(scorer, prefix)
        if expected:
            assert math.exp(total) == pytest.approx(expected, **EXACT), prefix
            assert math.exp(total + float(gains[EOS_ID])) == pytest.approx(probabilities.get(prefix, 0.0), **EXACT)
        else:
            assert not total > -1000


@pytest.mark.parametrize("num_frames", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_prefix_scores_are_sums_over_all_alignments(num_frames: int, seed: int) -> None:
    check_against_all_alignments(random_log_probs(num_frames, seed=seed))


def test_impossible_labels_give_numbers_and_no_nan() -> None:
    log_probs = random_log_probs(5)
    log_probs[:, 3] = -math.inf
    log_probs[2, BLANK_ID] = -math.inf
    check_against_all_alignments(log_probs.log_softmax(dim=-1))


@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_the_score_of_the_true_transcript_agrees_with_ctc_loss_on_a_long_utterance(sharpness: float) -> None:
    """Sharp frames make products of hundreds of tiny probabilities, which must not underflow."""
    log_probs = random_log_probs(400, 6, sharpness=sharpness)
    tokens = greedy_search(log_probs[None], torch.tensor([400]))[0].tokens
    total, gains = score_prefix(make_scorer(log_probs), tokens)
    loss = torch.nn.functional.ctc_loss(
        log_probs[:, None], torch.tensor([tokens]), torch.tensor([400]), torch.tensor([len(tokens)]), reduction="sum"
    )
    assert total + float(gains[EOS_ID]) == pytest.approx(-float(loss), rel=1e-9)


def test_many_rows_at_once_equal_one_at_a_time() -> None:
    """Two utterances of unlike lengths, three rows each, reordered within their utterance; then one of them leaves."""
    outputs = [random_log_probs(6, 5, seed=1), random_log_probs(4, 5, seed=2)]
    padded = torch.full((2, 6, 5), math.nan, dtype=torch.float64)
    padded[0], padded[1, :4] = outputs
    scorer = CtcScorer(padded, torch.tensor([6, 4]))
    state = scorer.start(2, 3)
    state = scorer.advance(scorer.score(state)[1], torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([2, 3, 4, 2, 3, 4]))
    state = scorer.advance(scorer.score(state)[1], torch.tensor([2, 0, 0, 3, 5, 3]), torch.tensor([4, 2, 3, 4, 4, 2]))
    check_rows(scorer.score(state)[0], outputs[0], [(4, 4), (2, 2), (2, 3)])
    check_rows(scorer.score(state)[0][3:], outputs[1], [(2, 4), (4, 4), (2, 2)])
    state = scorer.advance(scorer.score(state)[1], torch.tensor([4, 4, 3]), torch.tensor([2, 4, 3]))
    check_rows(scorer.score(state)[0], outputs[1], [(4, 4, 2), (4, 4, 4), (2, 4, 3)])


def check_rows(gains: Tensor, log_probs: Tensor, expected: list[tuple[int, ...]]) -> None:
    for row, prefix in enumerate(expected):
        expected_gains = score_prefix(make_scorer(log_probs), prefix)[1]
        torch.testing.assert_close(gains[row, EOS_ID:], expected_gains[EOS_ID:])  # a blank is never looked at
