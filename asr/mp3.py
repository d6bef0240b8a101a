"""The true length of MP3 files.

An MP3 file is a row of frames and has no length of its own. Encoders put one in a silent first frame (the Xing or Info
header), and where it is missing decoders guess from the first frames' bit rate: libsndfile 1.2 then drops half of a
variable-rate file without a word, and the second of two joined files as well. Here the frames are counted, and where
the header is missing or wrong the decoder is shown the file with a right one in front.
"""

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

_BITRATES_KBPS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# By the header's two version bits: 0 is MPEG 2.5, 2 is MPEG 2, 3 is MPEG 1.
_SAMPLE_RATES = {0: (11025, 12000, 8000), 2: (22050, 24000, 16000), 3: (44100, 48000, 32000)}
_CHUNK_BYTES = 1 << 16
# A frame is at most 1441 bytes long; the length header lies in its first 200.
_MAX_FRAME_BYTES = 1441


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """One Layer III frame header.

    Attributes:
        kind: what all frames of one stream share: version and sample rate.
        num_bytes: the whole frame's length.
        tag_offset: where a Xing or Info header starts, from the frame's start.
    """

    kind: tuple[int, int]
    num_bytes: int
    tag_offset: int


def with_true_length(file: BinaryIO) -> BinaryIO:
    """A file to decode instead of this one, whose header tells the true number of frames.

    Args:
        file: any file that can seek.

    Returns:
        `file` itself, at its start, where its header is right or where it is no plain MP3 file.
    """
    if not _is_mp3(file):
        file.seek(0)
        return file
    start, num_frames = _count_frames(file)
    file.seek(start)
    first = file.read(_MAX_FRAME_BYTES)
    file.seek(0)
    frame = _parse(first[:4])
    if frame is None or first[36:40] == b"VBRI":
        return file
    at = frame.tag_offset
    flags = int.from_bytes(first[at + 4 : at + 8], "big")
    if first[at : at + 4] in (b"Xing", b"Info") and flags & 1:
        num_frames -= 1
        if int.from_bytes(first[at + 8 : at + 12], "big") == num_frames:
            return file
        # The rest of the header stays: it says how much of the encoder's delay to cut off.
        fixed = bytearray(first[: frame.num_bytes])
        struct.pack_into(">I", fixed, at + 8, num_frames)
        if flags & 2:
            struct.pack_into(">I", fixed, at + 12, file.seek(0, 2) - start)
        prefix = bytes(fixed)
        return _Prefixed(prefix, file, start + frame.num_bytes)  # type: ignore[return-value]
    return _Prefixed(_length_frame(first[:4], num_frames), file, start)  # type: ignore[return-value]


def _parse(header: bytes) -> _Frame | None:
    """The frame that four bytes announce; None where they are no Layer III header of a known bit rate."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, rate_index, bitrate_index = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version == 1 or rate_index == 3 or bitrate_index in (0, 15):
        return None
    is_first_version = version == 3
    sample_rate = _SAMPLE_RATES[version][rate_index]
    bitrate = _BITRATES_KBPS[1 if is_first_version else 2][bitrate_index] * 1000
    num_bytes = (144 if is_first_version else 72) * bitrate // sample_rate + (header[2] >> 1 & 1)
    is_mono = header[3] >> 6 == 3
    side_info = (17 if is_mono else 32) if is_first_version else (9 if is_mono else 17)
    return _Frame(kind=(version, sample_rate), num_bytes=num_bytes, tag_offset=4 + side_info)


def _is_mp3(file: BinaryIO) -> bool:
    """Whether a file starts with a Layer III frame, or with an ID3 tag that no FLAC file follows."""
    file.seek(0)
    header = file.read(4)
    if header[:3] == b"ID3":
        file.seek(_after_tags(file, 0))
        return file.read(4) != b"fLaC"
    return _parse(header) is not None


def _count_frames(file: BinaryIO) -> tuple[int, int]:
    """Offset of the first frame and number of complete frames, with tags and damage between frames passed over."""
    size = file.seek(0, 2)
    position = _after_tags(file, 0)
    start, num_frames = position, 0
    kind: tuple[int, int] | None = None
    while position < size:
        file.seek(position)
        frame = _parse(file.read(4))
        if frame is None or frame.kind != (kind or frame.kind):
            position = _next_frame(file, _after_tags(file, position), kind)
            start = start if num_frames else position
            continue
        if position + frame.num_bytes > size:
            break
        kind = frame.kind
        position += frame.num_bytes
        num_frames += 1
    return start, num_frames


def _after_tags(file: BinaryIO, position: int) -> int:
    """The position behind any ID3v2 tags that start at `position`."""
    while True:
        file.seek(position)
        header = file.read(10)
        if len(header) < 10 or header[:3] != b"ID3":
            return position
        # Seven bits a byte; the flag 0x10 announces a footer.
        length = sum((byte & 0x7F) << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=True))
        position += 10 + length + (10 if header[5] & 0x10 else 0)


def _next_frame(file: BinaryIO, position: int, kind: tuple[int, int] | None) -> int:
    """The next position at which two frames of a kind follow each other, or the end of the file."""
    size = file.seek(0, 2)
    while position < size:
        file.seek(position)
        chunk = file.read(_CHUNK_BYTES + 3)
        at = chunk.find(b"\xff")
        while 0 <= at < _CHUNK_BYTES:
            frame = _parse(chunk[at : at + 4])
            if frame is not None and frame.kind == (kind or frame.kind):
                file.seek(position + at + frame.num_bytes)
                following = _parse(file.read(4))
                is_last = position + at + frame.num_bytes == size
                if is_last or (following is not None and following.kind == frame.kind):
                    return position + at
            at = chunk.find(b"\xff", at + 1)
        position += _CHUNK_BYTES
    return size


def _length_frame(header: bytes, num_frames: int) -> bytes:
    """A silent frame with a Xing header, in the format of the given frame header."""
    # The highest bit rate, so that the header fits; no checksum, no padding.
    marked = bytes([header[0], header[1] | 1, 0xE0 | header[2] & 0x0C, header[3]])
    frame = _parse(marked)
    assert frame is not None
    tag = b"Xing" + struct.pack(">II", 1, num_frames)
    return (marked + bytes(frame.tag_offset - 4) + tag).ljust(frame.num_bytes, b"\0")


class _Prefixed(io.RawIOBase):
    """Some bytes followed by a file from an offset on, for reading."""

    def __init__(self, prefix: bytes, file: BinaryIO, offset: int) -> None:
        super().__init__()
        self._prefix = prefix
        self._file = file
        self._offset = offset
        self._size = len(prefix) + file.seek(0, 2) - offset
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, (0, self._position, self._size)[whence] + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._position < len(self._prefix):
            part = self._prefix[self._position : self._position + len(buffer)]
            # A short read would pass for the end of the file.
            part += self._file_part(0, len(buffer) - len(part))
        else:
            part = self._file_part(self._position - len(self._prefix), len(buffer))
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _file_part(self, position: int, count: int) -> bytes:
        self._file.seek(self._offset + position)
        return self._file.read(count)
