"""Trains an n-gram model: python recipes/train_ngram.py 'texts=[books.txt.xz,train.jsonl]' output=lm.arpa.gz order=4"""

from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING
from schema import launch

from asr.decoding.arpa import write_arpa
from asr.decoding.ngram import NgramModel
from asr.ngrams.training import NgramTrainingConfig, check_output, measure, train
from asr.report import percent, table


@dataclass(slots=True, kw_only=True)
class TrainNgramRecipe(NgramTrainingConfig):
    """`recipes/train_ngram.py`: texts to an n-gram model.

    Attributes:
        texts: Text files, one sentence a line, plain, .gz or .xz, and manifests; all words count alike.
        output: The ARPA file, plain, .gz or .xz by its ending.
        valid: Texts or manifests to measure the perplexity on.
    """

    texts: list[Path] = MISSING
    output: Path = MISSING
    valid: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        NgramTrainingConfig.__post_init__(self)  # slots=True makes the class anew; a bare super() would not find it
        if not self.texts:
            raise ValueError("texts is empty; name at least one text or manifest")


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
