"""Beam search against the scores of all token sequences of a tiny vocabulary."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from alignments import transcript_probabilities
from torch import Tensor

from asr.decoding.beam import beam_search
from asr.decoding.ctc import CtcScorer, greedy_search
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.scorers import AttentionScorer, Weighted
from asr.nn.decoder import TransformerDecoder
from asr.tokenizer import BLANK_ID, EOS_ID

VOCAB_SIZE = 5
TOKENS = range(2, VOCAB_SIZE)
NUM_FRAMES = 4
ALL_SEQUENCES = [tokens for n in range(NUM_FRAMES + 1) for tokens in itertools.product(TOKENS, repeat=n)]
FULL_BEAM = len(ALL_SEQUENCES)


def make_decoder(seed: int) -> TransformerDecoder:
    torch.manual_seed(seed)
    decoder = TransformerDecoder(tiny.make_decoder_config(), width=tiny.WIDTH, vocab_size=VOCAB_SIZE)
    return tiny.randomized(decoder, seed=seed)


def joint_scorers(
    decoder: TransformerDecoder, frames: Tensor, log_probs: Tensor, lengths: Tensor, *, ctc_weight: float
) -> list[Weighted[Any]]:
    """CTC and attention for a batch: frames (B, T', D), log_probs (B, T', V)."""
    scorers: list[Weighted[Any]] = [Weighted("ctc", ctc_weight, CtcScorer(log_probs, lengths))]
    if ctc_weight < 1:
        scorers.append(Weighted("attention", 1 - ctc_weight, AttentionScorer(decoder, frames, lengths)))
    return scorers


def joint_search(
    decoder: TransformerDecoder, frames: Tensor, log_probs: Tensor, *, ctc_weight: float, **settings: Any
) -> list[Hypothesis]:
    """The joint search of one utterance: frames (T', D), log_probs (T', V)."""
    lengths = torch.tensor([len(frames)])
    scorers = joint_scorers(decoder, frames[None], log_probs[None], lengths, ctc_weight=ctc_weight)
    return beam_search(scorers, lengths, **settings)[0]


def make_output(seed: int, *, num_frames: int = NUM_FRAMES) -> tuple[Tensor, Tensor]:
    """Frames (T', D) and CTC log-probabilities (T', V)."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(num_frames, tiny.WIDTH, generator=generator)
    logits = torch.randn(num_frames, VOCAB_SIZE, generator=generator)
    return frames, logits.mul(2).log_softmax(dim=-1)


@functools.cache
def scores_of_all_sequences(seed: int) -> dict[tuple[int, ...], dict[str, float]]:
    """What CTC and the decoder say of every sequence that CTC can emit: all alignments, and teacher forcing."""
    decoder, (frames, log_probs) = make_decoder(seed), make_output(seed)
    ctc = transcript_probabilities(log_probs)
    scores = {}
    for tokens in ALL_SEQUENCES:
        logits = decoder(torch.tensor([[EOS_ID, *tokens]]), frames[None], torch.tensor([NUM_FRAMES]))[0]
        next_log_probs = logits.double().log_softmax(dim=-1)
        attention = sum(float(next_log_probs[place, token]) for place, token in enumerate((*tokens, EOS_ID)))
        if tokens in ctc:
            scores[tokens] = {"ctc": math.log(ctc[tokens]), "attention": attention}
    return scores


def exhaustive(seed: int, *, ctc_weight: float, length_bonus: float = 0.0) -> list[Hypothesis]:
    """All sequences that CTC can emit, best first."""
    found = []
    for tokens, parts in scores_of_all_sequences(seed).items():
        score = ctc_weight * parts["ctc"] + (1 - ctc_weight) * parts["attention"] + length_bonus * len(tokens)
        found.append(Hypothesis(tokens, score, parts))
    return sorted(found, key=lambda hypothesis: -hypothesis.score)


