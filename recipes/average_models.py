"""Averages the weights of models: python recipes/average_models.py 'models=[runs/a,runs/b]' output=runs/ab

Runs that started from the same weights often have an average that is better than each of them (Wortsman et al. 2022,
"Model soups").
"""

from launching import launch
from schema import AverageModelsRecipe

from asr import checkpoint


def run(recipe: AverageModelsRecipe) -> None:
    """Writes the weighted mean as a model folder."""
    loaded = [checkpoint.load(path) for path in recipe.models]
    first, *others = loaded
    for path, other in zip(recipe.models[1:], others, strict=True):
        for what, own, its in (
            ("tokens", first.tokenizer.tokens, other.tokenizer.tokens),
            ("phones", first.config.phones, other.config.phones),
        ):
            if own != its:
                raise ValueError(f"{path} has other {what} than {recipe.models[0]}; only like models can be averaged")
    try:
        mean = checkpoint.average([each.model.state_dict() for each in loaded], shares=recipe.shares or None)
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, recipe.models))}: {error}") from None
    parts = [
        {"model": str(path), "share": share, "training": each.training}
        for path, share, each in zip(recipe.models, recipe.shares or [1.0] * len(loaded), loaded, strict=True)
    ]
    training = {key: sum(each.training.get(key, 0) for each in loaded) for key in ("steps", "seconds")}
    folder = recipe.output / "model"
    checkpoint.save(
        folder, mean, config=first.config, tokenizer=first.tokenizer, training={**training, "average_of": parts}
    )
    print(folder)


if __name__ == "__main__":
    launch("average_models", run)
