"""The `asr` command. Each subcommand is one `add_…` that declares it and one `run_…` that does it.

Modules that import torch take seconds to load, so every `run_…` imports what it needs itself.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.errors import one_line
from asr.garbage import keep_few_kernels, without_collections
from asr.writers import FORMATS

if TYPE_CHECKING:
    # The annotation alone; at run time `argparse._SubParsersAction` is not subscriptable.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_WIDTH_WITHOUT_TERMINAL = 100
# asr.decoding.search has them too; a test sees to it that they agree.
DECODINGS = ("greedy", "prefix_beam", "attention", "joint", "rescore", "lexicon", "spell")
PRECISIONS = ("auto", "float32", "bfloat16")  # as in asr.devices, which imports torch and takes long to import


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        The exit code: 0 for success, 1 for an error that was printed, 130 when interrupted from the keyboard.

    Raises:
        SystemExit: from argparse: code 2 for wrong usage, 0 after --help and --version.
    """
    args = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        code = run(args)
        # Whoever reads the output may have left; flushed here, that shows while it can still be caught.
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at exit and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        print("error: not enough GPU memory; use --device cpu", file=sys.stderr)
        return 1
    return code


def build_parser() -> argparse.ArgumentParser:
    """Declare the command, with all its subcommands."""
    parser = argparse.ArgumentParser(
        prog="asr", description="Speech recognition: transcribe audio and score transcripts."
    )
    parser.add_argument("--version", action=_VersionAction, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(subparsers)
    return parser


def add_score(subparsers: "Subparsers") -> None:
    """Declare `asr score`."""
    parser = subparsers.add_parser(
        "score",
        help="word and character error rates of a hypothesis",
        description="Score two files of `ID words…` lines, or two manifests (.jsonl), against each other. Case and "
        "punctuation do not count.",
    )
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="what was said")
    parser.add_argument("hypothesis", type=Path, metavar="HYPOTHESIS", help="what was recognised")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OTHER_HYPOTHESIS",
        help="score this one too and test the difference (paired bootstrap)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the figures as JSON, rates as fractions")
    output.add_argument(
        "--errors",
        type=_count,
        default=5,
        metavar="N",
        help="print the N utterances with most errors, aligned word by word (default: %(default)s)",
    )
    parser.set_defaults(run=run_score)


def run_score(args: argparse.Namespace) -> int:
    """Do `asr score`."""
    from asr import evaluate, report

    references, speakers = _read_texts(args.reference)
    hypotheses, _ = _read_texts(args.hypothesis)
    score = evaluate.score(references, hypotheses, speakers=speakers)
    scores = {str(args.hypothesis): score}
    comparison = None
    if args.compare is not None:
        others, _ = _read_texts(args.compare)
        comparison = evaluate.compare(references, hypotheses, others, speakers=speakers)
        scores[str(args.compare)] = evaluate.score(references, others, speakers=speakers)

    if args.json:
        figures: dict[str, Any] = score.to_dict()
        if comparison is not None:
            figures["comparison"] = comparison.to_dict()
        print(json.dumps(figures, indent=2, ensure_ascii=False))
        return 0
    parts = [report.summary_table(scores)]
    if comparison is not None:
        parts.append(report.comparison_text(comparison, name_a=str(args.hypothesis), name_b=str(args.compare)))
        parts.append(f"errors of {args.hypothesis}:")
    parts.append(report.confusion_lists(score))
    if args.errors:
        parts.append(report.aligned_errors(score, width=_terminal_width(), limit=args.errors))
    print("\n\n".join(filter(None, parts)))
    return 0


