"""Exported files: complete, named as promised, the same numbers as torch at every number of objects and points."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import OPTIONS, export, model, photo
from toy import toy_sam

from segment_anything import load_sam
from segment_anything._onnxruntime import onnxruntime
from segment_anything.embedding import fingerprint_weights
from segment_anything.export import ExportError, ExportOptions, export_model
from segment_anything.export.convert import to_onnx, to_program
from segment_anything.export.exporter import _with_tanh
from segment_anything.export.graphs import batched_graph, encoder_graph, original_graph, prepared_graphs
from segment_anything.export.verify import verify
from segment_anything.export.weights import quantise, store_half, write
from segment_anything.modeling import Sam
from segment_anything.onnx import Manifest, OnnxModel
from segment_anything.onnx.prompts import labelled_points
from segment_anything.onnx.sessions import Graph
from segment_anything.predictor import SamPredictor
from segment_anything.prompts import Prompt

onnx = pytest.importorskip("onnx")

EVERY_KIND = [
    Prompt.make([[30, 20]], [1]),
    Prompt.make([[30, 20], [60, 40], [5, 5]], [1, 0, 1]),
    Prompt.make(box=[10, 5, 50, 40]),
    Prompt.make([[40, 10]], [0], box=[10, 5, 50, 40]),
    Prompt.make([[30, 20], [60, 40]], [1, 0], box=[1, 2, 60, 44]),
]
"""One to four tokens an object."""


def graph(name: str, role: str) -> Graph:
    opened = OnnxModel(export(name), providers="cpu")
    return Graph(role, opened.manifest, opened.folder, opened.providers, 1)


def one_by_one(sam: Sam, prompts: list[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """All four masks and their predicted IoU, each object decoded alone by torch."""
    with torch.no_grad():
        embedding = sam.encode(photo())
        answers = [[sam.decode(embedding, prompt, many) for many in (False, True)] for prompt in prompts]
    masks = [torch.cat([a.low_res_logits for a in pair], dim=1) for pair in answers]
    return torch.cat(masks).numpy(), torch.cat(
        [torch.cat([a.iou_predictions for a in pair], dim=1) for pair in answers]
    ).numpy()


def features(sam: Sam) -> np.ndarray:
    with torch.no_grad():
        return sam.encode(photo()).features.numpy()


def no_masks(sam: Sam, count: int) -> dict[str, np.ndarray]:
    side = sam.mask_input_size
    return {"mask_input": np.zeros((count, 1, side, side), np.float32), "has_mask_input": np.zeros(count, np.float32)}


def points(sam: Sam, prompts: list[Prompt]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        geometry = sam.encode(photo()).geometry
    return dict(zip(("point_coords", "point_labels"), labelled_points(prompts, geometry), strict=True))


def run_batched(name: str, prompts: list[Prompt], **changed: np.ndarray) -> dict[str, np.ndarray]:
    sam = model(name)
    inputs = {"image_embeddings": features(sam), **points(sam, prompts), **no_masks(sam, len(prompts))}
    return graph(name, "batched").run({**inputs, **changed})


@pytest.mark.parametrize("name", ["toy", "nano"])
@pytest.mark.parametrize("count", [1, 5])
def test_many_objects_in_one_run_are_the_same_as_one_by_one_in_torch(name: str, count: int) -> None:
    found = run_batched(name, EVERY_KIND[:count])
    masks, iou = one_by_one(model(name), EVERY_KIND[:count])
    tolerance = 1e-5 if OPTIONS[name].precision == "fp32" else 5e-3
    assert np.abs(found["low_res_masks"] - masks).max() < tolerance
    assert np.abs(found["iou_predictions"] - iou).max() < tolerance


def test_absent_points_take_no_part() -> None:
    alone = run_batched("toy", EVERY_KIND[:1])["low_res_masks"]
    beside = run_batched("toy", EVERY_KIND)["low_res_masks"][:1]
    assert np.abs(alone - beside).max() < 1e-6


def test_a_padding_point_does_take_part() -> None:
    given = points(model("toy"), EVERY_KIND[:1])
    once = run_batched("toy", EVERY_KIND[:1])["low_res_masks"]
    twice = {
        "point_coords": np.concatenate([given["point_coords"], np.zeros((1, 1, 2), np.float32)], axis=1),
        "point_labels": np.concatenate([given["point_labels"], [[-1.0]]], axis=1).astype(np.float32),
    }
    assert np.abs(run_batched("toy", EVERY_KIND[:1], **twice)["low_res_masks"] - once).max() > 1e-4


def test_forty_points_fit_into_the_same_graph() -> None:
    rng = np.random.default_rng(0)
    prompt = Prompt.make(rng.random((40, 2)) * [69, 44], rng.integers(0, 2, 40))
    masks, _ = one_by_one(model("toy"), [prompt])
    assert np.abs(run_batched("toy", [prompt])["low_res_masks"] - masks).max() < 1e-5


@pytest.mark.parametrize("name", ["toy", "nano"])
@pytest.mark.parametrize("count", [1, 5])
def test_the_prepared_form_gives_the_same_masks(name: str, count: int) -> None:
    sam = model(name)
    prepared = graph(name, "prepare").run({"image_embeddings": features(sam)})
    found = graph(name, "prepared").run({**prepared, **points(sam, EVERY_KIND[:count])})
    masks, iou = one_by_one(sam, EVERY_KIND[:count])
    tolerance = 1e-5 if OPTIONS[name].precision == "fp32" else 5e-3
    assert np.abs(found["low_res_masks"] - masks).max() < tolerance
    assert np.abs(found["iou_predictions"] - iou).max() < tolerance


def test_the_original_form_has_the_originals_names_and_open_sides() -> None:
    original = graph("toy", "decoder")
    assert original.inputs == {
        "image_embeddings": (1, 32, 4, 4),
        "point_coords": (1, "num_points", 2),
        "point_labels": (1, "num_points"),
        "mask_input": (1, 1, 16, 16),
        "has_mask_input": (1,),
        "orig_im_size": (2,),
    }
    assert original.outputs == ("masks", "iou_predictions", "low_res_masks")
    assert original.session.get_outputs()[0].shape == [1, 4, "height", "width"]


@pytest.mark.parametrize("size_hw", [(45, 70), (300, 20), (17, 17)])
def test_the_original_form_gives_the_predictors_masks_at_any_image_size(size_hw: tuple[int, int]) -> None:
    sam = model("toy")
    predictor = SamPredictor(sam)
    predictor.set_image(photo(*size_hw))
    clicks, labels = np.array([[5.0, 8.0], [9.0, 16.0]]), np.array([1, 0])
    coords = np.concatenate([predictor.transform.apply_coords(clicks, size_hw), np.zeros((1, 2))])[None]
    found = graph("toy", "decoder").run(
        {
            "image_embeddings": predictor.get_image_embedding().numpy(),
            "point_coords": coords.astype(np.float32),
            "point_labels": np.array([[1, 0, -1]], np.float32),
            **no_masks(sam, 1),
            "orig_im_size": np.array(size_hw, np.float32),
        }
    )
    masks, iou, _ = predictor.predict(clicks, labels, multimask_output=True, return_logits=True)
    assert np.abs(found["masks"][0, 1:] - masks).max() < 1e-5
    assert np.abs(found["iou_predictions"][0, 1:] - iou).max() < 1e-5


@pytest.mark.parametrize("size_hw", [(64, 64), (64, 9), (31, 64)])
def test_a_normalising_encoder_takes_any_resized_image(size_hw: tuple[int, int]) -> None:
    sam, image = model("nano"), photo(*size_hw)
    with torch.no_grad():
        expected = sam.encode(image).features.numpy()
    found = graph("nano", "encoder").run({"image": image})["image_embeddings"]
    assert np.abs(found - expected).max() < 0.02 * expected.std()


def test_the_plain_encoder_takes_normalised_and_padded_input() -> None:
    sam = model("toy")
    encoder = graph("toy", "encoder")
    assert encoder.inputs == {"input": (1, 3, 64, 64)}
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = sam.image_encoder(image).numpy()
    assert np.abs(encoder.run({"input": image.numpy()})["image_embeddings"] - expected).max() < 1e-5


def test_the_json_says_what_the_files_are() -> None:
    sam = model("toy")
    manifest, folder = Manifest.load(export("toy"))
    assert (manifest.model, manifest.image_size, manifest.embedding_channels) == ("toy", 64, 32)
    assert (manifest.embedding_size, manifest.mask_input_size, manifest.mask_threshold) == (4, 16, 0.0)
    assert manifest.pixel_mean == pytest.approx([123.675, 116.28, 103.53])
    assert manifest.weights_fingerprint == fingerprint_weights(sam.state_dict())
    assert (manifest.weights_license, manifest.opset, manifest.normalises) == ("Apache-2.0", 18, False)
    assert set(manifest.files) == {"encoder", "decoder", "batched", "prepare", "prepared"}
    assert sorted(path.name for path in folder.iterdir()) == sorted([*manifest.files.values(), "toy.json"])


def test_every_graph_carries_its_origin_and_one_opset() -> None:
    manifest, folder = Manifest.load(export("toy"))
    for role, file in manifest.files.items():
        proto = onnx.load(folder / file)
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        assert metadata["segment_anything.role"] == role
        assert metadata["segment_anything.weights_license"] == "Apache-2.0"
        assert [opset.version for opset in proto.opset_import if opset.domain == ""] == [18]


def test_no_path_of_the_machine_is_in_the_files() -> None:
    for file in export("toy").iterdir():
        content = file.read_bytes()
        assert b"segment_anything/modeling" not in content
        assert str(Path.cwd()).encode() not in content


def test_what_was_measured_is_written_down() -> None:
    checks = Manifest.load(export("toy"))[0].checks
    assert set(checks) == {"encoder", "decoder", "batched", "prepared"}
    assert all(0 < check.max_deviation < 1e-4 and check.mask_agreement > 0.999 for check in checks.values())


def test_what_is_prepared_is_named_by_the_graph_that_takes_it() -> None:
    assert tuple(graph("toy", "prepared").inputs)[:4] == graph("toy", "prepare").outputs
    assert graph("nano", "prepare").outputs == ("image_map", "image_coarse")
    assert tuple(graph("nano", "prepared").inputs) == ("image_map", "image_coarse", "point_coords", "point_labels")


def test_weights_stored_in_half_take_half_the_space() -> None:
    folder = export("nano")
    count = sum(tensor.numel() for tensor in model("nano").image_encoder.state_dict().values())
    assert (folder / "nano_encoder.onnx").stat().st_size < 1.1 * 2 * count
    proto = onnx.load(folder / "nano_encoder.onnx")
    assert {onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT} <= {t.data_type for t in proto.graph.initializer}


def test_values_beyond_half_precision_stay_in_full() -> None:
    huge = onnx.numpy_helper.from_array(np.full(2000, 1e6, np.float32), "huge")
    model_proto = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [huge]))
    assert store_half(model_proto).graph.initializer[0].data_type == onnx.TensorProto.FLOAT


def test_an_encoder_in_eight_bits_multiplies_in_eight_bits() -> None:
    exact, small = (onnx.load(export("toy") / "toy_encoder.onnx") for _ in range(2))
    small = quantise(small)
    assert "MatMulInteger" in {node.op_type for node in small.graph.node}
    image = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    a, b = (run_proto(proto, {"input": image})[0] for proto in (exact, small))
    assert 0 < np.abs(a - b).max() < 0.1 * a.std()  # 0.64 where products saturate: AVX2 without VNNI, signed weights


def run_proto(proto: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime().InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def test_weights_of_a_large_graph_lie_in_a_file_beside_it(tmp_path: Path) -> None:
    manifest, folder = Manifest.load(export("toy"))
    files = write(
        onnx.load(folder / "toy_encoder.onnx"), tmp_path / "toy_encoder.onnx", manifest.metadata("encoder"), 0.01
    )
    assert [file.name for file in files] == ["toy_encoder.onnx", "toy_encoder.onnx.data"]
    assert files[1].stat().st_size > files[0].stat().st_size
    image = np.ones((1, 3, 64, 64), np.float32)
    split = Graph("encoder", manifest, tmp_path, ["CPUExecutionProvider"], 1).run({"input": image})
    whole = graph("toy", "encoder").run({"input": image})
    assert np.array_equal(split["image_embeddings"], whole["image_embeddings"])


def test_writing_again_does_not_grow_the_file_of_weights(tmp_path: Path) -> None:
    manifest, folder = Manifest.load(export("toy"))
    sizes = []
    for _ in range(2):
        proto = onnx.load(folder / "toy_encoder.onnx")
        sizes.append(write(proto, tmp_path / "a.onnx", manifest.metadata("encoder"), 0.01)[1].stat().st_size)
    assert sizes[0] == sizes[1]


def test_an_export_of_other_weights_is_refused() -> None:
    with pytest.raises(ExportError, match=r"toy_encoder.onnx is not what torch computes: outputs deviate by .*"):
        verify(toy_sam(seed=1), OnnxModel(export("toy"), providers="cpu"), ExportOptions())


def test_a_refused_export_leaves_the_earlier_one_alone(tmp_path: Path) -> None:
    (tmp_path / "toy_encoder.onnx").write_text("the earlier one")
    with pytest.raises(ExportError, match=r"where 0 and 99\.95% are allowed for fp32\. Nothing was written"):
        export_model(toy_sam(), tmp_path, ExportOptions(decoders="", tolerance=0.0))
    assert [path.name for path in tmp_path.iterdir()] == ["toy_encoder.onnx"]
    assert (tmp_path / "toy_encoder.onnx").read_text() == "the earlier one"


def test_a_model_in_training_and_in_half_precision_is_exported_for_inference(tmp_path: Path) -> None:
    sam = toy_sam().to(torch.bfloat16).train()
    manifest = export_model(sam, tmp_path, ExportOptions(decoders=""))
    assert manifest.checks["encoder"].max_deviation < 1e-4
    assert (sam.dtype, sam.training) == (torch.bfloat16, True)


def test_gelu_can_be_written_without_erf() -> None:
    sam = toy_sam()
    plain, with_tanh = (
        {node.op_type for node in to_onnx(encoder_graph(each, False)).graph.node} for each in (sam, _with_tanh(sam))
    )
    assert "Erf" in plain
    assert "Erf" not in with_tanh


@functools.cache
def any_kind(name: str) -> Sam:
    """Of each kind of network in the registry a random one with an input of 64 pixels."""
    return model(name) if name != "vit_t" else load_sam("vit_t", checkpoint="random", device="cpu", image_size=64)


KINDS = pytest.mark.parametrize("name", ["toy", "vit_t", "nano"])


@KINDS
@pytest.mark.parametrize("normalise", [False, True])
def test_torch_export_of_the_encoder_runs_as_the_encoder_does(name: str, normalise: bool) -> None:
    sam = any_kind(name)
    program = to_program(encoder_graph(sam, normalise)).module()
    image = photo(40, 64)
    with torch.no_grad():
        padded = sam.preprocess(torch.from_numpy(image).permute(2, 0, 1).float())[None]
        found = program(image=torch.from_numpy(image)) if normalise else program(input=padded)
        assert (found - sam.image_encoder(padded)).abs().max() < 1e-5


@KINDS
def test_torch_export_of_the_decoder_runs_at_other_numbers_of_objects_and_points(name: str) -> None:
    sam = any_kind(name)
    program = to_program(batched_graph(sam)).module()
    for prompts in (EVERY_KIND[:1], EVERY_KIND):
        inputs = {"image_embeddings": features(sam), **points(sam, prompts), **no_masks(sam, len(prompts))}
        with torch.no_grad():
            iou, masks = program(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        expected, expected_iou = one_by_one(sam, prompts)
        assert np.abs(masks.numpy() - expected).max() < 1e-5
        assert np.abs(iou.numpy() - expected_iou).max() < 1e-5


@KINDS
def test_torch_export_of_the_prepared_decoder_runs_too(name: str) -> None:
    sam = any_kind(name)
    preparer, decoder = (to_program(part).module() for part in prepared_graphs(sam))
    given = {name: torch.from_numpy(value) for name, value in points(sam, EVERY_KIND).items()}
    names = next(prepared_graphs(sam)).outputs
    with torch.no_grad():
        image = dict(zip(names, preparer(image_embeddings=torch.from_numpy(features(sam))), strict=True))
        _, masks = decoder(**image, **given)
    assert np.abs(masks.numpy() - one_by_one(sam, EVERY_KIND)[0]).max() < 1e-5


@KINDS
def test_torch_export_of_the_originals_decoder_runs_at_other_sizes(name: str) -> None:
    sam = any_kind(name)
    program = to_program(original_graph(sam, ExportOptions())).module()
    given = {
        "image_embeddings": features(sam),
        **points(sam, EVERY_KIND[1:2]),
        **no_masks(sam, 1),
        "orig_im_size": np.array([45, 70], np.float32),
    }
    with torch.no_grad():
        masks, iou, low_res = program(**{name: torch.from_numpy(value) for name, value in given.items()})
    expected, expected_iou = one_by_one(sam, EVERY_KIND[1:2])
    assert masks.shape == (1, 4, 45, 70)
    assert np.abs(low_res.numpy() - expected).max() < 1e-5
    assert np.abs(iou.numpy() - expected_iou).max() < 1e-5


def test_another_kind_of_decoder_is_refused(tmp_path: Path) -> None:
    sam = toy_sam()
    sam.mask_decoder.transformer = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"only MaskDecoder on a TwoWayTransformer is exported; .* Identity"):
        export_model(sam, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"decoders": "batch"}, "decoders must be of original, batched, prepared, with commas between; got 'batch'"),
        ({"precision": "int4"}, "precision must be one of fp32, fp16, int8; got 'int4'"),
        ({"tolerance": -1.0}, "tolerance must be at least 0; got -1.0"),
        ({"external_data_mb": 3000.0}, r"external_data_mb must lie in 0\.\.2000, where ONNX ends; got 3000"),
    ],
)
def test_options_outside_their_range_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ExportOptions(**wrong)
