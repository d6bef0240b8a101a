"""Archives from the network, safely: mirrors, resumed downloads, checksums, room on the disk, and no path escapes."""

import gzip
import hashlib
import http.client
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

_BLOCK = 1 << 20
_TIMEOUT_S = 30.0
# What a connection may raise while it is opened or read; a failing disk is not among them.
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class DownloadError(OSError):
    """No mirror delivered a file; the message says what each of them did."""


def download(urls: Sequence[str], target: Path, *, md5: str, num_bytes: int, progress: bool) -> None:
    """Downloads a file from the first of several mirrors that has it whole.

    What has arrived stays in `TARGET.part`, so that a broken download goes on where it stopped, with the same mirror,
    the next one, or the next run. A server that does not know ranges sends all of it again. A `target` that is
    already there is only checked.

    Args:
        urls: the same file on each mirror, http or https, in the order of preference.
        target: where the file goes.
        md5: its checksum, 32 hexadecimal digits.
        num_bytes: its size; a mirror that offers another one is passed over.
        progress: show progress bars on standard error.

    Raises:
        DownloadError: if no mirror has it with this checksum.
        ValueError: if a file is there but has another checksum, or an address is not http or https.
        OSError: if it cannot be written.
    """
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is not an address to download from; data.mirrors takes http:// and https://")
    if target.is_file():
        if (found := checksum(target, progress=progress)) != md5:
            raise ValueError(f"{target}: its MD5 is {found}, expected {md5}; delete it to download it again")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    failures = []
    for url in urls:
        try:
            failure = _fetch_and_check(url, part, md5=md5, num_bytes=num_bytes, progress=progress)
            if failure is None:
                part.replace(target)
                return
        except OSError as error:
            raise OSError(error.errno, f"{part}: {error.strerror}; what has arrived is kept") from error
        failures.append(f"{url}: {failure}")
    raise DownloadError(
        f"{target.name} could not be downloaded: {'; '.join(failures) or 'data.mirrors names none'}; "
        f"try again later (it resumes), name another mirror in data.mirrors, or put the file at {target} yourself"
    )


def checksum(path: Path, *, progress: bool) -> str:
    """Returns a file's MD5 as 32 hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    size = path.stat().st_size
    with (
        path.open("rb") as stream,
        tqdm(
            desc=f"checking {path.name}", total=size, unit="B", unit_scale=True, disable=None if progress else True
        ) as bar,
    ):
        while block := stream.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def require_space(folder: Path, num_bytes: int, *, purpose: str) -> None:
    """Checks that a disk has room before anything is written to it.

    Raises:
        OSError: if it has less than `num_bytes` free.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise OSError(
            f"{folder}: {purpose} needs {num_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; "
            "make room, or set data.root to another disk"
        )


def extract(archive: Path, folder: Path, *, progress: bool) -> None:
    """Unpacks a .tar.gz archive of plain files and folders into `folder`; what lies outside of it cannot be touched.

    Raises:
        ValueError: if the archive is damaged, or a member has an absolute path, a `..` in its path, or is anything but
            a file or a folder (a link could lead out of the folder, so none is accepted).
        OSError: if it cannot be written.
    """
    bar = tqdm(
        desc=f"unpacking {archive.name}",
        total=archive.stat().st_size,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    )
    try:
        with bar, archive.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:gz") as tar:
            for member in tar:
                _refuse_unsafe(archive, member)
                tar.extract(member, folder, filter="data")
                bar.update(stream.tell() - bar.n)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{archive}: the archive is damaged: {error}; delete it to download it again") from error


def _refuse_unsafe(archive: Path, member: tarfile.TarInfo) -> None:
    """Raises a ValueError for a member that is not a plain file or folder inside of the archive's own tree."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        reason = "its path leads out of the folder"
    elif not (member.isfile() or member.isdir()):
        reason = "it is a link or a device, and a corpus has only files and folders"
    else:
        return
    raise ValueError(
        f"{archive}: refused to unpack {member.name!r}: {reason}; delete the archive, it is not the corpus"
    )


def _fetch_and_check(url: str, part: Path, *, md5: str, num_bytes: int, progress: bool) -> str | None:
    """Gets a whole file with the right checksum into `part`; returns what went wrong, None if nothing did."""
    resumed = part.is_file() and part.stat().st_size > 0
    failure = _fetch(url, part, num_bytes=num_bytes, progress=progress)
    if failure is None and (found := checksum(part, progress=progress)) != md5:
        part.unlink()
        if resumed:  # the older piece may have been the bad one
            return _fetch_and_check(url, part, md5=md5, num_bytes=num_bytes, progress=progress)
        failure = f"its MD5 is {found}, expected {md5}"
    return failure


def _fetch(url: str, part: Path, *, num_bytes: int, progress: bool) -> str | None:
    """Reads a URL into `part`, resuming as often as that brings it forward; returns what went wrong."""
    while True:
        have = part.stat().st_size if part.is_file() else 0
        if have >= num_bytes:
            return None
        failure = "the connection was cut"
        try:
            _fetch_once(url, part, have=have, num_bytes=num_bytes, progress=progress)
        except urllib.error.HTTPError as error:
            error.close()
            return f"HTTP {error.code} {error.reason}"
        except _NETWORK_ERRORS as error:
            failure = str(error) or type(error).__name__
        if not part.is_file() or part.stat().st_size <= have:
            return failure


def _fetch_once(url: str, part: Path, *, have: int, num_bytes: int, progress: bool) -> None:
    """Makes one request for what `part`, which has the first `have` bytes, still lacks."""
    headers = {"User-Agent": "asr-attention", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers | ({"Range": f"bytes={have}-"} if have else {}))
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        if have and _range_start(response) != have:
            have = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        # Before the part is touched: a login page of some network must not replace what took hours to arrive.
        if length is not None and have + int(length) != num_bytes:
            raise http.client.HTTPException(f"it offers {have + int(length)} bytes, expected {num_bytes}")
        bar = tqdm(
            desc=part.name.removesuffix(".part"),
            initial=have,
            total=num_bytes,
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        )
        with bar, part.open("ab" if have else "wb") as stream:
            while block := _read_block(response):
                stream.write(block)
                bar.update(len(block))


def _range_start(response: http.client.HTTPResponse) -> int:
    """Returns the byte that a response begins with: 0 unless it answers a range."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if response.status == 206 and found else 0


def _read_block(response: http.client.HTTPResponse) -> bytes:
    """Reads on; returns nothing at the end, be it a cut. An error of the network is told from one of the disk here."""
    try:
        return response.read1(_BLOCK)
    except http.client.IncompleteRead:
        return b""
    except OSError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
