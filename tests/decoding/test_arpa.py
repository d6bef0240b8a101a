"""ARPA files: what other tools write is read, what is wrong is named with its line, what is written is read again."""

import gzip
import lzma
import math
import os
import random
from pathlib import Path

import pytest
import torch

from asr.decoding import arpa
from asr.decoding.arpa import load_ngram, read_arpa, write_arpa
from asr.decoding.ngram import NgramModel, NgramTable, NgramTables

LN_10 = math.log(10)

# Tabs and spaces, a missing back-off weight, blank lines, n-grams out of order, a log-probability of zero.
SMALL = """
made by hand

\\data\\
ngram 1=5
ngram 2=4
ngram  3 = 2

\\1-grams:
-1.0\t<unk>
-99 <s> -0.5
-0.7 </s>

-0.6\tHELLO\t-0.25
-0.8\tworld\t-0.125

\\2-grams:
-0.3\tHELLO world\t-0.1
-0.2\t<s> HELLO  -0.4
-0.4\tworld </s>
-0.9 <s>\tworld

\\3-grams:
-0.05\t<s> HELLO world
-0.15 HELLO world </s>

\\end\\
"""


def write(path: Path, text: str = SMALL) -> Path:
    """Writes text as the ending says."""
    content = text.encode()
    compressed = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(content)
    path.write_bytes(compressed)
    return path


def grams_of(tables: NgramTables) -> dict[str, tuple[float, float]]:
    """Every n-gram with its log-probability and back-off weight, logarithms of base 10."""
    texts: list[list[str]] = [[]]
    grams = {}
    for order, table in enumerate(tables.tables):
        own = []
        for row in range(len(table)):
            before = texts[order][int(table.parents[row])] + " " if order else ""
            own.append(before + tables.words[int(table.words[row])])
            grams[own[-1]] = (float(table.log_probs[row]) / LN_10, float(table.backoffs[row]) / LN_10)
        texts.append(own)
    return grams


