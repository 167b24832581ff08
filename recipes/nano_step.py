"""One training step of `nano`: its three networks at any crop size, what they are asked, and the losses.

Letters: B crops, M masks of each, N objects, C channels, h x w cells.
"""

import numpy as np
import torch
from nano_data import Packed, validation
from nano_optimizer import Master
from torch import nn
from torch.nn.functional import (
    avg_pool2d,
    binary_cross_entropy_with_logits,
    layer_norm,
    pixel_shuffle,
    smooth_l1_loss,
)

from segment_anything.modeling.nano import build_nano_parts
from segment_anything.simulate import mask_boxes, noisy_boxes, random_error_points, random_points
from segment_anything.training.losses import (
    DICE_WEIGHT,
    IOU_WEIGHT,
    NEAR_WEIGHT,
    dice_loss,
    near_cross_entropy,
    true_iou,
)

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
GROUPING_WEIGHT = 0.5
QUALITY_WEIGHT = 2 * IOU_WEIGHT
TIGHT_BOX_WEIGHT = 1.6
"""Of the first prompt of objects given by a box; every other round weighs 1."""


class Grouping(nn.Module):
    """Teaches the encoder to tell objects apart without any prompt; thrown away after training.

    The mean of an object's own features must find the object again among all cells. It costs one 1 x 1 convolution, and
    every cell of every crop takes part; a prompt reaches the encoder through the whole decoder only.
    """

    WIDTH = 48

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cells = nn.Conv2d(channels, 4 * self.WIDTH, 1)
        self.turn = nn.Linear(self.WIDTH, self.WIDTH + 1)
        nn.init.zeros_(self.turn.weight)
        nn.init.zeros_(self.turn.bias)

    def forward(self, features: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, float]:
        """(B, C, g, g) and (B, M, 4g, 4g) bool -> cross-entropy plus dice, and the mean IoU for the log."""
        cells = layer_norm(pixel_shuffle(self.cells(features), 2).flatten(2).transpose(1, 2).float(), (self.WIDTH,))
        truth = avg_pool2d(masks.float(), 2).flatten(2)  # B M hw
        mean = truth @ cells / truth.sum(-1, keepdim=True).clamp(min=1)  # B M 48
        turned = self.turn(mean.to(self.turn.weight.dtype)).float()
        logits = (mean + turned[..., :-1]) @ cells.transpose(1, 2) / 4 - 4 + turned[..., -1:]
        found = (logits > 0) & (truth > 0.5)
        iou = found.sum(-1) / ((logits > 0) | (truth > 0.5)).sum(-1).clamp(min=1)
        loss = binary_cross_entropy_with_logits(logits, truth) + dice_loss(logits[..., None], truth[..., None]).mean()
        return loss, float(iou.mean())


class Nano(nn.Module):
    """The three parts in one module, for any square crop."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.image_encoder, self.prompt_encoder, self.mask_decoder = build_nano_parts(size)
        self.grouping = Grouping(self.prompt_encoder.embed_dim)
        self.resize(size)

    def resize(self, size: int) -> None:
        """Set the side of the square input; no weight depends on it."""
        grid = size // self.image_encoder.patch_size
        self.image_encoder.img_size = size
        self.prompt_encoder.input_image_size = (size, size)
        self.prompt_encoder.image_embedding_size = (grid, grid)
        self.prompt_encoder.mask_input_size = (4 * grid, 4 * grid)

    def normalise(self, images: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) uint8 -> float, zero in the padding."""
        mean = torch.tensor(PIXEL_MEAN, device=images.device).view(3, 1, 1)
        std = torch.tensor(PIXEL_STD, device=images.device).view(3, 1, 1)
        dtype = self.prompt_encoder.no_mask_embed.weight.dtype
        values = (images.float() - mean) / std * inside[:, None]
        return values.to(dtype).contiguous(memory_format=torch.channels_last)

    def decode(self, features, points, boxes, masks):
        """All four masks and predicted IoU of N objects; prompts in input pixels."""
        dtype = self.prompt_encoder.no_mask_embed.weight.dtype
        sparse, dense = self.prompt_encoder(points, boxes, None if masks is None else masks.to(dtype))
        dense = self.prompt_encoder.ground(dense, features)
        pe = self.prompt_encoder.get_dense_pe()
        return self.mask_decoder.predict_masks(features, pe, sparse, dense)


def given_boxes(truth):
    """Tight boxes in input pixels of masks at half resolution, where the predictor would have them.

    It scales the indices of an original image's outermost pixels, so that the right and lower sides lie most of an
    input pixel inside. Trained on boxes a pixel too small all around, small masks come out too large (docs/log.md).
    """
    return mask_boxes(truth) * 2 + torch.tensor([0.0, 0.0, 1.3, 1.3], device=truth.device)


