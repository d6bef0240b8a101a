"""Text to token ids and back: characters or SentencePiece byte-pair encoding. The special ids are defined here only."""

import base64
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sentencepiece

BLANK_ID = 0
EOS_ID = 1  # also the token that the decoder starts from
SPECIAL_TOKENS = ("<blank>", "<eos>")

_SPACE_MARK = "\u2581"  # how SentencePiece writes the space inside a token


class Tokenizer(ABC):
    """What every tokenizer offers. Ids 0 and 1 are blank and end of sentence; ordinary tokens follow.

    Attributes:
        tokens: every token in readable form; its index is its id. A BPE token that begins a word begins with U+2581.
        texts: what each token adds to the decoded text; a leading space begins a word. Empty for special tokens.
        characters: all that occur in those texts.
    """

    def __init__(self, tokens: Sequence[str], texts: Sequence[str]) -> None:
        """Keep the vocabulary.

        Args:
            tokens: readable form of every token, the special ones first.
            texts: what each token adds to the decoded text; a leading space begins a word. Empty for special tokens.
        """
        self.tokens = list(tokens)
        self.texts = list(texts)
        self.characters = frozenset("".join(texts))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, blank and end of sentence included."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids, without blank or end of sentence. Runs of white space count as one space.

        Raises:
            ValueError: the text has a character that the vocabulary lacks.
        """
        text = " ".join(text.split())
        if not self.characters.issuperset(text):
            raise ValueError(self._describe_unknown(text))
        return self._encode(text)

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Encode text of known characters and single spaces."""

    def decode(self, ids: Iterable[int]) -> str:
        """Turn token ids back into text. Blank and end of sentence add nothing; spaces come out single and inside only.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        return " ".join("".join(map(self._text_of, ids)).split())

    def words(self, ids: Iterable[int]) -> list[list[int]]:
        """Group positions in `ids` by the words of `decode(ids)`: the k-th group spells the k-th word.

        Special tokens and bare spaces belong to no word.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        groups: list[list[int]] = []
        starts_word = True
        for position, text in enumerate(map(self._text_of, ids)):
            starts_word = starts_word or text.startswith(" ")
            if not text.strip():
                continue
            if starts_word:
                groups.append([])
            groups[-1].append(position)
            starts_word = False
        return groups

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything that `tokenizer_from_dict` needs, as plain JSON values."""

    def _text_of(self, token_id: int) -> str:
        if not 0 <= token_id < len(self.texts):
            raise ValueError(f"token id {token_id} is outside the vocabulary of {self.vocab_size} tokens")
        return self.texts[token_id]

    def _describe_unknown(self, text: str) -> str:
        position = next(index for index, char in enumerate(text) if char not in self.characters)
        excerpt = text[max(0, position - 40) : position + 40]
        return (
            f"the tokenizer has no token for {text[position]!r} (U+{ord(text[position]):04X}) in the text {excerpt!r}; "
            "normalise the text with asr.text.normalize, or train the tokenizer on text that has this character"
        )


class CharTokenizer(Tokenizer):
    """One token a character, the space between words included."""

    def __init__(self, characters: Sequence[str]) -> None:
        """Build the vocabulary from single characters, which get the ids from 2 on in the order given.

        Raises:
            ValueError: an entry is not one character, or comes twice.
        """
        for character in characters:
            if len(character) != 1:
                raise ValueError(f"a character tokenizer takes single characters as tokens, not {character!r}")
        if len(set(characters)) != len(characters):
            raise ValueError("a character tokenizer takes every character once, but some come twice")
        super().__init__([*SPECIAL_TOKENS, *characters], [*[""] * len(SPECIAL_TOKENS), *characters])
        self._ids = {character: index for index, character in enumerate(self.tokens)}

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharTokenizer":
        """Take the characters of the texts, in code point order, and the space.

        Raises:
            ValueError: the texts hold no character.
        """
        characters = {character for text in texts for character in "".join(text.split())}
        if not characters:
            raise ValueError("there is no text to take the tokenizer's characters from")
        return cls(sorted(characters | {" "}))

    def _encode(self, text: str) -> list[int]:
        return [self._ids[character] for character in text]

    def to_dict(self) -> dict[str, Any]:
        """The kind and the readable tokens, which say everything."""
        return {"kind": "char", "tokens": self.tokens}


class BpeTokenizer(Tokenizer):
    """Byte-pair encoding of words by SentencePiece (Kudo and Richardson, 2018), over characters rather than bytes."""

    def __init__(self, model: bytes) -> None:
        """Load a SentencePiece model as `train` makes it.

        Raises:
            ValueError: these bytes are no such model.
        """
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError(f"the tokenizer's SentencePiece model cannot be read ({len(model)} bytes)") from error
        tokens = [processor.id_to_piece(index) for index in range(processor.vocab_size())]
        if tuple(tokens[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
            raise ValueError(
                f"the tokenizer's SentencePiece model begins with {tokens[:2]}, but this toolkit expects "
                f"{list(SPECIAL_TOKENS)}; train it with BpeTokenizer.train"
            )
        pieces = [token.replace(_SPACE_MARK, " ") for token in tokens[len(SPECIAL_TOKENS) :]]
        super().__init__(tokens, [*[""] * len(SPECIAL_TOKENS), *pieces])
        self._model = model
        self._processor = processor

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> "BpeTokenizer":
        """Learn the merges from texts; equal texts give an equal tokenizer.

        Args:
            texts: normalised text, one sentence each.
            vocab_size: number of tokens, blank and end of sentence included.

        Raises:
            ValueError: no text, a character that SentencePiece reserves, or a size that these texts do not allow.
        """
        sentences = [" ".join(text.split()) for text in texts]
        characters = set("".join(sentences)) - {" "}
        if not characters:
            raise ValueError("there is no text to train the BPE tokenizer on")
        for reserved in _RESERVED & characters:
            raise ValueError(
                f"the text to train the BPE tokenizer on has {reserved!r} (U+{ord(reserved):04X}), which SentencePiece "
                "keeps for itself; normalise the text with asr.text.normalize"
            )
        smallest = len(SPECIAL_TOKENS) + len(characters) + 1
        if vocab_size < smallest:
            raise ValueError(
                f"a BPE vocabulary of {vocab_size} tokens is too small: blank, end of sentence, the word mark and the "
                f"{len(characters)} characters of the text need {smallest}; take at least {smallest}"
            )
        return cls(_train_bpe(sentences, vocab_size))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text, out_type=int)
        assert BLANK_ID not in ids, "a known character has no piece of its own"
        return ids

    def to_dict(self) -> dict[str, Any]:
        """The kind, the tokens for people to read, and the SentencePiece model in base64."""
        return {"kind": "bpe", "tokens": self.tokens, "sentencepiece": base64.b64encode(self._model).decode("ascii")}


_RESERVED = frozenset(f"{_SPACE_MARK}\u2585\0")


def _train_bpe(sentences: list[str], vocab_size: int) -> bytes:
    """Run SentencePiece's trainer on clean sentences and return its model file."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            # SentencePiece's own unknown token takes the blank's place: encode() never lets it come out.
            unk_id=BLANK_ID,
            unk_piece=SPECIAL_TOKENS[BLANK_ID],
            eos_id=EOS_ID,
            eos_piece=SPECIAL_TOKENS[EOS_ID],
            bos_id=-1,
            pad_id=-1,
            character_coverage=1.0,
            normalization_rule_name="identity",
            # Longer sentences would be left out without a word; this is the most that SentencePiece takes.
            max_sentence_length=2**30,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        largest = re.search(r"value <= (\d+)", str(error))
        if largest is None:
            raise ValueError(f"SentencePiece cannot train a BPE tokenizer of {vocab_size} tokens: {error}") from error
        raise ValueError(
            f"a BPE vocabulary of {vocab_size} tokens is too large for the {len(sentences)} sentences given; "
            f"take at most {largest[1]}"
        ) from error
    return model.getvalue()


