"""Text in passages: where it is cut, what its words sound and are written like, and what is left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from asr.data.passages import Passages, as_lists, read_passages
from asr.pronunciation import Lexicon
from asr.tokenizer import BpeTokenizer, Tokenizer

SENTENCES = ["a b", "ab", "c", "b b a", "aba a"]


def make_tokenizer() -> BpeTokenizer:
    return BpeTokenizer.train(SENTENCES, vocab_size=9)


def read(folder: Path, sentences: list[str] = SENTENCES, **changes: Any) -> Passages:
    path = folder / "text.txt"
    path.write_text("\n".join(sentences), encoding="utf-8")
    settings: dict[str, Any] = {
        "tokenizer": make_tokenizer(),
        "lexicon": Lexicon(tiny.SPOKEN),
        "phones": tiny.PHONES,
        "lengths": [3],
        "max_words": 100,
        "seed": 1,
    }
    return read_passages([path], **(settings | changes))


def texts(passages: Passages, tokenizer: Tokenizer) -> list[str]:
    found = []
    for first, end in passages.bounds.tolist():
        tokens, _ = passages.tokens.pick(passages.words[first:end].astype(np.int64))
        found.append(tokenizer.decode(tokens.tolist()))
    return found


def test_passages_are_sentences_that_follow_each_other(tmp_path: Path) -> None:
    passages = read(tmp_path)
    assert texts(passages, make_tokenizer()) == ["a b ab", "c b b a", "aba a"]
    assert len(passages) == 3


def test_passages_are_as_long_as_utterances(tmp_path: Path) -> None:
    passages = read(tmp_path, ["a"] * 4000, lengths=[2, 2, 2, 6])
    sizes = passages.bounds[:, 1] - passages.bounds[:, 0]
    assert set(sizes[:-1].tolist()) == {2, 6}
    assert np.mean(sizes == 6) == pytest.approx(0.25, abs=0.05)
    assert sizes.sum() == 4000
    assert np.array_equal(read(tmp_path, ["a"] * 4000, lengths=[2, 2, 2, 6]).bounds, passages.bounds)


def test_what_is_too_long_ends_early(tmp_path: Path) -> None:
    assert texts(read(tmp_path, max_words=2), make_tokenizer()) == ["a b", "c b", "aba a"]


def test_words_have_their_usual_pronunciation_and_their_tokens(tmp_path: Path) -> None:
    passages = read(tmp_path)
    words = passages.words[3:5].astype(np.int64)  # c, b
    phones, sizes = passages.phones.pick(words)
    assert (phones.tolist(), sizes.tolist()) == ([3, 1, 2], [2, 1])
    tokens, sizes = passages.tokens.pick(words)
    assert tokens.tolist() == make_tokenizer().encode("c b")


def test_passages_with_a_word_that_cannot_be_spoken_or_written_are_left_out(tmp_path: Path, caplog) -> None:
    lexicon = Lexicon({**tiny.SPOKEN, "d": [("x",)], "bb": [("q",)]})
    passages = read(tmp_path, ["a b c", "a d b", "ab ab ab", "bb a a", "cc a a", "b a"], lexicon=lexicon)
    assert texts(passages, make_tokenizer()) == ["a b c", "ab ab ab", "b a"]
    (message,) = caplog.messages
    assert message.startswith(
        "left out: 3 of 6 passages, with 3 words that have no pronunciation in known phones, or no"
    )
    assert message.endswith(": d, bb, cc")


def test_a_text_without_usable_passages_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no usable passage in .*text\.txt; give texts whose words are in"):
        read(tmp_path, ["dd d"])
    with pytest.raises(ValueError, match="there is no usable passage"):
        read(tmp_path, [""])


def test_letters_are_no_tokens_for_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the tokens of 'a a' are not those of its words one by one.*pieces=2000"):
        read(tmp_path, ["dd a b"], tokenizer=tiny.make_tokenizer())


def test_lists_are_packed_and_picked() -> None:
    lists = as_lists([[5, 6], [], [7]])
    items, sizes = lists.pick(np.array([2, 1, 0, 2]))
    assert (items.tolist(), sizes.tolist()) == ([7, 5, 6, 7], [1, 0, 2, 1])
