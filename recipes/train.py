"""Trains a recogniser and evaluates it: python recipes/train.py experiment=an4 data.root=/corpora

On several GPUs: torchrun --nproc-per-node=4 recipes/train.py experiment=librispeech_960 data.root=/corpora
"""

from launching import launch, run_folder, write_config
from schema import TrainRecipe

from asr import checkpoint, report
from asr.data import manifest
from asr.evaluation_run import evaluate_manifest
from asr.tokenizer import build_tokenizer
from asr.training.distributed import join
from asr.training.fine_tuning import shared_tokenizer
from asr.training.run import train_recognizer
from asr.training.tracking import make_tracker


def run(recipe: TrainRecipe) -> None:
    """Prepares the corpus, trains, and evaluates the chosen model on the test sets."""
    recipe.check_together()
    folder = run_folder()
    team, device = join(recipe.device, num_threads=recipe.num_threads)
    if team.leads:
        write_config(recipe, folder)
    splits = team.from_first(recipe.data.prepare)
    train = [utterance for path in splits.train for utterance in manifest.read(path)]
    valid = [utterance for path in splits.valid for utterance in manifest.read(path)]
    if recipe.init_from:
        tokenizer = shared_tokenizer(recipe.init_from, recipe.tokenizer)
    else:
        tokenizer = build_tokenizer(recipe.tokenizer, (utterance.text for utterance in train))
    model = train_recognizer(
        recipe,
        train=train,
        valid=valid,
        tokenizer=tokenizer,
        folder=folder,
        device=device,
        tracker=make_tracker(recipe.tracking if team.leads else "none", folder),
        team=team,
    )
    if not team.leads:
        return
    loaded = checkpoint.load(model, device=device)
    scores = {}
    for path in splits.test:
        (found,) = evaluate_manifest(loaded, path, decodings={"only": recipe.decoding}, output=folder).values()
        scores[path.stem] = found[0]
    if scores:
        print(report.summary_table(scores))


if __name__ == "__main__":
    launch("train", run)
