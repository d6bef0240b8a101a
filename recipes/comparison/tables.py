"""The comparison as text: a table of settings, and what differs between them; for the terminal and in Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asr.report import percent
from comparison.curves import History, ancestors
from comparison.runs import Run, Setting, text
from comparison.scores import Scored

_NOTHING = "–"


def rows(
    settings: Sequence[Setting], *, scored: Sequence[Scored], histories: Mapping[Path, History], tag: str
) -> list[list[str]]:
    """A header, the baseline, then the settings with scores from the best to the worst, then those without.

    Args:
        settings: All of them.
        scored: Those with scores.
        histories: Curves of every run, by its folder.
        tag: The curve whose smallest value is shown.
    """
    ordered = sorted(settings, key=lambda each: (not each.is_baseline, _rank(find(scored, each))))
    header = ["setting", "seeds", "steps", "minutes", "parameters", f"best {tag}"]
    header += ["WER", "95 % interval", "over seeds", "difference", "its interval", "p"]
    found = [
        [*_course(each, find(scored, each)), best(each, histories, tag), *_figures(find(scored, each))]
        for each in ordered
    ]
    # A column that says nothing in any row is left out.
    shown = [column for column in range(len(header)) if any(row[column] != _NOTHING for row in found)]
    return [[row[column] for column in shown] for row in [header, *found]]


def find(scored: Sequence[Scored], setting: Setting) -> Scored | None:
    """The scores of a setting, if it has any."""
    return next((each for each in scored if each.setting is setting), None)


def _rank(scored: Scored | None) -> float:
    return float("inf") if scored is None else scored.wer


def _course(setting: Setting, scored: Scored | None) -> list[str]:
    """Label, seeds, steps, minutes and parameters."""
    seeds = ", ".join(str(run.seed) for run in setting.runs)
    if scored is not None and len(scored.runs) < len(setting.runs):
        seeds += f" (scored: {', '.join(str(run.seed) for run in scored.runs)})"
    steps = sorted({run.steps for run in setting.runs})
    shown = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} – {steps[-1]:,}"
    minutes = statistics.fmean(run.seconds for run in setting.runs) / 60
    parameters = next((run.parameters for run in setting.runs if run.parameters), None)
    return [
        setting.title,
        seeds,
        shown,
        f"{minutes:.1f}",
        _NOTHING if parameters is None else f"{parameters / 1e6:.2f} M",
    ]


def best(setting: Setting, histories: Mapping[Path, History], tag: str) -> str:
    """The smallest value of a curve, the mean over the seeds that have it."""
    curves = [histories[run.folder].curves.get(tag) for run in setting.runs]
    lowest = [min(point.value for point in curve) for curve in curves if curve]
    return value_text(statistics.fmean(lowest), tag) if lowest else _NOTHING


def value_text(value: float, tag: str) -> str:
    """A point of a curve: error rates in percent, else four digits."""
    return percent(value) if is_rate(tag) else f"{value:.4g}"


def is_rate(tag: str) -> bool:
    """Whether a curve is one of error rates."""
    return tag.endswith(("wer", "cer"))


def _figures(scored: Scored | None) -> list[str]:
    """WER, its interval, its spread, the difference, its interval and p-value."""
    if scored is None:
        return [_NOTHING] * 6
    low, high = scored.ci95
    found = [percent(scored.wer), f"{100 * low:.2f} – {100 * high:.2f}"]
    found.append(_NOTHING if scored.spread is None else f"± {100 * scored.spread:.2f}")
    if scored.difference_ci95 is None or scored.p_value is None:
        return [*found, *[_NOTHING] * 3]
    low, high = scored.difference_ci95
    p_value = "< 0.001" if scored.p_value < 0.001 else f"{scored.p_value:.3f}"
    return [*found, f"{100 * scored.difference:+.2f}", f"{100 * low:+.2f} – {100 * high:+.2f}", p_value]


def what_differs(settings: Sequence[Setting]) -> list[str]:
    """A line for each setting: its runs, and each key that differs with its value here and, in brackets, there."""
    lines = []
    for setting in settings:
        folders = ", ".join(str(run.folder) for run in setting.runs)
        changed = [f"{key}={text(here)} ({text(there)})" for key, (here, there) in setting.differences.items()]
        said = "the baseline, whose values stand in brackets" if setting.is_baseline else " ".join(changed)
        lines.append(f"{setting.label}: {said}; {folders}")
    return lines


def markdown(
    rows: Sequence[Sequence[str]], differences: Sequence[str], notes: Sequence[str], pictures: Sequence[Path]
) -> str:
    """A page with the table, what differs, the notes, and the pictures, which lie beside it."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, f"|{'---|' * len(rows[0])}")
    listed = [f"- {line}" for line in [*differences, *notes]]
    images = [f"![{each.stem}]({each.name})" for each in pictures]
    return "\n".join(["# Runs compared", "", *lines, "", *listed, "", *images, ""])


def notes(
    runs: Sequence[Run],
    *,
    scored: Sequence[Scored],
    set_folder: str | None,
    histories: Mapping[Path, History],
    tags: Sequence[str],
    joined: bool,
) -> list[str]:
    """What a reader of table and figures must know: how intervals were drawn, and what is missing.

    Args:
        runs: All of them.
        scored: The settings with scores.
        set_folder: What was scored, if anything was.
        histories: Curves of every run, by its folder.
        tags: The curves that are drawn.
        joined: Whether runs are drawn behind those that they started from.
    """
    found = []
    if scored:
        found.append(
            f"WER of {set_folder}; differences are in points, negative where the setting is better than the baseline; "
            "intervals and p-values are of a paired bootstrap that draws utterances."
        )
    if any(each.spread is not None for each in scored):
        found.append(
            "Of several seeds: the mean, and the standard deviation over seeds; the intervals hold for these seeds."
        )
    there = {run.folder for each in scored for run in each.runs}
    found += [f"{run.folder} has no scores of {set_folder}." for run in runs if set_folder and run.folder not in there]
    found += [f"{run.folder} has no {tag}." for tag in tags for run in runs if tag not in histories[run.folder].curves]
    drawn = [each for run in runs for each in [*(ancestors(run) if joined else []), run]]
    sets = {_valid_set(run.config): run for run in drawn}
    if len(sets) > 1:
        named = "; ".join(f"{run.folder} on {name}" for name, run in sets.items())
        found.append(f"Validated on sets of different names, whose curves compare only if they are the same: {named}.")
    return found


def _valid_set(config: Mapping[str, Any]) -> str:
    """What a run was validated on, in words."""
    if config.get("data.holdout_utterances"):
        return f"{config['data.holdout_utterances']} utterances kept back of {text(config['data.train'])}"
    return text(config.get("data.valid", config.get("valid")))
