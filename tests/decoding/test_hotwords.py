"""Hotwords against a plain count of phrases in the words of a text."""

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
import torch
from bonuses import count_bonuses
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding.hotwords import LARGEST_BONUS, HotwordScorer, read_hotwords
from asr.text import normalize
from asr.tokenizer import BLANK_ID, EOS_ID, BpeTokenizer, CharTokenizer, Tokenizer

CPU = torch.device("cpu")
LETTERS = CharTokenizer.train(["annual york city new hat the bc"])
# Many merges of few letters, so that most texts can be cut in several ways.
PIECES = BpeTokenizer.train(["ab aab abab ba bab aabb abba bb"] * 3, vocab_size=16)
FEW_LETTERS = CharTokenizer(" ab")

WORD = st.text("ab", min_size=1, max_size=4)
PHRASES = st.dictionaries(
    st.lists(WORD, min_size=1, max_size=3).map(" ".join),
    st.sampled_from([5.0, 1.5, 0.0, -3.0, 100.0]),
    min_size=1,
    max_size=6,
)


def token_scores(scorer: HotwordScorer, tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """The score of each token, and what it would cost to end before each of them and behind the last."""
    state = scorer.start(1, 1)
    given_scores, ends = [], []
    for token in tokens:
        scores, state = scorer.score(state)
        given_scores.append(float(scores[0, token]))
        ends.append(float(scores[0, EOS_ID]))
        state = scorer.advance(state, torch.tensor([0]), torch.tensor([token]))
    ends.append(float(scorer.score(state)[0][0, EOS_ID]))
    return given_scores, ends


def whole_score(phrases: dict[str, float], text: str, tokenizer: Tokenizer = LETTERS) -> float:
    scores, ends = token_scores(HotwordScorer(phrases, tokenizer, device=CPU), tokenizer.encode(text))
    return sum(scores) + ends[-1]


# The sum of the scores


@pytest.mark.parametrize("tokenizer", [FEW_LETTERS, PIECES], ids=["characters", "pieces"])
@settings(max_examples=60)
@given(phrases=PHRASES, data=st.data())
def test_every_beginning_of_any_tokens_is_worth_the_phrases_in_its_text(
    tokenizer: Tokenizer, phrases: dict[str, float], data: st.DataObject
) -> None:
    """Any tokens: all ways to cut a text into tokens are among them, and spaces in a row as well."""
    tokens = data.draw(st.lists(st.integers(EOS_ID + 1, tokenizer.vocab_size - 1), max_size=25))
    scores, ends = token_scores(HotwordScorer(phrases, tokenizer, device=CPU), tokens)
    for length, end in enumerate(ends):
        expected = count_bonuses(phrases, tokenizer.decode(tokens[:length]))
        assert sum(scores[:length]) + end == pytest.approx(expected, abs=1e-3), tokens[:length]


@settings(max_examples=60)
@given(phrases=PHRASES, words=st.lists(WORD, max_size=8))
def test_the_score_of_a_text_does_not_depend_on_its_pieces(phrases: dict[str, float], words: list[str]) -> None:
    text = " ".join(words)
    expected = pytest.approx(count_bonuses(phrases, text), abs=1e-3)
    assert whole_score(phrases, text, FEW_LETTERS) == expected
    assert whole_score(phrases, text, PIECES) == expected
    mark, single_letters = PIECES.tokens.index("▁"), {letter: PIECES.tokens.index(letter) for letter in "ab"}
    tokens = [token for word in words for token in (mark, *(single_letters[letter] for letter in word))]
    assert PIECES.decode(tokens) == text
    scores, ends = token_scores(HotwordScorer(phrases, PIECES, device=CPU), tokens)
    assert sum(scores) + ends[-1] == expected


@pytest.mark.parametrize(
    ("phrases", "text", "expected"),
    [
        ({"ann": 4.0}, "ann", 4),
        ({"ann": 4.0}, "the ann hat", 4),
        ({"ann": 4.0}, "ann ann", 8),
        ({"ann": 4.0}, "annual", 0),
        ({"ann": 4.0}, "hann", 0),
        ({"ann": 4.0, "annual": 1.0}, "annual ann", 5),
        ({"new york": 4.0}, "new york", 4),
        ({"new york": 4.0}, "new hat york", 0),
        ({"new york": 4.0}, "new new york", 4),
        ({"new york": 4.0}, "newyork", 0),
        ({"new york": 4.0, "york": 1.0}, "new york", 5),
        ({"new york": 4.0, "new york city": 2.0}, "new york city", 6),
        ({"new york": 4.0, "york city": 2.0}, "new york city", 6),
        ({"the new": 4.0, "new york city": 2.0}, "the new york", 4),
        ({"hat hat": 4.0}, "hat hat hat", 8),
        ({"hat": -4.0}, "the hat", -4),
        ({"New York!": 4.0}, "new york", 4),
        ({"ann": 4.0}, "", 0),
    ],
)
def test_phrases_in_texts_by_hand(phrases: dict[str, float], text: str, expected: float) -> None:
    assert whole_score(phrases, text) == pytest.approx(expected, abs=1e-5)


# What is given in advance


def test_a_phrase_is_paid_in_equal_parts_by_its_last_letter() -> None:
    scores, ends = token_scores(HotwordScorer({"new": 6.0}, LETTERS, device=CPU), LETTERS.encode("the new hat"))
    assert scores == pytest.approx([0, 0, 0, 0, 2, 2, 2, 0, 0, 0, 0], abs=1e-6)
    assert ends == pytest.approx([0, 0, 0, 0, 0, -2, -4, 0, 0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("text", ["nat", "net", "neww", "ne hat", "ne"])
def test_what_was_given_in_advance_is_taken_back_when_the_phrase_breaks_off(text: str) -> None:
    scores, ends = token_scores(HotwordScorer({"new": 6.0}, LETTERS, device=CPU), LETTERS.encode(text))
    assert scores[0] == pytest.approx(2)
    assert sum(scores) + ends[-1] == pytest.approx(0, abs=1e-6)
    assert sum(scores[:2]) == pytest.approx(4 if text[1] == "e" else 0)


def test_a_phrase_that_breaks_off_leaves_the_share_of_one_that_began_in_it() -> None:
    phrases = {"the new hat": 11.0, "new york": 8.0}
    scores, _ = token_scores(HotwordScorer(phrases, LETTERS, device=CPU), LETTERS.encode("the new york"))
    totals = [sum(scores[: length + 1]) for length in range(len(scores))]
    assert totals[6] == pytest.approx(7 + 3)  # "the new", and "new" in it
    assert totals[8] == pytest.approx(5)  # "new y"
    assert totals[11] == pytest.approx(8)


def test_phrases_that_begin_alike_are_paid_by_the_best_of_them() -> None:
    scorer = HotwordScorer({"new": 3.0, "newcat": 12.0}, LETTERS, device=CPU)
    scores, _ = token_scores(scorer, LETTERS.encode("new h"))
    assert scores == pytest.approx([2, 2, 2, 3 - 6, 0], abs=1e-6)


def test_an_unwanted_phrase_is_charged_when_it_is_whole() -> None:
    scores, ends = token_scores(HotwordScorer({"new": -6.0}, LETTERS, device=CPU), LETTERS.encode("new newt"))
    assert scores == pytest.approx([0, 0, 0, -6, 0, 0, 0, 0], abs=1e-6)
    assert ends == pytest.approx([0, 0, 0, -6, 0, 0, 0, -6, 0], abs=1e-6)


def test_a_piece_of_several_characters_scores_what_its_characters_do() -> None:
    scorer = HotwordScorer({"abab ba": 7.0}, PIECES, device=CPU)
    scores, _ = scorer.score(scorer.start(1, 1))
    for token, text in enumerate(PIECES.tokens[EOS_ID + 1 :], start=EOS_ID + 1):
        spelled = text.replace("▁", "")
        matched = len(spelled) if "abab".startswith(spelled) else 0
        assert float(scores[0, token]) == pytest.approx(matched), text


# The contract of scorers


def test_rows_stay_by_the_blank_and_are_chosen_in_any_order() -> None:
    scorer = HotwordScorer({"new york": 8.0, "hat": 3.0}, LETTERS, device=CPU)
    texts = ["new ", "ha", "the", "hat new y"]
    states = []
    for text in texts:
        state = scorer.start(1, 1)
        for token in LETTERS.encode(text):
            state = scorer.advance(state, torch.tensor([0]), torch.tensor([token]))
        states.append(state)
    together = torch.cat(states)
    rows = torch.tensor([3, 0, 0, 2, 1])
    stayed = scorer.advance(together, rows, torch.full((5,), BLANK_ID))
    assert torch.equal(stayed, together[rows])
    letter = LETTERS.encode("t")[0]
    tokens = [letter, BLANK_ID, letter, letter, letter]
    moved = scorer.advance(together, rows, torch.tensor(tokens))
    for new, (row, token) in enumerate(zip(rows.tolist(), tokens, strict=True)):
        alone = scorer.advance(states[row], torch.tensor([0]), torch.tensor([token]))
        assert torch.equal(scorer.score(moved)[0][new], scorer.score(alone)[0][0])


def test_shapes_and_types() -> None:
    scorer = HotwordScorer({"a b": 2.0}, tiny.make_tokenizer(), device=CPU)
    scores, state = scorer.score(scorer.start(2, 3))
    assert scorer.can_stay
    assert scores.shape == (6, tiny.make_tokenizer().vocab_size)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert scorer.advance(state, torch.tensor([0, 5]), torch.tensor([3, 4])).shape == (2,)


def test_many_phrases_agree_with_the_count() -> None:
    choose = random.Random(1)
    words = ["".join(choose.choices("acehnotuwy", k=choose.randint(1, 6))) for _ in range(300)]
    phrases = {" ".join(choose.choices(words, k=choose.randint(1, 3))): choose.uniform(-2, 6) for _ in range(400)}
    text = " ".join(choose.choices(words, k=200) + " ".join(choose.choices(list(phrases), k=100)).split())
    assert count_bonuses(phrases, text) > 100
    assert whole_score(phrases, text) == pytest.approx(count_bonuses(phrases, text), abs=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_on_a_gpu() -> None:
    scorer = HotwordScorer({"new york": 8.0}, LETTERS, device=torch.device("cuda"))
    scores, state = scorer.score(scorer.start(2, 2))
    state = scorer.advance(state, torch.tensor([1], device="cuda"), torch.tensor([3], device="cuda"))
    assert scores.device.type == state.device.type == "cuda"


# Errors


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        ({}, "there are no hotwords; give at least one word or phrase"),
        ({"ann": 1.0, "  ": 2.0}, "hotword '  ' has no letter or digit"),
        ({"?!": 2.0}, "hotword '?!' has no letter or digit"),
        ({"zoë": 1.0}, "hotword 'zoë' has 'z' (U+007A), which the model's tokenizer lacks; spell the phrase with"),
        ({"ann 2": 1.0}, "hotword 'ann 2' has '2' (U+0032), which the model's tokenizer lacks"),
        ({"ann": math.nan}, "hotword 'ann' has a bonus of nan; expected a number from -1000 to 1000"),
        ({"ann": -math.inf}, "hotword 'ann' has a bonus of -inf; expected a number from"),
        ({"ann": 2 * LARGEST_BONUS}, "hotword 'ann' has a bonus of 2000.0; expected a number from"),
        ({"new york": 1.0, "New York": 2.0}, "hotword 'New York' comes twice: normalised, 'new york' is there already"),
    ],
)
def test_phrases_that_cannot_be_used(phrases: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        HotwordScorer(phrases, LETTERS, device=CPU)
    assert "\n" not in str(caught.value)


def test_a_phrase_of_two_words_needs_a_tokenizer_with_a_space() -> None:
    no_space = CharTokenizer("ab")
    assert whole_score({"ab": 2.0}, "ab", no_space) == pytest.approx(2)
    with pytest.raises(ValueError, match=r"hotword 'a b' has ' ' \(U\+0020\)"):
        HotwordScorer({"a b": 2.0}, no_space, device=CPU)


# Files


def test_read_hotwords(tmp_path: Path) -> None:
    path = tmp_path / "hotwords.txt"
    path.write_bytes("\ufeffNew York\t7.5\r\n\r\nDon’t\nhat\t-2\n  the cat \n".encode())
    assert read_hotwords(path, bonus=3) == {"new york": 7.5, "don't": 3, "hat": -2, "the cat": 3}
    assert read_hotwords(path)["the cat"] == 5
    assert all(phrase == normalize(phrase) for phrase in read_hotwords(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ann\nhat\tmuch\n", ":2: the bonus 'much' is not a number; write one behind the tab, such as 5.0"),
        (b"ann\t\n", ":1: the bonus '' is not a number"),
        (b"ann\t2\t3\n", ":1: 2 tabs; expected a phrase, and at most one tab with its bonus behind"),
        (b"ann\n...\n", ":2: hotword '...' has no letter or digit"),
        (b"\t2\n", ":1: hotword '' has no letter or digit"),
        (b"ann\n\nann\tnan\n", ":3: hotword 'ann' has a bonus of nan; expected a number from -1000 to 1000"),
        (b"ann\n\nAnn\t3\n", ":3: hotword 'ann' was given on line 1 already; keep one"),
        (b"ann\ncaf\xe9\n", ":2: byte 4 of the line is not UTF-8 text; convert the file to UTF-8"),
        (b"\n \n", ": no hotwords; write one word or phrase a line"),
        (b"", ": no hotwords; write one word or phrase a line"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "hotwords.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}{message}")) as caught:
        read_hotwords(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_hotwords(tmp_path / "none.txt")
