"""Training a language model: its loss on a batch, its validation, and how all is put together."""

# B sentences, U tokens

import logging
import math
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from asr.checkpoint import fill_weights, find_model, shape
from asr.data.sentence_batches import SentenceBatch, SentenceBatches
from asr.data.sentences import SentenceLoaderConfig, Sentences
from asr.data.text_batches import Dealing
from asr.decoding.neural_lm import sequence_log_probs
from asr.lm_checkpoint import build_language_model, load_tokenizer_and_lm_config, save_language_model
from asr.losses import Loss, attention_loss, teacher_forcing
from asr.nn.lm import LanguageModel, LanguageModelConfig
from asr.tokenizer import Tokenizer
from asr.training.distributed import Team
from asr.training.interfaces import Validation
from asr.training.optim import OptimConfig
from asr.training.same_run import last_checkpoint, named, refuse_changes, refuse_other_sizes
from asr.training.tracking import Tracker
from asr.training.trainer import Trainer, TrainerConfig

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class LanguageTrainingConfig:
    """All that decides what a language model learns, beside its text and its tokenizer.

    Attributes:
        seed: Of the first weights and the order of the sentences.
        lm: Sizes.
        loader: How sentences form batches.
        optim: The optimiser.
        trainer: The loop.
        init_from: Folder of a language model, or of the run that made it, whose weights training starts from, in place
            of random ones; sizes and tokens must be those of it.
    """

    seed: int = 1
    init_from: Path | None = None
    lm: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    loader: SentenceLoaderConfig = field(default_factory=SentenceLoaderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")


class LanguageTask(nn.Module):
    """A language model with its loss: the cross-entropy of every next token, the end of sentence included."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: SentenceBatch) -> Loss:
        """The loss of a batch on the model's device, in nats a token."""
        inputs, targets = teacher_forcing(batch.tokens, batch.lengths)  # (B, U + 1) each
        total = attention_loss(self.model(inputs), targets, label_smoothing=0.0)
        return Loss(total, batch.num_tokens, {})


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a language model predicts a text; each sentence's end counts as one more word and one more token.

    Attributes:
        num_sentences: Sentences.
        num_words: Words, without ends.
        num_tokens: Tokens, without ends.
        per_word: exp of the negative log-likelihood divided by words and ends; comparable between tokenizers.
        per_token: The same, divided by tokens and ends.
    """

    num_sentences: int
    num_words: int
    num_tokens: int
    per_word: float
    per_token: float


def perplexity(model: LanguageModel, sentences: Sentences, *, max_batch_tokens: int) -> Perplexity:
    """Measures a language model in eval mode on sentences, at most so many tokens at once."""
    sequences = [sentences[index].tolist() for index in range(len(sentences))]
    nats = -float(sequence_log_probs(model, sequences, max_batch_tokens=max_batch_tokens).sum())
    num_words, num_tokens = int(sentences.num_words.sum()), int(sentences.lengths.sum())
    return Perplexity(
        num_sentences=len(sentences),
        num_words=num_words,
        num_tokens=num_tokens,
        per_word=_exp(nats / (num_words + len(sentences))),
        per_token=_exp(nats / (num_tokens + len(sentences))),
    )


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf  # where math.exp gives up


@dataclass(slots=True, kw_only=True)
class PerplexityValidation:
    """Judges a language model by its perplexity a word, which is `metric`.

    Attributes:
        model: The model in training.
        sentences: The validation text.
        max_batch_tokens: Most tokens of a batch, padding included.
    """

    model: LanguageModel
    sentences: Sentences
    max_batch_tokens: int

    def __call__(self) -> Validation:
        """Scores the validation text with the weights that the model has now."""
        self.model.eval()
        found = perplexity(self.model, self.sentences, max_batch_tokens=self.max_batch_tokens)
        scalars = {"valid/word_perplexity": found.per_word, "valid/token_perplexity": found.per_token}
        return Validation(metric=found.per_word, scalars=scalars)


def train_language_model(
    config: LanguageTrainingConfig,
    *,
    train: Sentences,
    valid: Sentences,
    tokenizer: Tokenizer,
    folder: Path,
    device: torch.device,
    tracker: Tracker,
    team: Team | None = None,
) -> Path:
    """Trains a language model, or goes on with a run that was interrupted.

    Args:
        config: What to learn, and how.
        train: Sentences to learn from.
        valid: Sentences to choose the model on.
        tokenizer: Made the tokens of both.
        folder: The run folder.
        device: Where to compute.
        tracker: Where curves go.
        team: The processes that train together; by default this one alone.

    Returns:
        The folder of the chosen model.

    Raises:
        FileNotFoundError: If there is no such model as `init_from` names.
        ValueError: If the folder holds another run, or `init_from` names a model of other sizes.
        Interrupted: After SIGINT or SIGTERM, with everything saved.
        TrainingError: If training cannot go on.
    """
    refuse_other_model(folder, config.lm, tokenizer)
    team = team or Team()
    torch.manual_seed(config.seed)
    model = build_language_model(config.lm, tokenizer)
    if config.init_from:
        start = find_model(config.init_from)
        has = named("lm", shape(asdict(load_tokenizer_and_lm_config(start)[1])))
        refuse_other_sizes(start, has=has, asked=named("lm", shape(asdict(config.lm))))
        fill_weights(model, start)
        logger.info("starting from the weights of %s", config.init_from)
    model.to(device)
    team.draw_apart(config.seed)
    max_batch_tokens = config.loader.max_batch_tokens
    batches = SentenceBatches(
        train,
        Dealing(
            max_batch_tokens=max_batch_tokens,
            seed=config.seed,
            shard=team.rank,
            num_shards=team.size,
            num_workers=config.loader.num_workers,
            pin_memory=device.type == "cuda",
        ),
    )
    _log_sizes(train, batches, tokenizer, model)
    trainer = Trainer(
        LanguageTask(model),
        config=config.trainer,
        optim=config.optim,
        batches=batches,
        validate=PerplexityValidation(model=model, sentences=valid, max_batch_tokens=max_batch_tokens),
        save=partial(save_language_model, config=config.lm, tokenizer=tokenizer),
        tracker=tracker,
        folder=folder,
        device=device,
        sample_rate=None,
        team=team,
    )
    return trainer.run()


def refuse_other_model(folder: Path, config: LanguageModelConfig, tokenizer: Tokenizer) -> None:
    """Stops a run whose folder holds checkpoints of another language model.

    Raises:
        ValueError: If sizes or tokenizer differ; the first difference is named.
    """
    if checkpoint := last_checkpoint(folder):
        saved_tokenizer, saved = load_tokenizer_and_lm_config(checkpoint)
        sizes = named("lm", asdict(saved)), named("lm", asdict(config))
        refuse_changes(folder, sizes=sizes, tokenizers=(saved_tokenizer, tokenizer))


def _log_sizes(train: Sentences, batches: SentenceBatches, tokenizer: Tokenizer, model: LanguageModel) -> None:
    logger.info(
        "%d sentences, %.2f M words, %.2f M tokens, %.1f %% padding; %d tokens; %.2f M parameters; on %s",
        len(train),
        train.num_words.sum() / 1e6,
        train.lengths.sum() / 1e6,
        100 * batches.padding_share(0),
        tokenizer.vocab_size,
        model.num_parameters() / 1e6,
        model.output_bias.device,
    )
