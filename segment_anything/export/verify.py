"""Is an export what torch computes? Every graph is run on a picture and prompts, and compared, before it is kept.

Letters: N objects, K masks of each, L side of low-resolution masks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from segment_anything.embedding import ImageEmbedding
from segment_anything.export.options import ExportOptions
from segment_anything.modeling import Sam
from segment_anything.onnx.manifest import Check
from segment_anything.onnx.model import OnnxEmbedding, OnnxModel
from segment_anything.onnx.prompts import labelled_points, mask_prompts
from segment_anything.onnx.sessions import Graph
from segment_anything.prompts import Prompt
from segment_anything.utils.onnx import SamOnnxModel

Array = npt.NDArray[Any]

TOLERANCES = {"fp32": (2e-3, 0.9995), "fp16": (0.1, 0.99), "int8": (0.1, 0.99)}
"""Largest deviation and least agreement by precision."""
ENCODER_TOLERANCES = {**TOLERANCES, "int8": (2.0, 0.93)}
"""The same for the image encoder, whose 8-bit form is inexact on purpose."""
TANH_TOLERANCE = (0.1, 0.99)
"""Where GELU is written with tanh."""


class ExportError(ValueError):
    """A graph whose outputs are not torch's."""


@torch.no_grad()
def verify(sam: Sam, exported: OnnxModel, options: ExportOptions) -> dict[str, Check]:
    """Compare every graph of an export with the model it was made from.

    Returns:
        by role, how far it is.

    Raises:
        ExportError: naming the first graph that is further than the precision, or `options.tolerance`, allows.
    """
    image = picture(sam.image_size)
    embedding = sam.encode(image)
    checks = {}
    for role in exported.manifest.files:
        if role == "prepare":  # its outputs are judged by what the prepared decoder makes of them
            continue
        check = _COMPARE[role](sam, exported, embedding, image, options)
        deviation, agreement = _allowed(role, options)
        if not (check.max_deviation <= deviation and check.mask_agreement >= agreement):
            raise ExportError(
                f"{exported.manifest.files[role]} is not what torch computes: outputs deviate by "
                f"{check.max_deviation:.2g} of their standard deviation and {check.mask_agreement:.4%} of mask pixels "
                f"agree, where {deviation:.2g} and {agreement:.2%} are allowed for {options.precision}. Nothing was "
                "written. A lower precision needs weights that bear it; --tolerance allows more."
            )
        checks[role] = check
    return checks


def _allowed(role: str, options: ExportOptions) -> tuple[float, float]:
    table = ENCODER_TOLERANCES if role == "encoder" else TOLERANCES
    deviation, agreement = table[options.precision]
    if options.gelu_approximate:
        deviation, agreement = max(deviation, TANH_TOLERANCE[0]), min(agreement, TANH_TOLERANCE[1])
    return deviation if options.tolerance is None else options.tolerance, agreement


