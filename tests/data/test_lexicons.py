"""Lexicons by espeak-ng: what is heard in its answers, whose words are looked up, and what it does not know."""

from pathlib import Path

import pytest

from asr.data.espeak import EspeakError
from asr.data.lexicons import distinct_words, espeak_lexicon, split

pytest.importorskip("espeakng_loader", reason="the extra `recipes` is not installed")


@pytest.mark.parametrize(
    ("phonemes", "phones"),
    [
        ("b|ˈʌ|ɾ|ɚ", ("b", "ʌ", "ɾ", "ɚ")),  # stress
        ("θ|ˈɔː|t", ("θ", "ɔ", "t")),  # length
        ("t|ʃ|n̩", ("t", "ʃ", "n")),  # a mark below
        ("(fr)ʒ|ɑ̃(en)", ("ʒ", "ɑ")),  # the rules of another language
        ("ˌɛ|m| ˌɑːɹ", ("ɛ", "m", "ɑɹ")),  # spelled
        ("n|ˈi2|x|ˈɑu2", ("n", "i", "x", "ɑu")),  # tones
        ("l|e-|z|ˌə", ("l", "e", "z", "ə")),
        ("", ()),
    ],
)
def test_an_answer_is_split_into_phones_without_stress_length_and_marks(phonemes: str, phones: tuple[str, ...]) -> None:
    assert split(phonemes) == phones


def test_words_are_spoken_by_the_rules_of_their_language() -> None:
    english = espeak_lexicon(["thought", "water", "water", "cat's"], language="en-us").pronunciations
    assert english == {
        "cat's": [("k", "æ", "t", "s")],
        "thought": [("θ", "ɔ", "t")],
        "water": [("w", "ɔ", "ɾ", "ɚ")],
    }
    german = espeak_lexicon(["wasser"], language="de").pronunciations
    assert german["wasser"][0][0] == "v"


def test_a_word_without_a_sound_is_left_out() -> None:
    assert list(espeak_lexicon(["cat", "'"], language="en-us").pronunciations) == ["cat"]


def test_no_word_and_an_unknown_language_are_errors() -> None:
    with pytest.raises(ValueError, match=r"^there is no word to look up"):
        espeak_lexicon([], language="en-us")
    with pytest.raises(EspeakError, match=r"^espeak-ng has no voice 'tlh-xx'; see .*lang$"):
        espeak_lexicon(["cat"], language="tlh-xx")


def test_words_come_from_texts_manifests_and_n_gram_models_in_normal_form(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The CAT, the hat!\nwell-known\n")
    arpa = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1 <unk>\n-1 <s>\n-1 </s>\n-1 DOG\n\n\\end\\\n"
    (tmp_path / "lm.arpa").write_text(arpa)
    assert distinct_words([tmp_path / "a.txt"]) == {"the", "cat", "hat", "well", "known"}
    assert distinct_words([], ngram=tmp_path / "lm.arpa") == {"dog"}
    (tmp_path / "tokens.arpa").write_text(arpa.replace("DOG", "\u2581do"))
    with pytest.raises(ValueError, match=r"tokens\.arpa: a language model of tokens; name one of words, whose pronun"):
        distinct_words([], ngram=tmp_path / "tokens.arpa")
