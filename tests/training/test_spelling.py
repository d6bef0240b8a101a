"""Training a speller: its losses, that it learns a toy language, and that a run goes on as if never stopped."""

import logging
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spelling_data
import tiny
import torch
from training_runs import CPU, PLAIN, Notes, assert_equal, folders
from utterances import make_utterances

from asr import checkpoint
from asr.data.manifest import Utterance
from asr.data.passage_batches import NOTHING, SpellingBatch
from asr.decoding.phone_runs import heard_runs
from asr.decoding.spell import spell
from asr.lm_checkpoint import save_language_model
from asr.losses import teacher_forcing
from asr.nn.lm import LanguageModel, LanguageModelConfig
from asr.nn.speller import Speller, SpellerConfig
from asr.speller_checkpoint import build_speller, load_speller
from asr.training.hearing import HearingConfig
from asr.training.optim import OptimConfig
from asr.training.spelling import (
    SpellerTrainingConfig,
    SpellingLoaderConfig,
    SpellingLossConfig,
    SpellingTask,
    guide_loss,
    train_speller,
)
from asr.training.trainer import TrainerConfig

TEXTS = ("a b", "cab", "b ab a", "c cab", "ab c b a")
DURATIONS_S = [1.0, 1.2, 1.5, 1.1, 2.0]


def make_speller(*, width: int = tiny.WIDTH, dropout: float = 0.0) -> Speller:
    torch.manual_seed(0)
    return build_speller(make_sizes(width=width, dropout=dropout), spelling_data.make_tokenizer(), num_phones=3)


def make_sizes(*, width: int = tiny.WIDTH, dropout: float = 0.1, num_layers: int = 2) -> SpellerConfig:
    return SpellerConfig(
        width=width,
        num_heads=2,
        num_reader_layers=1,
        reader_feedforward_width=32,
        kernel_size=3,
        num_layers=num_layers,
        feedforward_width=32,
        dropout=dropout,
    )


@pytest.fixture
def batch(tmp_path: Path) -> SpellingBatch:
    batches = spelling_data.make_batches(spelling_data.write_text(tmp_path / "text.txt"), max_batch_tokens=60)
    return next(batches.start(0, 5))[1]


# Losses


