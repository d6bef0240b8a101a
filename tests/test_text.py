import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.text import normalize

# Plain text() rarely meets the characters that matter here; this alphabet meets them all the time.
AWKWARD = st.text(
    st.one_of(
        st.sampled_from(
            "aZ1é'’‘ʼ`´-–—_/ .,…!\t\n\u00a0\u0301\u0307\u034f\u200d\ufe0f\u20e3İßΣſﬁ½²Ⅷ한कि❤👍🏽≠=\u0338ー"
        ),
        st.characters(),
    ),
    max_size=30,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HELLO  World", "hello world"),
        ("Don’t stop — believin‘", "don't stop believin'"),
        ("don`t don´t `code` ´", "don't don't code"),
        ("rock 'n' roll, the dogs' bowl", "rock 'n' roll the dogs' bowl"),
        ("a ' b '90s 90's ''", "a b 90s 90's"),
        ("a''b 'a' ''a", "a'b 'a' 'a"),
        ("a'.'b", "a'b"),
        ("well-known twenty–one −5", "well known twenty one 5"),
        ("and/or snake_case wait...what wait…what", "and or snake case wait what wait what"),
        ("U.S. $5, (yes)! “quoted” a&b", "us 5 yes quoted ab"),
        ("ﬁne ＡＢＣ x² Ⅷ", "fine abc x2 viii"),
        ("İstanbul Straße ΟΔΟΣ", "i̇stanbul straße οδος"),
        ("e\u0301te\u0301", "été"),
        ("हिन्दी 한국어 русский 日本語 עִבְרִית", "हिन्दी 한국어 русский 日本語 עִבְרִית"),
        ("कि's", "कि's"),
        ("I ❤️ you 👍🏽 1️⃣", "i you 1"),
        ("a+\u0301b \u0301", "ab"),
        ("tab\tnew\nline\u00a0nbsp\u3000wide\u2028sep", "tab new line nbsp wide sep"),
        ("zero\u200bwidth \ud800 \ue000", "zerowidth"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert normalize(text) == unicodedata.normalize("NFC", expected)


@given(AWKWARD)
def test_idempotent(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once


@given(AWKWARD)
def test_form_of_the_result(text: str) -> None:
    result = normalize(text)
    assert result == " ".join(result.split(" ")).strip()
    assert result == unicodedata.normalize("NFKC", result)
    assert result == result.lower()
    assert all(char in " '" or unicodedata.category(char)[0] in "LNM" for char in result)


@given(
    st.text(st.sampled_from("abcxyzéßжд0189 '"), max_size=30),
    st.text(st.sampled_from('!?,.;:"()[]$%&*+@~^'), min_size=1),
)
def test_punctuation_around_text_changes_nothing(text: str, punctuation: str) -> None:
    assert normalize(f"{punctuation} {text} {punctuation}") == normalize(text)


@given(AWKWARD, AWKWARD)
def test_words_are_normalised_one_by_one(left: str, right: str) -> None:
    # Scoring splits at spaces, so a word must not depend on the words around it.
    assert normalize(f"{left} {right}").split() == [*normalize(left).split(), *normalize(right).split()]
