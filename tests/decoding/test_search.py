"""The one door to all decoding modes: batches, settings and what it refuses."""

import math
from typing import Any

import pytest
import tiny
import torch

from asr.decoding.search import DecodingConfig, NotFiniteError, Recognition, recognize

GREEDY = DecodingConfig(mode="greedy")
JOINT = DecodingConfig(mode="joint", beam_size=3)
WAVEFORMS = [tiny.noise(length, seed=length) for length in (3000, 1, 800, 2111)]


def run(waveforms: list[torch.Tensor], config: DecodingConfig, *, num_decoder_layers: int = 2) -> list[Recognition]:
    padded, lengths = tiny.pad(waveforms, value=math.nan)
    return recognize(tiny.make_model(num_decoder_layers=num_decoder_layers), padded, lengths, config)


@pytest.mark.parametrize("config", [GREEDY, JOINT], ids=["greedy", "joint"])
def test_a_batch_of_n_equals_n_batches_of_one(config: DecodingConfig) -> None:
    together = run(WAVEFORMS, config)
    for waveform, found in zip(WAVEFORMS, together, strict=True):
        (alone,) = run([waveform], config)
        assert [each.tokens for each in found.hypotheses] == [each.tokens for each in alone.hypotheses]
        scores = [each.score for each in alone.hypotheses]
        assert [each.score for each in found.hypotheses] == pytest.approx(scores, abs=1e-4)
        torch.testing.assert_close(found.log_probs, alone.log_probs, atol=1e-5, rtol=0)


def test_the_model_of_these_tests_says_something() -> None:
    assert len({found.best.tokens for found in run(WAVEFORMS, GREEDY)}) > 1
    assert any(found.best.tokens for found in run(WAVEFORMS, JOINT))


def test_log_probs_come_without_padding() -> None:
    model = tiny.make_model()
    for waveform, found in zip(WAVEFORMS, run(WAVEFORMS, GREEDY), strict=True):
        assert found.log_probs.shape == (model.num_frames(len(waveform)), 6)


def test_the_best_hypothesis_comes_first() -> None:
    for found in run(WAVEFORMS, JOINT):
        assert found.best is found.hypotheses[0]
        assert found.best.score == max(each.score for each in found.hypotheses)


def test_settings_of_the_config_reach_the_search() -> None:
    (one,) = run(WAVEFORMS[:1], DecodingConfig(mode="joint", beam_size=1))
    (three,) = run(WAVEFORMS[:1], JOINT)
    (long,) = run(WAVEFORMS[:1], DecodingConfig(mode="joint", beam_size=3, length_bonus=3.0))
    (ctc,) = run(WAVEFORMS[:1], DecodingConfig(mode="joint", beam_size=3, ctc_weight=1.0))
    (few,) = run(WAVEFORMS[:1], DecodingConfig(mode="joint", beam_size=3, ctc_weight=1.0, num_candidates=1))
    assert len(one.hypotheses) == 1 < len(three.hypotheses) == 3
    assert len(long.best.tokens) > len(three.best.tokens)
    assert ctc.best.score == pytest.approx(ctc.best.parts["ctc"])
    assert few.best.score < ctc.best.score


def test_greedy_mode_needs_no_decoder() -> None:
    assert len(run(WAVEFORMS, GREEDY, num_decoder_layers=0)) == len(WAVEFORMS)


def test_joint_mode_without_a_decoder_is_an_error() -> None:
    message = r"^decoding\.mode is 'joint', but this model has no attention decoder; use mode greedy$"
    with pytest.raises(ValueError, match=message):
        run(WAVEFORMS, JOINT, num_decoder_layers=0)


def test_a_model_in_training_mode_is_an_error() -> None:
    padded, lengths = tiny.pad(WAVEFORMS)
    with pytest.raises(ValueError, match=r"^the model is in training mode; call model\.eval\(\) before recognition$"):
        recognize(tiny.make_model().train(), padded, lengths, GREEDY)


@pytest.mark.parametrize("config", [GREEDY, JOINT], ids=["greedy", "joint"])
def test_weights_that_are_no_numbers_are_an_error(config: DecodingConfig) -> None:
    model = tiny.make_model()
    with torch.no_grad():
        model.ctc.bias.fill_(math.nan)
    padded, lengths = tiny.pad(WAVEFORMS)
    message = r"^the model's output is not a number \(NaN\); its weights or its input are damaged$"
    with pytest.raises(NotFiniteError, match=message):
        recognize(model, padded, lengths, config)


def test_samples_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(NotFiniteError):
        run([torch.full((900,), math.nan)], GREEDY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "best"}, "decoding.mode is 'best'; choose one of greedy, joint"),
        ({"beam_size": 0}, "decoding.beam_size is 0; it must be at least 1"),
        ({"num_candidates": 0}, "decoding.num_candidates is 0; it must be at least 1"),
        ({"ctc_weight": 0.0}, "decoding.ctc_weight is 0.0; it must be in (0, 1]"),
        ({"ctc_weight": 1.1}, "decoding.ctc_weight is 1.1; it must be in (0, 1]"),
    ],
)
def test_errors_of_the_config(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        DecodingConfig(**settings)
    assert str(caught.value) == message
