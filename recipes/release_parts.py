"""What goes into a released folder, and what must not be replaced by it."""

from dataclasses import replace
from pathlib import Path

from schema import ReleaseRecipe

from asr.checkpoint import LoadedModel
from asr.decoding.neural_lm import SentenceScorer
from asr.decoding.search import DecodingConfig, FusionConfig
from asr.lm_checkpoint import LoadedLanguageModel, load_language_model
from asr.pronunciation import Lexicon, read_lexicon
from asr.recognition import SearchBuilder
from asr.search_choice import SECOND_PASS
from asr.variants import TunedSearch, read_tuned


def refuse_output(output: Path, model: Path) -> None:
    """Checks that the folder that gets replaced is not one that is needed.

    Raises:
        ValueError: If it holds the model that is released, or something that is no model.
    """
    if output.resolve() in (model.resolve(), *model.resolve().parents):
        raise ValueError(f"output is {output}, which holds the model itself; name another folder")
    if output.exists() and not (output / "config.json").is_file() and any(output.iterdir()):
        raise ValueError(f"{output} holds something that is no model; name another folder, or remove it")


def choose_tuned(recipe: ReleaseRecipe, source: Path) -> dict[str, TunedSearch]:
    """What was tuned for the ways to search that work with the released files alone, by name.

    Raises:
        ValueError: If nothing was tuned for the search that the model is released with.
    """
    lms = [
        "+".join(parts)
        for parts in ([], ["ngram"], ["neural"], ["ngram", "neural"])
        if (recipe.ngram or "ngram" not in parts) and (recipe.neural or "neural" not in parts)
    ]
    found = read_tuned(source) if source.is_file() else {}
    own = {"ngram": recipe.ngram, "neural": recipe.neural if recipe.mode in SECOND_PASS else None}
    default = "+".join([recipe.mode, *(name for name, path in own.items() if path)])
    if recipe.mode != "greedy" and default not in found:
        raise ValueError(f"{source} holds nothing of {default}; tune it with recipes/tune_decoding.py, or set mode=")
    tuned = {}
    for name, each in found.items():
        if name.partition("+")[2] in lms and name != "spell" and (recipe.lexicon or not name.startswith("lexicon")):
            manifest = Path(each.development.get("manifest", "")).name  # its folders mean nothing elsewhere
            tuned[name] = replace(each, development=each.development | {"manifest": manifest})
    return tuned


def read_own_neural(path: Path, loaded: LoadedModel) -> LoadedLanguageModel:
    """The neural language model, if it can score what the recogniser writes.

    Raises:
        ValueError: If it lacks a character.
    """
    neural = load_language_model(path)
    try:
        SentenceScorer(neural.model, neural.tokenizer, loaded.tokenizer)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return neural


def read_own_lexicon(recipe: ReleaseRecipe, loaded: LoadedModel) -> Lexicon:
    """The pronunciations, if model and n-gram model can search with them; see `SearchBuilder.build`."""
    config = DecodingConfig(mode="lexicon", lexicon=recipe.lexicon, lm=FusionConfig(ngram=recipe.ngram))
    SearchBuilder(loaded).build(config)
    return read_lexicon(recipe.lexicon)
