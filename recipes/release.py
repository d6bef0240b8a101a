"""Makes a folder to release of a trained run: python recipes/release.py model=runs/an4 output=released ngram=lm.arpa"""

import torch
from launching import launch
from model_card import card_text
from release_parts import choose_tuned, read_own_lexicon, read_own_neural, refuse_output
from schema import ReleaseRecipe

from asr import checkpoint
from asr.decoding.arpa import read_ngram
from asr.decoding.compact_ngram import write_compact
from asr.lm_checkpoint import save_language_model
from asr.model_figures import collect_figures, files_of, size, write_figures
from asr.pronunciation import write_lexicon
from asr.report import table
from asr.search_choice import OWN_LEXICON, OWN_NEURAL, OWN_NGRAM
from asr.variants import TUNED_FILE, DefaultSearch, write_tuned


def run(recipe: ReleaseRecipe) -> None:
    """Writes weights, tokenizer, language model, tuned searches, figures and card; prints files and sizes."""
    loaded = checkpoint.load(recipe.model)
    refuse_output(recipe.output, loaded.path)
    figures = collect_figures(recipe.results)
    tuned = choose_tuned(recipe, recipe.tuned or loaded.path / TUNED_FILE)
    default = DefaultSearch(mode=recipe.mode, beam_size=recipe.beam_size)
    # Read before the output is replaced: it may hold this very file.
    tables = read_ngram(recipe.ngram) if recipe.ngram else None
    lexicon = read_own_lexicon(recipe, loaded) if recipe.lexicon else None
    neural = read_own_neural(recipe.neural, loaded) if recipe.neural else None
    dtype = getattr(torch, recipe.precision)
    checkpoint.save(
        recipe.output, loaded.model.state_dict(), config=loaded.config, tokenizer=loaded.tokenizer,
        training=loaded.training, dtype=dtype,
    )  # fmt: skip
    if neural:
        save_language_model(
            recipe.output / OWN_NEURAL, neural.model.state_dict(), config=neural.config, tokenizer=neural.tokenizer,
            training=neural.training, dtype=dtype,
        )  # fmt: skip
    if tables:
        write_compact(recipe.output / OWN_NGRAM, tables)
    if lexicon:
        write_lexicon(recipe.output / OWN_LEXICON, lexicon)
    write_tuned(recipe.output / TUNED_FILE, tuned, about={}, default=default)
    if figures:
        write_figures(recipe.output, figures)
    card = card_text(recipe.card, loaded, default=default, figures=figures, folder=recipe.output)
    (recipe.output / "README.md").write_text(card, encoding="utf-8")
    files = files_of(recipe.output)
    total = sum(file.stat().st_size for file in files)
    rows = [[str(file.relative_to(recipe.output)), size(file)] for file in files]
    print(table([*rows, ["together", f"{total / 1e6:.1f} MB"]]))
    print(f"asr transcribe speech.flac --model {recipe.output}")


if __name__ == "__main__":
    launch("release", run)