def random_tables(order: int, *, num_words: int = 40, num_ngrams: int = 500, seed: int = 0) -> NgramTables:
    """Random n-grams over a vocabulary with letters of several alphabets."""
    generator = torch.Generator().manual_seed(seed)
    words = ["<unk>", "<s>", "</s>", *(f"wörd{n}語" for n in range(num_words - 3))]
    tables: list[NgramTable] = []
    for n in range(order):
        keys = torch.arange(num_words)
        if n:
            possible = len(tables[-1]) * num_words
            keys = torch.randperm(possible, generator=generator)[:num_ngrams].sort().values
        log_probs = -5 * torch.rand(len(keys), generator=generator)
        backoffs = torch.randn(len(keys), generator=generator) * (n < order - 1)
        tables.append(NgramTable(keys // num_words, keys % num_words, log_probs, backoffs))
    return NgramTables(words, tables)


def assert_same(found: NgramTables, expected: NgramTables) -> None:
    assert found.words == expected.words
    for mine, other in zip(found.tables, expected.tables, strict=True):
        assert torch.equal(mine.parents, other.parents)
        assert torch.equal(mine.words, other.words)
        torch.testing.assert_close(mine.log_probs, other.log_probs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mine.backoffs, other.backoffs, rtol=1e-6, atol=1e-6)


# Reading


@pytest.mark.parametrize("ending", ["arpa", "arpa.gz", "arpa.xz"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_file_with_the_habits_of_several_tools_is_read(tmp_path: Path, ending: str, line_end: str) -> None:
    tables = read_arpa(write(tmp_path / f"small.{ending}", SMALL.replace("\n", line_end)))
    assert tables.words == ["<unk>", "<s>", "</s>", "HELLO", "world"]
    assert grams_of(tables) == {
        gram: pytest.approx(numbers)
        for gram, numbers in {
            "<unk>": (-1.0, 0.0),
            "<s>": (-99.0, -0.5),
            "</s>": (-0.7, 0.0),
            "HELLO": (-0.6, -0.25),
            "world": (-0.8, -0.125),
            "<s> HELLO": (-0.2, -0.4),
            "<s> world": (-0.9, 0.0),
            "HELLO world": (-0.3, -0.1),
            "world </s>": (-0.4, 0.0),
            "<s> HELLO world": (-0.05, 0.0),
            "HELLO world </s>": (-0.15, 0.0),
        }.items()
    }
    model = NgramModel(tables)
    assert model.sentence_log_probs([["HELLO", "world"], []]).tolist() == pytest.approx(
        [(-0.2 - 0.05 - 0.15) * LN_10, (-0.5 - 0.7) * LN_10]
    )


def test_blocks_of_any_size_give_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "random.arpa"
    write_arpa(path, random_tables(3, num_ngrams=200))
    whole = read_arpa(path)
    for size in (70, 101, 4096):
        monkeypatch.setattr(arpa, "_BLOCK_BYTES", size)
        assert_same(read_arpa(path), whole)


def test_the_order_of_lines_in_a_section_does_not_matter(tmp_path: Path) -> None:
    tables = random_tables(4, num_words=20, num_ngrams=100)
    write_arpa(tmp_path / "sorted.arpa", tables)
    sections = (tmp_path / "sorted.arpa").read_text().split("\n\n")
    draw = random.Random(0)
    for index in range(2, len(sections) - 1):  # the header is first; the order of the unigrams gives the ids
        mark, *lines = sections[index].split("\n")
        sections[index] = "\n".join([mark, *draw.sample(lines, len(lines))])
    write(tmp_path / "shuffled.arpa", "\n\n".join(sections))
    assert_same(read_arpa(tmp_path / "shuffled.arpa"), tables)


def test_a_file_without_a_last_line_feed_is_whole(tmp_path: Path) -> None:
    assert len(read_arpa(write(tmp_path / "small.arpa", SMALL.rstrip("\n"))).tables) == 3


def test_a_missing_unknown_word_is_added_as_impossible(tmp_path: Path) -> None:
    text = SMALL.replace("-1.0\t<unk>\n", "").replace("ngram 1=5", "ngram 1=4")
    tables = read_arpa(write(tmp_path / "closed.arpa", text))
    assert tables.words == ["<s>", "</s>", "HELLO", "world", "<unk>"]
    assert grams_of(tables)["<unk>"] == pytest.approx((-99.0, 0.0))
    assert math.isfinite(float(NgramModel(tables).sentence_log_probs([["zebra"]])))


def test_special_words_in_capitals_are_taken_for_the_usual_ones(tmp_path: Path) -> None:
    text = SMALL.replace("<unk>", "<UNK>").replace("<s>", "<S>").replace("</s>", "</S>")
    assert_same(read_arpa(write(tmp_path / "capitals.arpa", text)), read_arpa(write(tmp_path / "small.arpa")))


def test_a_probability_of_one_may_be_rounded_up_and_zero_may_be_infinite(tmp_path: Path) -> None:
    text = SMALL.replace("-0.6\tHELLO", "1e-7\tHELLO").replace("-99 <s>", "-inf <s>")
    grams = grams_of(read_arpa(write(tmp_path / "rounded.arpa", text)))
    assert grams["HELLO"][0] == 0
    assert grams["<s>"][0] == pytest.approx(-99)


def test_beginnings_that_pruning_has_removed_are_put_back_without_a_change(tmp_path: Path) -> None:
    tables = read_arpa(
        write(
            tmp_path / "pruned.arpa",
            SMALL.replace("ngram  3 = 2", "ngram 3=3\nngram 4=1")
            .replace("\n\\end\\", "-0.35 world HELLO HELLO -0.2\n\n\\4-grams:\n-0.45 world world HELLO world\n\\end\\")
            .replace("-0.15 HELLO world </s>", "-0.15 HELLO world </s> -0.3"),
        )
    )
    grams = grams_of(tables)
    assert list(map(len, tables.tables)) == [5, 6, 4, 1]
    assert grams["world HELLO"] == pytest.approx((-0.125 - 0.6, 0.0))
    assert grams["world world"] == pytest.approx((-0.125 - 0.8, 0.0))
    assert grams["world world HELLO"] == pytest.approx((-0.125 - 0.6, 0.0))
    assert grams["world HELLO HELLO"] == pytest.approx((-0.35, -0.2))
    assert grams["world world HELLO world"] == pytest.approx((-0.45, 0.0))
    assert grams["HELLO world </s>"] == pytest.approx((-0.15, -0.3))


def test_a_section_that_the_header_counts_as_empty_may_be_left_out(tmp_path: Path) -> None:
    text = SMALL.replace("ngram  3 = 2", "ngram 3=2\nngram 4=0")
    assert NgramModel(read_arpa(write(tmp_path / "small.arpa", text))).order == 3


def test_n_grams_over_an_empty_order_are_read(tmp_path: Path) -> None:
    start, end = SMALL.index("-0.3\tHELLO"), SMALL.index("\\3-grams:")
    text = SMALL.replace(SMALL[start:end], "").replace("ngram 2=4", "ngram 2=0")
    grams = grams_of(read_arpa(write(tmp_path / "gap.arpa", text)))
    assert grams["<s> HELLO"] == pytest.approx((-0.5 - 0.6, 0.0))
    assert grams["<s> HELLO world"] == pytest.approx((-0.05, 0.0))


# Writing


@pytest.mark.parametrize("ending", ["arpa", "arpa.gz", "arpa.xz", "txt"])
@pytest.mark.parametrize("order", [1, 4])
def test_what_is_written_is_read_again(
    tmp_path: Path, ending: str, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arpa, "_ROWS_WRITTEN_AT_ONCE", 64)
    tables = random_tables(order)
    path = tmp_path / f"random.{ending}"
    write_arpa(path, tables)
    assert path.read_bytes()[:2] == {"arpa.gz": b"\x1f\x8b", "arpa.xz": b"\xfd7"}.get(ending, b"\\d")
    assert_same(read_arpa(path), tables)
    assert list(tmp_path.iterdir()) == [path]


def test_the_text_is_that_of_other_tools(tmp_path: Path) -> None:
    write_arpa(tmp_path / "again.arpa", read_arpa(write(tmp_path / "small.arpa")))
    assert (tmp_path / "again.arpa").read_text() == (
        "\\data\\\nngram 1=5\nngram 2=4\nngram 3=2\n\n"
        "\\1-grams:\n-1\t<unk>\n-99\t<s>\t-0.5\n-0.7\t</s>\n-0.6\tHELLO\t-0.25\n-0.8\tworld\t-0.125\n\n"
        "\\2-grams:\n-0.2\t<s> HELLO\t-0.4\n-0.9\t<s> world\n-0.3\tHELLO world\t-0.1\n-0.4\tworld </s>\n\n"
        "\\3-grams:\n-0.05\t<s> HELLO world\n-0.15\tHELLO world </s>\n\n"
        "\\end\\\n"
    )


def test_equal_models_give_equal_compressed_files(tmp_path: Path) -> None:
    for name in ("one.arpa.gz", "two.arpa.gz"):
        write_arpa(tmp_path / name, random_tables(2))
    assert (tmp_path / "one.arpa.gz").read_bytes() == (tmp_path / "two.arpa.gz").read_bytes()


@pytest.mark.parametrize("word", ["two words", "", "line\nfeed"])
def test_a_word_with_white_space_is_refused_and_no_file_is_left(tmp_path: Path, word: str) -> None:
    tables = random_tables(2)
    tables.words[5] = word
    with pytest.raises(
        ValueError, match=r"new\.arpa: an ARPA file cannot hold the word '.*'; write its spaces as U\+25"
    ):
        write_arpa(tmp_path / "new.arpa", tables)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/new\.arpa"):
        write_arpa(tmp_path / "nowhere" / "new.arpa", random_tables(1))


# The cache


def cache_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.cache.safetensors")


@pytest.mark.parametrize("ending", ["arpa", "arpa.gz"])
def test_a_second_load_reads_the_cache_alone(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"random.{ending}"
    write_arpa(path, random_tables(4))
    first = load_ngram(path)
    assert sorted(tmp_path.iterdir()) == [path, cache_of(path)]
    assert cache_of(path).stat().st_mode == path.stat().st_mode
    monkeypatch.setattr(arpa, "read_arpa", None)
    second = load_ngram(path)
    assert second.words == first.words
    contexts = first.extend(first.start(30), torch.arange(30))
    assert torch.equal(second.extend(second.start(30), torch.arange(30)), contexts)
    assert torch.equal(second.score_all(contexts), first.score_all(contexts))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "small.arpa")
    before = float(load_ngram(path).sentence_log_probs([[]]))
    write(path, SMALL.replace("-0.7 </s>", "-0.4 </s>"))  # of the same size, so only the time can tell
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert float(load_ngram(path).sentence_log_probs([[]])) == pytest.approx(before + 0.3 * LN_10)
    write(path, SMALL.replace("-0.7 </s>", "-0.75 </s>"))
    os.utime(path, ns=(0, 0))
    assert float(load_ngram(path).sentence_log_probs([[]])) == pytest.approx(before - 0.05 * LN_10)


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "small.arpa")
    load_ngram(path)
    whole = cache_of(path).read_bytes()
    cache_of(path).write_bytes(whole[:100])
    assert load_ngram(path).order == 3
    assert len(cache_of(path).read_bytes()) == len(whole)


def test_a_model_is_loaded_where_no_cache_can_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "small.arpa")
    cache_of(path).mkdir()  # nothing can be written under this name
    assert load_ngram(path).order == 3
    assert sorted(tmp_path.iterdir()) == [path, cache_of(path)]


def test_a_missing_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    message = r"none\.arpa: no such language model; name an ARPA file or a compact one \(\.ngram\)$"
    with pytest.raises(FileNotFoundError, match=message):
        load_ngram(tmp_path / "none.arpa")


# What is wrong is named with its line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", r":27: no \\data\\ header up to the end; this is not an ARPA file"),
        ("ngram 1=5\nngram 2=4\nngram  3 = 2\n", "", r":6: the \\data\\ header counts no n-grams; expected lines like"),
        ("ngram 2=4", "ngram 2=four", r":6: 'ngram 2=four' in the \\data\\ header, expected 'ngram 2=COUNT'"),
        ("ngram 2=4", "", r":7: 'ngram  3 = 2' in the \\data\\ header, expected 'ngram 2=COUNT'"),
        ("ngram 1=5", "ngram 1=6", r":17: \\1-grams: ends after 5 n-grams, but the \\data\\ header counts 6; the file"),
        ("ngram  3 = 2", "ngram 3=1", r":27: \\3-grams: ends after 2 n-grams, but the \\data\\ header counts 1; "),
        ("ngram  3 = 2", "ngram 3=2\nngram 4=1", r":28: \\4-grams: ends after 0 n-grams, but .* counts 1"),
        ("-0.6\tHELLO", "-0,6\tHELLO", r":14: '-0,6' is no number; expected a logarithm of base 10"),
        ("-0.6\tHELLO", "nan\tHELLO", r":14: 'nan' is no number"),
        ("\t-0.125", "\t-0.125x", r":15: '-0\.125x' is no number"),
        ("\t-0.125", "\tinf", r":15: 'inf' is no number"),
        ("HELLO world\t-0.1", "HELLO world\t-0.1 0", r":18: 5 fields, but a line of \\2-grams: has 3 or 4: log-prob"),
        ("-0.15 HELLO world </s>", "-0.15 HELLO world", r":25: 3 fields, but a line of \\3-grams: has 4 or 5: log"),
        ("\\2-grams:", "\\ngrams:", r":17: unknown section '\\\\ngrams:', expected \\2-grams:"),
        ("\\2-grams:", "\\3-grams:", r":17: unknown section '\\\\3-grams:', expected \\2-grams:"),
        ("\\end\\", "\\4-grams:", r":27: unknown section '\\\\4-grams:', expected \\end\\"),
        ("world </s>\n-0.9", "earth </s>\n-0.9", r":20: the word 'earth' is not in \\1-grams:; add it there or remove"),
        ("\\end\\", "", r":27: the file ends without \\end\\; it was cut short, copy it again"),
        ("-0.4\tworld", "0.4\tworld", r":20: log-probability '0\.4' is above 0, so a probability above one; make the"),
        ("-0.8\tworld", "-0.8\tHELLO", r":15: the word 'HELLO' comes twice; keep one of them"),
        ("-0.9 <s>\tworld", "-0.9 <s> HELLO", r":23: .* ends here has the 2-gram '<s> HELLO' twice; keep one of them"),
        ("-0.7 </s>", "-0.7 end", r":17: \\1-grams: has no </s>; train the language model with sentence marks"),
        ("-99 <s>", "-99 start", r":17: \\1-grams: has no <s>; train"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    path = write(tmp_path / "bad.arpa", SMALL.replace(old, new))
    with pytest.raises(ValueError, match=r"bad\.arpa" + message) as caught:
        read_arpa(path)
    assert "\n" not in str(caught.value)


def test_lines_are_counted_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arpa, "_BLOCK_BYTES", 64)
    with pytest.raises(ValueError, match=r"bad\.arpa:20: log-probability '0\.4' is above 0"):
        read_arpa(write(tmp_path / "bad.arpa", SMALL.replace("-0.4\tworld", "0.4\tworld")))
    with pytest.raises(ValueError, match=r"bad\.arpa:15: the word 'HELLO' comes twice"):
        read_arpa(write(tmp_path / "bad.arpa", SMALL.replace("-0.8\tworld", "-0.8\tHELLO")))
    with pytest.raises(ValueError, match=r"bad\.arpa:2: a line of over 64 bytes; this is not an ARPA file"):
        read_arpa(write(tmp_path / "bad.arpa", "\n" + "x" * 200))


def test_a_word_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.arpa"
    path.write_bytes(SMALL.replace("world", "wörld").encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.arpa:15: the word 'w\\\\xf6rld' is not UTF-8 text; convert the file"):
        read_arpa(path)


def test_an_empty_file_is_no_arpa_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"empty\.arpa:1: no \\data\\ header"):
        read_arpa(write(tmp_path / "empty.arpa", ""))


@pytest.mark.parametrize("ending", ["gz", "xz"])
def test_a_compressed_file_that_is_cut_or_something_else_is_named(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"bad.arpa.{ending}")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(
        ValueError, match=r"bad\.arpa.*:\d+: the compressed file is cut short or damaged .* copy it again"
    ):
        read_arpa(path)
    path.write_text(SMALL)
    with pytest.raises(ValueError, match=r"bad\.arpa.*:1: the compressed file is cut short or damaged"):
        read_arpa(path)
