"""The images of a data set as items that a protocol measures one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from segment_anything.datasets import Dataset, Sample, SegmentationSample, Skipped, SkippedSamples, open_dataset
from segment_anything.datasets.objects import LabelMap


@dataclass(frozen=True)
class Image:
    """One image with its true masks, not yet read."""

    sample: Sample
    class_count: int

    @property
    def name(self) -> str:
        """The image's path inside the data set."""
        return self.sample.name

    def read(self) -> SegmentationSample:
        """Image, masks and classes.

        Raises:
            SampleError: if it cannot be used.
        """
        return self.sample.read(self.class_count)


def images_of(dataset: Dataset) -> Sequence[Image]:
    """The items of a data set, in its order."""
    return [Image(sample, len(dataset.classes)) for sample in dataset.samples]


def open_images(path: str | Path, format: str = "auto", split: str | None = None) -> Sequence[Image]:
    """The images of a data set in any format that `datasets` reads, or of a DAVIS-style folder.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if the format is unknown or the data set is empty.
    """
    root = Path(path)
    if format == "davis" or (format == "auto" and looks_like_davis(root)):
        return images_of(open_davis(root))
    return images_of(open_dataset(root, format, split))


def looks_like_davis(root: Path) -> bool:
    """Whether a folder holds `JPEGImages` and `Annotations` with a folder for each film."""
    return (root / "JPEGImages").is_dir() and any(_davis_maps(root))


def open_davis(root: Path) -> Dataset:
    """Frames of films with label maps, as DAVIS keeps them (https://davischallenge.org): every value is an object.

        JPEGImages/480p/bear/00000.jpg      Annotations/480p/bear/00000.png

    The resolution folder may be missing. Only frames with a label map count.

    Raises:
        ValueError: if there are no such folders.
    """
    samples, skipped = [], []
    for labels in _davis_maps(root):
        inside = labels.relative_to(root / "Annotations").with_suffix(".jpg")
        image = root / "JPEGImages" / inside
        if image.is_file():
            samples.append(Sample(image, LabelMap(labels), str(inside)))
        else:
            skipped.append(Skipped(str(inside), f"{inside}: the frame of this label map is missing."))
    SkippedSamples(len(samples), skipped).check()
    if not samples:
        raise ValueError(f"{root}: no DAVIS frames, expected JPEGImages/.../NAME.jpg and Annotations/.../NAME.png")
    return Dataset(root, "davis", tuple(samples), skipped=tuple(skipped))


def _davis_maps(root: Path) -> Iterator[Path]:
    """Label maps in order, of the films of one resolution: 480p where there are several."""
    maps = root / "Annotations"
    home = next((maps / name for name in ("480p", "Full-Resolution", "1080p") if (maps / name).is_dir()), maps)
    yield from sorted(home.glob("*/*.png"))
