"""ARPA files, the text form of n-gram models that all tools write (SRILM, KenLM, IRSTLM …): reading and writing.

    \\data\\                     how many n-grams there are of each order
    ngram 1=3
    \\1-grams:                  log10 p(last word | words before it), the words, log10 of the back-off weight if any
    -0.5    hello   -0.3
    \\end\\
"""

# N n-grams of one order, K n-grams whose first words are no n-gram of the order below

import contextlib
import gzip
import lzma
import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from asr.decoding import compact_ngram
from asr.decoding.ngram import (
    SENTENCE_END,
    SENTENCE_START,
    UNKNOWN,
    NgramModel,
    NgramTable,
    NgramTables,
    find_keys,
    insert_prefixes,
    join_tables,
    load_tables,
    ngram_keys,
    save_tables,
    sort_table,
)

_LN_10 = math.log(10)
_LOG10_ZERO = -99.0  # how ARPA files write the logarithm of zero
_LOG10_ROUNDING = 1e-5  # a probability of one may come out this much larger
_BLOCK_BYTES = 2**22
_ROWS_WRITTEN_AT_ONCE = 2**16


def load_ngram(path: Path) -> NgramModel:
    """Loads an n-gram model from an ARPA file, plain, .gz or .xz, or from a compact one (.ngram).

    The first time an ARPA file is parsed, and what was read is written beside it as `NAME.cache.safetensors`. Later the
    cache is mapped into memory, as long as size and time of the ARPA file are those that the cache was made from. Where
    the cache cannot be written, the file is parsed every time.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no sound file, see `read_arpa` and `asr.decoding.compact_ngram.read_compact`.
    """
    if path.suffix == compact_ngram.SUFFIX:
        return NgramModel(compact_ngram.read_compact(path))
    if not path.exists():
        raise FileNotFoundError(compact_ngram.MISSING.format(path=path))
    cache = path.with_name(f"{path.name}.cache.safetensors")
    status = path.stat()
    source = {"size": str(status.st_size), "mtime_ns": str(status.st_mtime_ns)}
    tables = load_tables(cache, source)
    if tables is None:
        tables = read_arpa(path)
        # The model is in memory all the same; without a cache only the next start is slower.
        with contextlib.suppress(OSError, SafetensorError), _replacing(cache) as temporary:
            save_tables(temporary, tables, source)
            temporary.chmod(status.st_mode)  # who may read the one may read the other
    return NgramModel(tables)


def read_ngram(path: Path) -> NgramTables:
    """Reads an n-gram model as plain data; files and errors as of `load_ngram`, without a cache."""
    return compact_ngram.read_compact(path) if path.suffix == compact_ngram.SUFFIX else read_arpa(path)


def read_arpa(path: Path) -> NgramTables:
    """Reads an ARPA file, plain, .gz or .xz by its ending.

    N-grams may come in any order, fields be parted by spaces or tabs. `<UNK>` is taken for `<unk>`, and likewise the
    sentence marks; a missing `<unk>` is added with a probability of 1e-99. Where the first words of an n-gram are no
    n-gram themselves, they are added with the probability that backing off gives.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not ARPA, cut short or damaged; the message names the line.
    """
    reader = _Reader(path)
    for number, piece in _pieces(path):
        if piece.startswith(b"\\"):
            reader.read_mark(number, piece.strip())
        else:
            reader.read_lines(number, piece)
        if reader.ended:
            return NgramTables(reader.words, reader.tables)
    if reader.order is None:
        raise ValueError(f"{path}:{reader.last_line}: no \\data\\ header up to the end; this is not an ARPA file")
    raise ValueError(f"{path}:{reader.last_line}: the file ends without \\end\\; it was cut short, copy it again")


def write_arpa(path: Path, tables: NgramTables) -> None:
    """Writes an ARPA file, plain, .gz or .xz by its ending, whole or not at all; equal models give equal files.

    Numbers have seven significant digits; back-off weights of one are left out.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a word has white space in it, or is empty.
    """
    for word in tables.words:
        if not word or re.search(r"[ \t\n\v\f\r]", word):
            raise ValueError(f"{path}: an ARPA file cannot hold the word {word!r}; write its spaces as U+2581")
    vocabulary = np.array(tables.words, dtype=object)
    with _replacing(path) as temporary, _open_to_write(temporary, path.suffix) as stream:
        counts = "".join(f"ngram {order}={len(table)}\n" for order, table in enumerate(tables.tables, start=1))
        stream.write(f"\\data\\\n{counts}".encode())
        for order, table in enumerate(tables.tables, start=1):
            stream.write(f"\n\\{order}-grams:\n".encode())
            for start in range(0, len(table), _ROWS_WRITTEN_AT_ONCE):
                rows = torch.arange(start, min(start + _ROWS_WRITTEN_AT_ONCE, len(table)))
                stream.write(_format_rows(tables, order, rows, vocabulary).encode())
        stream.write(b"\n\\end\\\n")


