"""Other ways to compute the same: transformers, ONNX Runtime, and the original's own classes around `nano`."""

import importlib
import importlib.metadata
import tempfile
from typing import Any

import torch
from tasks import Worker

ALIAS = "original_segment_anything"
"""The original package by another name, to be imported beside this one."""


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


class OnnxWorker(Worker):
    """The same weights, exported, on ONNX Runtime."""

    def __init__(self, model: str, image: str, dtype: str) -> None:
        from segment_anything import onnx
        from segment_anything.export import ExportOptions, export_model

        super().__init__(model, image, dtype)
        self.folder = tempfile.TemporaryDirectory()
        export_model(self.sam, self.folder.name, ExportOptions(decoders="batched,prepared"))
        exported = onnx.OnnxModel(self.folder.name, providers="cpu", threads=torch.get_num_threads())
        self.predictor, self.generator = onnx.OnnxPredictor(exported), onnx.OnnxMaskGenerator
        self.sam = exported

    def about(self) -> dict[str, Any]:
        """What is measured here."""
        version = importlib.metadata.version("onnxruntime")
        return {"package": "onnxruntime", "version": version, "threads": torch.get_num_threads()}


class AroundNano(Worker):
    """The original's predictor and automatic masks around the networks of `nano`, in their plain form."""

    def __init__(self, model: str, image: str, dtype: str) -> None:
        super().__init__(model, image, dtype, ALIAS)

    def make(self, model: str) -> Any:
        """The networks as the original calls them."""
        import segment_anything
        from segment_anything.modeling import fuse, linear

        linear._is_fast, fuse._can_fold = (lambda x: False), (lambda conv, norm: False)
        return Around(segment_anything.load_sam(model, device="cpu"))

    def about(self) -> dict[str, Any]:
        """What is measured here."""
        version = importlib.metadata.version("segment-anything")
        return {"package": "segment-anything", "version": version, "threads": torch.get_num_threads()}


class Around:
    """A `Sam` for the original's classes, which encode prompts without the image that `nano`'s are to be mixed with."""

    def __init__(self, sam: Any) -> None:
        self.sam, self.features = sam, torch.zeros(0)
        self.preprocess, self.postprocess_masks = sam.preprocess, sam.postprocess_masks
        self.mask_decoder, self.mask_threshold = sam.mask_decoder, sam.mask_threshold
        self.image_format, self.device = sam.image_format, sam.device
        self.image_encoder, self.prompt_encoder = Encoder(self), PromptEncoder(self)


class Encoder:
    """The image encoder; the embedding that it made last is kept."""

    def __init__(self, around: Around) -> None:
        self.around, self.img_size = around, around.sam.image_size

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.around.features = self.around.sam.image_encoder(pixels)
        return self.around.features


class PromptEncoder:
    """The prompt encoder, with the image mixed in."""

    def __init__(self, around: Around) -> None:
        self.around, self.get_dense_pe = around, around.sam.prompt_encoder.get_dense_pe

    def __call__(self, points: Any, boxes: Any, masks: Any) -> tuple[torch.Tensor, torch.Tensor]:
        encoder = self.around.sam.prompt_encoder
        sparse, dense = encoder(points, boxes, masks)
        return sparse, encoder.ground(dense, self.around.features)
