"""The door for Python: a model by name or path, and transcripts from it."""

import io
import shutil
from pathlib import Path

import pytest
import tiny
import torch

import asr
from asr import checkpoint, hub, speech_model
from asr.alignment import align_file
from asr.audio import AudioError
from asr.confidence import Calibration
from asr.decoding.compact_ngram import write_compact
from asr.decoding.search import DecodingConfig
from asr.ngrams.training import NgramTrainingConfig, train
from asr.transcriber import transcribe
from asr.variants import DefaultSearch, TunedSearch, write_tuned

TUNED = {
    "joint+ngram": TunedSearch(weights={"lm.ngram_weight": 2.0}, calibration=Calibration(bias=-3.0)),
    "joint": TunedSearch(calibration=Calibration(bias=3.0)),
}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder as it is released: a tiny recogniser, a language model that only knows `cab`, and joint search."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("released") / "model")
    text = folder.with_name("text.txt")
    text.write_text("cab\ncab cab\n" * 20)
    write_compact(folder / "words.ngram", train([text], NgramTrainingConfig(order=2)).tables)
    write_tuned(folder / "decoding.json", TUNED, about={}, default=DefaultSearch(mode="joint", beam_size=4))
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_noise(tmp_path_factory.mktemp("speech") / "speech.wav", duration_s=2)


def test_the_package_offers_the_model_that_came_with_it(
    released: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "RELEASED", released)
    model = asr.load_model(device="cpu")
    assert isinstance(model, asr.SpeechModel)
    transcript = model.transcribe(str(speech))
    assert transcript.audio == str(speech) and transcript.text == model.transcribe(speech).text != ""
    assert transcript.segments[0].words[0].confidence is not None
    assert model.transcribe(io.BytesIO(speech.read_bytes())).text == transcript.text
    assert asr.load_model(released, device="cpu").transcribe(speech).text == transcript.text


def test_what_the_folder_proposes_is_what_is_done(released: Path, speech: Path) -> None:
    """The default is joint search with the folder's language model, its weights and calibration."""
    model = asr.load_model(str(released), device="cpu")
    found = model.transcribe(speech)
    assert found == model.transcribe(speech, decoding="joint", beam_size=4, lm=released / "words.ngram")
    without = model.transcribe(speech, lm="none")
    assert without.text != found.text
    assert without.text == transcribe(model.loaded, speech, decoding=DecodingConfig(mode="joint", beam_size=4)).text
    assert without.confidence > found.confidence  # as the calibrations have it
    assert model.transcribe(speech, decoding="greedy").text == transcribe(model.loaded, speech).text


def test_a_folder_that_proposes_nothing_is_searched_greedily(tiny_folder: Path, speech: Path) -> None:
    model = asr.load_model(tiny_folder, device="cpu")
    assert model.transcribe(speech) == transcribe(model.loaded, speech)


def test_a_search_is_prepared_once(released: Path, speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(speech_model.Transcriber):
        def __init__(self, *args: object, **settings: object) -> None:
            made.append(settings["decoding"])
            super().__init__(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(speech_model, "Transcriber", Counted)
    model = asr.load_model(released, device="cpu")
    assert made == []
    for _ in range(2):
        model.transcribe(speech)
        model.transcribe(speech, decoding="greedy")
    assert [config.mode for config in made] == ["joint", "greedy"]


def test_hotwords_are_expected(released: Path, speech: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("abba\t500\n")
    model = asr.load_model(released, device="cpu")
    assert "abba" in model.transcribe(speech, hotwords=tmp_path / "names.txt", lm="none").text
    assert "abba" not in model.transcribe(speech, lm="none").text


def test_a_known_text_gets_times(released: Path, speech: Path) -> None:
    model = asr.load_model(released, device="cpu")
    aligned = model.align(str(speech), "a cab")
    assert [word.word for word in aligned.segments[0].words] == ["a", "cab"]
    assert aligned == align_file(model.loaded, speech, "a cab")


def test_tokenizer_and_config_are_at_hand(tiny_folder: Path) -> None:
    model = asr.load_model(tiny_folder, device="cpu")
    assert model.tokenizer.vocab_size == 6
    assert model.config == tiny.make_config()


def test_a_run_folder_stands_for_its_model(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    assert asr.load_model(tmp_path, device="cpu").loaded.path == tmp_path / "model"


def test_what_is_missing_is_named(tmp_path: Path, released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "RELEASED", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"^no model came with this installation; name one: "):
        asr.load_model()
    with pytest.raises(FileNotFoundError, match="nothing: no such model; give a model folder"):
        asr.load_model(tmp_path / "nothing")
    model = asr.load_model(released, device="cpu")
    with pytest.raises(AudioError, match=r"no\.wav: cannot be opened"):
        model.transcribe(tmp_path / "no.wav")
    with pytest.raises(FileNotFoundError, match=r"no\.ngram: no such language model"):
        model.transcribe(tmp_path / "no.wav", lm=tmp_path / "no.ngram")


def test_half_precision_says_the_same(released: Path, speech: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(released)
    half = shutil.copytree(released, tmp_path / "half")
    checkpoint.save(
        tmp_path / "weights",
        loaded.model.state_dict(),
        config=loaded.config,
        tokenizer=loaded.tokenizer,
        training=loaded.training,
        dtype=torch.float16,
    )
    shutil.copy(tmp_path / "weights" / "model.safetensors", half)
    exact, rounded = (asr.load_model(folder, device="cpu").transcribe(speech) for folder in (released, half))
    assert rounded.text == exact.text
    assert rounded.confidence == pytest.approx(exact.confidence, abs=0.01)
