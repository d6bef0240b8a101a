"""The recogniser: features, encoder, CTC head and attention decoder in one module."""

# B utterances, S samples, T' encoder frames, D width, V vocabulary, P phones

import torch
from torch import Tensor, nn

from asr.features import LogMel
from asr.nn.conformer import ConformerEncoder, EncoderOutput
from asr.nn.decoder import TransformerDecoder
from asr.nn.linear import Linear


class Recognizer(nn.Module):
    """Joint CTC and attention model (Watanabe et al. 2017).

    Args:
        features: Maps waveforms (B, S) and lengths (B,) to features (B, T, F) and lengths (B,).
        encoder: Maps features to frames.
        decoder: Attention decoder, or None for a model with CTC alone.
        vocab_size: Number of tokens V, blank and end of sentence included.
        num_phones: Number of phones P that a second CTC head tells apart; 0 for none.
    """

    def __init__(
        self,
        *,
        features: LogMel,
        encoder: ConformerEncoder,
        decoder: TransformerDecoder | None,
        vocab_size: int,
        num_phones: int = 0,
    ) -> None:
        super().__init__()
        self.features = features
        self.encoder = encoder
        self.decoder = decoder
        self.ctc = Linear(encoder.width, vocab_size)
        self.phone_ctc = Linear(encoder.width, 1 + num_phones) if num_phones else None

    def encode(self, waveforms: Tensor, lengths: Tensor) -> EncoderOutput:
        """Encodes waveforms (B, S) of the model's sample rate with lengths (B,) in samples."""
        return self.encoder(*self.features(waveforms, lengths))

    def ctc_log_probs(self, frames: Tensor) -> Tensor:
        """CTC log-probabilities (B, T', V), float32, of encoder frames (B, T', D)."""
        return self.ctc(frames).float().log_softmax(dim=-1)

    def phone_log_probs(self, frames: Tensor) -> Tensor:
        """CTC log-probabilities of blank and phones, (B, T', 1 + P), float32, of encoder frames (B, T', D).

        Raises:
            ValueError: If the model knows no phones.
        """
        if self.phone_ctc is None:
            raise ValueError("this model knows no phones; train it with lexicon=… and loss.phone_weight above 0")
        log_probs: Tensor = self.phone_ctc(frames).float().log_softmax(dim=-1)
        return log_probs

    def num_frames(self, num_samples: int) -> int:
        """Encoder frames for a waveform of that many samples."""
        frames = self.features.frame_lengths(torch.tensor([num_samples]))
        return int(self.encoder.output_lengths(frames))

    def blocks_to_compile(self) -> list[nn.Module]:
        """The repeated parts, where compiling pays: the blocks of encoder and decoder."""
        return [*self.encoder.layers(), *([] if self.decoder is None else self.decoder.layers())]

    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())
