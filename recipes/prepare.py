"""Turns a corpus into manifests: python recipes/prepare.py data=librispeech data.root=/corpora data.download=true"""

from launching import launch
from schema import PrepareRecipe

from asr.data import manifest
from asr.report import table


def run(recipe: PrepareRecipe) -> None:
    """Prepares the corpus and prints what its sets hold."""
    splits = recipe.data.prepare()
    rows = [["set", "use", "utterances", "hours", "words", "speakers"]]
    for use in ("train", "valid", "test"):
        for path in getattr(splits, use):
            utterances = manifest.read(path)
            hours = sum(utterance.duration_s for utterance in utterances) / 3600
            words = sum(len(utterance.text.split()) for utterance in utterances)
            speakers = len({utterance.speaker for utterance in utterances})
            rows.append([path.stem, use, str(len(utterances)), f"{hours:.2f}", str(words), str(speakers)])
    print(table(rows))
    print(f"manifests in {recipe.data.manifests}")


if __name__ == "__main__":
    launch("prepare", run)
