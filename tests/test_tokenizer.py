import io
import json
import pickle

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from asr.text import normalize
from asr.tokenizer import (
    BLANK_ID,
    EOS_ID,
    BpeTokenizer,
    CharTokenizer,
    Tokenizer,
    TokenizerConfig,
    build_tokenizer,
    tokenizer_from_dict,
)

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "don't you think that 'tis the dogs' dinner",
    "the cat sat on the mat and the dog sat on the cat",
    "été übung 한국어 हिन्दी 90",
]
CHARACTERS = sorted(set("".join(TEXTS)))
TOKENIZERS = [CharTokenizer.train(TEXTS), BpeTokenizer.train(TEXTS, vocab_size=90)]
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["char", "bpe"])
KNOWN_TEXT = st.one_of(
    st.text(st.sampled_from(CHARACTERS), max_size=40),
    st.lists(st.sampled_from(" ".join(TEXTS).split()), max_size=8).map(" ".join),
).map(normalize)


def random_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30)


@each_tokenizer
def test_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert (BLANK_ID, EOS_ID) == (0, 1)
    assert tokenizer.tokens[:2] == ["<blank>", "<eos>"]
    assert tokenizer.vocab_size == len(tokenizer.tokens) == len(set(tokenizer.tokens))
    assert tokenizer.decode([BLANK_ID, EOS_ID]) == ""


@each_tokenizer
@given(text=KNOWN_TEXT)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(1 < index < tokenizer.vocab_size for index in ids)
    assert tokenizer.decode([EOS_ID, *(index for token in ids for index in (token, BLANK_ID)), EOS_ID]) == text


@pytest.mark.parametrize("kind", ["char", "bpe"])
@given(text=st.text(max_size=40).map(normalize).filter(bool))
def test_round_trip_of_the_training_text_in_any_script(kind: str, text: str) -> None:
    # 3: blank, end of sentence and the word mark; no merges are asked for, since there may be none to learn.
    vocab_size = 3 + len(set(text) - {" "}) if kind == "bpe" else 0
    tokenizer = build_tokenizer(TokenizerConfig(kind=kind, vocab_size=vocab_size), [text])
    assert tokenizer.decode(tokenizer.encode(text)) == text


