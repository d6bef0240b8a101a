"""CTC in recognition: greedy search against a loop, prefix scores against all alignments."""

import itertools
import math

import pytest
import torch
from alignments import transcript_probabilities
from torch import Tensor

from asr.decoding.ctc import PrefixScorer, PrefixState, greedy_search
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


def score_prefix(scorer: PrefixScorer, tokens: tuple[int, ...]) -> PrefixState:
    """The state of one prefix, extended token by token."""
    state, last = scorer.start(), EOS_ID
    for token in tokens:
        state = scorer.extend(state, torch.tensor([last]), torch.tensor([[token]]))
        last = token
    return state


def prefixes(max_length: int) -> list[tuple[int, ...]]:
    return [tokens for length in range(max_length + 1) for tokens in itertools.product(TOKENS, repeat=length)]


@pytest.mark.parametrize("num_frames", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_prefix_score_is_the_probability_of_all_transcripts_that_begin_with_it(num_frames: int, seed: int) -> None:
    log_probs = random_log_probs(num_frames, seed=seed)
    probabilities = transcript_probabilities(log_probs)
    scorer = PrefixScorer(log_probs)
    for prefix in prefixes(3)[1:]:
        expected = sum(p for tokens, p in probabilities.items() if tokens[: len(prefix)] == prefix)
        assert math.exp(float(score_prefix(scorer, prefix).scores)) == pytest.approx(expected, **EXACT), prefix


@pytest.mark.parametrize("num_frames", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_end_of_sentence_scores_the_probability_of_exactly_that_transcript(num_frames: int, seed: int) -> None:
    log_probs = random_log_probs(num_frames, seed=seed)
    probabilities = transcript_probabilities(log_probs)
    scorer = PrefixScorer(log_probs)
    for prefix in prefixes(3):
        last = torch.tensor([prefix[-1] if prefix else EOS_ID])
        ended = scorer.extend(score_prefix(scorer, prefix), last, torch.tensor([[EOS_ID]]))
        assert math.exp(float(ended.scores)) == pytest.approx(probabilities.get(prefix, 0.0), **EXACT), prefix


@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_the_score_of_the_true_transcript_agrees_with_ctc_loss_on_a_long_utterance(sharpness: float) -> None:
    """Sharp frames make products of hundreds of tiny probabilities, which must not underflow."""
    log_probs = random_log_probs(400, 6, sharpness=sharpness)
    tokens = greedy_search(log_probs[None], torch.tensor([400]))[0].tokens
    scorer = PrefixScorer(log_probs)
    ended = scorer.extend(score_prefix(scorer, tokens), torch.tensor([tokens[-1]]), torch.tensor([[EOS_ID]]))
    loss = torch.nn.functional.ctc_loss(
        log_probs[:, None], torch.tensor([tokens]), torch.tensor([400]), torch.tensor([len(tokens)]), reduction="sum"
    )
    assert float(ended.scores) == pytest.approx(-float(loss), rel=1e-9)


def test_many_prefixes_and_candidates_at_once_equal_one_at_a_time() -> None:
    scorer = PrefixScorer(random_log_probs(6, 5))
    first = scorer.extend(scorer.start(), torch.tensor([EOS_ID]), torch.tensor([[2, 3, 4]]))
    candidates = torch.tensor([[EOS_ID, 2, 4], [EOS_ID, 3, 2], [EOS_ID, 4, 3]])
    second = scorer.extend(first, torch.tensor([2, 3, 4]), candidates)
    third = scorer.extend(second.select(torch.tensor([2, 7])), torch.tensor([4, 4]), torch.tensor([[4, 2], [4, 2]]))
    for index, prefix in enumerate([(2, 4, 4), (2, 4, 2), (4, 4, 4), (4, 4, 2)]):
        expected = score_prefix(scorer, prefix)
        torch.testing.assert_close(third.scores[index], expected.scores[0])
        torch.testing.assert_close(third.nonblank[index], expected.nonblank[0])
        torch.testing.assert_close(third.blank[index], expected.blank[0])


def test_impossible_labels_give_numbers_and_no_nan() -> None:
    log_probs = random_log_probs(5)
    log_probs[:, 3] = -math.inf
    log_probs[2, BLANK_ID] = -math.inf
    log_probs = log_probs.log_softmax(dim=-1)
    probabilities = transcript_probabilities(log_probs)
    scorer = PrefixScorer(log_probs)
    for prefix in prefixes(3)[1:]:
        expected = sum(p for tokens, p in probabilities.items() if tokens[: len(prefix)] == prefix)
        assert math.exp(float(score_prefix(scorer, prefix).scores)) == pytest.approx(expected, **EXACT), prefix
