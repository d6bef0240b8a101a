"""A recogniser of width 16 with random weights, its tokenizer and some noise to recognise."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from asr import checkpoint
from asr.checkpoint import LoadedModel, ModelConfig
from asr.features import FeatureConfig
from asr.nn.conformer import EncoderConfig
from asr.nn.decoder import DecoderConfig
from asr.nn.model import Recognizer
from asr.tokenizer import CharTokenizer

Module = TypeVar("Module", bound=nn.Module)

SAMPLE_RATE = 8000
NUM_MELS = 16
WIDTH = 16


def make_tokenizer() -> CharTokenizer:
    """Blank, end of sentence, space, a, b and c."""
    return CharTokenizer.train(["a b c"])


PHONES = ["x", "y", "z"]
SPOKEN = {"a": [("x",)], "b": [("y",)], "ab": [("x", "y")], "aba": [("x",)], "c": [("z", "x"), ("z",)]}


def make_config(
    *, subsampling: int = 4, num_decoder_layers: int = 2, dropout: float = 0.1, phones: Sequence[str] = ()
) -> ModelConfig:
    """Two layers of width 16 for audio of 8 kHz."""
    return ModelConfig(
        features=FeatureConfig(sample_rate=SAMPLE_RATE, num_mels=NUM_MELS, num_fft=256, high_hz=SAMPLE_RATE / 2),
        encoder=make_encoder_config(subsampling=subsampling, dropout=dropout),
        decoder=make_decoder_config(num_layers=num_decoder_layers, dropout=dropout),
        phones=list(phones),
    )


def make_encoder_config(
    *, subsampling: int = 4, dropout: float = 0.1, intermediate_layers: tuple[int, ...] = ()
) -> EncoderConfig:
    """Two blocks of width 16."""
    return EncoderConfig(
        num_layers=2,
        width=WIDTH,
        num_heads=2,
        feedforward_width=32,
        kernel_size=5,
        subsampling=subsampling,
        subsampling_channels=4,
        dropout=dropout,
        intermediate_layers=list(intermediate_layers),
    )


def make_decoder_config(*, num_layers: int = 2, dropout: float = 0.1) -> DecoderConfig:
    """Blocks of two heads."""
    return DecoderConfig(num_layers=num_layers, num_heads=2, feedforward_width=32, dropout=dropout)


def make_model(
    *, subsampling: int = 4, num_decoder_layers: int = 2, seed: int = 0, phones: Sequence[str] = ()
) -> Recognizer:
    """A recogniser in eval mode with random weights; of noise it makes words, not always the same letter."""
    config = make_config(subsampling=subsampling, num_decoder_layers=num_decoder_layers, phones=phones)
    torch.manual_seed(seed)
    model = randomized(checkpoint.build_model(config, make_tokenizer()), seed=seed)
    with torch.no_grad():
        model.ctc.weight.mul_(4)
        logits = model.ctc(model.encode(noise(8000)[None], torch.tensor([8000])).frames)
        model.ctc.bias.sub_(logits.mean(dim=(0, 1)))
        if model.phone_ctc is not None:
            model.phone_ctc.weight.mul_(4)
            phone_logits = model.phone_ctc(model.encode(noise(8000)[None], torch.tensor([8000])).frames)
            model.phone_ctc.bias.sub_(phone_logits.mean(dim=(0, 1)))
    return model


def make_loaded(*, num_decoder_layers: int = 2, seed: int = 0, phones: Sequence[str] = ()) -> LoadedModel:
    """The same as `checkpoint.load` returns it, without a folder."""
    return LoadedModel(
        model=make_model(num_decoder_layers=num_decoder_layers, seed=seed, phones=phones),
        tokenizer=make_tokenizer(),
        config=make_config(num_decoder_layers=num_decoder_layers, phones=phones),
        training={"steps": 3},
        path=Path("tiny"),
    )


def save(folder: Path, *, num_decoder_layers: int = 2, seed: int = 0, phones: Sequence[str] = ()) -> Path:
    """Writes a tiny recogniser and returns its folder."""
    loaded = make_loaded(num_decoder_layers=num_decoder_layers, seed=seed, phones=phones)
    checkpoint.save(
        folder,
        loaded.model.state_dict(),
        config=loaded.config,
        tokenizer=loaded.tokenizer,
        training=loaded.training,
    )
    return folder


def randomized(module: Module, *, seed: int = 0) -> Module:
    """Moves every parameter a little, those too that begin at zero or one, and sets eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval()


def noise(num_samples: int, *, seed: int = 0) -> Tensor:
    """White noise (S,) that swells and fades, so that its frames differ."""
    generator = torch.Generator().manual_seed(seed)
    loudness = 0.15 + 0.1 * torch.sin(torch.arange(num_samples) / 300)
    return loudness * torch.randn(num_samples, generator=generator)


def pad(sequences: list[Tensor], *, length: int = 0, value: float = 0.0) -> tuple[Tensor, Tensor]:
    """Stacks sequences (T, …) to (B, T, …) of at least that length, filled with a value, and returns their lengths."""
    lengths = [len(sequence) for sequence in sequences]
    padded = torch.full((len(sequences), max(length, *lengths, 0), *sequences[0].shape[1:]), value)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded, torch.tensor(lengths)


def write_noise(
    path: Path, *, duration_s: float = 1.0, sample_rate: int = SAMPLE_RATE, num_channels: int = 1, seed: int = 0
) -> Path:
    """Writes noise, the same in every channel, in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mono = noise(round(duration_s * sample_rate), seed=seed).numpy()
    kind = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, np.stack([mono] * num_channels, axis=1), sample_rate, **kind)
    return path
