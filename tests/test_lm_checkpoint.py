"""Folders of language models: what is saved is loaded, and what is no language model is told in one line."""

import shutil
from pathlib import Path

import pytest
import tiny
import torch

from asr import checkpoint
from asr.lm_checkpoint import (
    LoadedLanguageModel,
    build_language_model,
    load_language_model,
    load_tokenizer_and_lm_config,
    save_language_model,
)
from asr.nn.lm import LanguageModelConfig
from asr.tokenizer import CharTokenizer

CONFIG = LanguageModelConfig(num_layers=2, width=tiny.WIDTH, num_heads=2, feedforward_width=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "tiny_lm"
    torch.manual_seed(0)
    model = build_language_model(CONFIG, tiny.make_tokenizer())
    save_language_model(path, model.state_dict(), config=CONFIG, tokenizer=tiny.make_tokenizer(), training={"steps": 3})
    return path


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """A copy, for a test to damage."""
    return shutil.copytree(folder, tmp_path / "damaged")


def test_a_loaded_model_gives_the_output_of_the_saved_one(folder: Path) -> None:
    torch.manual_seed(0)
    original, loaded = build_language_model(CONFIG, tiny.make_tokenizer()).eval(), load_language_model(folder)
    tokens = torch.tensor([[1, 2, 3], [1, 4, 4]])
    assert torch.equal(loaded.model(tokens), original(tokens))
    assert (loaded.config, loaded.training, loaded.path) == (CONFIG, {"steps": 3}, folder)
    assert loaded.tokenizer.to_dict() == tiny.make_tokenizer().to_dict()
    assert not loaded.model.training
    tokenizer, config = load_tokenizer_and_lm_config(folder)
    assert (tokenizer.tokens, config) == (tiny.make_tokenizer().tokens, CONFIG)


def test_a_run_folder_means_the_model_in_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run" / "model")
    assert load_language_model(tmp_path / "run").path == tmp_path / "run" / "model"


def test_a_folder_holds_the_files_that_a_recogniser_has(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_save_that_fails_leaves_the_older_folder(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(path: Path, _: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", no_space)
    with pytest.raises(OSError, match="cannot be saved"):
        save_language_model(damaged, {}, config=CONFIG, tokenizer=tiny.make_tokenizer(), training={})
    assert load_language_model(damaged).training == {"steps": 3}


# What is no language model


def test_there_is_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such model; give a model folder or the folder of a"):
        load_language_model(tmp_path / "nowhere")


def test_a_recogniser_is_no_language_model(tiny_folder: Path) -> None:
    for load in (load_language_model, load_tokenizer_and_lm_config):
        with pytest.raises(ValueError) as caught:
            load(tiny_folder)
        expected = "holds a recogniser, not a language model; train one with recipes/train_lm.py"
        assert str(caught.value) == f"{tiny_folder}: {expected}"


def test_a_language_model_is_no_recogniser(folder: Path) -> None:
    for load in (checkpoint.load, checkpoint.load_tokenizer_and_config):
        with pytest.raises(ValueError) as caught:
            load(folder)
        expected = "holds a language model, not a recogniser; name the folder of a recogniser"
        assert str(caught.value) == f"{folder}: {expected}"


def test_weights_that_are_cut_short(damaged: Path) -> None:
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: cut short or damaged .*; copy it again or use another"):
        load_language_model(damaged)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"width": 16', '"width": 32', r"the weights do not fit config\.json and tokenizer\.json: "),
        ('"width": 16', '"depth": 16', r"config\.json is not that of a language model of this toolkit \(.*depth"),
        ('"width": 16', '"width": 17', r"not that of a language model of this toolkit \(lm\.width is 17; it must be"),
        ('"lm"', '"ml"', r"config\.json is not that of a language model of this toolkit \('lm'\)"),
        ('"format": 1', '"format": 9', r"format 9, but this version reads formats 1 and 2; update the package"),
    ],
)
def test_a_config_that_does_not_fit(damaged: Path, before: str, after: str, message: str) -> None:
    config = damaged / "config.json"
    config.write_text(config.read_text().replace(before, after))
    with pytest.raises(ValueError, match=message):
        load_language_model(damaged)


# Its tokens are a recogniser's


def loaded_with(folder: Path, characters: str) -> LoadedLanguageModel:
    loaded = load_language_model(folder)
    loaded.tokenizer = CharTokenizer(characters)
    return loaded


def test_a_language_model_fits_the_tokens_it_was_trained_with(folder: Path) -> None:
    load_language_model(folder).check_tokens(CharTokenizer.train(["cab"]))


@pytest.mark.parametrize(
    ("characters", "difference"),
    [
        (" abcd", "7 tokens, but the recogniser 6"),
        (" acb", "'c' as token 4, but the recogniser 'b'"),
    ],
)
def test_other_tokens_are_refused(folder: Path, characters: str, difference: str) -> None:
    with pytest.raises(ValueError) as caught:
        loaded_with(folder, characters).check_tokens(tiny.make_tokenizer())
    assert str(caught.value) == (
        f"{folder}: the language model has {difference}; use it in a second pass (mode rescore or "
        "lexicon), or train one with this recogniser's tokenizer (recipes/train_lm.py recognizer=…)"
    )
