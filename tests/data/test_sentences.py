"""Sentences as packed tokens: nothing is lost, and what is left out is counted and named."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from asr.data.sentences import SentenceLoaderConfig, Sentences, normalize_quickly, read_sentences
from asr.text import normalize
from asr.tokenizer import CharTokenizer

TEXT = "A b, c!\n\n  CAB  \n***\nab a\n"


def read(folder: Path, text: str, *, tokenizer: CharTokenizer | None = None, **settings) -> Sentences:
    (folder / "a.txt").write_text(text, encoding="utf-8")
    config = SentenceLoaderConfig(**settings)
    return read_sentences([folder / "a.txt"], tokenizer or tiny.make_tokenizer(), config, progress=False)


def texts(sentences: Sentences) -> list[str]:
    tokenizer = tiny.make_tokenizer()
    return [tokenizer.decode(sentences[index].tolist()) for index in range(len(sentences))]


def test_sentences_are_normalised_and_encoded_and_empty_lines_are_none(tmp_path):
    sentences = read(tmp_path, TEXT)
    assert texts(sentences) == ["a b c", "cab", "ab a"]
    assert sentences.tokens.dtype == np.uint16
    assert sentences.lengths.tolist() == [5, 3, 4]
    assert sentences.num_words.tolist() == [3, 1, 2]
    assert len(sentences) == 3


def test_several_files_are_one_text(tmp_path):
    (tmp_path / "b.txt").write_text("b\n")
    read(tmp_path, "a\n")
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    sentences = read_sentences(paths, tiny.make_tokenizer(), SentenceLoaderConfig(), progress=False)
    assert texts(sentences) == ["a", "b"]


def test_a_vocabulary_beyond_two_bytes_takes_four(tmp_path):
    tokenizer = CharTokenizer(["a", " ", *map(chr, range(0x10000, 0x20000))])
    sentences = read(tmp_path, "a a\n", tokenizer=tokenizer)
    assert sentences.tokens.dtype == np.int32
    assert sentences[0].tolist() == [2, 3, 2]


@given(st.text(st.sampled_from("abZ '’`\n-.é"), max_size=12))
def test_quick_normalisation_is_normalisation(text):
    assert normalize_quickly(text) == normalize(text)


# What is left out


def test_unusable_sentences_are_left_out_counted_and_named(tmp_path, caplog):
    lines = ["a", "xylophone", "a b c", *(["zoo"] * 6)]
    with caplog.at_level(logging.WARNING):
        sentences = read(tmp_path, "\n".join(lines), max_sentence_tokens=5)
    assert texts(sentences) == ["a"]
    (message,) = caplog.messages
    path = tmp_path / "a.txt"
    assert message.startswith(
        f"left out: 8 of 9 sentences are unusable: {path}:2 the tokenizer has no token for 'x' (U+0078) in the text "
        f"'xylophone'; {path}:3 has 6 tokens, more than loader.max_sentence_tokens 5; {path}:4 "
    )
    assert message.endswith("; and 3 more")


def test_unusable_sentences_stop_where_that_is_asked(tmp_path):
    with pytest.raises(
        ValueError, match=r"1 of 2 sentences are unusable: .*a\.txt:2 .* 'z' .*; mend them, or set load"
    ):
        read(tmp_path, "a\nz\n", unusable="stop")


def test_a_sentence_of_the_most_tokens_is_taken(tmp_path):
    assert texts(read(tmp_path, "abca\n", max_sentence_tokens=5, unusable="stop")) == ["abca"]


def test_texts_without_a_usable_sentence_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"there is no usable sentence in .*a\.txt; give text files or manifests with"):
        read(tmp_path, "\nzoo\n...\n")
    with pytest.raises(ValueError, match="there is no usable sentence in an empty list of texts; give"):
        read_sentences([], tiny.make_tokenizer(), SentenceLoaderConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unusable": "skip"}, "loader.unusable is 'skip'; choose stop or leave_out"),
        (
            {"max_batch_tokens": 100},
            "loader.max_sentence_tokens 512 and loader.max_batch_tokens 100: the first must be at least 2 and at most "
            "the second",
        ),
        (
            {"max_sentence_tokens": 1},
            "loader.max_sentence_tokens 1 and loader.max_batch_tokens 8192: the first must be at least 2 and at most "
            "the second",
        ),
    ],
)
def test_errors_of_the_config(settings, message):
    with pytest.raises(ValueError) as caught:
        SentenceLoaderConfig(**settings)
    assert str(caught.value) == message


# Parts


def test_held_out_sentences_and_the_others_are_all(tmp_path):
    sentences = read(tmp_path, "a\nb\nc\na b\nb c\nc a\nabc\n")
    kept, held = sentences.held_out(3, seed=1)
    assert (len(kept), len(held)) == (4, 3)
    assert sorted(texts(kept) + texts(held)) == sorted(texts(sentences))
    assert held.num_words.sum() + kept.num_words.sum() == sentences.num_words.sum()
    assert texts(sentences.held_out(3, seed=1)[1]) == texts(held)
    assert any(texts(sentences.held_out(3, seed=seed)[1]) != texts(held) for seed in range(2, 6))


@pytest.mark.parametrize("number", [0, -1, 2])
def test_most_sentences_cannot_be_held_out(tmp_path, number):
    with pytest.raises(
        ValueError, match=rf"holdout_sentences is {number}, but there are 3 sentences; hold out at least"
    ):
        read(tmp_path, "a\nb\nc\n").held_out(number, seed=1)
