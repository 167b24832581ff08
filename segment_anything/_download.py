"""Fetches one large file over HTTP: resumed where it stopped, verified, and renamed into place only when whole.

Standard library only, plus tqdm for the bar. It knows nothing of models; `checkpoints` says which files there are.
"""

import contextlib
import hashlib
import http.client
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

BLOCK_BYTES = 1 << 20
FRUITLESS_ATTEMPTS = 3
"""How many attempts in a row may bring no byte before giving up."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at a fixed address, with the size and hash that it must have."""

    file: str
    """Its name in the folder it is put in."""
    url: str
    size_bytes: int
    sha256: str


class DownloadError(OSError):
    """The file could not be fetched; the message is a reason that fits behind a colon."""


def download(
    remote: RemoteFile, folder: Path, *, progress: bool = True, timeout_s: float = 30.0, pause_s: float = 1.0
) -> Path:
    """Fetch `remote` into `folder`, and return its path there.

    What has arrived is kept as `<file>.part`; the next attempt, or the next call, asks for the rest. A connection that
    breaks is opened again as long as bytes arrive.

    Args:
        remote: what to fetch.
        folder: where to; made if missing.
        progress: show a bar on a terminal's standard error.
        timeout_s: longest silence of the server.
        pause_s: wait before an attempt that follows one without a byte; doubled each time.

    Raises:
        DownloadError: if there is no connection, no room on the disk, or the file there has another size or hash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / remote.file, folder / f"{remote.file}.part"
    with _one_at_a_time(folder):
        if target.exists():  # another process fetched it while this one waited
            return target
        if _size(part) > remote.size_bytes:  # left from another file of this name
            part.unlink()
        _check_room(remote, part)
        with tqdm(
            total=remote.size_bytes,
            initial=_size(part),
            unit="B",
            unit_scale=True,
            desc=remote.file,
            disable=None if progress else True,
        ) as bar:
            _fetch_all(remote, part, bar, timeout_s, pause_s)
        _verify(remote, part)
        os.replace(part, target)
    return target


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_all(remote: RemoteFile, part: Path, bar: "tqdm[Any]", timeout_s: float, pause_s: float) -> None:
    fruitless = 0
    started = False
    while _size(part) < remote.size_bytes:
        before = _size(part)
        try:
            _fetch_rest(remote, part, bar, timeout_s)
            reason = f"the server closed the connection after {_size(part)} of {remote.size_bytes} bytes"
        except urllib.error.HTTPError as error:
            raise DownloadError(f"the server answered {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError) as error:
            reason = f"no connection ({getattr(error, 'reason', None) or error})"
        if _size(part) > before:
            started, fruitless = True, 0
            continue
        fruitless += 1
        # Without a network even the first attempt brings nothing: then say so at once instead of trying again.
        if not started or fruitless == FRUITLESS_ATTEMPTS:
            raise DownloadError(reason)
        time.sleep(pause_s * 2**fruitless)


def _fetch_rest(remote: RemoteFile, part: Path, bar: "tqdm[Any]", timeout_s: float) -> None:
    """One request: append what is missing to `part`, or start it anew where the server cannot resume."""
    have = _size(part)
    headers = {"User-Agent": "segment-anything-engine"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(remote.url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        _check_offer(remote, response.headers.get("Content-Length"), have)
        bar.update(have - bar.n)
        with part.open("ab" if resumed else "wb") as file:
            while block := response.read(BLOCK_BYTES):
                file.write(block)
                bar.update(len(block))


def _check_offer(remote: RemoteFile, content_length: str | None, have: int) -> None:
    """A login page of the network, or a changed file, shows by its length before anything is written."""
    if content_length is not None and int(content_length) + have != remote.size_bytes:
        raise DownloadError(
            f"the address offers a file of {int(content_length) + have} bytes, expected {remote.size_bytes} "
            "(a proxy or a login page may stand between)"
        )


def _check_room(remote: RemoteFile, part: Path) -> None:
    needed, free = remote.size_bytes - _size(part), shutil.disk_usage(part.parent).free
    if needed > free:
        raise DownloadError(f"{part.parent} has {free >> 20} MiB left, {needed >> 20} MiB are needed")


def _verify(remote: RemoteFile, part: Path) -> None:
    size, digest = _size(part), sha256_of(part)
    if size != remote.size_bytes or digest != remote.sha256:
        part.unlink()
        raise DownloadError(
            f"what arrived has {size} bytes and SHA-256 {digest}, expected {remote.size_bytes} bytes and "
            f"{remote.sha256}; it was deleted"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """One process at a time downloads into `folder`; the others wait. Locking the folder leaves no file behind."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes may spoil each other's .part, which the hash then shows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
