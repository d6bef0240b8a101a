"""Starting from a trained recogniser: fine-tuning on other speech, or going on with more of it."""

from dataclasses import asdict
from pathlib import Path

from asr.checkpoint import ModelConfig, find_model, load_tokenizer_and_config, shape
from asr.tokenizer import Tokenizer, TokenizerConfig


def shared_tokenizer(start: Path, asked: TokenizerConfig) -> Tokenizer:
    """The tokenizer of the model that training starts from: the weights of its outputs belong to those tokens.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If its tokenizer is not of the kind and size that is asked for.
    """
    tokenizer, _ = load_tokenizer_and_config(find_model(start))
    kind = tokenizer.to_dict()["kind"]
    size = tokenizer.vocab_size if kind == "bpe" else 0
    if (kind, size) != (asked.kind, asked.vocab_size):
        raise ValueError(
            f"init_from: {start} has a {kind} tokenizer of {tokenizer.vocab_size} tokens, "
            f"not tokenizer.kind={asked.kind} tokenizer.vocab_size={asked.vocab_size}; "
            f"set tokenizer.kind={kind} tokenizer.vocab_size={size}"
        )
    return tokenizer


def refuse_other_shape(start: Path, config: ModelConfig) -> None:
    """Checks that weights fit: features and sizes must be those of the model that training starts from.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If settings differ; the message has all the overrides that mend it.
    """
    _, found = load_tokenizer_and_config(find_model(start))
    has, asked = shape(asdict(found)), shape(asdict(config))
    mending = [f"{key}={value}" for key, value in has.items() if asked[key] != value]
    if mending:
        raise ValueError(f"init_from: {start} has other sizes; to start from it, set {' '.join(mending)}")


def shared_phones(start: Path) -> list[str]:
    """The phones that the model which training starts from tells apart; none if it knows none.

    Raises:
        FileNotFoundError: If there is no such model.
    """
    return load_tokenizer_and_config(find_model(start))[1].phones
