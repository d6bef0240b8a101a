"""Which utterances form which batch: by total duration, from buckets of like lengths, the same for the same seed.

Where several processes train together, each has a shard: as many batches as the others, and at the same position a
batch of like lengths, so that none waits long for another.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

# Lengths are jittered by this share before they are sorted, so that batches differ from epoch to epoch. Where batches
# are padded in steps, those within a step come in any order instead.
_JITTER = 0.03


@dataclass(frozen=True, slots=True)
class Draw:
    """One utterance of a batch: its index, the speed at which it is played (1 as recorded), and the seconds of a pause
    before or behind it."""

    index: int
    speed: float
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One batch: its epoch, its position in that epoch, its utterances, and the shard that it belongs to."""

    epoch: int
    position: int
    draws: list[Draw]
    shard: int = 0


Indices = TypeVar("Indices", list[int], np.ndarray)


def own_shard(batches: list[Indices], *, shard: int, num_shards: int) -> list[Indices]:
    """Deals batches out in turn; the largest ones are halved until there are as many for every shard.

    Args:
        batches: Indices of each, sorted by length, so that neighbours go to the same position of different shards.
        shard: Which to return, from 0.
        num_shards: Number of shards.

    Raises:
        ValueError: If there are too few indices for that.
    """
    batches = list(batches)
    while len(batches) % num_shards:
        largest = max(range(len(batches)), key=lambda place: len(batches[place]))
        half = len(batches[largest]) // 2
        if not half:
            raise ValueError(
                f"{len(batches)} batches of one row each cannot be dealt out evenly to {num_shards} processes; let "
                "batches be larger, or take a number of processes that divides that of the batches"
            )
        batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
    return batches[shard::num_shards]


def padded_length(longest: float, *, step: float) -> float:
    """What a batch is padded to: its longest length, or the next multiple of the step above 0; both in one unit."""
    return math.ceil(longest / step - 1e-6) * step if step else longest


@dataclass(frozen=True, slots=True)
class Pauses:
    """Which utterances get a pause, and how long it is, drawn evenly up to the longest.

    Attributes:
        share: Of the utterances, in [0, 1].
        longest_s: Seconds.
    """

    share: float = 0.0
    longest_s: float = 0.0

    def draw(self, count: int, *, seed: int, epoch: int) -> np.ndarray:
        """Seconds of the pause of each utterance in an epoch, (count,); mostly 0."""
        # By itself: with and without pauses, all else that an epoch draws is the same.
        drawn = np.random.default_rng((seed, epoch, 1)).random((2, count))
        return np.where(drawn[0] < self.share, drawn[1] * self.longest_s, 0.0)


