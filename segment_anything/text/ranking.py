"""Compare the picture of every mask with phrases: rank masks by a phrase, or give each mask one of several labels.

Letters: N masks, K phrases, D width of the encoder's vectors.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from segment_anything.images import check_image_array
from segment_anything.masks import mask_to_box
from segment_anything.records import MaskRecord, record_mask
from segment_anything.text.calibration import Calibration
from segment_anything.text.crops import CROP_STYLES, CropStyle, apply_style, square_crop
from segment_anything.text.encoders import TextImageEncoder
from segment_anything.text.phrases import BACKGROUND, TEMPLATES, check_labels, check_phrases, fill_templates

_IMAGES_REMEMBERED = 4
DEFAULT_LOGIT_SCALE = 100.0  # what CLIP's own training ends at (https://arxiv.org/abs/2103.00020, section 2.5)


@dataclass(frozen=True, kw_only=True)
class ScorerOptions:
    """How masks are shown to the encoder and how phrases are worded."""

    styles: tuple[CropStyle, ...] = CROP_STYLES
    """Pictures of each mask; their vectors are averaged."""
    expand: float = 1.2
    """Side of the square picture over the longer side of the mask's box."""
    templates: tuple[str, ...] = TEMPLATES
    """Sentences around each phrase; their vectors are averaged."""
    background: tuple[str, ...] = BACKGROUND
    """Phrases that one phrase alone has to beat."""
    batch_size: int = 32
    """Pictures a call of the encoder."""

    def __post_init__(self) -> None:
        unknown = [style for style in self.styles if style not in CROP_STYLES]
        if unknown or not self.styles:
            raise ValueError(f"styles must be some of {', '.join(CROP_STYLES)}; got {self.styles}.")
        if self.expand < 1.0:
            raise ValueError(f"expand must be at least 1; got {self.expand}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}.")
        if not self.background:
            raise ValueError("background must hold at least one phrase for others to beat.")
        fill_templates("", self.templates)


