"""Images in: files of any common kind, and arrays given by a caller, become (H, W, 3) uint8 RGB.

What a person sees in a viewer is what the model gets:

- the orientation a camera wrote into EXIF is applied; of several frames or pages the first is taken;
- transparency is laid on white, as on a page (colours hidden under transparent pixels are often garbage);
- 16-bit grey is scaled by the full range of the bit depth that holds its brightest pixel (8, 10, 12, 14 or 16 bits),
  so a 12-bit microscope image stored in 16 bits is not black, and black stays black;
- floating point is taken as 0..1 or 0..255 where all values lie in that range; any other range, and 32-bit or negative
  integers, are stretched from the darkest to the brightest finite value;
- grey, palette, CMYK and Lab are converted to RGB by Pillow; embedded colour profiles are not applied.

It knows nothing of models and of their input size.
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

MAX_PIXELS = 2**28
"""Larger images are refused unless the caller asks: 16384 x 16384, above any camera; decoded it takes 0.75 GiB."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".tif", ".tiff"),
    *(".bmp", ".gif", ".jp2", ".avif", ".ppm", ".pgm", ".pnm"),
)
"""File names that `list_images` takes for images."""

# Formats that run other programs or are no photographs (EPS, WMF, PDF, ...) stay closed.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "AVIF", "PPM", "MPO")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF 2.3, tag 0x0112: what brings row 0 to the top
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}

_pillow_limit = threading.Lock()


class ImageReadError(ValueError):
    """A file that is there but cannot be read as an image; the message names the file and the reason in one line."""


