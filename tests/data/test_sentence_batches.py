"""Batches of sentences: each once an epoch, within the limit, from the seed alone, from any place on."""

from itertools import islice

import numpy as np
import pytest
import torch

from asr.data.sentence_batches import SentenceBatches
from asr.data.sentences import Sentences
from asr.data.text_batches import Dealing

MAX_TOKENS = 200


def make_sentences(number: int = 500, *, lengths: list[int] | None = None) -> Sentences:
    """Sentences of random tokens, lengths as in books: many short ones, some long."""
    random = np.random.default_rng(0)
    own = np.array(lengths) if lengths else random.lognormal(3, 0.8, number).astype(np.int64).clip(1, MAX_TOKENS - 1)
    offsets = np.concatenate([[0], own.cumsum()])
    return Sentences(random.integers(2, 30, offsets[-1]).astype(np.uint16), offsets, np.ones(len(own), dtype=np.int32))


def make_batches(
    sentences: Sentences, *, seed: int = 1, max_batch_tokens: int = MAX_TOKENS, num_workers: int = 0
) -> SentenceBatches:
    return SentenceBatches(sentences, Dealing(max_batch_tokens=max_batch_tokens, seed=seed, num_workers=num_workers))


def plans(batches: SentenceBatches, epoch: int) -> list[list[int]]:
    return [plan.indices.tolist() for plan in batches.epoch(epoch)]


@pytest.mark.parametrize("number", [0, 1, 7])
def test_every_sentence_is_in_exactly_one_batch_of_an_epoch(number):
    found = make_batches(make_sentences()).epoch(number)
    assert sorted(index for plan in found for index in plan.indices.tolist()) == list(range(500))
    assert [(plan.epoch, plan.position) for plan in found] == [(number, place) for place in range(len(found))]


@pytest.mark.parametrize("max_batch_tokens", [MAX_TOKENS, 1000, 10**6])
def test_no_batch_is_over_the_limit_or_over_the_largest_with_padding_and_ends(max_batch_tokens):
    batches = make_batches(make_sentences(), max_batch_tokens=max_batch_tokens)
    largest = batches.largest()
    most = largest.tokens.shape[0] * (largest.tokens.shape[1] + 1)
    assert most <= max_batch_tokens
    for epoch in range(3):
        for plan in batches.epoch(epoch):
            assert len(plan.indices) * (batches.sentences.lengths[plan.indices].max() + 1) <= most


def test_a_batch_holds_its_sentences_padded_with_zeros():
    sentences = make_sentences(lengths=[3, 1, 2])
    plan, batch = next(make_batches(sentences).start(0, 0))
    assert batch.tokens.dtype == batch.lengths.dtype == torch.int64
    assert batch.tokens.shape == (3, 3)
    assert batch.num_tokens == 9
    assert batch.ids == ["batch 0 of epoch 0"]
    for row, index in enumerate(plan.indices):
        length = int(batch.lengths[row])
        assert batch.tokens[row, :length].tolist() == sentences[index].tolist()
        assert not batch.tokens[row, length:].any()
    assert batch.to(torch.device("cpu")).tokens.equal(batch.tokens)


def test_the_same_seed_gives_the_same_plan_and_another_seed_or_epoch_another():
    sentences = make_sentences()
    assert plans(make_batches(sentences), 3) == plans(make_batches(sentences), 3)
    assert plans(make_batches(sentences), 3) != plans(make_batches(sentences, seed=2), 3)
    assert plans(make_batches(sentences), 3) != plans(make_batches(sentences), 4)


def test_batches_do_not_come_from_short_to_long():
    batches = make_batches(make_sentences(2000))
    lengths = [batches.sentences.lengths[plan.indices].mean() for plan in batches.epoch(0)]
    assert abs(np.corrcoef(lengths, range(len(lengths)))[0, 1]) < 0.2


@pytest.mark.parametrize("skipped", [0, 1, 5, 30, 70])
def test_a_start_in_mid_epoch_goes_on_exactly(skipped):
    sentences = make_sentences(100)
    whole = list(islice(make_batches(sentences).start(0, 0), 80))
    place = whole[skipped][0]
    again = list(islice(make_batches(sentences).start(place.epoch, place.position), 80 - skipped))
    for (plan, batch), (expected, other) in zip(again, whole[skipped:], strict=True):
        assert (plan.epoch, plan.position) == (expected.epoch, expected.position)
        assert batch.tokens.equal(other.tokens)


def test_a_start_behind_the_last_batch_is_the_next_epoch():
    batches = make_batches(make_sentences(100))
    plan, _ = next(batches.start(0, len(batches.epoch(0))))
    assert (plan.epoch, plan.position) == (1, 0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors, on purpose
def test_workers_make_what_one_process_makes():
    alone, together = (make_batches(make_sentences(), num_workers=number).start(0, 3) for number in (0, 2))
    for (plan, one), (other_plan, other) in zip(islice(alone, 6), islice(together, 6), strict=True):
        assert (plan.epoch, plan.position, one.ids) == (other_plan.epoch, other_plan.position, other.ids)
        assert torch.equal(one.tokens, other.tokens)


def test_little_of_a_batch_is_padding():
    assert 0 < make_batches(make_sentences(5000), max_batch_tokens=4096).padding_share(0) < 0.06


def test_the_padding_share_is_what_it_says():
    assert make_batches(make_sentences(lengths=[1, 3])).padding_share(0) == pytest.approx(2 / 8)
