"""Pictures of results: masks, points and boxes over an image, an object cut out, a sheet of many pictures.

Colours depend only on a mask's position in what is given, so the same object keeps its colour from picture to picture.
Large masks lie below small ones. Needs numpy and Pillow only; saving is left to the caller.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from segment_anything._drawing import (
    Colour,
    DrawnMask,
    colour,
    draw_box,
    draw_name,
    draw_point,
    grow,
    load_font,
    paint_masks,
)
from segment_anything.images import check_image_array
from segment_anything.masks import RLE

__all__ = ["colour", "contact_sheet", "cutout", "overlay"]


def overlay(
    image: np.ndarray,
    masks: Any = (),
    *,
    points_xy: Any = None,
    labels: Any = None,
    boxes_xyxy: Any = None,
    names: Sequence[str] | None = None,
    opacity: float = 0.45,
    scale: float = 1.0,
) -> np.ndarray:
    """Draw masks, boxes, points and names over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) or (H, W) bool, a sequence of (H, W) bool, or records of automatic masks (any output mode).
            Mask i has `colour(i)`; its inside is tinted, its outline drawn; large ones lie below small ones.
        points_xy: (P, 2) in original pixels, or None.
        labels: (P,) 1 for foreground (green, plus), 0 for background (red, minus). Without it all are foreground.
        boxes_xyxy: (M, 4) or (4,) in original pixels, or None. Box i has the colour of mask i.
        names: a short text for each mask, or for each box where no masks are given.
        opacity: how much of the image the tint hides, 0 to 1.
        scale: draw this many times larger than the image, for fine outlines on a small photograph.

    Returns:
        (round(H * scale), round(W * scale), 3) uint8 RGB.

    Raises:
        ValueError: if sizes or counts do not match; the message names the argument.
    """
    image = check_image_array(image)
    drawn = _as_masks(masks, image.shape[:2])
    points = _rows("points_xy", points_xy, 2)
    boxes = _rows("boxes_xyxy", boxes_xyxy, 4)
    labels = np.ones(len(points), int) if labels is None else np.asarray(labels).reshape(-1)
    _check_counts(len(points), len(labels), len(drawn) or len(boxes), names)
    size_wh = round(image.shape[1] * scale), round(image.shape[0] * scale)
    canvas = Image.fromarray(image) if scale == 1 else Image.fromarray(image).resize(size_wh, Image.Resampling.LANCZOS)
    line_px = max(1.6, 0.003 * math.sqrt(size_wh[0] * size_wh[1]))
    if drawn:
        canvas = paint_masks(canvas, drawn, opacity, line_px, scale)
    for index, box in enumerate(boxes * scale):
        draw_box(canvas, box, colour(index), line_px)
    if names is not None:
        anchors = np.array([mask.box_xyxy for mask in drawn], np.float64) if drawn else boxes
        for index, (name, box) in enumerate(zip(names, anchors * scale, strict=False)):
            draw_name(canvas, name, box, colour(index), line_px)
    for point, label in zip(points * scale, labels, strict=True):
        draw_point(canvas, point, bool(label), line_px)
    return np.asarray(canvas)


def cutout(image: np.ndarray, mask: Any, *, margin_px: int = 0, feather_px: float = 0.0) -> np.ndarray:
    """Cut one object out of an image, with transparency around it.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, or one record.
        margin_px: transparent pixels to keep around the object, as far as the image reaches.
        feather_px: soften the edge over about this many pixels; 0 keeps it exact.

    Returns:
        (h, w, 4) uint8 RGBA, cropped to the object. Fully transparent pixels hold no colour of the image.

    Raises:
        ValueError: if the mask is empty, or not of the image's size.
    """
    image = check_image_array(image)
    [drawn] = _as_masks([mask], image.shape[:2])
    if drawn.area_px == 0:
        raise ValueError("mask is empty: there is nothing to cut out.")
    x0, y0, x1, y1 = grow(drawn.box_xyxy, margin_px, drawn.size_hw)
    alpha = Image.fromarray(drawn.pixels()[y0:y1, x0:x1].astype(np.uint8) * 255)
    if feather_px > 0:
        alpha = alpha.filter(ImageFilter.GaussianBlur(feather_px / 2))
    cut = np.dstack([image[y0:y1, x0:x1], np.asarray(alpha)])
    cut[cut[..., 3] == 0] = 0
    return cut


def contact_sheet(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    cell_px: int = 400,
    background: Colour = (255, 255, 255),
) -> np.ndarray:
    """Lay many pictures of any size on one sheet, each fitted into a cell, with a title below.

    Args:
        images: each (H, W, 3) uint8 RGB, or (H, W, 4) RGBA, whose transparency shows a chequered ground.
        titles: a short text for each, or None.
        columns: cells in a row; by default the sheet is about as wide as it is high.
        cell_px: longest side of a picture on the sheet; smaller pictures are enlarged to it.
        background: colour of the sheet.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: without images, or if there are more or fewer titles than images.
    """
    if len(images) == 0:
        raise ValueError("images is empty: a contact sheet needs at least one.")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"titles must have one text for each of the {len(images)} images, got {len(titles)}.")
    pictures = [_fit(np.asarray(image), cell_px) for image in images]
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    gap, font = max(4, cell_px // 25), load_font(max(11, cell_px // 22))
    title_px = math.ceil(1.6 * sum(font.getmetrics())) if titles else 0
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    width = max(picture.width for picture in pictures)
    size_wh = gap + columns * (width + gap), gap + sum(height + title_px + gap for height in heights)
    sheet, y = Image.new("RGB", size_wh, background), gap
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, picture in enumerate(row):
            x = gap + column * (width + gap)
            sheet.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
            if titles:
                ink, where = "black" if sum(background) > 384 else "white", (x + width / 2, y + height + title_px / 2)
                ImageDraw.Draw(sheet).text(where, titles[number * columns + column], ink, font, anchor="mm")
        y += height + title_px + gap
    return np.asarray(sheet)


def _as_masks(masks: Any, size_hw: tuple[int, ...]) -> list[DrawnMask]:
    if isinstance(masks, Mapping):
        masks = [masks]
    elif not isinstance(masks, list | tuple):
        masks = np.asarray(masks)
        masks = masks.reshape(-1, *masks.shape[-2:])
    drawn = [_as_mask(mask) for mask in masks]
    for index, mask in enumerate(drawn):
        if mask.size_hw != tuple(size_hw):
            raise ValueError(f"masks must have the image's size {tuple(size_hw)}, mask {index} has {mask.size_hw}.")
    return drawn


def _as_mask(mask: Any) -> DrawnMask:
    segmentation = mask["segmentation"] if isinstance(mask, Mapping) and "segmentation" in mask else mask
    if isinstance(segmentation, Mapping):
        return DrawnMask(cast(RLE, segmentation))
    array = np.asarray(segmentation)
    if array.ndim != 2:
        raise ValueError(f"masks must have shape (N, H, W) or (H, W), got one of shape {array.shape}.")
    return DrawnMask(array.astype(bool, copy=False))


def _rows(name: str, values: Any, width: int) -> np.ndarray:
    array = np.zeros((0, width)) if values is None else np.asarray(values, np.float64)
    array = array[None] if array.shape == (width,) else array
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"{name} must have shape (N, {width}), got {array.shape}.")
    return array


def _check_counts(points: int, labels: int, objects: int, names: Sequence[str] | None) -> None:
    if labels != points:
        raise ValueError(f"labels must have one value for each of the {points} points, got {labels}.")
    if names is not None and len(names) != objects:
        raise ValueError(f"names must have one text for each of the {objects} masks or boxes, got {len(names)}.")


def _fit(picture: np.ndarray, cell_px: int) -> Image.Image:
    """A picture scaled so that its longest side is `cell_px`, transparency laid on a chequered ground."""
    image = Image.fromarray(picture)
    factor = cell_px / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    image = image.resize(size, Image.Resampling.LANCZOS)
    if image.mode != "RGBA":
        return image.convert("RGB")
    ys, xs = np.indices((size[1], size[0])) // max(4, cell_px // 40)
    squares = np.where((xs + ys) % 2 == 0, 255, 225).astype(np.uint8)
    ground = Image.fromarray(squares).convert("RGBA")
    ground.alpha_composite(image)
    return ground.convert("RGB")
