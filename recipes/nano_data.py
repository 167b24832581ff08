"""The training data of `nano`: packed once into one memory-mapped file, cropped and mixed at random while training.

Every image keeps its objects as COCO run lengths, so that objects may overlap (a window in a facade, a jacket on a
person). A crop is aimed at one object and zoomed so that its size in the crop is drawn evenly on a logarithmic scale:
small data sets hold mostly middle-sized objects, users ask for all sizes.
"""

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco

SHARES = {
    "coco_cc": 0.40,
    "feral_cats": 0.22,
    "ccp_clothing": 0.10,
    "facade_ccby": 0.06,
    "taco_trash": 0.07,
    "dsb2018_nuclei": 0.05,
    "caltech101_cutouts": 0.04,
    "potted_plants": 0.02,
    "teacher_lecture": 0.02,
    "eggs": 0.01,
    "nuts": 0.01,
    "hyacinth_leaves": 0.01,
}
"""How often a crop comes from each set: by set, not by mask, or clothing and windows would fill the day."""

CUTOUTS = ("caltech101_cutouts", "noto_emoji_cutouts")
MIN_AREA_PX = 64
HELD_OUT_EVERY = 20
"""Each 20th image of a set is never trained on; `validation` reads them."""


@dataclass(frozen=True)
class PackedImage:
    """Where an image lies in the flat file, and the run lengths of its objects."""

    name: str
    offset: int
    height: int
    width: int
    objects: tuple[dict, ...]
    boxes: np.ndarray


def _polygons(folder: Path) -> dict[str, list]:
    """Exact, possibly overlapping, polygons by file name, where a set has them."""
    path = folder / "annotations.json"
    if not path.is_file():
        return {}
    data = json.loads(path.read_text())
    names = {image["id"]: image["file_name"].removeprefix("images/") for image in data["images"]}
    polygons: dict[str, list] = {}
    for annotation in data["annotations"]:
        polygons.setdefault(names[annotation["image_id"]], []).append(annotation["segmentation"])
    return polygons


def _objects(folder: Path, entry: dict, polygons: dict[str, list], height: int, width: int) -> list[dict]:
    """Run lengths of all objects of an image that are large enough."""
    masks = []
    name = Path(entry["image"]).name
    if name in polygons:
        for segmentation in polygons[name]:
            parts = [part for part in segmentation if len(part) >= 6]
            if parts:
                masks.append(coco.merge(coco.frPyObjects(parts, height, width)))
    else:
        with Image.open(folder / entry["mask"]) as file:
            labels = np.asarray(file)
        ids = [value for value in np.unique(labels) if value != 0]
        stack = [labels == value for value in ids]
        if len(ids) > 1 and "union" in entry.get("note", ""):
            stack.append(labels != 0)  # the whole person as well as each garment
        masks = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in stack]
    return [mask for mask in masks if coco.area(mask) >= MIN_AREA_PX]


