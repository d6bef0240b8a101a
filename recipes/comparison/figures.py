"""Pictures for a page of 900 pixels: learning curves with their names at the ends, and the effects of settings."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from PIL import Image

from asr.report import percent
from comparison.curves import AXES, Line
from comparison.runs import Setting
from comparison.scores import Scored
from comparison.tables import is_rate, value_text

# Okabe and Ito's palette without its yellow, told apart by colour-blind eyes; grey is the baseline's.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", ":")  # when colours begin anew
_BASELINE = "0.3"
_BETTER, _WORSE, _OPEN = "#0072B2", "#D55E00", "0.45"
_LONGEST_NAME = 45
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "axes.edgecolor": "0.4",
    "xtick.color": "0.3",
    "ytick.color": "0.3",
}


def learning_curves(
    lines: Mapping[str, Sequence[tuple[Setting, Sequence[Line]]]], *, axis: str, log_x: bool, log_y: bool
) -> Figure:
    """A panel for each curve; a line for each run, a colour and a name for each setting.

    Args:
        lines: By the curve's tag: settings, and the lines of their runs.
        axis: One of `curves.AXES`.
        log_x: Whether that axis is logarithmic.
        log_y: Whether the values' axes are.
    """
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(
            len(lines), 1, figsize=(9, 4.2 if len(lines) == 1 else 3.4 * len(lines)), sharex=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        panels = grid[:, 0]
        names: list[list[tuple[str, str, float, float]]] = []
        looks = _looks(each for of_settings in lines.values() for each, _ in of_settings)
        for panel, (tag, of_settings) in zip(panels, lines.items(), strict=True):
            names.append(_draw_curves(panel, of_settings, tag, looks))
            _set_scales(panel, tag, log_x=log_x, log_y=log_y)
            panel.set_title(_title(tag), loc="left", fontsize=11)
        panels[-1].set_xlabel(AXES[axis])
        figure.canvas.draw()  # sizes are known after this
        for panel, ends in zip(panels, names, strict=True):
            _write_names(panel, ends)
        return figure


def _title(tag: str) -> str:
    kind, _, name = tag.rpartition("/")
    said = name.upper() if is_rate(tag) else name.replace("_", " ")
    return f"{said} in {'validation' if kind == 'valid' else 'training'}, dots at the lowest"


def _short(setting: Setting) -> str:
    """The setting's title; of a long one the beginning, so that it leaves room for the picture."""
    label = setting.label if len(setting.label) <= _LONGEST_NAME else f"{setting.label[: _LONGEST_NAME - 1]}…"
    return replace(setting, label=label).title


def _looks(settings: Iterable[Setting]) -> dict[str, tuple[str, str]]:
    """Colour and dashes of each setting by its label, the same in all panels."""
    others = dict.fromkeys(setting.label for setting in settings if not setting.is_baseline)
    return {
        label: (_COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)])
        for number, label in enumerate(others)
    }


def _draw_curves(
    panel: Axes,
    of_settings: Sequence[tuple[Setting, Sequence[Line]]],
    tag: str,
    looks: Mapping[str, tuple[str, str]],
) -> list[tuple[str, str, float, float]]:
    """Draws the lines, and returns name, colour and end of each setting's."""
    ends = []
    for setting, lines in of_settings:
        colour, dash = looks.get(setting.label, (_BASELINE, "-"))
        for line in lines:
            if line.before:
                before = [*line.before, (line.x[0], line.y[0])]
                # Below all else, where the earlier run may have a line of its own.
                panel.plot(*zip(*before, strict=True), color=colour, linewidth=1, linestyle=(0, (1, 1.5)), zorder=1.5)
            panel.plot(line.x, line.y, color=colour, linewidth=1.8, linestyle=dash, alpha=0.9)
            lowest = min(range(len(line.y)), key=lambda index: line.y[index])
            panel.plot(line.x[lowest], line.y[lowest], "o", color=colour, markersize=5, markeredgecolor="white")
        last = max(line.x[-1] for line in lines)
        height = fmean(line.y[-1] for line in lines if line.x[-1] == last)
        least = fmean(min(line.y) for line in lines)
        ends.append((f"{_short(setting)}  {value_text(least, tag)}", colour, last, height))
    return ends


