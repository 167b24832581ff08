"""The command line: what it prints, writes and answers, in this process and, for its start, in real ones."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._whole_file import whole
from segment_anything.cli import app
from segment_anything.cli._files import write_json
from segment_anything.cli._jobs import find_jobs
from segment_anything.cli._options import field_docs
from segment_anything.datasets import open_dataset
from segment_anything.images import read_image
from segment_anything.masks import decode_rle

RANDOM = ["--checkpoint", "random", "--device", "cpu"]
# A random network's masks pass no filter: these let the whole way be walked, with few clicks.
FEW = [*RANDOM, "--points-per-side=2", "--pred-iou-thresh=-9", "--stability-score-thresh=-9", "--box-nms-thresh=0.99"]


def run(*arguments: object, status: int = 0) -> Result:
    """Call the command line in this process, and check its exit status."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the command line as a process of its own."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def words(text: str) -> str:
    """Help and error boxes on one line, without their frames."""
    return " ".join(text.replace("│", " ").split())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A bright disc on dark noise, 64 x 48."""
    return save_photo(tmp_path / "photos" / "disc.png")


def save_photo(path: Path, shift: int = 0) -> Path:
    ys, xs = np.mgrid[:48, :64]
    image = np.random.default_rng(shift).integers(0, 60, (48, 64, 3), dtype=np.uint8)
    image[(xs - 30 - shift) ** 2 + (ys - 24) ** 2 < 15**2] = (220, 180, 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def load(path: Path) -> Any:
    return json.loads(path.read_text())


class TestStart:
    def test_help_lists_every_command_with_a_line_and_imports_no_torch(self) -> None:
        code = (
            "import sys; sys.argv = ['segment-anything', '--help']\n"
            "from segment_anything.cli import main\n"
            "try: main()\n"
            "finally: print('heavy:', sorted({'torch', 'numpy'} & set(sys.modules)))\n"
        )
        done = process("-c", code)
        assert done.returncode == 0
        assert "heavy: []" in done.stdout
        for name in ("predict", "generate", "models", "doctor"):
            assert name in done.stdout

    def test_help_of_a_command_imports_no_torch(self) -> None:
        for name in ("predict", "generate", "models", "doctor"):
            code = (
                f"import sys; sys.argv = ['segment-anything', '{name}', '--help']\n"
                "from segment_anything.cli import main\n"
                "try: main()\n"
                "finally: assert 'torch' not in sys.modules\n"
            )
            done = process("-c", code)
            assert done.returncode == 0, done.stderr

    def test_python_dash_m_is_the_command(self) -> None:
        done = process("-m", "segment_anything", "--version")
        assert done.returncode == 0
        assert done.stdout.strip()[0].isdigit()

    def test_without_arguments_the_help_is_shown(self) -> None:
        assert "Usage: segment-anything" in process("-m", "segment_anything").stdout

    def test_an_unknown_command_is_told_the_closest_one(self) -> None:
        done = process("-m", "segment_anything", "predikt")
        assert done.returncode == 2
        assert "Did you mean 'predict'?" in words(done.stderr)

    def test_every_public_file_of_the_folder_is_a_command_with_help(self) -> None:
        folder = Path(__file__).parent.parent / "segment_anything" / "cli"
        for file in folder.glob("[!_]*.py"):
            assert "Usage:" in run(file.stem.replace("_", "-"), "--help").output


class TestOptions:
    def test_every_option_of_automatic_masks_is_a_flag_with_its_help(self) -> None:
        shown = words(run("generate", "--help").output)
        for name, text in field_docs(AutomaticMaskOptions).items():
            assert text, name
            assert (f"--{name.replace('_', '-')}"[:28] in shown) == (name != "output_mode")

    def test_a_value_out_of_range_is_a_usage_error_in_the_words_of_the_library(
        self, photo: Path, tmp_path: Path
    ) -> None:
        result = run("generate", photo, "--out", tmp_path / "out", "--pred-iou-thresh", "88", status=2)
        assert "pred_iou_thresh must be a number of at most 1, got 88.0." in words(result.output)

    def test_a_wrong_type_is_a_usage_error(self, photo: Path, tmp_path: Path) -> None:
        result = run("generate", photo, "--out", tmp_path / "out", "--points-per-side", "many", status=2)
        assert "--points-per-side" in result.output

    @pytest.mark.parametrize(
        ("wrong", "text"),
        [
            ({"points_per_side": 0}, "points_per_side must be a whole number of at least 1, got 0"),
            ({"points_per_batch": 2.5}, "points_per_batch must be a whole number of at least 1, got 2.5"),
            ({"crop_n_layers": True}, "crop_n_layers must be a whole number of at least 0, got True"),
            ({"stability_score_thresh": 95}, "stability_score_thresh must be a number of at most 1, got 95"),
            (
                {"crop_nms_thresh": float("nan")},
                "crop_nms_thresh must be a number of at least 0 and at most 1, got nan",
            ),
            (
                {"crop_overlap_ratio": "wide"},
                "crop_overlap_ratio must be a number of at least 0 and at most 1, got 'wide'",
            ),
            ({"min_mask_area": -1}, "min_mask_area must be a number of at least 0, got -1"),
            ({"min_mask_area": 9, "max_mask_area": 4}, "max_mask_area must be a number of at least 9, got 4"),
            ({"output_mode": "png"}, "output_mode must be one of binary_mask, uncompressed_rle, coco_rle, got 'png'"),
            ({"overlap": "dice"}, "overlap must be one of iou, iomin, got 'dice'"),
        ],
    )
    def test_each_option_says_its_range(self, wrong: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=re.escape(text)):
            AutomaticMaskOptions(**wrong)

    def test_numbers_of_numpy_are_numbers(self) -> None:
        options = AutomaticMaskOptions(points_per_side=np.int64(8), pred_iou_thresh=np.float32(0.5))
        assert options.points_per_side == 8


class TestPredict:
    def test_a_click_gives_one_mask_a_picture_and_a_record(self, photo: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = run("predict", photo, "--point", "30,24", "--out", out, *RANDOM)
        assert sorted(path.name for path in out.iterdir()) == ["disc.json", "disc_mask_1.png", "disc_overlay.png"]
        [record] = load(out / "disc.json")["annotations"]
        mask = decode_rle(record["segmentation"])
        np.testing.assert_array_equal(read_image(out / "disc_mask_1.png")[..., 0], mask * 255)
        assert mask.shape == (48, 64)
        assert record["area"] == mask.sum()
        assert "disc_mask_1.png" in result.stdout
        assert read_image(out / "disc_overlay.png").shape == (48, 64, 3)

    def test_json_on_standard_output_is_the_record_file(self, photo: Path, tmp_path: Path) -> None:
        result = run("predict", photo, "--box", "10,5,50,45", "--out", tmp_path, "--json", *RANDOM)
        assert json.loads(result.stdout) == load(tmp_path / "disc.json")

    def test_all_masks_keeps_three_for_a_click(self, photo: Path, tmp_path: Path) -> None:
        result = run("predict", photo, "--point", "30,24,1", "--all-masks", "--out", tmp_path, "--json", *RANDOM)
        assert [record["object"] for record in json.loads(result.stdout)["annotations"]] == [0, 0, 0]

    def test_several_boxes_are_several_objects(self, photo: Path, tmp_path: Path) -> None:
        boxes = ["--box", "0,0,20,20", "--box", "10,5,50,45"]
        result = run("predict", photo, *boxes, "--out", tmp_path, "--json", *RANDOM)
        assert [record["object"] for record in json.loads(result.stdout)["annotations"]] == [0, 1]

    def test_clicks_a_box_and_a_mask_are_one_object(self, photo: Path, tmp_path: Path) -> None:
        rough = np.zeros((48, 64), np.uint8)
        rough[12:36, 18:42] = 255
        Image.fromarray(rough).save(tmp_path / "rough.png")
        prompts = ["--point", "30,24", "--point", "2,2,0", "--box", "10,5,50,45", "--mask", tmp_path / "rough.png"]
        result = run("predict", photo, *prompts, "--out", tmp_path, "--json", *RANDOM)
        assert len(json.loads(result.stdout)["annotations"]) == 1

    def test_a_cutout_is_the_mask_with_transparency(self, photo: Path, tmp_path: Path) -> None:
        run("predict", photo, "--box", "10,6,50,42", "--cutout", "--out", tmp_path)  # the bundled weights find it
        [record] = load(tmp_path / "disc.json")["annotations"]
        with Image.open(tmp_path / "disc_cutout_1.png") as image:
            assert image.mode == "RGBA"
            assert (np.asarray(image)[..., 3] == 255).sum() == record["area"]

    @pytest.mark.parametrize(
        ("wrong", "text"),
        [
            ([], "nothing is asked for: give --point, --box or --mask"),
            (["--point", "30"], "--point must be X,Y or X,Y,LABEL (numbers with commas and no spaces), got '30'"),
            (["--point", "a,b"], "--point must be X,Y or X,Y,LABEL (numbers with commas and no spaces), got 'a,b'"),
            (["--point", "3,4,2"], "--point: the label must be 1 (object) or 0 (not the object), got '3,4,2'"),
            (["--box", "1,2,3"], "--box must be X0,Y0,X1,Y1 (numbers with commas and no spaces), got '1,2,3'"),
            (
                ["--box", "1,2,9,9", "--box", "1,2,8,8", "--point", "3,3"],
                "with several --box, each is an object of its own",
            ),
        ],
    )
    def test_what_cannot_be_meant_is_a_usage_error(self, photo: Path, wrong: list[str], text: str) -> None:
        assert text in words(run("predict", photo, *wrong, *RANDOM, status=2).output)

    @pytest.mark.parametrize(
        ("wrong", "text"),
        [
            (["--box", "50,45,10,5"], "box"),
            (["--point", "nan,3"], "point"),
            (["--model", "vit_x", "--point", "3,3"], "vit_x"),
            (["--checkpoint", "nowhere.pth", "--point", "3,3"], "nowhere.pth"),
            (["--dtype", "int4", "--point", "3,3"], "int4"),
        ],
    )
    def test_what_the_library_refuses_is_one_line_and_status_1(
        self, photo: Path, tmp_path: Path, wrong: list[str], text: str
    ) -> None:
        defaults = [] if "--checkpoint" in wrong else RANDOM
        result = run("predict", photo, "--out", tmp_path / "out", *defaults, *wrong, status=1)
        assert result.stderr.startswith("Error: ")
        assert text in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_missing_image_is_one_line_and_status_1(self, tmp_path: Path) -> None:
        result = run("predict", tmp_path / "gone.jpg", "--point", "1,1", status=1)
        assert "gone.jpg" in result.stderr
        assert result.stderr.count("\n") == 1


class TestGenerate:
    def test_the_records_of_an_image_are_written_as_sa1b(self, photo: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = run("generate", photo, "--out", out, *FEW)
        document = load(out / "disc.json")
        assert {**document["image"], "image_id": 0} == {
            "image_id": 0, "file_name": "disc.png", "width": 64, "height": 48,
        }  # fmt: skip
        assert document["annotations"]
        assert decode_rle(document["annotations"][0]["segmentation"]).shape == (48, 64)
        assert result.stdout.startswith(f"1 of 1 images, {len(document['annotations'])} masks")

    def test_png_masks_come_with_a_table(self, photo: Path, tmp_path: Path) -> None:
        run("generate", photo, "--out", tmp_path, "--format", "png", "--format", "rle", *FEW)
        records = load(tmp_path / "disc.json")["annotations"]
        with open(tmp_path / "disc_masks" / "metadata.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["area"]) for row in rows] == [record["area"] for record in records]
        assert set(rows[0]) >= {"id", "bbox_x0", "point_input_x", "predicted_iou", "stability_score", "crop_box_h"}
        for row, record in zip(rows, records, strict=True):
            mask = read_image(tmp_path / "disc_masks" / f"{row['id']}.png")[..., 0] > 0
            np.testing.assert_array_equal(mask, decode_rle(record["segmentation"]))

    def test_one_coco_file_holds_all_images_and_reads_as_a_data_set(self, photo: Path, tmp_path: Path) -> None:
        save_photo(photo.with_name("other.png"), shift=4)
        run("generate", photo.parent, "--out", tmp_path / "out", "--format", "coco", *FEW)
        coco = load(tmp_path / "out" / "coco.json")
        assert [image["file_name"] for image in coco["images"]] == ["disc.png", "other.png"]
        ids = [annotation["id"] for annotation in coco["annotations"]]
        assert ids == list(range(1, len(ids) + 1))
        assert {annotation["image_id"] for annotation in coco["annotations"]} == {1, 2}
        (photo.parent / "coco.json").write_bytes((tmp_path / "out" / "coco.json").read_bytes())
        assert len(open_dataset(photo.parent)) == 2

    def test_a_picture_yolo_and_labelme_are_written(self, photo: Path, tmp_path: Path) -> None:
        run("generate", photo, "--out", tmp_path, "--format", "overlay,yolo,labelme", *FEW)
        assert read_image(tmp_path / "disc_overlay.png").shape == (48, 64, 3)
        assert (tmp_path / "disc.txt").read_text().startswith("0 ")
        assert load(tmp_path / "disc_labelme.json")["imagePath"] == "photos/disc.png"

    def test_an_unknown_format_is_named(self, photo: Path, tmp_path: Path) -> None:
        result = run("generate", photo, "--out", tmp_path, "--format", "rle,tiff", status=1)
        assert "--format must be one or more of rle, png, overlay, yolo, labelme, coco, got 'tiff'" in result.stderr

    def test_a_bad_file_is_one_line_the_rest_goes_on_and_the_status_says_so(self, photo: Path, tmp_path: Path) -> None:
        (photo.parent / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
        (photo.parent / "a_empty.png").touch()
        result = run("generate", photo.parent, "--out", tmp_path / "out", "--json", *FEW, status=1)
        assert (tmp_path / "out" / "disc.json").exists()
        lines = result.stderr.splitlines()
        assert len(lines) == 2
        assert "a_empty.png: the file is empty." in lines[0]
        assert "broken.jpg: " in lines[1]
        summary = json.loads(result.stdout)
        assert (summary["images"], summary["done"]) == (3, 1)
        assert [Path(failure["file"]).name for failure in summary["failed"]] == ["a_empty.png", "broken.jpg"]

    def test_finished_images_are_skipped_without_loading_a_model(self, photo: Path, tmp_path: Path) -> None:
        run("generate", photo, "--out", tmp_path / "out", *FEW)
        before = (tmp_path / "out" / "disc.json").stat().st_mtime_ns
        result = run("generate", photo, "--out", tmp_path / "out", *FEW)
        assert "1 skipped (finished before)" in result.stdout
        assert (tmp_path / "out" / "disc.json").stat().st_mtime_ns == before

    def test_another_format_is_made_from_the_records_of_before(self, photo: Path, tmp_path: Path) -> None:
        run("generate", photo, "--out", tmp_path / "out", *FEW)
        before = (tmp_path / "out" / "disc.json").stat().st_mtime_ns
        run("generate", photo, "--out", tmp_path / "out", "--format", "rle,png,overlay", *FEW)
        count = len(load(tmp_path / "out" / "disc.json")["annotations"])
        assert len(list((tmp_path / "out" / "disc_masks").glob("*.png"))) == count
        assert (tmp_path / "out" / "disc.json").stat().st_mtime_ns == before

    def test_a_run_goes_on_with_the_images_that_are_missing(self, photo: Path, tmp_path: Path) -> None:
        run("generate", photo, "--out", tmp_path / "out", *FEW)
        save_photo(photo.with_name("new.png"), shift=3)
        result = run("generate", photo.parent, "--out", tmp_path / "out", "--json", *FEW)
        summary = json.loads(result.stdout)
        assert (summary["done"], summary["skipped"]) == (1, 1)
        assert (tmp_path / "out" / "new.json").exists()

    def test_results_of_other_settings_are_not_mixed(self, photo: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        run("generate", photo, "--out", out, *FEW)
        result = run("generate", photo, "--out", out, *FEW, "--points-per-side", "3", status=1)
        assert "holds results of other settings: points_per_side was 2 and is 3" in result.stderr
        run("generate", photo, "--out", out, *FEW, "--points-per-batch", "7")
        result = run("generate", photo, "--out", out, *FEW, "--points-per-side", "3", "--overwrite")
        assert result.stdout.startswith("1 of 1 images")

    def test_a_pattern_keeps_folders_in_the_results(self, tmp_path: Path) -> None:
        for name in ("a/1.png", "b/1.png"):
            save_photo(tmp_path / "photos" / name)
        run("generate", f"{tmp_path}/photos/**/*.png", "--out", tmp_path / "out", *FEW)
        assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("1.json")) == [
            "a/1.json",
            "b/1.json",
        ]

    def test_no_images_is_an_error_that_names_where_it_looked(self, tmp_path: Path) -> None:
        result = run("generate", tmp_path, "--out", tmp_path / "out", status=1)
        assert f"no images in {tmp_path}" in result.stderr

    def test_a_larger_image_than_allowed_fails_and_can_be_allowed(self, photo: Path, tmp_path: Path) -> None:
        result = run("generate", photo, "--out", tmp_path / "out", *FEW, "--max-pixels", "100", status=1)
        assert "64 x 48 = 3,072 pixels is more than the limit of 100" in result.stderr
        run("generate", photo, "--out", tmp_path / "out", *FEW, "--max-pixels", "0")


class TestJobs:
    def names(self, sources: Sequence[str], out: Path) -> list[str]:
        return [job.name for job in find_jobs(sources, out)]

    def test_images_of_one_stem_keep_their_suffix(self, tmp_path: Path) -> None:
        for name in ("a.png", "a.jpg", "b.png"):
            (tmp_path / name).touch()
        assert self.names([str(tmp_path)], tmp_path / "out") == ["a.jpg", "a.png", "b"]

    def test_results_written_beside_their_images_are_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "a_masks").mkdir()
        for name in ("a.png", "a_overlay.png", "a_masks/0.png", "a_masks/metadata.csv"):
            (tmp_path / name).touch()
        assert self.names([f"{tmp_path}/**/*.png"], tmp_path) == ["a"]
        assert self.names([str(tmp_path / "a_overlay.png")], tmp_path) == ["a_overlay"]

    def test_an_image_named_twice_is_done_once(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        assert self.names([str(tmp_path / "a.png"), str(tmp_path)], tmp_path / "out") == ["a"]

    def test_two_images_that_would_share_a_result_are_refused(self, tmp_path: Path) -> None:
        for name in ("x/a.png", "y/a.png"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).touch()
        with pytest.raises(ValueError, match=r"several images would be written as a\.png\. Give the folder above"):
            find_jobs([str(tmp_path / "x"), str(tmp_path / "y")], tmp_path / "out")


class TestFiles:
    def test_a_file_appears_whole_or_not_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("before")
        with pytest.raises(UnicodeEncodeError, match="ascii"), whole(path) as temporary:
            temporary.write_text("half an ø", encoding="ascii")
        assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
        assert path.read_text() == "before"

    def test_a_folder_replaces_the_one_of_before(self, tmp_path: Path) -> None:
        for content in ("1", "2"):
            with whole(tmp_path / "folder") as temporary:
                temporary.mkdir()
                (temporary / content).touch()
        assert [file.name for file in (tmp_path / "folder").iterdir()] == ["2"]
        assert len(list(tmp_path.iterdir())) == 1

    def test_json_makes_its_folders(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a" / "b.json", [1])
        assert load(tmp_path / "a" / "b.json") == [1]


class TestModelsAndDoctor:
    def test_models_lists_every_network_smallest_first(self) -> None:
        names = [row["model"] for row in json.loads(run("models", "--json").stdout)]
        assert set(names) == {"nano", "vit_t", "vit_b", "vit_l", "vit_h"}
        assert names[-1] == "vit_h"
        table = run("models").stdout
        assert "641.1 M" in table  # numbers in parameters of vit_h
        assert "sam_vit_h_4b8939.pth" in table

    def test_models_finds_weights_in_the_cache_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SEGMENT_ANYTHING_HOME", str(tmp_path))
        (tmp_path / "mobile_sam.pt").write_bytes(b"cut short")
        rows = {row["model"]: row for row in json.loads(run("models", "--json").stdout)}
        assert rows["vit_t"]["path"] is None
        assert "the copy is incomplete" in rows["vit_t"]["problem"]

    def test_doctor_says_what_a_file_is(self, tmp_path: Path) -> None:
        from segment_anything import load_sam, save_checkpoint

        path = save_checkpoint(load_sam("nano", checkpoint="random"), tmp_path / "mine.safetensors")
        assert "mine.safetensors: nano" in run("doctor", path).stdout
        [info] = json.loads(run("doctor", path, "--json").stdout)
        assert info["model"] == "nano"
        assert info["loadable"]

    def test_doctor_answers_a_strange_file_with_status_1(self, tmp_path: Path) -> None:
        (tmp_path / "notes.pth").write_text("no weights")
        result = run("doctor", tmp_path / "notes.pth", status=1)
        assert "notes.pth" in result.output

    def test_doctor_looks_at_the_other_files_when_one_is_strange(self, tmp_path: Path) -> None:
        from segment_anything import load_sam, save_checkpoint

        (tmp_path / "notes.pth").write_text("no weights")
        good = save_checkpoint(load_sam("nano", checkpoint="random"), tmp_path / "mine.safetensors")
        assert "mine.safetensors: nano" in run("doctor", tmp_path / "notes.pth", good, status=1).stdout
        bad, fine = json.loads(run("doctor", tmp_path / "notes.pth", good, "--json", status=1).stdout)
        assert "is not a weight file" in bad["error"]
        assert (bad["loadable"], fine["loadable"]) == (False, True)
