"""Settings that are fine alone but not together are refused before anything is computed."""

from pathlib import Path

import pytest

from asr.losses import LossConfig
from asr.nn.conformer import EncoderConfig
from asr.nn.decoder import DecoderConfig
from asr.training.run import TrainingConfig

NO_DECODER = DecoderConfig(num_layers=0)


def test_the_defaults_fit_together_with_a_decoder_and_without_intermediate_layers():
    config = TrainingConfig()
    config.check_together()
    assert config.decoder.num_layers and config.loss.ctc_weight < 1 and not config.encoder.intermediate_layers


def test_ctc_alone_and_intermediate_layers_fit_together():
    encoder, loss = EncoderConfig(intermediate_layers=[2]), LossConfig(ctc_weight=1.0, intermediate_weight=0.3)
    config = TrainingConfig(encoder=encoder, decoder=NO_DECODER, loss=loss)
    config.check_together()
    assert config.loss.ctc_weight == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, r"seed is -1; it must not be negative"),
        ({"loss": LossConfig(ctc_weight=0.0)}, r"ctc_weight is 0, but every way of decoding needs CTC; set it above 0"),
        ({"decoder": NO_DECODER}, r"num_layers is 0, but loss\.ctc_weight is 0\.3; set it to 1 for CTC alone"),
        ({"loss": LossConfig(ctc_weight=1.0)}, r"the decoder would learn nothing; take decoder=none, or lower it"),
        (
            {"loss": LossConfig(intermediate_weight=0.3)},
            r"intermediate_layers is \[\] and loss\.intermediate_weight is 0\.3",
        ),
        (
            {"encoder": EncoderConfig(intermediate_layers=[2])},
            r"intermediate_layers is \[2\] and .* set both, or neither",
        ),
        (
            {"loss": LossConfig(phone_weight=0.5)},
            r"^lexicon is None and loss\.phone_weight is 0\.5; set both, or neither",
        ),
        ({"lexicon": Path("lexicon.txt")}, r"^lexicon is lexicon\.txt and loss\.phone_weight is 0\.0; set both"),
    ],
)
def test_settings_that_do_not_fit_together(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings).check_together()
