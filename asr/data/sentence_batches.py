"""Which sentences form which batch: by number of tokens, of like lengths, the same for the same seed."""

# B sentences of a batch, U tokens

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from asr.data.batching import own_shard
from asr.data.sentences import Sentences
from asr.data.tensor_batch import TensorBatch
from asr.data.workers import made_ahead

# Lengths are jittered by this share before they are sorted, so that batches differ from epoch to epoch.
_JITTER = 0.03


@dataclass(slots=True, kw_only=True)
class SentenceBatch(TensorBatch):
    """A batch of sentences.

    Attributes:
        tokens: (B, U) int64, zero beyond a length.
        lengths: Tokens without the end of sentence, (B,) int64.
        num_tokens: Sum of the lengths, and an end of sentence each: what is predicted.
        ids: The batch's place, as one name.
    """

    tokens: Tensor
    lengths: Tensor
    num_tokens: int
    ids: list[str]
    row_limit: ClassVar[str] = "max_sentence_tokens"

    @property
    def padded_length(self) -> int:
        """Tokens U that every row has with its padding."""
        return self.tokens.shape[1]


@dataclass(frozen=True, slots=True)
class SentencePlan:
    """Which sentences form a batch: its epoch, its position in that epoch, and their indices, (B,)."""

    epoch: int
    position: int
    indices: np.ndarray


class SentenceBatches:
    """Batches of sentences of like length, epoch after epoch, from any starting point.

    Nothing is remembered between batches: the plan of an epoch follows from the seed and its number, so a run that is
    resumed in mid-epoch sees what it would have seen.

    Args:
        sentences: At least one.
        max_batch_tokens: Most tokens of a batch, padding and ends of sentence included; no sentence has more.
        seed: Any integer from 0.
        shard: Which of the shards to yield, from 0, where several processes train together.
        num_shards: Number of shards.
        num_workers: Processes that make batches ahead; 0 makes them when they are asked for.
        pin_memory: Whether to put them into page-locked memory, for a GPU.
    """

    def __init__(
        self,
        sentences: Sentences,
        *,
        max_batch_tokens: int,
        seed: int,
        shard: int = 0,
        num_shards: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.sentences, self.max_batch_tokens, self.seed = sentences, max_batch_tokens, seed
        self.shard, self.num_shards = shard, num_shards
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def start(self, epoch: int, position: int) -> Generator[tuple[SentencePlan, SentenceBatch], None, None]:
        """Batches without end, from a place in an epoch on."""
        return made_ahead(
            partial(self._plans, epoch, position),
            self._batch,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            seed=self.seed,
        )

    def _plans(self, epoch: int, position: int) -> Iterator[SentencePlan]:
        while True:
            yield from self.epoch(epoch)[position:]
            epoch, position = epoch + 1, 0

    def epoch(self, number: int) -> list[SentencePlan]:
        """The shard's batches of one epoch, in order; every sentence is in exactly one batch of one shard.

        Raises:
            ValueError: If the sentences cannot be dealt out evenly.
        """
        random = np.random.default_rng((self.seed, number))
        lengths = self.sentences.lengths + 1
        order = np.argsort(lengths * (1 + _JITTER * random.uniform(-1, 1, len(lengths))), kind="stable")
        batches = np.split(order, batch_starts(lengths[order].tolist(), self.max_batch_tokens)[1:])
        batches = own_shard(batches, shard=self.shard, num_shards=self.num_shards)
        places = random.permutation(len(batches))
        return [SentencePlan(number, position, batches[place]) for position, place in enumerate(places)]

    def largest(self) -> SentenceBatch:
        """A batch of the most tokens, padding included, that any epoch can have; of the longest sentences of these."""
        lengths = self.sentences.lengths + 1
        longest = np.unique(lengths)[::-1]
        # With a sentence come at most as many as are no longer.
        sizes = np.searchsorted(np.sort(lengths), longest, side="right")
        sizes = np.minimum(sizes, self.max_batch_tokens // longest)
        best = int(np.argmax(longest * sizes))
        order = np.argsort(-np.where(lengths <= longest[best], lengths, 0), kind="stable")
        return self._batch(SentencePlan(0, 0, order[: sizes[best]]))

    def padding_share(self, number: int) -> float:
        """Share of the tokens of the shard's epoch that is padding, in [0, 1)."""
        lengths = self.sentences.lengths + 1
        own = [lengths[plan.indices] for plan in self.epoch(number)]
        return 1 - sum(int(each.sum()) for each in own) / sum(int(each.max()) * len(each) for each in own)

    def _batch(self, plan: SentencePlan) -> SentenceBatch:
        rows = [torch.from_numpy(self.sentences[index].astype(np.int64)) for index in plan.indices]
        lengths = torch.tensor([len(row) for row in rows])
        return SentenceBatch(
            tokens=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
            lengths=lengths,
            num_tokens=int(lengths.sum()) + len(rows),
            ids=[f"batch {plan.position} of epoch {plan.epoch}"],
        )


def batch_starts(lengths: list[int], max_tokens: int) -> list[int]:
    """Where to cut a row of sentences into batches that are no larger than allowed, the first place included."""
    starts, longest = [0], 0
    for place, length in enumerate(lengths):
        longest = max(longest, length)
        if longest * (place - starts[-1] + 1) > max_tokens:
            starts.append(place)
            longest = length
    return starts
