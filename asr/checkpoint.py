"""Models on disk: a folder with weights, JSON config and tokenizer, written whole or not at all.

    model.safetensors    the weights
    config.json          features, encoder, decoder and phones, and what is known of the training
    tokenizer.json       the tokenizer
    training.safetensors, training.json    only in a training checkpoint: all that is needed to go on

The folder alone rebuilds the model: recognition needs no other file. Nothing in it is a pickle.
"""

import contextlib
import json
import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from asr.features import FeatureConfig, LogMel
from asr.nn.conformer import ConformerEncoder, EncoderConfig
from asr.nn.decoder import DecoderConfig, TransformerDecoder
from asr.nn.model import Recognizer
from asr.quantization import SCALES, dequantize, quantize
from asr.tensor_files import write_tensors
from asr.tokenizer import Tokenizer, tokenizer_from_dict

FORMAT = 1  # raised when older code cannot read newer folders
_FORMAT_INT8 = 2  # of folders with weights in eight bits
_MODEL, _CONFIG, _TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
_TRAINING_TENSORS, _TRAINING_STATE = "training.safetensors", "training.json"


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """Everything that shapes a recogniser but its tokenizer.

    Attributes:
        features: What it hears.
        encoder: Sizes.
        decoder: Sizes.
        phones: The phones that its second CTC head tells apart, in the order of their numbers from 1 on; may be none.
    """

    features: FeatureConfig = field(default_factory=FeatureConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    phones: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class LoadedModel:
    """A recogniser in eval mode, ready to recognise.

    Attributes:
        model: The network, on its device.
        tokenizer: Turns token ids into text.
        config: What shaped it.
        training: What is known of its training, for people: steps, data, scores.
        path: The folder that it came from.
    """

    model: Recognizer
    tokenizer: Tokenizer
    config: ModelConfig
    training: dict[str, Any]
    path: Path

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio that the model hears, in Hz."""
        return self.config.features.sample_rate

    @property
    def frame_s(self) -> float:
        """Seconds from one encoder frame to the next."""
        return self.config.features.frame_s * self.config.encoder.subsampling

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device


def build_model(config: ModelConfig, tokenizer: Tokenizer) -> Recognizer:
    """Builds a recogniser with random weights from the global generator's state.

    Raises:
        ValueError: If the sizes do not fit together.
    """
    width, vocab_size = config.encoder.width, tokenizer.vocab_size
    decoder = None
    if config.decoder.num_layers:
        if width % config.decoder.num_heads:
            raise ValueError(
                f"decoder.num_heads {config.decoder.num_heads} does not divide encoder.width {width}; choose a divisor"
            )
        decoder = TransformerDecoder(config.decoder, width=width, vocab_size=vocab_size)
    return Recognizer(
        features=LogMel(config.features),
        encoder=ConformerEncoder(config.encoder, num_mels=config.features.num_mels),
        decoder=decoder,
        vocab_size=vocab_size,
        num_phones=len(config.phones),
    )


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """What a training run needs, beside the model, to go on as if it had never stopped.

    Attributes:
        tensors: Optimiser moments, averages, random states; flat names.
        state: Numbers and texts, JSON.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(
    folder: Path,
    weights: dict[str, Tensor],
    *,
    config: ModelConfig,
    tokenizer: Tokenizer,
    training: dict[str, Any],
    state: TrainingState | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a model folder, atomically: it appears under its name when it is complete.

    Args:
        folder: Where to; an older folder of that name is replaced.
        weights: State dict of the recogniser.
        config: What shaped it.
        tokenizer: Its tokenizer.
        training: What is worth telling of the training; JSON.
        state: For a training checkpoint, what resuming needs.
        dtype: Precision to store the weights in, such as `torch.float16` for half the size, or `torch.int8` for a
            quarter (see `asr.quantization`); by default their own.

    Raises:
        OSError: If it cannot be written, for want of space for example; nothing is left behind.
        ValueError: If a weight is too large for that precision.
    """
    description = {**asdict(config), "training": training}
    save_folder(folder, weights, description=description, tokenizer=tokenizer, state=state, dtype=dtype)


def save_folder(
    folder: Path,
    weights: dict[str, Tensor],
    *,
    description: dict[str, Any],
    tokenizer: Tokenizer,
    state: TrainingState | None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the folder of a model of any kind, as `save` does for a recogniser.

    Args:
        folder: Where to; an older folder of that name is replaced.
        weights: State dict of the model.
        description: What shaped it, for `config.json`; the format's number is added.
        tokenizer: Its tokenizer.
        state: For a training checkpoint, what resuming needs.
        dtype: Precision to store the weights in; by default their own.

    Raises:
        OSError: If it cannot be written; nothing is left behind.
        ValueError: If a weight is too large for that precision.
    """
    if dtype is not None:
        weights = _in_precision(weights, dtype)
    with _written_whole(folder) as temporary:
        write_tensors(temporary / _MODEL, weights)
        number = _FORMAT_INT8 if dtype == torch.int8 else FORMAT
        _write_json(temporary / _CONFIG, {"format": number, **description})
        _write_json(temporary / _TOKENIZER, tokenizer.to_dict())
        if state is not None:
            write_tensors(temporary / _TRAINING_TENSORS, state.tensors)
            _write_json(temporary / _TRAINING_STATE, state.state)


def load(path: Path, *, device: torch.device | str = "cpu") -> LoadedModel:
    """Loads a recogniser from a model folder, or from the run folder that holds one.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a file of it is cut short, damaged or of a newer format.
    """
    folder = find_model(path)
    description = read_description(folder)
    config = _parse_config(description, folder / _CONFIG)
    tokenizer = read_tokenizer(folder)
    model = build_model(config, tokenizer)
    fill_weights(model, folder)
    return LoadedModel(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        config=config,
        training=description.get("training", {}),
        path=folder,
    )


def load_training(folder: Path) -> tuple[dict[str, Tensor], TrainingState]:
    """Loads the weights and the state of a training checkpoint.

    Raises:
        FileNotFoundError: If the folder is no training checkpoint.
        ValueError: If a file of it is cut short or damaged.
    """
    state = TrainingState(tensors=_load_tensors(folder / _TRAINING_TENSORS), state=_read_json(folder / _TRAINING_STATE))
    return _load_tensors(folder / _MODEL), state


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Loads the weights alone.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If the file is cut short or damaged.
    """
    stored = _load_tensors(folder / _MODEL)
    try:
        return dequantize(stored)
    except ValueError as error:
        raise ValueError(f"{folder / _MODEL}: {error}") from None


def fill_weights(model: nn.Module, folder: Path, *, optional: str | None = None) -> None:
    """Loads the weights of a folder into a model, in single precision.

    Args:
        model: What to fill.
        folder: Where the weights are.
        optional: A part that stays as it is if only the model has it, and is left out if only the folder has it.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If the file is cut short or damaged, or its weights are of another model.
    """
    weights = load_weights(folder)
    if optional:
        own, prefix = model.state_dict(), f"{optional}."
        there, here = ({name for name in each if name.startswith(prefix)} for each in (weights, own))
        if not there or not here:
            weights = {name: tensor for name, tensor in weights.items() if name not in there}
            weights |= {name: own[name] for name in here}
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"{folder / _MODEL}: the weights do not fit {_CONFIG} and {_TOKENIZER}: {reason}") from None


def shape(settings: dict[str, Any]) -> dict[str, object]:
    """The settings of a model that must be alike for its weights to fit another, by name, `encoder.width` for one.

    Dropout and intermediate losses may differ, and phones have checks of their own.
    """
    found: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": each for inner, each in shape(value).items()}
        elif "dropout" not in name and name not in ("intermediate_layers", "phones"):
            found[name] = value
    return found


def load_tokenizer_and_config(folder: Path) -> tuple[Tokenizer, ModelConfig]:
    """Loads what shapes a recogniser, without its weights."""
    return read_tokenizer(folder), _parse_config(read_description(folder), folder / _CONFIG)


def read_description(folder: Path) -> dict[str, Any]:
    """Reads what `config.json` of a model folder says.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged or of another format.
    """
    path = folder / _CONFIG
    description = _read_json(path)
    if description.get("format") not in (FORMAT, _FORMAT_INT8):
        raise ValueError(
            f"{path}: format {description.get('format')!r}, but this version reads formats {FORMAT} and "
            f"{_FORMAT_INT8}; update the package"
        )
    return description


def read_tokenizer(folder: Path) -> Tokenizer:
    """Reads the tokenizer of a model folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged.
    """
    description = _read_json(folder / _TOKENIZER)
    try:
        return tokenizer_from_dict(description)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / _TOKENIZER}: {error}") from None


def find_model(path: Path) -> Path:
    """The model folder that a path means: the path itself, or `model/` in a run folder.

    Raises:
        FileNotFoundError: If there is no model.
    """
    for folder in (path, path / "model"):
        if (folder / _CONFIG).is_file() and (folder / _MODEL).is_file():
            return folder
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such model; give a model folder or the folder of a finished run")
    raise FileNotFoundError(
        f"{path}: holds no model ({_MODEL} beside {_CONFIG}, here or under model/); "
        "give a folder of checkpoints/ if the run has not finished"
    )


def average(states: Sequence[dict[str, Tensor]], *, shares: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The mean of several state dicts of one model, summed in float64.

    Args:
        states: At least one.
        shares: The weight of each, above 0, in any unit; equal by default.

    Raises:
        ValueError: If there are none, their tensors differ in name or shape, or a share is not above 0.
    """
    if not states:
        raise ValueError("there are no checkpoints to average")
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes[1:]):
        raise ValueError("the checkpoints to average are not of one model: their tensors differ in name or shape")
    shares = shares or [1.0] * len(states)
    if min(shares) <= 0:
        raise ValueError(f"the share {min(shares):g} is not above 0; leave out what shall have none")
    means = {
        name: sum(share * state[name].double() for share, state in zip(shares, states, strict=True)) / sum(shares)
        for name in states[0]
    }
    return {name: torch.as_tensor(mean).to(states[0][name].dtype) for name, mean in means.items()}


@contextlib.contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder that takes the place of `folder` when the block ends without an error."""
    temporary = folder.with_name(f".{folder.name}.writing")
    replaced = folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        # A folder cannot be replaced in one step; the old one is removed only when the new one is in place.
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        try:
            temporary.rename(folder)
        except OSError:
            if replaced.exists():
                replaced.rename(folder)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise OSError(f"{folder}: cannot be saved ({reason}); earlier checkpoints are as they were") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _in_precision(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in another precision; counters and other integers stay as they are."""
    if dtype == torch.int8:
        found = quantize(weights)
    else:
        found = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    for name, tensor in found.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            name = name.removesuffix(SCALES)
            largest = float(weights[name].abs().max())
            raise ValueError(f"{name} has the weight {largest:g}, too large for {dtype}; store it in torch.float32")
    return found


def _load_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the folder is not a complete checkpoint")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: cut short or damaged ({error}); copy it again or use another checkpoint") from None
    return tensors


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the folder is not a complete checkpoint")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); copy it again or use another checkpoint") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no JSON object; copy it again or use another checkpoint")
    return content


def _parse_config(description: dict[str, Any], path: Path) -> ModelConfig:
    for key, kind in (("lm", "a language model"), ("speller", "a speller")):
        if key in description:
            raise ValueError(f"{path.parent}: holds {kind}, not a recogniser; name the folder of a recogniser")
    try:
        return ModelConfig(
            features=FeatureConfig(**description["features"]),
            encoder=EncoderConfig(**description["encoder"]),
            decoder=DecoderConfig(**description["decoder"]),
            phones=list(description.get("phones", [])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the config of a model of this toolkit ({error})") from None
