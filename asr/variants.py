"""Ways to search, by name, and what was tuned for each of them: weights and calibration, kept in a JSON file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from asr.confidence import UNCALIBRATED, Calibration
from asr.decoding.search import LEXICON_NEEDS, SPELL_NEEDS, DecodingConfig, FusionConfig

_WITHOUT_LEXICON = {"lexicon": None, "prior_weight": 0.0, "hotword_language": None}
_WITHOUT_WORDS = ("greedy", "spell")  # modes in which language models and hotwords have no place
LANGUAGE_MODELS = ("none", "ngram", "neural", "ngram+neural")


def variants(base: DecodingConfig, *, modes: Sequence[str], lms: Sequence[str]) -> dict[str, DecodingConfig]:
    """All ways to search with these modes and language models that there are; a model that has no place is left out.

    Args:
        base: Settings that all share; it names the language models.
        modes: Of `DecodingConfig.mode`.
        lms: Of `LANGUAGE_MODELS`.

    Returns:
        Settings by name: the mode, and the language models behind a `+`.

    Raises:
        ValueError: If a mode or a language model is unknown, one is asked for that `base` does not name, or a mode has
            no place for any of them.
    """
    if not modes or not lms:
        raise ValueError(f"modes is {list(modes)} and lms is {list(lms)}; name at least one of each")
    found = {}
    for mode in modes:
        for lm in lms:
            if lm not in LANGUAGE_MODELS:
                raise ValueError(f"lms has {lm!r}; choose from {', '.join(LANGUAGE_MODELS)}")
            if base.speller and lm != "none":
                raise ValueError(
                    f"lms has {lm!r}, but decoding.mode is 'spell', which has no place for a language model; evaluate "
                    "searches with one by themselves, and compare with asr score --compare"
                )
            parts = [] if lm == "none" else lm.split("+")
            for part in parts:
                if getattr(base.lm, part) is None:
                    raise ValueError(f"lms has {lm!r}, but decoding.lm.{part} names no model; set it")
            fusion = replace(
                base.lm,
                ngram=base.lm.ngram if "ngram" in parts else None,
                neural=base.lm.neural if "neural" in parts else None,
            )
            if mode not in ("attention", "joint"):
                fusion = replace(fusion, internal_weight=0.0)
            impossible = (
                (mode == "greedy" and parts)
                or (mode == "prefix_beam" and "neural" in parts)
                or (mode == "lexicon" and "ngram" not in parts)
            )
            if not impossible:
                hotwords = None if mode in _WITHOUT_WORDS else base.hotwords
                own: dict[str, Any] = {} if mode == "lexicon" else dict(_WITHOUT_LEXICON)
                if mode != "spell":
                    own["speller"] = None
                found["+".join([mode, *parts])] = replace(base, mode=mode, lm=fusion, hotwords=hotwords, **own)
        if mode == "lexicon" and (base.lexicon is None or base.lm.ngram is None):
            raise ValueError(LEXICON_NEEDS)
        if mode == "spell" and base.speller is None:
            raise ValueError(SPELL_NEEDS)
        if not any(name.split("+")[0] == mode for name in found):
            if mode == "lexicon":
                raise ValueError(
                    f"modes has 'lexicon', which needs an n-gram model, but lms={list(lms)}; add ngram to lms"
                )
            raise ValueError(
                f"modes has {mode!r}, which has no place for any of lms={list(lms)}; add none to lms, or leave it out"
            )
    return found


def variant_name(config: DecodingConfig) -> str:
    """The name under which `variants` lists a config."""
    return "+".join([config.mode, *(part for part in ("ngram", "neural") if getattr(config.lm, part))])


def with_weights(config: DecodingConfig, weights: Mapping[str, float]) -> DecodingConfig:
    """The config with weights in place, by the names that `TunedSearch` uses."""
    fusion: dict[str, Any] = {name.removeprefix("lm."): each for name, each in weights.items() if "." in name}
    own: dict[str, Any] = {name: each for name, each in weights.items() if "." not in name}
    return replace(config, **own, lm=replace(config.lm, **fusion))


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedSearch:
    """What was tuned for one way to search.

    Attributes:
        weights: By name, as `with_weights` takes them.
        calibration: Of the confidence of its words.
        development: What was measured on the set that it was tuned on, for people.
    """

    weights: dict[str, float] = field(default_factory=dict)
    calibration: Calibration = UNCALIBRATED
    development: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultSearch:
    """How to search with a model where its user says nothing of it.

    Attributes:
        mode: Of `DecodingConfig.mode`.
        beam_size: Hypotheses kept in every step; of no account to greedy search.
    """

    mode: str
    beam_size: int = 10

    def __post_init__(self) -> None:
        DecodingConfig(mode=self.mode, beam_size=self.beam_size)  # checks both
        if self.mode == "spell":
            raise ValueError(
                "the default search is 'spell', but a speller lies outside the model's folder; take another"
            )


TUNED_FILE = "decoding.json"  # beside the weights of a model


def write_tuned(
    path: Path, found: Mapping[str, TunedSearch], *, about: Mapping[str, Any], default: DefaultSearch | None = None
) -> None:
    """Writes what was tuned as JSON that `read_tuned` takes.

    Args:
        path: The file; its folder is made. What it holds of other variants stays.
        found: By the name of the variant.
        about: What a reader should know of these: set, number of utterances, seed; JSON.
        default: How to search where nothing is said; by default what the file says stays.
    """
    kept = read_tuned(path) if path.is_file() else {}
    default = default or read_default(path)
    described = {name: replace(each, development={**each.development, **about}) for name, each in found.items()}
    content = {
        name: {
            "weights": each.weights,
            "calibration": each.calibration.to_dict(),
            "development": each.development,
        }
        for name, each in (kept | described).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = ({"default": asdict(default)} if default else {}) | {"searches": content}
    path.write_text(json.dumps(whole, indent=2, default=str) + "\n", encoding="utf-8")


def read_tuned(path: Path) -> dict[str, TunedSearch]:
    """Reads what `write_tuned` wrote, by the name of the variant.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not of that form.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; recipes/tune_decoding.py writes it")
    return _read(path)[0]


