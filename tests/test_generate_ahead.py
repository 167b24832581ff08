"""`generate` reads, and on some devices encodes, one image ahead: same results, same errors, nothing left behind."""

import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import pytest
import torch
from test_cli import FEW, run, save_photo
from toy import toy_sam

from segment_anything import SamAutomaticMaskGenerator
from segment_anything.cli._ahead import one_ahead
from segment_anything.cli._jobs import find_jobs
from segment_anything.cli.generate import Summary, _Run
from segment_anything.images import ImageReadError
from segment_anything.modeling import Sam

SMALL = [*FEW, "--image-size=256"]


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("one-ahead")]


class TestOneAhead:
    def test_everything_comes_once_and_in_order(self) -> None:
        assert [(item, loading.result()) for item, loading in one_ahead("abc", str.upper)] == [
            ("a", "A"),
            ("b", "B"),
            ("c", "C"),
        ]
        assert [loading.result() for _, loading in one_ahead("a", str.upper)] == ["A"]
        assert [*one_ahead("", str.upper)] == []
        assert workers() == []

    def test_an_error_waits_for_its_turn_and_the_rest_goes_on(self) -> None:
        found = [
            (item, loading.exception() or loading.result()) for item, loading in one_ahead([1, 0, 2], (6).__floordiv__)
        ]
        assert [(item, str(value)) for item, value in found] == [
            (1, "6"), (0, "integer division or modulo by zero"), (2, "3"),
        ]  # fmt: skip

    def test_one_is_loaded_ahead_by_one_other_thread_and_never_two(self) -> None:
        done: list[int] = []
        begun = [threading.Event() for _ in range(6)]
        too_early, threads = [], set()

        def load(item: int) -> int:
            too_early.extend([item] if item >= 2 and item - 2 not in done else [])
            threads.add(threading.current_thread())
            begun[item].set()
            return item

        for item, loading in one_ahead(range(6), load):
            assert loading.result() == item
            assert all(event.wait(10) for event in begun[: item + 2]), "the next is not loaded meanwhile"
            time.sleep(0.02)  # for the one after that to begin, if it does
            assert not any(event.is_set() for event in begun[item + 2 :])
            done.append(item)
        assert too_early == []
        assert len(threads) == 1
        assert threading.current_thread() not in threads

    def test_what_is_done_with_is_let_go_of(self) -> None:
        class Big:
            alive = 0

            def __init__(self, item: int) -> None:
                Big.alive += 1
                self.most = Big.alive

            def __del__(self) -> None:
                Big.alive -= 1

        assert max(loading.result().most for _, loading in one_ahead(range(20), Big)) <= 3  # the third for a moment
        assert Big.alive == 0

    def test_an_error_of_the_caller_ends_the_thread_and_what_waits_is_not_begun(self) -> None:
        begun: list[int] = []
        release = threading.Event()

        def load(item: int) -> None:
            begun.append(item)
            release.wait(10)

        def break_off(loaded: Generator[tuple[int, Future[None]], None, None]) -> None:
            with closing(loaded):
                for _ in loaded:
                    threading.Timer(0.2, release.set).start()  # while the thread is waited for
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            break_off(one_ahead(range(3), load))
        assert begun == [0]
        assert workers() == []


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures, a.png, b.png and c.png."""
    for shift, name in enumerate("abc"):
        save_photo(tmp_path / "photos" / f"{name}.png", shift)
    return tmp_path / "photos"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestFolder:
    @pytest.mark.parametrize("crops", [0, 1])
    def test_a_folder_gives_what_its_files_give_one_by_one(self, photos: Path, tmp_path: Path, crops: int) -> None:
        options = [*SMALL, f"--crop-n-layers={crops}", "--format", "rle,overlay,png"]
        run("generate", photos, "--out", tmp_path / "folder", *options)
        for photo in photos.iterdir():
            run("generate", photo, "--out", tmp_path / "files", *options)
        assert contents(tmp_path / "folder") == contents(tmp_path / "files")
        assert {"a.json", "b_overlay.png", "c_masks/metadata.csv"} <= contents(tmp_path / "folder").keys()

    def test_a_damaged_file_is_told_at_its_turn(self, photos: Path, tmp_path: Path) -> None:
        (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:300])
        result = run("generate", photos, "--out", tmp_path / "out", "--explain", *SMALL, status=1)
        told = [line for line in result.stderr.splitlines() if str(photos) in line]
        assert told[0] == str(photos / "a.png")
        assert told[1].startswith(f"failed: {photos / 'b.png'}: damaged or truncated image")
        assert told[2:] == [str(photos / "c.png")]
        assert "2 of 3 images" in result.stdout
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "c.json", "settings.json"]

    def test_a_finished_image_is_not_read_at_all(self, photos: Path, tmp_path: Path) -> None:
        run("generate", photos, "--out", tmp_path / "out", *SMALL)
        (photos / "b.png").write_bytes(b"damaged")
        (tmp_path / "out" / "c.json").unlink()
        assert "2 skipped (finished before)" in run("generate", photos, "--out", tmp_path / "out", *SMALL).stdout

    def test_an_error_that_ends_the_run_leaves_no_thread(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "photos").touch()  # where a folder is wanted
        result = run("generate", f"{tmp_path}/*/*.png", "--out", tmp_path / "out", *SMALL, status=1)
        assert result.stderr.startswith("Error: ")
        assert workers() == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_in_the_middle_ends_the_run(self, photos: Path, tmp_path: Path, number: int) -> None:
        for shift in range(8):
            save_photo(photos / f"more{shift}.png", shift)
        arguments = ["generate", str(photos), "--out", str(tmp_path / "out"), *SMALL, "--points-per-side=8"]
        process = subprocess.Popen(
            [sys.executable, "-m", "segment_anything", *arguments],
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell's background job ignores SIGINT
        )
        try:
            while not (tmp_path / "out" / "a.json").exists():
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
            assert process.wait(timeout=60) != 0
        finally:
            process.kill()
        assert not (tmp_path / "out" / "more7.json").exists()


class Watched(Sam):
    """The toy SAM. Writes down the threads that encode, and fails when it is told to."""

    def __init__(self, *failing: int, error: type[Exception] = RuntimeError) -> None:
        """Args: failing: the runs of the encoder that fail, counted from 0."""
        parts = toy_sam()
        super().__init__(parts.image_encoder, parts.prompt_encoder, parts.mask_decoder)
        self.eval()
        self.threads: list[str] = []
        self._failing, self._error = failing, error

    def encode_batch(self, images):
        self.threads.append(threading.current_thread().name.split("_")[0])
        if len(self.threads) - 1 in self._failing:
            raise self._error("the device is full")
        assert not torch.is_grad_enabled()
        return super().encode_batch(images)


def generate(
    sam: Sam, photos: Path, out: Path, *, ahead: bool, crops: int = 0, formats: tuple[str, ...] = ("rle",)
) -> Summary:
    """A run of a model that takes this CPU for a device to encode ahead on, or does not."""
    lenient = {"pred_iou_thresh": -9, "stability_score_thresh": -9, "box_nms_thresh": 0.99}
    generator = SamAutomaticMaskGenerator(sam, 2, output_mode="coco_rle", crop_n_layers=crops, **lenient)
    jobs = find_jobs([str(photos)], out)
    devices = ("cpu",) if ahead else ()
    return _Run(out, formats, False, None, Summary(len(jobs)), encodes_ahead_on=devices).do(jobs, lambda: generator)


class TestEncodeAhead:
    @pytest.mark.parametrize("crops", [0, 1])
    def test_results_are_those_of_encoding_in_turn(self, photos: Path, tmp_path: Path, crops: int) -> None:
        ahead, in_turn = Watched(), Watched()
        generate(ahead, photos, tmp_path / "ahead", ahead=True, crops=crops)
        summary = generate(in_turn, photos, tmp_path / "in_turn", ahead=False, crops=crops)
        assert summary.masks > 0
        assert contents(tmp_path / "ahead") == contents(tmp_path / "in_turn")
        assert len(ahead.threads) == len(in_turn.threads) == 3 * (1 + 4 * crops)
        assert (ahead.threads.count("one-ahead"), in_turn.threads.count("one-ahead")) == (3, 0)

    def test_an_image_with_records_is_not_encoded_for_another_format(self, photos: Path, tmp_path: Path) -> None:
        generate(Watched(), photos, tmp_path, ahead=True)
        (tmp_path / "b.json").unlink()
        sam = Watched()
        assert generate(sam, photos, tmp_path, ahead=True, formats=("rle", "overlay")).done == 3
        assert sam.threads == ["one-ahead"]

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
    def test_what_fails_ahead_is_tried_again_at_its_turn(
        self, photos: Path, tmp_path: Path, error: type[Exception]
    ) -> None:
        sam = Watched(0, error=error)
        summary = generate(sam, photos, tmp_path, ahead=True)
        assert (summary.done, summary.failed) == (3, [])
        assert sorted(sam.threads) == ["MainThread", *["one-ahead"] * 3]

    def test_what_fails_again_is_told_and_the_rest_goes_on(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (photos / "b.png").unlink()
        (photos / "c.png").unlink()
        summary = generate(Watched(0, 1), photos, tmp_path, ahead=True)
        assert summary.failed == [{"file": str(photos / "a.png"), "error": f"{photos / 'a.png'}: the device is full"}]
        assert capsys.readouterr().err == f"failed: {photos / 'a.png'}: the device is full\n"

    def test_errors_do_not_pile_up(self, photos: Path, tmp_path: Path) -> None:
        for photo in photos.iterdir():
            photo.write_bytes(photo.read_bytes()[:300])
        gc.collect()
        gc.disable()
        try:
            assert len(generate(Watched(), photos, tmp_path, ahead=True).failed) == 3
            assert sum(type(value) is ImageReadError for value in gc.get_objects()) <= 1  # perhaps the last
        finally:
            gc.enable()
