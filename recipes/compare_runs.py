"""Compares training runs: python recipes/compare_runs.py runs=[runs/a,runs/b] set=an4-test output=runs/compare"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from comparison import curves, figures, tables
from comparison.curves import History
from comparison.runs import Setting, find_runs, group, read_run
from comparison.scores import score_settings
from launching import launch
from schema import CompareRunsRecipe

from asr import report


def draw_curves(recipe: CompareRunsRecipe, settings: Sequence[Setting], histories: Mapping[Path, History]) -> Path:
    """Draws the learning curves of all runs that have them, and returns the file."""
    lines = {}
    for tag in recipe.curves:
        of_runs = [
            (each, [curves.make_line(run, histories[run.folder], tag=tag, axis=recipe.axis, join=recipe.join)
                    for run in each.runs])
            for each in settings
        ]  # fmt: skip
        lines[tag] = [(each, there) for each, found in of_runs if (there := [line for line in found if line])]
        if not lines[tag]:
            known = sorted({name for history in histories.values() for name in history.curves})
            raise ValueError(f"curves has {tag!r}, which no run has; choose from {', '.join(known) or 'none so far'}")
    figure = figures.learning_curves(lines, axis=recipe.axis, log_x=recipe.log_x, log_y=recipe.log_y)
    return figures.write(figure, recipe.output / f"curves.{recipe.format}", dpi=recipe.dpi)


def run(recipe: CompareRunsRecipe) -> None:
    """Prints and writes the table, and draws learning curves and, of runs that were scored, the effect of settings."""
    folders = find_runs(recipe.runs)
    baseline = read_run(recipe.baseline or folders[0])
    labels = dict(label.split(": ", 1) for label in recipe.labels)
    settings = group([read_run(folder) for folder in folders], baseline=baseline, labels=labels)
    runs = [run for setting in settings for run in setting.runs]
    histories = {run.folder: curves.read_history(run.folder) for run in runs}
    scored = score_settings(settings, set_folder=recipe.set, references=recipe.manifest) if recipe.set else []

    rows = tables.rows(settings, scored=scored, histories=histories, tag=recipe.curves[0])
    differences = tables.what_differs(settings)
    notes = tables.notes(
        runs, scored=scored, set_folder=recipe.set, histories=histories, tags=recipe.curves, joined=recipe.join
    )
    pictures = [draw_curves(recipe, settings, histories)]
    if len(scored) > 1:
        effects = figures.ablation(scored, set_name=str(recipe.set))
        pictures.append(figures.write(effects, recipe.output / f"ablation.{recipe.format}", dpi=recipe.dpi))
    print("\n\n".join(filter(None, [report.table(rows), "\n".join(differences), "\n".join(notes)])))
    page = recipe.output / "comparison.md"
    page.write_text(tables.markdown(rows, differences, notes, pictures), encoding="utf-8")
    print("\n".join(map(str, [page, *pictures])))


if __name__ == "__main__":
    launch("compare_runs", run)
