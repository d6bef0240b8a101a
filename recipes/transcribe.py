"""Transcribes audio files: python recipes/transcribe.py model=runs/an4 'inputs=[a.flac,folder]' output_dir=out"""

from launching import launch
from schema import TranscribeRecipe

from asr import checkpoint
from asr.devices import pick_device
from asr.transcribe import transcribe_files


def run(recipe: TranscribeRecipe) -> None:
    """Writes a transcript of every file; a bad file is named and does not stop the rest."""
    loaded = checkpoint.load(recipe.model, device=pick_device(recipe.device, num_threads=recipe.num_threads))
    failures = transcribe_files(
        loaded, recipe.inputs, format=recipe.format, output_dir=recipe.output_dir,
        decoding=recipe.decoding, tuned=recipe.tuned_search(), segmentation=recipe.segmentation,
        precision=recipe.precision,
    )  # fmt: skip
    if failures:
        raise ValueError(f"{len(failures)} of the files could not be transcribed")


if __name__ == "__main__":
    launch("transcribe", run)
