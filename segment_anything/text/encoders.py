"""Text and pictures to vectors that can be compared: CLIP and SigLIP of transformers, or an object of yours."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from segment_anything.detectors.hub import load_image_processor, load_pretrained, pick_device, transformers


@runtime_checkable
class TextImageEncoder(Protocol):
    """Anything that gives phrases and pictures vectors of one space.

    `logit_scale` (the factor of the cosine before a softmax, 100 for CLIP) and `logit_bias` (not None: a sigmoid is
    meant, as in SigLIP) are read where the object has them.
    """

    def encode_text(self, texts: list[str]) -> Any:
        """(N, D) vectors, array or tensor, of any length."""
        ...

    def encode_image(self, images: list[np.ndarray]) -> Any:
        """(N, D) vectors, array or tensor, of pictures (h, w, 3) uint8 RGB of any size."""
        ...


class TransformersEncoder:
    """CLIP, SigLIP and their relatives, from a local folder or by hub name."""

    def __init__(self, name_or_folder: str | Path, *, device: str | torch.device = "cpu") -> None:
        """Load a model.

        Args:
            name_or_folder: a local folder or a hub name such as "openai/clip-vit-base-patch32".
            device: where it runs; "auto" takes a GPU where there is one.

        Raises:
            ValueError: if the model is not there, saying what to download, or has no text and image features.
        """
        library = transformers()
        self.device = pick_device(device)
        model = load_pretrained(library.AutoModel.from_pretrained, name_or_folder)
        if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
            raise ValueError(
                f"{name_or_folder} is a {type(model).__name__}, which does not compare text with images. "
                f'Give a CLIP or SigLIP model, such as "openai/clip-vit-base-patch32".'
            )
        self.model = model.to(self.device).eval()
        self.tokenizer = load_pretrained(library.AutoTokenizer.from_pretrained, name_or_folder)
        self.processor = load_image_processor(name_or_folder)
        # SigLIP never saw a text that was not padded to the full length (https://arxiv.org/abs/2303.15343, section 4).
        self.padding: str | bool = "max_length" if "siglip" in str(model.config.model_type) else True
        self.logit_scale = float(model.logit_scale.detach().exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias.detach())

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """(N, D) float32 vectors of phrases."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            texts, padding=self.padding, truncation=True, max_length=length, return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            return _features(self.model.get_text_features(**tokens))

    def encode_image(self, images: list[np.ndarray], masks: list[np.ndarray] | None = None) -> torch.Tensor:
        """(N, D) float32 vectors of pictures.

        Args:
            images: pictures (h, w, 3) uint8 RGB of any size.
            masks: (h, w) bool of square pictures; with them, the output token of a CLIP model attends in the last
                layer only to patches that touch the mask (Segment Anything, https://arxiv.org/abs/2304.02643,
                appendix D.5).

        Raises:
            ValueError: if masks are given to a model whose output is not its first token.
        """
        pixels = self.processor(images=list(images), return_tensors="pt").to(self.device)
        with torch.inference_mode(), self._attend_inside(masks):
            return _features(self.model.get_image_features(**pixels))

    def _attend_inside(self, masks: list[np.ndarray] | None) -> AbstractContextManager[Any]:
        if masks is None:
            return nullcontext()
        tower = self.model.vision_model
        if not hasattr(tower, "pre_layrnorm"):
            raise ValueError("masks: attention inside a mask needs a CLIP model; this one pools its tokens otherwise.")
        config = self.model.config.vision_config
        bias = class_token_bias(masks, config.image_size // config.patch_size).to(self.device)

        def restrict(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args[:1], {**kwargs, "attention_mask": bias.to(args[0].dtype)}

        return _Hook(tower.encoder.layers[-1].register_forward_pre_hook(restrict, with_kwargs=True))


class _Hook(AbstractContextManager[None]):
    """Removes a hook at the end of a block."""

    def __init__(self, handle: torch.utils.hooks.RemovableHandle) -> None:
        self.handle = handle

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def class_token_bias(masks: Sequence[np.ndarray], grid: int) -> torch.Tensor:
    """(N, 1, T, T), T = 1 + grid², to add to attention scores: the first token sees itself and the mask's patches only.

    An empty mask restricts nothing.
    """
    tokens = 1 + grid * grid
    bias = torch.zeros(len(masks), 1, tokens, tokens)
    for index, mask in enumerate(masks):
        cells = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(mask).float()[None, None], grid).flatten()
        if bool(cells.any()):
            bias[index, 0, 0, 1:][cells == 0] = float("-inf")
    return bias


def _features(output: Any) -> torch.Tensor:
    """transformers 5 answers with an output object, version 4 with the tensor itself."""
    tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return tensor.detach().float()
