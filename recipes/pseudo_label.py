"""Labels audio to train on: python recipes/pseudo_label.py model=RUN 'inputs=[folder]' output=manifests/pseudo.jsonl"""

from collections.abc import Iterable, Sequence
from statistics import quantiles

from launching import launch
from schema import PseudoLabelRecipe

from asr import checkpoint, evaluate, report
from asr.data import manifest
from asr.data.manifest import Utterance
from asr.devices import pick_device
from asr.pseudo_labels import KEPT, REASONS, PseudoLabel, find_utterances, label
from asr.variants import with_weights


def summary(labels: Sequence[PseudoLabel]) -> str:
    """A table of what was kept and what was not, and why."""
    rows = [["labels", "utterances", "hours", "share"]]
    hours = sum(each.utterance.duration_s for each in labels) / 3600
    for verdict in (KEPT, *REASONS):
        chosen = [each for each in labels if each.verdict == verdict]
        if chosen or verdict == KEPT:
            own = sum(each.utterance.duration_s for each in chosen) / 3600
            rows.append([verdict, str(len(chosen)), f"{own:.2f}", f"{own / hours:.1%}"])
    return report.table(rows)


def spread(labels: Sequence[PseudoLabel]) -> str:
    """How confident the model was, as tenths of the utterances have it: where a threshold would cut."""
    if len(labels) < 2:
        return ""
    cuts = quantiles([each.confidence for each in labels], n=10, method="inclusive")
    return "confidence by tenths: " + " ".join(f"{cut:.2f}" for cut in cuts)


def scores(labels: Sequence[PseudoLabel], originals: Sequence[Utterance]) -> str:
    """The word error rate of all labels and of the kept ones, against texts that the inputs may have."""
    texts = {each.id: each.text for each in originals if each.text}
    found = {}
    for name, chosen in (("all", labels), (KEPT, [each for each in labels if each.verdict == KEPT])):
        own = {each.utterance.id: each.utterance.text for each in chosen if each.utterance.id in texts}
        if own:
            found[name] = evaluate.score({key: texts[key] for key in own}, own)
    return report.summary_table(found) if found else ""


def untouchable(originals: Sequence[Utterance], excluded: Iterable[Utterance]) -> set[str]:
    """Ids of what must not be trained on: it has the id or the audio file of an excluded utterance.

    The file counts too, as an utterance that is found in a folder has its path as its id.
    """
    others = list(excluded)
    ids, files = {each.id for each in others}, {each.audio.resolve() for each in others}
    return {each.id for each in originals if each.id in ids or each.audio.resolve() in files}


def run(recipe: PseudoLabelRecipe) -> None:
    """Recognises everything, keeps what can be trusted, and writes it as a manifest."""
    tuned = recipe.tuned_search()
    loaded = checkpoint.load(recipe.model, device=pick_device(recipe.device, num_threads=recipe.num_threads))
    originals = find_utterances(recipe.inputs)
    excluded = untouchable(originals, (each for path in recipe.exclude for each in manifest.read(path)))
    labels = list(
        label(
            loaded, originals, decoding=with_weights(recipe.decoding, tuned.weights), selection=recipe.selection,
            calibration=tuned.calibration, excluded=excluded, max_batch_s=recipe.max_batch_s,
        )
    )  # fmt: skip
    print("\n\n".join(filter(None, [summary(labels), spread(labels), scores(labels, originals)])))
    kept = sorted((each.utterance for each in labels if each.verdict == KEPT), key=lambda each: each.id)
    if not kept:
        raise ValueError("no label can be trusted; lower selection.min_confidence, see the tenths above")
    manifest.write(recipe.output, kept)
    print(f"{recipe.output}: {len(kept)} utterances, for data=folder 'data.train=[…,{recipe.output.name}]'")


if __name__ == "__main__":
    launch("pseudo_label", run)
