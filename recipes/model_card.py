"""The README.md of a released model: what it is, what it is good for, and what was measured of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from asr.checkpoint import LoadedModel
from asr.model_figures import Figures, files_of, size
from asr.report import percent
from asr.search_choice import OWN_LEXICON, OWN_NEURAL, OWN_NGRAM, SECOND_PASS
from asr.variants import DefaultSearch


@dataclass(slots=True, kw_only=True)
class CardConfig:
    """What only people know of a model; sentences are Markdown.

    Attributes:
        name: Of the model, as OWNER/NAME on the hub, or NAME.
        summary: One or two sentences that open the card.
        language: Its code, such as `en`.
        license: Its identifier on the hub, such as `cc-by-4.0`.
        datasets: Identifiers of the corpora on the hub.
        tags: Words to be found by, beside `automatic-speech-recognition`.
        training_data: One entry a corpus: what, how much, whose, under which licence.
        intended_use: One entry each.
        limits: One entry each.
        reproduce: The commands, from the data to this folder.
        attribution: Whom to name, one entry each.
    """

    name: str
    summary: str
    language: str
    license: str
    datasets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    training_data: list[str] = field(default_factory=list)
    intended_use: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    reproduce: list[str] = field(default_factory=list)
    attribution: list[str] = field(default_factory=list)


def card_text(
    config: CardConfig,
    loaded: LoadedModel,
    *,
    default: DefaultSearch,
    figures: Sequence[Figures],
    folder: Path,
) -> str:
    """The whole card, with the front matter that the hub reads.

    Args:
        config: What people say of the model.
        loaded: The model.
        default: How it searches where nothing is said.
        figures: What was measured, in the order to show it.
        folder: What is released, but for the card; the sizes of its files are told.
    """
    sections = {
        "Use": _use(config),
        "Figures": _figures(figures),
        "Intended use": _items(config.intended_use),
        "Limits": _items(config.limits),
        "The model": _model(loaded, default, folder),
        "Training data": _items(config.training_data),
        "How to reproduce": _console(config.reproduce),
        "Licence and attribution": f"{config.license.upper().replace('CC-BY-', 'CC BY ')}\n\n"
        f"{_items(config.attribution)}",
    }
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in sections.items() if text.strip())
    front = OmegaConf.to_yaml(OmegaConf.create(front_matter(config, figures)))
    return f"---\n{front}---\n\n# {config.name.split('/')[-1]}\n\n{config.summary.strip()}\n\n{body}\n"


def front_matter(config: CardConfig, figures: Sequence[Figures]) -> dict[str, Any]:
    """What the hub reads of a card; word error rates are in percent there."""
    content: dict[str, Any] = {
        "license": config.license,
        "language": config.language,
        "library_name": "asr-attention",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["automatic-speech-recognition", *config.tags],
        "metrics": ["wer"],
    }
    if config.datasets:
        content["datasets"] = list(config.datasets)
    best: dict[str, Figures] = {}
    for each in figures:
        best.setdefault(each.set, each)
    if best:
        results = [
            {
                "task": {"type": "automatic-speech-recognition", "name": "Automatic Speech Recognition"},
                "dataset": {"type": name, "name": name},
                "metrics": [{"type": "wer", "value": round(100 * each.wer, 2), "name": f"WER, {each.search}"}],
            }
            for name, each in best.items()
        ]
        content["model-index"] = [{"name": config.name.split("/")[-1], "results": results}]
    return content


def _use(config: CardConfig) -> str:
    on_hub = "/" in config.name
    name = config.name if on_hub else "FOLDER"
    needs = " and `huggingface_hub`" if on_hub else ""
    return f"""With the toolkit `asr-attention`{needs} installed:

```console
$ asr transcribe speech.flac --model {name}
```

```python
import asr

model = asr.load_model("{name}")
transcript = model.transcribe("speech.flac")
print(transcript.text)
for segment in transcript.segments:
    for word in segment.words:
        print(word.word, word.start_s, word.end_s, word.confidence)
```

