"""The tasks that are measured, through the original's interface alone, so that the same lines run on all packages."""

import importlib
import importlib.metadata
import time
from typing import Any

import numpy as np
import torch
from filled import filled
from PIL import Image

IOU_RAISED = 0.5
"""Added to the predicted IoU of deterministic weights, which is about 0. Thresholds below 0 filter nothing, in both."""
TRAINED = "nano"
"""The model whose weights are real ones."""


class Worker:
    """A model with deterministic weights, or the trained one, and the image it works on."""

    def __init__(self, model: str, image: str, dtype: str, package: str = "segment_anything") -> None:
        self.package: Any = importlib.import_module(package)
        with Image.open(image) as file:
            self.image = np.asarray(file.convert("RGB"))
        self.sam = self.make(model)
        if dtype == "bf16":
            self.sam.to(torch.bfloat16)
        elif dtype == "int8":
            from segment_anything.modeling.int8 import quantise_linear_layers

            quantise_linear_layers(self.sam.image_encoder)
        self.predictor = self.package.SamPredictor(self.sam)
        self.generator = self.package.SamAutomaticMaskGenerator
        self.clicked: Any = np.zeros(0, dtype=bool)
        self.records: list[Any] = []

    def make(self, model: str) -> Any:
        """A model of the package."""
        if model == TRAINED:
            return self.package.load_sam(model, device="cpu")
        sam = self.package.sam_model_registry[model]()
        weights = filled(sam.state_dict())
        weights["mask_decoder.iou_prediction_head.layers.2.bias"] += IOU_RAISED
        sam.load_state_dict(weights)
        return sam.eval()

    def about(self) -> dict[str, Any]:
        """What is measured here; of this package also the operations of encoding and of a click, by definition."""
        is_ours = hasattr(self.package, "load_sam")  # only there
        name = "segment-anything-engine" if is_ours else self.package.__name__.replace("_", "-")
        about = {"package": name, "version": importlib.metadata.version(name), "threads": torch.get_num_threads()}
        if is_ours:
            from hardware_share import operations

            about["operations"] = operations(self.sam)
        return about

    @torch.no_grad()
    def limit(self) -> float:
        """Operations a second of the fastest product in the model's type."""
        from hardware_share import peak_flops

        return peak_flops(self.sam.dtype, 3, time.perf_counter)

    def encode(self) -> None:
        """Set the image."""
        self.predictor.set_image(self.image)

    def predict(self, point_xy: list[float]) -> None:
        """One click on the image that is set."""
        self.clicked, _, _ = self.predictor.predict(np.array([point_xy]), np.array([1]), multimask_output=True)

    def masks(self, options: dict[str, Any]) -> None:
        """Automatic masks."""
        self.records = self.generator(self.sam, **options).generate(self.image)

    def keep(self, file: str) -> None:
        """Write what the last tasks found, for comparison, and let go of it."""
        columns = {
            "iou": np.array([record["predicted_iou"] for record in self.records]),
            "stability": np.array([record["stability_score"] for record in self.records]),
            "point": np.array([record["point_coords"][0] for record in self.records]).reshape(-1, 2),
            "masks": np.array([np.packbits(record["segmentation"]) for record in self.records]),
        }
        self.records = []
        np.savez(file, clicked=np.packbits(self.clicked), embedding=self.embedding().float(), **columns)

    def embedding(self) -> torch.Tensor:
        """That of the image, (1, C, g, g)."""
        features: torch.Tensor = torch.as_tensor(self.predictor.get_image_embedding())
        return features
