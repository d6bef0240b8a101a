"""How to search with a model: what its folder proposes, and what its user asks for instead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asr.checkpoint import find_model, read_tokenizer
from asr.decoding.search import TOKEN_LM_MODES, DecodingConfig, FusionConfig
from asr.variants import TUNED_FILE, DefaultSearch, TunedSearch, find_tuned, read_default, read_tuned

OWN_NGRAM = "words.ngram"  # a language model beside the weights, which takes part in every beam search
OWN_LEXICON = "lexicon.txt.xz"  # pronunciations beside the weights, for lexicon search
OWN_NEURAL = "neural"  # folder of a neural language model beside the weights, which takes part in second passes
NO_MODEL = Path("none")  # in place of a language model's path: without any

SECOND_PASS = ("rescore", "lexicon")  # modes that rank what a first search found
_WITH_NEURAL = (*TOKEN_LM_MODES, *SECOND_PASS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What a user asks for; None leaves it to the model's folder.

    Attributes:
        mode: Of `DecodingConfig.mode`.
        beam_size: Hypotheses kept in every step.
        lms: Language models: files of n-grams, folders of neural models, at most one of each. A file takes the place of
            the folder's own of its kind. `none` alone leaves these out.
        hotwords: A file of words and phrases to expect.
        hotword_language: The voice of espeak-ng that says those which the folder's lexicon lacks.
        speller: Folder of a speller; by default the mode is `spell` then.
    """

    mode: str | None = None
    beam_size: int | None = None
    lms: tuple[Path, ...] = ()
    hotwords: Path | None = None
    hotword_language: str | None = None
    speller: Path | None = None


def choose_search(folder: Path, options: SearchOptions) -> tuple[DecodingConfig, TunedSearch]:
    """How to search with the model of a folder, and what was tuned for that.

    The mode is the one that is asked for, else the folder's default, else greedy search. Where the default has no place
    for a language model or hotwords that are asked for, it is joint search with a neural model (`rescore` with one that
    has other tokens than the recogniser), and prefix beam search without. Where the default is lexicon search, which
    knows the folder's own words and hotwords alone, and an n-gram model is asked for, or that the own one is left out,
    it is joint search, or prefix beam search if that was tuned.

    Args:
        folder: Of a recogniser; it may hold `decoding.json`, language models, `words.ngram` and `neural/`, and
            pronunciations, `lexicon.txt.xz`.
        options: What is asked for.

    Raises:
        ValueError: If the options do not fit together or the folder, or `decoding.json` is broken.
    """
    default = read_default(folder / TUNED_FILE)
    models = _by_kind(options.lms)
    mode = options.mode or _default_mode(folder, default, models, options)
    if mode == "greedy" and options.beam_size is not None:
        raise ValueError(
            f"--beam-size is {options.beam_size}, but greedy search has no beam; choose another --decoding"
        )
    if NO_MODEL not in options.lms:
        if mode not in ("greedy", "spell") and (folder / OWN_NGRAM).is_file():
            models.setdefault("ngram", folder / OWN_NGRAM)
        if mode in SECOND_PASS and (folder / OWN_NEURAL).is_dir():
            models.setdefault("neural", folder / OWN_NEURAL)
    lexicon = None
    if mode == "lexicon":
        lexicon = folder / OWN_LEXICON
        if not lexicon.is_file():
            raise ValueError(
                f"{folder} has no {OWN_LEXICON}, which --decoding lexicon needs; choose another --decoding"
            )
        if "ngram" not in models:
            raise ValueError("--decoding lexicon searches the words of an n-gram model; name one with --lm")
    if mode == "spell" and options.speller is None:
        raise ValueError("--decoding spell writes with a speller; name one with --speller")
    config = DecodingConfig(
        mode=mode,
        lm=FusionConfig(ngram=models.get("ngram"), neural=models.get("neural")),
        hotwords=options.hotwords,
        hotword_language=options.hotword_language,
        lexicon=lexicon,
        speller=options.speller,
    )
    tuned = find_tuned(folder, config)
    default_beam = default.beam_size if default and (mode == default.mode or default.mode != "lexicon") else None
    beam_size = _first(options.beam_size, default_beam, tuned.development.get("beam_size"), config.beam_size)
    return replace(config, beam_size=beam_size), tuned


def _default_mode(
    folder: Path, default: DefaultSearch | None, models: Mapping[str, Path], options: SearchOptions
) -> str:
    """The mode where none is asked for; see `choose_search`."""
    if options.speller is not None:
        return "spell"
    mode = default.mode if default else "greedy"
    if mode == "lexicon" and ("ngram" in models or NO_MODEL in options.lms):
        tuned = {name.partition("+")[0] for name in read_tuned(folder / TUNED_FILE)}
        mode = "prefix_beam" if "prefix_beam" in tuned and "joint" not in tuned else "joint"
    if "neural" in models and mode not in _WITH_NEURAL:
        return "joint" if _has_same_tokens(folder, models["neural"]) else "rescore"
    if mode == "greedy" and (models or options.hotwords):
        return "prefix_beam"
    return mode


def _has_same_tokens(recogniser: Path, language_model: Path) -> bool:
    """Whether a language model can share in a search over tokens; true where a folder is broken, which others tell."""
    try:
        tokenizers = [read_tokenizer(find_model(path)) for path in (recogniser, language_model)]
    except (OSError, ValueError):
        return True
    return tokenizers[0].tokens == tokenizers[1].tokens


def _by_kind(paths: Sequence[Path]) -> dict[str, Path]:
    """Language models by kind, `ngram` or `neural`."""
    if NO_MODEL in paths:
        if len(paths) > 1:
            raise ValueError(f"--lm names {' and '.join(map(str, paths))}; give none alone, or leave it out")
        return {}
    models: dict[str, Path] = {}
    for path in paths:
        kind = "neural" if path.is_dir() else "ngram"
        if kind in models:
            raise ValueError(f"--lm names {models[kind]} and {path}; give one {kind} language model")
        models[kind] = path
    return models


def _first(*values: int | None) -> int:
    """The first value that is given."""
    return next(value for value in values if value is not None)
