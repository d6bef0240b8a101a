"""Makes a pronunciation lexicon: python recipes/make_lexicon.py ngram=words.arpa.gz output=lexicon.txt.xz"""

from language_schema import MakeLexiconRecipe
from launching import launch

from asr.data.lexicons import distinct_words, espeak_lexicon
from asr.pronunciation import write_lexicon


def run(recipe: MakeLexiconRecipe) -> None:
    """Looks up all words of the texts and of the n-gram model, writes them, and says how many there are."""
    words = distinct_words(recipe.texts, ngram=recipe.ngram)
    lexicon = espeak_lexicon(words, language=recipe.language)
    write_lexicon(recipe.output, lexicon)
    phones = lexicon.phones(lexicon.pronunciations)
    silent = f", {len(words) - len(lexicon)} without a sound left out" if len(words) > len(lexicon) else ""
    print(f"{recipe.output}: {len(lexicon)} words of {len(phones)} phones{silent}")


if __name__ == "__main__":
    launch("make_lexicon", run)
