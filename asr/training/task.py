"""Training a recogniser: its loss on a batch, its batches, and its validation."""

# B utterances, S samples, T frames, F mel bins, U tokens

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from asr import evaluate
from asr.augment import SpecAugment
from asr.checkpoint import ModelConfig, load_tokenizer_and_config
from asr.data.batching import BatchPlan, BucketSampler, Pauses
from asr.data.dataset import Batch, LoaderConfig, UtteranceDataset, load_utterance
from asr.data.manifest import Utterance
from asr.data.workers import made_ahead
from asr.decoding.search import DecodingConfig, Search
from asr.lattice_free import PhoneTrigrams
from asr.losses import Loss, LossConfig, PhoneOutput, has_gpu_kernels, joint_loss, teacher_forcing
from asr.nn.inspection import attention_maps
from asr.nn.model import Recognizer
from asr.recognition import recognize_utterances
from asr.tokenizer import EOS_ID, Tokenizer
from asr.training.distributed import Team
from asr.training.interfaces import LossInputs, Validation
from asr.training.same_run import last_checkpoint, named, refuse_changes
from asr.training.tracking import picture

_NUM_SAMPLES = 8  # transcripts shown at every validation


class RecognitionTask(nn.Module):
    """A recogniser with its loss and the augmentation of its features.

    Args:
        model: The recogniser.
        loss: Weights of the losses.
        spec_augment: Masks features in training.
        trigrams: Of the phones of the training texts; needed with `loss.phone_mmi_share`.
    """

    def __init__(
        self,
        model: Recognizer,
        *,
        loss: LossConfig,
        spec_augment: SpecAugment,
        trigrams: PhoneTrigrams | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.spec_augment = spec_augment
        self.trigrams = trigrams

    def forward(self, batch: Batch) -> Loss:
        """The loss of a batch on the model's device."""
        return self.compute(self.prepare(batch))

    def obstacle(self) -> str | None:
        """The CTC loss, where it waits for the GPU."""
        return None if has_gpu_kernels() else "without Triton, as PyTorch's CTC loss cannot be recorded"

    def prepare(self, batch: Batch) -> LossInputs:
        """Masked features (B, T, F), tokens (B, U) and their lengths (B,); of two views, all of one come first."""
        features, lengths = self.model.features(batch.waveforms, batch.lengths)
        tokens, token_lengths, num_tokens = batch.tokens, batch.token_lengths, batch.num_tokens
        if self.loss.consistency_weight:  # two views of each utterance, which differ in their masks and in dropout
            features, lengths = features.repeat(2, 1, 1), lengths.repeat(2)
            tokens, token_lengths, num_tokens = tokens.repeat(2, 1), token_lengths.repeat(2), 2 * num_tokens
        generator = torch.Generator().manual_seed(batch.seed)
        features = self.spec_augment(features, lengths, generator=generator)
        tensors = {"features": features, "lengths": lengths, "tokens": tokens, "token_lengths": token_lengths}
        if batch.phones is not None and batch.phone_lengths is not None:
            views = 2 if self.loss.consistency_weight else 1
            tensors["phones"] = batch.phones.repeat(views, 1)
            tensors["phone_lengths"] = batch.phone_lengths.repeat(views)
        return LossInputs(tensors, max(1, num_tokens))

    def compute(self, inputs: LossInputs) -> Loss:
        """The loss of what `prepare` made."""
        tokens, token_lengths = inputs.tensors["tokens"], inputs.tensors["token_lengths"]
        encoded = self.model.encoder(inputs.tensors["features"], inputs.tensors["lengths"])
        logits = None
        if self.model.decoder is not None and self.loss.ctc_weight < 1:
            read, _ = teacher_forcing(tokens, token_lengths)
            logits = self.model.decoder(read, encoded.frames, encoded.lengths)
        phones = None
        if "phones" in inputs.tensors:
            log_probs = self.model.phone_log_probs(encoded.frames)
            phones = PhoneOutput(
                log_probs, inputs.tensors["phones"], inputs.tensors["phone_lengths"], trigrams=self.trigrams
            )
        return joint_loss(
            self.loss,
            log_probs=self.model.ctc_log_probs(encoded.frames),
            intermediate_log_probs=[self.model.ctc_log_probs(each) for each in encoded.intermediate],
            frame_lengths=encoded.lengths,
            logits=logits,
            tokens=tokens,
            token_lengths=token_lengths,
            num_tokens=inputs.count,
            phones=phones,
        )


class UtteranceBatches:
    """The training batches of a dataset, from any place in an epoch on.

    Args:
        dataset: Makes the batches.
        config: Their size.
        speeds: Speeds to draw from.
        pauses: Draws how long pauses are; None for none.
        seed: Decides their order.
        pin_memory: Whether to put them into page-locked memory, for a GPU.
        team: The processes that train together; each has a shard of every epoch.
    """

    def __init__(
        self,
        dataset: UtteranceDataset,
        config: LoaderConfig,
        *,
        speeds: Sequence[float],
        pauses: Pauses | None = None,
        seed: int,
        pin_memory: bool,
        team: Team | None = None,
    ) -> None:
        self.dataset, self.config, self.speeds, self.pauses = dataset, config, speeds, pauses
        self.seed, self.pin_memory = seed, pin_memory
        self.team = team or Team()

    def sampler(self, epoch: int = 0, position: int = 0) -> BucketSampler:
        """The plans of all batches from there on."""
        return BucketSampler(
            [utterance.duration_s for utterance in self.dataset.utterances],
            max_batch_s=self.config.max_batch_s,
            max_batch_size=self.config.max_batch_size,
            speeds=self.speeds,
            pauses=self.pauses,
            seed=self.seed,
            start=(epoch, position),
            shard=self.team.rank,
            num_shards=self.team.size,
            padding_step_s=self.config.padding_step_s,
        )

    def start(self, epoch: int, position: int) -> Generator[tuple[BatchPlan, Batch], None, None]:
        """Batches without end, from a place in an epoch on."""
        sampler = self.sampler(epoch, position)
        return made_ahead(
            sampler.__iter__,
            self.dataset.__getitem__,
            num_workers=self.config.num_workers,
            pin_memory=self.pin_memory,
            seed=self.dataset.seed,
        )

    def largest(self) -> Batch:
        """The batch that needs most memory."""
        return self.dataset[self.sampler().largest()]


@dataclass(slots=True, kw_only=True)
class WordErrorValidation:
    """Judges a recogniser by its word error rate with greedy search; `metric` is the WER.

    Attributes:
        task: The recogniser in training.
        tokenizer: Its tokenizer.
        utterances: The validation set.
        sample_rate: Of the model, in Hz.
        max_batch_s: Most seconds of audio of a batch.
        team: The processes that train together; each recognises a part of the set.

    Raises:
        ValueError: If the validation set is empty.
    """

    task: RecognitionTask
    tokenizer: Tokenizer
    utterances: list[Utterance]
    sample_rate: int
    max_batch_s: float
    team: Team = field(default_factory=Team)

    def __post_init__(self) -> None:
        if not self.utterances:
            raise ValueError(
                "there are no utterances to choose the model on; name sets in data.valid, or keep some of the training "
                "sets back with data.holdout_utterances"
            )

    def __call__(self) -> Validation:
        """Recognises and scores the validation set with the weights that the model has now."""
        self.task.eval()
        greedy = Search(self.task.model, DecodingConfig(mode="greedy"))
        found = recognize_utterances(
            self.task.model,
            self.utterances[self.team.rank :: self.team.size],
            {"greedy": greedy},
            sample_rate=self.sample_rate,
            max_batch_s=self.max_batch_s,
        )
        own = {utterance.id: self.tokenizer.decode(each["greedy"].best.tokens) for utterance, each in found}
        texts = {key: text for part in self.team.gather(own) for key, text in part.items()}
        references = {utterance.id: utterance.text for utterance in self.utterances}
        score = evaluate.score(references, texts, num_draws=1)
        rows = [f"| {references[key]} | {texts[key]} |" for key in list(references)[:_NUM_SAMPLES]]
        table = "\n".join(["| reference | hypothesis |", "| --- | --- |", *rows])
        waveform = load_utterance(self.utterances[0], sample_rate=self.sample_rate)
        return Validation(
            metric=score.wer,
            scalars={"valid/wer": score.wer, "valid/cer": score.cer},
            texts={"valid/transcripts": table},
            images=pictures(self.task, waveform, tokens=self._tokens(self.utterances[0].text)),
        )

    def _tokens(self, text: str) -> list[int]:
        """Tokens of a text; none where it has a character that the training texts lack, which is no fault here."""
        try:
            return self.tokenizer.encode(text)
        except ValueError:
            return []


def refuse_other_run(folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Stops a run whose folder holds checkpoints of another model.

    Raises:
        ValueError: If sizes, features or tokenizer differ; the first difference is named.
    """
    if checkpoint := last_checkpoint(folder):
        saved_tokenizer, saved = load_tokenizer_and_config(checkpoint)
        before, now = (
            {
                key: value
                for part in ("features", "encoder", "decoder")
                for key, value in named(part, asdict(getattr(each, part))).items()
            }
            for each in (saved, config)
        )
        refuse_changes(
            folder,
            sizes=(before, now),
            tokenizers=(saved_tokenizer, tokenizer),
            phones=(saved.phones, config.phones),
        )


@torch.no_grad()
def pictures(task: RecognitionTask, waveform: Tensor, *, tokens: list[int]) -> dict[str, Tensor]:
    """What the model sees and where it looks, for one utterance.

    Args:
        task: The recogniser, in eval mode.
        waveform: (S,).
        tokens: Of its transcript.

    Returns:
        Pictures (3, height, width) by name: features as they are and masked as in training, mean attention over the
        heads of the last encoder block, and of the last decoder block to the encoder.
    """
    model = task.model
    device = next(model.parameters()).device
    features, lengths = model.features(waveform[None].to(device), torch.tensor([len(waveform)], device=device))
    task.spec_augment.train()
    masked = task.spec_augment(features, lengths, generator=torch.Generator().manual_seed(0))
    task.spec_augment.eval()
    images = {
        "features/plain": picture(features[0].T.flip(0), scale=2),
        "features/augmented": picture(masked[0].T.flip(0), scale=2),
    }
    maps = attention_maps(model, features, lengths, torch.tensor([[EOS_ID, *tokens]], device=device))
    images["attention/encoder"] = picture(maps.encoder[-1][0].mean(0), scale=3)
    if maps.decoder:
        images["attention/decoder"] = picture(maps.decoder[-1][0].mean(0), scale=3)
    return images
