"""Which sentences form which batch: by number of tokens, of like lengths, the same for the same seed."""

# B sentences of a batch, U tokens

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from asr.data.sentences import Sentences
from asr.data.tensor_batch import TensorBatch
from asr.data.text_batches import Dealing, TextBatches


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


class SentenceBatches(TextBatches[SentencePlan, SentenceBatch]):
    """Batches of sentences of like length.

    Args:
        sentences: At least one.
        dealing: How they are dealt out.
    """

    def __init__(self, sentences: Sentences, dealing: Dealing) -> None:
        super().__init__(sentences.lengths + 1, dealing)
        self.sentences = sentences

    def epoch(self, number: int) -> list[SentencePlan]:
        """The shard's batches of one epoch, in order; every sentence is in exactly one batch of one shard."""
        return [SentencePlan(number, position, own) for position, own in enumerate(self.dealt(number))]

    def largest(self) -> SentenceBatch:
        """A batch of the most tokens, padding included, that any epoch can have; of the longest sentences of these."""
        lengths = self.lengths
        longest = np.unique(lengths)[::-1]
        # With a sentence come at most as many as are no longer.
        sizes = np.searchsorted(np.sort(lengths), longest, side="right")
        sizes = np.minimum(sizes, self.dealing.max_batch_tokens // longest)
        best = int(np.argmax(longest * sizes))
        order = np.argsort(-np.where(lengths <= longest[best], lengths, 0), kind="stable")
        return self.batch(SentencePlan(0, 0, order[: sizes[best]]))

    def padding_share(self, number: int) -> float:
        """Share of the tokens of the shard's epoch that is padding, in [0, 1)."""
        own = [self.lengths[indices] for indices in self.dealt(number)]
        return 1 - sum(int(each.sum()) for each in own) / sum(int(each.max()) * len(each) for each in own)

    def batch(self, plan: SentencePlan) -> SentenceBatch:
        """The sentences of a plan, padded."""
        rows = [torch.from_numpy(self.sentences[index].astype(np.int64)) for index in plan.indices]
        lengths = torch.tensor([len(row) for row in rows])
        return SentenceBatch(
            tokens=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
            lengths=lengths,
            num_tokens=int(lengths.sum()) + len(rows),
            ids=[f"batch {plan.position} of epoch {plan.epoch}"],
        )
