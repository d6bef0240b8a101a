"""Starting from a trained model: its weights and tokenizer are taken, and what does not fit is named with its cure."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from training_runs import CPU, Notes, assert_equal

from asr import checkpoint
from asr.augment import AugmentConfig, SpecAugmentConfig
from asr.data.manifest import Utterance
from asr.lattice_free import PhoneTrigrams
from asr.losses import LossConfig
from asr.pronunciation import Lexicon, PhoneEncoder, write_lexicon
from asr.tokenizer import BpeTokenizer, TokenizerConfig
from asr.training import run
from asr.training.fine_tuning import refuse_other_shape, shared_tokenizer
from asr.training.optim import OptimConfig
from asr.training.run import TrainingConfig, train_recognizer
from asr.training.trainer import TrainerConfig


def make_config(start: Path | None, **changes: Any) -> TrainingConfig:
    """A run of the tiny recogniser that hardly moves its weights, so that they tell where it began."""
    shape = tiny.make_config()
    trainer = {"max_steps": 1, "valid_every": 1, "save_every": 1, "average": "none", "precision": "float32"}
    return TrainingConfig(
        init_from=start,
        features=shape.features,
        encoder=shape.encoder,
        decoder=shape.decoder,
        augment=AugmentConfig(speeds=[1.0], spec=SpecAugmentConfig(num_time_masks=1, time_mask_width=5)),
        optim=OptimConfig(lr=1e-6, warmup_steps=0, schedule="constant", weight_decay=0.0),
        trainer=TrainerConfig(**(trainer | changes)),
    )


def train(folder: Path, config: TrainingConfig, utterances: list[Utterance]) -> dict[str, torch.Tensor]:
    """The weights that a run ends with."""
    return checkpoint.load_weights(start_run(folder, config, utterances)[0])


def start_run(folder: Path, config: TrainingConfig, utterances: list[Utterance]) -> tuple[Path, Notes]:
    """The folder of the model that a run ends with, and its curves."""
    tokenizer, notes = tiny.make_tokenizer(), Notes()
    split = {"train": utterances, "valid": utterances[:1]}
    return train_recognizer(config, **split, tokenizer=tokenizer, folder=folder, device=CPU, tracker=notes), notes


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_training_starts_from_the_weights_of_a_model_folder_or_of_a_run_folder(tmp_path, utterances):
    start = tiny.save(tmp_path / "run" / "model", seed=5)
    weights = checkpoint.load_weights(start)
    for path in (start, tmp_path / "run"):
        found = train(tmp_path / f"from-{path.name}", make_config(path), utterances)
        assert 0 < distance(found, weights) < 1e-5
    assert distance(train(tmp_path / "random", make_config(None), utterances), weights) > 0.1


def test_a_run_that_goes_on_starts_from_its_own_checkpoint(tmp_path, utterances):
    start = tiny.save(tmp_path / "model", seed=5)
    whole = train(tmp_path / "whole", make_config(start, max_steps=3), utterances)
    train(tmp_path / "parts", make_config(start, max_steps=1), utterances)
    tiny.save(start, seed=6)  # what it began with is another model by now
    assert_equal(train(tmp_path / "parts", make_config(start, max_steps=3), utterances), whole)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_dropout_and_intermediate_losses_may_differ(tmp_path, part):
    shape = tiny.make_config()
    other = replace(shape, **{part: replace(getattr(shape, part), dropout=0.3)})
    other.encoder.intermediate_layers = [1]
    refuse_other_shape(tiny.save(tmp_path / "model"), other)


def test_other_sizes_are_refused_in_one_line_with_all_that_mends_them(tmp_path):
    start, shape = tiny.save(tmp_path / "model"), tiny.make_config()
    other = replace(shape, encoder=replace(shape.encoder, width=32, num_layers=3))
    other.features.num_mels = 20
    with pytest.raises(ValueError) as refused:
        refuse_other_shape(start, other)
    message = f"init_from: {start} has other sizes; to start from it, set "
    assert str(refused.value) == message + "features.num_mels=16 encoder.num_layers=2 encoder.width=16"


def test_the_tokenizer_is_that_of_the_model(tmp_path):
    start = tiny.save(tmp_path / "model")
    assert shared_tokenizer(start, TokenizerConfig()).tokens == tiny.make_tokenizer().tokens


def test_another_kind_of_tokenizer_is_refused_with_the_one_to_ask_for(tmp_path):
    start = tiny.save(tmp_path / "model")
    message = (
        rf"^init_from: {start} has a char tokenizer of 6 tokens, not tokenizer\.kind=bpe tokenizer\.vocab_size=9; "
        r"set tokenizer\.kind=char tokenizer\.vocab_size=0$"
    )
    with pytest.raises(ValueError, match=message):
        shared_tokenizer(start, TokenizerConfig(kind="bpe", vocab_size=9))


def test_another_number_of_pieces_is_refused_with_the_number_to_ask_for(tmp_path):
    tokenizer = BpeTokenizer.train(["a bad cab", "a dab", "bad dad"], vocab_size=9)
    start, weights = tmp_path / "model", {"weight": torch.zeros(1)}
    checkpoint.save(start, weights, config=tiny.make_config(), tokenizer=tokenizer, training={})
    with pytest.raises(ValueError, match=r"a bpe tokenizer of 9 tokens, .* set tokenizer\.kind=bpe .*vocab_size=9$"):
        shared_tokenizer(start, TokenizerConfig(kind="bpe", vocab_size=12))
    assert shared_tokenizer(start, TokenizerConfig(kind="bpe", vocab_size=9)).tokens == tokenizer.tokens


def test_a_text_with_a_character_that_the_model_lacks_is_named(tmp_path, utterances):
    strange = [replace(utterances[0], text="x"), *utterances[1:]]
    with pytest.raises(ValueError, match=r"utterance u0: the tokenizer has no token for 'x'"):
        train(tmp_path / "run", make_config(tiny.save(tmp_path / "model")), strange)


@pytest.mark.parametrize("exists", [True, False])
def test_a_path_without_a_model_is_an_error_with_a_way_out(tmp_path, exists):
    path = tmp_path / "nothing"
    if exists:
        path.mkdir()
    message = rf"^{path}: (no such model|holds no model .*); give a"
    for check in (
        lambda: refuse_other_shape(path, tiny.make_config()),
        lambda: shared_tokenizer(path, TokenizerConfig()),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            check()


# Phones

SPOKEN = Lexicon({word: [tuple(word)] for word in ("a", "b", "c", "ab", "bc", "ca", "abc", "cab")})


def spoken_config(tmp_path: Path, start: Path | None, **changes: Any) -> TrainingConfig:
    """With a lexicon of the words of the utterances."""
    write_lexicon(tmp_path / "lexicon.txt", SPOKEN)
    config = make_config(start, **changes)
    config.lexicon, config.loss = tmp_path / "lexicon.txt", LossConfig(phone_weight=0.5)
    return config


def test_a_model_learns_phones_besides_tokens(tmp_path, utterances):
    folder = tmp_path / "run"
    config = spoken_config(tmp_path, None, max_steps=2)
    model, notes = start_run(folder, config, utterances)
    loaded = checkpoint.load(model)
    assert loaded.config.phones == SPOKEN.phones(utterance.text for utterance in utterances)
    assert loaded.model.phone_ctc is not None and len(loaded.model.phone_ctc.bias) == 1 + len(loaded.config.phones)
    assert any("train/phone_ctc" in values for values in notes.points.values())
    with pytest.raises(
        ValueError, match=rf"^{folder} holds a run with other phones, a b c; give this run another name"
    ):
        start_run(folder, make_config(None, max_steps=3), utterances)


def test_a_share_of_the_phones_loss_is_mmi_against_the_training_texts(tmp_path, utterances, monkeypatch):
    tables = []
    monkeypatch.setattr(
        run, "PhoneTrigrams", lambda *args, **kw: tables.append(PhoneTrigrams(*args, **kw)) or tables[-1]
    )
    config = spoken_config(tmp_path, None, max_steps=2)
    without = train(tmp_path / "without", config, utterances)
    assert not tables
    config.loss.phone_mmi_share = 0.5
    model, notes = start_run(tmp_path / "run", config, utterances)
    weights = checkpoint.load_weights(model)
    assert weights.keys() == without.keys()  # the trigrams are not among them
    assert distance(without, weights) > 0
    assert any("train/phone_mmi" in values for values in notes.points.values())
    phones = PhoneEncoder(SPOKEN, SPOKEN.phones(utterance.text for utterance in utterances))
    expected = PhoneTrigrams([phones.encode(utterance.text) for utterance in utterances], num_phones=3)
    assert torch.equal(tables[0].probabilities, expected.probabilities)


def test_batches_in_which_nobody_speaks_can_be_learned_from(tmp_path, utterances):
    """By letters, decoder, and phones by MMI: the loss of each batch is finite, and less in the end."""
    config = spoken_config(tmp_path, None, max_steps=24, log_every=1, valid_every=24, save_every=24)
    config.loss.phone_mmi_share = 0.9
    config.optim = OptimConfig(lr=0.01, warmup_steps=0, schedule="constant")
    config.loader.max_batch_size = 1
    silent = [replace(utterance, id=f"silent-{utterance.id}", text="") for utterance in utterances]
    _, notes = start_run(tmp_path / "run", config, [utterances[0], *silent])
    losses = [values["train/loss"] for values in notes.points.values() if "train/loss" in values]
    assert len(losses) == 24 and all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_model_that_knows_no_phones_learns_them_and_keeps_the_rest(tmp_path, utterances):
    start = tiny.save(tmp_path / "model", seed=5)
    before = checkpoint.load_weights(start)
    after = train(tmp_path / "run", spoken_config(tmp_path, start), utterances)
    assert set(after) - set(before) == {"phone_ctc.weight", "phone_ctc.bias"}
    assert distance(before, after) < 1e-5


def test_phones_and_their_head_are_those_of_the_model_that_training_starts_from(tmp_path, utterances):
    first = tmp_path / "first"
    train(first, spoken_config(tmp_path, None), utterances)
    weights = checkpoint.load_weights(checkpoint.find_model(first))
    fewer = [replace(utterance, text="a") for utterance in utterances]
    after = train(tmp_path / "second", spoken_config(tmp_path, first), fewer)
    assert checkpoint.load(tmp_path / "second").config.phones == ["a", "b", "c"]
    assert 0 < distance(weights, after) < 1e-5


def test_without_a_lexicon_phones_are_left_out_and_that_is_told(tmp_path, utterances, caplog):
    start = tiny.save(tmp_path / "model", phones=tiny.PHONES)
    before, after = checkpoint.load_weights(start), train(tmp_path / "run", make_config(start), utterances)
    assert set(before) - set(after) == {"phone_ctc.weight", "phone_ctc.bias"}
    assert distance(after, before) < 1e-5
    assert checkpoint.load(tmp_path / "run").config.phones == []
    assert f"{start} knows phones, which are left out: there is no lexicon to learn them by" in caplog.text
