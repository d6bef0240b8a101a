"""Joint search against the scores of all token sequences of a tiny vocabulary."""

import functools
import itertools
import math
from types import SimpleNamespace
from typing import cast

import pytest
import tiny
import torch
from alignments import transcript_probabilities
from torch import Tensor

from asr.decoding.ctc import greedy_search
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.joint import joint_search
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
        num_candidates=VOCAB_SIZE,
        length_bonus=length_bonus,
    )
    assert found[0].tokens == expected[0].tokens
    scores = {hypothesis.tokens: hypothesis for hypothesis in expected}
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(scores[hypothesis.tokens].score, abs=1e-5)
        assert hypothesis.parts == pytest.approx(scores[hypothesis.tokens].parts, abs=1e-5)
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
    found = joint_search(decoder, frames, log_probs, beam_size=beam_size, ctc_weight=0.3, num_candidates=VOCAB_SIZE)
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
    found = joint_search(decoder, frames, log_probs, beam_size=1, ctc_weight=1.0, num_candidates=VOCAB_SIZE)
    assert found[0].tokens == greedy_search(log_probs[None], torch.tensor([12]))[0].tokens


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_one_candidate_is_the_token_that_the_decoder_likes_best(seed: int) -> None:
    decoder, (frames, log_probs) = make_decoder(seed), make_output(seed)
    found = joint_search(
        decoder, frames, log_probs, beam_size=FULL_BEAM, ctc_weight=0.3, num_candidates=1, length_bonus=5.0
    )
    longest = max((hypothesis.tokens for hypothesis in found), key=len)
    assert longest
    logits = decoder(torch.tensor([[EOS_ID, *longest]]), frames[None], torch.tensor([NUM_FRAMES]))[0]
    logits[:, [BLANK_ID, EOS_ID]] = -math.inf
    assert tuple(logits.argmax(dim=-1)[:-1].tolist()) == longest
    assert all(hypothesis.tokens == longest[: len(hypothesis.tokens)] for hypothesis in found)


@torch.no_grad()
def test_a_single_frame_carries_at_most_one_token() -> None:
    decoder, (frames, log_probs) = make_decoder(0), make_output(0, num_frames=1)
    found = joint_search(
        decoder, frames, log_probs, beam_size=10, ctc_weight=0.3, num_candidates=VOCAB_SIZE, length_bonus=9.0
    )
    assert {hypothesis.tokens for hypothesis in found} == {(), *((token,) for token in TOKENS)}
    assert len(found[0].tokens) == 1


def scripted_decoder(token: int, first: float) -> TransformerDecoder:
    """Gives a first token this log-probability, the end of sentence the rest, and repeats the token from then on."""
    state = SimpleNamespace(position=0, select=lambda _: SimpleNamespace(position=1, select=state.select))

    def step(tokens: Tensor, state: SimpleNamespace) -> tuple[Tensor, SimpleNamespace]:
        log_probs = torch.full((len(tokens), VOCAB_SIZE), -20.0)
        log_probs[:, token] = first if state.position == 0 else 0.0
        log_probs[:, EOS_ID] = math.log1p(-math.exp(first)) if state.position == 0 else 0.0
        return log_probs, state

    return cast(TransformerDecoder, SimpleNamespace(start=lambda *_: state, step=step))


def test_the_search_waits_for_a_bonus_that_later_tokens_bring() -> None:
    """After one token the empty transcript is far ahead; only the bonus of three more overtakes it."""
    frames, log_probs = torch.zeros(7, tiny.WIDTH), torch.zeros(7, VOCAB_SIZE).log_softmax(dim=-1)
    settings = {"beam_size": 4, "ctc_weight": 0.01, "num_candidates": VOCAB_SIZE}
    decoder = scripted_decoder(2, first=-3.0)
    assert joint_search(decoder, frames, log_probs, **settings)[0].tokens == ()
    assert joint_search(decoder, frames, log_probs, **settings, length_bonus=1.0)[0].tokens == (2, 2, 2, 2)