class TextScorer:
    """Compares masks with phrases by one encoder. Vectors of the last few images and of all phrases are remembered."""

    def __init__(
        self,
        encoder: TextImageEncoder,
        options: ScorerOptions | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Build a scorer.

        Args:
            encoder: a `TransformersEncoder`, or any object with `encode_text` and `encode_image`.
            options: styles, templates, batch size.
            calibration: what makes a margin a probability; None takes the encoder's own scale.

        Raises:
            ValueError: if the encoder lacks a method.
        """
        if not isinstance(encoder, TextImageEncoder):
            raise ValueError(
                f"encoder must have encode_text(texts) and encode_image(images); got {type(encoder).__name__}. "
                f'For CLIP: TransformersEncoder("openai/clip-vit-base-patch32").'
            )
        self.encoder = encoder
        self.options = options or ScorerOptions()
        self.calibration = calibration or Calibration()
        self._texts: dict[str, torch.Tensor] = {}
        self._images: OrderedDict[str, torch.Tensor] = OrderedDict()

    def text_vectors(self, phrases: Sequence[str]) -> torch.Tensor:
        """(K, D) unit vectors of phrases, averaged over the templates."""
        missing = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._texts]
        if missing:
            templates = self.options.templates
            sentences = [text for phrase in missing for text in fill_templates(phrase, templates)]
            vectors = _unit(self.encoder.encode_text(sentences))
            vectors = vectors.view(len(missing), len(templates), -1)
            self._texts.update(zip(missing, _unit(vectors.mean(dim=1)), strict=True))
        return torch.stack([self._texts[phrase] for phrase in phrases])

    def mask_vectors(self, image: np.ndarray, records: Sequence[MaskRecord]) -> torch.Tensor:
        """(N, D) unit vectors of the masks of an image, averaged over the styles.

        Args:
            image: (H, W, 3) uint8 RGB.
            records: mask records of that image.
        """
        check_image_array(image)
        key = _fingerprint(image, records)
        if key not in self._images:
            self._images[key] = self._encode_masks(image, records)
        self._images.move_to_end(key)
        while len(self._images) > _IMAGES_REMEMBERED:
            self._images.popitem(last=False)
        return self._images[key]

    def _encode_masks(self, image: np.ndarray, records: Sequence[MaskRecord]) -> torch.Tensor:
        """Cut and encode batch by batch: never all pictures in memory at once."""
        styles, size = self.options.styles, self.options.batch_size
        waiting: list[np.ndarray] = []
        vectors: list[torch.Tensor] = []
        for record in records:
            mask = record_mask(record)
            if mask.shape != image.shape[:2]:
                raise ValueError(
                    f"records: a mask of {mask.shape[1]} x {mask.shape[0]} pixels does not belong to an image of "
                    f"{image.shape[1]} x {image.shape[0]}."
                )
            x0, y0, x1, y1 = (float(side) for side in mask_to_box(mask))
            crop = square_crop(image, mask, (x0, y0, x1, y1), expand=self.options.expand)
            waiting.extend(apply_style(crop, style) for style in styles)
            while len(waiting) >= size:
                vectors.append(_unit(self.encoder.encode_image(waiting[:size])))
                waiting = waiting[size:]
        if waiting:
            vectors.append(_unit(self.encoder.encode_image(waiting)))
        return _unit(torch.cat(vectors).view(len(records), len(styles), -1).mean(dim=1))

    def similarities(self, image: np.ndarray, records: Sequence[MaskRecord], phrases: Sequence[str]) -> np.ndarray:
        """(N, K) float32 cosines of masks with phrases."""
        if not records:
            return np.zeros((0, len(phrases)), dtype=np.float32)
        cosines = self.mask_vectors(image, records) @ self.text_vectors(phrases).T
        return np.asarray(cosines.numpy(), dtype=np.float32)

    def margins(self, image: np.ndarray, records: Sequence[MaskRecord], phrases: Sequence[str]) -> np.ndarray:
        """(N, K) by how much each phrase beats the background phrases (SigLIP: its own logit); 0 is the balance."""
        names = [*phrases, *self.options.background]
        logits = self.similarities(image, records, names) * self._scale()
        bias = getattr(self.encoder, "logit_bias", None)
        if bias is not None:
            return np.asarray(logits[:, : len(phrases)] + bias)
        against = logits[:, len(phrases) :]
        top = against.max(axis=1, keepdims=True, initial=-np.inf)
        return np.asarray(logits[:, : len(phrases)] - (top + np.log(np.exp(against - top).sum(axis=1, keepdims=True))))

    def scores(self, image: np.ndarray, records: Sequence[MaskRecord], phrases: Sequence[str]) -> np.ndarray:
        """(N, K) probabilities that a mask shows what a phrase says, each phrase by itself."""
        return self.calibration.probability(self.margins(image, records, phrases))

    def choices(self, image: np.ndarray, records: Sequence[MaskRecord], labels: Sequence[str]) -> np.ndarray:
        """(N, K) probabilities over the labels, which sum to 1 for each mask."""
        logits = self.similarities(image, records, labels) * self._scale()
        weights = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def _scale(self) -> float:
        return float(getattr(self.encoder, "logit_scale", DEFAULT_LOGIT_SCALE))


def rank_records(
    records: Sequence[MaskRecord],
    image: np.ndarray,
    phrases: str | Sequence[str],
    scorer: TextScorer,
    *,
    min_score: float | None = None,
    max_count: int | None = None,
) -> list[MaskRecord]:
    """The masks that show what a phrase says, best first.

    Args:
        records: mask records of the image.
        image: (H, W, 3) uint8 RGB.
        phrases: one or several; with several, each mask takes the one it fits best.
        scorer: compares them.
        min_score: lowest probability kept; None takes the calibrated cut-off.
        max_count: most masks kept.

    Returns:
        Copies of the records with "category" and "category_score".

    Raises:
        ValueError: for an empty phrase.
    """
    names = check_phrases(phrases, "phrases")
    scores = scorer.scores(image, records, names)
    cutoff = scorer.calibration.cutoff if min_score is None else min_score
    named = _with_categories(records, names, scores)
    kept = sorted((r for r in named if r["category_score"] >= cutoff), key=lambda r: -r["category_score"])
    return kept if max_count is None else kept[:max_count]


def label_records(
    records: Sequence[MaskRecord], image: np.ndarray, labels: Sequence[str], scorer: TextScorer
) -> list[MaskRecord]:
    """Give every mask the label it fits best.

    Args:
        records: mask records of the image, in any order, which is kept.
        image: (H, W, 3) uint8 RGB.
        labels: the names to choose from. Add one such as "background" for masks that are none of them.
        scorer: compares them.

    Returns:
        Copies of the records with "category" (a label) and "category_score" (its share of the softmax over labels).

    Raises:
        ValueError: for no labels, an empty one, or one given twice.
    """
    names = check_labels(labels)
    return _with_categories(records, names, scorer.choices(image, records, names))


def _with_categories(records: Sequence[MaskRecord], names: Sequence[str], scores: np.ndarray) -> list[MaskRecord]:
    best = scores.argmax(axis=1)
    return [
        {**record, "category": names[index], "category_score": float(row[index])}
        for record, row, index in zip(records, scores, best, strict=True)
    ]


def _unit(vectors: Any) -> torch.Tensor:
    """Rows of length 1, float32 on the CPU."""
    tensor = torch.as_tensor(vectors).detach().to("cpu", torch.float32)
    return torch.nn.functional.normalize(tensor, dim=-1)


def _fingerprint(image: np.ndarray, records: Sequence[MaskRecord]) -> str:
    """Hash of the image and of the records' masks."""
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
    for record in records:
        digest.update(_mask_bytes(record["segmentation"]))
    return digest.hexdigest()


def _mask_bytes(segmentation: Any) -> bytes:
    if not isinstance(segmentation, dict):
        return np.ascontiguousarray(segmentation).tobytes()
    counts = segmentation["counts"]
    if isinstance(counts, str):
        return counts.encode()
    return counts if isinstance(counts, bytes) else np.asarray(counts, dtype=np.int64).tobytes()
