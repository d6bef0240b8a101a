"""Compact n-gram files: n-grams come back exactly, numbers to their rounding, and damage is one line."""

import lzma
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from asr.decoding import compact_ngram
from asr.decoding.arpa import load_ngram, read_ngram, write_arpa
from asr.decoding.compact_ngram import read_compact, write_compact
from asr.decoding.ngram import NgramModel, NgramTable, NgramTables

HALF_STEP = 1 / 16  # rounding to an eighth of a nat moves a number by no more
LOG_ZERO = -99 * math.log(10)


def make_tables(order: int, *, num_words: int = 40, num_ngrams: int = 500, seed: int = 0) -> NgramTables:
    """Random n-grams, `<s>` of probability zero; most contexts have several words, others none."""
    generator = torch.Generator().manual_seed(seed)
    words = ["<unk>", "<s>", "</s>", *(f"wörd{n}" for n in range(num_words - 3))]
    tables: list[NgramTable] = []
    for n in range(order):
        keys = torch.arange(num_words)
        if n:
            keys = torch.randint(len(tables[-1]) * num_words, (num_ngrams,), generator=generator).unique()
        log_probs = -5 * torch.rand(len(keys), generator=generator)
        backoffs = torch.randn(len(keys), generator=generator) * (n < order - 1)
        tables.append(NgramTable(keys // num_words * (n > 0), keys % num_words, log_probs, backoffs))
    tables[0].log_probs[1] = LOG_ZERO
    return NgramTables(words, tables)


def assert_near(found: NgramTables, expected: NgramTables, *, atol: float) -> None:
    """The same n-grams, with numbers that differ by at most `atol`."""
    assert found.words == expected.words
    for mine, other in zip(found.tables, expected.tables, strict=True):
        assert torch.equal(mine.parents, other.parents) and torch.equal(mine.words, other.words)
        assert mine.log_probs.dtype == mine.backoffs.dtype == torch.float32
        torch.testing.assert_close(mine.log_probs, other.log_probs, rtol=1e-6, atol=atol)
        torch.testing.assert_close(mine.backoffs, other.backoffs, rtol=1e-6, atol=atol)


# What is written is read


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ngrams_come_back_exactly_and_numbers_to_half_a_step(tmp_path: Path, order: int) -> None:
    tables = make_tables(order)
    write_compact(tmp_path / "lm.ngram", tables)
    found = read_compact(tmp_path / "lm.ngram")
    assert_near(found, tables, atol=HALF_STEP)
    assert float(found.tables[0].log_probs[1]) == pytest.approx(LOG_ZERO)
    assert [file.name for file in tmp_path.iterdir()] == ["lm.ngram"]


def test_what_was_rounded_once_is_not_rounded_again(tmp_path: Path) -> None:
    write_compact(tmp_path / "one.ngram", make_tables(3))
    rounded = read_compact(tmp_path / "one.ngram")
    write_compact(tmp_path / "two.ngram", rounded)
    assert_near(read_compact(tmp_path / "two.ngram"), rounded, atol=0)
    assert (tmp_path / "one.ngram").read_bytes() == (tmp_path / "two.ngram").read_bytes()


def test_a_sentence_changes_by_no_more_than_its_words_can(tmp_path: Path) -> None:
    """A word has one probability and at most two back-off weights in a model of order 3."""
    tables = make_tables(3)
    write_compact(tmp_path / "lm.ngram", tables)
    generator = torch.Generator().manual_seed(1)
    picks = torch.randint(3, 40, (50, 8), generator=generator).tolist()
    sentences = [[tables.words[index] for index in row] for row in picks]
    exact = NgramModel(tables).sentence_log_probs(sentences)
    rounded = load_ngram(tmp_path / "lm.ngram").sentence_log_probs(sentences)
    assert float((rounded - exact).abs().max()) <= 9 * 3 * HALF_STEP
    # Roundings of single words cancel out.
    assert float((rounded - exact).mean()) / 9 == pytest.approx(0, abs=HALF_STEP / 4)


def test_numbers_of_several_bytes_come_back(tmp_path: Path) -> None:
    """Gaps of more than 65,535 words, and a context that more than 255 words follow."""
    num_words = 70_000
    tables = make_tables(1, num_words=num_words)
    keys = torch.cat([torch.arange(0, 900, 3), torch.tensor([num_words + num_words - 1, 5 * num_words])])
    tables.tables.append(
        NgramTable(keys // num_words, keys % num_words, torch.full((302,), -1.0), torch.zeros(302))
    )  # fmt: skip
    write_compact(tmp_path / "lm.ngram", tables)
    assert_near(read_compact(tmp_path / "lm.ngram"), tables, atol=HALF_STEP)


def test_files_of_the_first_format_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had xz in place of zlib."""
    write_compact(tmp_path / "new.ngram", make_tables(3))
    with monkeypatch.context() as patch:
        patch.setattr(compact_ngram, "_FORMAT", "compact-ngram-1")
        patch.setattr(zlib, "compress", lambda content, _: lzma.compress(content))
        write_compact(tmp_path / "old.ngram", make_tables(3))
    assert (tmp_path / "old.ngram").read_bytes() != (tmp_path / "new.ngram").read_bytes()
    assert_near(read_compact(tmp_path / "old.ngram"), read_compact(tmp_path / "new.ngram"), atol=0)


def test_an_order_may_be_empty(tmp_path: Path) -> None:
    tables = make_tables(2)
    none = torch.zeros(0, dtype=torch.long)
    tables.tables.append(NgramTable(none, none, torch.zeros(0), torch.zeros(0)))
    write_compact(tmp_path / "lm.ngram", tables)
    assert_near(read_compact(tmp_path / "lm.ngram"), tables, atol=HALF_STEP)


def test_numbers_beyond_the_range_are_cut_off(tmp_path: Path) -> None:
    tables = make_tables(2)
    tables.tables[0].log_probs[:3] = torch.tensor([-40.0, -31.7, 0.0])
    tables.tables[0].backoffs[:2] = torch.tensor([-20.0, 20.0])
    write_compact(tmp_path / "lm.ngram", tables)
    first = read_compact(tmp_path / "lm.ngram").tables[0]
    assert first.log_probs[:3].tolist() == [-31.75, -31.75, 0.0]
    assert first.backoffs[:2].tolist() == [-16.0, 15.875]


def test_the_ending_decides_how_a_file_is_read(tmp_path: Path) -> None:
    tables = make_tables(2)
    tables.tables[0].backoffs[2] = 0.0  # an ARPA file has none for the end of sentence
    write_arpa(tmp_path / "lm.arpa", tables)
    write_compact(tmp_path / "lm.ngram", tables)
    assert_near(read_ngram(tmp_path / "lm.ngram"), read_ngram(tmp_path / "lm.arpa"), atol=HALF_STEP)
    assert load_ngram(tmp_path / "lm.ngram").order == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lm.arpa", "lm.ngram"]  # no cache


# What is wrong


def test_a_file_that_cannot_be_written_leaves_the_older_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lm.ngram"
    write_compact(path, make_tables(1))
    before = path.read_bytes()

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_compact(path, make_tables(2))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def rewrite(path: Path, *, metadata: dict[str, str] | None = None, **columns: bytes) -> None:
    """Changes columns, given as what is compressed, and metadata of a file."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        known = file.metadata()
    tensors |= {name.replace("_", ".", 1): compact_ngram._compress(content) for name, content in columns.items()}
    save_file(tensors, path, metadata=metadata or known)


def flip(path: Path) -> None:
    """Changes one bit in the middle of the data."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 4] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no such language model; name an ARPA file or a compact one (.ngram)"),
    "text": (lambda path: path.write_text("\\data\\\nngram 1=4\n"), "no compact n-gram model, or cut short ("),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-50]), "no compact n-gram model, or cut short ("),
    "flipped": (flip, "damaged ("),
    "newer": (
        lambda path: rewrite(path, metadata={"format": "compact-ngram-3"}),
        "format 'compact-ngram-3', but this version reads compact-ngram-1 and compact-ngram-2; update the package",
    ),
    "order": (lambda path: rewrite(path, **{"3_log_probs": bytes(5)}), "damaged ('2.backoffs'); copy it again"),
    "marks": (
        lambda path: rewrite(path, words=b"a\nb"),
        "damaged (the vocabulary lacks the marks <unk>, <s> and </s>)",
    ),
    "words": (
        lambda path: rewrite(path, words=b"<unk>\n<s>\n</s>"),
        "damaged (the 1-grams do not fit 3 words); copy it again",
    ),
    "counts": (lambda path: rewrite(path, **{"2_counts": bytes(40)}), "damaged (0 2-grams, but "),
    "gaps": (lambda path: rewrite(path, **{"2_words": bytes(7)}), "damaged (7 bytes for "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line_that_begins_with_the_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "lm.ngram"
    write_compact(path, make_tables(2))
    harm, message = DAMAGES[damage]
    harm(path)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_ngram(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_words_beyond_the_vocabulary_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "lm.ngram"
    tables = make_tables(2)
    write_compact(path, tables)
    rewrite(path, **{"2_words": bytes([200] * len(tables.tables[1]))})
    with pytest.raises(ValueError, match=r"damaged \(the 2-grams do not fit 40 words\); copy it again$"):
        read_compact(path)
