"""Trains an n-gram model: python recipes/train_ngram.py 'texts=[books.txt.xz,train.jsonl]' output=lm.arpa.gz order=4"""

from language_schema import TrainNgramRecipe
from launching import launch

from asr.decoding.arpa import write_arpa
from asr.decoding.ngram import NgramModel
from asr.ngrams.training import check_output, measure, train
from asr.report import percent, table


def run(recipe: TrainNgramRecipe) -> None:
    """Counts, estimates, prunes and writes; prints what the model holds and how well it predicts the `valid` texts."""
    check_output(recipe.output)
    trained = train(recipe.texts, recipe)
    write_arpa(recipe.output, trained.tables)
    rows = [["order", "n-grams", "discounts"]]
    for order, (ngrams, own) in enumerate(zip(trained.tables.tables, trained.discounts, strict=False), start=1):
        discounts = f"{own.one:.3f} {own.two:.3f} {own.more:.3f}" + ("" if own.estimated else " (not estimated)")
        rows.append([str(order), str(len(ngrams.words)), discounts])
    print(table(rows))
    unknown = percent(trained.num_unknown / trained.num_words)
    print(f"{trained.num_sentences} sentences, {trained.num_words} {recipe.unit}, {unknown} of them unknown")
    if recipe.valid:
        model = NgramModel(trained.tables)
        rows = [["valid", "perplexity", "unknown", recipe.unit]]
        for path in recipe.valid:
            found = measure(model, [path], recipe)
            rows.append([path.name, f"{found.perplexity:.1f}", percent(found.unknown_rate), str(found.num_words)])
        print(table(rows))
    print(f"{recipe.output}: {recipe.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    launch("train_ngram", run)
