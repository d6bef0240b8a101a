"""Training a language model: it learns, it is judged by its perplexity, and runs go on as if never stopped."""

import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from training_runs import CPU, Notes, assert_equal, folders

from asr import checkpoint
from asr.data.sentence_batches import SentenceBatches
from asr.data.sentences import SentenceLoaderConfig, Sentences
from asr.data.text_batches import Dealing
from asr.decoding.neural_lm import sequence_log_probs
from asr.lm_checkpoint import load_language_model
from asr.nn.lm import LanguageModel, LanguageModelConfig
from asr.tokenizer import CharTokenizer
from asr.training import language
from asr.training.interfaces import Interrupted, TrainingError
from asr.training.language import LanguageTask, LanguageTrainingConfig, perplexity, train_language_model
from asr.training.optim import OptimConfig
from asr.training.trainer import TrainerConfig

TEXTS = ("a b c", "abc", "b b a", "cab a", "c", "bac ab", "a a a a", "cc b", "bbb ccc", "ab ba ca")


def make_sentences(texts: tuple[str, ...] = TEXTS) -> Sentences:
    tokens = [tiny.make_tokenizer().encode(text) for text in texts]
    offsets = np.cumsum([0, *map(len, tokens)])
    num_words = np.array([len(text.split()) for text in texts], dtype=np.int32)
    return Sentences(np.concatenate(tokens).astype(np.uint16), offsets, num_words)


def make_config(*, dropout: float = 0.1, max_batch_tokens: int = 24, **changes: Any) -> Any:
    settings = {"max_steps": 8, "valid_every": 2, "save_every": 3, "log_every": 1, "precision": "float32"}
    return LanguageTrainingConfig(
        lm=LanguageModelConfig(num_layers=2, width=16, num_heads=2, feedforward_width=32, dropout=dropout),
        loader=SentenceLoaderConfig(max_batch_tokens=max_batch_tokens, max_sentence_tokens=20),
        optim=OptimConfig(lr=0.01, warmup_steps=3),
        trainer=TrainerConfig(**(settings | {"ema_decay": 0.9} | changes)),
    )


def train(folder: Path, config: LanguageTrainingConfig, *, tracker: Notes | None = None, **changes: Any) -> Path:
    settings = {"train": make_sentences(), "valid": make_sentences(), "tokenizer": tiny.make_tokenizer()}
    return train_language_model(config, folder=folder, device=CPU, tracker=tracker or Notes(), **(settings | changes))


# It learns


def test_ten_sentences_are_learnt_by_heart(tmp_path):
    """All that remains to be learnt is which of the ten it is: log 10 nats a sentence."""
    settings = {"max_steps": 300, "valid_every": 300, "save_every": 300, "average": "none"}
    config = make_config(dropout=0.0, max_batch_tokens=200, **settings)
    config.lm.width = 32
    loaded = load_language_model(train(tmp_path, config))
    tokens = [loaded.tokenizer.encode(text) for text in TEXTS]
    found = -sequence_log_probs(loaded.model, tokens)
    assert float(found.mean()) == pytest.approx(math.log(10), abs=0.05)
    measured = perplexity(loaded.model, make_sentences(), max_batch_tokens=100)
    assert loaded.training["checkpoints"][0]["validation"] == pytest.approx(measured.per_word)
    assert loaded.training["steps"] == 300


def test_the_loss_is_the_negative_log_probability_of_all_tokens_and_ends():
    torch.manual_seed(0)
    model = tiny.randomized(LanguageModel(make_config().lm, vocab_size=6))
    batch = SentenceBatches(make_sentences(), Dealing(max_batch_tokens=1000, seed=1)).largest()
    loss = LanguageTask(model)(batch)
    assert loss.count == make_sentences().lengths.sum() + 10
    expected = sequence_log_probs(model, [tiny.make_tokenizer().encode(text) for text in TEXTS]).sum()
    assert float(loss.total.detach()) == pytest.approx(-float(expected), rel=1e-5)


