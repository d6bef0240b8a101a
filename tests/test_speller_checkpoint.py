"""Folders of spellers: what is saved is loaded; what is none, or one for other phones, is told in one line."""

from pathlib import Path

import pytest
import spelling_data
import tiny
import torch

from asr import checkpoint
from asr.lm_checkpoint import load_language_model
from asr.nn.speller import SpellerConfig
from asr.speller_checkpoint import build_speller, load_speller, read_speller_shape, save_speller

CONFIG = SpellerConfig(
    width=16, num_heads=2, num_reader_layers=1, reader_feedforward_width=32, num_layers=2, feedforward_width=32
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("speller") / "tiny_speller")


def make_folder(path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = spelling_data.make_tokenizer()
    model = build_speller(CONFIG, tokenizer, num_phones=3)
    save_speller(
        path, model.state_dict(), config=CONFIG, tokenizer=tokenizer, phones=tiny.PHONES, training={"steps": 3}
    )
    return path


def test_a_loaded_speller_gives_the_output_of_the_saved_one(folder: Path) -> None:
    torch.manual_seed(0)
    original = build_speller(CONFIG, spelling_data.make_tokenizer(), num_phones=3).eval()
    loaded = load_speller(folder)
    inputs = torch.tensor([[1, 2, 3]]), torch.rand(1, 4, 6), torch.tensor([4])
    assert torch.equal(loaded.model(*inputs), original(*inputs))
    assert (loaded.config, loaded.phones, loaded.training) == (CONFIG, tiny.PHONES, {"steps": 3})
    assert not loaded.model.training
    tokenizer, config, phones = read_speller_shape(folder)
    assert (tokenizer.tokens, config, phones) == (loaded.tokenizer.tokens, CONFIG, tiny.PHONES)


def test_other_phones_are_refused(folder: Path) -> None:
    loaded = load_speller(folder)
    loaded.check_phones(tiny.PHONES)
    for phones, told in ((["x", "z", "y"], "x z y"), ([], "none")):
        with pytest.raises(ValueError, match=rf"reads the 3 phones x y z, but the recogniser hears {told}; train one"):
            loaded.check_phones(phones)


def test_models_of_other_kinds_are_told_apart(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a recogniser, not a speller; train one with recipes/train_speller"):
        load_speller(tiny_folder)
    with pytest.raises(ValueError, match="holds a speller, not a recogniser"):
        checkpoint.load(folder)
    with pytest.raises(ValueError, match="holds a speller, not a language model"):
        load_language_model(folder)
    with pytest.raises(FileNotFoundError, match="nowhere: no such model"):
        load_speller(tmp_path / "nowhere")


def test_a_config_with_other_settings_is_told(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "damaged")
    path = folder / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"width"', '"breadth"'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"damaged: config\.json is not that of a speller of this toolkit"):
        load_speller(folder)
