"""The trainable parameters in groups that share a learning rate and a weight decay.

Layer-wise decay of the learning rate as ViTDet (https://arxiv.org/abs/2203.16527) and Segment Anything, appendix A
"Training algorithm".
"""

import re
from collections.abc import Iterable
from typing import Any

from torch import nn


def parameter_groups(module: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters in groups with their own weight decay and learning rate factor (`lr_scale`).

    Vectors (biases, normalisation) and embeddings are not decayed. Blocks of an image encoder learn the slower the
    nearer they are to the pixels: factor `layer_decay` to the power of the number of blocks above.
    """
    depth = encoder_depth(name for name, _ in module.named_parameters())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if parameter.ndim > 1 and not _UNDECAYED.search(name) else 0.0
        scale = layer_decay ** (depth - layer_of(name, depth))
        group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
    return list(groups.values())


_UNDECAYED = re.compile(r"pos_embed|rel_pos|attention_biases|_tokens?\.|_embed\.weight|point_embeddings")
"""Tables of positions and tokens, which are matrices in form only."""
_BLOCK = re.compile(r"image_encoder\.(?:blocks|layers|stages)\.(\d+)\.")


def encoder_depth(names: Iterable[str]) -> int:
    """Number of layers of an image encoder, blocks (or stages) and what comes before them; 0 without any."""
    return max((int(found[1]) + 2 for name in names if (found := _BLOCK.search(name))), default=0)


def layer_of(name: str, depth: int) -> int:
    """0 for what comes before the first block, then the blocks, `depth` for the neck and all that is no encoder."""
    if not depth or "image_encoder." not in name:
        return depth
    if found := _BLOCK.search(name):
        return int(found[1]) + 1
    return 0 if re.search(r"image_encoder\.(patch_embed|pos_embed|stem)", name) else depth