def test_attention_to_the_own_word_and_the_last_runs_costs_nothing(batch: SpellingBatch) -> None:
    lengths = (batch.run_lengths + 1) // 2
    shape = (len(batch.tokens), batch.tokens.shape[1] + 1, (batch.runs.shape[1] + 1) // 2)
    weights = torch.zeros(shape)
    expected = 0.0
    even = torch.full(shape, 1 / shape[2])
    for row in range(shape[0]):
        for place in range(int(batch.lengths[row])):
            words = batch.run_words[row].tolist()
            word = int(batch.token_words[row, place])
            own = sorted({index // 2 for index, each in enumerate(words) if each == word})
            weights[row, place, own] = 1 / len(own)
            expected -= math.log(len(own) / shape[2])
        weights[row, batch.lengths[row], lengths[row] - 1] = 1.0
        expected -= math.log(1 / shape[2])
    assert float(guide_loss(weights.log(), lengths, batch)) == pytest.approx(0.0, abs=1e-4)
    assert float(guide_loss(even.log(), lengths, batch)) == pytest.approx(expected, rel=1e-5)


def test_a_word_of_which_nothing_was_heard_has_a_finite_gradient(batch: SpellingBatch) -> None:
    deaf = replace(batch, run_words=torch.full_like(batch.run_words, NOTHING))
    weights = torch.randn(len(batch.tokens), batch.tokens.shape[1] + 1, 20, requires_grad=True)
    short = replace(deaf, run_words=torch.full((len(batch.tokens), 40), NOTHING))
    guide_loss(weights.log_softmax(dim=2), torch.full_like(batch.run_lengths, 20), short).backward()
    assert weights.grad is not None and weights.grad.isfinite().all()
    assert weights.grad.abs().sum() > 0  # of the ends of sentence


def test_the_total_is_the_weighted_sum_of_its_parts(batch: SpellingBatch) -> None:
    speller = tiny.randomized(make_speller())
    loss = SpellingTask(speller, loss=SpellingLossConfig(guide_weight=0.3, pair_weight=0.7))(batch)
    assert loss.count == batch.num_tokens
    parts = {name: float(each) for name, each in loss.parts.items()}
    assert float(loss.total.detach()) == pytest.approx(
        parts["attention"] + 0.3 * parts["guide"] + 0.7 * parts["pair"], rel=1e-5
    )
    inputs, targets = teacher_forcing(batch.tokens, batch.lengths)
    with torch.no_grad():
        log_probs = speller(inputs, batch.runs, batch.run_lengths).log_softmax(dim=2)
        frames, _ = speller.read(batch.runs, batch.run_lengths)
        pairs = speller.frame_logits(frames).log_softmax(dim=2)
    valid = targets >= 0
    chosen = log_probs.gather(2, targets.clamp_min(0)[:, :, None])[:, :, 0][valid]
    assert parts["attention"] == pytest.approx(-float(chosen.sum()), rel=1e-4)
    wanted = batch.pair_tokens[:, ::3]
    own = pairs[:, ::3].gather(2, wanted.clamp_min(0)[:, :, None])[:, :, 0][wanted != NOTHING]
    assert parts["pair"] == pytest.approx(-float(own.sum()), rel=1e-4)
    plain = SpellingTask(speller, loss=SpellingLossConfig(guide_weight=0.0, pair_weight=0.0))(batch)
    assert set(plain.parts) == {"attention"}
    assert float(plain.total.detach()) == pytest.approx(parts["attention"], rel=1e-5)


def test_every_weight_has_a_gradient(batch: SpellingBatch) -> None:
    speller = make_speller()
    SpellingTask(speller, loss=SpellingLossConfig())(batch).total.backward()
    without = [name for name, each in speller.named_parameters() if each.grad is None or not each.grad.isfinite().all()]
    assert not without


def test_a_toy_language_is_learnt(tmp_path: Path) -> None:
    """New sentences, heard as none of those that it learnt from was, are spelt without an error."""
    batches = spelling_data.make_batches(
        spelling_data.write_text(tmp_path / "text.txt", num_sentences=400), max_batch_tokens=300, num_growing=10
    )
    speller = make_speller(width=48)
    task = SpellingTask(speller, loss=SpellingLossConfig()).train()
    optimizer = torch.optim.AdamW(speller.parameters(), lr=3e-3)
    for step, (_, own) in enumerate(islice(batches.start(0, 0), 350)):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 350)
        loss = task(own)
        (loss.total / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(speller.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    tokenizer = spelling_data.make_tokenizer()
    random = np.random.default_rng(9)
    texts = [" ".join(random.choice(list(spelling_data.SPOKEN), size=5)) for _ in range(20)]
    heard = [spelling_data.heard(text, index=row, seed=7).probabilities.log() for row, text in enumerate(texts)]
    padded = torch.nn.utils.rnn.pad_sequence(heard, batch_first=True)
    runs, lengths = heard_runs(padded, torch.tensor([len(own) for own in heard]))
    found = spell(speller.eval(), runs, lengths, beam_size=1)
    # "a b" and "ab" sound alike here but for the silence between them.
    assert [tokenizer.decode(own[0].tokens) for own in found] == texts


# Runs


def make_config(**changes: Any) -> SpellerTrainingConfig:
    trainer = {"max_steps": 6, "valid_every": 3, "save_every": 2, "log_every": 1, "precision": "float32"}
    settings: dict[str, Any] = {
        "speller": make_sizes(),
        "hearing": HearingConfig(times=2, augment=PLAIN),
        "loader": SpellingLoaderConfig(max_batch_tokens=60, max_words=8, num_growing=2),
        "optim": OptimConfig(lr=0.01, warmup_steps=2, schedule="inverse_sqrt"),
        "trainer": TrainerConfig(**(trainer | changes.pop("trainer", {}))),
    }
    return SpellerTrainingConfig(**(settings | changes))


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    return make_utterances(tmp_path / "audio", DURATIONS_S, texts=TEXTS)


def train(folder: Path, config: SpellerTrainingConfig, utterances: list[Utterance], **changes: Any) -> Path:
    text = spelling_data.write_text(folder.parent / "text.txt")
    settings: dict[str, Any] = {
        "loaded": tiny.make_loaded(phones=tiny.PHONES),
        "lexicon": spelling_data.LEXICON,
        "texts": [text],
        "train": utterances,
        "valid": utterances[:2],
        "tokenizer": spelling_data.make_tokenizer(),
        "tracker": Notes(),
    }
    return train_speller(config, folder=folder, device=CPU, **(settings | changes))


def test_a_run_makes_a_speller_and_tells_how_well_it_hears(tmp_path: Path, utterances, caplog) -> None:
    notes = Notes()
    with caplog.at_level(logging.INFO):
        found = load_speller(train(tmp_path / "run", make_config(), utterances, tracker=notes))
    assert found.phones == tiny.PHONES and found.training["steps"] == 6
    assert {"train/loss", "train/attention", "train/guide", "train/pair", "valid/wer"} <= notes.points[
        6
    ].keys() | notes.points[3].keys()
    assert any("% of the phones wrong of 10 utterances as heard for training" in each for each in caplog.messages)
    assert any(" passages, 0.00 M words; 8 tokens; 0.0" in each for each in caplog.messages)


def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(tmp_path: Path, utterances) -> None:
    train(tmp_path / "whole", make_config(), utterances)
    train(tmp_path / "parts", make_config(trainer={"max_steps": 4}), utterances)
    train(tmp_path / "parts", make_config(), utterances)
    assert folders(tmp_path / "whole") == folders(tmp_path / "parts")
    ends = [checkpoint.load_training(tmp_path / run / "checkpoints" / "step-00000006") for run in ("whole", "parts")]
    assert_equal(ends[0][0], ends[1][0])
    assert_equal(ends[0][1].tensors, ends[1][1].tensors)
    assert_equal(*[checkpoint.load_weights(tmp_path / run / "model") for run in ("whole", "parts")])


def test_the_decoder_may_start_from_a_language_model(tmp_path: Path, utterances, caplog) -> None:
    config = LanguageModelConfig(num_layers=2, width=16, num_heads=2, feedforward_width=32, dropout=0.0)
    tokenizer = spelling_data.make_tokenizer()
    lm = tiny.randomized(LanguageModel(config, vocab_size=tokenizer.vocab_size))
    save_language_model(tmp_path / "lm", lm.state_dict(), config=config, tokenizer=tokenizer, training={})
    settings = {"init_from": tmp_path / "lm", "optim": OptimConfig(lr=1e-9, warmup_steps=2)}
    with caplog.at_level(logging.INFO):
        found = load_speller(train(tmp_path / "run", make_config(**settings), utterances))
    assert f"the decoder starts from the language model {tmp_path / 'lm'}" in caplog.messages
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        spoken = found.model(tokens, torch.rand(1, 5, 6), torch.tensor([5]))
        torch.testing.assert_close(spoken, lm(tokens), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"lm has other sizes; to start from it, set speller\.num_layers=2$"):
        train(tmp_path / "other", make_config(**settings, speller=make_sizes(num_layers=1)), utterances)


def test_what_does_not_fit_is_named(tmp_path: Path, utterances) -> None:
    config = make_config()
    with pytest.raises(ValueError, match=r"tiny: this recogniser knows no phones; train one with lexicon=…"):
        train(tmp_path / "run", config, utterances, loaded=tiny.make_loaded())
    with pytest.raises(FileNotFoundError, match="nowhere"):  # before anything is heard
        train(tmp_path / "run", config, [replace(utterances[0], audio=tmp_path / "gone")], texts=[tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="there are no utterances to choose the speller on"):
        train(tmp_path / "run", config, utterances, valid=[])
    train(tmp_path / "run", config, utterances)
    with pytest.raises(ValueError, match=r"holds a run with speller\.num_layers 2, not 1; give this run another name"):
        train(tmp_path / "run", make_config(speller=make_sizes(num_layers=1)), utterances)
    with pytest.raises(ValueError, match="holds a run with other phones, x y z"):
        train(tmp_path / "run", config, utterances, loaded=tiny.make_loaded(phones=["z", "x", "y"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpellingLoaderConfig(max_words=0), "loader.max_words is 0; it must be at least 1"),
        (lambda: SpellingLoaderConfig(real_share=1.0), "loader.real_share is 1.0; it must be in [0, 1)"),
        (lambda: SpellingLoaderConfig(num_growing=-1), "loader.num_growing is -1; it must not be negative"),
        (lambda: SpellingLoaderConfig(num_workers=-1), "loader.num_workers is -1; it must not be negative"),
        (lambda: SpellingLossConfig(guide_weight=-1.0), "loss.guide_weight is -1.0; it must not be negative"),
        (lambda: SpellerTrainingConfig(seed=-1), "seed is -1; it must not be negative"),
    ],
)
def test_settings_out_of_range_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_loss_gradient_and_search_on_a_gpu_are_those_on_a_processor(batch: SpellingBatch) -> None:
    found: dict[str, tuple[float, torch.Tensor, list[tuple[int, ...]]]] = {}
    for device in ("cpu", "cuda"):
        speller = tiny.randomized(make_speller()).to(device)
        loss = SpellingTask(speller, loss=SpellingLossConfig())(batch.to(torch.device(device)))
        loss.total.backward()
        gradient = torch.cat([each.grad.flatten() for each in speller.parameters() if each.grad is not None]).cpu()
        own = batch.to(torch.device(device))
        hypotheses = spell(speller, own.runs, own.run_lengths, beam_size=3)
        found[device] = float(loss.total.detach()), gradient, [each[0].tokens for each in hypotheses]
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=1e-3)
    torch.testing.assert_close(found["cuda"][1], found["cpu"][1], atol=1e-2, rtol=1e-2)
    assert found["cuda"][2] == found["cpu"][2]
