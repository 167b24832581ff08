"""Our answers to every question of the parity files, and how far they are from the published network's.

    python tests/parity.py                 # writes docs/parity.md; needs the shared data, takes two minutes
    python tests/parity.py --keep-small    # writes what the small network says about a picture made of arithmetic

Weights come from names and shapes alone (`filled.py`), so no checkpoint is needed. What an entry holds is told in the
README beside the parity files.
"""

import argparse
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filled import filled
from numpy.typing import NDArray
from toy import parity_sam

from segment_anything import Sam, SamAutomaticMaskGenerator, SamPredictor, read_image
from segment_anything.architectures import assemble, without_initialisation

Array = NDArray[Any]
Values = dict[str, Array]

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
SMALL_ANSWERS = ROOT / "tests" / "data" / "small_answers.npz"

MODELS = ("small", "vit_b", "vit_t")
"""The parity files."""
GIVEN = ("points", "labels", "box", "boxes3")
"""Entries that are questions, not answers."""
AMG_OPTIONS: dict[str, dict[str, Any]] = {
    "amg": {"points_per_side": 8},
    "amg_crops": {
        "points_per_side": 6,
        "crop_nms_thresh": 1.0,
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
    },
}
"""The two runs of automatic masks; the thresholds that they share are in `automatic_masks`."""

TIE = 1e-3
"""Predicted IoUs closer than this count as tied: the parity tolerance for logits and IoU."""


def parity_model(name: str) -> Sam:
    """One of `MODELS` with the deterministic weights, in eval mode."""
    if name == "small":
        sam = parity_sam()
    else:
        with without_initialisation():
            sam = assemble(name, 1024)
    sam.load_state_dict(filled(sam.state_dict()))
    return sam.eval()


def predictor_on(name: str, image: Array) -> SamPredictor:
    """A predictor of one of `MODELS` with its image set."""
    predictor = SamPredictor(parity_model(name))
    predictor.set_image(image)
    return predictor


def photo() -> Array:
    """The photograph of the parity files."""
    return read_image(SHARED / "images" / "truck.jpg")


