"""`OnnxPredictor`: `SamPredictor` without torch. Its only state is one embedding or none."""

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from segment_anything.geometry import ImageGeometry
from segment_anything.images import check_image_array
from segment_anything.onnx.model import OnnxEmbedding, OnnxModel
from segment_anything.onnx.sessions import Array, to_float32
from segment_anything.prompts import Prompt, Prompts
from segment_anything.utils.transforms import ResizeLongestSide

Masks = tuple[Array, npt.NDArray[np.float32], npt.NDArray[np.float32]]

NO_IMAGE = "An image must be set with .set_image(...) before mask prediction."


class OnnxPredictor:
    """Encodes an image once, then answers any number of prompts on it."""

    def __init__(self, model: OnnxModel | str | os.PathLike[str], **settings: object) -> None:
        """Open a model.

        Args:
            model: an `OnnxModel`, or what it takes: the folder of an export, or the JSON in it.
            settings: further arguments of `OnnxModel`, such as providers="cpu".
        """
        self.model = model if isinstance(model, OnnxModel) else OnnxModel(model, **settings)  # type: ignore[arg-type]
        self.transform = ResizeLongestSide(self.model.image_size)
        self.embedding: OnnxEmbedding | None = None
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
        self.embedding = self.model.encode(check_image_array(image, image_format))

    def predict(
        self,
        point_coords: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        box: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Masks:
        """Masks of one object; arguments, outputs and errors are those of `SamPredictor.predict`.

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
        masks, iou, low_res = self.predict_many([prompt], multimask_output, return_logits)
        return masks[0], iou[0], low_res[0]

    def predict_many(
        self,
        prompts: Prompts | Sequence[Prompt],
        multimask_output: bool | None = None,
        return_logits: bool = False,
        batch_size: int = 64,
    ) -> Masks:
        """Masks of many objects at once, each with its own mix of points, box and mask.

        Arguments are those of `SamPredictor.predict_many`.

        Returns:
            masks (N, C, H, W), predicted IoU (N, C), low-resolution logits (N, C, 4g, 4g).

        Raises:
            RuntimeError: if no image is set.
            ValueError: for a prompt that does not fit the image.
        """
        decoded = self.model.decode(self._embedding(), prompts, multimask_output, batch_size)
        masks = decoded.logits() if return_logits else decoded.masks(self.model.mask_threshold)
        return masks, decoded.iou_predictions, decoded.low_res_logits

    def get_image_embedding(self) -> npt.NDArray[np.float32]:
        """The embedding (1, C, g, g) of the image that is set.

        Raises:
            RuntimeError: if none is.
        """
        return self._embedding("An image must be set with .set_image(...) to generate an embedding.").features

    def save_embedding(self, path: str | os.PathLike[str], half: bool = False) -> None:
        """Write the embedding of the image that is set; `SamPredictor.load_embedding` reads it too."""
        self._embedding().save(path, half)

    def load_embedding(self, path: str | os.PathLike[str], image: npt.NDArray[np.uint8] | None = None) -> None:
        """Set the image whose embedding was saved, here or by `SamPredictor.save_embedding`.

        Args:
            path: the file.
            image: (H, W, 3) uint8 RGB; if given, an embedding of any other image is refused.

        Raises:
            ValueError: if these weights did not make it, or not from this image.
        """
        embedding = OnnxEmbedding.load(path)
        self.model.check_embedding(embedding)
        if image is not None:
            embedding.check_image(check_image_array(image))
        self.embedding = embedding

    def reset_image(self) -> None:
        """Forget the image."""
        self.embedding = None
        self._restored = {}

    @property
    def device(self) -> str:
        """Where the model runs: "cpu", "cuda", or the name of another execution provider."""
        return self.model.device

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
    def features(self) -> npt.NDArray[np.float32] | None:
        """The embedding (1, C, g, g), or None."""
        return None if self.embedding is None else self.embedding.features

    @features.setter
    def features(self, value: npt.NDArray[np.float32] | None) -> None:
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
        if any(value is None for value in values.values()):
            self.reset_image()
            return
        self._restored.update(values)
        known = {"features": self.features, "original_size": self.original_size, **self._restored}
        features, size = known["features"], known["original_size"]
        if isinstance(features, np.ndarray) and isinstance(size, Sequence):
            geometry = ImageGeometry((int(size[0]), int(size[1])), self.model.image_size)
            fingerprint = self.model.fingerprint()
            self.embedding = OnnxEmbedding(to_float32(features), geometry, self.model.name, fingerprint, "unknown")
            self._restored = {}

    def _embedding(self, message: str = NO_IMAGE) -> OnnxEmbedding:
        if self.embedding is None:
            raise RuntimeError(message)
        return self.embedding