def _set_scales(panel: Axes, tag: str, *, log_x: bool, log_y: bool) -> None:
    """Limits and ticks. Rates above 1, such as those of the first validations, are cut off."""
    values = [float(value) for line in panel.get_lines() for value in line.get_ydata()]
    top = min(1.0, max(values)) if is_rate(tag) and min(values) < 1 else max(values)
    if log_x:
        panel.set_xscale("log")
    else:
        panel.set_xlim(left=0)
    if log_y:
        panel.set_yscale("log")
        low = max(min(value for value in values if value > 0) * 0.85, 1e-6)
        panel.set_ylim(low, top * 1.1)
        panel.set_yticks(_log_ticks(low, top * 1.1))
        panel.yaxis.set_minor_locator(NullLocator())
    else:
        panel.set_ylim(0, top * 1.05)
        panel.yaxis.set_major_locator(MaxNLocator(6))
    for each in (panel.xaxis, panel.yaxis):
        each.set_minor_formatter(NullFormatter())
    percents = is_rate(tag)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %" if percents else f"{y:g}"))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.grid(axis="y", color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, … between two limits; where these are close to each other, even steps."""
    found = [digit * 10.0**power for power in range(-9, 10) for digit in (1, 2, 5)]
    found = [tick for tick in found if low <= tick <= high]
    if len(found) > 2:
        return found
    return [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]


def _write_names(panel: Axes, ends: Sequence[tuple[str, str, float, float]], *, font_size: float = 9) -> None:
    """Writes names to the right of the panel, as near to the ends of their lines as room allows."""
    box = panel.get_window_extent()
    assert panel.figure is not None
    gap = 1.45 * font_size * panel.figure.dpi / 72 / box.height
    places = [panel.transAxes.inverted().transform(panel.transData.transform((x, y))) for _, _, x, y in ends]
    order = sorted(range(len(ends)), key=lambda index: places[index][1])
    heights = spread([min(max(float(places[index][1]), 0.0), 1.0) for index in order], gap=gap)
    for index, height in zip(order, heights, strict=True):
        name, colour, _, _ = ends[index]
        x, y = places[index]
        panel.plot([x, 1.015], [y, height], color=colour, linewidth=0.7, alpha=0.5, transform=panel.transAxes,
                   clip_on=False)  # fmt: skip
        panel.text(1.02, height, name, color=colour, fontsize=font_size, va="center", transform=panel.transAxes)


def spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Moves rising heights apart to at least `gap`, each group about its own middle."""
    groups: list[list[float]] = []  # wished heights of names that touch
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1], gap) - _top(groups[-2], gap) < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, gap) + gap * number for group in groups for number in range(len(group))]


def _bottom(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) + gap * (len(group) - 1) / 2


def ablation(scored: Sequence[Scored], *, set_name: str) -> Figure:
    """A dot with its interval for each setting, sorted, as the difference to the baseline in points.

    Args:
        scored: The settings, the baseline among them.
        set_name: What they were scored on.
    """
    ordered = sorted(scored, key=lambda each: each.difference, reverse=True)  # the best on top
    with plt.rc_context(_STYLE):
        figure, panel = plt.subplots(figsize=(9, 1.3 + 0.36 * len(ordered)), layout="constrained")
        panel.axvline(0, color=_BASELINE, linewidth=1)
        for row, each in enumerate(ordered):
            _draw_setting(panel, row, each)
        panel.text(1.02, len(ordered) - 0.4, "WER", color=_BASELINE, transform=panel.get_yaxis_transform())
        panel.set_yticks(range(len(ordered)), [_short(each.setting) for each in ordered])
        for label, each in zip(panel.get_yticklabels(), ordered, strict=True):
            label.set_fontweight("bold" if each.setting.is_baseline else "normal")
        panel.set_ylim(-0.6, len(ordered) - 0.4)
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        panel.grid(axis="x", color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if abs(value) < 1e-9 else f"{value:+g}"))
        hollow = "; hollow: single seeds" if any(each.spread is not None for each in scored) else ""
        panel.set_xlabel(f"difference in WER to the baseline on {set_name}, points\n(95 % interval, paired{hollow})")
        return figure


def _draw_setting(panel: Axes, row: int, scored: Scored) -> None:
    colour, weight = _BASELINE, "bold"
    if scored.difference_ci95 is not None:
        low, high = (100 * value for value in scored.difference_ci95)
        colour, weight = (_BETTER if high < 0 else _WORSE if low > 0 else _OPEN), "normal"
        panel.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="round")
    if scored.spread is not None:
        baseline = scored.wer - scored.difference
        places = [100 * (wer - baseline) for wer in scored.wers]
        panel.plot(places, [row] * len(places), "o", color=colour, markersize=4, markerfacecolor="white", zorder=3)
    marker = "D" if scored.difference_ci95 is None else "o"
    panel.plot(100 * scored.difference, row, marker, color=colour, markersize=8, markeredgecolor="white", zorder=4)
    panel.text(1.02, row, percent(scored.wer), color=colour, va="center", fontweight=weight,
               transform=panel.get_yaxis_transform())  # fmt: skip


def write(figure: Figure, path: Path, *, dpi: int) -> Path:
    """Writes a figure, in the format that the path's ending names, closes it, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi)
        # A few dozen colours with their shades at edges: a palette looks the same and takes a third of the room.
        Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True, dpi=(dpi, dpi))
    else:
        figure.savefig(path, metadata={"Date": None})  # the same figure is then the same file
    plt.close(figure)
    return path
