"""Which passages form which batch, and what a recogniser may have heard of them, made up anew every time."""

# B passages and utterances of a batch, R runs of frames, R' pairs of runs, U tokens, P phones

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.data.passages import Lists, Passages
from asr.data.phone_bank import SILENCE, PhoneBank
from asr.data.tensor_batch import TensorBatch
from asr.data.text_batches import Dealing, TextBatches, batch_starts
from asr.decoding.phone_runs import find_runs, pad_rows

NOTHING = -1  # in the place of a word or token: there is none
_FEWEST_WORDS = 6  # of the first passages
_CANDIDATES = 6  # utterances that are drawn for one that is about as long as a batch


@dataclass(slots=True, kw_only=True)
class SpellingBatch(TensorBatch):
    """A batch for a speller.

    Attributes:
        runs: What was heard, (B, R, 1 + P + 2), zero beyond a length.
        run_lengths: Runs of each, (B,).
        run_words: The number of the word that each run was heard of, (B, R); `NOTHING` beyond a length.
        tokens: What was said, (B, U), zero beyond a length.
        lengths: Tokens of each, without the end of sentence, (B,).
        token_words: The number of each token's word, (B, U); `NOTHING` beyond a length.
        pair_tokens: The first token of the word that each pair of runs was heard of, (B, R'); `NOTHING` beyond.
        num_tokens: Sum of the lengths, and an end of sentence each: what is predicted.
        ids: The batch's place, as one name.
    """

    runs: Tensor
    run_lengths: Tensor
    run_words: Tensor
    tokens: Tensor
    lengths: Tensor
    token_words: Tensor
    pair_tokens: Tensor
    num_tokens: int
    ids: list[str]
    row_limit: ClassVar[str] = "max_words"

    @property
    def padded_length(self) -> int:
        """Tokens that every row has with its padding, and an end of sentence."""
        return self.tokens.shape[1] + 1


@dataclass(frozen=True, slots=True)
class PassagePlan:
    """Which stretches of the text form a batch: its epoch, its position in that epoch, and their bounds, (B, 2)."""

    epoch: int
    position: int
    bounds: np.ndarray


