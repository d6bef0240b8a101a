"""Training a speller: its loss on a batch, its validation, and how all is put together."""

# B utterances, R' pairs of runs, U tokens, D width

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr import evaluate
from asr.checkpoint import LoadedModel, find_model, shape
from asr.data.dataset import encode_all
from asr.data.manifest import Utterance
from asr.data.passage_batches import NOTHING, PassageBatches, SpellingBatch
from asr.data.passages import Lists, Passages, as_lists, read_passages
from asr.data.phone_bank import PhoneBank
from asr.data.text_batches import Dealing
from asr.decoding.phone_runs import heard_runs
from asr.decoding.spell import spell
from asr.lm_checkpoint import load_language_model, load_tokenizer_and_lm_config
from asr.losses import Loss, attention_loss, teacher_forcing
from asr.nn.inspection import recorded
from asr.nn.masks import valid_mask
from asr.nn.speller import Speller, SpellerConfig
from asr.pronunciation import Lexicon, PhoneEncoder
from asr.recognition import encode_utterances
from asr.speller_checkpoint import build_speller, read_speller_shape, save_speller
from asr.tokenizer import Tokenizer
from asr.training.distributed import Team
from asr.training.hearing import HearingConfig, hear, phone_errors
from asr.training.interfaces import Validation
from asr.training.optim import OptimConfig
from asr.training.same_run import last_checkpoint, named, refuse_changes, refuse_other_sizes
from asr.training.tracking import Tracker
from asr.training.trainer import Trainer, TrainerConfig

logger = logging.getLogger(__name__)

_NUM_SAMPLES = 8  # transcripts shown at every validation
_EVERY = 3  # of so many pairs of runs one is asked for its token
_CACHE_GB = 4.0  # of audio that is kept in memory from hearing to hearing
_LENGTH_BONUS = 0.4  # in validation: without one, a speller ends too early
_NEVER = -1e9  # the logarithm of no attention at all, finite so that its gradient is


