"""Speech from espeak-ng, which the wheel `espeakng-loader` carries: a worker process around its C interface.

espeak-ng keeps its state in C globals: one voice at a time, and random numbers and pitch flutter that run on from one
utterance to the next. So each `Synthesizer` speaks in a fresh process of its own: equal requests in equal order give
equal bytes, and what goes wrong in the C code cannot take the caller down. The worker needs only the standard library.

The two talk through pipes: a request is one line of JSON, an answer one line of JSON followed by the samples' bytes.
C interface: https://github.com/espeak-ng/espeak-ng/blob/master/src/include/espeak-ng/speak_lib.h
"""

import ctypes
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

SAMPLE_RATE = 22050

# Names and numbers of speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000  # without it the library ends the whole process when it misses its data
CHARS_UTF8 = 1
PHONEMES_IPA = 0x02
PHONEME_SEPARATOR = "|"
EE_OK = 0
RATE, VOLUME, PITCH, PITCH_RANGE = 1, 2, 3, 4
SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

# The library copies the path of its data into 160 bytes and cuts off what is longer.
MAX_DATA_PATH_BYTES = 150


class EspeakError(OSError):
    """The synthesiser is missing, or it refused a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One text to speak.

    Args:
        text: words; the pronunciation is espeak-ng's own.
        accent: an English voice of espeak-ng by its language code, such as "en-us" ("en" is British).
        variant: the file in `voices/!v` that bends the voice into another speaker, such as "m1" or "f2".
        rate_wpm: words per minute, 80 to 450.
        pitch: 0 to 100, 50 is the variant's own.
        pitch_range: 0 (monotone) to 100, 50 is the variant's own.
        volume: 0 to 200; at 100 many variants clip.
    """

    text: str
    accent: str
    variant: str
    rate_wpm: int = 175
    pitch: int = 50
    pitch_range: int = 50
    volume: int = 50


def require_wheel() -> None:
    """Checks that speech can be made here at all.

    Raises:
        EspeakError: the wheel `espeakng-loader` is not installed.
    """
    try:
        importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise EspeakError(
            "espeakng-loader is not installed; pronunciations and synthetic speech need it: pip install '.[recipes]'"
        ) from error


class Synthesizer:
    """Speaks requests one after the other, in a process of its own; use it as a context manager.

    Raises:
        EspeakError: the wheel `espeakng-loader` is not installed.
    """

    def __init__(self) -> None:
        require_wheel()
        # -P keeps this file's folder off the module path: its neighbours must not hide modules of the same name.
        command = [sys.executable, "-P", str(Path(__file__).resolve())]
        # In a session of its own, Ctrl-C reaches the caller alone, which then ends the worker.
        self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def __enter__(self) -> "Synthesizer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker; closing twice is harmless."""
        try:
            self._worker.communicate(timeout=5)  # the end of its requests is the worker's end
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.communicate()

    def speak(self, request: Request) -> bytes:
        """Speaks one request.

        Returns:
            The samples as signed 16-bit integers in the machine's byte order, mono, at `SAMPLE_RATE`.

        Raises:
            EspeakError: espeak-ng does not know the accent or the variant, made no sound, or died.
        """
        return self._ask(asdict(request), name=str(request))

    def phonemes(self, words: Sequence[str], *, language: str) -> list[str]:
        """How words are spoken one by one.

        Args:
            words: Any number of them.
            language: A voice of espeak-ng by its language code, such as "en-us" or "de".

        Returns:
            Of each word its phonemes in the International Phonetic Alphabet, with marks of stress and length, parted by
            `PHONEME_SEPARATOR`.

        Raises:
            EspeakError: espeak-ng does not know the language, or died.
        """
        answer = self._ask({"words": list(words), "language": language}, name=f"{len(words)} words")
        found: list[str] = json.loads(answer)
        return found

    def _ask(self, request: dict[str, Any], *, name: str) -> bytes:
        to_worker, from_worker = self._worker.stdin, self._worker.stdout
        assert to_worker is not None and from_worker is not None
        try:
            to_worker.write(json.dumps(request).encode() + b"\n")
            to_worker.flush()
            answer = json.loads(from_worker.readline())
        except (OSError, ValueError) as error:
            self.close()
            raise EspeakError(f"espeak-ng ended at {name} with exit code {self._worker.returncode}") from error
        if answer["error"]:
            raise EspeakError(answer["error"])
        return from_worker.read(answer["num_bytes"])