def add_transcribe(subparsers: "Subparsers") -> None:
    """Declare `asr transcribe`."""
    parser = subparsers.add_parser(
        "transcribe",
        help="audio files to text",
        description="Transcribe audio files of any format, rate and length, and all audio in folders. Without "
        "--output-dir the transcripts go to standard output, and nothing else does.",
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="FILE|DIR|-", help="what to transcribe; - is a stream")
    _add_model(parser, "--model")
    parser.add_argument("--format", choices=tuple(FORMATS), default="txt", help="of the transcripts (default: txt)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="write one file for each audio file there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument(
        "--decoding",
        choices=DECODINGS,
        help="search (default: what the model proposes; else greedy, prefix_beam with an n-gram or --hotwords, joint "
        "with a neural --lm; in place of a model's lexicon search joint with another --lm)",
    )
    parser.add_argument("--beam-size", type=_count, metavar="N", help="of a beam search (default: the model's own)")
    parser.add_argument(
        "--lm",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="an ARPA file or compact file of n-grams, in place of the model's own, or a folder with a neural model; "
        "twice for one of each; none leaves out the model's own",
    )
    parser.add_argument("--hotwords", type=Path, metavar="FILE", help="words and phrases to expect, one a line")
    parser.add_argument(
        "--hotword-language",
        metavar="CODE",
        help="voice of espeak-ng that says hotwords which a model's lexicon lacks (default: en-us)",
    )
    parser.add_argument(
        "--speller",
        type=Path,
        metavar="FOLDER",
        help="a model that spells the phones which were heard (recipes/train_speller.py), in place of any other search",
    )
    parser.add_argument("--threads", type=_count, default=0, metavar="N", help="processor threads (default: 0, all)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the encoder (default: auto, bfloat16 where the device has instructions for it, else float32)",
    )
    parser.set_defaults(run=run_transcribe)


def run_transcribe(args: argparse.Namespace) -> int:
    """Do `asr transcribe`."""
    keep_few_kernels()
    with without_collections():
        from asr import checkpoint, hub
        from asr.devices import pick_device
        from asr.search_choice import SearchOptions, choose_search
        from asr.transcribe import transcribe_files

    folder = checkpoint.find_model(hub.locate(args.model))
    options = SearchOptions(
        mode=args.decoding,
        beam_size=args.beam_size,
        lms=tuple(args.lm),
        hotwords=args.hotwords,
        hotword_language=args.hotword_language,
        speller=args.speller,
    )
    decoding, tuned = choose_search(folder, options)
    failures = transcribe_files(
        checkpoint.load(folder, device=pick_device(args.device, num_threads=args.threads)),
        args.inputs,
        format=args.format,
        output_dir=args.output_dir,
        decoding=decoding,
        tuned=tuned,
        precision=args.precision,
    )
    return 1 if failures else 0


def add_align(subparsers: "Subparsers") -> None:
    """Declare `asr align`."""
    parser = subparsers.add_parser(
        "align",
        help="times of the words of a known text",
        description="Find when each word of a text is said in its recording, and print the words with times and "
        "confidences.",
    )
    parser.add_argument("audio", type=Path, metavar="AUDIO", help="the recording, of any length")
    parser.add_argument("transcript", type=Path, metavar="TRANSCRIPT", help="a text file of all that is said in it")
    _add_model(parser, "--model")
    parser.add_argument("--format", choices=("ctm", "json", "textgrid"), default="ctm", help="default: ctm")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.set_defaults(run=run_align)


def run_align(args: argparse.Namespace) -> int:
    """Do `asr align`."""
    with without_collections():
        from asr import checkpoint, hub
        from asr.alignment import align_file
        from asr.devices import pick_device

    text = _read_text(args.transcript)
    loaded = checkpoint.load(hub.locate(args.model), device=pick_device(args.device))
    print(FORMATS[args.format].write(align_file(loaded, args.audio, text)), end="")
    return 0


def add_info(subparsers: "Subparsers") -> None:
    """Declare `asr info`."""
    parser = subparsers.add_parser(
        "info",
        help="what a model is made of, and its error rates",
        description="Print sizes, tokens, training, files and measured error rates of a model.",
    )
    _add_model(parser, "model", nargs="?")
    parser.set_defaults(run=run_info)


def run_info(args: argparse.Namespace) -> int:
    """Do `asr info`."""
    from asr import checkpoint, hub, model_figures

    print(model_figures.describe(checkpoint.load(hub.locate(args.model))))
    return 0


# In the order of `asr --help`.
COMMANDS: tuple[Callable[["Subparsers"], None], ...] = (add_transcribe, add_align, add_score, add_info)


def _add_model(parser: argparse.ArgumentParser, name: str, *, nargs: str | None = None) -> None:
    parser.add_argument(
        name,
        nargs=nargs,
        metavar="NAME|PATH",
        help="a model folder, a run folder, or OWNER/NAME on the Hugging Face hub (default: the model that came with "
        "this package)",
    )


def _read_texts(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Texts and speakers by utterance id, from a manifest or a file of `ID words…` lines, which knows no speakers."""
    if path.suffix == ".jsonl":
        from asr.data import manifest

        utterances = manifest.read(path)
        texts = {utterance.id: utterance.text for utterance in utterances}
        return texts, {utterance.id: utterance.speaker for utterance in utterances}
    from asr.evaluate import read_texts

    return read_texts(path), {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start + 1} is not UTF-8 text; convert the file to UTF-8") from None


def _terminal_width() -> int:
    if not sys.stdout.isatty():
        return _WIDTH_WITHOUT_TERMINAL
    return shutil.get_terminal_size((_WIDTH_WITHOUT_TERMINAL, 0)).columns


def _count(text: str) -> int:
    """An argument that is a number of things."""
    number = int(text) if text.isdecimal() else -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return number


class _VersionAction(argparse.Action):
    """Print the installed version; looking it up takes a while, so not before it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"asr {version('asr-attention')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