class BucketSampler:
    """Yields batches without end, epoch after epoch, from any starting point.

    Nothing is remembered between batches: the plan of an epoch follows from the seed and its number, so a run that is
    resumed in mid-epoch sees what it would have seen.

    Args:
        durations_s: Length of every utterance in seconds.
        max_batch_s: Most seconds of a batch, padding included.
        max_batch_size: Most utterances of a batch.
        speeds: Speeds to draw from, evenly; `[1.0]` changes nothing.
        pauses: Draws how long the pause of each utterance is; None for no pauses.
        seed: Any integer from 0.
        start: Epoch and position of the first batch.
        shard: Which of the shards to yield, from 0.
        num_shards: Number of shards.
        padding_step_s: Above 0, batches are padded to a multiple of this many seconds.

    Raises:
        ValueError: If an utterance alone, at the slowest speed and with the longest pause, is longer than a batch may
            be.
    """

    def __init__(
        self,
        durations_s: Sequence[float],
        *,
        max_batch_s: float,
        max_batch_size: int,
        speeds: Sequence[float],
        pauses: Pauses | None = None,
        seed: int,
        start: tuple[int, int] = (0, 0),
        shard: int = 0,
        num_shards: int = 1,
        padding_step_s: float = 0.0,
    ) -> None:
        if not durations_s:
            raise ValueError("there are no utterances to make batches of")
        self.pauses = pauses or Pauses()
        longest = max(durations_s) / min(speeds) + self.pauses.longest_s
        if padded_length(longest, step=padding_step_s) > max_batch_s:
            pause, cure = "", "lower loader.max_duration_s"
            if self.pauses.longest_s:
                pause, cure = " with the longest pause", f"{cure} or augment.pause_max_s"
            raise ValueError(
                f"the longest utterance lasts {longest:.1f} s at the slowest speed{pause}, more than "
                f"loader.max_batch_s {max_batch_s:g}; raise it, or {cure}"
            )
        self.durations_s = np.asarray(durations_s, dtype=np.float64)
        self.max_batch_s = max_batch_s
        self.max_batch_size = max_batch_size
        self.speeds = np.asarray(speeds, dtype=np.float64)
        self.seed = seed
        self.start = start
        self.shard, self.num_shards = shard, num_shards
        self.padding_step_s = padding_step_s

    def __iter__(self) -> Iterator[BatchPlan]:
        epoch, position = self.start
        while True:
            yield from self.epoch(epoch)[position:]
            epoch, position = epoch + 1, 0

    def epoch(self, number: int) -> list[BatchPlan]:
        """The shard's batches of one epoch, in order; every utterance is in exactly one batch of one shard.

        Raises:
            ValueError: If the utterances cannot be dealt out evenly.
        """
        random = np.random.default_rng((self.seed, number))
        speeds = random.choice(self.speeds, size=len(self.durations_s))
        pauses = self.pauses.draw(len(speeds), seed=self.seed, epoch=number)
        lengths = self.durations_s / speeds + pauses
        draws = random.uniform(-1, 1, len(lengths))
        if self.padding_step_s:  # any order of those that are padded alike costs nothing
            padded = np.array([padded_length(length, step=self.padding_step_s) for length in lengths.tolist()])
            order = np.lexsort((draws, padded))
        else:
            order = np.argsort(lengths * (1 + _JITTER * draws), kind="stable")
        batches = own_shard(self._cut(order, lengths), shard=self.shard, num_shards=self.num_shards)
        return [
            BatchPlan(
                number, position, [Draw(i, float(speeds[i]), float(pauses[i])) for i in batches[which]], self.shard
            )
            for position, which in enumerate(random.permutation(len(batches)))
        ]

    def largest(self) -> BatchPlan:
        """A batch of the most seconds, padding included, that any epoch can have: memory grows with them.

        With pauses, which may have any length, a batch can be a few hundredths larger: here utterances have the
        longest one or none.
        """
        with_pause = np.repeat([0.0, self.pauses.longest_s], len(self.speeds))
        speeds = np.tile(self.speeds, 2)
        lengths = self.durations_s[:, None] / speeds + with_pause  # (utterances, 2 speeds)
        # Any utterance at any speed can be the longest of a batch; with it come at most those that can be shorter.
        longest = np.unique(lengths)[::-1]
        padded = np.array([padded_length(each, step=self.padding_step_s) for each in longest])
        sizes = np.searchsorted(np.sort(lengths.min(axis=1)), longest, side="right")
        sizes = np.minimum(sizes, np.minimum(self.max_batch_size, (self.max_batch_s / padded).astype(np.int64)))
        best = int(np.argmax(padded * sizes))
        allowed = np.where(lengths <= longest[best], lengths, 0.0)
        order = np.argsort(-allowed.max(axis=1), kind="stable")[: sizes[best]]
        chosen = allowed.argmax(axis=1)
        return BatchPlan(
            0, 0, [Draw(i, float(speeds[chosen[i]]), float(with_pause[chosen[i]])) for i in order.tolist()]
        )

    def padding_share(self, number: int) -> float:
        """Share of the seconds of the shard's epoch that is padding, in [0, 1)."""
        used = padded = 0.0
        for plan in self.epoch(number):
            lengths = [self.durations_s[draw.index] / draw.speed + draw.pause_s for draw in plan.draws]
            used += sum(lengths)
            padded += padded_length(max(lengths), step=self.padding_step_s) * len(lengths)
        return 1 - used / padded

    def _cut(self, order: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
        batches: list[list[int]] = []
        longest = 0.0
        for index in order.tolist():
            longest = max(longest, lengths[index])
            full = (
                not batches
                or len(batches[-1]) >= self.max_batch_size
                or padded_length(longest, step=self.padding_step_s) * (len(batches[-1]) + 1) > self.max_batch_s
            )
            if full:
                batches.append([])
                longest = lengths[index]
            batches[-1].append(index)
        return batches
