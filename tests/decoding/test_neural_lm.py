"""The language model in recognition: token by token and as a whole it says the same, and a search finds its best.

In a second pass its tokens may be others than the recogniser's.
"""

import itertools
from functools import partial

import pytest
import tiny
import torch

from asr.decoding.beam import beam_search
from asr.decoding.neural_lm import NeuralLmScorer, SentenceScorer, sequence_log_probs
from asr.decoding.scorers import Weighted
from asr.nn.lm import LanguageModel, LanguageModelConfig
from asr.tokenizer import EOS_ID, BpeTokenizer, CharTokenizer

VOCAB_SIZE = 5
SEQUENCES = [[2, 3], [], [4, 4, 2, 3, 3, 4], [3], [2, 2, 2], [4, 2]]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.manual_seed(0)
    config = LanguageModelConfig(num_layers=2, width=tiny.WIDTH, num_heads=2, feedforward_width=32)
    return tiny.randomized(LanguageModel(config, vocab_size=VOCAB_SIZE))


@torch.no_grad()
def by_hand(lm: LanguageModel, tokens: list[int]) -> float:
    """The chain rule, each factor from a pass of its own."""
    read, total = [EOS_ID], 0.0
    for token in [*tokens, EOS_ID]:
        total += float(lm(torch.tensor([read]))[0, -1].double().log_softmax(dim=0)[token])
        read.append(token)
    return total


def test_a_sequence_has_the_product_of_the_probabilities_of_its_tokens_and_its_end(lm):
    found = sequence_log_probs(lm, SEQUENCES)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([by_hand(lm, tokens) for tokens in SEQUENCES], abs=1e-5)


@pytest.mark.parametrize("max_batch_tokens", [1, 5, 9, 1000])
def test_neither_batch_nor_padding_nor_order_matter(lm, max_batch_tokens):
    alone = [float(sequence_log_probs(lm, [tokens])) for tokens in SEQUENCES]
    found = sequence_log_probs(lm, SEQUENCES, max_batch_tokens=max_batch_tokens)
    assert found.tolist() == pytest.approx(alone, abs=1e-5)
    turned = sequence_log_probs(lm, SEQUENCES[::-1], max_batch_tokens=max_batch_tokens)
    assert turned.tolist() == pytest.approx(alone[::-1], abs=1e-5)


def test_no_batch_is_larger_than_allowed_and_a_longer_sequence_goes_alone(lm, monkeypatch):
    shapes = []
    forward = lm.forward
    monkeypatch.setattr(lm, "forward", lambda tokens: shapes.append(tuple(tokens.shape)) or forward(tokens))
    sequence_log_probs(lm, SEQUENCES, max_batch_tokens=6)
    assert shapes == [(1, 7), (1, 4), (2, 3), (2, 2)]


def test_a_large_vocabulary_makes_batches_smaller(lm, monkeypatch):
    shapes = []
    forward = lm.forward
    monkeypatch.setattr(lm, "forward", lambda tokens: shapes.append(tuple(tokens.shape)) or forward(tokens))
    monkeypatch.setattr("asr.decoding.neural_lm._MAX_LOGITS", 6 * VOCAB_SIZE)
    sequence_log_probs(lm, SEQUENCES)
    assert shapes == [(1, 7), (1, 4), (2, 3), (2, 2)]


def test_no_sequences_have_no_scores(lm):
    assert sequence_log_probs(lm, []).shape == (0,)


def test_sentences_are_scored_in_the_models_own_pieces():
    pieces = BpeTokenizer.train(["ab ab abc", "ca ab"], vocab_size=9)
    torch.manual_seed(1)
    config = LanguageModelConfig(num_layers=2, width=tiny.WIDTH, num_heads=2, feedforward_width=32)
    model = tiny.randomized(LanguageModel(config, vocab_size=pieces.vocab_size))
    letters = tiny.make_tokenizer()
    texts = ["ab abc", "", "c", "ab"]
    assert len(pieces.encode("ab abc")) < len(letters.encode("ab abc"))
    lists = [[letters.encode(text) for text in own] for own in (texts, ["ab ab"], texts[::-1])]
    found = SentenceScorer(model, pieces, letters)(lists)
    expected = [by_hand(model, pieces.encode(text)) for text in texts]
    assert found[0] == pytest.approx(expected, abs=1e-5) and found[2] == pytest.approx(expected[::-1], abs=1e-5)
    assert found[1] == pytest.approx([by_hand(model, pieces.encode("ab ab"))], abs=1e-5)


