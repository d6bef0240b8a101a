"""The second pass: the decoder's score of whole hypotheses, and how they are ranked by it."""

import pytest
import tiny
import torch

from asr.decoding.hypothesis import Hypothesis
from asr.decoding.rescore import attention_log_probs, combine, rescore
from asr.nn.decoder import TransformerDecoder
from asr.tokenizer import EOS_ID

VOCAB_SIZE = 6
LENGTHS = torch.tensor([7, 3, 5])
FOUND = [
    [Hypothesis((2, 3, 4), 0.0, {"ctc": -1.0}), Hypothesis((), 0.0, {"ctc": -2.0})],
    [Hypothesis((5,), 0.0, {"ctc": -0.5})],
    [
        Hypothesis((3, 3), 0.0, {"ctc": -4.0}),
        Hypothesis((2,), 0.0, {"ctc": -3.0}),
        Hypothesis((4, 2), 0.0, {"ctc": -1}),
    ],
]


def make_decoder() -> TransformerDecoder:
    torch.manual_seed(0)
    return tiny.randomized(TransformerDecoder(tiny.make_decoder_config(), width=tiny.WIDTH, vocab_size=VOCAB_SIZE))


def make_frames() -> torch.Tensor:
    return torch.randn(3, 7, tiny.WIDTH, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def one_at_a_time(decoder: TransformerDecoder, row: int, tokens: tuple[int, ...]) -> float:
    """Teacher forcing of a single hypothesis on its own frames without padding."""
    frames = make_frames()[row : row + 1, : int(LENGTHS[row])]
    log_probs = decoder(torch.tensor([[EOS_ID, *tokens]]), frames, LENGTHS[row : row + 1])[0].log_softmax(dim=-1)
    return float(sum(log_probs[place, token] for place, token in enumerate((*tokens, EOS_ID))))


@torch.no_grad()
def test_scores_of_lists_equal_scores_one_at_a_time() -> None:
    """Lists and hypotheses of unlike lengths, utterances with padding."""
    decoder = make_decoder()
    found = attention_log_probs(decoder, make_frames(), LENGTHS, FOUND)
    for row, (hypotheses, scores) in enumerate(zip(FOUND, found, strict=True)):
        assert scores == pytest.approx([one_at_a_time(decoder, row, each.tokens) for each in hypotheses], abs=1e-5)


@torch.no_grad()
def test_hypotheses_are_ranked_by_the_weighted_sum_and_keep_their_parts() -> None:
    decoder = make_decoder()
    weights = {"ctc": 0.4, "attention": 0.6}
    ranked = rescore(FOUND, decoder, make_frames(), LENGTHS, weights=weights, length_bonus=0.5)
    for row, (before, after) in enumerate(zip(FOUND, ranked, strict=True)):
        assert {each.tokens for each in after} == {each.tokens for each in before}
        assert [each.score for each in after] == sorted((each.score for each in after), reverse=True)
        for each in after:
            heard = one_at_a_time(decoder, row, each.tokens)
            assert each.parts == pytest.approx({"ctc": each.parts["ctc"], "attention": heard}, abs=1e-5)
            assert each.score == pytest.approx(0.4 * each.parts["ctc"] + 0.6 * heard + 0.5 * len(each.tokens), abs=1e-5)


def test_a_part_without_a_weight_counts_nothing() -> None:
    hypothesis = Hypothesis((2, 3), 9.0, {"ctc": -1.0, "ngram": -5.0})
    assert combine(hypothesis, weights={"ctc": 2.0}, length_bonus=0.25).score == -1.5