Audio may be FLAC, WAV, Ogg or MP3, of any sample rate and length. Without a name, the toolkit takes the model that came
with it."""


def _figures(figures: Sequence[Figures]) -> str:
    if not figures:
        return ""
    rows = [
        "| set | search | WER | 95 % interval | by speaker | best / median / worst speaker | CER | times real time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in figures:
        speakers = " / ".join(f"{100 * rate:.0f} %" for rate in each.wer_of_speakers or ())
        cells = [
            each.set,
            f"{each.search}{'' if each.search == 'greedy' else f', beam {each.beam_size}'}",
            percent(each.wer),
            _interval(each.wer_ci95),
            _interval(each.wer_ci95_by_speaker),
            speakers or "–",
            percent(each.cer),
            f"{each.rtfx:.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    sizes = {each.set: f"{each.set}: {each.utterances:,} utterances, {each.words:,} words" for each in figures}
    speakers = {each.set: f", {each.speakers} speakers" if each.speakers else "" for each in figures}
    sets = "; ".join(f"{text}{speakers[name]}" for name, text in sizes.items())
    rows += [
        "",
        f"{sets}. Intervals are bootstrap intervals, drawn over utterances and over speakers. Text is scored in lower "
        "case without punctuation. Speed depends on the machine; these figures compare the searches.",
    ]
    return "\n".join(rows)


def _interval(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f} %"


_HELPERS = {
    OWN_NGRAM: f"the n-gram model `{OWN_NGRAM}`",
    OWN_LEXICON: f"the pronunciations `{OWN_LEXICON}`",
    OWN_NEURAL: f"the Transformer language model `{OWN_NEURAL}/`",
}


def _model(loaded: LoadedModel, default: DefaultSearch, folder: Path) -> str:
    encoder, decoder, features = loaded.config.encoder, loaded.config.decoder, loaded.config.features
    kind = type(loaded.tokenizer).__name__.removesuffix("Tokenizer").lower()
    tokens = {"char": "characters", "bpe": "byte-pair pieces"}[kind]
    search = "greedy search" if default.mode == "greedy" else f"`{default.mode}` search with beam {default.beam_size}"
    paths = {file: file.relative_to(folder) for file in files_of(folder)}
    there = {path.parts[0] for path in paths.values()}
    used = {OWN_NGRAM: True, OWN_LEXICON: default.mode == "lexicon", OWN_NEURAL: default.mode in SECOND_PASS}
    helpers = [text for name, text in _HELPERS.items() if name in there and used[name]]
    blocks = "one block" if decoder.num_layers == 1 else f"{decoder.num_layers} blocks"
    phones = f", another over {len(loaded.config.phones)} phones" if loaded.config.phones else ""
    attention = f" and an attention decoder of {blocks}" if decoder.num_layers else ""
    family = "an E-Branchformer" if encoder.block == "ebranchformer" else "a Conformer"
    lines = [
        f"{loaded.model.num_parameters() / 1e6:.2f} million parameters: {family} encoder of {encoder.num_layers} "
        f"blocks of width {encoder.width}, a CTC head{attention}, over "
        f"{loaded.tokenizer.vocab_size} {tokens}{phones}.",
        f"It hears {features.sample_rate / 1000:g} kHz audio as {features.num_mels} log-mel bands every "
        f"{features.hop_ms:g} ms; one encoder frame is {1000 * loaded.frame_s:g} ms.",
        f"Without options it uses {' and '.join([search, *helpers])}; "
        "`decoding.json` has the tuned weights of this and other ways to search.",
        "Files: " + ", ".join(f"`{path}` {size(file)}" for file, path in paths.items()) + ".",
    ]
    return _items(lines)


def _items(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _console(commands: Sequence[str]) -> str:
    return "\n".join(["```console", *(f"$ {command}" for command in commands), "```"]) if commands else ""
