"""Trains a language model: python recipes/train_lm.py 'texts=[books.txt.xz]' pieces=4000 name=books"""

from language_schema import TrainLmRecipe
from launching import launch, run_folder, write_config

from asr.checkpoint import find_model, read_tokenizer
from asr.data.sentences import learn_pieces, read_sentences
from asr.devices import pick_device
from asr.lm_checkpoint import load_language_model
from asr.training.language import perplexity, train_language_model
from asr.training.tracking import make_tracker


def run(recipe: TrainLmRecipe) -> None:
    """Reads the texts, trains, and prints the perplexity of the chosen model."""
    folder, device = run_folder(), pick_device(recipe.device, num_threads=recipe.num_threads)
    write_config(recipe, folder)
    if (known := recipe.recognizer or recipe.init_from) is not None:
        tokenizer = read_tokenizer(find_model(known))
    else:
        tokenizer = learn_pieces(recipe.texts, pieces=recipe.pieces)
    train = read_sentences(recipe.texts, tokenizer, recipe.loader)
    if recipe.valid:
        valid = read_sentences(recipe.valid, tokenizer, recipe.loader)
    else:
        train, valid = train.held_out(recipe.holdout_sentences, seed=recipe.seed)
    tracker = make_tracker(recipe.tracking, folder)
    chosen = train_language_model(
        recipe, train=train, valid=valid, tokenizer=tokenizer, folder=folder, device=device, tracker=tracker
    )
    loaded = load_language_model(chosen, device=device)
    found = perplexity(loaded.model, valid, max_batch_tokens=recipe.loader.max_batch_tokens)
    print(f"{found.num_sentences} validation sentences, {found.num_words} words: ", end="")
    print(f"perplexity {found.per_word:.1f} a word, {found.per_token:.2f} a token; {chosen}")


if __name__ == "__main__":
    launch("train_lm", run)
