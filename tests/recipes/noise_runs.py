"""A small corpus of noise with texts of the tiny tokenizer, and the arguments that train on it shortly."""

from pathlib import Path

from utterances import make_utterances


def make_arguments(root: Path) -> list[str]:
    """Writes a corpus of two sets and gives the arguments of a run on it, without those of the model."""
    for name, speakers in (("train", range(4)), ("test", range(4, 6))):
        for speaker in speakers:
            folder = root / name / str(speaker)
            utterances = make_utterances(folder, [0.5, 0.4], texts=("ab c", "a b"))
            for utterance in utterances:
                utterance.audio.rename(folder / f"{speaker}-1-{utterance.id}.flac")
            lines = [f"{speaker}-1-{utterance.id} {utterance.text}\n" for utterance in utterances]
            (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))
    trainer = {"valid_every": 2, "save_every": 2, "log_every": 1, "precision": "float32"}
    return [
        *("data=folder", f"data.root={root}", f"data.manifests={root / 'manifests'}", "data.holdout_utterances=2"),
        *("data.train=[train]", "data.test=[test]", "augment=none", "loader.max_batch_s=1", "loader.max_duration_s=1"),
        *(f"trainer.{key}={value}" for key, value in trainer.items()),
        *("device=cpu", "num_threads=1", "name=noise"),
    ]


SMALL_MODEL = [
    *("encoder.num_layers=2", "encoder.width=16", "encoder.num_heads=2", "encoder.feedforward_width=32"),
    *("encoder.kernel_size=5", "encoder.subsampling_channels=4", "decoder.num_heads=2", "decoder.feedforward_width=32"),
]
