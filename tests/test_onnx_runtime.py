"""Exported models on ONNX Runtime: the answers of `SamPredictor` and `SamAutomaticMaskGenerator`, without torch."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import export, model, photo

from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from segment_anything.export.verify import as_onnx_embedding
from segment_anything.export.weights import write
from segment_anything.geometry import ImageGeometry
from segment_anything.modeling import Decoded
from segment_anything.onnx import Manifest, OnnxDecoded, OnnxMaskGenerator, OnnxModel, OnnxPredictor
from segment_anything.onnx.sessions import Graph, check_started
from segment_anything.predictor import SamPredictor
from segment_anything.prompts import Prompt, Prompts
from segment_anything.records import record_mask

onnx = pytest.importorskip("onnx")

ROOT = Path(__file__).resolve().parent.parent
CLICK = {"point_coords": [[30, 20]], "point_labels": [1]}


@pytest.fixture(scope="module")
def toy() -> OnnxModel:
    return OnnxModel(export("toy"), providers="cpu", threads=1)


@pytest.fixture
def predictor(toy: OnnxModel) -> OnnxPredictor:
    predictor = OnnxPredictor(toy)
    predictor.set_image(photo())
    return predictor


@pytest.fixture
def torchs() -> SamPredictor:
    predictor = SamPredictor(model("toy"))
    predictor.set_image(photo())
    return predictor


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize(
    "prompt",
    [
        CLICK,
        {"point_coords": [[30, 20], [60, 40]], "point_labels": [1, 0]},
        {"box": [10, 5, 50, 40]},
        {**CLICK, "box": [10, 5, 50, 40]},
    ],
)
def test_a_prompt_has_the_same_masks_as_in_torch(
    prompt: dict[str, Any], multimask_output: bool, predictor: OnnxPredictor, torchs: SamPredictor
) -> None:
    ours = predictor.predict(**prompt, multimask_output=multimask_output, return_logits=True)
    theirs = torchs.predict(**prompt, multimask_output=multimask_output, return_logits=True)
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.shape == expected.shape
        assert mine.dtype == expected.dtype == np.float32
        assert np.abs(mine - expected).max() < 1e-5


def test_masks_are_the_logits_above_the_threshold(predictor: OnnxPredictor) -> None:
    masks, *_ = predictor.predict(**CLICK)
    logits, *_ = predictor.predict(**CLICK, return_logits=True)
    assert masks.dtype == np.bool_
    assert np.array_equal(masks, logits > 0)


def test_a_mask_of_before_refines_as_in_torch(predictor: OnnxPredictor, torchs: SamPredictor) -> None:
    first = predictor.predict(**CLICK, multimask_output=False)[2]
    ours = predictor.predict(**CLICK, mask_input=first, multimask_output=False)
    theirs = torchs.predict(**CLICK, mask_input=first, multimask_output=False)
    assert np.abs(ours[2] - theirs[2]).max() < 1e-5


def test_objects_with_different_prompts_are_answered_together(predictor: OnnxPredictor, torchs: SamPredictor) -> None:
    rough = np.zeros((45, 70), dtype=bool)
    rough[10:30, 10:40] = True
    prompts = Prompts(
        [
            Prompt.make([[30, 20]], [1]),
            Prompt.make(box=[10, 5, 50, 40]),
            Prompt.make(mask=rough),
            Prompt.make([[1, 2], [30, 9]], [0, 1]),
        ]
    )
    for rule in (None, True):
        ours, theirs = (p.predict_many(prompts, rule, return_logits=True) for p in (predictor, torchs))
        for mine, expected in zip(ours, theirs, strict=True):
            assert mine.shape == expected.shape
            assert np.abs(mine - expected).max() < 1e-4


def test_no_objects_give_no_masks(predictor: OnnxPredictor) -> None:
    masks, iou, low_res = predictor.predict_many([])
    assert (masks.shape, iou.shape, low_res.shape) == ((0, 1, 45, 70), (0, 1), (0, 1, 16, 16))


def test_the_size_of_a_batch_changes_nothing(predictor: OnnxPredictor) -> None:
    prompts = Prompts.from_points(np.random.default_rng(0).random((5, 2)) * 40)
    together, apart = (predictor.predict_many(prompts, batch_size=size)[2] for size in (64, 2))
    assert np.abs(together - apart).max() < 1e-6


def test_the_bundled_kind_of_model_answers_too() -> None:
    small = OnnxPredictor(export("nano"), providers="cpu")
    torchs = SamPredictor(model("nano"))
    for each in (small, torchs):
        each.set_image(photo())
    ours, theirs = (each.predict(box=[10, 5, 50, 40])[2] for each in (small, torchs))
    assert np.abs(ours - theirs).max() < 0.05 * theirs.std()  # weights in half precision


def test_channels_may_be_in_opencvs_order(toy: OnnxModel, predictor: OnnxPredictor) -> None:
    other = OnnxPredictor(toy)
    other.set_image(photo()[..., ::-1], image_format="BGR")
    assert np.array_equal(other.get_image_embedding(), predictor.get_image_embedding())


def test_what_is_set_can_be_asked_and_forgotten(predictor: OnnxPredictor) -> None:
    assert (predictor.is_image_set, predictor.original_size, predictor.input_size) == (True, (45, 70), (41, 64))
    assert predictor.features is predictor.get_image_embedding()
    predictor.reset_image()
    assert (predictor.is_image_set, predictor.features, predictor.original_size) == (False, None, None)
    with pytest.raises(RuntimeError, match=r"An image must be set with \.set_image"):
        predictor.predict(**CLICK)


def test_embeddings_go_between_torch_and_onnx_runtime(
    predictor: OnnxPredictor, torchs: SamPredictor, tmp_path: Path
) -> None:
    predictor.save_embedding(tmp_path / "ours")
    torchs.save_embedding(tmp_path / "theirs")
    expected = predictor.predict(**CLICK)[2]
    torchs.reset_image()
    torchs.load_embedding(tmp_path / "ours", photo())
    predictor.load_embedding(tmp_path / "theirs", photo())
    for each in (predictor, torchs):
        assert np.abs(each.predict(**CLICK)[2] - expected).max() < 1e-5


def test_an_embedding_of_another_image_or_model_is_refused(predictor: OnnxPredictor, tmp_path: Path) -> None:
    predictor.save_embedding(tmp_path / "toy")
    with pytest.raises(ValueError, match="made from another image"):
        predictor.load_embedding(tmp_path / "toy", photo(seed=1))
    other = OnnxPredictor(export("nano"), providers="cpu")
    with pytest.raises(
        ValueError, match=r"made by other weights \(toy, input 64\) than this model's \(nano, input 64\)"
    ):
        other.load_embedding(tmp_path / "toy")


@pytest.mark.parametrize("size_hw", [(45, 70), (100, 30), (64, 64), (7, 200)])
def test_masks_are_resized_as_torch_resizes_them(size_hw: tuple[int, int]) -> None:
    low_res = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    iou, geometry = np.zeros((2, 3), np.float32), ImageGeometry(size_hw, 64)
    ours = OnnxDecoded(low_res, iou, geometry)
    theirs = Decoded(torch.from_numpy(low_res), torch.from_numpy(iou), geometry).logits().numpy()
    assert np.abs(ours.logits() - theirs).max() < 1e-5
    assert np.array_equal(ours.masks(0.5), ours.logits() > 0.5)


def test_the_best_of_three_is_the_one_with_the_highest_score() -> None:
    iou = np.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.3]], dtype=np.float32)
    low_res = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)
    best = OnnxDecoded(low_res, iou, ImageGeometry((4, 4), 4)).best()
    assert (best.low_res_logits.ravel().tolist(), best.iou_predictions.ravel().tolist()) == (
        [1, 3],
        [np.float32(0.9), np.float32(0.7)],
    )


AUTOMATIC = {
    "points_per_side": 5,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.02,
    "stability_score_offset": 0.02,
    "box_nms_thresh": 1.0,  # boxes of a random network are all alike
    "crop_nms_thresh": 1.0,
    "crop_n_layers": 1,
}


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"output_mode": "binary_mask"}, 40),
        ({"output_mode": "uncompressed_rle", "box_nms_thresh": 0.95, "crop_nms_thresh": 0.9}, 3),
        ({"output_mode": "coco_rle", "min_mask_region_area": 12, "min_mask_area": 20, "overlap": "iomin"}, 3),
    ],
)
def test_automatic_masks_are_torchs_records_in_the_same_order(
    options: dict[str, Any], least: int, toy: OnnxModel
) -> None:
    ours = OnnxMaskGenerator(toy, explain=True, **{**AUTOMATIC, **options})
    theirs = SamAutomaticMaskGenerator(model("toy"), explain=True, **{**AUTOMATIC, **options})
    found, expected = ours.generate(photo()), theirs.generate(photo())
    assert len(found) >= least
    assert ours.last_explanation == theirs.last_explanation
    for mine, other in zip(found, expected, strict=True):
        assert mine.keys() == other.keys()
        assert (mine["point_coords"], mine["crop_box"]) == (other["point_coords"], other["crop_box"])
        assert mine["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-5)
        assert type(mine["segmentation"]) is type(other["segmentation"])
        assert (record_mask(mine) != record_mask(other)).sum() <= 2  # a logit within rounding of the threshold


def test_an_embedding_at_hand_saves_encoding(toy: OnnxModel) -> None:
    generator = OnnxMaskGenerator(toy, **{**AUTOMATIC, "crop_n_layers": 0})
    with torch.no_grad():
        embedding = as_onnx_embedding(model("toy").encode(photo()))
    assert len(generator.generate(photo(), embedding=embedding)) == len(generator.generate(photo()))
    with pytest.raises(ValueError, match="made from another image"):
        generator.generate(photo(seed=1), embedding=embedding)


def test_clicks_can_be_given(toy: OnnxModel) -> None:
    generator = OnnxMaskGenerator(toy, None, point_grids=[np.array([[0.5, 0.5]])], pred_iou_thresh=0.0)
    proposals = list(generator.propose(photo()))
    assert [batch.points_xy.tolist() for batch in proposals] == [[[35.0, 22.5]]]
    with pytest.raises(ValueError, match="points_per_side must be a whole number unless point_grids is given"):
        OnnxMaskGenerator(toy, None)


def test_threads_may_share_a_model(toy: OnnxModel) -> None:
    embedding = toy.encode(photo())
    prompts = Prompts.from_points(np.random.default_rng(0).random((16, 2)) * 40)
    expected = toy.decode(embedding, prompts).low_res_logits
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: toy.decode(toy.encode(photo()), prompts[i]).low_res_logits, range(16)))
    assert np.abs(np.concatenate(answers) - expected).max() < 1e-5


BLOCKED = """
import json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "transformers", "scipy"):
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Block())
from segment_anything.images import read_image
from segment_anything.onnx import OnnxMaskGenerator, OnnxPredictor
from segment_anything.prompts import Prompt

