"""Batches of passages: the same for the same seed from any place on, and all that is said of a word is of that word."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import spelling_data
import tiny
import torch
from torch import Tensor

from asr.data.passage_batches import NOTHING, PassageBatches, SpellingBatch
from asr.pronunciation import PhoneEncoder

TENSORS = ("runs", "run_lengths", "run_words", "tokens", "lengths", "token_words", "pair_tokens")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return spelling_data.write_text(tmp_path / "text.txt")


def take(batches: PassageBatches, number: int, *, epoch: int = 0, position: int = 0) -> list[SpellingBatch]:
    return [batch for _, batch in islice(batches.start(epoch, position), number)]


def assert_same(one: SpellingBatch, other: SpellingBatch) -> None:
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)
    assert (one.num_tokens, one.ids) == (other.num_tokens, other.ids)


def rows(batch: SpellingBatch) -> list[tuple[Tensor, Tensor, list[str]]]:
    """Runs, their words, and the words that were said, of each row."""
    tokenizer = spelling_data.make_tokenizer()
    found = []
    for place in range(len(batch.runs)):
        said = tokenizer.decode(batch.tokens[place, : batch.lengths[place]].tolist()).split()
        size = batch.run_lengths[place]
        found.append((batch.runs[place, :size], batch.run_words[place, :size], said))
    return found


def test_an_epoch_goes_on_from_any_place(text: Path) -> None:
    batches = spelling_data.make_batches(text)
    number = len(batches.epoch(0))
    all_of_it = take(batches, number + 2)
    for position in (0, 2, 4, number - 1):
        own = take(spelling_data.make_batches(text), 2, position=position)
        assert_same(all_of_it[position], own[0])
        assert_same(all_of_it[position + 1], own[1])
    assert_same(all_of_it[number], take(batches, 1, epoch=1)[0])


def test_other_seeds_and_epochs_give_other_batches(text: Path) -> None:
    (one,), (other,) = (take(spelling_data.make_batches(text, seed=seed), 1, position=4) for seed in (1, 2))
    assert one.runs.shape != other.runs.shape or not torch.equal(one.runs, other.runs)
    batches = spelling_data.make_batches(text, num_growing=0, real_share=0.0)
    first, second = take(batches, len(batches.epoch(0))), take(batches, len(batches.epoch(1)), epoch=1)
    assert sum(each.num_tokens for each in first) == sum(each.num_tokens for each in second)
    assert not all(one.runs.equal(other.runs) for one, other in zip(first, second, strict=False))


def test_all_that_is_said_of_a_word_is_of_that_word(text: Path) -> None:
    """The likeliest phones of the runs of each word are its own, as those of the bank are the right ones."""
    encoder = PhoneEncoder(spelling_data.LEXICON, tiny.PHONES)
    batches = spelling_data.make_batches(text)
    num_words = 0
    for batch in take(batches, len(batches.epoch(0))):
        for runs, words, said in rows(batch):
            assert words.unique_consecutive().tolist() == list(range(len(said)))
            num_words += len(said)
            for place, word in enumerate(said):
                labels = runs[words == place, :4].argmax(dim=1).unique_consecutive().tolist()
                expected = torch.tensor(encoder.encode(word)).unique_consecutive().tolist()
                # A run that goes on over the border of words belongs to the first.
                assert labels in (expected, expected[1:])
    assert num_words > 100


def test_tokens_and_pairs_are_of_the_words_that_they_name(text: Path) -> None:
    tokenizer = spelling_data.make_tokenizer()
    for batch in take(spelling_data.make_batches(text), 8):
        for place, (_, run_words, said) in enumerate(rows(batch)):
            length = int(batch.lengths[place])
            sizes = [len(tokenizer.encode(word)) for word in said]
            assert batch.token_words[place, :length].tolist() == np.repeat(np.arange(len(said)), sizes).tolist()
            assert (batch.token_words[place, length:] == NOTHING).all()
            words = run_words.tolist()
            seconds = [words[min(index + 1, len(words) - 1)] for index in range(0, len(words), 2)]
            expected = [tokenizer.encode(said[word])[0] for word in seconds]
            assert batch.pair_tokens[place, : len(expected)].tolist() == expected
            assert (batch.pair_tokens[place, len(expected) :] == NOTHING).all()


def test_batches_are_no_larger_than_asked_for_and_waste_little(text: Path) -> None:
    batches = spelling_data.make_batches(text, real_share=0.4, num_growing=5)
    for batch in take(batches, len(batches.epoch(0))):
        assert batch.padded_length * len(batch.tokens) <= 60
        assert batch.num_tokens == int(batch.lengths.sum()) + len(batch.tokens)
    assert sum(len(plan.bounds) for plan in batches.epoch(0)[5:]) == len(batches.passages)


def test_the_first_batches_grow(text: Path) -> None:
    batches = spelling_data.make_batches(text, num_growing=4, max_batch_tokens=2000)
    longest = [max(len(said) for _, _, said in rows(batch)) for batch in take(batches, 4)]
    bounds = [plan.bounds[:, 1] - plan.bounds[:, 0] for plan in batches.epoch(0)[:4]]
    assert longest == [own.max() for own in bounds]
    assert all(size <= most for size, most in zip(longest, (6, 6, 7, 8), strict=True)) and longest[-1] == 8
    assert len(batches.epoch(1)) == len(batches.epoch(0)) - 4


def test_some_rows_are_utterances_as_they_were_heard(text: Path) -> None:
    def count(real_share: float) -> int:
        batches = spelling_data.make_batches(text, real_share=real_share, num_growing=0)
        found = 0
        bank = batches.bank
        whole = {tuple(bank.probabilities[torch.from_numpy(bank.frames_of(row))][0].tolist()) for row in range(10)}
        assert len(whole) == 10
        for plan in batches.epoch(0):
            found += sum(" ".join(said) in spelling_data.UTTERANCES for _, _, said in rows(batches.batch(plan)))
        return found

    assert count(0.0) < count(0.9) / 3


def test_shards_share_the_batches_out(text: Path) -> None:
    whole = spelling_data.make_batches(text, num_growing=2)
    parts = [spelling_data.make_batches(text, num_growing=2, shard=shard, num_shards=2) for shard in (0, 1)]
    epochs = [part.epoch(0) for part in parts]
    assert len(epochs[0]) == len(epochs[1])
    bounds = sorted(tuple(row) for epoch in epochs for plan in epoch[2:] for row in plan.bounds.tolist())
    assert bounds == sorted(tuple(row) for row in whole.passages.bounds.tolist())
    assert not np.array_equal(epochs[0][0].bounds, epochs[1][0].bounds)


def test_the_largest_batch_is_of_the_longest_passages(text: Path) -> None:
    batches = spelling_data.make_batches(text)
    largest = batches.largest()
    assert largest.tokens.shape[1] + 1 == batches.lengths.max()
    others = take(batches, len(batches.epoch(0)))
    assert len(largest.tokens) * largest.padded_length >= 0.9 * max(
        len(own.tokens) * own.padded_length for own in others
    )
    with pytest.raises(
        ValueError, match=r"a passage has \d+ tokens with its end, more than loader\.max_batch_tokens 10"
    ):
        spelling_data.make_batches(text, max_batch_tokens=10)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors, on purpose
def test_workers_make_what_one_process_makes(text: Path) -> None:
    alone, together = (take(spelling_data.make_batches(text, num_workers=number), 6) for number in (0, 2))
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_a_batch_goes_to_a_device_with_all_its_tensors(text: Path) -> None:
    (batch,) = take(spelling_data.make_batches(text), 1)
    moved = batch.to(torch.device("meta"))
    assert all(getattr(moved, name).device.type == "meta" for name in TENSORS)
