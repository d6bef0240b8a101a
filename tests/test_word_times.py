"""Times of words: the speech with known times that they are measured on, and the measure itself."""

import re
import sys
from pathlib import Path

import pytest
import tiny
import torch

pytest.importorskip("hydra", reason="the extra `recipes` is not installed")
sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import launching
import schema
import word_times
from hydra import compose, initialize_config_dir
from schema import WordTimesRecipe
from word_times import Utterance

from asr import checkpoint
from asr.data.synthetic import SAMPLE_RATE
from asr.tokenizer import CharTokenizer
from asr.transcript import Segment, Word


@pytest.fixture(scope="module")
def utterances() -> list[Utterance]:
    pytest.importorskip("espeakng_loader", reason="the extra `recipes` is not installed")
    return list(word_times.spoken(WordTimesRecipe(num_utterances=3, word_gap_ms=150)))


def save_model(folder: Path) -> Path:
    """A tiny recogniser with random weights that knows the letters of English."""
    tokenizer = CharTokenizer([" ", "'", *map(chr, range(ord("a"), ord("z") + 1))])
    config = tiny.make_config(num_decoder_layers=0)
    torch.manual_seed(0)
    weights = checkpoint.build_model(config, tokenizer).state_dict()
    checkpoint.save(folder, weights, config=config, tokenizer=tokenizer, training={})
    return folder


def test_words_start_where_they_are_said_to_start_after_a_pause(utterances: list[Utterance]) -> None:
    assert len(utterances) == 3
    for waveform, text, starts_s in utterances:
        assert len(starts_s) == len(text.split()) > 1
        loudness = waveform.abs()
        loudest = float(loudness.max())
        for start_s in starts_s:
            start = round(start_s * SAMPLE_RATE)
            # A word begins with a hundredth of its peak; the silence before has noise, 30 dB below speech or less.
            pause = loudness[start - round(0.09 * SAMPLE_RATE) : start - round(0.002 * SAMPLE_RATE)]
            word = loudness[start : start + round(0.06 * SAMPLE_RATE)]
            assert pause.square().mean().sqrt() < 0.02 * loudest
            assert word.square().mean() > 4 * pause.square().mean()


def test_the_error_is_what_the_model_is_late_by(utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch) -> None:
    late_s = iter(0.01 * number for number in range(100))
    starts_s = {text: starts for _, text, starts in utterances}

    def align(loaded: checkpoint.LoadedModel, waveform: torch.Tensor, text: str) -> Segment:
        words = [
            Word(word=word, start_s=start_s + next(late_s), end_s=9.0, confidence=1.0)
            for word, start_s in zip(text.split(), starts_s[text], strict=True)
        ]
        return Segment(start_s=0.0, end_s=9.0, text=text, confidence=1.0, words=words)

    monkeypatch.setattr(word_times, "align_waveform", align)
    errors = word_times.start_errors(tiny.make_loaded(), utterances)
    num_words = sum(map(len, starts_s.values()))
    assert errors.tolist() == pytest.approx([0.01 * number for number in range(num_words)])


def test_the_recipe_prints_the_errors_of_a_model_folder(
    utterances: list[Utterance], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word_times.run(WordTimesRecipe(model=save_model(tmp_path / "model"), num_utterances=2))
    num_words = sum(len(starts_s) for *_, starts_s in utterances[:2])
    assert re.fullmatch(
        rf"{num_words} words start \d+ ms off in the median, \d+ ms at the 90th percentile;\n"
        r"the median with its sign is [+-]\d+ ms, where \+ is late\n",
        capsys.readouterr().out,
    )


def test_the_settings_compose_and_are_checked() -> None:
    schema.register()
    with initialize_config_dir(str(launching.CONF), version_base="1.3"):
        recipe = launching.to_dataclasses(compose("word_times", ["model=runs/synthetic", "seed=2"]))
    assert recipe == WordTimesRecipe(model=Path("runs/synthetic"), seed=2)
    with pytest.raises(ValueError, match=r"^word_gap_ms is 0; it must be at least 1$"):
        WordTimesRecipe(word_gap_ms=0)
