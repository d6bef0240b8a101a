"""Training speech as it is heard: where phones begin, how many are wrong, and that a seed decides all draws."""

from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from training_runs import PLAIN
from utterances import make_utterances

from asr.augment import AugmentConfig
from asr.data.manifest import Utterance
from asr.pronunciation import Lexicon, PhoneEncoder
from asr.training.hearing import Heard, HearingConfig, hear, phone_errors, phone_starts

TEXTS = ("a b", "ab", "c", "b a")
ENCODER = PhoneEncoder(Lexicon(tiny.SPOKEN), tiny.PHONES)


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    return make_utterances(tmp_path, [1.0, 1.3, 0.8, 2.0], texts=TEXTS)


def run(utterances: list[Utterance], *, seed: int = 1, **changes: Any) -> Heard:
    settings: dict[str, Any] = {"times": 2, "dropout": False, "augment": PLAIN, "max_batch_s": 5.0}
    loaded = tiny.make_loaded(phones=tiny.PHONES)
    return hear(loaded, utterances, ENCODER, HearingConfig(**(settings | changes)), seed=seed, progress=False)


def make_log_probs(num_frames: int, *, seed: int) -> Tensor:
    return torch.randn(num_frames, 4, generator=torch.Generator().manual_seed(seed)).log_softmax(dim=1)


@pytest.mark.parametrize(("phones", "seed"), [([1, 2], 0), ([1, 1], 1), ([3, 1, 3], 2), ([2], 3)])
def test_phones_begin_where_the_likeliest_path_has_them(phones: list[int], seed: int) -> None:
    log_probs = make_log_probs(6, seed=seed)
    best, starts = -torch.inf, []
    for path in product(range(4), repeat=6):
        if [label for label, _ in groupby(path) if label] == phones:
            score = float(log_probs[torch.arange(6), torch.tensor(path)].sum())
            if score > best:
                best = score
                starts = [p for p, label in enumerate(path) if label and (p == 0 or path[p - 1] != label)]
    assert phone_starts(log_probs, phones) == starts


def test_too_few_frames_have_no_alignment() -> None:
    assert phone_starts(make_log_probs(2, seed=0), [1, 2, 3]) is None
    assert phone_starts(make_log_probs(2, seed=0), [1, 1]) is None
    assert phone_starts(make_log_probs(3, seed=0), [1, 1]) is not None


def test_wrong_phones_are_counted_from_the_likeliest_of_each_frame() -> None:
    frames = torch.eye(4)[torch.tensor([0, 2, 2, 0, 2, 1, 3])].log()
    assert phone_errors(frames, [2, 2, 1, 3]) == 0
    assert phone_errors(frames, [2, 1, 1, 3]) == 1
    assert phone_errors(frames, []) == 4


def test_each_utterance_is_heard_as_often_as_asked_for(utterances: list[Utterance]) -> None:
    found = run(utterances)
    assert sorted((each.hearing, each.index) for each in found.utterances) == [(h, i) for h in (0, 1) for i in range(4)]
    for each in found.utterances:
        assert each.phones == [0, *ENCODER.encode(TEXTS[each.index])]
        assert each.starts == sorted(each.starts) and each.starts[0] == 0
        sums = each.probabilities.float().sum(dim=1)
        torch.testing.assert_close(sums, torch.ones(len(sums)), atol=2e-3, rtol=0)
    (first,) = [each for each in found.utterances if (each.index, each.hearing) == (0, 0)]
    assert first.ends_word == [False, True, True]
    (second,) = [each for each in found.utterances if (each.index, each.hearing) == (1, 0)]
    assert second.ends_word == [False, False, True]


def test_as_it_is_it_is_what_the_recogniser_says(utterances: list[Utterance]) -> None:
    model = tiny.make_model(phones=tiny.PHONES)
    for each in run(utterances, times=1).utterances:
        waveform = (
            torch.cat([tiny.noise(round(utterances[each.index].duration_s * tiny.SAMPLE_RATE), seed=each.index)]) / 2
        )
        with torch.inference_mode():
            expected = model.phone_log_probs(model.encode(waveform[None], torch.tensor([len(waveform)])).frames)[
                0
            ].exp()
        torch.testing.assert_close(each.probabilities.float(), expected, atol=0.05, rtol=0)


def test_a_seed_decides_what_is_drawn(utterances: list[Utterance]) -> None:
    settings = {"dropout": True, "augment": AugmentConfig(speeds=[0.9, 1.1])}
    one, same, other = (run(utterances, seed=seed, **settings) for seed in (1, 1, 2))
    for first, second in zip(one.utterances, same.utterances, strict=True):
        assert torch.equal(first.probabilities, second.probabilities)
    assert one.phone_error_rate == same.phone_error_rate
    key = {(each.index, each.hearing): each.probabilities for each in other.utterances}
    assert any(
        key[each.index, each.hearing].shape != each.probabilities.shape
        or not key[each.index, each.hearing].allclose(each.probabilities)
        for each in one.utterances
    )


def test_dropout_and_masks_change_what_is_heard(utterances: list[Utterance]) -> None:
    plain = run(utterances, times=1)
    for changes in ({"dropout": True}, {"augment": AugmentConfig(speeds=[1.0])}):
        changed = run(utterances, times=1, **changes)
        for one, other in zip(plain.utterances, changed.utterances, strict=True):
            assert not one.probabilities.allclose(other.probabilities, atol=1e-3)


def test_the_recogniser_is_left_as_it_was(utterances: list[Utterance]) -> None:
    loaded = tiny.make_loaded(phones=tiny.PHONES)
    config = HearingConfig(times=1, dropout=True, augment=PLAIN)
    hear(loaded, utterances, ENCODER, config, seed=1, progress=False)
    assert not any(module.training for module in loaded.model.modules())


def test_utterances_with_more_phones_than_frames_are_left_out(utterances: list[Utterance], caplog) -> None:
    utterances[0] = replace(utterances[0], text=" ".join(["ab"] * 50))
    found = run(utterances)
    assert {each.index for each in found.utterances} == {1, 2, 3}
    assert caplog.messages == ["left out: 2 of 8 utterances as heard, with fewer frames than phones"]


def test_a_word_without_pronunciation_and_settings_out_of_range_are_named(utterances: list[Utterance]) -> None:
    utterances[2] = replace(utterances[2], text="cab")
    with pytest.raises(ValueError, match=r"u2: the pronunciation lexicon lacks the word 'cab'"):
        run(utterances)
    with pytest.raises(ValueError, match=r"hearing\.times is 0; it must be at least 1"):
        HearingConfig(times=0)
    with pytest.raises(ValueError, match=r"hearing\.augment\.pause_probability is 0\.5"):
        HearingConfig(augment=AugmentConfig(pause_probability=0.5))
