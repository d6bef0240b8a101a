"""A copy of a test set in noise: python recipes/disturb.py manifest=a.jsonl output=out disturbance.noise_dir=/noise"""

from launching import launch
from schema import DisturbRecipe
from tqdm import tqdm

from asr.data import manifest
from asr.data.disturbed import disturb


def run(recipe: DisturbRecipe) -> None:
    """Writes the audio and a manifest of the same name, and says how to evaluate on it."""
    utterances = manifest.read(recipe.manifest)
    talkers = manifest.read(recipe.talkers) if recipe.talkers else utterances
    audio = recipe.output / "audio"
    copies = disturb(utterances, recipe.disturbance, talkers=talkers, folder=audio, sample_rate=recipe.sample_rate)
    path = recipe.output / recipe.manifest.name
    manifest.write(path, list(tqdm(copies, "disturbing", len(utterances), unit="utt", disable=None, leave=False)))
    print(f"{len(utterances)} utterances; python recipes/evaluate.py model=… output=… manifests=[{path}]")


if __name__ == "__main__":
    launch("disturb", run)
