"""Where weights are looked for, how they are fetched, and what is said when they are nowhere."""

import hashlib
import re
import sys
from pathlib import Path

import pytest
from file_server import FileServer, serving

from segment_anything._download import RemoteFile
from segment_anything.checkpoints import (
    BUNDLED,
    PUBLISHED,
    CheckpointError,
    CheckpointNotFoundError,
    cache_folder,
    fetch_checkpoint,
    find_checkpoint,
    find_published,
)

CONTENT = b"weights " * 100


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test alone."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("SEGMENT_ANYTHING_HOME", str(folder))
    return folder


def publish(monkeypatch: pytest.MonkeyPatch, server: FileServer, sha256: str = "") -> None:
    """Let `vit_t` be a small file on a server of this machine."""
    sha256 = sha256 or hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(PUBLISHED, "vit_t", RemoteFile("mobile_sam.pt", server.url, len(CONTENT), sha256))


def test_the_published_table_is_that_of_the_four_official_files() -> None:
    sizes = {name: remote.size_bytes for name, remote in PUBLISHED.items()}
    assert sizes == {"vit_h": 2564550879, "vit_l": 1249524607, "vit_b": 375042383, "vit_t": 40728226}
    for remote in PUBLISHED.values():
        assert remote.url.startswith("https://")
        assert remote.url.endswith(f"/{remote.file}")
        assert re.fullmatch("[0-9a-f]{64}", remote.sha256)


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"x")
    assert find_checkpoint(tmp_path / "a.pth") == tmp_path / "a.pth"
    assert find_checkpoint(str(tmp_path / "a.pth")) == tmp_path / "a.pth"


def test_a_bare_name_is_found_in_the_cache_folder(cache: Path) -> None:
    (cache / "mine.pth").write_bytes(b"x")
    assert find_checkpoint("mine.pth") == cache / "mine.pth"


def test_a_missing_path_is_not_looked_for_elsewhere(tmp_path: Path, cache: Path) -> None:
    (cache / "mine.pth").write_bytes(b"x")
    with pytest.raises(
        CheckpointNotFoundError, match=r"no checkpoint mine.pth; looked for .*other/mine.pth. Check the"
    ):
        find_checkpoint(tmp_path / "other" / "mine.pth")


def test_a_missing_published_file_is_offered_for_download() -> None:
    with pytest.raises(CheckpointNotFoundError, match=r'load_sam\("vit_b"\) downloads it, or fetch https://dl.fbai'):
        find_checkpoint("sam_vit_b_01ec64.pth")


def test_a_folder_is_refused_with_the_weights_in_it(tmp_path: Path) -> None:
    (tmp_path / "b.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"is a folder, expected a file; weight files in it: b.pth"):
        find_checkpoint(tmp_path)


def test_weights_are_downloaded_once_into_the_cache_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENT) as server:
        publish(monkeypatch, server)
        assert find_published("vit_t") is None
        for _ in range(2):
            assert fetch_checkpoint("vit_t", progress=False) == cache / "mobile_sam.pt"
    assert len(server.ranges) == 1
    assert find_published("vit_t") == cache / "mobile_sam.pt"


def test_without_a_network_the_error_says_which_file_to_put_where(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENT) as server:
        publish(monkeypatch, server)
    with pytest.raises(CheckpointNotFoundError) as caught:
        fetch_checkpoint("vit_t", progress=False)
    words = str(caught.value)
    assert "The weights of vit_t are not on this machine and could not be downloaded: no connection" in words
    assert f"Put the file mobile_sam.pt (800 bytes, from {server.url}) into the folder {cache}" in words
    assert "or pass its path as checkpoint=" in words


def test_a_wrong_hash_says_what_arrived_and_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENT) as server:
        publish(monkeypatch, server, sha256="0" * 64)
        with pytest.raises(CheckpointNotFoundError, match=r"what arrived has 800 bytes and SHA-256 .*, expected 800"):
            fetch_checkpoint("vit_t", progress=False)
    assert list(cache.iterdir()) == []


def test_a_cached_file_of_another_size_is_not_used_or_overwritten(cache: Path) -> None:
    (cache / "mobile_sam.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"has 4 bytes, but the published mobile_sam.pt has 40728226.*Delete it"):
        fetch_checkpoint("vit_t")
    assert (cache / "mobile_sam.pt").read_bytes() == b"half"


def test_bundled_weights_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUNDLED, "nano", tmp_path / "nano.safetensors")
    assert find_published("nano") is None
    with pytest.raises(CheckpointNotFoundError, match=r"bundled weights .*nano.safetensors are missing.*Reinstall"):
        fetch_checkpoint("nano")


def test_bundled_weights_are_found_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nano.safetensors").write_bytes(b"x")
    monkeypatch.setitem(BUNDLED, "nano", tmp_path / "nano.safetensors")
    assert fetch_checkpoint("nano") == tmp_path / "nano.safetensors"


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"name must be one of nano, vit_b, .*Did you mean .vit_b.\?"):
        find_published("vit-b")


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "segment_anything"),
        ("win32", "LOCALAPPDATA", "segment_anything"),
        ("darwin", "HOME", "Library/Caches/segment_anything"),
        ("linux", "HOME", ".cache/segment_anything"),
    ],
)
def test_the_cache_folder_is_the_platform_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, expected: str
) -> None:
    for name in ("SEGMENT_ANYTHING_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == tmp_path / expected


def test_the_cache_folder_can_be_chosen(cache: Path) -> None:
    assert cache_folder() == cache
