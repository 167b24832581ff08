"""Fetching one file from a server that behaves, breaks, lies or is not there."""

import hashlib
import threading
from pathlib import Path

import pytest
from file_server import FileServer, serving

from segment_anything import _download
from segment_anything._download import DownloadError, RemoteFile, download

CONTENT = bytes(range(256)) * 40


def remote(server: FileServer, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile("weights.bin", server.url, len(content), hashlib.sha256(content).hexdigest())


def fetch(server: FileServer, folder: Path) -> Path:
    return download(remote(server), folder, progress=False, timeout_s=5, pause_s=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_alone_in_a_new_folder(tmp_path: Path) -> None:
    with serving(CONTENT) as server:
        path = fetch(server, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "weights.bin"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["weights.bin"]


def test_a_download_goes_on_where_an_earlier_one_stopped(tmp_path: Path) -> None:
    (tmp_path / "weights.bin.part").write_bytes(CONTENT[:1000])
    with serving(CONTENT) as server:
        assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_a_server_that_cannot_resume_is_read_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "weights.bin.part").write_bytes(b"x" * 1000)
    with serving(CONTENT, resumable=False) as server:
        assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_connection_that_breaks_midway_is_taken_up_again(tmp_path: Path) -> None:
    with serving(CONTENT, breaks_after=4000) as server:
        assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=4000-", "bytes=8000-"]


def test_a_server_that_stops_for_good_is_given_up_and_the_part_kept(tmp_path: Path) -> None:
    (tmp_path / "weights.bin.part").write_bytes(CONTENT[:1000])
    with (
        serving(CONTENT, breaks_after=0) as server,
        pytest.raises(DownloadError, match="closed the connection after 1000 of 10240 bytes"),
    ):
        fetch(server, tmp_path)
    assert (tmp_path / "weights.bin.part").read_bytes() == CONTENT[:1000]


def test_another_content_of_the_same_length_is_deleted_and_named_by_hash(tmp_path: Path) -> None:
    other = bytes(len(CONTENT))
    with (
        serving(other) as server,
        pytest.raises(DownloadError, match=rf"SHA-256 {hashlib.sha256(other).hexdigest()}, expected .*it was deleted"),
    ):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_a_login_page_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with (
        serving(b"<html>please log in</html>") as server,
        pytest.raises(DownloadError, match=r"a file of 26 bytes, expected 10240 \(a proxy or a login page"),
    ):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_an_http_error_is_named(tmp_path: Path) -> None:
    with (
        serving(CONTENT, status=404) as server,
        pytest.raises(DownloadError, match="the server answered 404 Not Found"),
    ):
        fetch(server, tmp_path)


def test_without_a_server_the_first_attempt_says_so(tmp_path: Path) -> None:
    with serving(CONTENT) as server:
        gone = remote(server)
    with pytest.raises(DownloadError, match=r"no connection \(.*refused"):
        download(gone, tmp_path, progress=False, pause_s=60)


def test_a_part_longer_than_the_file_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "weights.bin.part").write_bytes(CONTENT + b"more")
    with serving(CONTENT) as server:
        assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_file_larger_than_the_disk_is_refused_at_once(tmp_path: Path) -> None:
    with serving(CONTENT) as server:
        huge = RemoteFile("weights.bin", server.url, 1 << 60, "")
        with pytest.raises(DownloadError, match=r"MiB left, 1099511627776 MiB are needed"):
            download(huge, tmp_path, progress=False)
    assert server.ranges == []


def test_two_at_once_fetch_the_file_only_once(tmp_path: Path) -> None:
    with serving(CONTENT) as server:
        threads = [threading.Thread(target=fetch, args=(server, tmp_path)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (tmp_path / "weights.bin").read_bytes() == CONTENT
    assert server.ranges == [None]


def test_the_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert _download.sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea")
