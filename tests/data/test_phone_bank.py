"""What is made up of text is made of frames that were heard of the same phones, in the likest neighbourhood."""

import numpy as np
import pytest
import torch

from asr.data.phone_bank import SILENCE, HeardUtterance, PhoneBank, spread

# Frames tell where they come from: 100·utterance + place.
PHONES = [[SILENCE, 1, 2, 1], [SILENCE, 2, 1, 3], [SILENCE, 1, 2, 3]]
STARTS = [[0, 2, 3, 5], [0, 1, 2, 6], [0, 1, 3, 4]]
ENDS = [[False, False, True, True], [False, False, True, True], [False, True, False, True]]
SIZES = [7, 8, 6]
HEARINGS = [0, 0, 1]


def make_bank() -> PhoneBank:
    return PhoneBank(
        [
            HeardUtterance(
                probabilities=(100.0 * number + torch.arange(SIZES[number]))[:, None].expand(-1, 4),
                phones=PHONES[number],
                starts=STARTS[number],
                ends_word=ENDS[number],
                index=number,
                hearing=HEARINGS[number],
            )
            for number in range(3)
        ]
    )


def make_up(phones: list[int], ends: list[bool], *, hearing: int = 0, seed: int = 0) -> list[list[int]]:
    """The frames of each phone, by where they come from."""
    bank = make_bank()
    hearings = np.full(len(phones), hearing)
    random = np.random.default_rng(seed)
    frames, places = bank.made_up(np.array(phones), np.array(ends), hearings, random=random)
    names = bank.probabilities[torch.from_numpy(frames), 0].int().tolist()
    return [
        [name for name, place in zip(names, places.tolist(), strict=True) if place == each]
        for each in range(len(phones))
    ]


def test_a_phone_among_the_same_neighbours_has_all_frames_of_one_that_was_heard() -> None:
    assert make_up([SILENCE, 1, 2, 1], [False, False, True, True]) == [[0, 1], [2], [3, 4], [5, 6]]


def test_where_the_neighbourhood_is_new_the_phone_behind_counts_most() -> None:
    # 1 before 3 was heard in 1 (behind 2), but never behind silence.
    found = make_up([SILENCE, 1, 3], [False, True, True])
    assert found[1] == [102, 103, 104, 105]
    # 2 before silence was never heard; 2 behind 1 was.
    assert make_up([SILENCE, 1, 2], [False, False, True])[2] == [3, 4]


def test_a_phone_that_never_ended_a_word_is_taken_from_within_one() -> None:
    assert make_up([SILENCE, 3], [False, False])[1] == [106, 107]
    assert make_up([SILENCE, 3], [False, False], hearing=1)[1] == [204, 205]


def test_hearings_are_never_mixed_and_a_phone_that_was_not_heard_has_no_frames() -> None:
    for seed in range(5):
        found = make_up([SILENCE, 2, 1, 2, 3], [False, False, True, False, True], hearing=1, seed=seed)
        assert all(frame >= 200 for own in found for frame in own)
    bank = make_bank()
    frames, places = bank.made_up(
        np.array([SILENCE, 3]), np.array([False, True]), np.array([5, 5]), random=np.random.default_rng(0)
    )
    assert len(frames) == len(places) == 0


def test_all_that_fit_are_drawn() -> None:
    found = {tuple(make_up([SILENCE, 1, 2, 2], [False, False, True, True], seed=seed)[0]) for seed in range(20)}
    assert found == {(0, 1)}  # silence before 1
    found = {tuple(make_up([SILENCE, 3, 3], [False, True, True], seed=seed)[0]) for seed in range(20)}
    assert found == {(0, 1), (100,)}  # of silence before 3 nothing is known, so any will do


def test_frames_and_words_of_an_utterance() -> None:
    bank = make_bank()
    assert bank.frames_of(1).tolist() == [7, 8, 9, 10, 11, 12, 13, 14]
    assert bank.words[bank.frames_of(1)].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert bank.words[bank.frames_of(2)].tolist() == [0, 0, 0, 1, 1, 1]
    assert bank.num_hearings == 2


def test_ranges_are_spread() -> None:
    assert spread(np.array([5, 2, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert spread(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).tolist() == []


def test_nothing_heard_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was heard"):
        PhoneBank([])
