"""One package under measurement, in a process of its own: reads tasks from stdin, answers on stdout, a JSON line each.

It uses the original package's interface alone, so that the same lines run on all packages; which one it is
`benchmarks/compare_original.py` says. Linux only: peaks are the kernel's high-water mark of resident memory, reset
before each task.
"""

import ctypes
import gc
import importlib
import importlib.metadata
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[1:1] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from amg_memory import resident_bytes  # noqa: E402
from filled import filled  # noqa: E402

IOU_RAISED = 0.5
"""Added to the predicted IoU of deterministic weights, which is about 0. Thresholds below 0 filter nothing, in both."""


class Worker:
    """A model with deterministic weights, and the image it works on."""

    def __init__(self, model: str, image: str, dtype: str, package: str = "segment_anything") -> None:
        self.package: Any = importlib.import_module(package)
        with Image.open(image) as file:
            self.image = np.asarray(file.convert("RGB"))
        self.sam = self.package.sam_model_registry[model]()
        weights = filled(self.sam.state_dict())
        weights["mask_decoder.iou_prediction_head.layers.2.bias"] += IOU_RAISED
        self.sam.load_state_dict(weights)
        self.sam.eval()
        if dtype == "bf16":
            self.sam.to(torch.bfloat16)
        elif dtype == "int8":
            from segment_anything.modeling.int8 import quantise_linear_layers

            quantise_linear_layers(self.sam.image_encoder)
        self.predictor = self.package.SamPredictor(self.sam)
        self.clicked: Any = np.zeros(0, dtype=bool)
        self.records: list[Any] = []

    def about(self) -> dict[str, Any]:
        """What is measured here."""
        is_ours = hasattr(self.package, "load_sam")  # only there
        name = "segment-anything-engine" if is_ours else self.package.__name__.replace("_", "-")
        return {"package": name, "version": importlib.metadata.version(name), "threads": torch.get_num_threads()}

    def encode(self) -> None:
        """Set the image."""
        self.predictor.set_image(self.image)

    def predict(self, point_xy: list[float]) -> None:
        """One click on the image that is set."""
        self.clicked, _, _ = self.predictor.predict(np.array([point_xy]), np.array([1]), multimask_output=True)

    def masks(self, options: dict[str, Any]) -> None:
        """Automatic masks."""
        self.records = self.package.SamAutomaticMaskGenerator(self.sam, **options).generate(self.image)

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
        features: torch.Tensor = self.predictor.get_image_embedding()
        return features


class TransformersWorker(Worker):
    """The same weights in transformers' `SamModel`, with the original's resize before and after."""

    def __init__(self, model: str, image: str, dtype: str) -> None:
        import transformers

        from segment_anything.geometry import ImageGeometry
        from segment_anything.interchange import save_pretrained
        from segment_anything.modeling.decoded import upscale_masks
        from segment_anything.utils.transforms import ResizeLongestSide

        super().__init__(model, image, dtype)
        self.package = transformers
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(self.sam, folder, "transformers")
            self.theirs = transformers.SamModel.from_pretrained(folder).eval()
        self.resize = ResizeLongestSide(self.sam.image_size)
        self.geometry = ImageGeometry(self.image.shape[:2], self.sam.image_size)
        self.upscale = upscale_masks

    @torch.no_grad()
    def encode(self) -> None:
        """Set the image."""
        resized = self.resize.apply_image(self.image)
        pixels = self.sam.preprocess(torch.from_numpy(resized).permute(2, 0, 1)[None])
        self.features = self.theirs.get_image_embeddings(pixels)

    def embedding(self) -> torch.Tensor:
        """That of the image, (1, C, g, g)."""
        return self.features

    @torch.no_grad()
    def predict(self, point_xy: list[float]) -> None:
        """One click on the image that is set."""
        points = self.geometry.points_to_input(torch.tensor([[point_xy]]))[None]
        found = self.theirs(
            image_embeddings=self.features, input_points=points, input_labels=torch.ones(1, 1, 1, dtype=torch.int64)
        )
        self.clicked = (self.upscale(found.pred_masks[0], self.geometry)[0] > 0).numpy()


def run(worker: Worker, task: str, arguments: dict[str, Any], times: int) -> dict[str, Any]:
    """Run a task some times and report seconds of each, and the peak of resident memory over that before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tasks freed and the allocator kept would hide a peak
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        getattr(worker, task)(**arguments)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_bytes": resident_bytes("VmHWM") - before}


def main() -> None:
    """Serve until stdin closes."""
    *arguments, package = sys.argv[1:]
    worker = TransformersWorker(*arguments) if package == "transformers" else Worker(*arguments, package)
    print(json.dumps(worker.about()), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(worker, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
