"""The recipe that trains a speller, and its evaluation with the recogniser, from end to end on noise."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import pytest
import spelling_data
import tiny
import train_speller
from utterances import make_utterances

from asr.cli import main
from asr.data import manifest
from asr.lm_checkpoint import save_language_model
from asr.nn.lm import LanguageModel, LanguageModelConfig
from asr.pronunciation import write_lexicon
from asr.speller_checkpoint import load_speller

SMALL = [
    *("speller.num_layers=1", "speller.width=16", "speller.num_heads=2", "speller.feedforward_width=32"),
    *("speller.num_reader_layers=1", "speller.reader_feedforward_width=32", "speller.kernel_size=3"),
    *("trainer.max_steps=4", "trainer.valid_every=2", "trainer.save_every=2", "trainer.log_every=1"),
    *("loader.max_batch_tokens=60", "loader.max_words=8", "loader.num_growing=1", "optim.warmup_steps=2"),
    *("hearing.times=1", "device=cpu", "num_threads=1", "tracking=none", "name=small", "pieces=8"),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recogniser that knows phones, a lexicon, a text and two manifests."""
    folder = tmp_path_factory.mktemp("speller")
    tiny.save(folder / "recognizer", phones=tiny.PHONES)
    write_lexicon(folder / "lexicon.txt", spelling_data.LEXICON)
    spelling_data.write_text(folder / "text.txt")
    utterances = make_utterances(folder / "audio", [1.0, 1.2, 1.5, 1.1, 2.0], texts=spelling_data.UTTERANCES)
    manifest.write(folder / "train.jsonl", utterances)
    manifest.write(folder / "valid.jsonl", utterances[:2])
    return folder


def arguments(folder: Path) -> list[str]:
    return [
        f"recognizer={folder / 'recognizer'}",
        f"lexicon={folder / 'lexicon.txt'}",
        f"texts=[{folder / 'text.txt'}]",
        f"train=[{folder / 'train.jsonl'}]",
        f"valid=[{folder / 'valid.jsonl'}]",
        *SMALL,
    ]


def test_the_command_makes_a_speller_that_evaluation_and_transcription_take(workplace: Path, tmp_path: Path, capsys):
    command = [sys.executable, train_speller.__file__, *arguments(workplace)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "small" / "model"
    assert done.stdout.splitlines()[-1] == f"decoding=spell decoding.speller={folder}"
    assert load_speller(folder).training["steps"] == 4
    assert "% of the phones wrong of 5 utterances as heard" in (folder.parent / "train.log").read_text(encoding="utf-8")
    command = [
        *(sys.executable, evaluate.__file__, f"model={workplace / 'recognizer'}", f"output={tmp_path / 'out'}"),
        *(f"manifests=[{workplace / 'train.jsonl'}]", "decoding=spell", f"decoding.speller={folder}", "device=cpu"),
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "train" / "results.json").read_text(encoding="utf-8"))
    assert results["decoding"]["mode"] == "spell" and results["words"] == 12
    options = ["--model", str(workplace / "recognizer"), "--speller", str(folder)]
    assert main(["transcribe", str(workplace / "audio" / "u0.flac"), *options]) == 0
    assert set(capsys.readouterr().out) <= set("abc \n")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose: Callable[..., Any]) -> Callable[..., None]:
    """Runs the recipe in this process; its folder is the test's."""
    monkeypatch.setattr(train_speller, "run_folder", lambda: tmp_path)
    return lambda *own: train_speller.run(compose("train_speller", *own))


def test_the_decoder_may_start_from_a_language_model_and_utterances_be_held_out(
    workplace: Path, tmp_path: Path, run: Callable[..., None]
):
    tokenizer = spelling_data.make_tokenizer()
    config = LanguageModelConfig(num_layers=1, width=16, num_heads=2, feedforward_width=32)
    weights = LanguageModel(config, vocab_size=tokenizer.vocab_size).state_dict()
    save_language_model(tmp_path / "lm", weights, config=config, tokenizer=tokenizer, training={})
    own = [each for each in arguments(workplace) if not each.startswith(("valid", "pieces"))]
    run(*own, f"init_from={tmp_path / 'lm'}", "holdout_utterances=2")
    assert load_speller(tmp_path).tokenizer.tokens == tokenizer.tokens
    log = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert "holdout_utterances: 2" in log


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("pieces=0", ValueError, "pieces is 0, init_from is None; set one: init_from=…"),
        ("init_from=runs/lm", ValueError, "pieces is 8, init_from is runs/lm; set one"),
        ("holdout_utterances=0", ValueError, "holdout_utterances is 0 and valid names nothing; keep utterances back"),
        ("pieces=4000", ValueError, "pieces is 4000: a BPE vocabulary"),
        ("pieces=-1", ValueError, "pieces is -1; it must not be negative"),
        ("recognizer=/nowhere", FileNotFoundError, "/nowhere: no such model"),
        ("lexicon=/nowhere.txt", FileNotFoundError, "/nowhere.txt: no such pronunciation lexicon"),
        ("texts=[/nowhere.txt]", FileNotFoundError, "/nowhere.txt: no such text"),
        ("tracking=paper", ValueError, "tracking is 'paper'; choose one of tensorboard, wandb, none"),
        ("speller.width=15", ValueError, "speller.width is 15; it must be even"),
        ("hearing.times=0", ValueError, "hearing.times is 0; it must be at least 1"),
        ("loader.real_share=1.0", ValueError, "loader.real_share is 1.0; it must be in [0, 1)"),
    ],
)
def test_misuse_is_told_before_training(
    workplace: Path, run: Callable[..., None], change: str, error: type[Exception], message: str
):
    with pytest.raises(error) as misuse:
        run(*[each for each in arguments(workplace) if not (change.startswith("holdout") and "valid" in each)], change)
    assert str(misuse.value).startswith(message)


def test_a_recogniser_without_phones_is_refused(workplace: Path, tiny_folder: Path, run: Callable[..., None]):
    with pytest.raises(ValueError, match="this recogniser knows no phones; train one with lexicon"):
        run(*arguments(workplace), f"recognizer={tiny_folder}")
