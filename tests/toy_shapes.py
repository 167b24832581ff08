"""A data set of bright rectangles and dark discs on noise, and a tiny model that learns it in seconds."""

from pathlib import Path

import numpy as np
import torch
import toy_data

from segment_anything.modeling import DrawnPromptEncoder, MaskDecoder, NanoEncoder, Sam, TwoWayTransformer


def write_shapes(root: Path, count: int = 10, side: int = 64, seed: int = 0) -> Path:
    """Folders images and labels with classes.txt (rectangle, disc)."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        image = generator.integers(100, 156, (side, side, 3))
        values = np.zeros((side, side), dtype=np.uint8)
        x, y = generator.integers(2, side // 2 - 2, 2)
        w, h = generator.integers(side // 6, side // 3, 2)
        values[y : y + h, x : x + w] = 1
        rows, columns = np.mgrid[:side, :side]
        cx, cy = generator.integers(side // 2 + 6, side - 12, 2)
        values[(rows - cy) ** 2 + (columns - cx) ** 2 < (side // 7) ** 2] = 2
        image[values == 1] += 90
        image[values == 2] -= 90
        toy_data.save(root / f"images/{number:03}.png", image.clip(0, 255).astype(np.uint8))
        toy_data.save(root / f"labels/{number:03}.png", values)
    (root / "classes.txt").write_text("rectangle\ndisc\n")
    return root


def toy_nano(image_size: int = 64, seed: int = 0) -> Sam:
    """A tiny model of the kind of `nano`, which learns from nothing in seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grid = image_size // 8
        sam = Sam(
            NanoEncoder(image_size, 32, (8, 16, 16, 16), (1, 1, 1, 1), heads=2),
            DrawnPromptEncoder(32, (grid, grid), (image_size, image_size), 8),
            MaskDecoder(
                transformer_dim=32,
                transformer=TwoWayTransformer(depth=2, embedding_dim=32, num_heads=2, mlp_dim=64),
                iou_head_hidden_dim=32,
            ),
        )
    sam.name = "toy"
    return sam.eval()
