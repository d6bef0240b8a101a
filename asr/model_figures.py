"""What was measured of a model, kept beside its weights in `results.json`, and a model described for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from asr.checkpoint import LoadedModel
from asr.report import percent, table
from asr.search_choice import OWN_NEURAL
from asr.variants import TUNED_FILE, read_default

FIGURES_FILE = "results.json"

# Of an evaluation, under the same names.
_TAKEN = ("set", "utterances", "words", "wer", "wer_ci95", "wer_ci95_by_speaker", "cer", "rtfx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The scores of one way to search on one set; rates are fractions.

    Attributes:
        set: Name of the set.
        search: Of `asr.variants.variants`, such as `joint+ngram`.
        beam_size: Hypotheses kept in every step.
        utterances: How many the set has.
        words: Likewise.
        wer: Word error rate.
        wer_ci95: Its bootstrap 95 % interval over utterances.
        wer_ci95_by_speaker: The same over speakers; None where they are too few or unknown.
        cer: Character error rate.
        speakers: How many speakers are known.
        wer_of_speakers: Word error rates of the best, the median and the worst speaker; None without known speakers.
        rtfx: Seconds of audio recognised in a second.
    """

    set: str
    search: str
    beam_size: int
    utterances: int
    words: int
    wer: float
    wer_ci95: Sequence[float]
    wer_ci95_by_speaker: Sequence[float] | None
    cer: float
    speakers: int
    wer_of_speakers: Sequence[float] | None
    rtfx: float

    @staticmethod
    def from_results(results: dict[str, Any]) -> "Figures":
        """Takes what matters from the content of an evaluation's `results.json`."""
        decoding = results["decoding"]
        rates = [each["wer"] for each in results["by_speaker"].values()]
        return Figures(
            search="+".join([decoding["mode"], *(kind for kind in ("ngram", "neural") if decoding["lm"][kind])]),
            beam_size=decoding["beam_size"],
            speakers=len(rates),
            wer_of_speakers=[min(rates), median(rates), max(rates)] if rates else None,
            **{name: results[name] for name in _TAKEN},
        )


def collect_figures(paths: Sequence[Path]) -> list[Figures]:
    """Reads evaluations: `results.json` files, and all below folders; sorted by set, the best search of each first.

    Raises:
        FileNotFoundError: If a path is not there, or a folder holds no evaluation.
        ValueError: If a file is not the result of an evaluation, or two are of one search on one set.
    """
    found: dict[tuple[str, str], tuple[Path, Figures]] = {}
    for path in paths:
        files = sorted(path.rglob(FIGURES_FILE)) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"{path}: no {FIGURES_FILE} below it; recipes/evaluate.py writes it")
        for file in files:
            try:
                figures = Figures.from_results(json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{file}: not the result of an evaluation ({error})") from None
            other, _ = found.setdefault((figures.set, figures.search), (file, figures))
            if other != file:
                raise ValueError(f"{other} and {file} both score {figures.search} on {figures.set}; name one of them")
    return sorted((figures for _, figures in found.values()), key=lambda each: (each.set, each.wer))


def write_figures(folder: Path, figures: Sequence[Figures]) -> None:
    """Writes what was measured beside the weights of a model."""
    content = {"results": [asdict(each) for each in figures]}
    (folder / FIGURES_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_figures(folder: Path) -> list[Figures]:
    """What was measured of the model of a folder; nothing where there is no such file.

    Raises:
        ValueError: If the file is broken.
    """
    path = folder / FIGURES_FILE
    if not path.is_file():
        return []
    try:
        return [Figures(**each) for each in json.loads(path.read_text(encoding="utf-8"))["results"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the figures of a model ({error}); remove it, or copy the folder again") from None


HEADER = ("set", "search", "WER", "95 % interval", "speakers", "CER", "times real time")


def figures_rows(figures: Sequence[Figures]) -> list[list[str]]:
    """The cells of a table below `HEADER`; of the speakers, the best, median and worst word error rate."""
    return [
        [
            each.set,
            each.search,
            percent(each.wer),
            " – ".join(f"{100 * rate:.1f}" for rate in each.wer_ci95),
            " / ".join(f"{100 * rate:.0f}" for rate in each.wer_of_speakers or ()),
            percent(each.cer),
            f"{each.rtfx:.0f}",
        ]
        for each in figures
    ]


def describe(loaded: LoadedModel) -> str:
    """Sizes, tokens, training and default search of a model, and its figures, as text without a line break at the end.

    Raises:
        ValueError: If a file beside its weights is broken.
    """
    tokenizer = type(loaded.tokenizer).__name__.removesuffix("Tokenizer").lower()
    default = read_default(loaded.path / TUNED_FILE)
    files = files_of(loaded.path)
    rows = {
        "model": str(loaded.path),
        "files": ", ".join(f"{file.relative_to(loaded.path)} {size(file)}" for file in files),
        "parameters": f"{loaded.model.num_parameters():,}",
        "tokens": f"{loaded.tokenizer.vocab_size} ({tokenizer})",
        "frame": f"{1000 * loaded.frame_s:g} ms",
        "search": f"{default.mode}, beam {default.beam_size}" if default else "greedy",
    }
    rows |= {name: json.dumps(part) for name, part in {**asdict(loaded.config), "training": loaded.training}.items()}
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {value}".rstrip() for name, value in rows.items()]
    figures = read_figures(loaded.path)
    return "\n".join([*lines, *(["", table([HEADER, *figures_rows(figures)])] if figures else [])])


def files_of(folder: Path) -> list[Path]:
    """The files of a model folder, those of its language model among them."""
    return sorted(file for pattern in ("*", f"{OWN_NEURAL}/*") for file in folder.glob(pattern) if file.is_file())


def size(file: Path) -> str:
    """The size of a file in megabytes of 10⁶ bytes, or kilobytes."""
    num_bytes = file.stat().st_size
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"
