"""Train a class-agnostic "object" detector on the boxes of masks: it proposes what annotators would draw first.

The data engine's second stage shows annotators the masks of confident detections, so that they spend their time on what
was missed (Segment Anything, https://arxiv.org/abs/2304.02643, section 4 "Semi-automatic stage"). The network is
RT-DETR of the transformers library in a small configuration, trained from nothing: no download, no torchvision.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segment_anything._optional import require
from segment_anything.detectors.hub import pick_device, transformers
from segment_anything.detectors.hugging_face import HuggingFaceDetector
from segment_anything.images import check_image_array
from segment_anything.masks import rle_to_box
from segment_anything.records import MaskRecord, record_rle

Sample = tuple[np.ndarray, np.ndarray]
"""(H, W, 3) uint8 RGB and (N, 4) boxes XYXY in original pixels."""


@dataclass(frozen=True, kw_only=True)
class ObjectDetectorOptions:
    """Size and training of the object detector."""

    image_size: int = 320
    """Side of the square that images are stretched to, a multiple of 32."""
    width: int = 128
    """Channels of the network, a multiple of 16."""
    queries: int = 100
    """Most objects it can see in an image."""
    decoder_layers: int = 3
    """Rounds of refinement of each box."""
    steps: int = 3000
    """Training steps."""
    batch_size: int = 8
    """Images a step."""
    learning_rate: float = 1e-3
    """Peak of the schedule (a tenth of the steps up, then a cosine down)."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    augment: bool = True
    """Mirror and crop images at random."""
    seed: int = 0
    """Of the weights, the order of images and the augmentation."""
    device: str = "auto"
    """Where it trains; "auto" takes a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32; got {self.image_size}.")
        if self.width < 16 or self.width % 16:
            raise ValueError(f"width must be a multiple of 16; got {self.width}.")
        for name in ("queries", "decoder_layers", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")


def boxes_of_records(records: Sequence[MaskRecord]) -> np.ndarray:
    """(N, 4) float32 boxes XYXY around the masks of an image, in original pixels; empty masks have none."""
    boxes = [rle_to_box(record_rle(record)) for record in records if record["area"]]
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)


def train_object_detector(
    samples: Sequence[Sample],
    folder: str | Path,
    options: ObjectDetectorOptions | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> HuggingFaceDetector:
    """Train on images with boxes and save the model into a folder.

    Args:
        samples: images and boxes; images without boxes are left out.
        folder: where the model goes; give it to `load_detector`.
        options: size and training.
        progress: called after each step with its number, from 1, and the loss.

    Returns:
        The trained detector; every label is "object".

    Raises:
        ValueError: if no image has a box, or a sample is not of the form.
        ImportError: if transformers or scipy is not installed.
    """
    options = options or ObjectDetectorOptions()
    require("scipy.optimize", extra="eval")  # transformers matches boxes to objects with it
    usable = [_checked(sample, index) for index, sample in enumerate(samples)]
    usable = [sample for sample in usable if len(sample[1])]
    if not usable:
        raise ValueError(f"samples must hold at least one image with a box; got {len(samples)} images without any.")
    torch.manual_seed(options.seed)
    device = pick_device(options.device)
    model = _build(options).to(device).train()
    _fit(model, usable, options, device, progress)
    model.save_pretrained(folder)
    _processor(options.image_size).save_pretrained(folder)
    return HuggingFaceDetector(folder, device=device)


def export_object_detector(folder: str | Path, path: str | Path) -> Path:
    """Write the trained detector as one ONNX file, which `OnnxDetector` reads: logits and boxes of all queries.

    Args:
        folder: what `train_object_detector` saved.
        path: the `.onnx` file.

    Raises:
        ValueError: if the folder holds no detector.
        ImportError: if onnxscript is not installed.
    """
    detector = HuggingFaceDetector(folder)
    side = detector.processor.size["height"]
    with warnings.catch_warnings():
        # torch's exporter and transformers' traced shape checks warn about their own internals.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                _LogitsAndBoxes(detector.model),
                (torch.zeros(1, 3, side, side),),
                str(path),
                input_names=["images"],
                output_names=["logits", "pred_boxes"],
                dynamo=True,
                opset_version=18,
                external_data=False,
                verbose=False,
            )
        except ImportError as error:
            raise ImportError(f'{error}. Install: pip install "segment-anything-engine[onnx]"') from error
    return Path(path)


class _LogitsAndBoxes(torch.nn.Module):
    """The two outputs a detector file needs, without the many others of the transformers model."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, 3, S, S) in 0..1 -> class logits (1, Q, 1) and boxes (1, Q, 4) cxcywh in fractions."""
        outputs = self.model(pixel_values=images)
        return outputs.logits, outputs.pred_boxes


