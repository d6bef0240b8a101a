"""The recipes from end to end, on a small corpus of tones: prepare, train, evaluate, transcribe."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate
import make_lexicon
import prepare
import pytest
import torch
import train
import train_ngram
import transcribe
import tune_decoding
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asr import audio, checkpoint
from asr.data import manifest
from asr.variants import read_tuned

RATE = 16000
TRAIN = Path(train.__file__)
STEPS = 15
# Spoken by tones: one pitch a letter.
TEXTS = ("A", "B A", "AB", "BAD", "A BAD", "DAB A", "B", "AD")
RESULTS_KEYS = {
    *("set", "utterances", "words", "wer", "wer_ci95", "cer", "substitutions", "deletions", "insertions"),
    *("sentence_error_rate", "audio_s", "decode_s", "rtfx", "parameters", "checkpoint", "decoding", "by_speaker"),
}


def write_tones(folder: Path, *, speakers: range) -> None:
    """A LibriSpeech-style tree: two utterances a speaker, a fifth of a second for every letter."""
    for speaker in speakers:
        place = folder / str(speaker) / "1"
        place.mkdir(parents=True)
        lines = []
        for number in range(2):
            text = TEXTS[(2 * speaker + number) % len(TEXTS)]
            pitches = [220.0 * 1.5 ** (ord(letter) - ord("A")) if letter != " " else 0.0 for letter in f" {text} "]
            time = torch.arange(RATE // 5) / RATE
            waveform = torch.cat([0.2 * torch.sin(2 * torch.pi * (pitch + speaker) * time) for pitch in pitches])
            audio.save(place / f"{speaker}-1-{number:04d}.flac", waveform, sample_rate=RATE)
            lines.append(f"{speaker}-1-{number:04d} {text}\n")
        (place / f"{speaker}-1.trans.txt").write_text("".join(lines))


@dataclass
class Corpus:
    """A corpus on disk, and the arguments that name it."""

    root: Path
    manifests: Path

    @property
    def arguments(self) -> list[str]:
        sets = ["data.train=[train]", "data.test=[test]", "data.holdout_utterances=3"]
        return ["data=folder", f"data.root={self.root}", f"data.manifests={self.manifests}", *sets]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    write_tones(folder / "tones" / "train", speakers=range(6))
    write_tones(folder / "tones" / "test", speakers=range(6, 8))
    return Corpus(folder / "tones", folder / "manifests")


@pytest.fixture(scope="module")
def arguments(corpus: Corpus) -> list[str]:
    """What makes the training small."""
    encoder = {"num_layers": 2, "width": 16, "num_heads": 2, "feedforward_width": 32, "kernel_size": 5}
    trainer = {"max_steps": STEPS, "valid_every": 5, "save_every": 5, "log_every": 1, "precision": "float32"}
    return [
        *corpus.arguments,
        *(f"encoder.{key}={value}" for key, value in encoder.items()),
        *(f"trainer.{key}={value}" for key, value in trainer.items()),
        *("encoder.subsampling_channels=4", "decoder.num_heads=2", "decoder.feedforward_width=32"),
        *("loader.max_batch_s=5", "loader.max_duration_s=3", "optim.warmup_steps=2", "optim.lr=0.01"),
        *("device=cpu", "num_threads=1", "name=tones"),
    ]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@dataclass
class Run:
    """A training run that was stopped by SIGTERM once and then went on to its end."""

    folder: Path
    first: int
    first_error: str
    left_by_first: list[str]
    second: int
    second_output: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, arguments: list[str]) -> Run:
    cwd = tmp_path_factory.mktemp("work")
    folder = cwd / "runs" / "tones"
    command = [sys.executable, str(TRAIN), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # Workers ignore the signal, so they must be told to end.
    started = subprocess.Popen(
        [*command, "loader.num_workers=1"],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    for line in started.stdout:
        if f"step 1/{STEPS} " in line:
            started.send_signal(signal.SIGTERM)
            break
    try:
        _, error = started.communicate(timeout=120)
    finally:
        started.kill()
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert not (folder / "model").exists()
    again = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return Run(folder, started.returncode, error, left, again.returncode, again.stdout)


def test_prepare_writes_the_manifests_and_says_what_they_hold(compose: Callable[..., Any], corpus: Corpus, capsys):
    prepare.run(compose("prepare", *corpus.arguments))
    printed = capsys.readouterr().out
    for name, use, utterances in (("train", "train", 8), ("valid", "valid", 4), ("test", "test", 4)):
        assert len(manifest.read(corpus.manifests / f"{name}.jsonl")) == utterances
        assert any(line.split()[:3] == [name, use, str(utterances)] for line in printed.splitlines())
    assert f"manifests in {corpus.manifests}" in printed


def test_a_training_that_is_told_to_stop_saves_and_says_how_to_go_on(run: Run):
    assert run.first == 128 + signal.SIGTERM
    last = run.first_error.strip().splitlines()[-1]
    (checkpoint_name,) = [name for name in run.left_by_first if name.startswith("step-")]
    folder = run.folder / "checkpoints" / checkpoint_name
    assert last == f"SIGTERM: saved {folder}; the same command goes on from there"
    assert 1 <= int(checkpoint_name.removeprefix("step-")) < STEPS


def test_the_same_command_goes_on_to_the_end_and_prints_the_scores(run: Run):
    assert run.second == 0
    (checkpoint_name,) = [name for name in run.left_by_first if name.startswith("step-")]
    log = (run.folder / "train.log").read_text(encoding="utf-8")
    assert f"{checkpoint_name}, step {int(checkpoint_name.removeprefix('step-'))}" in log
    assert log.count(f"step 1/{STEPS} ") == 1
    assert log.count(f"step {STEPS}/{STEPS} ") == 1
    assert "test" in run.second_output.splitlines()[-1]


def test_a_run_folder_holds_config_log_curves_checkpoints_model_and_scores(run: Run):
    config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    assert (config["trainer"]["max_steps"], config["data"]["name"], config["name"]) == (STEPS, "folder", "tones")
    names = {path.name for path in run.folder.iterdir() if not path.name.startswith("events.out.tfevents.")}
    assert names == {"config.yaml", "train.log", "checkpoints", "model", "test"}
    kept = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert kept[-1] == f"step-{STEPS:08d}"
    assert len(kept) == 2
    assert kept[0].startswith("best-")
    loaded = checkpoint.load(run.folder)
    assert loaded.training["steps"] == STEPS
    assert {path.name for path in (run.folder / "test").iterdir()} == {"results.json", "transcripts.txt", "errors.txt"}


def test_the_curves_hold_losses_scores_transcripts_and_pictures(run: Run):
    scalars: set[str] = set()
    images: set[str] = set()
    tensors: set[str] = set()
    for file in run.folder.glob("events.out.tfevents.*"):
        found = EventAccumulator(str(file)).Reload().Tags()
        scalars.update(found["scalars"])
        images.update(found["images"])
        tensors.update(found["tensors"])
    assert {"train/loss", "train/ctc", "train/attention", "train/lr", "valid/wer", "valid/cer"} <= scalars
    assert {"features/plain", "features/augmented", "attention/encoder", "attention/decoder"} <= images
    assert "valid/transcripts/text_summary" in tensors


def check_results(folder: Path, *, mode: str) -> None:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results.keys() >= RESULTS_KEYS
    assert (results["set"], results["utterances"], results["words"]) == ("test", 4, 6)
    assert results["wer"] == pytest.approx(
        sum(results[kind] for kind in ("substitutions", "deletions", "insertions")) / results["words"]
    )
    assert results["wer_ci95"][0] <= results["wer"] <= results["wer_ci95"][1]
    assert set(results["by_speaker"]) == {"6", "7"}
    assert results["decoding"]["mode"] == mode
    assert results["audio_s"] > 0 < results["parameters"]
    lines = (folder / "transcripts.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["6-1-0000", "6-1-0001", "7-1-0000", "7-1-0001"]
    assert "test" in (folder / "errors.txt").read_text(encoding="utf-8")


def test_training_ends_with_the_scores_of_the_test_sets(run: Run):
    assert (run.folder / "test" / "results.json").is_file()
    check_results(run.folder / "test", mode="greedy")


def test_a_run_that_never_stopped_gives_the_same_weights(
    run: Run, compose: Callable[..., Any], arguments: list[str], tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "run_folder", lambda: tmp_path)
    train.run(compose("train", *arguments))
    whole, parts = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path, run.folder))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_the_command_of_a_finished_run_scores_again_but_does_not_train(
    run: Run, compose: Callable[..., Any], arguments: list[str], monkeypatch, caplog, capsys
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(train, "run_folder", lambda: run.folder)
    before = load_file(run.folder / "model" / "model.safetensors")
    train.run(compose("train", *arguments))
    assert not any(message.startswith("step ") for message in caplog.messages)
    after = load_file(run.folder / "model" / "model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert "test" in capsys.readouterr().out


def test_another_model_under_the_name_of_a_run_is_refused(
    run: Run, compose: Callable[..., Any], arguments: list[str], monkeypatch
):
    monkeypatch.setattr(train, "run_folder", lambda: run.folder)
    with pytest.raises(ValueError, match=r"holds a run with encoder\.width=16, not 32; give this run another name"):
        train.run(compose("train", *arguments, "encoder.width=32"))


def test_other_settings_under_the_name_of_a_run_are_refused_and_leave_its_config_alone(
    run: Run, compose: Callable[..., Any], arguments: list[str], monkeypatch
):
    monkeypatch.setattr(train, "run_folder", lambda: run.folder)
    before = (run.folder / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run with seed=\d+, not 77; give this run another name, or remove"):
        train.run(compose("train", *arguments, "seed=77"))
    assert (run.folder / "config.yaml").read_bytes() == before


def test_evaluate_asks_what_to_evaluate_on(compose: Callable[..., Any]):
    with pytest.raises(ValueError, match=r"name what to evaluate on: data=… for the test sets of a corpus, or manif"):
        compose("evaluate", "model=x")


def test_a_corpus_without_validation_set_is_refused_before_training(
    compose: Callable[..., Any], arguments: list[str], tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "run_folder", lambda: tmp_path)
    changes = ["data.holdout_utterances=0", f"data.manifests={tmp_path}"]
    with pytest.raises(ValueError, match=r"no utterances to choose the model on; name sets in data\.valid, or keep"):
        train.run(compose("train", *arguments, *changes, "tracking=none"))


def test_other_settings_train_too(compose: Callable[..., Any], arguments: list[str], tmp_path, monkeypatch):
    # CTC alone, sentence pieces, no tracking, accumulation, the mean of the best.
    monkeypatch.setattr(train, "run_folder", lambda: tmp_path)
    changes = ["loss=ctc", "decoder=none", "tokenizer=bpe", "tokenizer.vocab_size=7", "optim=noam", "tracking=none"]
    changes += ["trainer.max_steps=2", "trainer.average=best", "trainer.accumulate=2", "data.test=[]"]
    small = [each for each in arguments if not each.startswith(("decoder.", "data.test"))]
    train.run(compose("train", *small, *changes))
    loaded = checkpoint.load(tmp_path)
    assert loaded.model.decoder is None
    assert loaded.tokenizer.vocab_size == 7
    assert not list(tmp_path.glob("events*"))


@pytest.mark.parametrize("mode", ["greedy", "joint"])
def test_evaluate_scores_a_run_on_the_test_sets(
    run: Run, compose: Callable[..., Any], corpus: Corpus, tmp_path, capsys, mode
):
    settings = [f"model={run.folder}", f"output={tmp_path}", "device=cpu", f"decoding={mode}"]
    evaluate.run(compose("evaluate", *corpus.arguments, *settings, *(["decoding.beam_size=2"] * (mode == "joint"))))
    check_results(tmp_path / "test", mode=mode)
    printed = capsys.readouterr().out
    assert "times real time" in printed
    assert f"{tmp_path / 'test'}/results.json" in printed


def test_evaluate_takes_manifests_in_place_of_a_corpus(run: Run, compose: Callable[..., Any], corpus: Corpus, tmp_path):
    manifests = f"manifests=[{corpus.manifests / 'valid.jsonl'},{corpus.manifests / 'test.jsonl'}]"
    evaluate.run(compose("evaluate", f"model={run.folder / 'model'}", f"output={tmp_path}", manifests, "device=cpu"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "valid"]


def test_searches_are_tuned_and_then_scored_side_by_side(
    run: Run, compose: Callable[..., Any], corpus: Corpus, tmp_path, capsys
):
    """The whole way of a language model: counted, tuned with, evaluated with, used in transcription."""
    text, lm, names = tmp_path / "text.txt", tmp_path / "lm.arpa", tmp_path / "names.txt"
    text.write_text("a bad\ndab a\nbad\n" * 5)
    names.write_text("bad\n")
    train_ngram.run(compose("train_ngram", f"texts=[{text}]", f"output={lm}", "order=2"))
    ways = ["modes=[prefix_beam,joint,rescore]", "lms=[none,ngram]", f"decoding.lm.ngram={lm}"]
    settings = [f"model={run.folder}", "device=cpu", "decoding.beam_size=4", *ways]
    tuned = tmp_path / "decoding.json"
    valid = f"manifest={corpus.manifests / 'valid.jsonl'}"
    tune_decoding.run(compose("tune_decoding", *settings, valid, f"output={tuned}"))
    searches = [f"{mode}{lm}" for mode in ("prefix_beam", "joint", "rescore") for lm in ("", "+ngram")]
    assert list(read_tuned(tuned)) == searches
    assert f"tuned={tuned}" in capsys.readouterr().out

    test = f"manifests=[{corpus.manifests / 'test.jsonl'}]"
    ways[0] = "modes=[greedy,prefix_beam,joint,rescore]"
    settings = [f"model={run.folder}", "device=cpu", *ways, test, f"tuned={tuned}", f"listed_words={names}"]
    evaluate.run(compose("evaluate", *settings, f"output={tmp_path}", "decoding=joint"))
    assert {path.name for path in (tmp_path / "test").iterdir()} == {"greedy", *searches}
    results = json.loads((tmp_path / "test" / "joint+ngram" / "results.json").read_text())
    assert results["decoding"]["lm"]["ngram"] == str(lm)
    weights = read_tuned(tuned)["joint+ngram"].weights
    assert results["decoding"]["lm"]["ngram_weight"] == weights["lm.ngram_weight"]
    assert results["listed_words"].keys() == {"spoken", "found", "false", "recall", "wer_of_rest"}
    assert results["confidence"]["calibration"] == read_tuned(tuned)["joint+ngram"].calibration.to_dict()
    assert "test joint+ngram" in capsys.readouterr().out

    settings = [f"model={run.folder}", "device=cpu", "modes=[greedy,prefix_beam]", test, f"output={tmp_path / 'two'}"]
    evaluate.run(compose("evaluate", *settings))
    printed = capsys.readouterr().out
    assert all(f"{tmp_path}/two/test/{mode}/results.json" in printed for mode in ("greedy", "prefix_beam"))

    settings = [f"model={run.folder}", f"inputs=[{corpus.root / 'test'}]", f"output_dir={tmp_path / 'out'}"]
    search = ["decoding=joint", f"decoding.lm.ngram={lm}", f"decoding.hotwords={names}", f"tuned={tuned}"]
    transcribe.run(compose("transcribe", *settings, *search, "device=cpu", "format=ctm"))
    assert len(list((tmp_path / "out").rglob("*.ctm"))) == 4


def test_evaluate_without_a_model_says_what_is_missing(compose: Callable[..., Any], tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such model; give a model folder or the folder of"):
        evaluate.run(compose("evaluate", f"model={tmp_path / 'nowhere'}", "data=synthetic"))


def test_transcribe_writes_a_file_a_recording_in_text_and_json(
    run: Run, compose: Callable[..., Any], corpus: Corpus, tmp_path, capsys
):
    settings = [f"model={run.folder}", f"inputs=[{corpus.root / 'test'}]", f"output_dir={tmp_path}", "device=cpu"]
    for form in ("txt", "json"):
        transcribe.run(compose("transcribe", *settings, f"format={form}"))
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert written == [
        f"{speaker}/1/{speaker}-1-{number:04d}.{form}"
        for speaker in (6, 7)
        for number in range(2)
        for form in ("json", "txt")
    ]
    found = json.loads((tmp_path / written[0]).read_text(encoding="utf-8"))
    assert found.keys() == {"audio", "duration_s", "text", "confidence", "segments"}
    assert found["text"] + "\n" == (tmp_path / written[1]).read_text(encoding="utf-8")
    assert capsys.readouterr().out == ""


def test_transcribe_names_a_bad_file_does_the_rest_and_fails(
    run: Run, compose: Callable[..., Any], corpus: Corpus, tmp_path, capsys
):
    (tmp_path / "bad.wav").write_text("no audio")
    good = corpus.root / "test" / "6" / "1" / "6-1-0000.flac"
    settings = [f"model={run.folder}", f"inputs=[{tmp_path / 'bad.wav'},{good}]", f"output_dir={tmp_path}"]
    with pytest.raises(ValueError, match="1 of the files could not be transcribed"):
        transcribe.run(compose("transcribe", *settings, "device=cpu"))
    assert (tmp_path / "6-1-0000.txt").is_file()
    assert "bad.wav" in capsys.readouterr().err


def test_how_words_are_spoken_is_made_learned_tuned_and_searched(
    compose: Callable[..., Any], arguments: list[str], corpus: Corpus, tmp_path, monkeypatch, capsys
):
    """The whole way of a lexicon."""
    pytest.importorskip("espeakng_loader", reason="the extra `recipes` is not installed")
    monkeypatch.setattr(train, "run_folder", lambda: tmp_path / "run")
    (tmp_path / "run").mkdir()
    prepare.run(compose("prepare", *corpus.arguments))
    valid, lexicon, lm = corpus.manifests / "valid.jsonl", tmp_path / "lexicon.txt.xz", tmp_path / "lm.arpa"
    train_ngram.run(compose("train_ngram", f"texts=[{corpus.manifests / 'train.jsonl'}]", f"output={lm}", "order=2"))
    make_lexicon.run(compose("make_lexicon", f"texts=[{valid}]", f"ngram={lm}", f"output={lexicon}"))
    assert f"{lexicon}: 6 words of " in capsys.readouterr().out

    learn = [f"lexicon={lexicon}", "loss.phone_weight=0.5", "trainer.max_steps=2", "tracking=none"]
    search = [f"decoding.lexicon={lexicon}", f"decoding.lm.ngram={lm}", "decoding.beam_size=6"]
    train.run(compose("train", *arguments, *learn, "decoding=lexicon", *search))
    assert checkpoint.load(tmp_path / "run").config.phones
    results = json.loads((tmp_path / "run" / "test" / "results.json").read_text())
    assert results["decoding"]["mode"] == "lexicon" and results["decoding"]["lexicon"] == str(lexicon)

    tuned = tmp_path / "decoding.json"
    settings = [
        f"model={tmp_path / 'run'}",
        "device=cpu",
        "decoding=lexicon",
        *search,
        "modes=[lexicon]",
        "lms=[ngram]",
    ]
    tune_decoding.run(compose("tune_decoding", *settings, f"manifest={valid}", f"output={tuned}"))
    weights = read_tuned(tuned)["lexicon+ngram"].weights
    assert weights.keys() == {"length_bonus", "ctc_weight", "phone_weight", "prior_weight", "lm.ngram_weight"}

    inputs = [f"inputs=[{corpus.root / 'test'}]", f"output_dir={tmp_path / 'out'}", f"tuned={tuned}"]
    transcribe.run(
        compose("transcribe", f"model={tmp_path / 'run'}", *inputs, "decoding=lexicon", *search, "device=cpu")
    )
    assert len(list((tmp_path / "out").rglob("*.txt"))) == 4


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("make_lexicon", ["output=a.txt"], r"there are no words to look up; set texts=\[…\], ngram=…, or both"),
        ("make_lexicon", ["texts=[a]", "output=a.gz"], r"output is a\.gz; a lexicon is written plain or as \.xz"),
        (
            "release",
            ["model=a", "output=b", "mode=lexicon"],
            r"mode is 'lexicon', which needs pronunciations and a model",
        ),
    ],
)
def test_what_a_lexicon_needs_is_told(compose: Callable[..., Any], recipe: str, arguments: list[str], message: str):
    with pytest.raises(Exception, match=message):
        compose(recipe, *arguments)


def test_lexicon_search_after_training_without_a_lexicon_is_refused(compose: Callable[..., Any], arguments: list[str]):
    with pytest.raises(
        ValueError, match=r"^decoding\.mode is 'lexicon', which needs decoding\.lexicon, the words' pronun"
    ):
        train.run(compose("train", *arguments, "decoding=lexicon"))
    search = ["decoding=lexicon", "decoding.lexicon=a.txt", "decoding.lm.ngram=a.arpa"]
    with pytest.raises(
        ValueError, match=r"^decoding\.mode is 'lexicon', but the model would know no phones; set lexicon="
    ):
        train.run(compose("train", *arguments, *search))
