"""Classes on top of a `Sam`: the class of a mask (`ClassHead`), one mask for each class of an image (`ClassPrompts`).

Both leave the model's own parameters and its three ambiguous masks as they are, and are kept in a file of their own
(`best.classes.safetensors`), so that the checkpoint beside it stays one that any SAM loads.

Letters: N masks, K classes, C channels and g side of the embedding, s side of the decoder's masks (4g).
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn.functional import avg_pool2d

from segment_anything.embedding import ImageEmbedding
from segment_anything.modeling import Decoded, Sam
from segment_anything.training.files import write_whole

FORMAT = "segment-anything-classes"


class ClassHead(nn.Module):
    """The class of each mask, from the mean of the image embedding inside it and in the band of context around it."""

    kind = "head"

    def __init__(self, channels: int, classes: tuple[str, ...], hidden: int = 256) -> None:
        super().__init__()
        self.classes = classes
        self.channels = channels
        self.hidden = hidden
        self.layers = nn.Sequential(nn.Linear(2 * channels, hidden), nn.GELU(), nn.Linear(hidden, len(classes)))

    def forward(self, features: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
        """Image embedding (1, C, g, g) and masks (N, 1, s, s) -> class logits (N, K)."""
        inside = avg_pool2d(mask_logits.float().sigmoid(), mask_logits.shape[-1] // features.shape[-1])  # N 1 g g
        around = avg_pool2d(inside, 5, stride=1, padding=2)
        pooled = [self._mean(features.float(), weight) for weight in (inside, around)]
        logits: torch.Tensor = self.layers(torch.cat(pooled, dim=1))
        return logits

    def _mean(self, features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        weight = weight.flatten(2)  # N 1 gg
        return (weight @ features.flatten(2).transpose(1, 2)).squeeze(1) / (weight.sum(dim=2) + 1e-3)

    @torch.no_grad()
    def classify(self, embedding: ImageEmbedding, decoded: Decoded) -> tuple[torch.Tensor, torch.Tensor]:
        """Class indices (N,) and their probabilities (N,) of the first mask of each object."""
        probability = self(embedding.features, decoded.low_res_logits[:, :1]).softmax(dim=1)
        best = probability.max(dim=1)
        return best.indices, best.values


class ClassPrompts(nn.Module):
    """One learned prompt token for each class: the whole image gives a mask a class, without any click."""

    kind = "prompts"

    def __init__(self, channels: int, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes
        self.channels = channels
        self.tokens = nn.Parameter(torch.randn(len(classes), 1, channels) * 0.02)

    def forward(self, sam: Sam, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image embedding (1, C, g, g) -> mask logits (K, 1, s, s) and predicted IoU (K, 1)."""
        _, dense = sam.prompt_encoder(None, None, None)  # 1 C g g
        dense = sam.prompt_encoder.ground(dense, features)
        position = sam.prompt_encoder.get_dense_pe()
        dense = dense.expand(len(self.tokens), -1, -1, -1)
        predicted: tuple[torch.Tensor, torch.Tensor] = sam.mask_decoder(features, position, self.tokens, dense, False)
        return predicted

    @torch.no_grad()
    def segment(self, sam: Sam, embedding: ImageEmbedding) -> torch.Tensor:
        """(H, W) int64 in original pixels: 0 background, otherwise class index + 1 of the most certain class."""
        logits, iou = self(sam, embedding.features)
        full = Decoded(logits, iou, embedding.geometry).logits()[:, 0]  # K H W
        best = full.max(dim=0)
        return torch.where(best.values > sam.mask_threshold, best.indices + 1, 0)


def save_classes(module: ClassHead | ClassPrompts, path: Path) -> None:
    """Write a class head or class prompts with their class names (safetensors)."""
    note = {"format": FORMAT, "kind": module.kind, "classes": json.dumps(module.classes)}
    note |= {"channels": str(module.channels), "hidden": str(getattr(module, "hidden", 0))}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_whole(path, lambda file: file.write(save(tensors, note)))


def load_classes(path: Path) -> ClassHead | ClassPrompts:
    """Read what `save_classes` wrote.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}).") from error
    if note.get("format") != FORMAT:
        raise ValueError(f"{path} holds no classes; expected the .classes.safetensors file that fine-tuning wrote.")
    classes, channels = tuple(json.loads(note["classes"])), int(note["channels"])
    module: ClassHead | ClassPrompts
    module = ClassPrompts(channels, classes)
    if note["kind"] == ClassHead.kind:
        module = ClassHead(channels, classes, int(note["hidden"]))
    module.load_state_dict(tensors)
    return module.eval()
