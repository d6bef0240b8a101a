"""N-gram language models with back-off as sorted tensors: many contexts and words are scored at once, on any device.

An n-gram is a row of the table of its order. It knows its last word and, as its parent, the row of its first n-1 words
in the table below; so the tables are a trie, and parent·V + word is a key that finds an n-gram by binary search.
"""

# R rows (contexts), M words of a row, C = n - 1 columns of a context, V words of the vocabulary, N n-grams of one order

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from asr.tensor_files import write_tensors

UNKNOWN, SENTENCE_START, SENTENCE_END = "<unk>", "<s>", "</s>"

_FORMAT = "1"  # of `save_tables`; raised when older files cannot be read any more
_COLUMNS = ("parents", "words", "log_probs", "backoffs")

# How many times faster, per cell, scoring the whole vocabulary is than searching single words.
_WHOLE_VOCABULARY_GAIN = 8


@dataclass(slots=True)
class NgramTable:
    """All n-grams of one order n >= 1, sorted by parent, then word, each once.

    Attributes:
        parents: Row of the first n-1 words in the table of order n-1, (N,) int64; zeros for n = 1.
        words: Id of the last word, (N,) int64; for n = 1 its own row.
        log_probs: Natural logarithm of p(last word | words before it), (N,) float32.
        backoffs: Natural logarithm of the back-off weight of the n-gram as a context, (N,) float32; 0 where it has
            none.
    """

    parents: Tensor
    words: Tensor
    log_probs: Tensor
    backoffs: Tensor

    def __len__(self) -> int:
        return len(self.words)


@dataclass(slots=True)
class NgramTables:
    """An n-gram model as plain data.

    Attributes:
        words: The vocabulary, a word's place is its id; `<unk>`, `<s>` and `</s>` are among them.
        tables: One table an order, from 1 up.
    """

    words: list[str]
    tables: list[NgramTable]