def picture(side: int) -> npt.NDArray[np.uint8]:
    """A picture of overlapping discs and gradients, wider than high, the same every time: (H, W, 3) uint8."""
    generator = np.random.default_rng(0)
    height, width = max(16, side * 5 // 8), side
    y, x = np.mgrid[:height, :width] / side
    image = np.stack([x, y, 1 - x], axis=-1) * 160 + 40
    for _ in range(12):
        centre, radius = generator.random(2), 0.05 + 0.15 * generator.random()
        inside = (x - centre[0]) ** 2 + (y - 0.6 * centre[1]) ** 2 < radius**2
        image[inside] = 0.3 * image[inside] + 0.7 * generator.integers(0, 256, 3)
    noisy = image + generator.normal(0, 4, image.shape)
    return np.asarray(noisy.clip(0, 255), dtype=np.uint8)


def _prompts(sam: Sam, embedding: ImageEmbedding) -> list[Prompt]:
    """Points, boxes and a mask: every kind of token, and objects with different numbers of them."""
    height, width = embedding.geometry.original_size_hw
    point, other = [0.3 * width, 0.4 * height], [0.7 * width, 0.6 * height]
    box = [0.2 * width, 0.2 * height, 0.6 * width, 0.9 * height]
    first = sam.decode(embedding, Prompt.make([point], [1]), False)
    return [
        Prompt.make([point], [1]),
        Prompt.make([point, other], [1, 0]),
        Prompt.make(box=box),
        Prompt.make([other], [0], box=box),
        Prompt.make([point, other], [1, 0], mask_logits=first.low_res_logits[0]),
    ]


def _answers(sam: Sam, embedding: ImageEmbedding, prompts: Sequence[Prompt]) -> tuple[Array, Array]:
    """All four masks (N, 4, L, L) and their predicted IoU (N, 4), in torch."""
    single, three = (sam.decode(embedding, prompts, multimask) for multimask in (False, True))
    masks = torch.cat([single.low_res_logits, three.low_res_logits], dim=1)
    return masks.cpu().numpy(), torch.cat([single.iou_predictions, three.iou_predictions], dim=1).cpu().numpy()


def _compare_encoder(
    sam: Sam, exported: OnnxModel, embedding: ImageEmbedding, image: npt.NDArray[np.uint8], _: ExportOptions
) -> Check:
    found = exported.encode(image)
    prompts = _prompts(sam, embedding)
    expected, got = embedding.features.cpu().numpy(), found.features
    features = torch.from_numpy(got).to(sam.device)
    again = ImageEmbedding(features, found.geometry, sam.name, sam.fingerprint(), found.image_fingerprint)
    return Check(
        deviation(got, expected),
        agreement(_answers(sam, again, prompts)[0], _answers(sam, embedding, prompts)[0], sam.mask_threshold),
    )


def _compare_batched(
    sam: Sam, exported: OnnxModel, embedding: ImageEmbedding, _: npt.NDArray[np.uint8], __: ExportOptions
) -> Check:
    prompts = _prompts(sam, embedding)
    coords, labels = labelled_points(prompts, embedding.geometry)
    mask_input, has_mask = mask_prompts(prompts, embedding.geometry, sam.mask_input_size)
    points = {"point_coords": coords, "point_labels": labels}
    features = {"image_embeddings": _numpy(embedding.features)}
    found = exported.decoder.run({**features, **points, "mask_input": mask_input, "has_mask_input": has_mask})
    return _check(found, _answers(sam, embedding, prompts), sam)


def _compare_prepared(
    sam: Sam, exported: OnnxModel, embedding: ImageEmbedding, _: npt.NDArray[np.uint8], __: ExportOptions
) -> Check:
    prompts = _prompts(sam, embedding)[:-1]
    coords, labels = labelled_points(prompts, embedding.geometry)
    assert exported.prepared_decoder is not None
    prepare, decoder = exported.prepared_decoder
    image = prepare.run({"image_embeddings": _numpy(embedding.features)})
    found = decoder.run({**image, "point_coords": coords, "point_labels": labels})
    return _check(found, _answers(sam, embedding, prompts), sam)


def _compare_original(
    sam: Sam, exported: OnnxModel, embedding: ImageEmbedding, _: npt.NDArray[np.uint8], options: ExportOptions
) -> Check:
    graph = Graph("decoder", exported.manifest, exported.folder, exported.providers, exported.threads)
    module = SamOnnxModel(sam, options.return_single_mask, options.use_stability_score, options.return_extra_metrics)
    checks = []
    for prompt in _prompts(sam, embedding):
        coords, labels = labelled_points([prompt], embedding.geometry)
        mask_input, has_mask = mask_prompts([prompt], embedding.geometry, sam.mask_input_size)
        inputs = {
            "image_embeddings": _numpy(embedding.features),
            "point_coords": coords,
            "point_labels": labels,
            "mask_input": mask_input,
            "has_mask_input": has_mask,
            "orig_im_size": np.array(embedding.geometry.original_size_hw, dtype=np.float32),
        }
        found = graph.run(inputs)
        expected = module(**{name: torch.from_numpy(value).to(sam.device) for name, value in inputs.items()})
        answers = dict(zip(graph.outputs, (_numpy(tensor) for tensor in expected), strict=True))
        checks.append(
            Check(
                max(deviation(found[name], answers[name]) for name in ("masks", "low_res_masks")),
                agreement(found["masks"], answers["masks"], sam.mask_threshold),
            )
        )
    return Check(max(c.max_deviation for c in checks), min(c.mask_agreement for c in checks))


_Compare = Callable[[Sam, OnnxModel, ImageEmbedding, npt.NDArray[np.uint8], ExportOptions], Check]
_COMPARE: dict[str, _Compare] = {
    "encoder": _compare_encoder,
    "decoder": _compare_original,
    "batched": _compare_batched,
    "prepared": _compare_prepared,
}


def _check(found: dict[str, Array], expected: tuple[Array, Array], sam: Sam) -> Check:
    masks, iou = expected
    largest = max(deviation(found["low_res_masks"], masks), deviation(found["iou_predictions"], iou))
    return Check(largest, agreement(found["low_res_masks"], masks, sam.mask_threshold))


def deviation(found: Array, expected: Array) -> float:
    """Largest difference as a share of the standard deviation of what is expected; NaN counts as infinite."""
    difference = float(np.abs(found - expected).max() / max(float(expected.std()), 1e-12))
    return difference if np.isfinite(difference) else float("inf")


def agreement(found: Array, expected: Array, threshold: float) -> float:
    """Share of logits on the same side of the threshold."""
    return float(((found > threshold) == (expected > threshold)).mean())


def _numpy(tensor: torch.Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def as_onnx_embedding(embedding: ImageEmbedding) -> OnnxEmbedding:
    """The same embedding for `OnnxModel.decode`."""
    return OnnxEmbedding(
        _numpy(embedding.features.float()),
        embedding.geometry,
        embedding.model,
        embedding.weights_fingerprint,
        embedding.image_fingerprint,
    )
