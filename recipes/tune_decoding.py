"""Fits a search's weights: python recipes/tune_decoding.py model=RUN manifest=dev.jsonl 'modes=[joint]' 'lms=[none]'"""

from launching import launch
from schema import TuneRecipe

from asr import checkpoint
from asr.data import manifest
from asr.devices import pick_device
from asr.recognition import SearchBuilder, encode_utterances
from asr.report import table
from asr.tuning import tune
from asr.variants import TUNED_FILE, variants, write_tuned


def run(recipe: TuneRecipe) -> None:
    """Runs the encoder once, tunes each way to search on its output, and writes weights and calibrations."""
    decodings = variants(recipe.decoding, modes=recipe.modes, lms=recipe.lms)
    loaded = checkpoint.load(recipe.model, device=pick_device(recipe.device, num_threads=recipe.num_threads))
    utterances = manifest.read(recipe.manifest)
    if recipe.num_utterances:
        utterances = manifest.spread_out(utterances, recipe.num_utterances)
    builder = SearchBuilder(loaded)
    searches = {name: builder.build(config) for name, config in decodings.items()}
    output = recipe.output or loaded.path / TUNED_FILE
    rate, most = loaded.sample_rate, recipe.max_batch_s
    encoded = list(encode_utterances(loaded.model, utterances, sample_rate=rate, max_batch_s=most, progress=True))
    references = [[utterance.text for utterance in batch] for batch, _ in encoded]
    about = {"manifest": recipe.manifest, "utterances": len(utterances)}
    rows = [["search", "WER", "best in the lists", "rounds", "calibration error", "weights"]]
    for name, config in decodings.items():
        found = tune(
            searches[name],
            [each for _, each in encoded],
            references,
            loaded.tokenizer,
            seed=recipe.seed,
            max_rounds=recipe.max_rounds,
        )
        write_tuned(output, {name: found}, about={**about, "beam_size": config.beam_size, "seed": recipe.seed})
        weights = " ".join(f"{key}={value:g}" for key, value in found.weights.items())
        measured = found.development
        rates = [f"{measured[key]:.2%}" for key in ("wer", "oracle_wer")]
        rows.append([name, *rates, str(measured["rounds"]), f"{measured['calibration_error']:.3f}", weights])
    print(table(rows))
    print(f"{output}; asr transcribe finds it beside a model, recipes/evaluate.py takes tuned={output}")


if __name__ == "__main__":
    launch("tune_decoding", run)
