"""N-gram models in a compact file that loads within a second: two bytes an n-gram, where gzipped ARPA files have ten.

The file is safetensors; every tensor is bytes, compressed by zlib, whose checksum finds damage:

    words                    the vocabulary, parted by line feeds
    1.log_probs, …           log-probabilities as multiples of an eighth of a nat
    1.backoffs, …            back-off weights likewise; the highest order has none
    2.counts, 2.words, …     how many n-grams go on from each row of the order below, and the gaps between their words

Rounding to an eighth moves a log-probability by 0.04 nats on average, and a perplexity by a thousandth.
"""

# N n-grams of one order, P rows of the order below

import lzma
import math
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from asr.decoding.ngram import SENTENCE_END, SENTENCE_START, UNKNOWN, NgramTable, NgramTables

SUFFIX = ".ngram"
MISSING = f"{{path}}: no such language model; name an ARPA file or a compact one ({SUFFIX})"

_FORMAT = "compact-ngram-2"  # raised when older code cannot read newer files
# xz, of the first format, saves a twelfth of the size and takes five times as long.
_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {"compact-ngram-1": lzma.decompress, _FORMAT: zlib.decompress}
_STEPS_PER_NAT = 8
_ZERO_CODE = 255  # of a probability of zero, which ARPA files write as a logarithm of -99
_LOG_ZERO = -99 * math.log(10)


def write_compact(path: Path, tables: NgramTables) -> None:
    """Writes a model in compact form, whole or not at all; equal models give equal files.

    Log-probabilities are rounded to an eighth of a nat and cut off at -31.75, back-off weights at -16 and 15.875.

    Raises:
        OSError: If it cannot be written.
    """
    packed = {"words": _compress("\n".join(tables.words).encode())}
    for order, table in enumerate(tables.tables, start=1):
        codes = (-table.log_probs.double() * _STEPS_PER_NAT).round().clamp(0, _ZERO_CODE - 1)
        codes[table.log_probs < _LOG_ZERO / 2] = _ZERO_CODE
        packed[f"{order}.log_probs"] = _compress(codes.byte().numpy().tobytes())
        if order < len(tables.tables):
            weights = (table.backoffs.double() * _STEPS_PER_NAT).round().clamp(-128, 127)
            packed[f"{order}.backoffs"] = _compress(weights.char().numpy().tobytes())
        if order > 1:
            counts = torch.bincount(table.parents, minlength=len(tables.tables[order - 2]))
            packed[f"{order}.counts"] = _pack(counts.numpy())
            packed[f"{order}.words"] = _pack(_gaps(table.words, counts).numpy())
    content = save(packed, metadata={"format": _FORMAT})  # of several entries the order is random
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_compact(path: Path) -> NgramTables:
    """Reads what `write_compact` wrote.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no such file, of a newer format, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(MISSING.format(path=path))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            packed = {name: bytes(file.get_tensor(name).numpy()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: no compact n-gram model, or cut short ({error}); copy it again") from None
    decompress = _DECOMPRESS.get(metadata.get("format", ""))
    if decompress is None:
        known = " and ".join(_DECOMPRESS)
        raise ValueError(
            f"{path}: format {metadata.get('format')!r}, but this version reads {known}; update the package"
        )
    try:
        with ThreadPoolExecutor() as threads:  # it does not hold the interpreter's lock
            columns = dict(zip(packed, threads.map(decompress, packed.values()), strict=True))
        return _build_tables(columns)
    except (KeyError, ValueError, RuntimeError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path}: damaged ({error}); copy it again") from None


def _build_tables(columns: dict[str, bytes]) -> NgramTables:
    order = sum(name.endswith(".log_probs") for name in columns)
    words = columns["words"].decode().split("\n")
    if not {UNKNOWN, SENTENCE_START, SENTENCE_END} <= set(words):
        raise ValueError("the vocabulary lacks the marks <unk>, <s> and </s>")
    tables: list[NgramTable] = []
    for n in range(1, order + 1):
        codes = np.frombuffer(columns[f"{n}.log_probs"], np.uint8)
        log_probs = codes.astype(np.float32) / -_STEPS_PER_NAT
        log_probs[codes == _ZERO_CODE] = _LOG_ZERO
        backoffs = np.zeros(len(codes), np.float32)
        if n < order:
            backoffs += np.frombuffer(columns[f"{n}.backoffs"], np.int8) / np.float32(_STEPS_PER_NAT)
        parents, last = torch.zeros(len(codes), dtype=torch.long), torch.arange(len(codes))
        if n > 1:
            counts = torch.from_numpy(_unpack(columns[f"{n}.counts"], len(tables[-1])))
            if int(counts.sum()) != len(codes):
                raise ValueError(f"{int(counts.sum())} {n}-grams, but {len(codes)} probabilities")
            parents = torch.arange(len(counts)).repeat_interleave(counts)
            last = _from_gaps(torch.from_numpy(_unpack(columns[f"{n}.words"], len(codes))), counts)
        if (n == 1 and len(codes) != len(words)) or (len(codes) and int(last.max()) >= len(words)):
            raise ValueError(f"the {n}-grams do not fit {len(words)} words")
        tables.append(NgramTable(parents, last, torch.from_numpy(log_probs), torch.from_numpy(backoffs)))
    return NgramTables(words, tables)


def _gaps(words: Tensor, counts: Tensor) -> Tensor:
    """How many words lie between each word and the one before it under the same parent, or the first word, (N,)."""
    gaps = words.clone()
    gaps[1:] -= words[:-1] + 1
    starts = _starts(counts)
    gaps[starts] = words[starts]
    return gaps


def _from_gaps(gaps: Tensor, counts: Tensor) -> Tensor:
    """The words (N,) that `_gaps` came from."""
    totals = (gaps + 1).cumsum(0)
    starts = _starts(counts)
    before = totals[starts] - gaps[starts] - 1
    return totals - before.repeat_interleave(counts[counts > 0]) - 1


def _starts(counts: Tensor) -> Tensor:
    """The first row of each parent that has any, from the counts (P,) of all."""
    ends = counts.cumsum(0)
    return (ends - counts)[counts > 0]


def _pack(values: NDArray[np.int64]) -> Tensor:
    """Integers of 0 or more: all lowest bytes, then all second ones, as many as the largest needs."""
    num_planes = max(1, (int(values.max(initial=0)).bit_length() + 7) // 8)
    planes = [(values >> 8 * plane).astype(np.uint8) for plane in range(num_planes)]
    return _compress(b"".join(plane.tobytes() for plane in planes))


def _unpack(content: bytes, length: int) -> NDArray[np.int64]:
    """So many integers, from the bytes that `_pack` compressed."""
    planes = np.frombuffer(content, np.uint8)
    if len(planes) % max(1, length):
        raise ValueError(f"{len(planes)} bytes for {length} numbers")
    values = np.zeros(length, np.int64)
    for place, plane in enumerate(planes.reshape(-1, length) if length else []):
        values += plane.astype(np.int64) << 8 * place
    return values


def _compress(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(zlib.compress(content, 9)), dtype=torch.uint8)