def read_image(file: str | os.PathLike[str] | BinaryIO, *, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """Read an image file: JPEG, PNG, WebP, TIFF, BMP, and more that Pillow reads.

    Args:
        file: path, or a binary file open for reading.
        max_pixels: refuse an image of more pixels before decoding it; None reads any size.

    Returns:
        (H, W, 3) uint8 RGB, upright, contiguous. The module's text says how each kind of file is converted.

    Raises:
        ImageReadError: if it is empty, truncated, too large or no image.
        OSError: if there is no such file, or it may not be read (FileNotFoundError, PermissionError, ...).
    """
    if not isinstance(file, str | os.PathLike):
        return _read_open_file(file, getattr(file, "name", "the given file"), max_pixels)
    with open(file, "rb") as opened:
        return _read_open_file(opened, os.fspath(file), max_pixels)


def _read_open_file(file: BinaryIO, name: str, max_pixels: int | None) -> np.ndarray:
    if not file.read(1):
        raise ImageReadError(f"{name}: the file is empty.")
    file.seek(0)
    try:
        image = _open(file)
    except UnidentifiedImageError:
        raise ImageReadError(
            f"{name}: not an image, or of a kind that is not read ({', '.join(_FORMATS)} are)."
        ) from None
    except Exception as error:  # a plug-in met a damaged header: whatever it raises, the file is at fault
        raise ImageReadError(f"{name}: damaged image ({error}).") from error
    with image:
        width, height = image.size
        if max_pixels is not None and width * height > max_pixels:
            raise ImageReadError(
                f"{name}: {width} x {height} = {width * height:,} pixels is more than the limit of {max_pixels:,}. "
                "Make it smaller or cut it in tiles; or raise max_pixels (--max-pixels) if the file is to be trusted."
            )
        try:
            image.load()
            return _upright(_to_rgb(image), _orientation(image))
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
            raise ImageReadError(f"{name}: damaged or truncated image ({error}).") from error


def _open(file: BinaryIO) -> Image.Image:
    """Read the header. Pillow's own limit is global and lower than ours: it is lifted for this moment only."""
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block must not cost the photograph
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(_UPRIGHT.get(orientation, np.asarray)(pixels))


def _to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a loaded Pillow image of any mode, not yet upright."""
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _scale_to_uint8(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return np.asarray(converted)
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        return np.asarray(page.convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _scale_to_uint8(values: np.ndarray) -> np.ndarray:
    """(H, W) integers or floats of any range to uint8, as the module's text says."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = values[finite].min().item(), values[finite].max().item()
    if low >= 0 and values.dtype.kind == "f" and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    elif low >= 0 and values.dtype.kind in "iu" and high < 2**16:
        low, high = 0, 2 ** next(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits) - 1
    scaled = (np.where(finite, values, low).astype(np.float64) - low) * (255 / max(high - low, 1e-300))
    grey: np.ndarray = scaled.round().clip(0, 255).astype(np.uint8)
    return grey


def list_images(path_or_glob: str | os.PathLike[str]) -> list[Path]:
    """The image files that a path or a pattern means, in natural order (`img2` before `img10`).

    Args:
        path_or_glob: a file (returned whatever its name), a folder (the images directly inside, by their suffix,
            without hidden files), or a pattern such as `photos/**/*.jpg`.

    Returns:
        Paths; empty if the folder holds no image or the pattern matches none.

    Raises:
        FileNotFoundError: if it is no pattern and nothing is there.
    """
    text = os.fspath(path_or_glob)
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = list(path.iterdir())
    elif re.search(r"[*?\[]", text):
        found = [Path(match) for match in glob(text, recursive=True)]
    else:
        raise FileNotFoundError(f"{text}: no such file or folder. Give an image, a folder, or a pattern in quotes.")
    images = [p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    return sorted(images, key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key: digits compare as numbers and come before letters; letters compare without case."""
    pieces = re.split(r"(\d+)", str(path).casefold())
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece]


def check_image_array(image: Any, image_format: str = "RGB") -> np.ndarray:
    """Check an image given by a caller, and bring it to RGB.

    Args:
        image: (H, W, 3) uint8.
        image_format: order of its channels, "RGB" or "BGR" (what OpenCV reads).

    Returns:
        (H, W, 3) uint8 RGB, contiguous; the same array where nothing had to change.

    Raises:
        ValueError: for anything else; the message says what came and what to do.
    """
    if image_format not in ("RGB", "BGR"):
        raise ValueError(f'image_format must be "RGB" or "BGR", got {image_format!r}.')
    problem = _type_problem(image) or _shape_problem(image) or _dtype_problem(image)
    if problem:
        raise ValueError(f"image must be a numpy array of shape (H, W, 3) and type uint8, {problem}")
    return np.ascontiguousarray(image[..., ::-1] if image_format == "BGR" else image)


def _type_problem(image: Any) -> str:
    if image is None:
        return "got None. OpenCV's imread gives None for a file that it cannot read: check the path."
    if isinstance(image, str | os.PathLike):
        return f"got the path {os.fspath(image)!r}. Read it first: segment_anything.images.read_image(path)."
    if isinstance(image, Image.Image):
        return 'got a Pillow image. Convert it: np.asarray(image.convert("RGB")).'
    if not isinstance(image, np.ndarray):
        return f"got {type(image).__module__}.{type(image).__name__}. Convert it to a numpy array first."
    return ""


def _shape_problem(image: np.ndarray) -> str:
    shape = f"got shape {image.shape}"
    if image.size == 0:
        return f"{shape}, an empty image."
    if image.ndim == 2:
        return f"{shape}, a grey image. Repeat it: np.stack([image] * 3, axis=-1)."
    if image.ndim == 4:
        return f"{shape}, a batch. Give one image at a time, such as image[0]."
    if image.ndim != 3:
        return f"{shape}."
    if image.shape[2] == 4:
        return f"{shape}, with an alpha channel. Drop it: image[..., :3]."
    if image.shape[2] == 1:
        return f"{shape}, a grey image. Repeat it: np.repeat(image, 3, axis=2)."
    if image.shape[2] != 3 and image.shape[0] in (1, 3, 4):
        return f"{shape}, channels first. Move them last: image.transpose(1, 2, 0)."
    return "" if image.shape[2] == 3 else f"{shape}."


def _dtype_problem(image: np.ndarray) -> str:
    kind = f"got {image.dtype}"
    if image.dtype == np.uint8:
        return ""
    if image.dtype == bool:
        return f"{kind}. Scale it: image.astype(np.uint8) * 255."
    if image.dtype == np.uint16:
        return f"{kind}. Scale it to 8 bits: (image // 257).astype(np.uint8)."
    if image.dtype.kind not in "iuf":
        return f"{kind}."
    low, high = np.nanmin(image), np.nanmax(image)
    if image.dtype.kind == "f" and low >= 0 and high <= 1:
        return f"{kind} in 0..1: multiply by 255 and cast to uint8, (image * 255).astype(np.uint8)."
    if low >= 0 and high <= 255:
        return f"{kind} in 0..255: cast to uint8, image.astype(np.uint8)."
    return f"{kind} from {low:g} to {high:g}: scale it to 0..255 and cast to uint8."


def fingerprint_image(image: np.ndarray) -> str:
    """A short name of an image's size and pixels: equal images have the same, different ones practically never.

    Every pixel counts: rows of 2 KiB become one number each, a sum of products with fixed odd numbers modulo 2**64
    (multilinear hashing), and these are hashed. That is 8 times faster than hashing the pixels: 12 megapixels 2.3 ms.

    Args:
        image: (H, W, 3) uint8.
    """
    data = np.ascontiguousarray(image).reshape(-1)
    rows = data[: data.size // FACTORS.nbytes * FACTORS.nbytes].view("<u8").reshape(-1, len(FACTORS))
    digest = hashlib.sha1(repr(image.shape).encode(), usedforsecurity=False)
    digest.update(np.einsum("ij,j->i", rows, FACTORS).astype("<u8").data)
    digest.update(data[rows.nbytes :].data)
    return digest.hexdigest()


FACTORS = np.frombuffer(hashlib.shake_128(b"fingerprint_image").digest(2048), dtype="<u8") | np.uint64(1)
"""Of the words of a row."""
