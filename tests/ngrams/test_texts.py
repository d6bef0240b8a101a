import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.ngrams import texts
from asr.ngrams.texts import choose_vocabulary, encode_text, read_texts, spell_words, token_speller, token_vocabulary
from asr.text import normalize
from asr.tokenizer import BpeTokenizer, CharTokenizer

TEXT = "The cat, the Dog!\n\n?!\nA well-known cat\n"
SENTENCES = [["the", "cat", "the", "dog"], ["a", "well", "known", "cat"]]


def sentences_of(corpus: texts.Corpus) -> list[list[str]]:
    """The sentences of a corpus in words; `<s>` and `</s>` are where they belong."""
    words = " ".join(corpus.vocabulary[index] for index in corpus.ids)
    assert words.startswith("<s> ")
    assert words.endswith(" </s>")
    return [sentence.split() for sentence in words[4:-5].split(" </s> <s> ")]


def write(path: Path, text: str) -> Path:
    content = text.encode()
    compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(content))
    return path


def write_manifest(path: Path, *sentences: str) -> Path:
    rows = [
        {"id": str(number), "audio": "a.wav", "duration_s": 1, "text": text} for number, text in enumerate(sentences)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz", "a"])
def test_a_text_is_normalised_and_its_empty_lines_are_no_sentences(tmp_path, name):
    raw = read_texts([write(tmp_path / name, TEXT)])
    vocabulary = choose_vocabulary(raw, spell_words, size=None, min_count=1)
    assert vocabulary == ["<unk>", "<s>", "</s>", "cat", "the", "a", "dog", "known", "well"]
    corpus = encode_text(raw, spell_words, vocabulary)
    assert sentences_of(corpus) == SENTENCES
    assert (corpus.num_sentences, corpus.num_words, corpus.num_unknown) == (2, 8, 0)


def test_texts_and_manifests_follow_each_other(tmp_path):
    paths = [write_manifest(tmp_path / "m.jsonl", "a cat", ""), write(tmp_path / "a.txt", "the dog")]
    raw = read_texts(paths)
    vocabulary = choose_vocabulary(raw, spell_words, size=None, min_count=1)
    assert sentences_of(encode_text(raw, spell_words, vocabulary)) == [["a", "cat"], ["the", "dog"]]


@settings(max_examples=40, deadline=None)
@given(st.text(st.sampled_from("aB'’-.…\u0301 \n\t\u2028é")))
def test_a_text_normalised_piece_by_piece_is_the_text_normalised_line_by_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_text(text)
    expected = [normalize(line).split() for line in text.split("\n")]
    raw = read_texts([path])
    if not any(expected):
        with pytest.raises(ValueError, match="no words"):
            choose_vocabulary(raw, spell_words, size=None, min_count=1)
        return
    corpus = encode_text(raw, spell_words, choose_vocabulary(raw, spell_words, size=None, min_count=1))
    assert sentences_of(corpus) == [words for words in expected if words]


def test_a_long_text_is_spelled_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "_CHUNK", 3)
    raw = read_texts([write(tmp_path / "a.txt", TEXT)])
    assert (
        sentences_of(encode_text(raw, spell_words, ["<unk>", "<s>", "</s>", *SENTENCES[0], *SENTENCES[1]])) == SENTENCES
    )


@pytest.mark.parametrize(
    ("size", "min_count", "kept"),
    [
        (None, 2, ["cat", "the"]),
        (1, 1, ["cat"]),
        (3, 1, ["cat", "the", "a"]),
        (99, 1, ["cat", "the", "a", "dog", "known", "well"]),
    ],
)
def test_rare_words_become_unknown(tmp_path, size, min_count, kept):
    raw = read_texts([write(tmp_path / "a.txt", TEXT)])
    vocabulary = choose_vocabulary(raw, spell_words, size=size, min_count=min_count)
    assert vocabulary == ["<unk>", "<s>", "</s>", *kept]
    corpus = encode_text(raw, spell_words, vocabulary)
    assert sentences_of(corpus) == [[word if word in kept else "<unk>" for word in words] for words in SENTENCES]
    assert corpus.num_unknown == sum(word not in kept for words in SENTENCES for word in words)


def test_characters_have_the_space_between_words_only(tmp_path):
    tokenizer = CharTokenizer.train(["a cat"])
    raw = read_texts([write(tmp_path / "a.txt", "A cat\nact at 7 a-c\n")])
    vocabulary = token_vocabulary(tokenizer)
    assert vocabulary == ["<unk>", "<s>", "</s>", "▁", "a", "c", "t"]
    corpus = encode_text(raw, token_speller(tokenizer), vocabulary)
    assert sentences_of(corpus) == [list("a▁cat"), ["a", "c", "t", "▁", "a", "t", "▁", "<unk>", *"▁a▁c"]]
    assert corpus.num_unknown == 1


def test_pieces_of_words_are_those_of_the_whole_sentence(tmp_path):
    lines = ["the cat and the dog", "a cat that has the hat"]
    tokenizer = BpeTokenizer.train(lines, vocab_size=24)
    raw = read_texts([write(tmp_path / "a.txt", "\n".join(lines).upper())])
    vocabulary = token_vocabulary(tokenizer)
    assert vocabulary[3:] == tokenizer.tokens[2:]
    corpus = encode_text(raw, token_speller(tokenizer), vocabulary)
    assert sentences_of(corpus) == [[tokenizer.tokens[token] for token in tokenizer.encode(line)] for line in lines]


def test_bad_input_is_named_in_one_line(tmp_path):
    good, empty = write(tmp_path / "good.txt", "a b"), write(tmp_path / "empty.txt", "\n?!\n")
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such text"):
        read_texts([good, tmp_path / "none.txt"])
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a b c d e" * 99)[:-9])
    with pytest.raises(ValueError, match=r"cut\.gz: cut short or damaged"):
        read_texts([tmp_path / "cut.gz"])
    with pytest.raises(ValueError, match="the texts hold no words to count; name texts with one sentence a line"):
        choose_vocabulary(read_texts([empty]), spell_words, size=None, min_count=1)
    with pytest.raises(ValueError, match="the texts are empty, or normalisation leaves nothing of them"):
        encode_text(read_texts([empty]), spell_words, ["<unk>", "<s>", "</s>"])
    with pytest.raises(ValueError, match="no word comes 2 times in the texts; lower min_count"):
        choose_vocabulary(read_texts([good]), spell_words, size=None, min_count=2)