class PassageBatches(TextBatches[PassagePlan, SpellingBatch]):
    """Batches of passages of like length, and of utterances as they were heard.

    Args:
        passages: The text.
        bank: What is heard of phones.
        transcripts: The tokens of each word of each utterance that the bank was made of.
        dealing: How passages are dealt out.
        real_share: Share of the rows of a batch that are utterances as they were heard, in place of passages; one row
            at least is a passage.
        num_growing: So many batches of the first epoch are of the first words of passages, from a few on to all: where
            to look is learned from short ones.

    Raises:
        ValueError: If a passage alone has more tokens than a batch may have.
    """

    def __init__(
        self,
        passages: Passages,
        bank: PhoneBank,
        transcripts: Sequence[Lists],
        dealing: Dealing,
        *,
        real_share: float,
        num_growing: int,
    ) -> None:
        self._sizes = np.diff(passages.tokens.offsets)
        before = np.concatenate([[0], self._sizes[passages.words].cumsum()])
        lengths = before[passages.bounds[:, 1]] - before[passages.bounds[:, 0]] + 1  # with the end of sentence
        super().__init__(lengths, dealing)
        self.passages, self.bank, self.transcripts = passages, bank, transcripts
        self.real_share, self.num_growing = real_share, num_growing
        if lengths.max() > dealing.max_batch_tokens:
            raise ValueError(
                f"a passage has {lengths.max()} tokens with its end, more than loader.max_batch_tokens "
                f"{dealing.max_batch_tokens}; raise that, or lower loader.max_words"
            )
        self._real_lengths = np.array([len(transcripts[index].items) + 1 for index in bank.utterance_of.tolist()])

    def epoch(self, number: int) -> list[PassagePlan]:
        """The shard's batches of one epoch, in order; of the first epoch, those that grow come first."""
        growing = self._growing() if number == 0 else []
        bounds = [*growing, *(self.passages.bounds[indices] for indices in self.dealt(number))]
        return [PassagePlan(number, position, own) for position, own in enumerate(bounds)]

    def largest(self) -> SpellingBatch:
        """A batch of the longest passages, which needs most memory."""
        order = np.argsort(-self.lengths, kind="stable")
        chosen = order[: max(1, self.dealing.max_batch_tokens // int(self.lengths[order[0]]))]
        return self.batch(PassagePlan(0, self.num_growing, self.passages.bounds[chosen]))

    def _growing(self) -> list[np.ndarray]:
        """Bounds of the first batches, whose passages end early: each has a few more words than the one before."""
        random = np.random.default_rng((self.dealing.seed, self.dealing.shard))
        longest = int((self.passages.bounds[:, 1] - self.passages.bounds[:, 0]).max())
        found = []
        for most in np.linspace(_FEWEST_WORDS, max(_FEWEST_WORDS, longest), self.num_growing).astype(int).tolist():
            number = max(1, self.dealing.max_batch_tokens // (most + 1))  # a word has a token at least
            bounds = self.passages.bounds[random.integers(len(self.passages), size=number)]
            bounds = np.stack([bounds[:, 0], np.minimum(bounds[:, 1], bounds[:, 0] + most)], axis=1)
            starts = [
                *batch_starts([self._length(*own) for own in bounds.tolist()], self.dealing.max_batch_tokens),
                number,
            ]
            found.append(bounds[: starts[1]])
        return found

    def _length(self, first: int, end: int) -> int:
        """Tokens of some words, and an end of sentence."""
        return 1 + int(self._sizes[self.passages.words[first:end]].sum())

    def batch(self, plan: PassagePlan) -> SpellingBatch:
        """What is heard and said of the passages of a plan, some of them in favour of utterances as they were heard."""
        random = np.random.default_rng((self.dealing.seed, plan.epoch, plan.position, self.dealing.shard))
        is_growing = plan.epoch == 0 and plan.position < self.num_growing
        drawn = 0 if is_growing else int(random.binomial(len(plan.bounds), self.real_share))
        real = self._real(min(drawn, len(plan.bounds) - 1), plan.bounds, random)
        made_up = plan.bounds[: len(plan.bounds) - len(real)]
        frames, owners, words, tokens, token_words = self._heard_of(made_up, random)
        for row, number in enumerate(real, start=len(made_up)):
            own, transcript = self.bank.frames_of(number), self.transcripts[self.bank.utterance_of[number]]
            frames, owners = np.append(frames, own), np.append(owners, np.full(len(own), row))
            words = np.append(words, self.bank.words[own].numpy())
            tokens.append(torch.from_numpy(transcript.items))
            sizes = np.diff(transcript.offsets)
            token_words.append(torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)))
        num_rows = len(plan.bounds)
        heard = find_runs(self.bank.probabilities[torch.from_numpy(frames)].float(), torch.from_numpy(owners))
        runs, lengths = pad_rows(heard.features, heard.owners, num_owners=num_rows)
        run_words, _ = pad_rows(torch.from_numpy(words)[heard.frames] + 1, heard.owners, num_owners=num_rows)
        padded_words = pad_sequence(token_words, batch_first=True, padding_value=NOTHING)
        padded = pad_sequence(tokens, batch_first=True)
        return SpellingBatch(
            runs=runs,
            run_lengths=lengths,
            run_words=run_words - 1,
            tokens=padded,
            lengths=torch.tensor([len(own) for own in tokens]),
            token_words=padded_words,
            pair_tokens=_pair_tokens(run_words - 1, padded, padded_words),
            num_tokens=sum(len(own) for own in tokens) + num_rows,
            ids=[f"batch {plan.position} of epoch {plan.epoch}"],
        )

    def _real(self, number: int, bounds: np.ndarray, random: np.random.Generator) -> list[int]:
        """Utterances that are about as long as the passages of a batch, at most so many, none longer than all of these:
        the batch has room for that."""
        lengths = [self._length(*own) for own in bounds.tolist()]
        drawn = random.integers(len(self._real_lengths), size=_CANDIDATES * number)
        drawn = drawn[self._real_lengths[drawn] <= max(lengths)]
        nearest = np.argsort(np.abs(self._real_lengths[drawn] - np.median(lengths)), kind="stable")[:number]
        chosen: list[int] = drawn[nearest].tolist()
        return chosen

    def _heard_of(
        self, bounds: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Tensor], list[Tensor]]:
        """What is heard of passages: frames of the bank, the passage and the word of each frame; and of each passage
        the tokens and the word of each token."""
        sizes = bounds[:, 1] - bounds[:, 0]
        spoken = self.passages.words[np.concatenate([np.arange(*own) for own in bounds])]
        rows = np.repeat(np.arange(len(bounds)), sizes)
        places = np.concatenate([np.arange(size) for size in sizes])  # of words in their passage
        phones, phone_sizes = self.passages.phones.pick(spoken)
        ends_word = np.zeros(len(phones), dtype=bool)
        ends_word[phone_sizes.cumsum() - 1] = True
        phone_rows, phone_words = np.repeat(rows, phone_sizes), np.repeat(places, phone_sizes)
        firsts = np.searchsorted(phone_rows, np.arange(len(bounds)))
        phones, ends_word = np.insert(phones, firsts, SILENCE), np.insert(ends_word, firsts, False)
        phone_rows = np.insert(phone_rows, firsts, np.arange(len(bounds)))
        phone_words = np.insert(phone_words, firsts, 0)
        hearings = random.integers(self.bank.num_hearings, size=len(bounds))[phone_rows]
        frames, sources = self.bank.made_up(phones, ends_word, hearings, random=random)
        tokens, token_sizes = self.passages.tokens.pick(spoken)
        ends = np.bincount(np.repeat(rows, token_sizes), minlength=len(bounds)).cumsum()[:-1]
        token_words = np.split(np.repeat(places, token_sizes), ends)
        return (
            frames,
            phone_rows[sources],
            phone_words[sources],
            [torch.from_numpy(own) for own in np.split(tokens, ends)],
            [torch.from_numpy(own) for own in token_words],
        )


def _pair_tokens(run_words: Tensor, tokens: Tensor, token_words: Tensor) -> Tensor:
    """The first token of the word of each pair of runs, (B, R'), that of the second run where they differ."""
    padded = torch.nn.functional.pad(run_words, (0, run_words.shape[1] % 2), value=NOTHING)
    first, second = padded.view(len(padded), -1, 2).unbind(dim=2)
    words = torch.where(second == NOTHING, first, second)  # (B, R')
    begins = token_words != torch.nn.functional.pad(token_words, (1, 0), value=NOTHING)[:, :-1]
    rows, places = (begins & (token_words != NOTHING)).nonzero(as_tuple=True)
    firsts = torch.full((len(tokens), 1 + max(int(token_words.max()), int(words.max()))), NOTHING)
    firsts[rows, token_words[rows, places]] = tokens[rows, places]
    return firsts.gather(1, words.clamp_min(0)).masked_fill(words == NOTHING, NOTHING)
