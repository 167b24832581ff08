"""`SamPredictor`: the original package's way of asking, a thin shell over `Sam.encode` and `Sam.decode`.

Its only state is one `ImageEmbedding` or none.
"""

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from segment_anything.embedding import ImageEmbedding
from segment_anything.geometry import ImageGeometry
from segment_anything.images import check_image_array
from segment_anything.modeling.decoded import Decoded
from segment_anything.modeling.prompt_tensors import check_values, paired
from segment_anything.modeling.sam import Sam
from segment_anything.prompts import Prompt, Prompts
from segment_anything.utils.transforms import ResizeLongestSide

Array = npt.NDArray[np.generic]
Masks = tuple[Array, npt.NDArray[np.float32], npt.NDArray[np.float32]]

NO_IMAGE = "An image must be set with .set_image(...) before mask prediction."


class SamPredictor:
    """Encodes an image once, then answers any number of prompts on it."""

    def __init__(self, sam_model: Sam) -> None:
        """Args: sam_model: the model."""
        super().__init__()
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.image_size)
        self.embedding: ImageEmbedding | None = None
        """The image that is set, or None."""
        self._restored: dict[str, object] = {}

    def set_image(self, image: npt.NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Encode an image, so that masks can be predicted on it.

        Args:
            image: (H, W, 3) uint8, 0..255.
            image_format: order of its channels, "RGB" or "BGR".

        Raises:
            ValueError: if it is no such array, or the format is unknown.
        """
        rgb = check_image_array(image, image_format)
        with torch.no_grad():
            self.embedding = self.model.encode(rgb)

    def set_torch_image(self, transformed_image: torch.Tensor, original_image_size: tuple[int, ...]) -> None:
        """Encode an image that is already resized.

        Args:
            transformed_image: (1, 3, h, w) RGB 0..255, longest side equal to the model's input size.
            original_image_size: (H, W) before the resize.

        Raises:
            ValueError: for another shape.
        """
        size = self.model.image_size
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != size:
            raise ValueError(
                f"transformed_image must have shape (1, 3, h, w) with the longest side {size}, got {shape}; "
                "ResizeLongestSide.apply_image_torch resizes."
            )
        with torch.no_grad():
            features = self.model.image_encoder(self.model.preprocess(transformed_image))
        self._restore(features, (int(original_image_size[0]), int(original_image_size[1])))

    @torch.no_grad()
    def predict(
        self,
        point_coords: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        box: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Masks:
        """Masks of one object.

        Args:
            point_coords: (P, 2) x, y in original pixels.
            point_labels: (P,) 1 on the object, 0 on background.
            box: (4,) x0, y0, x1, y1 in original pixels.
            mask_input: (1, 4g, 4g) low-resolution logits of an earlier prediction.
            multimask_output: three masks (best for a single point), or one (best for more).
            return_logits: unthresholded float32 masks instead of bool ones.

        Returns:
            masks (C, H, W), predicted IoU (C,), and low-resolution logits (C, 4g, 4g) for `mask_input`.

        Raises:
            RuntimeError: if no image is set.
            ValueError: for a prompt that cannot be meant.
        """
        prompt = Prompt.make(point_coords, point_labels, box, mask_logits=mask_input)
        decoded = self.model.decode(self._embedding(), prompt, multimask_output)
        masks = decoded.logits() if return_logits else decoded.masks(self.model.mask_threshold)
        return (
            masks[0].cpu().numpy(),
            decoded.iou_predictions[0].cpu().numpy(),
            decoded.low_res_logits[0].cpu().numpy(),
        )

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: torch.Tensor | None,
        point_labels: torch.Tensor | None,
        boxes: torch.Tensor | None = None,
        mask_input: torch.Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masks of N objects whose prompts are already in the input's frame (`self.transform`).

        Args:
            point_coords: (N, P, 2) in input pixels.
            point_labels: (N, P): 1, 0, or -1 for padding.
            boxes: (N, 4) in input pixels.
            mask_input: (N, 1, 4g, 4g) logits.
            multimask_output: three masks of each object, or one.
            return_logits: unthresholded float32 masks instead of bool ones.

        Returns:
            masks (N, C, H, W), predicted IoU (N, C), low-resolution logits (N, C, 4g, 4g).

        Raises:
            RuntimeError: if no image is set.
            ValueError: for prompts of another shape, or that cannot be meant.
        """
        embedding = self._embedding()
        points = paired(point_coords, point_labels)
        check_values(points, boxes, mask_input)
        low_res, iou = self.model.predict_low_res(embedding.features, points, boxes, mask_input, multimask_output)
        logits = Decoded(low_res, iou, embedding.geometry).logits()
        return logits if return_logits else logits > self.model.mask_threshold, iou, low_res

    @torch.no_grad()
    def predict_many(
        self,
        prompts: Prompts | Sequence[Prompt],
        multimask_output: bool | None = None,
        return_logits: bool = False,
        batch_size: int = 64,
    ) -> Masks:
        """Masks of many objects at once, each with its own mix of points, box and mask.

        Args:
            prompts: one for each object, in original pixels.
            multimask_output: three masks of each object, or one; None gives one by the paper's rule: for a single
                point the best of three, for anything else the single mask.
            return_logits: unthresholded float32 masks instead of bool ones.
            batch_size: objects decoded at once.

        Returns:
            masks (N, C, H, W), predicted IoU (N, C), low-resolution logits (N, C, 4g, 4g).

        Raises:
            RuntimeError: if no image is set.
            ValueError: for a prompt that does not fit the image.
        """
        decoded = self.model.decode(self._embedding(), prompts, multimask_output, batch_size)
        masks = decoded.logits() if return_logits else decoded.masks(self.model.mask_threshold)
        return masks.cpu().numpy(), decoded.iou_predictions.cpu().numpy(), decoded.low_res_logits.cpu().numpy()

    def get_image_embedding(self) -> torch.Tensor:
        """The embedding (1, C, g, g) of the image that is set, float32 whatever the model's type.

        Raises:
            RuntimeError: if none is.
        """
        return self._embedding("An image must be set with .set_image(...) to generate an embedding.").features.float()

    def save_embedding(self, path: str | os.PathLike[str], half: bool = False) -> None:
        """Write the embedding of the image that is set; see `ImageEmbedding.save`."""
        self._embedding().save(path, half)

    def load_embedding(self, path: str | os.PathLike[str], image: npt.NDArray[np.uint8] | None = None) -> None:
        """Set the image whose embedding was saved.

        Args:
            path: a file that `save_embedding` wrote.
            image: (H, W, 3) uint8 RGB; if given, an embedding of any other image is refused.

        Raises:
            ValueError: if these weights did not make it, or not from this image.
        """
        embedding = ImageEmbedding.load(path)
        self.model.check_embedding(embedding)
        if image is not None:
            embedding.check_image(check_image_array(image))
        self.embedding = embedding.to(self.model.device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def reset_image(self) -> None:
        """Forget the image."""
        self.embedding = None
        self._restored = {}

    def _embedding(self, message: str = NO_IMAGE) -> ImageEmbedding:
        if self.embedding is None:
            raise RuntimeError(message)
        return self.embedding

    # Programs for the original package read these, and restore a saved embedding by setting them in any order.

    @property
    def is_image_set(self) -> bool:
        """Whether an image is set."""
        return self.embedding is not None

    @is_image_set.setter
    def is_image_set(self, value: bool) -> None:
        if not value:
            self.embedding = None

    @property
    def features(self) -> torch.Tensor | None:
        """The embedding (1, C, g, g), or None."""
        return None if self.embedding is None else self.embedding.features

    @features.setter
    def features(self, value: torch.Tensor | None) -> None:
        self._remember(features=value)

    @property
    def original_size(self) -> tuple[int, int] | None:
        """Height and width of the image in original pixels, or None."""
        return None if self.embedding is None else self.embedding.geometry.original_size_hw

    @original_size.setter
    def original_size(self, value: tuple[int, int] | None) -> None:
        self._remember(original_size=value)

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width of the image in input pixels, or None."""
        return None if self.embedding is None else self.embedding.geometry.input_size_hw

    @input_size.setter
    def input_size(self, value: tuple[int, int] | None) -> None:
        """Follows from `original_size`; accepted so that old programs run."""

    def _remember(self, **values: object) -> None:
        if None in values.values():
            self.reset_image()
            return
        self._restored.update(values)
        known = {"features": self.features, "original_size": self.original_size, **self._restored}
        features, size = known["features"], known["original_size"]
        if isinstance(features, torch.Tensor) and size is not None:
            self._restore(features, (int(size[0]), int(size[1])))  # type: ignore[index]
            self._restored = {}

    def _restore(self, features: torch.Tensor, original_size_hw: tuple[int, int]) -> None:
        geometry = ImageGeometry(original_size_hw, self.model.image_size)
        self.embedding = ImageEmbedding(features, geometry, self.model.name, self.model.fingerprint(), "unknown")