def test_what_sentences_begin_with_in_common_is_read_once(lm, monkeypatch):
    shapes = []
    forward = lm.forward
    monkeypatch.setattr(
        lm, "forward", lambda tokens, **own: shapes.append(tuple(tokens.shape)) or forward(tokens, **own)
    )
    letters = CharTokenizer(" ab")
    SentenceScorer(lm, letters, letters)([[[2, 3, 4], [2, 3], [2, 3, 3, 4], [2, 3, 4]]])
    assert shapes == [(1, 6)]  # the start, 2, 2 3, 2 3 4, 2 3 3, 2 3 3 4


def test_sentences_in_the_recognisers_tokens_are_taken_as_they_are(lm, monkeypatch):
    letters = CharTokenizer(" ab")
    monkeypatch.setattr(letters, "encode", None)
    [found] = SentenceScorer(lm, letters, CharTokenizer(" ab"))([SEQUENCES])
    assert found == pytest.approx(sequence_log_probs(lm, SEQUENCES).tolist(), abs=1e-5)


def test_a_model_that_lacks_a_letter_of_the_recogniser_does_not_score(lm):
    with pytest.raises(ValueError, match=r"has no token for 'c', which the recogniser writes; train one on texts that"):
        SentenceScorer(lm, CharTokenizer(" ab"), CharTokenizer(" abc"))


@torch.inference_mode()
def test_the_scorer_adds_up_to_the_whole_sequence_through_any_change_of_rows(lm):
    generator = torch.Generator().manual_seed(3)
    scorer = NeuralLmScorer(lm)
    num_rows = 6
    state = scorer.start(2, 3)
    texts: list[list[int]] = [[] for _ in range(num_rows)]
    totals = torch.zeros(num_rows, dtype=torch.float64)
    for step in range(6):
        scores, state = scorer.score(state)
        assert scores.shape == (len(texts), VOCAB_SIZE)
        ended = totals + scores[:, EOS_ID]
        assert ended.tolist() == pytest.approx(sequence_log_probs(lm, texts).tolist(), abs=1e-5)
        # An utterance leaves in the middle, three rows with it.
        rows = torch.randint(0, len(texts), (num_rows if step < 2 else 3,), generator=generator)
        tokens = torch.randint(2, VOCAB_SIZE, (len(rows),), generator=generator)
        state = scorer.advance(state, rows, tokens)
        totals = totals[rows] + scores[rows, tokens]
        texts = [[*texts[row], token] for row, token in zip(rows.tolist(), tokens.tolist(), strict=True)]


@torch.inference_mode()
def test_a_state_can_be_used_twice(lm):
    scorer = NeuralLmScorer(lm)
    _, state = scorer.score(scorer.start(1, 2))
    rows, tokens = torch.tensor([1, 0]), torch.tensor([2, 3])
    first, _ = scorer.score(scorer.advance(state, rows, tokens))
    scorer.score(scorer.advance(state, rows, tokens + 1))
    again, _ = scorer.score(scorer.advance(state, rows, tokens))
    assert torch.equal(first, again)


def test_it_is_for_searches_over_tokens_alone(lm):
    assert not NeuralLmScorer(lm).can_stay


@torch.inference_mode()
def test_a_search_with_the_language_model_alone_finds_what_it_thinks_most_probable(lm):
    lengths = torch.tensor([3, 2])
    scorers = [Weighted("neural", 0.5, NeuralLmScorer(lm))]
    # With a bonus that high, the search goes on to the last frame, and so lists all there is.
    found = beam_search(scorers, lengths, beam_size=40, length_bonus=50.0)
    for length, hypotheses in zip(lengths.tolist(), found, strict=True):
        every = [list(each) for n in range(length + 1) for each in itertools.product(range(2, VOCAB_SIZE), repeat=n)]
        scores = sequence_log_probs(lm, every).tolist()
        ranked = sorted(zip(scores, every, strict=True), key=lambda each: -0.5 * each[0] - 50.0 * len(each[1]))
        assert [list(each.tokens) for each in hypotheses] == [tokens for _, tokens in ranked]
        assert [each.parts["neural"] for each in hypotheses] == pytest.approx([score for score, _ in ranked], abs=1e-5)
        assert hypotheses[0].score == pytest.approx(0.5 * ranked[0][0] + 50.0 * length, abs=1e-5)


def test_a_model_in_training_mode_does_not_score(lm):
    lm.train()
    try:
        letters = CharTokenizer(" ab")
        sentences = partial(SentenceScorer, tokenizer=letters, spelling=letters)
        for score in (NeuralLmScorer, sentences, lambda model: sequence_log_probs(model, SEQUENCES)):
            with pytest.raises(ValueError, match=r"language model is in training mode; call eval\(\) on it before it"):
                score(lm)
    finally:
        lm.eval()
