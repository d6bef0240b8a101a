"""Averages the weights of models: python recipes/average_models.py 'models=[runs/a,runs/b]' output=runs/ab

Runs that started from the same weights often have an average that is better than each of them (Wortsman et al. 2022,
"Model soups"): recognisers, and language models, one of which went on from the other (`train_lm.py init_from=…`).
"""

from collections.abc import Sequence
from dataclasses import asdict

from launching import launch
from schema import AverageModelsRecipe

from asr import checkpoint
from asr.checkpoint import LoadedModel
from asr.lm_checkpoint import LoadedLanguageModel, load_language_model, save_language_model


def run(recipe: AverageModelsRecipe) -> None:
    """Writes the weighted mean as a model folder."""
    is_language = "lm" in checkpoint.read_description(checkpoint.find_model(recipe.models[0]))
    loaded = [load_language_model(path) if is_language else checkpoint.load(path) for path in recipe.models]
    first, *others = loaded
    for path, other in zip(recipe.models[1:], others, strict=True):
        for what, own, its in (
            ("tokens", first.tokenizer.tokens, other.tokenizer.tokens),
            ("phones", *(getattr(each.config, "phones", None) for each in (first, other))),
            ("sizes", *(checkpoint.shape(asdict(each.config)) for each in (first, other))),
        ):
            if own != its:
                raise ValueError(f"{path} has other {what} than {recipe.models[0]}; only like models can be averaged")
    try:
        mean = checkpoint.average([each.model.state_dict() for each in loaded], shares=recipe.shares or None)
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, recipe.models))}: {error}") from None
    training = _training(recipe, loaded)
    folder = recipe.output / "model"
    if isinstance(first, LoadedLanguageModel):
        save_language_model(folder, mean, config=first.config, tokenizer=first.tokenizer, training=training)
    else:
        checkpoint.save(folder, mean, config=first.config, tokenizer=first.tokenizer, training=training)
    print(folder)


def _training(recipe: AverageModelsRecipe, loaded: Sequence[LoadedModel | LoadedLanguageModel]) -> dict[str, object]:
    """What is known of the training of all, and what became of it."""
    parts = [
        {"model": str(path), "share": share, "training": each.training}
        for path, share, each in zip(recipe.models, recipe.shares or [1.0] * len(loaded), loaded, strict=True)
    ]
    sums = {key: sum(each.training.get(key, 0) for each in loaded) for key in ("steps", "seconds")}
    return {**sums, "average_of": parts}


if __name__ == "__main__":
    launch("average_models", run)