def tokenizer_from_dict(state: dict[str, Any]) -> Tokenizer:
    """Rebuild a tokenizer from what its `to_dict` returned.

    Raises:
        ValueError: the kind is unknown, a part is missing, or the parts do not fit together.
    """
    kind = state.get("kind")
    if kind not in ("char", "bpe"):
        raise ValueError(f"unknown kind of tokenizer {kind!r}; expected 'char' or 'bpe'")
    for key in ("tokens", "sentencepiece") if kind == "bpe" else ("tokens",):
        if key not in state:
            raise ValueError(f"the stored {kind} tokenizer lacks {key!r}")
    tokenizer: Tokenizer
    if kind == "char":
        tokenizer = CharTokenizer(state["tokens"][len(SPECIAL_TOKENS) :])
    else:
        try:
            model = base64.b64decode(state["sentencepiece"], validate=True)
        except ValueError as error:
            raise ValueError(f"the stored tokenizer's SentencePiece model is not valid base64: {error}") from error
        tokenizer = BpeTokenizer(model)
    if tokenizer.tokens != list(state["tokens"]):
        raise ValueError(f"the stored {kind} tokenizer's list of tokens is not the one that its model has")
    return tokenizer


@dataclass(slots=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer to train.

    Attributes:
        kind: "char" or "bpe".
        vocab_size: number of BPE tokens, special ones included; 0 for characters, where the text decides.
    """

    kind: str = "char"
    vocab_size: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("char", "bpe"):
            raise ValueError(f"tokenizer.kind is {self.kind!r}; expected 'char' or 'bpe'")
        if self.kind == "bpe" and self.vocab_size <= 0:
            raise ValueError(f"tokenizer.vocab_size is {self.vocab_size}; a bpe tokenizer needs a number above 0")
        if self.kind == "char" and self.vocab_size != 0:
            raise ValueError(
                f"tokenizer.vocab_size is {self.vocab_size}, but the text decides the char tokens; leave it at 0"
            )


def build_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Train the tokenizer that the config asks for on normalised texts.

    Raises:
        ValueError: as the tokenizers' `train` do.
    """
    if config.kind == "bpe":
        return BpeTokenizer.train(texts, vocab_size=config.vocab_size)
    return CharTokenizer.train(texts)
