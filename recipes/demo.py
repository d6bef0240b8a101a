"""The whole way in one command, on the embedded corpus: build it, train, evaluate, transcribe one file. `make demo`"""

import subprocess
import sys
import time
from pathlib import Path

from asr.data import manifest

RECIPES = Path(__file__).parent
RUN = Path("runs/synthetic")


def step(title: str, *command: str) -> None:
    """Runs one command, shown as it could be typed.

    Raises:
        SystemExit: With its exit code, if the command fails.
    """
    shown = " ".join(word.removeprefix(f"{RECIPES.parent}/") for word in command)
    print(f"\n--- {title}\n$ {shown}", flush=True)
    program = [sys.executable, *command] if command[0] != "asr" else [sys.executable, "-m", "asr.cli", *command[1:]]
    code = subprocess.run(program, check=False).returncode
    if code:
        sys.exit(code)


def main() -> None:
    """Runs the steps, and says what was spoken in the file that is transcribed."""
    started = time.monotonic()
    step("a corpus of synthetic speech", f"{RECIPES}/prepare.py", "data=synthetic")
    step("train, and evaluate on unseen voices and sentences", f"{RECIPES}/train.py", "experiment=synthetic")
    utterance = manifest.read(Path("manifests/synthetic/synthetic-test.jsonl"))[0]
    step("transcribe a file", "asr", "transcribe", str(utterance.audio), "--model", str(RUN), "--decoding", "joint")
    print(f"said: {utterance.text}")
    print(
        f"\n{(time.monotonic() - started) / 60:.1f} minutes. Results: {RUN}/synthetic-test/ (results.json, errors.txt)"
    )
    print(f"Curves, transcripts, spectrograms, attention: .venv/bin/tensorboard --logdir {RUN}")


if __name__ == "__main__":
    main()
