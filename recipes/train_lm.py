"""Trains a language model: python recipes/train_lm.py 'texts=[books.txt.xz]' recognizer=runs/an4 name=books"""

from dataclasses import dataclass, field
from pathlib import Path

import schema
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING
from schema import launch, run_folder, write_config

from asr.checkpoint import find_model, read_tokenizer
from asr.data.sentences import read_sentences
from asr.devices import pick_device
from asr.lm_checkpoint import load_language_model
from asr.training.language import LanguageTrainingConfig, perplexity, train_language_model
from asr.training.tracking import make_tracker


@dataclass(slots=True, kw_only=True)
class TrainLmRecipe(LanguageTrainingConfig):
    """`recipes/train_lm.py`: text to a language model and its perplexity.

    Attributes:
        name: Names the run and its folder, runs/NAME.
        recognizer: The model folder or run folder of the recogniser that it is for: it has the same tokens.
        texts: What to learn from: text files (.gz and .xz too), manifests (.jsonl).
        valid: What to choose the model on.
        holdout_sentences: Where `valid` names nothing, so many sentences of `texts` are kept back for it.
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`, `cuda:1`.
        num_threads: Processor threads of the model; 0 takes all.
        tracking: `tensorboard`, `wandb` or `none`.
    """

    name: str = MISSING
    recognizer: Path = MISSING
    texts: list[Path] = MISSING
    valid: list[Path] = field(default_factory=list)
    holdout_sentences: int = 2000
    device: str = "auto"
    num_threads: int = 0
    tracking: str = "tensorboard"

    def __post_init__(self) -> None:
        LanguageTrainingConfig.__post_init__(self)  # slots=True makes the class anew; a bare super() would not find it
        if self.tracking not in schema.TRACKERS:
            raise ValueError(f"tracking is {self.tracking!r}; choose one of {', '.join(schema.TRACKERS)}")


def run(recipe: TrainLmRecipe) -> None:
    """Reads the texts, trains, and prints the perplexity of the chosen model."""
    folder, device = run_folder(), pick_device(recipe.device, num_threads=recipe.num_threads)
    write_config(recipe, folder)
    tokenizer = read_tokenizer(find_model(recipe.recognizer))
    train = read_sentences(recipe.texts, tokenizer, recipe.loader)
    if recipe.valid:
        valid = read_sentences(recipe.valid, tokenizer, recipe.loader)
    else:
        train, valid = train.held_out(recipe.holdout_sentences, seed=recipe.seed)
    tracker = make_tracker(recipe.tracking, folder)
    chosen = train_language_model(
        recipe, train=train, valid=valid, tokenizer=tokenizer, folder=folder, device=device, tracker=tracker
    )
    loaded = load_language_model(chosen, device=device)
    found = perplexity(loaded.model, valid, max_batch_tokens=recipe.loader.max_batch_tokens)
    print(f"{found.num_sentences} validation sentences, {found.num_words} words: ", end="")
    print(f"perplexity {found.per_word:.1f} a word, {found.per_token:.2f} a token; {chosen}")


def register() -> None:
    """Makes the recipe's dataclass known to Hydra."""
    ConfigStore.instance().store(name=TrainLmRecipe.__name__, node=TrainLmRecipe)


if __name__ == "__main__":
    register()
    launch("train_lm", run)
