"""Trains a recogniser and evaluates it: python recipes/train.py experiment=an4 data.root=/corpora"""

import logging
from functools import partial
from pathlib import Path

import torch
from schema import TrainRecipe, launch, run_folder, write_config

from asr import checkpoint, report
from asr.augment import SpecAugment
from asr.data import manifest
from asr.data.dataset import UtteranceDataset, preload, usable_utterances
from asr.devices import pick_device
from asr.evaluation_run import evaluate_manifest
from asr.tokenizer import Tokenizer, build_tokenizer
from asr.training.recognition import RecognitionTask, UtteranceBatches, WordErrorValidation, refuse_other_run
from asr.training.tracking import make_tracker
from asr.training.trainer import Trainer

logger = logging.getLogger(__name__)


def run(recipe: TrainRecipe) -> None:
    """Prepares the corpus, trains, and evaluates the chosen model on the test sets."""
    folder, device = run_folder(), pick_device(recipe.device, num_threads=recipe.num_threads)
    write_config(recipe, folder / "config.yaml")
    splits = recipe.data.prepare()
    texts = [utterance.text for path in splits.train for utterance in manifest.read(path)]
    tokenizer = build_tokenizer(recipe.tokenizer, texts)
    model_folder = train(recipe, splits.train, splits.valid, tokenizer, folder, device)
    loaded = checkpoint.load(model_folder, device=device)
    scores = {}
    for path in splits.test:
        scores[path.stem], _ = evaluate_manifest(loaded, path, decoding=recipe.decoding, output=folder)
    if scores:
        print(report.summary_table(scores))


def train(
    recipe: TrainRecipe, train_sets: list[Path], valid_sets: list[Path], tokenizer: Tokenizer, folder: Path,
    device: torch.device,
) -> Path:  # fmt: skip
    """Trains, or goes on with a run that was interrupted; returns the folder of the chosen model."""
    torch.manual_seed(recipe.seed)
    config = checkpoint.ModelConfig(features=recipe.features, encoder=recipe.encoder, decoder=recipe.decoder)
    refuse_other_run(folder, config, tokenizer)
    model = checkpoint.build_model(config, tokenizer).to(device)
    spec_augment = SpecAugment(recipe.augment.spec, frame_s=config.features.hop_ms / 1000)
    task = RecognitionTask(model, loss=recipe.loss, spec_augment=spec_augment)
    rate = config.features.sample_rate
    utterances = usable_utterances(
        [utterance for path in train_sets for utterance in manifest.read(path)], tokenizer, recipe.loader,
        num_frames=lambda duration_s: model.num_frames(int(duration_s * rate)), fastest=max(recipe.augment.speeds),
    )  # fmt: skip
    hours = sum(utterance.duration_s for utterance in utterances) / 3600
    logger.info("%d utterances, %.2f hours; %d tokens; %.2f M parameters; on %s", len(utterances), hours,
                tokenizer.vocab_size, model.num_parameters() / 1e6, device)  # fmt: skip
    dataset = UtteranceDataset(
        utterances, tokenizer=tokenizer, sample_rate=rate, augment=recipe.augment, seed=recipe.seed,
        cache=preload(utterances, sample_rate=rate, max_gb=recipe.loader.cache_gb),
    )  # fmt: skip
    trainer = Trainer(
        task, config=recipe.trainer, optim=recipe.optim, folder=folder, device=device, sample_rate=rate,
        batches=UtteranceBatches(dataset, recipe.loader, speeds=recipe.augment.speeds, seed=recipe.seed,
                                 pin_memory=device.type == "cuda"),
        validate=WordErrorValidation(
            task=task, tokenizer=tokenizer, sample_rate=rate, max_batch_s=recipe.loader.max_batch_s,
            utterances=[utterance for path in valid_sets for utterance in manifest.read(path)],
        ),
        save=partial(checkpoint.save, config=config, tokenizer=tokenizer),
        tracker=make_tracker(recipe.tracking, folder),
    )  # fmt: skip
    return trainer.run()


if __name__ == "__main__":
    launch("train", run)
