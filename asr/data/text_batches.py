"""Texts dealt into batches of like lengths, by number of tokens: the same for the same seed, from any place on."""

# K texts, B texts of a batch

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from asr.data.batching import own_shard
from asr.data.workers import made_ahead

Plan = TypeVar("Plan")
Batch = TypeVar("Batch")

# Lengths are jittered by this share before they are sorted, so that batches differ from epoch to epoch.
_JITTER = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealing:
    """How texts are dealt out.

    Attributes:
        max_batch_tokens: Most tokens of a batch, padding and ends of sentence included; no text has more.
        seed: Any integer from 0.
        shard: Which of the shards to yield, from 0, where several processes train together.
        num_shards: Number of shards.
        num_workers: Processes that make batches ahead; 0 makes them when they are asked for.
        pin_memory: Whether to put them into page-locked memory, for a GPU.
    """

    max_batch_tokens: int
    seed: int
    shard: int = 0
    num_shards: int = 1
    num_workers: int = 0
    pin_memory: bool = False


class TextBatches(ABC, Generic[Plan, Batch]):
    """Batches of texts of like length, epoch after epoch, from any starting point.

    Nothing is remembered between batches: the plan of an epoch follows from the seed and its number, so a run that is
    resumed in mid-epoch sees what it would have seen.

    Args:
        lengths: Tokens of each text with its end of sentence, (K,).
        dealing: How they are dealt out.
    """

    def __init__(self, lengths: np.ndarray, dealing: Dealing) -> None:
        self.lengths, self.dealing = lengths, dealing

    def start(self, epoch: int, position: int) -> Generator[tuple[Plan, Batch], None, None]:
        """Batches without end, from a place in an epoch on."""
        return made_ahead(
            partial(self._plans, epoch, position),
            self.batch,
            num_workers=self.dealing.num_workers,
            pin_memory=self.dealing.pin_memory,
            seed=self.dealing.seed,
        )

    @abstractmethod
    def epoch(self, number: int) -> list[Plan]:
        """The shard's batches of one epoch, in order.

        Raises:
            ValueError: If the texts cannot be dealt out evenly.
        """

    @abstractmethod
    def batch(self, plan: Plan) -> Batch:
        """The batch of a plan."""

    def dealt(self, number: int) -> list[np.ndarray]:
        """The texts (B,) of each batch of the shard's epoch, in order; each text is in one batch of one shard.

        Raises:
            ValueError: If the texts cannot be dealt out evenly.
        """
        random = np.random.default_rng((self.dealing.seed, number))
        jitter = 1 + _JITTER * random.uniform(-1, 1, len(self.lengths))
        order = np.argsort(self.lengths * jitter, kind="stable")
        batches = np.split(order, batch_starts(self.lengths[order].tolist(), self.dealing.max_batch_tokens)[1:])
        batches = own_shard(batches, shard=self.dealing.shard, num_shards=self.dealing.num_shards)
        return [batches[place] for place in random.permutation(len(batches))]

    def _plans(self, epoch: int, position: int) -> Iterator[Plan]:
        while True:
            yield from self.epoch(epoch)[position:]
            epoch, position = epoch + 1, 0


def batch_starts(lengths: list[int], max_tokens: int) -> list[int]:
    """Where to cut a row of texts into batches that are no larger than allowed, the first place included."""
    starts, longest = [0], 0
    for place, length in enumerate(lengths):
        longest = max(longest, length)
        if longest * (place - starts[-1] + 1) > max_tokens:
            starts.append(place)
            longest = length
    return starts