def test_the_curves_and_the_log_speak_of_tokens(tmp_path, caplog):
    notes = Notes()
    with caplog.at_level(logging.INFO):
        train(tmp_path, make_config(max_steps=2), tracker=notes)
    assert {"train/loss", "train/lr", "speed/tokens_per_s", "valid/word_perplexity"} <= notes.points[2].keys()
    assert not any("audio" in name for name in notes.points[2])
    assert any(message.startswith("10 sentences, 0.00 M words, 0.00 M tokens") for message in caplog.messages)
    assert any("tokens/s" in message for message in caplog.messages)
    assert any(message.startswith("the largest batch fits: 3 sentences, 21 tokens with") for message in caplog.messages)
    assert notes.closed


def test_want_of_memory_is_told_in_tokens(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(LanguageTask, "forward", refuse)
    message = r"largest batch \(3 sentences, 21 tokens with padding\); lower loader\.max_batch_tokens and raise "
    with pytest.raises(TrainingError, match=message + r"trainer\.accumulate by as much, or lower loader\.max_sent"):
        train(tmp_path, make_config())


# Perplexity


def test_perplexity_counts_words_or_tokens_and_ends():
    class Uniform(LanguageModel):
        def forward(self, tokens):
            return torch.zeros(*tokens.shape, 6)

    model = Uniform(make_config().lm, vocab_size=6).eval()
    found = perplexity(model, make_sentences(("a b", "c")), max_batch_tokens=100)
    assert (found.num_sentences, found.num_words, found.num_tokens) == (2, 3, 4)
    assert found.per_token == pytest.approx(6)
    assert found.per_word == pytest.approx(6 ** (6 / 5))  # six predictions, three words and two ends


def test_a_hopeless_model_has_a_perplexity_all_the_same(monkeypatch):
    monkeypatch.setattr(language, "sequence_log_probs", lambda *_, **__: torch.tensor([-1e4]))
    model = LanguageModel(make_config().lm, vocab_size=6).eval()
    assert perplexity(model, make_sentences(("a",)), max_batch_tokens=100).per_word == math.inf


# Runs that go on


@pytest.mark.parametrize("average", ["ema", "best"])
def test_a_run_that_a_signal_stopped_ends_like_one_that_never_stopped(tmp_path, monkeypatch, average):
    train(tmp_path / "whole", make_config(average=average))
    calls, forward = [], LanguageTask.forward

    def stopping(task: LanguageTask, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 6:  # the first is the trial of the largest batch
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(task, batch)

    monkeypatch.setattr(LanguageTask, "forward", stopping)
    with pytest.raises(Interrupted, match="step-00000005"):
        train(tmp_path / "parts", make_config(average=average))
    state = checkpoint.load_training(tmp_path / "parts" / "checkpoints" / "step-00000005")[1].state
    assert (state["epoch"], state["position"]) not in [(0, 0), (1, 0)]
    train(tmp_path / "parts", make_config(average=average))

    assert folders(tmp_path / "whole") == folders(tmp_path / "parts")
    ends = [checkpoint.load_training(tmp_path / run / "checkpoints" / "step-00000008") for run in ("whole", "parts")]
    assert_equal(ends[0][0], ends[1][0])
    assert_equal(ends[0][1].tensors, ends[1][1].tensors)
    assert {**ends[0][1].state, "elapsed_s": 0} == {**ends[1][1].state, "elapsed_s": 0}
    assert_equal(*[checkpoint.load_weights(tmp_path / run / "model") for run in ("whole", "parts")])


def test_another_model_in_the_folder_of_a_run_is_refused(tmp_path):
    train(tmp_path, make_config(max_steps=2))
    other = make_config(max_steps=3)
    other.lm.feedforward_width = 64
    with pytest.raises(
        ValueError, match=r"holds a run with lm\.feedforward_width 32, not 64; give this run another nam"
    ):
        train(tmp_path, other)
    with pytest.raises(
        ValueError, match=r"holds a run with another tokenizer, of 6 tokens; give this run another name"
    ):
        train(tmp_path, make_config(max_steps=3), tokenizer=CharTokenizer(" abd"))


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed is -1; it must not be negative"):
        LanguageTrainingConfig(seed=-1)
