"""Draws masks, boxes, points and names on Pillow images with smooth edges; `visualize` is the public side.

All lengths are pixels of the canvas, `line_px` is the thickness of a line. Masks are in original pixels;
`scale` is canvas pixels per original pixel.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from segment_anything.masks import RLE, decode_rle, mask_to_box, rle_area, rle_to_box

Colour = tuple[int, int, int]

_GOLDEN_ANGLE_DEG = 180 * (3 - math.sqrt(5))  # successive multiples fill the circle of hues most evenly
_FIRST_HUE_DEG = 255  # a clear blue
_LIGHTNESS = (0.68, 0.80, 0.58)  # neighbours in the circle of hues, 3, 5 or 8 apart in index, differ in lightness
_CHROMA = 0.19
FOREGROUND, BACKGROUND = (46, 160, 67), (218, 54, 51)
_SMOOTH = 4  # shapes are drawn this many times larger and reduced, which smooths their edges


def colour(index: int) -> Colour:
    """The colour of mask number `index`: sRGB, 0..255.

    Hues step by the golden angle in Oklab (https://bottosson.github.io/posts/oklab/), where equal distances look equal.
    """
    hue = math.radians(_FIRST_HUE_DEG + index * _GOLDEN_ANGLE_DEG)
    lightness, chroma = _LIGHTNESS[index % len(_LIGHTNESS)], _CHROMA
    while not all(-1e-6 <= value <= 1 + 1e-6 for value in _oklab_to_linear_rgb(lightness, chroma, hue)):
        chroma *= 0.97  # the screen cannot show it that vivid
    red, green, blue = (_to_srgb(value) for value in _oklab_to_linear_rgb(lightness, chroma, hue))
    return red, green, blue


def _oklab_to_linear_rgb(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _to_srgb(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    encoded = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * encoded)


# How a mask of 0 and 255, blurred, becomes a smooth area and a smooth line along its edge (where it is about 128).
_INSIDE = [round(255 * min(max(value / 255 * 2 - 0.5, 0), 1)) for value in range(256)]
_EDGE = [round(255 * min(max((0.5 - abs(value / 255 - 0.5)) * 5 - 0.75, 0), 1)) for value in range(256)]


@dataclass(frozen=True)
class DrawnMask:
    """A mask to draw, kept as it came (run lengths are short) and decoded only while it is painted."""

    source: np.ndarray | RLE
    """(H, W) bool, or run lengths of it."""

    def pixels(self) -> np.ndarray:
        """(H, W) bool."""
        return self.source if isinstance(self.source, np.ndarray) else decode_rle(self.source)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in original pixels."""
        height, width = self.source.shape if isinstance(self.source, np.ndarray) else self.source["size"]
        return int(height), int(width)

    @property
    def area_px(self) -> int:
        """Pixels of the mask."""
        return int(self.source.sum()) if isinstance(self.source, np.ndarray) else rle_area(self.source)

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """Tight box, x1 and y1 one past the last pixel; zeros if the mask is empty."""
        box = mask_to_box(self.source) if isinstance(self.source, np.ndarray) else rle_to_box(self.source)
        x0, y0, x1, y1 = box.tolist()
        return x0, y0, x1, y1


def grow(box: tuple[int, int, int, int], margin: int, size_hw: tuple[int, ...]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    return max(x0 - margin, 0), max(y0 - margin, 0), min(x1 + margin, size_hw[1]), min(y1 + margin, size_hw[0])


def paint_masks(
    canvas: Image.Image, masks: Sequence[DrawnMask], opacity: float, line_px: float, scale: float
) -> Image.Image:
    """Tint and outline all masks, large ones first.

    They are painted over each other on a transparent layer (its colours multiplied by its opacity), which then lies
    on the image once: a small mask on a large one shows its own colour, not a mixture.
    """
    layer = Image.new(
        "CMYK", canvas.size
    )  # four plain channels: in RGBA, Pillow would not blend colour where alpha is 0
    for index in sorted(range(len(masks)), key=lambda i: -masks[i].area_px):
        _paint_one(layer, masks[index], colour(index), opacity, line_px, scale)
    top, below = np.asarray(layer), np.asarray(canvas)
    blended = np.empty_like(below)
    for rows in (slice(y, y + 256) for y in range(0, len(below), 256)):  # in strips, for photographs of many megapixels
        hidden = top[rows, :, 3:].astype(np.uint16)
        blended[rows] = np.minimum((below[rows] * (255 - hidden) + 127) // 255 + top[rows, :, :3], 255)
    return Image.fromarray(blended)


def _paint_one(layer: Image.Image, mask: DrawnMask, tint: Colour, opacity: float, line_px: float, scale: float) -> None:
    """Paint one mask on the layer, working only in the part of it where the mask is."""
    box = mask.box_xyxy
    if box[2] == 0:
        return
    x0, y0, x1, y1 = grow(box, math.ceil(2 * line_px / scale), mask.size_hw)
    part = Image.fromarray(mask.pixels()[y0:y1, x0:x1].view(np.uint8) * 255)
    left, top, right, bottom = (round(value * scale) for value in (x0, y0, x1, y1))
    if scale != 1:
        part = part.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    steps_px = 0.4 * (scale - 1) if scale > 1 else 0  # an enlarged mask shows its pixels as steps
    soft = part.filter(ImageFilter.GaussianBlur(0.6 * line_px + steps_px))
    layer.paste((*(round(value * opacity) for value in tint), round(255 * opacity)), (left, top), soft.point(_INSIDE))
    layer.paste((*tint, 255), (left, top), soft.point(_EDGE))


def draw_box(canvas: Image.Image, box_xyxy: Sequence[float], ink: Colour, line_px: float) -> None:
    """A rectangle with a thin dark rim, which keeps it visible on any ground."""
    x0, y0, x1, y1 = (round(float(value)) for value in box_xyxy)
    draw, width = ImageDraw.Draw(canvas, "RGBA"), max(2, round(line_px))
    for grow_px, fill, thick in ((1, (0, 0, 0, 110), width + 2), (0, (*ink, 255), width)):
        draw.rectangle((x0 - grow_px, y0 - grow_px, x1 + grow_px, y1 + grow_px), outline=fill, width=thick)


def draw_point(canvas: Image.Image, point_xy: Sequence[float], foreground: bool, line_px: float) -> None:
    """A click: a green disc with a plus for foreground, a red one with a minus for background."""
    radius = 4.2 * line_px

    def shapes(draw: ImageDraw.ImageDraw, unit: float) -> None:
        middle, r = radius * unit, radius * unit
        draw.ellipse((0, 0, 2 * r, 2 * r), fill=(0, 0, 0, 90))
        draw.ellipse((0.08 * r, 0.08 * r, 1.92 * r, 1.92 * r), fill=(255, 255, 255, 255))
        draw.ellipse((0.3 * r, 0.3 * r, 1.7 * r, 1.7 * r), fill=(*(FOREGROUND if foreground else BACKGROUND), 255))
        arm, half = 0.4 * r, 0.1 * r
        draw.rectangle((middle - arm, middle - half, middle + arm, middle + half), fill="white")
        if foreground:
            draw.rectangle((middle - half, middle - arm, middle + half, middle + arm), fill="white")

    _stamp(canvas, point_xy[0] - radius, point_xy[1] - radius, 2 * radius, 2 * radius, shapes)


def draw_name(canvas: Image.Image, name: str, box_xyxy: Sequence[float], ground: Colour, line_px: float) -> None:
    """A small label on the top left corner of a box, moved inside the picture where it would be cut."""
    font = load_font(max(11.0, 7 * line_px))
    left, top, right, bottom = font.getbbox(name, anchor="ls")
    pad = 0.35 * (bottom - top) + 1
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(float(box_xyxy[0]), 0), max(canvas.width - width, 0))
    y = min(max(float(box_xyxy[1]) - height, 0), max(canvas.height - height, 0))

    def shapes(draw: ImageDraw.ImageDraw, unit: float) -> None:
        draw.rounded_rectangle((0, 0, width * unit, height * unit), radius=0.25 * height * unit, fill=ground)

    _stamp(canvas, x, y, width, height, shapes)
    luminance = 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2]
    ink = "black" if luminance > 150 else "white"
    ImageDraw.Draw(canvas).text((x + pad - left, y + pad - top), name, fill=ink, font=font, anchor="ls")


def load_font(size_px: float) -> ImageFont.FreeTypeFont:
    """The font that Pillow brings (Aileron Regular, CC0)."""
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)  # with a size Pillow gives no other
    return font


def _stamp(
    canvas: Image.Image,
    x: float,
    y: float,
    width: float,
    height: float,
    shapes: Callable[[ImageDraw.ImageDraw, float], None],
) -> None:
    """Draw `shapes` on a transparent patch, enlarged and then reduced so that edges are smooth, and lay it down."""
    size = math.ceil(width) + 1, math.ceil(height) + 1
    patch = Image.new("RGBA", (size[0] * _SMOOTH, size[1] * _SMOOTH), (0, 0, 0, 0))
    shapes(ImageDraw.Draw(patch), _SMOOTH)
    patch = patch.resize(size, Image.Resampling.BOX)
    canvas.paste(patch, (round(x), round(y)), patch)