class NgramModel(nn.Module):
    """Back-off n-gram model (Katz 1987): the probability of the longest n-gram that is there, times what is skipped.

        p(w | c1 … ck) = p of the n-gram c1 … ck w, if it is there, else  backoff(c1 … ck) · p(w | c2 … ck)

    A context is a row of int64 numbers that only this class reads: column k holds the row of the last k+1 words in the
    table of order k+1, or -1 where these words are no n-gram of the model.

    Args:
        tables: The model; its tensors are kept, not copied, so they may be mapped from a file.

    Raises:
        ValueError: If the model has so many n-grams and words that their keys do not fit 64 bits.
    """

    def __init__(self, tables: NgramTables) -> None:
        super().__init__()
        self.words = list(tables.words)
        self._ids = {word: index for index, word in enumerate(self.words)}
        self.unk_id, self.bos_id, self.eos_id = (self._ids[word] for word in (UNKNOWN, SENTENCE_START, SENTENCE_END))
        self._levels = nn.ModuleList(_Level(table, num_words=len(self.words)) for table in tables.tables)
        self.order = len(tables.tables)

    @property
    def levels(self) -> list["_Level"]:
        """The tables with their keys, from order 1 up."""
        return cast(list[_Level], list(self._levels))

    def ids(self, words: Sequence[str]) -> list[int]:
        """The words' ids; `unk_id` for those that the vocabulary lacks."""
        return [self._ids.get(word, self.unk_id) for word in words]

    def empty(self, num_rows: int) -> Tensor:
        """Contexts without any word, (R, C)."""
        return torch.full((num_rows, self.order - 1), -1, device=self.levels[0].keys.device)

    def start(self, num_rows: int) -> Tensor:
        """Contexts at the beginning of a sentence, (R, C)."""
        contexts = self.empty(num_rows)
        contexts[:, :1] = self.bos_id
        return contexts

    def extend(self, contexts: Tensor, words: Tensor) -> Tensor:
        """The contexts with one more word each.

        Args:
            contexts: (R, C); not changed.
            words: Word ids, (R,).

        Returns:
            (R, C).
        """
        columns = [words]
        for level, parents in zip(self.levels[1:-1], contexts.unbind(1), strict=False):
            columns.append(level.find(parents, words))
        return torch.stack(columns, dim=1) if self.order > 1 else contexts

    def score(self, contexts: Tensor, words: Tensor) -> Tensor:
        """Log-probabilities of words.

        Args:
            contexts: (R, C).
            words: Word ids, (R, M).

        Returns:
            Natural logarithms, (R, M) float32.
        """
        if words.shape[1] * _WHOLE_VOCABULARY_GAIN >= len(self.words):
            return self.score_all(contexts).gather(1, words)
        below, *levels = self.levels
        scores = below.log_probs[words].float()  # (R, M)
        for level, parents in zip(levels, contexts.unbind(1), strict=True):
            found = level.find(parents[:, None], words)  # (R, M)
            backed_off = scores + below.backoff(parents)[:, None]
            scores = torch.where(found >= 0, level.log_probs[found.clamp_min(0)].float(), backed_off)
            below = level
        return scores

    def score_all(self, contexts: Tensor) -> Tensor:
        """Log-probabilities of the whole vocabulary; exactly what `score` gives for each word.

        Instead of a search for every word it goes through the n-grams that are there, which lie side by side.

        Args:
            contexts: (R, C).

        Returns:
            Natural logarithms, (R, V) float32.
        """
        below, *levels = self.levels
        scores = below.log_probs.float().repeat(len(contexts), 1)  # (R, V)
        for level, parents in zip(levels, contexts.unbind(1), strict=True):
            scores += below.backoff(parents)[:, None]
            rows, places = level.extensions(parents)
            words = level.keys[places] - parents[rows] * len(self.words)
            scores.view(-1)[rows * len(self.words) + words] = level.log_probs[places].float()
            below = level
        return scores

    def sentence_log_probs(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Log-probabilities of whole sentences, their ends included, as perplexity needs them.

        Args:
            sentences: Words, S sentences; unknown words count as `<unk>`.

        Returns:
            Natural logarithms, (S,) float64, on the model's device.
        """
        device = self.levels[0].keys.device
        ids = [[*self.ids(sentence), self.eos_id] for sentence in sentences]
        # The longest first, so that those which still run are always the first rows.
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        flat = torch.tensor([word for index in order for word in ids[index]], device=device)
        lengths = torch.tensor([len(ids[index]) for index in order], dtype=torch.long)
        starts = (lengths.cumsum(0) - lengths).to(device)
        totals = torch.zeros(len(ids), dtype=torch.float64, device=device)
        contexts = self.start(len(ids))
        for position in range(int(lengths.max()) if len(ids) else 0):
            running = int((lengths > position).sum())
            words = flat[starts[:running] + position]
            contexts = contexts[:running]
            totals[:running] += self.score(contexts, words[:, None])[:, 0]
            contexts = self.extend(contexts, words)
        return torch.zeros_like(totals).index_copy(0, torch.tensor(order, dtype=torch.long, device=device), totals)


class _Level(nn.Module):
    """One table with the keys to search it; nothing of it is stored in a checkpoint.

    Attributes:
        keys: parent·V + word, (N,) int64, ascending.
        log_probs: (N,).
        backoffs: (N,).
    """

    keys: Tensor
    log_probs: Tensor
    backoffs: Tensor

    def __init__(self, table: NgramTable, *, num_words: int) -> None:
        super().__init__()
        self.num_words = num_words
        if not len(table):  # pruned away; one n-gram that is never found spares all lookups a case of their own
            unused = torch.full((1,), torch.iinfo(torch.long).max // num_words - 2)
            table = NgramTable(unused, unused * 0, torch.zeros(1), torch.zeros(1))
        keys = ngram_keys(table.parents, table.words, num_words=num_words)
        assert bool((keys[1:] > keys[:-1]).all()), "the n-grams of a table must be sorted, each once"
        self.register_buffer("keys", keys, persistent=False)
        self.register_buffer("log_probs", table.log_probs, persistent=False)
        self.register_buffer("backoffs", table.backoffs, persistent=False)

    def find(self, parents: Tensor, words: Tensor) -> Tensor:
        """The rows of parents, -1 for none, followed by words; shapes that broadcast. -1 where there is no such."""
        return find_keys(self.keys, parents * self.num_words + words)  # below zero without a parent: never found

    def extensions(self, parents: Tensor) -> tuple[Tensor, Tensor]:
        """All n-grams that extend parents, (R,) with -1 for none: which parent each has, and its row."""
        first = torch.searchsorted(self.keys, parents * self.num_words)
        counts = torch.searchsorted(self.keys, (parents + 1) * self.num_words) - first  # (R,)
        rows = torch.repeat_interleave(counts)
        before = counts.cumsum(0) - counts
        return rows, torch.arange(len(rows), device=rows.device) + (first - before)[rows]

    def backoff(self, contexts: Tensor) -> Tensor:
        """Back-off weights of rows, (R,) float32; 0 for -1."""
        return torch.where(contexts >= 0, self.backoffs[contexts.clamp_min(0)].float(), 0.0)


def ngram_keys(parents: Tensor, words: Tensor, *, num_words: int) -> Tensor:
    """parent·V + word, the numbers that n-grams of one order are sorted and found by.

    Args:
        parents: (N,) int64.
        words: (N,) int64.
        num_words: V.

    Returns:
        (N,) int64.

    Raises:
        ValueError: If they do not fit 64 bits.
    """
    if len(parents) and (int(parents.max()) + 2) * num_words >= 2**63:
        raise ValueError(
            f"{len(parents)} n-grams over {num_words} words need keys of more than 64 bits; prune the language model"
        )
    return parents * num_words + words


def find_keys(keys: Tensor, wanted: Tensor) -> Tensor:
    """Where the wanted keys, of any shape, are among ascending ones, (N,); -1 for those that are not there."""
    if not len(keys):
        return torch.full_like(wanted, -1)
    places = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return torch.where(keys[places] == wanted, places, -1)


def insert_prefixes(tables: NgramTables, prefixes: Tensor) -> tuple[NgramTables, Tensor, Tensor]:
    """Adds n-grams that the tables lack, and the beginnings of them, without a change of any probability.

    What is added gets the probability that backing off gives, and a back-off weight of one.

    Args:
        tables: A model of order n >= 2.
        prefixes: Word ids, (K, n).

    Returns:
        The larger tables, the new row of each row of the highest table, (N,), and the rows of the prefixes in it, (K,).
    """
    num_words = len(tables.words)
    grown = tables.tables[:1]
    rows = prefixes[:, 0]
    moved = grown[0].words  # every word has its unigram already, so these stay where they are
    for column, table in enumerate(tables.tables[1:], start=1):
        table = NgramTable(moved[table.parents], table.words, table.log_probs, table.backoffs)
        keys = ngram_keys(table.parents, table.words, num_words=num_words)
        wanted = rows * num_words + prefixes[:, column]
        missing = find_keys(keys, wanted) < 0
        new_keys = wanted[missing].unique()
        model = NgramModel(NgramTables(tables.words, [*grown, table]))
        log_probs = torch.zeros(len(new_keys))
        log_probs[find_keys(new_keys, wanted[missing])] = _score_last(model, prefixes[missing, : column + 1])
        new = NgramTable(new_keys // num_words, new_keys % num_words, log_probs, torch.zeros(len(new_keys)))
        table = sort_table(join_tables([table, new]), num_words=num_words)
        grown.append(table)
        all_keys = ngram_keys(table.parents, table.words, num_words=num_words)
        moved, rows = find_keys(all_keys, keys), find_keys(all_keys, wanted)
    return NgramTables(tables.words, grown), moved, rows


def _score_last(model: NgramModel, grams: Tensor) -> Tensor:
    """Log-probabilities of the last words after those before them, (K,), of words (K, n)."""
    contexts = model.empty(len(grams))
    for words in grams[:, :-1].unbind(1):
        contexts = model.extend(contexts, words)
    return model.score(contexts, grams[:, -1:])[:, 0]


def join_tables(tables: Sequence[NgramTable]) -> NgramTable:
    """The rows of several tables of one order after another; sort them afterwards."""
    return NgramTable(
        torch.cat([table.parents for table in tables]),
        torch.cat([table.words for table in tables]),
        torch.cat([table.log_probs for table in tables]),
        torch.cat([table.backoffs for table in tables]),
    )


def sort_table(table: NgramTable, *, num_words: int) -> NgramTable:
    """The same n-grams in the order that a table must have."""
    order = ngram_keys(table.parents, table.words, num_words=num_words).argsort()
    return NgramTable(table.parents[order], table.words[order], table.log_probs[order], table.backoffs[order])


def save_tables(path: Path, tables: NgramTables, source: dict[str, str]) -> None:
    """Writes tables in binary form (safetensors).

    Args:
        path: Where to.
        tables: What to write.
        source: What the tables were made from, to know it again when they are loaded.

    Raises:
        OSError: If it cannot be written; SafetensorError likewise.
    """
    tensors = {"words": torch.from_numpy(np.frombuffer("\n".join(tables.words).encode(), np.uint8).copy())}
    for order, table in enumerate(tables.tables, start=1):
        tensors |= {f"{order}.{column}": getattr(table, column).contiguous() for column in _COLUMNS}
    write_tensors(path, tensors, metadata={**source, "order": str(len(tables.tables)), "format": _FORMAT})


def load_tables(path: Path, source: dict[str, str]) -> NgramTables | None:
    """Maps what `save_tables` wrote into memory; None if it is missing, damaged, or made from another source."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            order = metadata.get("order", "0")
            if metadata != {**source, "order": order, "format": _FORMAT}:
                return None
            words = bytes(file.get_tensor("words").numpy()).decode().split("\n")
            tables = [
                NgramTable(*(file.get_tensor(f"{n}.{column}") for column in _COLUMNS)) for n in range(1, int(order) + 1)
            ]
    except (OSError, SafetensorError, ValueError):
        return None
    return NgramTables(words, tables)