@dataclass(slots=True, kw_only=True)
class SpellingLoaderConfig:
    """How text becomes batches.

    Attributes:
        max_batch_tokens: Most tokens of a batch, padding and ends of sentence included.
        max_words: Most words of a passage.
        real_share: Share of the rows of a batch that are training utterances as they were heard, in [0, 1); the others
            are text, and what may be heard of it.
        num_growing: Batches at the beginning whose passages end early, after a few words at first: where to look is
            learned from short ones.
        num_workers: Processes that make batches ahead of training, for a GPU; 0 makes them in the training process.
    """

    max_batch_tokens: int = 3000
    max_words: int = 100
    real_share: float = 0.1
    num_growing: int = 150
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name in ("max_batch_tokens", "max_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"loader.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.real_share < 1:
            raise ValueError(f"loader.real_share is {self.real_share}; it must be in [0, 1)")
        for name in ("num_growing", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"loader.{name} is {getattr(self, name)}; it must not be negative")


@dataclass(slots=True, kw_only=True)
class SpellingLossConfig:
    """Weights of what is learned beside the next token; both make where to look plain, and cost little later.

    Attributes:
        guide_weight: How much attention the first head of every second block pays to the word that it writes.
        pair_weight: The first token of the word that a pair of runs was heard of, without the decoder's blocks; of
            every third pair.
    """

    guide_weight: float = 0.5
    pair_weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("guide_weight", "pair_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"loss.{name} is {getattr(self, name)}; it must not be negative")


@dataclass(slots=True, kw_only=True)
class SpellerTrainingConfig:
    """All that decides what a speller learns, beside its text, its recogniser and its utterances.

    Attributes:
        seed: Of the first weights, of what is heard, and of the order of the text.
        init_from: Folder of a language model, or of the run that made it, whose weights the decoder starts from; sizes
            and tokens must be those of it.
        speller: Sizes.
        hearing: How training utterances are heard.
        loader: How text becomes batches.
        loss: What is learned beside the next token.
        optim: The optimiser.
        trainer: The loop.
    """

    seed: int = 1
    init_from: Path | None = None
    speller: SpellerConfig = field(default_factory=SpellerConfig)
    hearing: HearingConfig = field(default_factory=HearingConfig)
    loader: SpellingLoaderConfig = field(default_factory=SpellingLoaderConfig)
    loss: SpellingLossConfig = field(default_factory=SpellingLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")


class SpellingTask(nn.Module):
    """A speller with its loss."""

    def __init__(self, model: Speller, *, loss: SpellingLossConfig) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: SpellingBatch) -> Loss:
        """The loss of a batch on the model's device."""
        frames, lengths = self.model.read(batch.runs, batch.run_lengths)
        inputs, targets = teacher_forcing(batch.tokens, batch.lengths)  # (B, U + 1) each
        blocks = self.model.decoder.layers()
        watched = [block.cross_attention for block in blocks[1::2] or blocks]
        with recorded(watched) as calls:
            logits = self.model.decoder(inputs, frames, lengths)
        total = parts = attention_loss(logits, targets, label_smoothing=0.0)
        named = {"attention": parts.detach()}
        if self.loss.guide_weight:
            seen = [
                module.log_weights(*args, head=0, mask=kwargs["mask"])
                for module, (args, kwargs) in zip(watched, calls, strict=True)
            ]
            guide = torch.stack([guide_loss(each, lengths, batch) for each in seen]).mean()
            total = total + self.loss.guide_weight * guide
            named["guide"] = guide.detach()
        if self.loss.pair_weight:
            some, targets = frames[:, ::_EVERY], batch.pair_tokens[:, ::_EVERY]
            pairs = F.cross_entropy(
                self.model.frame_logits(some).float().flatten(0, 1),
                targets.flatten(),
                ignore_index=NOTHING,
                reduction="sum",
            )
            total = total + self.loss.pair_weight * pairs
            named["pair"] = pairs.detach()
        return Loss(total, batch.num_tokens, named)


def guide_loss(log_weights: Tensor, lengths: Tensor, batch: SpellingBatch) -> Tensor:
    """The negative logarithm of the attention that each token pays to the runs of its word, and the end of sentence to
    the last ones, a sum over all.

    Args:
        log_weights: Of one head, (B, U + 1, R'), from the start token on.
        lengths: Pairs of runs, (B,).
        batch: What was read.
    """
    run_words = F.pad(batch.run_words, (0, batch.run_words.shape[1] % 2), value=NOTHING)
    pairs = run_words.view(len(run_words), 1, -1, 2)
    token_words = F.pad(batch.token_words, (0, 1), value=NOTHING)
    own = (token_words[:, :, None, None] == pairs).any(dim=3) & (token_words != NOTHING)[:, :, None]  # (B, U + 1, R')
    ends = valid_mask(batch.lengths + 1, own.shape[1]) ^ valid_mask(batch.lengths, own.shape[1])  # (B, U + 1)
    last = valid_mask(lengths, own.shape[2]) ^ valid_mask(lengths - 1, own.shape[2])  # (B, R')
    own |= ends[:, :, None] & last[:, None]
    paid = log_weights.masked_fill(~own, _NEVER).logsumexp(dim=2)
    return -paid.masked_fill(~own.any(dim=2), 0.0).sum()  # of some words nothing was heard


class SpellingValidation:
    """Judges a speller by its word error rate with greedy search, on speech as the recogniser hears it.

    Args:
        model: The speller in training.
        tokenizer: Its tokenizer.
        loaded: The recogniser.
        utterances: The validation set.
        encoder: Of words to phones, for the share of phones that are wrong; words that it lacks are not counted.

    Raises:
        ValueError: If there are no utterances.
    """

    def __init__(
        self,
        model: Speller,
        *,
        tokenizer: Tokenizer,
        loaded: LoadedModel,
        utterances: Sequence[Utterance],
        encoder: PhoneEncoder,
    ) -> None:
        if not utterances:
            raise ValueError("there are no utterances to choose the speller on; name a manifest in valid")
        self.model, self.tokenizer = model, tokenizer
        self.references = {each.id: each.text for each in utterances}
        self.batches: list[tuple[list[str], Tensor, Tensor]] = []
        self.phone_error_rate = self._hear(loaded, utterances, encoder)

    def __call__(self) -> Validation:
        """Spells and scores the validation set with the weights that the model has now."""
        self.model.eval()
        texts: dict[str, str] = {}
        for ids, runs, lengths in self.batches:
            found = spell(self.model, runs, lengths, beam_size=1, length_bonus=_LENGTH_BONUS)
            texts |= {id_: self.tokenizer.decode(own[0].tokens) for id_, own in zip(ids, found, strict=True)}
        score = evaluate.score(self.references, texts, num_draws=1)
        rows = [f"| {self.references[key]} | {texts[key]} |" for key in list(self.references)[:_NUM_SAMPLES]]
        return Validation(
            metric=score.wer,
            scalars={"valid/wer": score.wer, "valid/cer": score.cer},
            texts={"valid/transcripts": "\n".join(["| reference | hypothesis |", "| --- | --- |", *rows])},
        )

    @torch.inference_mode()
    def _hear(self, loaded: LoadedModel, utterances: Sequence[Utterance], encoder: PhoneEncoder) -> float:
        """Keeps what is heard of the utterances; returns the share of their phones that are wrong."""
        num_wrong = num_phones = 0
        for batch, encoding in encode_utterances(
            loaded.model, utterances, sample_rate=loaded.sample_rate, precision="auto"
        ):
            log_probs = loaded.model.phone_log_probs(encoding.frames)
            self.batches.append(([each.id for each in batch], *heard_runs(log_probs, encoding.lengths)))
            for utterance, own, length in zip(batch, log_probs, encoding.lengths.tolist(), strict=True):
                try:
                    phones = encoder.encode(utterance.text)
                except ValueError:
                    continue
                num_wrong += phone_errors(own[:length], phones)
                num_phones += len(phones)
        return num_wrong / max(1, num_phones)


def train_speller(
    config: SpellerTrainingConfig,
    *,
    loaded: LoadedModel,
    lexicon: Lexicon,
    texts: Sequence[Path],
    train: Sequence[Utterance],
    valid: Sequence[Utterance],
    tokenizer: Tokenizer,
    folder: Path,
    device: torch.device,
    tracker: Tracker,
    team: Team | None = None,
) -> Path:
    """Trains a speller, or goes on with a run that was interrupted.

    Args:
        config: What to learn, and how.
        loaded: The recogniser whose phones it reads, on the device.
        lexicon: How the words of texts and utterances are spoken.
        texts: What to learn from: text files with a sentence a line, and manifests.
        train: Utterances that tell what is heard of phones.
        valid: Utterances to choose the model on; none of them should be among those of `train`.
        tokenizer: Writes the words.
        folder: The run folder.
        device: Where to compute.
        tracker: Where curves go.
        team: The processes that train together; by default this one alone.

    Returns:
        The folder of the chosen model.

    Raises:
        FileNotFoundError: If a text, or the model that `init_from` names, is missing.
        ValueError: If settings, lexicon, texts and recogniser do not fit together, or the folder holds another run.
        Interrupted: After SIGINT or SIGTERM, with everything saved.
        TrainingError: If training cannot go on.
    """
    phones = loaded.config.phones
    if not phones:
        raise ValueError(
            f"{loaded.path}: this recogniser knows no phones; train one with lexicon=… and loss.phone_weight above 0"
        )
    refuse_other_speller(folder, config.speller, tokenizer, phones)
    team = team or Team()
    torch.manual_seed(config.seed)
    model = build_speller(config.speller, tokenizer, num_phones=len(phones))
    if config.init_from:
        _start_from(model, config, tokenizer)
    model.to(device)
    encoder = PhoneEncoder(lexicon, phones)
    train = [utterance for utterance in train if utterance.text]  # of silence there is nothing to learn
    # What does not fit shows before anything is heard, which takes minutes.
    transcripts = _transcripts(train, tokenizer)
    passages = read_passages(
        texts,
        tokenizer=tokenizer,
        lexicon=lexicon,
        phones=phones,
        lengths=[len(each.text.split()) for each in train],
        max_words=config.loader.max_words,
        seed=config.seed,
    )
    validation = SpellingValidation(model, tokenizer=tokenizer, loaded=loaded, utterances=valid, encoder=encoder)
    bank = _make_bank(config, loaded, train, encoder, validation, team=team)
    batches = _make_batches(config, passages, bank, transcripts, team=team, device=device)
    logger.info(
        "%d passages, %.2f M words; %d tokens; %.2f M parameters; on %s",
        len(passages), (passages.bounds[:, 1] - passages.bounds[:, 0]).sum() / 1e6, tokenizer.vocab_size,
        model.num_parameters() / 1e6, device,
    )  # fmt: skip
    team.draw_apart(config.seed)
    trainer = Trainer(
        SpellingTask(model, loss=config.loss),
        config=config.trainer,
        optim=config.optim,
        batches=batches,
        validate=validation,
        save=partial(save_speller, config=config.speller, tokenizer=tokenizer, phones=phones),
        tracker=tracker,
        folder=folder,
        device=device,
        sample_rate=None,
        team=team,
    )
    return trainer.run()


def _transcripts(utterances: Sequence[Utterance], tokenizer: Tokenizer) -> list[Lists]:
    """The tokens of each word of each utterance."""
    return [
        as_lists([own for word in each.text.split() for own in encode_all([replace(each, text=word)], tokenizer)])
        for each in utterances
    ]


def _make_bank(
    config: SpellerTrainingConfig,
    loaded: LoadedModel,
    train: Sequence[Utterance],
    encoder: PhoneEncoder,
    validation: SpellingValidation,
    *,
    team: Team,
) -> PhoneBank:
    """Hears the training utterances, and tells how well beside those that are validated on."""
    heard = hear(
        loaded,
        train,
        encoder,
        config.hearing,
        seed=config.seed,
        max_gb=_CACHE_GB / team.local_size,
        progress=team.leads,
    )
    logger.info(
        "%.1f %% of the phones wrong of %d utterances as heard for training, %.1f %% of %d to validate on; the nearer "
        "the better, by hearing.dropout and hearing.augment",
        100 * heard.phone_error_rate, len(heard.utterances),
        100 * validation.phone_error_rate, len(validation.references),
    )  # fmt: skip
    return PhoneBank(heard.utterances)


def _make_batches(
    config: SpellerTrainingConfig,
    passages: Passages,
    bank: PhoneBank,
    transcripts: Sequence[Lists],
    *,
    team: Team,
    device: torch.device,
) -> PassageBatches:
    """Deals the text out to this process."""
    return PassageBatches(
        passages,
        bank,
        transcripts,
        Dealing(
            max_batch_tokens=config.loader.max_batch_tokens,
            seed=config.seed,
            shard=team.rank,
            num_shards=team.size,
            num_workers=config.loader.num_workers,
            pin_memory=device.type == "cuda",
        ),
        real_share=config.loader.real_share,
        num_growing=config.loader.num_growing,
    )


def _start_from(model: Speller, config: SpellerTrainingConfig, tokenizer: Tokenizer) -> None:
    assert config.init_from is not None
    start = find_model(config.init_from)
    its_tokens, has = load_tokenizer_and_lm_config(start)
    if its_tokens.tokens != tokenizer.tokens:
        raise ValueError(f"init_from: {start} has other tokens; take its tokenizer")
    asked = named("speller", shape(asdict(config.speller)))
    refuse_other_sizes(start, has=named("speller", shape(asdict(has))), asked=asked)
    model.start_from(load_language_model(start).model)
    logger.info("the decoder starts from the language model %s", config.init_from)


def refuse_other_speller(folder: Path, config: SpellerConfig, tokenizer: Tokenizer, phones: Sequence[str]) -> None:
    """Stops a run whose folder holds checkpoints of another speller.

    Raises:
        ValueError: If sizes, phones or tokenizer differ; the first difference is named.
    """
    if checkpoint := last_checkpoint(folder):
        saved_tokenizer, saved, saved_phones = read_speller_shape(checkpoint)
        sizes = named("speller", asdict(saved)), named("speller", asdict(config))
        refuse_changes(
            folder, sizes=sizes, tokenizers=(saved_tokenizer, tokenizer), phones=(saved_phones, list(phones))
        )
