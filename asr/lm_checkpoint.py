"""Language models on disk: a folder like a recogniser's, with the sizes under `lm` in config.json."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asr.checkpoint import TrainingState, fill_weights, find_model, read_description, read_tokenizer, save_folder
from asr.nn.lm import LanguageModel, LanguageModelConfig
from asr.tokenizer import Tokenizer


@dataclass(slots=True, kw_only=True)
class LoadedLanguageModel:
    """A language model in eval mode, ready to score.

    Attributes:
        model: The network, on its device.
        tokenizer: Whose tokens it predicts: that of the recogniser it was trained for, or its own.
        config: Its sizes.
        training: What is known of its training, for people: steps, scores.
        path: The folder that it came from.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    config: LanguageModelConfig
    training: dict[str, Any]
    path: Path

    def check_tokens(self, tokenizer: Tokenizer) -> None:
        """Refuses a recogniser with other tokens: equal ids would mean something else.

        Raises:
            ValueError: If the tokens differ in number, text or order.
        """
        if self.tokenizer.tokens == tokenizer.tokens:
            return
        sizes = self.tokenizer.vocab_size, tokenizer.vocab_size
        difference = f"{sizes[0]} tokens, but the recogniser {sizes[1]}"
        if sizes[0] == sizes[1]:
            pairs = zip(self.tokenizer.tokens, tokenizer.tokens, strict=True)
            first = next(index for index, (own, other) in enumerate(pairs) if own != other)
            own, other = self.tokenizer.tokens[first], tokenizer.tokens[first]
            difference = f"{own!r} as token {first}, but the recogniser {other!r}"
        raise ValueError(
            f"{self.path}: the language model has {difference}; use it in a second pass (mode rescore or lexicon), or "
            "train one with this recogniser's tokenizer (recipes/train_lm.py recognizer=…)"
        )


def build_language_model(config: LanguageModelConfig, tokenizer: Tokenizer) -> LanguageModel:
    """Builds a language model with random weights from the global generator's state."""
    return LanguageModel(config, vocab_size=tokenizer.vocab_size)


def save_language_model(
    folder: Path,
    weights: dict[str, Tensor],
    *,
    config: LanguageModelConfig,
    tokenizer: Tokenizer,
    training: dict[str, Any],
    state: TrainingState | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the folder of a language model, whole or not at all; arguments and errors as of `asr.checkpoint.save`."""
    description = {"lm": asdict(config), "training": training}
    save_folder(folder, weights, description=description, tokenizer=tokenizer, state=state, dtype=dtype)


def load_language_model(path: Path, *, device: torch.device | str = "cpu") -> LoadedLanguageModel:
    """Loads a language model from its folder, or from the run folder that holds one.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is a recogniser, or a file of it is cut short, damaged or of another format.
    """
    folder = find_model(path)
    description = read_description(folder)
    config = _parse_config(description, folder)
    tokenizer = read_tokenizer(folder)
    model = build_language_model(config, tokenizer)
    fill_weights(model, folder)
    return LoadedLanguageModel(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        config=config,
        training=description.get("training", {}),
        path=folder,
    )


def load_tokenizer_and_lm_config(folder: Path) -> tuple[Tokenizer, LanguageModelConfig]:
    """Loads what shapes a language model, without its weights."""
    return read_tokenizer(folder), _parse_config(read_description(folder), folder)


def _parse_config(description: dict[str, Any], folder: Path) -> LanguageModelConfig:
    for key, kind in (("encoder", "a recogniser"), ("speller", "a speller")):
        if key in description:
            raise ValueError(f"{folder}: holds {kind}, not a language model; train one with recipes/train_lm.py")
    try:
        return LanguageModelConfig(**description["lm"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: config.json is not that of a language model of this toolkit ({error})") from None
