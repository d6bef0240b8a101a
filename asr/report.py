"""Scores as text for people: tables, confusions and aligned errors. Rates are shown in percent."""

import unicodedata
from collections.abc import Mapping, Sequence

from asr.evaluate import Alignment, Comparison, Score

_GAP = "*"  # fills the place opposite a deleted or inserted word


def summary_table(scores: Mapping[str, Score]) -> str:
    """One row of figures for each named score, without a line break at the end."""
    header = [
        "",
        "WER",
        "95 % interval",
        "by speaker",
        "CER",
        "sub",
        "del",
        "ins",
        "wrong sentences",
        "utterances",
        "words",
    ]
    rows = [header]
    for name, score in scores.items():
        sentences = f"{round(score.sentence_error_rate * score.utterances)} ({percent(score.sentence_error_rate)})"
        rows.append(
            [
                name,
                percent(score.wer),
                _range(score.wer_ci95),
                _range(score.wer_ci95_by_speaker),
                percent(score.cer),
                *(str(count) for count in (score.substitutions, score.deletions, score.insertions)),
                sentences,
                str(score.utterances),
                str(score.words),
            ]
        )
    # A column that says nothing in any row is left out.
    shown = [column for column in range(len(header)) if any(row[column] not in ("", "-") for row in rows[1:])]
    return table([[row[column] for column in shown] for row in rows])


def speaker_table(score: Score) -> str:
    """One row for each known speaker, the worst first; empty without known speakers."""
    if not score.by_speaker:
        return ""
    rows = [["speaker", "WER", "utterances", "words"]]
    for speaker, part in score.by_speaker.items():
        rows.append([speaker, percent(part.wer), str(part.utterances), str(part.words)])
    return table(rows)


def confusion_lists(score: Score, *, limit: int = 10) -> str:
    """The most frequent substitutions, deletions and insertions, one line for each kind that occurs."""
    kinds: dict[str, list[str]] = {"substituted": [], "deleted": [], "inserted": []}
    for reference, hypothesis, count in score.confusions:
        if reference and hypothesis:
            kinds["substituted"].append(f"{reference} → {hypothesis} ({count})")
        elif reference:
            kinds["deleted"].append(f"{reference} ({count})")
        else:
            kinds["inserted"].append(f"{hypothesis} ({count})")
    return "\n".join(f"{kind:<12} {', '.join(entries[:limit])}" for kind, entries in kinds.items() if entries)


def aligned_errors(score: Score, *, width: int = 100, limit: int | None = None) -> str:
    """The utterances with errors, the worst first, as rows of aligned words.

    Each word stands in a column with its counterpart; asterisks fill the place of a missing one, and the EVA row says
    S, D or I below a substituted, deleted or inserted word. Long utterances continue in further rows.

    Args:
        width: of the rows in terminal columns.
        limit: show no more utterances than this; None shows them all.
    """
    wrong = [part for part in score.alignments if part.errors]
    wrong.sort(key=lambda part: (-part.errors, part.words, part.id))
    shown = wrong if limit is None else wrong[:limit]
    title = f"utterances with errors: {len(wrong)} of {score.utterances}"
    if len(shown) > 1:
        title += f", the {len(shown)} worst:" if len(shown) < len(wrong) else ", the worst first:"
    elif shown:
        title += ", the worst:" if len(wrong) > 1 else ":"
    return "\n\n".join([title, *(aligned_rows(part, width=width) for part in shown)])


def aligned_rows(alignment: Alignment, *, width: int = 100) -> str:
    """One utterance: a line with its id and counts, then REF, HYP and EVA rows wrapped at `width` columns."""
    kinds = (
        ("substituted", alignment.substitutions),
        ("deleted", alignment.deletions),
        ("inserted", alignment.insertions),
    )
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds if count)
    speaker = f" (speaker {alignment.speaker})" if alignment.speaker else ""
    errors = f"{_count(alignment.errors, 'error')} in {_count(alignment.words, 'word')}"
    lines = [f"{alignment.id}{speaker}: {errors}{': ' if counts else ''}{counts}"]
    rows = ["REF:", "HYP:", "EVA:"]
    for reference, hypothesis in alignment.pairs:
        columns = max(_columns(reference), _columns(hypothesis))
        if rows[0] != "REF:" and _columns(rows[0]) + 1 + columns > width:
            lines += rows
            rows = ["REF:", "HYP:", "EVA:"]
        mark = "" if reference == hypothesis else "I" if not reference else "D" if not hypothesis else "S"
        words = reference or _GAP * columns, hypothesis or _GAP * columns, mark
        rows = [f"{row} {_pad(word, columns)}" for row, word in zip(rows, words, strict=True)]
    return "\n".join(line.rstrip() for line in lines + rows)


def comparison_text(comparison: Comparison, *, name_a: str, name_b: str) -> str:
    """The paired test in words: both rates, their difference with its interval, and the p-value."""
    lines = table(
        [
            ["", "WER"],
            [name_a, percent(comparison.wer_a)],
            [name_b, percent(comparison.wer_b)],
            ["difference", _points(comparison.difference)],
        ]
    ).splitlines()
    tests = [("utterances", comparison.ci95, comparison.p_value)]
    if comparison.ci95_by_speaker is not None and comparison.p_value_by_speaker is not None:
        tests.append(("speakers", comparison.ci95_by_speaker, comparison.p_value_by_speaker))
    for drawn, (low, high), p_value in tests:
        p_text = "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.4f}"
        lines.append(f"drawing {drawn}: 95 % interval {_points(low)} to {_points(high)}, {p_text}")
    return "\n".join(lines)


def percent(rate: float) -> str:
    """A fraction in percent with two digits after the point: 0.0421 is `4.21 %`."""
    return f"{100 * rate:.2f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f} points"


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.2f} – {100 * interval[1]:.2f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows in columns: the first to the left, the others to the right."""
    widths = [max(_columns(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [_pad(first, widths[0])]
        cells += [_pad(cell, width, left=False) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _pad(text: str, columns: int, *, left: bool = True) -> str:
    spaces = " " * (columns - _columns(text))
    return text + spaces if left else spaces + text


def _columns(text: str) -> int:
    """Columns that text takes in a terminal: two for wide East Asian characters, none for combining marks."""
    if text.isascii():
        return len(text)
    # Spacing marks (Mc) do take a column.
    return sum(
        0 if unicodedata.category(char) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )
