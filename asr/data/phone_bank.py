"""What a recogniser hears of each phone of its training speech, to make up what it would hear of any text."""

# N frames of all utterances, I phones of all, P phones that are told apart, S stretches of frames that are wanted

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SILENCE = 0  # in the place of a phone: what is heard before the first one


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardUtterance:
    """One utterance as it was heard once.

    Attributes:
        probabilities: Of blank and phones, (T', 1 + P).
        phones: What was said, `SILENCE` first, each from 1 on behind that.
        starts: The first frame of each.
        ends_word: Whether each is the last of its word.
        index: Of the utterance.
        hearing: Of the time that it was heard, from 0.
    """

    probabilities: Tensor
    phones: list[int]
    starts: list[int]
    ends_word: list[bool]
    index: int
    hearing: int


class PhoneBank:
    """Stretches of frames by the phone that was said in them, its neighbours, and whether it ends a word.

    A stretch goes from a phone's first frame to that of the next, silence included: pauses are found where words end.

    Args:
        utterances: At least one; each may be heard several times, whose frames are never mixed.
    """

    def __init__(self, utterances: Sequence[HeardUtterance]) -> None:
        if not utterances:
            raise ValueError("nothing was heard: there are no utterances to learn from")
        self.probabilities = torch.cat([each.probabilities for each in utterances]).half()  # (N, 1 + P)
        self.num_hearings = 1 + max(each.hearing for each in utterances)
        self.utterance_of = np.array([each.index for each in utterances])
        self.utterance_starts = np.cumsum([0, *(len(each.probabilities) for each in utterances)])
        phones = np.concatenate([each.phones for each in utterances])  # (I,)
        starts = np.concatenate(
            [np.add(each.starts, first) for each, first in zip(utterances, self.utterance_starts, strict=False)]
        )
        self._starts = starts.astype(np.int64)
        self._sizes = np.diff(np.append(self._starts, self.utterance_starts[-1]))
        ends_word = np.concatenate([each.ends_word for each in utterances])
        hearings = np.repeat([each.hearing for each in utterances], [len(each.phones) for each in utterances])
        self._num_phones = self.probabilities.shape[1]
        self._tables = [_Table(key) for key in self._keys(phones, ends_word, hearings)]
        # The number of its word in the utterance, for every frame.
        words = np.concatenate([np.cumsum([0, *each.ends_word[:-1]]) for each in utterances])
        self.words = torch.from_numpy(np.repeat(words, self._sizes))  # (N,)

    def made_up(
        self, phones: np.ndarray, ends_word: np.ndarray, hearings: np.ndarray, *, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frames that may be heard of some phones, each drawn from those of the same phone among the same neighbours.

        Where there is none, it is drawn from those with the same phone behind it, else before it, else of any. A phone
        that was never heard has no frames.

        Args:
            phones: Of all utterances, one behind the other, each with `SILENCE` first, (S,).
            ends_word: Whether each is the last of its word, (S,).
            hearings: Which hearing to draw from, (S,).
            random: Draws.

        Returns:
            Frames as indices into `probabilities`, and the place in `phones` that each is for, both (N',).
        """
        chosen = np.full(len(phones), -1)
        draws = random.random(len(phones))
        others = self._keys(phones, ~ends_word, hearings)[-1:]
        tables = [*self._tables, self._tables[-1]]
        for table, key in zip(tables, [*self._keys(phones, ends_word, hearings), *others], strict=True):
            chosen = np.where(chosen < 0, table.draw(key, draws), chosen)
        places = np.flatnonzero(chosen >= 0)
        sizes = self._sizes[chosen[places]]
        return spread(self._starts[chosen[places]], sizes), np.repeat(places, sizes)

    def frames_of(self, number: int) -> np.ndarray:
        """The frames of one of the utterances that were given, as indices into `probabilities`."""
        return np.arange(self.utterance_starts[number], self.utterance_starts[number + 1])

    def _keys(self, phones: np.ndarray, ends_word: np.ndarray, hearings: np.ndarray) -> list[np.ndarray]:
        """Numbers for each phone with what it is compared by, the most of it first."""
        size = self._num_phones
        before, behind = np.roll(phones, 1), np.roll(phones, -1)
        before[phones == SILENCE] = SILENCE
        before[:1], behind[-1:] = SILENCE, SILENCE
        own = (hearings * 2 + ends_word) * size + phones
        return [(own * size + before) * size + behind, own * size + behind, own * size + before, own]


class _Table:
    """Places by key."""

    def __init__(self, keys: np.ndarray) -> None:
        self._order = np.argsort(keys, kind="stable")
        self._known, self._firsts, self._counts = np.unique(keys[self._order], return_index=True, return_counts=True)

    def draw(self, keys: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """A place with each key, by draws in [0, 1); -1 where there is none."""
        rows = np.searchsorted(self._known, keys).clip(max=len(self._known) - 1)
        places = self._order[self._firsts[rows] + (draws * self._counts[rows]).astype(np.int64)]
        return np.where(self._known[rows] == keys, places, -1)


def spread(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """All numbers of ranges, one range behind the other, from where each starts and how many it has."""
    ends = sizes.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + sizes, sizes) + np.arange(total)
