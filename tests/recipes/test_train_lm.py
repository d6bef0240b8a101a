"""The recipe that trains a language model, from end to end on a few sentences of a tiny recogniser's letters."""

import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import train_lm
import yaml

from asr import checkpoint
from asr.data import manifest
from asr.lm_checkpoint import load_language_model

SENTENCES = [f"{a} {b}{c}" for a in "abc" for b in "abc" for c in "abc"]
SMALL = [
    *("lm.num_layers=2", "lm.width=16", "lm.num_heads=2", "lm.feedforward_width=32"),
    *("trainer.max_steps=6", "trainer.valid_every=3", "trainer.save_every=3", "trainer.log_every=1"),
    *("loader.max_batch_tokens=64", "loader.max_sentence_tokens=32", "optim.warmup_steps=2"),
    *("device=cpu", "num_threads=1", "tracking=none", "holdout_sentences=5", "name=letters"),
]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> list[str]:
    """What makes the training small; the text is a compressed file and a manifest."""
    folder = tmp_path_factory.mktemp("text")
    with lzma.open(folder / "a.txt.xz", "wt") as stream:
        stream.writelines(f"{sentence.upper()}\n" for sentence in SENTENCES)
    utterance = manifest.Utterance(id="u", audio=folder / "u.wav", duration_s=1.0, text="abc cba")
    manifest.write(folder / "b.jsonl", [utterance])
    return [f"texts=[{folder / 'a.txt.xz'},{folder / 'b.jsonl'}]", f"recognizer={tiny_folder}", *SMALL]


def test_the_command_makes_a_run_folder_with_a_language_model(tmp_path: Path, arguments: list[str]):
    command = [sys.executable, train_lm.__file__, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "letters"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "train.log", "checkpoints", "model"}
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert (config["lm"]["width"], config["name"], config["holdout_sentences"]) == (16, "letters", 5)
    assert "step 6/6 " in (folder / "train.log").read_text(encoding="utf-8")
    assert done.stdout.splitlines()[-1].startswith("5 validation sentences, 10 words: perplexity ")
    loaded = load_language_model(folder)
    loaded.check_tokens(tiny.make_tokenizer())
    assert loaded.training["steps"] == 6


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose: Callable[..., Any]) -> Callable[..., None]:
    """Runs the recipe in this process; its folder is the test's."""
    monkeypatch.setattr(train_lm, "run_folder", lambda: tmp_path)
    return lambda *arguments: train_lm.run(compose("train_lm", *arguments))


def test_a_finished_run_goes_on_with_more_steps_and_refuses_other_text(
    tmp_path: Path, arguments: list[str], run: Callable[..., None], capsys
):
    run(*arguments)
    first = capsys.readouterr().out
    before = checkpoint.load_weights(tmp_path / "model")
    run(*arguments)
    assert capsys.readouterr().out == first
    after = checkpoint.load_weights(tmp_path / "model")
    assert all(before[name].equal(after[name]) for name in before)
    run(*arguments, "trainer.max_steps=7")
    assert load_language_model(tmp_path).training["steps"] == 7
    with pytest.raises(ValueError, match=r"holds a run with holdout_sentences=5, not 6; give this run another name"):
        run(*arguments, "holdout_sentences=6")


def test_a_text_to_choose_the_model_on_can_be_named(
    tmp_path: Path, arguments: list[str], run: Callable[..., None], capsys
):
    valid = tmp_path / "valid.txt"
    valid.write_text("a b c\nab\n")
    run(*arguments, f"valid=[{valid}]", "trainer.max_steps=1")
    assert capsys.readouterr().out.startswith("2 validation sentences, 4 words: perplexity ")


def test_a_model_may_have_pieces_of_words_of_its_own(tmp_path: Path, arguments: list[str], run: Callable[..., None]):
    run(*arguments, "recognizer=null", "pieces=9")
    loaded = load_language_model(tmp_path)
    assert loaded.tokenizer.vocab_size == 9
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("abc cab")) == "abc cab"
    with pytest.raises(ValueError, match="use it in a second pass"):
        loaded.check_tokens(tiny.make_tokenizer())


def test_training_may_start_from_another_model(tmp_path: Path, arguments: list[str], run: Callable[..., None], caplog):
    run(*arguments)
    (tmp_path / "checkpoints").rename(tmp_path / "before")
    (tmp_path / "model").rename(tmp_path / "start")
    start = load_language_model(tmp_path / "start")
    adapt = [*arguments, "recognizer=null", f"init_from={tmp_path / 'start'}"]
    with caplog.at_level("INFO"):
        run(*adapt, "optim.lr=1e-12", "lm.dropout=0.1", "trainer.average=none")
    assert f"starting from the weights of {tmp_path / 'start'}" in caplog.text
    adapted = load_language_model(tmp_path)
    adapted.check_tokens(start.tokenizer)
    for name, weight in start.model.state_dict().items():
        torch.testing.assert_close(adapted.model.state_dict()[name], weight, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"^init_from: .*start has other sizes; .* set lm\.num_layers=2$"):
        (tmp_path / "checkpoints").rename(tmp_path / "after")
        run(*adapt, "lm.num_layers=1")


def test_a_number_of_pieces_that_the_texts_do_not_allow_is_named(arguments: list[str], run: Callable[..., None]):
    with pytest.raises(ValueError, match=r"^pieces is 4000: a BPE vocabulary .* is too large .*take at most"):
        run(*arguments, "recognizer=null", "pieces=4000")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("pieces=9", ValueError, "recognizer is /"),
        ("pieces=-1", ValueError, "pieces is -1; it must not be negative"),
        (
            "recognizer=null",
            ValueError,
            "recognizer is None, pieces is 0, init_from is None; set one: recognizer=…",
        ),
        ("init_from=runs/lm", ValueError, "recognizer is /"),
        ("recognizer=/nowhere", FileNotFoundError, "/nowhere: no such model; give a model folder or the folder of a"),
        ("texts=[/nowhere.txt]", FileNotFoundError, "/nowhere.txt: no such text; give files with a sentence a line"),
        ("texts=[]", ValueError, "there is no usable sentence in an empty list of texts"),
        ("holdout_sentences=20", ValueError, "holdout_sentences is 20, but there are 28 sentences; hold out at least"),
        ("tracking=paper", ValueError, "tracking is 'paper'; choose one of tensorboard, wandb, none"),
        ("seed=-1", ValueError, "seed is -1; it must not be negative"),
        ("lm.width=15", ValueError, "lm.width is 15; it must be even"),
    ],
)
def test_misuse_is_told_before_training(
    arguments: list[str], run: Callable[..., None], change: str, error: type[Exception], message: str
):
    with pytest.raises(error) as misuse:
        run(*arguments, change)
    assert str(misuse.value).startswith(message)


@pytest.mark.parametrize("size", ["1m", "5m", "20m"])
def test_every_size_composes(compose: Callable[..., Any], size: str):
    recipe = compose("train_lm", "texts=[a.txt]", "recognizer=runs/x", f"lm=transformer_{size}")
    assert recipe.texts == [Path("a.txt")]
    assert recipe.lm.num_layers > 0
