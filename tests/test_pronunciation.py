"""Pronunciation lexicons: files, numbers of phones, and what is wrong with them."""

import gzip
import lzma
from pathlib import Path

import pytest

from asr.pronunciation import Lexicon, PhoneEncoder, read_lexicon, write_lexicon

SPOKEN = {"the": [("ð", "ə"), ("ð", "i")], "cat": [("k", "æ", "t")]}
TEXT = "the  ð ə\ncat\tk æ t\n\nthe ð i\nthe ð ə\n"


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_a_file_is_read_with_several_pronunciations_of_a_word_in_order(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"lexicon.txt{ending}"
    compress = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[ending]
    path.write_bytes(compress(TEXT.encode()))
    assert read_lexicon(path).pronunciations == SPOKEN


@pytest.mark.parametrize("name", ["lexicon.txt", "deeper/lexicon.txt.xz"])
def test_what_is_written_is_read_again_and_equal_ones_give_equal_files(tmp_path: Path, name: str) -> None:
    write_lexicon(tmp_path / name, Lexicon(SPOKEN))
    assert read_lexicon(tmp_path / name).pronunciations == SPOKEN
    before = (tmp_path / name).read_bytes()
    write_lexicon(tmp_path / name, Lexicon(dict(reversed(SPOKEN.items()))))
    assert (tmp_path / name).read_bytes() == before


def test_texts_become_numbers_of_their_usual_phones() -> None:
    lexicon = Lexicon(SPOKEN)
    phones = lexicon.phones(["the cat", "cat"])
    assert phones == ["k", "t", "æ", "ð", "ə"]  # the second pronunciation's i is not among them
    encoder = PhoneEncoder(lexicon, phones)
    assert encoder.encode("the cat") == [4, 5, 1, 3, 2]
    assert encoder.encode("") == []


def test_lexicons_of_kaldi_recipes_and_cmu_s_dictionary_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text(
        "!SIL SIL\n<UNK> SPN\nREAD R IY1 D\nREAD(2)  R EH1 D\nDON'T 1.0 D OW1 N T\n\u00c9T\u00c9 0.55 e t e\n"
    )
    assert read_lexicon(path).pronunciations == {
        "read": [("R", "IY1", "D"), ("R", "EH1", "D")],
        "don't": [("D", "OW1", "N", "T")],
        "\u00e9t\u00e9": [("e", "t", "e")],
    }


def test_all_words_that_are_missing_are_told_at_once() -> None:
    message = r"^the pronunciation lexicon lacks 2 words, such as ape, dog; make one of these texts too"
    with pytest.raises(ValueError, match=message):
        Lexicon(SPOKEN).phones(["the dog", "an ape".replace("an ", "")])


def test_an_unknown_word_and_an_unknown_phone_are_named() -> None:
    encoder = PhoneEncoder(Lexicon(SPOKEN), ["ð", "ə", "k"])
    with pytest.raises(
        ValueError, match=r"^the pronunciation lexicon lacks the word 'dog'; make one of these texts too"
    ):
        encoder.encode("the dog")
    message = r"^the word 'cat' is spoken with the phone 'æ', which the model does not know; it knows ð ə k$"
    with pytest.raises(ValueError, match=message):
        encoder.encode("the cat")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the ð ə\ncat\n", r"line 2 has the word 'cat' without phones; write them behind it$"),
        ("\n \n", r"holds no word; give a file with a word and its phones on every line$"),
        (b"the \xff\n", r"not UTF-8 text .*; convert it first$"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"^{path}: {message}"):
        read_lexicon(path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt.xz"
    write_lexicon(path, Lexicon(SPOKEN))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match=rf"^{path}: cut short or damaged .*; copy it again$"):
        read_lexicon(path)


def test_a_missing_file_says_who_makes_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such pronunciation lexicon; recipes/make_lexicon\.py makes one$"):
        read_lexicon(tmp_path / "lexicon.txt")
