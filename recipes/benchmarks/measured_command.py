"""Runs a command and prints how it ended, what it took and its most memory, as JSON on the last line.

A program of its own that imports little, and no part of the benchmark's process: where one process starts another, the
system counts the memory of the first as the peak of the second, so what starts it has to be small.
"""

import json
import os
import subprocess
import sys


def main(command: list[str]) -> None:
    """Runs a command, whose output goes nowhere; what it says on standard error is let through."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024  # bytes there, KiB elsewhere
    print(json.dumps({"exit_code": os.waitstatus_to_exitcode(status), "peak_bytes": peak}))


if __name__ == "__main__":
    main(sys.argv[1:])