folder, file, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
image = read_image(file)
predictor = OnnxPredictor(folder)
predictor.set_image(image)
masks, iou, _ = predictor.predict([[30, 20]], [1], box=[10, 5, 50, 40])
many, *_ = predictor.predict_many([Prompt.make(box=[10, 5, 50, 40]), Prompt.make(mask=masks[0])])
records = OnnxMaskGenerator(predictor.model, **options).generate(image)
assert not {"torch", "onnx"} & set(sys.modules)
print(json.dumps([masks.sum(axis=(1, 2)).tolist(), iou.tolist(), list(many.shape), [r["area"] for r in records]]))
"""


def test_all_of_it_runs_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(photo()).save(tmp_path / "photo.png")
    arguments = [str(export("toy")), str(tmp_path / "photo.png"), json.dumps(AUTOMATIC)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    areas, iou, shape, found = json.loads(done.stdout)
    torchs = SamPredictor(model("toy"))
    torchs.set_image(photo())
    masks, expected_iou, _ = torchs.predict([[30, 20]], [1], box=[10, 5, 50, 40])
    assert areas == pytest.approx(masks.sum(axis=(1, 2)), abs=2)
    assert iou == pytest.approx(expected_iou, abs=1e-5)
    assert shape == [2, 1, 45, 70]
    records = SamAutomaticMaskGenerator(model("toy"), **AUTOMATIC).generate(photo())  # type: ignore[arg-type]
    assert found == pytest.approx([record["area"] for record in records], abs=2)


def test_telemetry_is_off_before_onnxruntime_is_loaded() -> None:
    code = (
        "import os; from segment_anything._onnxruntime import onnxruntime; onnxruntime(); "
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


def test_a_provider_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"this ONNX Runtime has no 'CUDAExecutionProvider'.*onnxruntime-gpu"):
        OnnxModel(export("toy"), providers="cuda")
    with pytest.raises(ValueError, match=r"has no 'TpuExecutionProvider', only .*CPUExecutionProvider"):
        OnnxModel(export("toy"), providers=["TpuExecutionProvider"])


def test_a_provider_that_does_not_start_is_named() -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    check_started([cuda], [cuda, cpu])
    check_started([cuda, cpu], [cpu])  # the CPU was asked for as well
    with pytest.raises(ValueError, match=f"has '{cuda}' but could not start it and took '{cpu}'.*leave providers out"):
        check_started([cuda], [cpu])


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(export("toy"), tmp_path / "copy")
    return tmp_path / "copy"


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "toy_encoder.onnx").unlink()
    with pytest.raises(ValueError, match=r"toy_encoder.onnx is missing, which toy.json names: export the model again"):
        OnnxModel(copied, providers="cpu").encode(photo())


def test_a_damaged_file_is_named(copied: Path) -> None:
    (copied / "toy_encoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(ValueError, match=r"toy_encoder.onnx cannot be loaded by ONNX Runtime: .*"):
        OnnxModel(copied, providers="cpu").encode(photo())


def test_a_missing_file_of_weights_is_named(copied: Path) -> None:
    manifest, _ = Manifest.load(copied)
    path = copied / "toy_encoder.onnx"
    write(onnx.load(path), path, manifest.metadata("encoder"), 0.01)[1].unlink()
    with pytest.raises(ValueError, match=r"toy_encoder.onnx cannot be loaded by ONNX Runtime: .*toy_encoder.onnx.data"):
        OnnxModel(copied, providers="cpu").encode(photo())


@pytest.mark.parametrize("content", ["", '{"format": "segment-anything onnx 1", "mod', "[1, 2]"])
def test_a_damaged_json_is_named(content: str, copied: Path) -> None:
    (copied / "toy.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"holds none \(not one, or damaged: toy.json\). `segment-anything export"
    ) as error:
        OnnxModel(copied)
    assert "\n" not in str(error.value)


def test_a_missing_json_is_asked_for(copied: Path) -> None:
    (copied / "toy.json").unlink()
    with pytest.raises(ValueError, match=r"copy should hold the JSON of one export, but holds none. `segment-anything"):
        OnnxModel(copied)


def test_checks_of_another_kind_are_refused(copied: Path) -> None:
    content = json.loads((copied / "toy.json").read_text())
    content["checks"]["encoder"] = {"deviation": 0.1}
    (copied / "toy.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"toy.json: checks must hold max_deviation, mask_agreement by role"):
        Manifest.load(copied)


def test_a_graph_of_another_model_is_refused(copied: Path) -> None:
    shutil.copy(export("nano") / "nano_encoder.onnx", copied / "toy_encoder.onnx")
    with pytest.raises(ValueError, match=r"toy_encoder.onnx belongs to another model or form than toy.json says"):
        OnnxModel(copied, providers="cpu").encode(photo())


def test_a_graph_of_another_form_is_refused(copied: Path) -> None:
    shutil.copy(copied / "toy_decoder.onnx", copied / "toy_decoder_batched.onnx")
    opened = OnnxModel(copied, providers="cpu")
    with pytest.raises(ValueError, match=r"\(role decoder, expected batched\): keep the files of one export together"):
        _ = opened.decoder


def test_a_form_that_was_not_exported_is_asked_for(copied: Path) -> None:
    content = json.loads((copied / "toy.json").read_text())
    del content["files"]["batched"]
    (copied / "toy.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has no batched decoder.*export the model again with --decoders batched"):
        _ = OnnxModel(copied, providers="cpu").decoder


def test_without_the_prepared_form_the_answers_are_the_same(copied: Path, predictor: OnnxPredictor) -> None:
    content = json.loads((copied / "toy.json").read_text())
    del content["files"]["prepared"], content["files"]["prepare"]
    (copied / "toy.json").write_text(json.dumps(content))
    other = OnnxPredictor(copied, providers="cpu")
    other.set_image(photo())
    assert np.abs(other.predict(**CLICK)[2] - predictor.predict(**CLICK)[2]).max() < 1e-5


def test_an_input_of_another_shape_is_named(toy: OnnxModel) -> None:
    graph = Graph("encoder", toy.manifest, toy.folder, toy.providers, 1)
    with pytest.raises(ValueError, match=r"input of toy_encoder.onnx must have shape \(1, 3, 64, 64\); got \(1, 3, 32"):
        graph.run({"input": np.zeros((1, 3, 32, 32), np.float32)})
    with pytest.raises(ValueError, match=r"toy_encoder.onnx takes input; got image"):
        graph.run({"image": np.zeros((1, 3, 64, 64), np.float32)})


def test_prompts_are_checked_as_in_torch(predictor: OnnxPredictor) -> None:
    with pytest.raises(ValueError, match=r"mask_input must have shape \(1, 16, 16\)"):
        predictor.predict(**CLICK, mask_input=np.zeros((1, 256, 256)))
    with pytest.raises(ValueError, match="point_coords must lie in the image, 70 pixels wide and 45 high"):
        predictor.predict([[500, 20]], [1])
    with pytest.raises(ValueError, match="point_labels must be supplied if point_coords is supplied"):
        predictor.predict([[30, 20]])
    with pytest.raises(ValueError, match=r"point_coords must have shape \(P, 2\).*\(1, 3\)"):
        predictor.predict([[30, 20, 1]], [1])
    with pytest.raises(ValueError, match=r"box must .*\(3,\)"):
        predictor.predict(box=[1, 2, 3])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nowhere", "There is no export at .*nowhere: `segment-anything export"),
        (lambda folder: folder, "should hold the JSON of one export, but holds none"),
        (lambda folder: export("toy") / "toy_encoder.onnx", "give the JSON beside the graph, or their folder"),
    ],
)
def test_what_is_no_export_is_refused(make: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=words):
        OnnxModel(make(tmp_path))


def test_of_two_exports_in_a_folder_one_is_chosen_by_its_json(copied: Path) -> None:
    for file in export("nano").iterdir():
        shutil.copy(file, copied)
    with pytest.raises(ValueError, match=r"2 exports \(nano.json, toy.json\); give one of them"):
        OnnxModel(copied)
    assert OnnxModel(copied / "nano.json").name == "nano"


def test_a_json_from_another_time_says_what_it_lacks(copied: Path) -> None:
    content = json.loads((copied / "toy.json").read_text())
    del content["pixel_mean"]
    (copied / "toy.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"toy.json lacks pixel_mean: export the model again"):
        Manifest.load(copied)


def test_a_file_that_is_no_export_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a.json is not the JSON of an export"):
        Manifest.load(tmp_path / "a.json")
