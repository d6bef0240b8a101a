"""Conformer encoders of others, of the sizes of this project's. None is a dependency of the project for this."""

# B utterances, T feature frames, T' encoder frames, F mel bins, D width

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from torch import Tensor, nn

from asr.nn.conformer import EncoderConfig
from asr.nn.masks import valid_mask
from asr.nn.subsampling import ConvSubsampling
from benchmarks.harness import imports_of


@dataclass(frozen=True, slots=True)
class EncoderPeer:
    """Another's encoder.

    Attributes:
        name: Names its rows.
        version: Of its package.
        encoder: Maps features (B, T, F) and lengths (B,) to frames (B, T', D).
        note: In what it differs.
    """

    name: str
    version: str
    encoder: nn.Module
    note: str = ""


class _Torchaudio(nn.Module):
    def __init__(self, config: EncoderConfig, *, num_mels: int) -> None:
        super().__init__()
        from torchaudio.models import Conformer

        self.subsampling = ConvSubsampling(
            num_mels, config.width, factor=config.subsampling, channels=config.subsampling_channels
        )
        self.blocks = Conformer(
            config.width,
            num_heads=config.num_heads,
            ffn_dim=config.feedforward_width,
            num_layers=config.num_layers,
            depthwise_conv_kernel_size=config.kernel_size,
            dropout=config.dropout,
        )

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.blocks(*self.subsampling(features, lengths))[0]


def torchaudio_encoder(config: EncoderConfig, *, num_mels: int) -> EncoderPeer:
    """torchaudio's `Conformer`, which has no subsampling, behind this project's.

    Raises:
        Skipped: If it is not installed.
    """
    with imports_of("torchaudio", "torchaudio"):
        encoder = _Torchaudio(config, num_mels=num_mels)
    note = "this project's subsampling in front; attention without relative positions"
    return EncoderPeer("torchaudio", metadata.version("torchaudio"), encoder, note)


class _Espnet(nn.Module):
    def __init__(self, config: EncoderConfig, *, num_mels: int) -> None:
        super().__init__()
        from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

        self.encoder = ConformerEncoder(
            input_size=num_mels,
            output_size=config.width,
            attention_heads=config.num_heads,
            linear_units=config.feedforward_width,
            num_blocks=config.num_layers,
            dropout_rate=config.dropout,
            positional_dropout_rate=config.dropout,
            attention_dropout_rate=config.attention_dropout,
            input_layer="conv2d",
            macaron_style=True,
            rel_pos_type="latest",
            pos_enc_layer_type="rel_pos",
            selfattention_layer_type="rel_selfattn",
            cnn_module_kernel=config.kernel_size,
        )

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.encoder(features, lengths)[0]


def espnet_encoder(config: EncoderConfig, *, num_mels: int) -> EncoderPeer:
    """ESPnet's `ConformerEncoder` as its LibriSpeech recipes set it.

    Raises:
        Skipped: If it is not installed.
    """
    with imports_of("ESPnet", "espnet==202511", "typeguard"):
        encoder = _Espnet(config, num_mels=num_mels)
    return EncoderPeer(
        "ESPnet", metadata.version("espnet"), encoder, f"its subsampling has {config.width} channels, as its width"
    )


class _SpeechBrain(nn.Module):
    def __init__(self, config: EncoderConfig, *, num_mels: int) -> None:
        super().__init__()
        from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
        from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
        from speechbrain.nnet.attention import RelPosEncXL

        channels = (64, 32)
        self.front = ConvolutionFrontEnd(
            input_shape=(8, 10, num_mels),
            num_blocks=2,
            num_layers_per_block=1,
            out_channels=channels,
            kernel_sizes=(3, 3),
            strides=(2, 2),
            residuals=(False, False),
            dropout=config.dropout,
        )
        self.project = nn.Sequential(
            nn.Linear(channels[-1] * ((num_mels + 3) // 4), config.width), nn.Dropout(config.dropout)
        )
        self.positions = RelPosEncXL(config.width)
        self.blocks = ConformerEncoder(
            num_layers=config.num_layers,
            d_model=config.width,
            d_ffn=config.feedforward_width,
            nhead=config.num_heads,
            kernel_size=config.kernel_size,
            dropout=config.dropout,
            attention_type="RelPosMHAXL",
        )

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        x = self.project(self.front(features).flatten(2))  # (B, T', D)
        padding = ~valid_mask(-(-lengths // 4), x.shape[1])  # (B, T')
        return self.blocks(x, src_key_padding_mask=padding, pos_embs=self.positions(x))[0]


def speechbrain_encoder(config: EncoderConfig, *, num_mels: int) -> EncoderPeer:
    """SpeechBrain's `ConformerEncoder` behind the convolutional front end of its LibriSpeech recipes.

    Raises:
        Skipped: If it is not installed.
    """
    with imports_of("SpeechBrain", "speechbrain", "hyperpyyaml", "ruamel.yaml"):
        encoder = _SpeechBrain(config, num_mels=num_mels)
    note = f"its front end is smaller: 64 and 32 channels, where the others have {config.subsampling_channels}"
    return EncoderPeer("SpeechBrain", metadata.version("speechbrain"), encoder, note)


class _Parakeet(nn.Module):
    def __init__(self, config: EncoderConfig, *, num_mels: int) -> None:
        super().__init__()
        from transformers import ParakeetEncoder, ParakeetEncoderConfig

        sizes = ParakeetEncoderConfig(
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.feedforward_width,
            conv_kernel_size=config.kernel_size,
            subsampling_factor=config.subsampling,
            subsampling_conv_channels=config.subsampling_channels,
            num_mel_bins=num_mels,
            dropout=config.dropout,
            activation_dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            layerdrop=0.0,
        )
        self.encoder = ParakeetEncoder(sizes)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.encoder(features, attention_mask=valid_mask(lengths, features.shape[1])).last_hidden_state


def parakeet_encoder(config: EncoderConfig, *, num_mels: int) -> EncoderPeer:
    """The FastConformer encoder of Parakeet in transformers.

    Raises:
        Skipped: If it is not installed.
    """
    with imports_of("Parakeet", "transformers==4.57.6", "huggingface-hub==0.36.2", "tokenizers==0.22.2"):
        encoder = _Parakeet(config, num_mels=num_mels)
    note = "its subsampling is smaller: depthwise separable after the first convolution"
    return EncoderPeer("Parakeet (transformers)", metadata.version("transformers"), encoder, note)


ENCODER_PEERS: dict[str, Callable[..., EncoderPeer]] = {
    "torchaudio": torchaudio_encoder,
    "espnet": espnet_encoder,
    "speechbrain": speechbrain_encoder,
    "parakeet": parakeet_encoder,
}