@each_tokenizer
def test_white_space_counts_as_one_space(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("  the\t\n cat ") == tokenizer.encode("the cat")
    assert tokenizer.encode("") == tokenizer.encode(" ") == []


@each_tokenizer
@given(data=st.data())
def test_words_spell_the_words_of_the_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(random_ids(tokenizer))
    groups = tokenizer.words(ids)
    spelled = [tokenizer.decode([ids[position] for position in group]) for group in groups]
    assert spelled == tokenizer.decode(ids).split()
    positions = [position for group in groups for position in group]
    assert positions == sorted(set(positions))
    assert all(ids[position] not in (BLANK_ID, EOS_ID) for position in positions)


def test_words_of_characters() -> None:
    tokenizer = CharTokenizer.train(["ab c"])
    space, a, b, c = (tokenizer.tokens.index(character) for character in " abc")
    assert tokenizer.tokens[2:] == [" ", "a", "b", "c"]
    assert tokenizer.encode("ab c") == [a, b, space, c]
    assert tokenizer.words([EOS_ID, space, a, BLANK_ID, b, space, space, c]) == [[2, 4], [7]]
    assert tokenizer.words([]) == tokenizer.words([space, BLANK_ID]) == []


def test_words_of_bpe() -> None:
    tokenizer = BpeTokenizer.train(TEXTS, vocab_size=90)
    the, mark, a, t = (tokenizer.tokens.index(token) for token in ("▁the", "▁", "a", "t"))
    assert tokenizer.words([the, a, the]) == [[0, 1], [2]]
    assert tokenizer.words([t, mark, mark, a, t, mark]) == [[0], [3, 4]]
    assert tokenizer.decode([t, mark, mark, a, t, mark]) == "t at"


@each_tokenizer
def test_save_and_load(tokenizer: Tokenizer) -> None:
    state = json.loads(json.dumps(tokenizer.to_dict()))
    for copy in (tokenizer_from_dict(state), pickle.loads(pickle.dumps(tokenizer))):
        assert type(copy) is type(tokenizer)
        assert copy.tokens == tokenizer.tokens
        assert copy.to_dict() == tokenizer.to_dict()
        assert [copy.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
        assert copy.decode(copy.encode(TEXTS[0])) == TEXTS[0]


@each_tokenizer
@pytest.mark.parametrize(
    ("char", "code"), [("ж", r"U\+0436"), ("Q", r"U\+0051"), ("▁", r"U\+2581"), ("😀", r"U\+1F600")]
)
def test_unknown_character(tokenizer: Tokenizer, char: str, code: str) -> None:
    with pytest.raises(ValueError, match=rf"no token for '{char}' \({code}\) in the text 'the {char} cat'; normalise"):
        tokenizer.encode(f"the {char} cat")


@each_tokenizer
def test_unknown_character_in_a_long_text_is_shown_in_its_surroundings(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no token for") as caught:
        tokenizer.encode("the cat " * 1000 + "€" + " sat" * 1000)
    assert "the cat €" in str(caught.value)
    assert len(str(caught.value)) < 300


@each_tokenizer
def test_names_of_special_tokens_in_a_text_are_not_the_tokens(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no token for '<'"):
        tokenizer.encode("<eos>")


@each_tokenizer
@pytest.mark.parametrize("bad", [-1, 10_000])
def test_id_outside_the_vocabulary(tokenizer: Tokenizer, bad: int) -> None:
    message = f"token id {bad} is outside the vocabulary of {tokenizer.vocab_size} tokens"
    for call in (tokenizer.decode, tokenizer.words):
        with pytest.raises(ValueError, match=message):
            call([2, bad])


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_training_is_deterministic_and_silent(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    config = TokenizerConfig(kind=kind, vocab_size=90 if kind == "bpe" else 0)
    first, second = (build_tokenizer(config, iter(TEXTS)) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    assert capfd.readouterr() == ("", "")


def test_bpe_has_the_size_asked_for() -> None:
    for size in (60, 75, 90):
        assert BpeTokenizer.train(TEXTS, vocab_size=size).vocab_size == size


def test_bpe_trains_on_very_long_sentences() -> None:
    assert "ж" in BpeTokenizer.train(["the cat " * 5000 + "ж"], vocab_size=15).tokens


def test_bpe_size_out_of_range(capfd: pytest.CaptureFixture[str]) -> None:
    texts = ["abc abc", "cab"]
    with pytest.raises(ValueError, match=r"vocabulary of 5 tokens is too small.* take at least 6$"):
        BpeTokenizer.train(texts, vocab_size=5)
    assert BpeTokenizer.train(texts, vocab_size=6).vocab_size == 6
    with pytest.raises(ValueError, match=r"vocabulary of 900 tokens is too large .* at most \d+$") as caught:
        BpeTokenizer.train(texts, vocab_size=900)
    largest = int(str(caught.value).split()[-1])
    assert BpeTokenizer.train(texts, vocab_size=largest).vocab_size == largest
    assert capfd.readouterr() == ("", "")


def test_training_text_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="no text to take the tokenizer's characters from"):
        CharTokenizer.train(["", " "])
    with pytest.raises(ValueError, match="no text to train the BPE tokenizer on"):
        BpeTokenizer.train([" "], vocab_size=10)
    with pytest.raises(ValueError, match=r"has '▁' \(U\+2581\), which SentencePiece keeps for itself; normalise"):
        BpeTokenizer.train(["a ▁ b"], vocab_size=10)


def test_char_vocabulary_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="single characters as tokens, not 'ab'"):
        CharTokenizer(["a", "ab"])
    with pytest.raises(ValueError, match="every character once"):
        CharTokenizer(["a", "b", "a"])


def test_stored_tokenizer_that_cannot_be_used(capfd: pytest.CaptureFixture[str]) -> None:
    char, bpe = (tokenizer.to_dict() for tokenizer in TOKENIZERS)
    foreign = BpeTokenizer.train(["other text"], vocab_size=12).to_dict()
    cases: list[tuple[dict[str, object], str]] = [
        ({}, "unknown kind of tokenizer None; expected 'char' or 'bpe'"),
        ({"kind": "word"}, "unknown kind of tokenizer 'word'"),
        ({"kind": "char"}, "the stored char tokenizer lacks 'tokens'"),
        ({"kind": "bpe", "tokens": []}, "the stored bpe tokenizer lacks 'sentencepiece'"),
        ({**bpe, "sentencepiece": "%"}, "not valid base64"),
        ({**bpe, "sentencepiece": "AAAA"}, r"SentencePiece model cannot be read \(3 bytes\)"),
        ({**bpe, "sentencepiece": ""}, r"SentencePiece model cannot be read \(0 bytes\)"),
        ({**bpe, "sentencepiece": foreign["sentencepiece"]}, "list of tokens is not the one that its model has"),
        ({**char, "tokens": ["<eos>", "<blank>", "a"]}, "list of tokens is not the one that its model has"),
    ]
    for state, message in cases:
        with pytest.raises(ValueError, match=message):
            tokenizer_from_dict(state)
    assert capfd.readouterr() == ("", "")


def test_foreign_sentencepiece_model() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=90, model_type="bpe", minloglevel=2
    )
    with pytest.raises(ValueError, match=r"begins with \['<unk>', '<s>'\], but this toolkit expects"):
        BpeTokenizer(model.getvalue())


def test_config() -> None:
    assert isinstance(build_tokenizer(TokenizerConfig(), TEXTS), CharTokenizer)
    with pytest.raises(ValueError, match=r"tokenizer\.kind is 'word'; expected 'char' or 'bpe'"):
        TokenizerConfig(kind="word")
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size is 0; a bpe tokenizer needs"):
        TokenizerConfig(kind="bpe")
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size is 30, but the text decides"):
        TokenizerConfig(vocab_size=30)