def central_points(region: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(N, h, w) bool -> (N, 2): x, y of a cell in the middle of the largest part of each region, where people click.

    Share of the region around each cell at three scales, added up: nearly where the distance to its border is largest;
    among equals one at random.
    """
    cells = avg_pool2d(region[:, None].float(), 4)
    score = sum(avg_pool2d(cells, k, 1, k // 2) for k in (3, 9, 21)) + cells
    score = score.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)[:, 0]
    score = (score + 0.01 * torch.rand(score.shape, generator=generator, device=score.device)) * region
    index = score.flatten(1).argmax(dim=1)
    return torch.stack([index % region.shape[-1], index // region.shape[-1]], dim=1).float()


def click(region: torch.Tensor, drawn: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The paper's uniformly drawn point for half of the objects, the middle of the region for the others."""
    middle = torch.rand(len(region), 1, generator=generator, device=region.device) < 0.5
    return torch.where(middle, central_points(region, generator).to(drawn.dtype), drawn)


def combined_loss(logits, iou, truth, ambiguous: bool):
    """The paper's loss on the best of three, and the same on the single mask; true IoU for the log."""
    logits, truth = logits.float(), truth.float()
    each = NEAR_WEIGHT * near_cross_entropy(logits, truth) + DICE_WEIGHT * dice_loss(logits, truth)  # N 4
    quality = true_iou(logits.detach(), truth)
    error = smooth_l1_loss(iou.float(), quality, reduction="none", beta=0.05)  # the bar is a mean absolute error
    best, single = each[:, 1:].min(dim=1).values.mean(), each[:, 0].mean()
    weights = (1.0, 0.3) if ambiguous else (0.6, 1.0)
    return weights[0] * best + weights[1] * single + QUALITY_WEIGHT * error.mean(), quality


def train_step(model: Nano, batch, rng: np.random.Generator, extra_rounds: int, by_box: int):
    """The loss of one batch over all rounds, and the numbers worth logging; `by_box` objects of a crop get a box."""
    images, masks, inside = batch
    model.resize(images.shape[-1])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # 20 ms less a block, backward, on a CPU
        features = model.image_encoder(model.normalise(images, inside))
    grouping, group_iou = model.grouping(features, masks)
    masks = masks[:, : masks.shape[1] // 2]
    size = model.image_encoder.img_size
    generator = torch.Generator(device=images.device).manual_seed(int(rng.integers(2**31)))
    total, shown = 0.0, {"group": group_iou}
    for kind, asked in (("box", masks[:, :by_box]), ("point", masks[:, by_box:])):
        truth = asked.flatten(0, 1)  # N h w
        share = asked.shape[1] / masks.shape[1]
        per_object = features.repeat_interleave(asked.shape[1], dim=0).contiguous(memory_format=torch.channels_last)
        points = boxes = previous = None
        if kind == "box":
            relative = 0.1 * torch.rand(len(truth), 1, generator=generator, device=truth.device) ** 2
            boxes = noisy_boxes(given_boxes(truth), (size, size), generator, relative, at_most=10.0)
        else:
            points = (
                click(truth, random_points(truth, generator), generator)[:, None] * 2 + 0.5,
                torch.ones(len(truth), 1, device=truth.device),
            )
        for turn in range(1 + extra_rounds):
            logits, iou = model.decode(per_object, points, boxes, previous)
            loss, quality = combined_loss(logits, iou, truth[:, None], ambiguous=turn == 0 and kind == "point")
            total = total + share * (TIGHT_BOX_WEIGHT if turn == 0 and kind == "box" else 1.0) * loss
            if turn == 0:
                shown[kind] = float(quality[:, 0].mean() if kind == "box" else quality[:, 1:].amax(dim=1).mean())
            elif turn == extra_rounds:
                shown[f"{kind}_last"] = float(quality[:, 0].mean())
            if turn == extra_rounds:
                break
            detached = logits.detach().float()
            chosen = 1 + iou[:, 1:].detach().argmax(dim=1)
            if turn or kind == "box":  # later the single mask, or the best of three: people go on from either
                chosen *= torch.randint(2, chosen.shape, generator=generator, device=chosen.device)
            previous = detached[torch.arange(len(truth)), chosen][:, None].clamp(-32, 32)
            found = previous[:, 0] > 0
            where, label = random_error_points(found, truth, generator)
            wrong = torch.where(label[:, None, None] > 0, truth & ~found, found & ~truth)
            where = torch.where(wrong.flatten(1).any(1, keepdim=True), click(wrong, where, generator), where)
            new = (where[:, None] * 2 + 0.5, label[:, None].float())
            points = new if points is None else (torch.cat([points[0], new[0]], 1), torch.cat([points[1], new[1]], 1))
    return total / (1 + extra_rounds) + GROUPING_WEIGHT * grouping, shown


@torch.no_grad()
def check(model: Nano, master: Master, packed: Packed, device: torch.device) -> dict[str, float]:
    """Mean IoU of the averaged weights on held-out images at 512 pixels: box (single mask), click (best of three)."""
    state = master.weights()
    model.load_state_dict(master.average)
    model.eval()
    size = model.image_encoder.img_size
    model.resize(512)
    result: dict[str, float] = {}
    for name in (name for name in ("coco_cc", "feral_cats", "dsb2018_nuclei") if name in packed.index):
        box_iou, click_iou = [], []
        for image, masks in validation(packed, (name,), 512):
            image, truth = image.to(device), masks.to(device)
            inside = image.any(dim=0)[None]
            features = model.image_encoder(model.normalise(image[None], inside))
            boxes = given_boxes(truth)
            points = random_points(truth, torch.Generator(device=device).manual_seed(1))[:, None] * 2 + 0.5
            logits, _ = model.decode(features, None, boxes, None)
            box_iou += true_iou(logits[:, :1].float(), truth[:, None]).flatten().tolist()
            logits, _ = model.decode(features, (points, torch.ones(len(truth), 1, device=device)), None, None)
            click_iou += true_iou(logits[:, 1:].float(), truth[:, None]).amax(dim=1).tolist()
        result[f"{name}_box"], result[f"{name}_click"] = float(np.mean(box_iou)), float(np.mean(click_iou))
    model.resize(size)
    model.train()
    master.load(state)
    return result
