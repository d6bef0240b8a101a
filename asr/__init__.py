"""Speech recognition with attention and CTC.

    import asr
    model = asr.load_model()  # the one that came with this package; or a path, or OWNER/NAME on the hub
    print(model.transcribe("speech.flac").text)

What these names stand for is imported when it is first asked for, so that `asr --help` need not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr.speech_model import SpeechModel as SpeechModel
    from asr.speech_model import load_model as load_model

__all__ = ["SpeechModel", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from asr import speech_model

    return getattr(speech_model, name)
