"""From utterances to a trained recogniser: puts dataset, task, validation and trainer together."""

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from asr import checkpoint
from asr.augment import AugmentConfig, SpecAugment
from asr.data.batching import Pauses
from asr.data.dataset import LoaderConfig, UtteranceDataset, preload, usable_utterances
from asr.data.manifest import Utterance
from asr.features import FeatureConfig
from asr.lattice_free import PhoneTrigrams
from asr.losses import LossConfig
from asr.nn.conformer import EncoderConfig
from asr.nn.decoder import DecoderConfig
from asr.nn.model import Recognizer
from asr.pronunciation import PhoneEncoder, read_lexicon
from asr.tokenizer import Tokenizer
from asr.training.distributed import Team
from asr.training.fine_tuning import refuse_other_shape, shared_phones
from asr.training.optim import OptimConfig
from asr.training.task import RecognitionTask, UtteranceBatches, WordErrorValidation, refuse_other_run
from asr.training.tracking import Tracker
from asr.training.trainer import Trainer, TrainerConfig

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class TrainingConfig:
    """All that decides what a recogniser learns, beside its utterances and its tokenizer.

    Attributes:
        seed: Draws weights, batches and augmentation.
        init_from: A model folder or run folder whose weights training starts from, in place of random ones; features
            and sizes must be those of that model, and its tokenizer is taken.
        lexicon: Pronunciations of all words of the training texts (see `asr.pronunciation`), from which a second CTC
            head learns the phones; with `loss.phone_weight`.
    """

    seed: int = 1
    init_from: Path | None = None
    lexicon: Path | None = None
    features: FeatureConfig = field(default_factory=FeatureConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def check_together(self) -> None:
        """Finds settings that are fine alone but not together, before anything is computed.

        Raises:
            ValueError: Naming the settings and the way out.
        """
        weight, num_layers = self.loss.ctc_weight, self.decoder.num_layers
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")
        if weight == 0:
            raise ValueError("loss.ctc_weight is 0, but every way of decoding needs CTC; set it above 0")
        if num_layers == 0 and weight < 1:
            raise ValueError(f"decoder.num_layers is 0, but loss.ctc_weight is {weight}; set it to 1 for CTC alone")
        if num_layers and weight == 1:
            raise ValueError("loss.ctc_weight is 1, so the decoder would learn nothing; take decoder=none, or lower it")
        layers, share = self.encoder.intermediate_layers, self.loss.intermediate_weight
        if bool(layers) != bool(share):
            raise ValueError(
                f"encoder.intermediate_layers is {layers} and loss.intermediate_weight is {share}; "
                "set both, or neither ([] and 0)"
            )
        if (self.lexicon is not None) != bool(self.loss.phone_weight):
            raise ValueError(
                f"lexicon is {self.lexicon} and loss.phone_weight is {self.loss.phone_weight}; "
                "set both, or neither (null and 0)"
            )


def train_recognizer(
    config: TrainingConfig,
    *,
    train: list[Utterance],
    valid: list[Utterance],
    tokenizer: Tokenizer,
    folder: Path,
    device: torch.device,
    tracker: Tracker,
    team: Team | None = None,
) -> Path:
    """Trains a recogniser, or goes on with a run that was interrupted.

    Args:
        config: What to learn, and how.
        train: Utterances to learn from.
        valid: Utterances to choose the model on.
        tokenizer: Turns their texts into tokens.
        folder: The run folder.
        device: Where to compute.
        tracker: Where curves go.
        team: The processes that train together; by default this one alone.

    Returns:
        The folder of the chosen model.

    Raises:
        ValueError: If settings do not fit together, utterances are unusable, or the folder holds another run.
        Interrupted: After SIGINT or SIGTERM, with everything saved.
        TrainingError: If training cannot go on.
    """
    config.check_together()
    team = team or Team()
    torch.manual_seed(config.seed)
    phones, phone_encoder = _find_phones(config, train)
    shape = checkpoint.ModelConfig(
        features=config.features, encoder=config.encoder, decoder=config.decoder, phones=phones
    )
    refuse_other_run(folder, shape, tokenizer)
    model = checkpoint.build_model(shape, tokenizer)
    if config.init_from:
        refuse_other_shape(config.init_from, shape)
        checkpoint.fill_weights(model, checkpoint.find_model(config.init_from), optional="phone_ctc")
        logger.info("starting from the weights of %s", config.init_from)
    model = model.to(device)
    team.draw_apart(config.seed)
    rate = config.features.sample_rate
    train = usable_utterances(
        train,
        tokenizer,
        config.loader,
        num_frames=lambda duration_s: model.num_frames(int(duration_s * rate)),
        fastest=max(config.augment.speeds),
        phone_encoder=phone_encoder,
    )
    dataset = _make_dataset(config, train, tokenizer, phone_encoder, team=team)
    batches = UtteranceBatches(
        dataset,
        config.loader,
        speeds=config.augment.speeds,
        pauses=_pauses(config.augment),
        seed=config.seed,
        pin_memory=device.type == "cuda",
        team=team,
    )
    _log_sizes(train, batches, tokenizer, model)
    task = _make_task(config, model, dataset, num_phones=len(phones), device=device)
    validation = WordErrorValidation(
        task=task,
        tokenizer=tokenizer,
        utterances=valid,
        sample_rate=rate,
        max_batch_s=config.loader.max_batch_s,
        team=team,
    )
    trainer = Trainer(
        task,
        config=config.trainer,
        optim=config.optim,
        batches=batches,
        validate=validation,
        save=partial(checkpoint.save, config=shape, tokenizer=tokenizer),
        tracker=tracker,
        folder=folder,
        device=device,
        sample_rate=rate,
        team=team,
    )
    return trainer.run()


def _pauses(augment: AugmentConfig) -> Pauses | None:
    if not augment.pause_probability:
        return None
    return Pauses(share=augment.pause_probability, longest_s=augment.pause_max_s)


def _find_phones(config: TrainingConfig, train: list[Utterance]) -> tuple[list[str], PhoneEncoder | None]:
    """The phones that the model tells apart, those of the model that it starts from if that knows any, and how texts
    become phones. Without a lexicon it knows none: of what it no longer learned it would soon be wrong."""
    known = shared_phones(config.init_from) if config.init_from else []
    if config.lexicon is None:
        if known:
            logger.warning(
                "%s knows phones, which are left out: there is no lexicon to learn them by", config.init_from
            )
        return [], None
    lexicon = read_lexicon(config.lexicon)
    phones = known or lexicon.phones(utterance.text for utterance in train)
    return phones, PhoneEncoder(lexicon, phones)


def _make_dataset(
    config: TrainingConfig,
    train: list[Utterance],
    tokenizer: Tokenizer,
    phone_encoder: PhoneEncoder | None,
    *,
    team: Team,
) -> UtteranceDataset:
    """The training utterances, their audio in memory as far as it may be."""
    rate = config.features.sample_rate
    return UtteranceDataset(
        train,
        tokenizer=tokenizer,
        sample_rate=rate,
        augment=config.augment,
        seed=config.seed,
        cache=preload(train, sample_rate=rate, max_gb=config.loader.cache_gb / team.local_size, progress=team.leads),
        padding_step_s=config.loader.padding_step_s,
        phone_encoder=phone_encoder,
    )


def _make_task(
    config: TrainingConfig, model: Recognizer, dataset: UtteranceDataset, *, num_phones: int, device: torch.device
) -> RecognitionTask:
    """The model with its losses; what MMI weighs phones by is of the training texts."""
    trigrams = None
    if config.loss.phone_mmi_share and dataset.phones:
        trigrams = PhoneTrigrams(dataset.phones, num_phones=num_phones).to(device)
    return RecognitionTask(
        model,
        loss=config.loss,
        spec_augment=SpecAugment(config.augment.spec, frame_s=config.features.frame_s),
        trigrams=trigrams,
    )


def _log_sizes(train: list[Utterance], batches: UtteranceBatches, tokenizer: Tokenizer, model: Recognizer) -> None:
    logger.info(
        "%d utterances, %.2f hours, %.1f %% padding; %d tokens; %.2f M parameters; on %s",
        len(train),
        sum(utterance.duration_s for utterance in train) / 3600,
        100 * batches.sampler().padding_share(0),
        tokenizer.vocab_size,
        model.num_parameters() / 1e6,
        next(model.parameters()).device,
    )
