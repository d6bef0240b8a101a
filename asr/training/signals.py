"""SIGINT and SIGTERM as a wish to stop after the present step."""

import logging
import signal
from types import FrameType, TracebackType
from typing import Self

logger = logging.getLogger(__name__)


class StopSignals:
    """Notes SIGINT and SIGTERM while its block runs; a second signal ends the process at once, as always.

    Attributes:
        number: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> Self:
        self._previous = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        for each in self._previous:
            signal.signal(each, self._note)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()
        logger.info("%s: saving after this step", signal.Signals(number).name)

    def _restore(self) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)