def read_default(path: Path) -> DefaultSearch | None:
    """How to search with a model where nothing is said, as its file of tuned searches has it; None if it has nothing.

    Raises:
        ValueError: If the file is broken.
    """
    return _read(path)[1] if path.is_file() else None


def _read(path: Path) -> tuple[dict[str, TunedSearch], DefaultSearch | None]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {name: _parse(name, own) for name, own in content["searches"].items()}
        default = DefaultSearch(**content["default"]) if "default" in content else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a file of tuned searches ({error}); write it with recipes/tune_decoding.py"
        ) from None
    return found, default


def _parse(name: str, own: dict[str, Any]) -> TunedSearch:
    known = {
        "ctc_weight",
        "phone_weight",
        "prior_weight",
        "length_bonus",
        *(f"lm.{name}" for name in asdict(FusionConfig()) if "weight" in name),
    }
    weights = {weight: float(value) for weight, value in own["weights"].items()}
    if name.startswith("lexicon"):
        weights.setdefault("prior_weight", 0.0)  # files from before there was one
    if not known.issuperset(weights):
        raise ValueError(f"unknown weight {sorted(weights.keys() - known)[0]!r}")
    return TunedSearch(
        weights=weights, calibration=Calibration.from_dict(own["calibration"]), development=own.get("development", {})
    )


def find_tuned(folder: Path, config: DecodingConfig) -> TunedSearch:
    """What was tuned for a way to search and lies beside the weights of a model; nothing where there is no such file.

    Raises:
        ValueError: If the file is broken.
    """
    path = folder / TUNED_FILE
    return read_tuned(path).get(variant_name(config), TunedSearch()) if path.is_file() else TunedSearch()
