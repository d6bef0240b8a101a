"""Spellers on disk: folders as of recognisers (see `asr.checkpoint`), with sizes and phones in `config.json`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asr.checkpoint import TrainingState, fill_weights, find_model, read_description, read_tokenizer, save_folder
from asr.decoding.phone_runs import EXTRA_FEATURES
from asr.nn.speller import Speller, SpellerConfig
from asr.tokenizer import Tokenizer


@dataclass(slots=True, kw_only=True)
class LoadedSpeller:
    """A speller in eval mode.

    Attributes:
        model: The network, on its device.
        tokenizer: Turns its token ids into text.
        config: Its sizes.
        phones: Those that it reads, in the order of their numbers from 1 on.
        training: What is known of its training, for people: steps, scores.
        path: The folder that it came from.
    """

    model: Speller
    tokenizer: Tokenizer
    config: SpellerConfig
    phones: list[str]
    training: dict[str, Any]
    path: Path

    def check_phones(self, phones: Sequence[str]) -> None:
        """Refuses a recogniser with other phones: equal numbers would mean something else.

        Raises:
            ValueError: If the phones differ.
        """
        if self.phones != list(phones):
            raise ValueError(
                f"{self.path}: the speller reads the {len(self.phones)} phones {' '.join(self.phones)}, but the "
                f"recogniser hears {' '.join(phones) or 'none'}; train one for it (recipes/train_speller.py)"
            )


def build_speller(config: SpellerConfig, tokenizer: Tokenizer, *, num_phones: int) -> Speller:
    """Builds a speller with random weights from the global generator's state."""
    return Speller(config, num_features=1 + num_phones + EXTRA_FEATURES, vocab_size=tokenizer.vocab_size)


def save_speller(
    folder: Path,
    weights: dict[str, Tensor],
    *,
    config: SpellerConfig,
    tokenizer: Tokenizer,
    phones: Sequence[str],
    training: dict[str, Any],
    state: TrainingState | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the folder of a speller, whole or not at all; arguments and errors as of `asr.checkpoint.save`."""
    description = {"speller": asdict(config), "phones": list(phones), "training": training}
    save_folder(folder, weights, description=description, tokenizer=tokenizer, state=state, dtype=dtype)


def load_speller(path: Path, *, device: torch.device | str = "cpu") -> LoadedSpeller:
    """Loads a speller from its folder, or from the run folder that holds one.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is a model of another kind, or a file of it is cut short, damaged or of another format.
    """
    folder = find_model(path)
    description = read_description(folder)
    config, phones = _parse_config(description, folder)
    tokenizer = read_tokenizer(folder)
    model = build_speller(config, tokenizer, num_phones=len(phones))
    fill_weights(model, folder)
    return LoadedSpeller(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        config=config,
        phones=phones,
        training=description.get("training", {}),
        path=folder,
    )


def read_speller_shape(folder: Path) -> tuple[Tokenizer, SpellerConfig, list[str]]:
    """What shapes a speller, without its weights: tokenizer, sizes and phones."""
    return read_tokenizer(folder), *_parse_config(read_description(folder), folder)


def _parse_config(description: dict[str, Any], folder: Path) -> tuple[SpellerConfig, list[str]]:
    for key, kind in (("encoder", "a recogniser"), ("lm", "a language model")):
        if key in description:
            raise ValueError(f"{folder}: holds {kind}, not a speller; train one with recipes/train_speller.py")
    try:
        return SpellerConfig(**description["speller"]), list(description["phones"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: config.json is not that of a speller of this toolkit ({error})") from None
