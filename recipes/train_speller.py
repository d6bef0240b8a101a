"""Trains a speller: python recipes/train_speller.py recognizer=runs/mini lexicon=lexicon.txt.xz 'train=[train.jsonl]'
'texts=[books.txt.xz]' init_from=runs/lm

It reads the phones that a recogniser hears and writes words; `recipes/evaluate.py decoding=spell` scores both together.
"""

from language_schema import TrainSpellerRecipe
from launching import launch, run_folder, write_config

from asr import checkpoint
from asr.checkpoint import find_model, read_tokenizer
from asr.data import manifest
from asr.data.corpora import hold_out
from asr.data.sentences import learn_pieces
from asr.pronunciation import read_lexicon
from asr.training.distributed import join
from asr.training.spelling import train_speller
from asr.training.tracking import make_tracker


def run(recipe: TrainSpellerRecipe) -> None:
    """Hears the utterances, reads the texts, trains, and prints where the chosen speller is."""
    folder = run_folder()
    team, device = join(recipe.device, num_threads=recipe.num_threads)
    if team.leads:
        write_config(recipe, folder)
    train = [utterance for path in recipe.train for utterance in manifest.read(path)]
    valid = [utterance for path in recipe.valid for utterance in manifest.read(path)]
    if not valid:
        kept, valid = hold_out({"train": train}, recipe.holdout_utterances, seed=recipe.seed)
        train = kept["train"]
    if recipe.init_from is not None:
        tokenizer = read_tokenizer(find_model(recipe.init_from))
    else:
        tokenizer = learn_pieces(recipe.texts, pieces=recipe.pieces)
    chosen = train_speller(
        recipe,
        loaded=checkpoint.load(recipe.recognizer, device=device),
        lexicon=read_lexicon(recipe.lexicon),
        texts=recipe.texts,
        train=train,
        valid=valid,
        tokenizer=tokenizer,
        folder=folder,
        device=device,
        tracker=make_tracker(recipe.tracking if team.leads else "none", folder),
        team=team,
    )
    if team.leads:
        print(f"decoding=spell decoding.speller={chosen}")


if __name__ == "__main__":
    launch("train_speller", run)