def pack(source: Path, target: Path) -> None:
    """Write `target`.bin (all pixels) and `target`.pkl (the index) from the folders of `source`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    index: dict[str, list[PackedImage]] = {}
    offset = 0
    with open(target.with_suffix(".bin"), "wb") as pixels:
        for folder in sorted(path for path in source.iterdir() if (path / "index.jsonl").is_file()):
            polygons = _polygons(folder)
            for line in (folder / "index.jsonl").read_text().splitlines():
                entry = json.loads(line)
                if not entry.get("mask"):
                    continue
                mode = "RGBA" if entry["type"] == "cutout_alpha" else "RGB"
                with Image.open(folder / entry["image"]) as file:
                    image = np.asarray(file.convert(mode))[..., :3]
                height, width = image.shape[:2]
                objects = _objects(folder, entry, polygons, height, width)
                if not objects:
                    continue
                boxes = np.stack([coco.toBbox(mask) for mask in objects])
                packed = PackedImage(f"{folder.name}/{entry['image']}", offset, height, width, tuple(objects), boxes)
                index.setdefault(folder.name, []).append(packed)
                pixels.write(np.ascontiguousarray(image).tobytes())
                offset += image.size
    target.with_suffix(".pkl").write_bytes(pickle.dumps(index))


class Packed:
    """The packed file: images as arrays, split into training and held-out."""

    def __init__(self, target: Path) -> None:
        self.index: dict[str, list[PackedImage]] = pickle.loads(target.with_suffix(".pkl").read_bytes())
        self.pixels = np.memmap(target.with_suffix(".bin"), dtype=np.uint8, mode="r")

    def image(self, item: PackedImage) -> np.ndarray:
        """(H, W, 3) uint8."""
        size = item.height * item.width * 3
        return self.pixels[item.offset : item.offset + size].reshape(item.height, item.width, 3)

    def training(self, name: str) -> list[PackedImage]:
        """The images of a set that may be trained on."""
        return [item for i, item in enumerate(self.index[name]) if i % HELD_OUT_EVERY]

    def held_out(self, name: str) -> list[PackedImage]:
        """The images of a set that are never trained on."""
        return self.index[name][::HELD_OUT_EVERY]


@dataclass(frozen=True)
class CropOptions:
    """How crops are cut."""

    size: int = 256
    """Side of the crop in input pixels."""
    objects: int = 4
    """Objects prompted in each crop."""
    zoom: tuple[float, float] = (0.35, 2.2)
    """Smallest and largest scale from stored pixels to input pixels."""
    object_share: tuple[float, float] = (0.07, 0.95)
    """Longest side of the aimed-at object as a share of the crop, drawn log-uniformly."""
    paste: float = 0.2
    """Share of crops that get cut-outs pasted on."""


class Crops(torch.utils.data.IterableDataset):
    """An endless stream of (image (3, S, S) uint8, masks (M, S/2, S/2) bool, not padding (S, S) bool).

    M is twice the number of prompted objects: the first half is asked for, all of them teach the encoder to group.
    """

    def __init__(self, packed: Packed, options: CropOptions, seed: int) -> None:
        self.packed, self.options, self.seed = packed, options, seed
        self.names = [name for name in SHARES if name in packed.index]
        shares = np.array([SHARES[name] for name in self.names])
        self.shares = shares / shares.sum()
        self.items = {name: packed.training(name) for name in {*self.names, *CUTOUTS} if name in packed.index}

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        rng = np.random.default_rng(self.seed)
        while True:
            sample = self.draw(rng)
            if sample is not None:
                yield sample

    def draw(self, rng: np.random.Generator) -> tuple[torch.Tensor, ...] | None:
        """One crop, or None if too little of any object lies in it."""
        options = self.options
        items = self.items[self.names[rng.choice(len(self.names), p=self.shares)]]
        item = items[rng.integers(len(items))]
        size = options.size
        x, y, w, h = item.boxes[rng.integers(len(item.boxes))]
        low, high = np.log(options.object_share)
        zoom = np.exp(rng.uniform(low, high)) * size / max(w, h, 1.0)
        fit = size / max(item.height, item.width)  # the whole image in the crop; smaller would only add padding
        zoom = float(np.clip(zoom, max(options.zoom[0], 0.85 * fit), options.zoom[1]))
        stretch = np.exp(rng.uniform(-0.12, 0.12))
        crop_w, crop_h = size / (zoom * stretch), size / (zoom / stretch)  # in stored pixels
        left = self._offset(rng, x, w, crop_w, item.width)
        top = self._offset(rng, y, h, crop_h, item.height)
        region = (left, top, min(left + crop_w, item.width), min(top + crop_h, item.height))
        target = (  # even, so that a cell of the masks, two pixels, never straddles the border of the picture
            max(2, 2 * round((region[2] - left) / crop_w * size / 2)),
            max(2, 2 * round((region[3] - top) / crop_h * size / 2)),
        )
        image = np.zeros((size, size, 3), np.uint8)
        resized = Image.fromarray(self.packed.image(item)).resize(target, Image.Resampling.BILINEAR, box=region)
        image[: target[1], : target[0]] = resized
        masks = self._masks(rng, item, region, target)
        if rng.random() < options.paste:
            masks = self._paste(rng, image, masks, target)
        if not masks:
            return None
        if rng.random() < 0.5:
            width = target[0]  # padding stays at the right
            image[:, :width] = image[:, :width][:, ::-1]
            masks = [np.concatenate([m[:, : width // 2][:, ::-1], m[:, width // 2 :]], axis=1) for m in masks]
        image[: target[1], : target[0]] = _jitter(rng, image[: target[1], : target[0]])
        order = rng.permutation(len(masks))
        chosen = [masks[order[i % len(masks)]] for i in range(2 * options.objects)]
        padding = np.zeros((size, size), bool)
        padding[: target[1], : target[0]] = True
        return (
            torch.from_numpy(image.transpose(2, 0, 1).copy()),
            torch.from_numpy(np.stack(chosen)),
            torch.from_numpy(padding),
        )

    def _offset(self, rng: np.random.Generator, start: float, length: float, crop: float, whole: int) -> float:
        """Where the crop begins along one axis, so that the object lies in it, mostly."""
        if crop >= whole:
            return 0.0
        slack = 0.15 * length
        low = max(0.0, start + length - crop - slack)
        high = min(whole - crop, start + slack)
        if low > high:  # larger than the crop: somewhere on the object
            low, high = max(0.0, start - slack), min(whole - crop, start + length - crop + slack)
        return float(rng.uniform(min(low, high), max(low, high)))

    def _masks(self, rng: np.random.Generator, item: PackedImage, region: tuple, target: tuple) -> list[np.ndarray]:
        """Masks at half the crop's resolution of objects that mostly lie in it."""
        half = self.options.size // 2
        small = (max(1, target[0] // 2), max(1, target[1] // 2))
        x0, y0 = item.boxes[:, 0], item.boxes[:, 1]
        x1, y1 = x0 + item.boxes[:, 2], y0 + item.boxes[:, 3]
        seen_w = np.minimum(x1, region[2]) - np.maximum(x0, region[0])
        seen_h = np.minimum(y1, region[3]) - np.maximum(y0, region[1])
        share = np.clip(seen_w, 0, None) * np.clip(seen_h, 0, None) / np.maximum((x1 - x0) * (y1 - y0), 1)
        inside = np.flatnonzero(share > 0.35)
        rng.shuffle(inside)
        masks = []
        for index in inside[: 2 * self.options.objects]:
            whole = Image.fromarray(coco.decode(item.objects[index]) * np.uint8(255))
            crop = np.asarray(whole.resize(small, Image.Resampling.BILINEAR, box=region)) > 127
            if crop.sum() >= 16:
                mask = np.zeros((half, half), bool)
                mask[: small[1], : small[0]] = crop
                masks.append(mask)
        return masks

    def _paste(self, rng: np.random.Generator, image: np.ndarray, masks: list, target: tuple) -> list[np.ndarray]:
        """Paste one or two cut-outs on the image in place; the others' masks lose what is covered."""
        sources = [name for name in CUTOUTS if name in self.items]
        half = self.options.size // 2
        for _ in range(rng.integers(1, 3)) if sources else ():
            items = self.items[sources[rng.integers(len(sources))]]
            item = items[rng.integers(len(items))]
            scale = np.exp(rng.uniform(np.log(0.12), np.log(0.6))) * self.options.size / max(item.height, item.width)
            size = (max(8, int(item.width * scale)), max(8, int(item.height * scale)))
            if size[0] >= target[0] or size[1] >= target[1]:
                continue
            alpha = Image.fromarray(coco.decode(item.objects[0]) * np.uint8(255)).resize(
                size, Image.Resampling.BILINEAR
            )
            cut = Image.fromarray(self.packed.image(item)).resize(size, Image.Resampling.BILINEAR)
            x, y = (
                2 * int(rng.integers((target[0] - size[0]) // 2 + 1)),
                2 * int(rng.integers((target[1] - size[1]) // 2 + 1)),
            )
            weight = np.asarray(alpha, dtype=np.float32)[..., None] / 255
            window = image[y : y + size[1], x : x + size[0]]
            window[:] = window * (1 - weight) + _jitter(rng, np.asarray(cut)) * weight
            small = (
                np.asarray(alpha.resize((max(1, size[0] // 2), max(1, size[1] // 2)), Image.Resampling.BILINEAR)) > 127
            )
            mask = np.zeros((half, half), bool)
            mask[y // 2 : y // 2 + small.shape[0], x // 2 : x // 2 + small.shape[1]] = small
            masks = [left for left in (other & ~mask for other in masks) if left.sum() >= 16] + [mask]
        return masks


def _jitter(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Brightness, contrast, saturation and colour cast at random; now and then grey."""
    values = pixels.astype(np.float32)
    grey = values.mean(axis=2, keepdims=True)
    if rng.random() < 0.08:
        values = np.repeat(grey, 3, axis=2)
    else:
        values = grey + (values - grey) * rng.uniform(0.6, 1.4)
        values = values * rng.uniform(0.9, 1.1, size=3).astype(np.float32)
    mean = float(values.mean())
    values = (values - mean) * rng.uniform(0.7, 1.3) + mean * rng.uniform(0.7, 1.3)
    return np.clip(values, 0, 255).astype(np.uint8)


def validation(packed: Packed, names: tuple[str, ...], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Held-out images as they are predicted on: longest side to `size`, padded; masks at half of it."""
    for name in names:
        for item in packed.held_out(name):
            scale = size / max(item.height, item.width)
            target = (max(1, round(item.width * scale)), max(1, round(item.height * scale)))
            image = np.zeros((size, size, 3), np.uint8)
            image[: target[1], : target[0]] = Image.fromarray(packed.image(item)).resize(
                target, Image.Resampling.BILINEAR
            )
            masks = []
            for run in item.objects[:8]:
                small = Image.fromarray(coco.decode(run) * np.uint8(255))
                small = np.asarray(small.resize((target[0] // 2, target[1] // 2), Image.Resampling.BILINEAR)) > 127
                if small.sum() >= 40:
                    mask = np.zeros((size // 2, size // 2), bool)
                    mask[: small.shape[0], : small.shape[1]] = small
                    masks.append(mask)
            if masks:
                yield torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(np.stack(masks))