@pytest.mark.parametrize("length_bonus", [0.0, 2.0, -0.5])
@pytest.mark.parametrize("ctc_weight", [0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_a_full_beam_finds_what_exhaustive_search_finds(seed: int, ctc_weight: float, length_bonus: float) -> None:
    decoder, (frames, log_probs) = make_decoder(seed), make_output(seed)
    expected = exhaustive(seed, ctc_weight=ctc_weight, length_bonus=length_bonus)
    found = joint_search(
        decoder,
        frames,
        log_probs,
        beam_size=FULL_BEAM,
        ctc_weight=ctc_weight,
        length_bonus=length_bonus,
    )
    assert found[0].tokens == expected[0].tokens
    scores = {hypothesis.tokens: hypothesis for hypothesis in expected}
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(scores[hypothesis.tokens].score, abs=1e-5)
        parts = scores[hypothesis.tokens].parts
        assert hypothesis.parts == pytest.approx({name: parts[name] for name in hypothesis.parts}, abs=1e-5)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert len({each.tokens for each in found}) == len(found)


@torch.no_grad()
def test_the_cases_above_have_best_sequences_of_many_lengths() -> None:
    """Else a search that stops too early, or too late, would pass."""
    lengths = set()
    for seed, ctc_weight, bonus in itertools.product(range(4), (0.1, 0.3, 0.7, 1.0), (0.0, 2.0, -0.5)):
        best = exhaustive(seed, ctc_weight=ctc_weight, length_bonus=bonus)[0]
        lengths.add(len(best.tokens))
    assert lengths >= {1, 2, 3}


@pytest.mark.parametrize("beam_size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_a_narrow_beam_gives_true_scores_and_no_more_hypotheses_than_its_size(seed: int, beam_size: int) -> None:
    decoder, (frames, log_probs) = make_decoder(seed), make_output(seed)
    expected = exhaustive(seed, ctc_weight=0.3)
    found = joint_search(decoder, frames, log_probs, beam_size=beam_size, ctc_weight=0.3)
    assert 1 <= len(found) <= beam_size
    scores = {hypothesis.tokens: hypothesis.score for hypothesis in expected}
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(scores[hypothesis.tokens], abs=1e-5)
    assert found[0].score <= expected[0].score + 1e-5


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_beam_one_with_ctc_alone_is_greedy_search_where_every_frame_is_sure(seed: int) -> None:
    labels = torch.randint(0, VOCAB_SIZE, (12,), generator=torch.Generator().manual_seed(seed))
    labels[labels == EOS_ID] = BLANK_ID
    log_probs = (torch.nn.functional.one_hot(labels, VOCAB_SIZE) * 30.0).log_softmax(dim=-1)
    frames, _ = make_output(seed, num_frames=12)
    decoder = make_decoder(seed)
    found = joint_search(decoder, frames, log_probs, beam_size=1, ctc_weight=1.0)
    assert found[0].tokens == greedy_search(log_probs[None], torch.tensor([12]))[0].tokens


@torch.no_grad()
def test_a_single_frame_carries_at_most_one_token() -> None:
    decoder, (frames, log_probs) = make_decoder(0), make_output(0, num_frames=1)
    settings = {"beam_size": 10, "length_bonus": 9.0}
    found = joint_search(decoder, frames, log_probs, ctc_weight=0.3, **settings)
    assert {hypothesis.tokens for hypothesis in found} == {(), *((token,) for token in TOKENS)}
    assert len(found[0].tokens) == 1


# Batches


@pytest.mark.parametrize("beam_size", [1, 3, 10])
@pytest.mark.parametrize("ctc_weight", [0.3, 1.0])
@torch.no_grad()
def test_a_batch_of_n_equals_n_batches_of_one(beam_size: int, ctc_weight: float) -> None:
    """Utterances of many lengths, that end at different steps, with garbage behind their ends; in double precision."""
    decoder, lengths = make_decoder(0).double(), torch.tensor([7, 1, 12, 3, 9, 12, 2])
    frames = torch.full((len(lengths), 12, tiny.WIDTH), 99.0, dtype=torch.float64)
    log_probs = torch.full((len(lengths), 12, VOCAB_SIZE), 5.0, dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        own = make_output(row, num_frames=length)
        frames[row, :length], log_probs[row, :length] = own[0].double(), own[1].double()
    together = beam_search(
        joint_scorers(decoder, frames, log_probs, lengths, ctc_weight=ctc_weight), lengths, beam_size=beam_size
    )
    assert len({len(found[0].tokens) for found in together}) > 2
    for row, length in enumerate(lengths.tolist()):
        own_frames, own_log_probs = frames[row, :length], log_probs[row, :length]
        alone = joint_search(decoder, own_frames, own_log_probs, ctc_weight=ctc_weight, beam_size=beam_size)
        assert [each.tokens for each in together[row]] == [each.tokens for each in alone]
        for one, other in zip(together[row], alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-9)
            assert one.parts == pytest.approx(other.parts, abs=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_a_gpu_finds_what_a_processor_finds() -> None:
    decoder, lengths = make_decoder(0).double(), torch.tensor([12, 5, 9])
    outputs = [make_output(row, num_frames=12) for row in range(3)]
    frames, log_probs = (torch.stack([each[n] for each in outputs]).double() for n in (0, 1))
    found = []
    for device in ("cpu", "cuda"):
        inputs = (frames.to(device), log_probs.to(device), lengths.to(device))
        scorers = joint_scorers(decoder.to(device), *inputs, ctc_weight=0.3)
        found.append(beam_search(scorers, inputs[2], beam_size=5))
    for ours, others in zip(*found, strict=True):
        assert [each.tokens for each in ours] == [each.tokens for each in others]
        # The positions' cosines are float32 whatever the model is, and a GPU rounds them in its own way.
        assert [each.score for each in ours] == pytest.approx([each.score for each in others], abs=1e-6)


def test_fewer_hypotheses_than_the_beam_can_be_asked_for() -> None:
    decoder, (frames, log_probs) = make_decoder(0), make_output(0)
    with torch.no_grad():
        found = joint_search(decoder, frames, log_probs, ctc_weight=0.3, beam_size=5, num_best=2)
        assert found == joint_search(decoder, frames, log_probs, ctc_weight=0.3, beam_size=5)[:2]


def test_a_search_without_scorers_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^a beam search needs at least one scorer$"):
        beam_search([], torch.tensor([3]), beam_size=2)


@dataclass
class ScriptedScorer:
    """Gives a first token this log-probability, the end of sentence the rest, and repeats the token from then on."""

    token: int
    first: float
    can_stay = False
    headroom = 0.0

    def start(self, num_utterances: int, num_hypotheses: int) -> tuple[int, int]:
        return 0, num_utterances * num_hypotheses

    def score(self, state: tuple[int, int], tokens: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        position, num_rows = state
        log_probs = torch.full((num_rows, VOCAB_SIZE), -20.0)
        log_probs[:, self.token] = self.first if position == 0 else 0.0
        log_probs[:, EOS_ID] = math.log1p(-math.exp(self.first)) if position == 0 else 0.0
        return log_probs, state

    def advance(self, state: tuple[int, int], rows: Tensor, tokens: Tensor) -> tuple[int, int]:
        return state[0] + 1, len(rows)


def test_the_search_waits_for_a_bonus_that_later_tokens_bring() -> None:
    """After one token the empty transcript is far ahead; only the bonus of three more overtakes it."""
    scorers: Sequence[Weighted[Any]] = [Weighted("script", 1.0, ScriptedScorer(2, first=-3.0))]

    def best(*, length_bonus: float, end_margin: float) -> tuple[int, ...]:
        lengths = torch.tensor([4])
        found = beam_search(scorers, lengths, beam_size=4, length_bonus=length_bonus, end_margin=end_margin)
        return found[0][0].tokens

    assert best(length_bonus=0.0, end_margin=0.0) == ()
    assert best(length_bonus=1.0, end_margin=0.0) == ()
    assert best(length_bonus=1.0, end_margin=2.0) == (2, 2, 2, 2)
