"""Batches: every utterance once an epoch, within the limits, from the seed alone, from any place on."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from asr.data.batching import BatchPlan, BucketSampler, Pauses, own_shard, padded_length
from asr.data.sentence_batches import SentenceBatches
from asr.data.sentences import Sentences
from asr.data.text_batches import Dealing

SPEEDS = (0.9, 1.0, 1.1)


def realistic(number: int = 2000) -> list[float]:
    """Durations as in read speech: many of a few seconds, a heap at 14 to 16 s."""
    random = np.random.default_rng(0)
    short, long = random.lognormal(1.6, 0.5, number // 2), random.uniform(12, 16.5, number - number // 2)
    return np.concatenate([short.clip(1, 16.5), long]).tolist()


def make_sampler(durations_s: list[float], **changes) -> BucketSampler:
    settings = {"max_batch_s": 120.0, "max_batch_size": 64, "speeds": SPEEDS, "seed": 1}
    return BucketSampler(durations_s, **(settings | changes))


def padded_s(sampler: BucketSampler, plan: BatchPlan) -> float:
    return len(plan.draws) * max(sampler.durations_s[draw.index] / draw.speed + draw.pause_s for draw in plan.draws)


@pytest.mark.parametrize("number", [0, 1, 7])
def test_every_utterance_is_in_exactly_one_batch_of_an_epoch(number):
    plans = make_sampler(realistic()).epoch(number)
    assert sorted(draw.index for plan in plans for draw in plan.draws) == list(range(2000))
    assert [(plan.epoch, plan.position) for plan in plans] == [(number, place) for place in range(len(plans))]


@pytest.mark.parametrize(("max_batch_s", "max_batch_size"), [(20.0, 64), (120.0, 64), (120.0, 5), (1e9, 3)])
def test_no_batch_is_over_its_limits_with_padding_and_at_its_speeds(max_batch_s, max_batch_size):
    sampler = make_sampler(realistic(), max_batch_s=max_batch_s, max_batch_size=max_batch_size)
    for plan in islice(sampler, 500):
        assert padded_s(sampler, plan) <= max_batch_s
        assert 1 <= len(plan.draws) <= max_batch_size


@pytest.mark.parametrize("max_batch_s", [20.0, 120.0])
def test_with_a_step_of_padding_batches_are_full_and_of_few_shapes(max_batch_s):
    sampler = make_sampler(realistic(), max_batch_s=max_batch_s, padding_step_s=0.5)
    plans = sampler.epoch(0)
    shapes = set()
    for plan in plans:
        longest = max(sampler.durations_s[draw.index] / draw.speed for draw in plan.draws)
        padded = padded_length(longest, step=0.5)
        assert longest <= padded < longest + 0.5
        assert padded * len(plan.draws) <= max_batch_s
        shapes.add((len(plan.draws), padded))
    # One batch size for a length, and another for the batch that ends with its step as the next is too long to join.
    sizes = Counter(padded for _, padded in shapes)
    assert max(sizes.values()) <= 2
    assert len(shapes) <= 1.12 * len(sizes)
    assert sum(len(plan.draws) for plan in plans) == 2000
    assert 0.02 < sampler.padding_share(0) < 0.05  # a quarter of a second for each, of 10 s on average
    largest = sampler.largest()
    assert max(size * padded for size, padded in shapes) <= len(largest.draws) * padded_length(
        max(sampler.durations_s[draw.index] / draw.speed for draw in largest.draws), step=0.5
    )


def test_what_is_padded_alike_comes_in_another_order_every_epoch():
    sampler = make_sampler([6.01 + number / 1000 for number in range(100)], speeds=[1.0], padding_step_s=0.5)
    batches = [{frozenset(draw.index for draw in plan.draws) for plan in sampler.epoch(number)} for number in (0, 1)]
    assert not batches[0] & batches[1]
    spans = [max(batch) - min(batch) for batch in batches[0] | batches[1]]
    assert min(spans) > 50  # of 100, although lengths are 1 ms apart and a batch has 18


@pytest.mark.parametrize(
    ("longest", "step", "expected"), [(7.0, 0.0, 7.0), (6.9, 0.5, 7.0), (7.0, 0.5, 7.0), (7, 4, 8)]
)
def test_a_length_is_padded_to_the_next_step(longest, step, expected):
    assert padded_length(longest, step=step) == expected


def test_all_speeds_are_drawn_about_equally_often_and_anew_every_epoch():
    sampler = make_sampler(realistic())
    speeds = [{draw.index: draw.speed for plan in sampler.epoch(number) for draw in plan.draws} for number in (0, 1)]
    for speed in SPEEDS:
        assert 500 < list(speeds[0].values()).count(speed) < 840
    assert 1000 < sum(speeds[0][index] != speeds[1][index] for index in range(2000)) < 1660


def test_the_same_seed_gives_the_same_plan_and_another_seed_another():
    assert make_sampler(realistic()).epoch(3) == make_sampler(realistic()).epoch(3)
    assert make_sampler(realistic()).epoch(3) != make_sampler(realistic(), seed=2).epoch(3)


def test_batches_and_their_order_differ_from_epoch_to_epoch_even_without_speeds():
    sampler = make_sampler(realistic(), speeds=[1.0])
    first, second = sampler.epoch(0), sampler.epoch(1)
    together = [{frozenset(draw.index for draw in plan.draws) for plan in plans} for plans in (first, second)]
    assert len(together[0] & together[1]) < 0.1 * len(first)
    lengths = [padded_s(sampler, plan) / len(plan.draws) for plan in first]
    assert abs(np.corrcoef(lengths, range(len(lengths)))[0, 1]) < 0.2  # not from short to long


@pytest.mark.parametrize("skipped", [0, 1, 5, 11, 12, 13, 30])
def test_a_start_in_mid_epoch_goes_on_exactly(skipped):
    durations_s = realistic(100)
    plans = list(islice(make_sampler(durations_s), 45))
    start = (plans[skipped].epoch, plans[skipped].position)
    assert list(islice(make_sampler(durations_s, start=start), 45 - skipped)) == plans[skipped:]


def test_a_start_behind_the_last_batch_is_the_next_epoch():
    sampler = make_sampler(realistic(100))
    behind = make_sampler(realistic(100), start=(0, len(sampler.epoch(0))))
    assert next(iter(behind)) == sampler.epoch(1)[0]


@pytest.mark.parametrize("speeds", [SPEEDS, [1.0], [1.1]])
@pytest.mark.parametrize("max_batch_s", [20.0, 31.0, 120.0])
@pytest.mark.parametrize("max_batch_size", [2, 64])
def test_no_planned_batch_is_larger_than_the_largest(speeds, max_batch_s, max_batch_size):
    sampler = make_sampler(realistic(300), speeds=speeds, max_batch_s=max_batch_s, max_batch_size=max_batch_size)
    largest = padded_s(sampler, sampler.largest())
    assert max(padded_s(sampler, plan) for number in range(20) for plan in sampler.epoch(number)) <= largest
    assert largest <= max_batch_s


def test_pauses_come_to_their_share_of_utterances_and_change_no_speed():
    with_pauses, without = (
        make_sampler(realistic(), pauses=Pauses(share=0.25, longest_s=4.0)),
        make_sampler(realistic()),
    )
    for number in (0, 1):
        drawn = {draw.index: draw for plan in with_pauses.epoch(number) for draw in plan.draws}
        plain = {draw.index: draw for plan in without.epoch(number) for draw in plan.draws}
        assert {index: draw.speed for index, draw in drawn.items()} == {i: draw.speed for i, draw in plain.items()}
        pauses = [draw.pause_s for draw in drawn.values() if draw.pause_s]
        assert 420 < len(pauses) < 580
        assert 0 < min(pauses) < 0.2
        assert 3.8 < max(pauses) <= 4
        assert not any(draw.pause_s for draw in plain.values())
    first, second = ({d.index: d.pause_s for p in with_pauses.epoch(n) for d in p.draws} for n in (0, 1))
    assert first != second


@pytest.mark.parametrize("max_batch_s", [24.0, 120.0])
@pytest.mark.parametrize("padding_step_s", [0.0, 0.5])
def test_batches_with_pauses_are_within_their_limits_and_about_as_large_as_the_largest(max_batch_s, padding_step_s):
    pauses = Pauses(share=0.5, longest_s=5.0)
    sampler = make_sampler(realistic(300), pauses=pauses, max_batch_s=max_batch_s, padding_step_s=padding_step_s)
    largest = padded_s(sampler, sampler.largest())
    assert max(padded_s(sampler, plan) for number in range(10) for plan in sampler.epoch(number)) <= 1.02 * largest
    assert largest <= max_batch_s


def test_an_utterance_that_no_batch_can_hold_with_its_pause_is_an_error():
    message = (
        r"lasts 15\.0 s at the slowest speed with the longest pause, more than loader\.max_batch_s 14; raise it, "
        r"or lower loader\.max_duration_s or augment\.pause_max_s$"
    )
    with pytest.raises(ValueError, match=message):
        make_sampler([9.0], max_batch_s=14.0, pauses=Pauses(share=0.1, longest_s=5.0))


def test_two_utterances_of_half_a_batch_are_larger_than_one_that_is_alone():
    sampler = make_sampler([7.0, 5.0, 4.9], max_batch_s=10.0, speeds=[1.0])
    assert sorted(draw.index for draw in sampler.largest().draws) == [1, 2]


def test_the_largest_batch_is_a_batch_that_can_come():
    sampler = make_sampler(realistic(300))
    draws = sampler.largest().draws
    assert len({draw.index for draw in draws}) == len(draws) <= 64
    assert {draw.speed for draw in draws} <= set(SPEEDS)


@pytest.mark.parametrize("max_batch_s", [120.0, 600.0])
def test_little_of_a_batch_is_padding(max_batch_s):
    sampler = make_sampler(realistic(10_000), max_batch_s=max_batch_s, max_batch_size=256)
    assert 0 < sampler.padding_share(0) < 0.06


def test_the_padding_share_is_what_it_says():
    assert make_sampler([2.0, 4.0], speeds=[1.0]).padding_share(0) == pytest.approx(2 / 8)


def test_an_utterance_that_no_batch_can_hold_is_an_error():
    message = (
        r"longest utterance lasts 20\.0 s at the slowest speed, more than loader\.max_batch_s 19; raise it, or low"
    )
    with pytest.raises(ValueError, match=message):
        make_sampler([1.0, 18.0], max_batch_s=19.0)
    make_sampler([1.0, 18.0], max_batch_s=20.0)


def test_no_utterances_are_an_error():
    with pytest.raises(ValueError, match="there are no utterances to make batches of"):
        make_sampler([])


# Several processes


@pytest.mark.parametrize("num_shards", [2, 3, 4, 8])
@pytest.mark.parametrize("number", [0, 5])
def test_shards_have_as_many_batches_and_together_every_utterance_once(num_shards, number):
    samplers = [make_sampler(realistic(), shard=shard, num_shards=num_shards) for shard in range(num_shards)]
    epochs = [sampler.epoch(number) for sampler in samplers]
    assert len({len(plans) for plans in epochs}) == 1
    assert sorted(draw.index for plans in epochs for plan in plans for draw in plan.draws) == list(range(2000))
    assert [plan.position for plan in epochs[1]] == list(range(len(epochs[1])))
    assert {plan.shard for plan in epochs[1]} == {1}


def test_batches_of_one_position_are_of_similar_size():
    samplers = [make_sampler(realistic(), shard=shard, num_shards=4) for shard in range(4)]
    epochs = [sampler.epoch(0) for sampler in samplers]
    ratios = []
    for plans in zip(*epochs, strict=True):
        sizes = [padded_s(sampler, plan) for sampler, plan in zip(samplers, plans, strict=True)]
        ratios.append(max(sizes) / min(sizes))
    assert np.median(ratios) < 1.1
    assert sum(ratio > 1.9 for ratio in ratios) <= 2  # where batches were halved


def test_a_shard_goes_on_exactly_from_any_place():
    durations_s, settings = realistic(200), {"shard": 1, "num_shards": 3}
    plans = list(islice(make_sampler(durations_s, **settings), 20))
    for skipped in (1, 6, 7, 8, 13):
        start = (plans[skipped].epoch, plans[skipped].position)
        assert list(islice(make_sampler(durations_s, start=start, **settings), 20 - skipped)) == plans[skipped:]


def test_the_largest_batches_are_halved_until_all_shards_have_as_many():
    batches = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
    assert own_shard(batches, shard=0, num_shards=2) == [[1, 2], [6, 7]]
    assert own_shard(batches, shard=1, num_shards=2) == [[3, 4, 5], [8, 9, 10]]
    assert own_shard(batches, shard=0, num_shards=1) == batches


def test_batches_that_cannot_be_dealt_out_evenly_are_an_error():
    message = r"3 batches of one row each cannot be dealt out evenly to 2 processes; let batches be larger, or take a"
    with pytest.raises(ValueError, match=message):
        own_shard([[0], [1], [2]], shard=0, num_shards=2)


def test_sentences_are_dealt_out_too():
    lengths = np.random.default_rng(0).integers(1, 40, 300)
    offsets = np.concatenate([[0], lengths.cumsum()])
    sentences = Sentences(np.zeros(offsets[-1], dtype=np.uint16), offsets, np.ones(300, dtype=np.int32))
    shards = [
        SentenceBatches(sentences, Dealing(max_batch_tokens=200, seed=1, shard=n, num_shards=3)) for n in range(3)
    ]
    epochs = [shard.epoch(2) for shard in shards]
    assert len({len(plans) for plans in epochs}) == 1
    assert sorted(index for plans in epochs for plan in plans for index in plan.indices.tolist()) == list(range(300))
    assert all(0 < shard.padding_share(2) < 0.2 for shard in shards)