def _format_rows(tables: NgramTables, order: int, rows: Tensor, vocabulary: np.ndarray) -> str:
    """The lines of some n-grams of one order; the vocabulary as an array of strings."""
    table = tables.tables[order - 1]
    log_probs = (table.log_probs[rows].double() / _LN_10).tolist()
    backoffs = (table.backoffs[rows].double() / _LN_10).tolist() if order < len(tables.tables) else [0.0] * len(rows)
    columns: list[list[str]] = []
    for below in reversed(tables.tables[:order]):
        columns.insert(0, vocabulary[below.words[rows].numpy()].tolist())
        rows = below.parents[rows]
    grams = map(" ".join, zip(*columns, strict=True))
    return "".join(
        f"{log_prob:.7g}\t{gram}\t{backoff:.7g}\n" if backoff else f"{log_prob:.7g}\t{gram}\n"
        for log_prob, gram, backoff in zip(log_probs, grams, backoffs, strict=True)
    )


class _Reader:
    """Takes a file piece by piece and makes tables of it.

    Attributes:
        order: Of the section that is being read; 0 in the header, None before it.
        ended: Whether the end mark has come.
        words: The vocabulary, once the unigrams are read.
        tables: Those that are read.
        last_line: Number of the last line that was seen.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.order: int | None = None
        self.ended = False
        self.words: list[str] = []
        self.tables: list[NgramTable] = []
        self.last_line = 1
        self._promised: list[int] = []
        self._ids: dict[bytes, int] = {}
        self._keys: list[Tensor] = []  # of the tables
        self._blocks: list[NgramTable] = []  # of the section that is being read; -1 for a parent that is missing
        self._orphans: list[Tensor] = []  # first words of the n-grams with that -1, (K, n-1)

    def read_mark(self, number: int, mark: bytes) -> None:
        """Takes a line that begins with a backslash."""
        self.last_line = number
        if self.order is None:
            self.order = 0 if mark == b"\\data\\" else None
            return
        if self.order:
            self._close_section(number)
        elif not self._promised:
            self._fail(number, "the \\data\\ header counts no n-grams; expected lines like 'ngram 1=5000'")
        following = self.order + 1
        if mark == b"\\end\\":
            for order, count in enumerate(self._promised[self.order :], start=following):
                self._check_count(number, order, found=0, promised=count)
            self.ended = True
        elif following > len(self._promised) or mark != b"\\%d-grams:" % following:
            expected = f"\\{following}-grams:" if following <= len(self._promised) else "\\end\\"
            self._fail(number, f"unknown section {_shown(mark)}, expected {expected}; make the file anew")
        else:
            self.order = following

    def read_lines(self, number: int, piece: bytes) -> None:
        """Takes whole lines without a mark."""
        self.last_line = number + piece.count(b"\n") - 1
        if self.order == 0:
            self._read_counts(number, piece)
        elif self.order:
            try:
                self._read_entries(piece, self.order)
            except (KeyError, ValueError):
                self._explain(number, piece, self.order)

    def _read_counts(self, number: int, piece: bytes) -> None:
        for offset, line in enumerate(piece.split(b"\n")):
            if not line.strip():
                continue
            match = re.fullmatch(rb"ngram\s+(\d+)\s*=\s*(\d+)", line.strip())
            following = len(self._promised) + 1
            if match is None or int(match[1]) != following:
                self._fail(
                    number + offset, f"{_shown(line)} in the \\data\\ header, expected 'ngram {following}=COUNT'"
                )
            self._promised.append(int(match[2]))

    def _read_entries(self, piece: bytes, order: int) -> None:
        """Adds the n-grams of some lines to the section; raises any error if something is wrong with them."""
        columns, log_probs, backoffs = _parse(piece, order)
        if order == 1:
            new_ids = self._add_words(columns[0])
            self._blocks.append(NgramTable(torch.zeros_like(new_ids), new_ids, log_probs, backoffs))
            return
        ids_of = self._ids.__getitem__
        ids = [torch.from_numpy(np.fromiter(map(ids_of, column), np.int64, len(column))) for column in columns]
        parents = ids[0]
        for keys, column in zip(self._keys[1:], ids[1:-1], strict=True):
            parents = find_keys(keys, parents * len(self.words) + column)
        missing = parents < 0
        if missing.any():
            self._orphans.append(torch.stack(ids[:-1], dim=1)[missing])
        self._blocks.append(NgramTable(parents, ids[-1], log_probs, backoffs))

    def _add_words(self, words: list[bytes]) -> Tensor:
        """Adds new words to the vocabulary and returns their ids."""
        decoded = [word.decode() for word in words]
        first, last = len(self.words), len(self.words) + len(words)
        ids = dict(zip(words, range(first, last), strict=True))
        if len(ids) < len(words) or not self._ids.keys().isdisjoint(ids):
            raise ValueError("a word comes twice")
        self._ids |= ids
        self.words += decoded
        return torch.arange(first, last)

    def _close_section(self, number: int) -> None:
        """Makes a table of the section that ends before this line."""
        assert self.order is not None
        count = sum(len(block) for block in self._blocks)
        self._check_count(number, self.order, found=count, promised=self._promised[self.order - 1])
        if self.order == 1:
            self._complete_words(number)
        num_words = len(self.words)
        table = join_tables([_no_ngrams(), *self._blocks])
        if self._orphans:
            grown, moved, rows = insert_prefixes(NgramTables(self.words, self.tables), torch.cat(self._orphans))
            self.tables = grown.tables
            self._keys = [ngram_keys(each.parents, each.words, num_words=num_words) for each in self.tables]
            known = table.parents >= 0
            table.parents[known] = moved[table.parents[known]]
            table.parents[~known] = rows
        keys = ngram_keys(table.parents, table.words, num_words=num_words)
        if not (keys[1:] > keys[:-1]).all():
            table = sort_table(table, num_words=num_words)
            keys = ngram_keys(table.parents, table.words, num_words=num_words)
        self.tables.append(table)
        self._keys.append(keys)
        self._blocks, self._orphans = [], []
        twice = (keys[1:] == keys[:-1]).nonzero()
        if len(twice):
            gram = self._spell(int(twice[0]))
            self._fail(number, f"the section that ends here has the {self.order}-gram {gram!r} twice; keep one of them")

    def _complete_words(self, number: int) -> None:
        """Names the special words as all code expects them, and adds `<unk>` where it is missing."""
        for special in (UNKNOWN, SENTENCE_START, SENTENCE_END):
            if special not in self.words and special.upper() in self.words:
                self.words[self.words.index(special.upper())] = special
        for special in (SENTENCE_START, SENTENCE_END):
            if special not in self.words:
                self._fail(number, f"\\1-grams: has no {special}; train the language model with sentence marks")
        if UNKNOWN not in self.words:
            zero = torch.zeros(1)
            unknown = NgramTable(zero.long(), torch.tensor([len(self.words)]), zero + _LOG10_ZERO * _LN_10, zero)
            self.words.append(UNKNOWN)
            self._blocks.append(unknown)
        self._ids |= {word.encode(): self.words.index(word) for word in (UNKNOWN, SENTENCE_START, SENTENCE_END)}

    def _spell(self, row: int) -> str:
        """The words of an n-gram of the highest table."""
        words: list[str] = []
        for table in reversed(self.tables):
            words = [self.words[int(table.words[row])], *words]
            row = int(table.parents[row])
        return " ".join(words)

    def _check_count(self, number: int, order: int, *, found: int, promised: int) -> None:
        if found != promised:
            self._fail(
                number,
                f"\\{order}-grams: ends after {found} n-grams, but the \\data\\ header counts {promised}; "
                "the file was cut or edited, copy it again",
            )

    def _explain(self, number: int, piece: bytes, order: int) -> NoReturn:
        """Finds the first line that is wrong, one by one, and says what is wrong with it."""
        seen = self._ids.copy()
        for offset, line in enumerate(piece.split(b"\n")):
            fields = line.split()
            complaint = _complaint(fields, order, seen) if fields else None
            if complaint is not None:
                self._fail(number + offset, complaint)
            if order == 1 and fields:
                seen[fields[1]] = len(seen)
        raise AssertionError(f"{self.path}:{number}: these lines could not be read, but none of them is wrong")

    def _fail(self, number: int, reason: str) -> NoReturn:
        raise ValueError(f"{self.path}:{number}: {reason}")


def _complaint(fields: list[bytes], order: int, known: dict[bytes, int]) -> str | None:
    """What is wrong with a line of a section, None if nothing is."""
    if len(fields) not in (order + 1, order + 2):
        return (
            f"{len(fields)} fields, but a line of \\{order}-grams: has {order + 1} or {order + 2}: "
            f"log-probability, {order} words and perhaps a back-off weight"
        )
    for field in (fields[0], *fields[order + 1 :]):
        try:
            value = float(field)
        except ValueError:
            value = math.nan
        if math.isnan(value) or value == math.inf:
            return f"{_shown(field)} is no number; expected a logarithm of base 10"
    if float(fields[0]) > _LOG10_ROUNDING:
        return f"log-probability {_shown(fields[0])} is above 0, so a probability above one; make the model anew"
    for word in fields[1 : order + 1]:
        if order > 1 and word not in known:
            return f"the word {_shown(word)} is not in \\1-grams:; add it there or remove its n-grams"
        if order == 1 and word in known:
            return f"the word {_shown(word)} comes twice; keep one of them"
        try:
            word.decode()
        except UnicodeDecodeError:
            return f"the word {_shown(word)} is not UTF-8 text; convert the file to UTF-8"
    return None


def _shown(text: bytes) -> str:
    """Bytes of a file for a message."""
    return repr(text.strip()[:80].decode(errors="backslashreplace"))


def _parse(piece: bytes, order: int) -> tuple[list[list[bytes]], Tensor, Tensor]:
    """Reads lines of one section all at once.

    Returns:
        The words, a list for each place in the n-gram, and natural logarithms of probabilities and back-off weights,
        (N,) float32.

    Raises:
        ValueError: If something is wrong with one of the lines.
    """
    counts = _count_fields(piece)
    counts = counts[counts > 0]
    with_backoff = counts == order + 2
    if not (with_backoff | (counts == order + 1)).all():
        raise ValueError("wrong number of fields")
    fields = np.array(piece.split(), dtype=object)
    first = counts.cumsum() - counts  # the log-probability of each line
    log_probs = _numbers(fields[first])
    backoffs = np.zeros(len(first))
    backoffs[with_backoff] = _numbers(fields[first[with_backoff] + order + 1])
    # A comparison with NaN is false.
    if not ((log_probs <= _LOG10_ROUNDING).all() and (backoffs < np.inf).all()):
        raise ValueError("not a logarithm")
    return (
        [fields[first + place].tolist() for place in range(1, order + 1)],
        torch.from_numpy(log_probs.clip(_LOG10_ZERO, 0.0) * _LN_10).float(),
        torch.from_numpy(backoffs.clip(min=_LOG10_ZERO) * _LN_10).float(),
    )


def _numbers(fields: np.ndarray) -> np.ndarray:
    return np.fromiter(map(float, fields.tolist()), np.float64, len(fields))


def _count_fields(piece: bytes) -> np.ndarray:
    """Number of fields of each line, parted as `bytes.split` does; every line ends with a line feed."""
    characters = np.frombuffer(piece, np.uint8)
    spaces = (characters == ord(" ")) | (characters - np.uint8(9) < 5)  # tab, line feed and their kind
    ends = np.flatnonzero(spaces[1:] > spaces[:-1])  # the last character of every field
    return np.diff(np.searchsorted(ends, np.flatnonzero(characters == ord("\n"))), prepend=0)


def _no_ngrams() -> NgramTable:
    nothing = torch.zeros(0)
    return NgramTable(nothing.long(), nothing.long(), nothing, nothing)


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    """Parts of a file with the number of their first line: a line that begins with a backslash, or many that do not.

    Every piece ends with a line feed.
    """
    number, rest = 1, b""
    try:
        with _open_to_read(path) as stream:
            while block := stream.read(_BLOCK_BYTES):
                block = rest + block
                end = block.rfind(b"\n") + 1
                if end == 0 and len(block) > _BLOCK_BYTES:
                    raise ValueError(f"{path}:{number}: a line of over {_BLOCK_BYTES} bytes; this is not an ARPA file")
                rest = block[end:]
                for piece in _split_at_marks(block[:end]):
                    yield number, piece
                    number += piece.count(b"\n")
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(
            f"{path}:{number}: the compressed file is cut short or damaged ({error}); copy it again"
        ) from None
    if rest:
        yield number, rest + b"\n"


def _split_at_marks(lines: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(lines):
        # find() gives -1 where there is none, so the sum is 0.
        end = lines.find(b"\n", start) + 1 if lines.startswith(b"\\", start) else lines.find(b"\n\\", start) + 1
        end = end or len(lines)
        yield lines[start:end]
        start = end


def _open_to_read(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return lzma.open(path, "rb") if path.suffix == ".xz" else path.open("rb")


@contextlib.contextmanager
def _open_to_write(path: Path, ending: str) -> Iterator[IO[bytes]]:
    with path.open("wb") as plain:
        if ending == ".gz":
            # Without name and time of day, so that equal models give equal files.
            with gzip.GzipFile(filename="", mode="wb", fileobj=plain, mtime=0, compresslevel=6) as stream:
                yield cast(IO[bytes], stream)
        elif ending == ".xz":
            with lzma.open(plain, "wb") as stream:
                yield stream
        else:
            yield plain


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary file that takes the place of `path` when the block ends without an error."""
    # Two processes that load a model for the first time must not write into one file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