class _Library:
    """The C library, loaded into this process: in the worker only."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._data = Path(espeakng_loader.get_data_path())
        self._audio = bytearray()
        self._callback = SYNTH_CALLBACK(self._collect)  # kept: the library holds only a bare pointer to it
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
            ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
        path = self._data
        if len(os.fsencode(path)) > MAX_DATA_PATH_BYTES:
            self._shortcut = tempfile.TemporaryDirectory()  # kept: voices are read when they are first used
            path = Path(self._shortcut.name, "espeak-ng-data")
            path.symlink_to(self._data, target_is_directory=True)
        self._initialize(path)

    def _initialize(self, data: Path) -> None:
        rate = self._library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), INITIALIZE_DONT_EXIT)
        if rate != SAMPLE_RATE:
            raise EspeakError(
                f"espeak-ng cannot start from {self._data}: it answers {rate} Hz, expected {SAMPLE_RATE} Hz"
            )
        self._library.espeak_SetSynthCallback(self._callback)
        # The breath of some variants is random, and otherwise seeded by the clock.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(0))

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short]", num_samples: int, events: int | None) -> int:
        if samples and num_samples > 0:
            self._audio += ctypes.string_at(samples, num_samples * ctypes.sizeof(ctypes.c_short))
        return 0  # go on

    def speak(self, request: Request) -> bytes:
        """Speaks one request; returns 16-bit samples in the machine's byte order, one channel, at `SAMPLE_RATE`.

        Raises:
            EspeakError: The library has no such accent or variant, or fails.
        """
        # An unknown variant is no error to espeak-ng: it would speak with the plain voice.
        if not (self._data / "voices" / "!v" / request.variant).is_file():
            raise EspeakError(f"espeak-ng has no variant '{request.variant}'; see {self._data / 'voices' / '!v'}")
        if self._library.espeak_SetVoiceByName(f"{request.accent}+{request.variant}".encode()) != EE_OK:
            raise EspeakError(f"espeak-ng has no voice '{request.accent}'; see {self._data / 'lang'}")
        for parameter, value in (
            (RATE, request.rate_wpm),
            (PITCH, request.pitch),
            (PITCH_RANGE, request.pitch_range),
            (VOLUME, request.volume),
        ):
            if self._library.espeak_SetParameter(parameter, value, 0) != EE_OK:
                raise EspeakError(f"espeak-ng refuses {value} for its parameter {parameter} in {request}")
        self._audio.clear()
        text = request.text.encode()
        status = self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, CHARS_UTF8, None, None)
        if status != EE_OK or not any(self._audio):
            raise EspeakError(f"espeak-ng made no sound of {request}")
        return bytes(self._audio)

    def phonemes(self, words: list[str], language: str) -> list[str]:
        """Pronunciations of words; see `Synthesizer.phonemes`.

        Raises:
            EspeakError: The library has no such language.
        """
        if self._library.espeak_SetVoiceByName(language.encode()) != EE_OK:
            raise EspeakError(f"espeak-ng has no voice '{language}'; see {self._data / 'lang'}")
        mode = PHONEMES_IPA | ord(PHONEME_SEPARATOR) << 8
        found = []
        for word in words:
            rest = ctypes.c_char_p(word.encode())
            clauses = []
            while rest.value is not None:  # the library moves it on, by a clause each time
                clauses.append(self._library.espeak_TextToPhonemes(ctypes.byref(rest), CHARS_UTF8, mode).decode())
            found.append(PHONEME_SEPARATOR.join(clauses))
        return found


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answers requests until the pipe is closed."""
    library: _Library | None = None
    for line in requests:
        content, message = b"", ""
        try:
            library = library or _Library()
            request = json.loads(line)
            if "words" in request:
                content = json.dumps(library.phonemes(**request)).encode()
            else:
                content = library.speak(Request(**request))
        except OSError as error:
            message = str(error)
        answers.write(json.dumps({"error": message, "num_bytes": len(content)}).encode() + b"\n" + content)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