def _checked(sample: Sample, index: int) -> Sample:
    image, boxes = check_image_array(sample[0]), np.asarray(sample[1], dtype=np.float32)
    if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise ValueError(f"samples[{index}]: boxes must have shape (N, 4), x0 y0 x1 y1; got {boxes.shape}.")
    return image, boxes.reshape(-1, 4)


def _build(options: ObjectDetectorOptions) -> Any:
    library, width = transformers(), options.width
    backbone = library.RTDetrResNetConfig(
        embedding_size=width // 2,
        hidden_sizes=[width // 2, width, width, width],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    heads = max(1, width // 16)
    config = library.RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,  # nothing is pre-trained, so the statistics must be learned
        encoder_hidden_dim=width,
        encoder_in_channels=[width] * 3,
        encoder_ffn_dim=2 * width,
        encoder_attention_heads=heads,
        d_model=width,
        num_queries=min(options.queries, _cells(options.image_size)),
        decoder_in_channels=[width] * 3,
        decoder_ffn_dim=2 * width,
        decoder_layers=options.decoder_layers,
        decoder_attention_heads=heads,
        num_denoising=min(options.queries, 50),
        hidden_expansion=0.5,
        id2label={0: "object"},
        label2id={"object": 0},
    )
    return library.RTDetrForObjectDetection(config)


def _cells(image_size: int) -> int:
    """Places the network can propose an object at: the cells of strides 8, 16 and 32."""
    return sum((image_size // stride) ** 2 for stride in (8, 16, 32))


def _processor(image_size: int) -> Any:
    size = {"height": image_size, "width": image_size}
    return transformers().RTDetrImageProcessorPil(size=size)


def _fit(
    model: Any,
    samples: Sequence[Sample],
    options: ObjectDetectorOptions,
    device: torch.device,
    progress: Callable[[int, float], None] | None,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.steps))
    generator = np.random.default_rng(options.seed)
    for step in range(1, options.steps + 1):
        picked = [samples[index] for index in generator.integers(len(samples), size=options.batch_size)]
        if options.augment:
            picked = [_augmented(sample, generator) for sample in picked]
        pixels, labels = _batch(picked, options.image_size, device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' loss converts tensors in a way torch warns about
            loss = model(pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, float(loss.detach()))


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: up over the first tenth, then half a cosine."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _augmented(sample: Sample, generator: np.random.Generator) -> Sample:
    """Mirror half of the images, and crop half to at least six tenths of each side, if a box keeps half its area."""
    image, boxes = sample
    if generator.random() < 0.5:
        image, boxes = image[:, ::-1], boxes.copy()
        boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    if generator.random() < 0.5:
        height, width = image.shape[:2]
        crop_h, crop_w = (max(1, int(side * generator.uniform(0.6, 1))) for side in (height, width))
        top, left = int(generator.integers(height - crop_h + 1)), int(generator.integers(width - crop_w + 1))
        moved = boxes - np.array([left, top, left, top], dtype=np.float32)
        clipped = moved.clip(0, [crop_w, crop_h, crop_w, crop_h])
        kept = clipped[_area(clipped) >= 0.5 * _area(moved)]
        if len(kept):
            image, boxes = image[top : top + crop_h, left : left + crop_w], kept.astype(np.float32)
    return image, boxes


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _batch(
    samples: Sequence[Sample], side: int, device: torch.device
) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Images (B, 3, S, S) in 0..1 and, for each, class numbers and boxes cxcywh in fractions."""
    pixels, labels = [], []
    for image, boxes in samples:
        resized = Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.BILINEAR)
        pixels.append(torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255)
        corners = torch.from_numpy(boxes.copy()) / torch.tensor([image.shape[1], image.shape[0]] * 2)
        corners = corners.clamp(0, 1).float()
        cxcywh = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
        labels.append(
            {"class_labels": torch.zeros(len(boxes), dtype=torch.long, device=device), "boxes": cxcywh.to(device)}
        )
    return torch.stack(pixels).to(device), labels
