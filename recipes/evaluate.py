"""Scores a model on test sets: python recipes/evaluate.py model=runs/an4 data=an4 data.root=/corpora decoding=joint"""

from launching import launch
from schema import EvaluateRecipe

from asr import checkpoint, report
from asr.decoding.hotwords import read_hotwords
from asr.devices import pick_device
from asr.evaluation_run import evaluate_manifest


def run(recipe: EvaluateRecipe) -> None:
    """Recognises and scores every set; writes results.json, transcripts.txt and errors.txt in a folder of its name."""
    searches = recipe.searches()
    loaded = checkpoint.load(recipe.model, device=pick_device(recipe.device, num_threads=recipe.num_threads))
    scores, speeds = {}, []
    manifests = recipe.manifests or (recipe.data.prepare().test if recipe.data else [])
    for path in manifests:
        found = evaluate_manifest(
            loaded,
            path,
            decodings={name: config for name, (config, _) in searches.items()},
            calibrations={name: tuned.calibration for name, (_, tuned) in searches.items()},
            listed=list(read_hotwords(recipe.listed_words)) if recipe.listed_words else (),
            output=recipe.output,
            max_batch_s=recipe.max_batch_s,
            precision=recipe.precision,
        )
        for name, (score, results) in found.items():
            shown = f"{path.stem} {name}" if len(found) > 1 else path.stem
            folder = recipe.output / path.stem / name if len(found) > 1 else recipe.output / path.stem
            scores[shown] = score
            words = results.get("listed_words", {})
            listed = "" if words.get("recall") is None else f"{words['recall']:.1%} of the listed words found; "
            rest = "" if words.get("wer_of_rest") is None else f"WER of all others {words['wer_of_rest']:.2%}; "
            speeds.append(f"{shown}: {results['rtfx']:.0f} times real time; {listed}{rest}{folder}/results.json")
    print(report.summary_table(scores))
    print("\n".join(speeds))


if __name__ == "__main__":
    launch("evaluate", run)
