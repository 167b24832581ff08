"""Detectors of transformers: fixed classes (RT-DETR, D-FINE) and open vocabulary (Grounding DINO, OWLv2)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segment_anything.detectors.base import Detection
from segment_anything.detectors.hub import load_image_processor, load_pretrained, pick_device, transformers
from segment_anything.images import check_image_array
from segment_anything.masks import nms


class HuggingFaceDetector:
    """A detector with a fixed list of classes: RT-DETR, D-FINE and others of `AutoModelForObjectDetection`."""

    def __init__(
        self, name_or_folder: str | Path, *, min_score: float = 0.5, device: str | torch.device = "cpu"
    ) -> None:
        """Load a model.

        Args:
            name_or_folder: a local folder or a hub name such as "ustc-community/dfine-small-coco".
            min_score: lowest score of a detection.
            device: where it runs; "auto" takes a GPU where there is one.

        Raises:
            ValueError: if the model is not there, saying what to download.
        """
        library = transformers()
        self.min_score = min_score
        self.device = pick_device(device)
        model = load_pretrained(library.AutoModelForObjectDetection.from_pretrained, name_or_folder)
        self.model = model.to(self.device).eval()
        self.processor = load_image_processor(name_or_folder)
        names = self.model.config.id2label
        self.class_names = tuple(str(names[index]) for index in sorted(names))

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Detections in `image`, (H, W, 3) uint8 RGB, best first."""
        check_image_array(image)
        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        (found,) = self.processor.post_process_object_detection(
            outputs, threshold=self.min_score, target_sizes=[image.shape[:2]]
        )
        labels = [str(self.model.config.id2label[int(index)]) for index in found["labels"]]
        return _detections(found["boxes"], labels, found["scores"], image.shape)


class OpenVocabularyDetector:
    """A detector that is told in words what to find: Grounding DINO, OWLv2 and OWL-ViT."""

    def __init__(
        self,
        name_or_folder: str | Path,
        phrases: Sequence[str] | None = None,
        *,
        min_score: float = 0.25,
        nms_iou: float = 0.5,
        device: str | torch.device = "cpu",
    ) -> None:
        """Load a model.

        Args:
            name_or_folder: a local folder or a hub name such as "IDEA-Research/grounding-dino-tiny".
            phrases: what `detect` looks for; may be left out when `for_phrases` is used.
            min_score: lowest score of a detection.
            nms_iou: overlap above which the lower-scored of two boxes of one phrase goes.
            device: where it runs; "auto" takes a GPU where there is one.

        Raises:
            ValueError: if the model is not there, saying what to download.
        """
        library = transformers()
        self.min_score, self.nms_iou = min_score, nms_iou
        self.device = pick_device(device)
        model = load_pretrained(library.AutoModelForZeroShotObjectDetection.from_pretrained, name_or_folder)
        self.model = model.to(self.device).eval()
        self.processor = load_pretrained(library.AutoProcessor.from_pretrained, name_or_folder)
        self.class_names = None if phrases is None else tuple(phrases)

    def for_phrases(self, phrases: Sequence[str]) -> "PhraseDetector":
        """A detector of these phrases that shares this one's weights."""
        return PhraseDetector(self, tuple(phrases))

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Detections of the phrases given when it was made.

        Raises:
            ValueError: if none were given.
        """
        if not self.class_names:
            raise ValueError("This detector was made without phrases: call for_phrases([...]).detect(image).")
        return self.detect_phrases(image, self.class_names)

    def detect_phrases(self, image: np.ndarray, phrases: Sequence[str]) -> list[Detection]:
        """Detections in `image`, (H, W, 3) uint8 RGB, each labelled with one of `phrases`, best first."""
        check_image_array(image)
        # Grounding DINO was trained on lower-case phrases (https://arxiv.org/abs/2303.05499, appendix).
        texts = [phrase.strip().lower().rstrip(".") for phrase in phrases]
        inputs = self.processor(images=image, text=[texts], return_tensors="pt", padding=True).to(self.device)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        found = self._post_process(outputs, inputs, image.shape[:2], texts)
        by_text = dict(zip(texts, phrases, strict=True))
        labels = [by_text[nearest_phrase(str(text), texts)] for text in found["text_labels"]]
        detections = _detections(found["boxes"], labels, found["scores"], image.shape)
        return _suppress_by_label(detections, self.nms_iou)

    def _post_process(self, outputs: Any, inputs: Any, size_hw: tuple[int, int], texts: list[str]) -> Any:
        grounded = "input_ids" in inputs and "dino" in str(self.model.config.model_type)
        options: dict[str, Any] = {"input_ids": inputs["input_ids"]} if grounded else {}
        (found,) = self.processor.post_process_grounded_object_detection(
            outputs, threshold=self.min_score, target_sizes=[size_hw], text_labels=[texts], **options
        )
        return found


class PhraseDetector:
    """An open-vocabulary detector bound to its phrases."""

    def __init__(self, detector: OpenVocabularyDetector, phrases: tuple[str, ...]) -> None:
        self.detector = detector
        self.class_names = phrases

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Detections of the phrases in `image`, (H, W, 3) uint8 RGB, best first."""
        return self.detector.detect_phrases(image, self.class_names)


def nearest_phrase(text: str, phrases: Sequence[str]) -> str:
    """The phrase that shares most words with `text`.

    Grounding DINO answers with the words a box attended to, which may be a part of a phrase or run over two of them.
    """
    words = set(re.findall(r"\w+", text.lower()))

    def overlap(phrase: str) -> float:
        own = set(re.findall(r"\w+", phrase.lower()))
        return len(words & own) / max(1, len(words | own))

    return max(phrases, key=overlap)


def _detections(
    boxes: torch.Tensor, labels: Sequence[str], scores: torch.Tensor, shape: tuple[int, ...]
) -> list[Detection]:
    """Detections from (N, 4) boxes in original pixels, clipped to the image; empty boxes are dropped."""
    height, width = shape[:2]
    clipped = boxes.detach().float().cpu().numpy().clip(0, (width, height, width, height))
    detections = [
        Detection((x0, y0, x1, y1), label, score)
        for (x0, y0, x1, y1), label, score in zip(clipped.tolist(), labels, scores.tolist(), strict=True)
        if x1 > x0 and y1 > y0
    ]
    return sorted(detections, key=lambda d: -d.score)


def _suppress_by_label(detections: list[Detection], iou: float) -> list[Detection]:
    """Non-maximum suppression within each label."""
    boxes = np.array([d.box_xyxy for d in detections], dtype=np.float32).reshape(-1, 4)
    labels = np.array([d.label for d in detections])
    return [detections[index] for index in nms(boxes, np.array([d.score for d in detections]), iou, classes=labels)]
