"""Settings scored on one set: mean and spread over seeds, and the paired difference to the baseline."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr import evaluate
from asr.data import manifest
from asr.evaluate import Comparison
from comparison.runs import Run, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A setting on a set. Rates are fractions.

    Attributes:
        setting: What was scored.
        runs: Those of its runs that have scores of this set.
        wers: One a run, in the same order.
        ci95: Bootstrap 95 % interval of their mean, drawing utterances.
        difference: `wer - wer of the baseline`; negative where this setting is better, 0 for the baseline.
        difference_ci95: Paired bootstrap 95 % interval of it, drawing utterances; None for the baseline.
        p_value: Two-sided, of the same bootstrap; None for the baseline.
    """

    setting: Setting
    runs: list[Run]
    wers: list[float]
    ci95: tuple[float, float]
    difference: float
    difference_ci95: tuple[float, float] | None
    p_value: float | None

    @property
    def wer(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.wers)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None of a single run."""
        return statistics.stdev(self.wers) if len(self.wers) > 1 else None


def score_settings(settings: Sequence[Setting], *, set_folder: str, references: Path | None) -> list[Scored]:
    """Scores the settings of which at least one run has transcripts of the set, in their order.

    Several runs of a setting are drawn together with their utterance, so the intervals say how far the figures hold
    for other utterances; how far they hold for other seeds is told by the spread alone.

    Args:
        settings: The baseline first.
        set_folder: The folder with `results.json` and `transcripts.txt`, below each run's.
        references: The manifest of the set; by default the one of its name that the baseline's corpus has.

    Raises:
        FileNotFoundError: If the baseline has no scores of the set, or the manifest is missing.
        ValueError: If transcripts do not belong to the manifest, or no longer give the rate that was written.
    """
    baseline = next(setting for setting in settings if setting.is_baseline)
    first = next((run for run in baseline.runs if (run.folder / set_folder / "results.json").is_file()), None)
    if first is None:
        raise FileNotFoundError(_no_scores(baseline.runs[0], set_folder))
    texts = {each.id: each.text for each in manifest.read(references or _manifest_of(first, set_folder))}
    transcripts = [_read_transcripts(setting, set_folder) for setting in settings]
    of_baseline = list(transcripts[settings.index(baseline)].values())
    scored = []
    for setting, found in zip(settings, transcripts, strict=True):
        if not found:
            continue
        wers, ci95 = _score(texts, found, set_folder)
        tested = None if setting.is_baseline else _compare(texts, of_baseline, list(found.values()))
        scored.append(
            Scored(
                setting=setting,
                runs=[run for run in setting.runs if run.folder in found],
                wers=wers,
                ci95=ci95,
                difference=0.0 if tested is None else tested.difference,
                difference_ci95=None if tested is None else tested.ci95_by_speaker or tested.ci95,
                p_value=None if tested is None else tested.p_value_by_speaker or tested.p_value,
            )
        )
    return scored


def _no_scores(run: Run, set_folder: str) -> str:
    found = sorted(str(path.parent.relative_to(run.folder)) for path in run.folder.rglob("results.json"))
    if not found:
        return f"{run.folder}: the baseline has no scores at all; evaluate it first, or leave set= out"
    return f"{run.folder}: the baseline has no scores of set={set_folder}; it has {', '.join(found)}"


def _manifest_of(run: Run, set_folder: str) -> Path:
    results = json.loads((run.folder / set_folder / "results.json").read_text(encoding="utf-8"))
    path = Path(run.config["data.manifests"]) / f"{results['set']}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such manifest; name the one of the set with manifest=…")
    return path


def _read_transcripts(setting: Setting, set_folder: str) -> dict[Path, dict[str, str]]:
    """Texts by utterance, by the folders of the runs that have them."""
    paths = {run.folder: run.folder / set_folder / "transcripts.txt" for run in setting.runs}
    return {folder: evaluate.read_texts(path) for folder, path in paths.items() if path.is_file()}


def _score(
    texts: Mapping[str, str], transcripts: Mapping[Path, Mapping[str, str]], set_folder: str
) -> tuple[list[float], tuple[float, float]]:
    """The rate of each run, which must be the one that its evaluation wrote, and the interval of their mean."""
    wers = []
    for folder, found in transcripts.items():
        path = folder / set_folder / "results.json"
        try:
            score = evaluate.score(texts, found, num_draws=10_000 if len(transcripts) == 1 else 1)
        except ValueError as error:
            raise ValueError(f"{path.parent}: {error}; name the manifest that it was scored on, manifest=…") from None
        written = json.loads(path.read_text(encoding="utf-8"))["wer"]
        if not math.isclose(score.wer, written, abs_tol=1e-9):
            raise ValueError(
                f"{path}: its WER is {100 * written:.2f} %, but the transcripts beside it give {100 * score.wer:.2f} % "
                "against the manifest; name the manifest that it was scored on, manifest=…, or evaluate the run again"
            )
        wers.append(score.wer)
    if len(wers) == 1:
        return wers, score.wer_ci95
    references, hypotheses, utterances = _together(texts, list(transcripts.values()))
    whole = evaluate.score(references, hypotheses, speakers=utterances)
    return wers, whole.wer_ci95_by_speaker or whole.wer_ci95


def _together(
    texts: Mapping[str, str], runs: Sequence[Mapping[str, str]]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Several runs as one: references, hypotheses, and the utterance of each.

    The utterance takes the place of the speaker in a bootstrap, which then draws it with what every run made of it.
    """
    names = {(key, number): f"{key} {number}" for number in range(len(runs)) for key in texts}
    references = {name: texts[key] for (key, _), name in names.items()}
    hypotheses = {name: runs[number][key] for (key, number), name in names.items()}
    return references, hypotheses, {name: key for (key, _), name in names.items()}


def _compare(
    texts: Mapping[str, str], baseline: Sequence[Mapping[str, str]], setting: Sequence[Mapping[str, str]]
) -> Comparison:
    """Every run of a setting against every one of the baseline: their mean difference is that of the means."""
    pairs = [(one, other) for one in baseline for other in setting]
    references, of_baseline, utterances = _together(texts, [one for one, _ in pairs])
    _, of_setting, _ = _together(texts, [other for _, other in pairs])
    if len(pairs) == 1:
        utterances = {}
    return evaluate.compare(references, of_baseline, of_setting, speakers=utterances)