def arithmetic_picture() -> Array:
    """(96, 128, 3): stripes of three colours that need no file."""
    y, x = np.mgrid[:96, :128]
    return np.stack([(x * 5 + y) % 256, (y * 7) % 256, (x * y // 8) % 256], axis=-1).astype(np.uint8)


def embedding_answers(predictor: SamPredictor) -> Values:
    """The image embedding, thinned to 16 x 16 x 16, and its mean and standard deviation."""
    features = predictor.get_image_embedding()[0]
    step = features.shape[-1] // 16
    return {
        "embedding": features[::16, ::step, ::step].numpy(),
        "embedding_mean_std": np.array([float(features.mean()), float(features.std())]),
    }


def mask_answers(name: str, logits: Array, iou: Array, low_res: Array) -> Values:
    """Masks as the parity files keep them: thinned, and the number of pixels above 0."""
    height, width = logits.shape[-2:]
    return {
        f"{name}.iou": iou,
        f"{name}.low_res": low_res[..., ::4, ::4],
        f"{name}.area": (logits > 0).sum(axis=(-2, -1)),
        f"{name}.logits": logits[..., :: max(1, height // 32), :: max(1, width // 32)],
    }


def prompt_answers(predictor: SamPredictor, given: Mapping[str, Array]) -> Values:
    """Points, boxes, both, and a refinement, by `predict`; three boxes by `predict_torch`."""
    points, labels, box = given["points"], given["labels"], given["box"]
    prompts: dict[str, dict[str, Array]] = {
        "one_point": {"point_coords": points[:1], "point_labels": labels[:1]},
        "three_points": {"point_coords": points, "point_labels": labels},
        "box": {"box": box},
        "points_and_box": {"point_coords": points, "point_labels": labels, "box": box},
    }
    answers: Values = {}
    for name, prompt in prompts.items():
        for multi in (True, False):
            asked = f"{name}.{'multi' if multi else 'single'}"
            answers |= mask_answers(asked, *predictor.predict(**prompt, multimask_output=multi, return_logits=True))
    _, iou, low_res = predictor.predict(points[:1], labels[:1])
    best = int(np.argmax(iou))
    refined = predictor.predict(
        points[:2], labels[:2], mask_input=low_res[best][None], multimask_output=False, return_logits=True
    )
    answers |= {"refine.mask_index": np.array(best)} | mask_answers("refine", *refined)
    assert predictor.original_size is not None
    boxes = predictor.transform.apply_boxes_torch(torch.from_numpy(given["boxes3"]), predictor.original_size)
    three = predictor.predict_torch(None, None, boxes, multimask_output=False, return_logits=True)
    return answers | mask_answers("boxes3", *(tensor.numpy() for tensor in three))


@torch.no_grad()
def prompt_encoder_answers(predictor: SamPredictor, given: Mapping[str, Array]) -> Values:
    """What the prompt encoder alone makes of the three points, and the position code of the grid.

    This one entry was made from points scaled by the plain ratio of the longest sides; everywhere else each axis has
    its own scale, that of the rounded size.
    """
    sam = predictor.model
    coords = given["points"] * (sam.image_size / max(predictor.original_size or ()))
    points = torch.from_numpy(coords)[None], torch.from_numpy(given["labels"])[None]
    sparse, _ = sam.prompt_encoder(points=points, boxes=None, masks=None)
    dense_pe = sam.prompt_encoder.get_dense_pe()[0, ::16, ::4, ::4]
    return {"prompt.sparse": sparse.numpy(), "prompt.dense_pe": dense_pe.numpy()}


def has_onnx_wrapper() -> bool:
    """Whether the package has the original's exportable module (segment_anything/utils/onnx.py)."""
    return importlib.util.find_spec("segment_anything.utils.onnx") is not None


@torch.no_grad()
def onnx_wrapper_answers(predictor: SamPredictor, given: Mapping[str, Array]) -> Values:
    """The five outputs of the module that gets exported, for the three points and one padding point."""
    wrapper_class = importlib.import_module("segment_anything.utils.onnx").SamOnnxModel
    wrapper = wrapper_class(predictor.model, return_single_mask=True, return_extra_metrics=True)
    height, width = predictor.original_size or (0, 0)
    # The file was made with one scale for x and y; `ResizeLongestSide` has two, because it rounds 170.67 rows to 171.
    scale = predictor.model.image_size / max(height, width)
    coords = np.concatenate([given["points"] * scale, np.zeros((1, 2))])
    labels = np.concatenate([given["labels"], [-1]])
    side = predictor.model.mask_input_size
    outputs = wrapper(
        image_embeddings=predictor.get_image_embedding(),
        point_coords=torch.from_numpy(coords[None].astype(np.float32)),
        point_labels=torch.from_numpy(labels[None].astype(np.float32)),
        mask_input=torch.zeros(1, 1, side, side),
        has_mask_input=torch.zeros(1),
        orig_im_size=torch.tensor([height, width], dtype=torch.float32),
    )
    names = ("masks", "scores", "stability", "areas", "low_res")
    values = dict(zip(names, (output.numpy() for output in outputs), strict=True))
    values["masks"] = values["masks"][..., :: height // 32, :: width // 32]
    values["low_res"] = values["low_res"][..., ::4, ::4]
    return {f"onnx_wrapper.{name}": value for name, value in values.items()}


def automatic_masks(sam: Sam, image: Array, run: str) -> Values:
    """The records of one of the two runs in `AMG_OPTIONS`, a column each."""
    generator = SamAutomaticMaskGenerator(
        sam,
        pred_iou_thresh=-99,
        stability_score_thresh=0.2,
        stability_score_offset=0.2,
        box_nms_thresh=1.0,
        output_mode="coco_rle",
        **AMG_OPTIONS[run],
    )
    records: list[Any] = generator.generate(image)
    keys = {"area": "area", "iou": "predicted_iou", "stability": "stability_score", "bbox": "bbox", "crop": "crop_box"}
    columns = {f"{run}.{name}": np.array([record[key] for record in records]) for name, key in keys.items()}
    return columns | {f"{run}.point": np.array([record["point_coords"][0] for record in records])}


def matched(ours: Values, expected: Mapping[str, Array], run: str) -> list[int]:
    """For each expected record the place of ours from the same click and crop, with the closest predicted IoU.

    Scores closer than rounding may change places.
    """
    free = set(range(len(ours[f"{run}.iou"])))
    order = []
    for point, crop, iou in zip(*(expected[f"{run}.{name}"] for name in ("point", "crop", "iou")), strict=True):
        same = [
            j
            for j in free
            if np.allclose(ours[f"{run}.point"][j], point) and np.array_equal(ours[f"{run}.crop"][j], crop)
        ]
        assert same, f"no record of ours comes from the click {point} in crop {crop}"
        order.append(min(same, key=lambda j: abs(float(ours[f"{run}.iou"][j] - iou))))
        free.remove(order[-1])
    assert not free, f"{len(free)} records of ours have no counterpart"
    return order


@dataclass(frozen=True)
class Deviation:
    """How far one entry of a parity file is from ours."""

    entry: str
    largest: float
    """In `unit`."""
    allowed: float
    """In `unit`, by the tolerances beside the parity files."""
    unit: str
    shape: tuple[int, ...]

    @property
    def is_allowed(self) -> bool:
        """Whether it lies within the tolerance."""
        return self.largest <= self.allowed


def deviation(entry: str, ours: Array, expected: Array, image_px: int) -> Deviation:
    """The largest deviation of one entry, in the unit that its tolerance is given in."""
    if ours.shape != expected.shape:
        raise AssertionError(f"{entry}: shape {ours.shape}, expected {expected.shape}")
    largest = float(np.abs(ours.astype(np.float64) - expected).max())
    kind = entry.rsplit(".", 1)[-1]
    if kind in ("mask_index", "crop"):
        return Deviation(entry, largest, 0.0, "exact", expected.shape)
    if kind in ("bbox", "point"):
        return Deviation(entry, largest, 1.0 if kind == "bbox" else 1e-6, "pixels", expected.shape)
    if kind in ("area", "areas"):
        return Deviation(entry, largest / image_px, 1e-3, "of the image", expected.shape)
    if kind in ("iou", "scores", "stability"):
        return Deviation(entry, largest, TIE, "absolute", expected.shape)
    is_embedding = entry.startswith(("embedding", "prompt"))
    if kind == "embedding_mean_std":
        return Deviation(entry, largest / float(expected[1]), 1e-4, "of std", expected.shape)
    return Deviation(entry, largest / float(expected.std()), 1e-4 if is_embedding else TIE, "of std", expected.shape)


def deviations(ours: Values, expected: Mapping[str, Array], image_px: int) -> Iterator[Deviation]:
    """A deviation for every entry that both have, in the order of `expected`."""
    for run in AMG_OPTIONS:
        if f"{run}.iou" in ours:
            order = matched(ours, expected, run)
            ours = ours | {name: column[order] for name, column in ours.items() if name.startswith(f"{run}.")}
    for entry in expected:
        if entry in ours and entry not in GIVEN:
            yield deviation(entry, ours[entry], expected[entry], image_px)


def all_answers(name: str, expected: Mapping[str, Array]) -> Values:
    """Ours to every question of one parity file."""
    image = photo()
    predictor = predictor_on(name, image)
    answers = embedding_answers(predictor) | prompt_answers(predictor, expected)
    answers |= prompt_encoder_answers(predictor, expected)
    if "onnx_wrapper.masks" in expected and has_onnx_wrapper():
        answers |= onnx_wrapper_answers(predictor, expected)
    for run in AMG_OPTIONS:
        if f"{run}.iou" in expected:
            answers |= automatic_masks(predictor.model, image, run)
    return answers


def load(name: str) -> Values:
    """One parity file."""
    with np.load(SHARED / "parity" / f"{name}.npz") as file:
        return dict(file)


def table(name: str) -> Iterator[str]:
    """The Markdown lines for one parity file: every entry, given or answered."""
    expected = load(name)
    found = {item.entry: item for item in deviations(all_answers(name, expected), expected, image_px=1200 * 1800)}
    yield from (f"## {name}.npz", "", "| entry | shape | largest deviation | allowed | |", "|---|---|---|---|---|")
    for entry, value in expected.items():
        shape = " x ".join(map(str, value.shape)) or "1"
        if entry in GIVEN:
            yield f"| {entry} | {shape} | (a question) | | |"
        elif entry in found:
            item = found[entry]
            verdict = "" if item.is_allowed else "**above**"
            yield f"| {entry} | {shape} | {item.largest:.1e} {item.unit} | {item.allowed:g} | {verdict} |"
        else:
            yield f"| {entry} | {shape} | not measured: the ONNX wrapper is not there yet | | |"
    yield ""


INTRODUCTION = """# Parity with the published networks

The largest deviation of this package from the published networks, for every entry of the parity files, in float32 on
a CPU. The weights are deterministic (made from names and shapes), the photograph has 1200 x 1800 pixels. Deviations of
embeddings, logits and prompt codes are shares of the entry's standard deviation; areas are shares of the image; a
record of automatic masks is compared with the one from the same click and crop whose predicted IoU is closest, because
scores that are tied within rounding may change places.

Written by `python tests/parity.py`; `tests/test_parity.py` holds the same limits.
"""


def main() -> None:
    """Write the table, or the answers that are kept for the test without shared data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep-small", action="store_true", help="write tests/data/small_answers.npz instead")
    if parser.parse_args().keep_small:
        np.savez_compressed(SMALL_ANSWERS, **small_answers())
        return
    lines = [line for name in MODELS for line in table(name)]
    (ROOT / "docs" / "parity.md").write_text("\n".join([INTRODUCTION, *lines]).rstrip() + "\n")


SMALL_QUESTIONS: Values = {
    "points": np.array([[40, 30], [90, 60], [10, 80]], dtype=np.float32),
    "labels": np.array([1, 1, 0]),
    "box": np.array([20, 10, 90, 80], dtype=np.float32),
    "boxes3": np.array([[20, 10, 90, 80], [0, 0, 127, 95], [60, 40, 70, 50]], dtype=np.float32),
}
"""In pixels of `arithmetic_picture`."""


def small_answers() -> Values:
    """The small network's answers about `arithmetic_picture`, which need no shared data."""
    predictor = predictor_on("small", arithmetic_picture())
    answers = embedding_answers(predictor) | prompt_answers(predictor, SMALL_QUESTIONS)
    return answers | prompt_encoder_answers(predictor, SMALL_QUESTIONS)


if __name__ == "__main__":
    main()
