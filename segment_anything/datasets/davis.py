"""DAVIS: frames of films with label maps, every value an object (https://davischallenge.org).

    JPEGImages/480p/bear/00000.jpg      Annotations/480p/bear/00000.png      ImageSets/2017/val.txt (names of films)

The resolution folder and the lists may be missing. Only frames with a label map count, at the smallest
resolution.
"""

from collections.abc import Iterator
from pathlib import Path

from segment_anything.datasets.base import Dataset, Sample, Skipped, normal_split
from segment_anything.datasets.objects import LabelMap

_RESOLUTIONS = ("480p", "1080p", "Full-Resolution")


def looks_like_davis(root: Path) -> bool:
    """Whether a folder holds `JPEGImages`, and `Annotations` with a folder of label maps for each film."""
    return (root / "JPEGImages").is_dir() and any(_label_maps(root))


def open_davis(root: Path) -> Dataset:
    """The data set of a DAVIS folder.

    Raises:
        ValueError: if there are no such folders.
    """
    split_of = _splits(root)
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for labels in _label_maps(root):
        inside = labels.relative_to(root / "Annotations").with_suffix(".jpg")
        image = root / "JPEGImages" / inside
        if image.is_file():
            samples.append(Sample(image, LabelMap(labels), str(inside), split_of.get(labels.parent.name)))
        else:
            skipped.append(Skipped(str(inside), f"{inside}: the frame of this label map is missing."))
    if not samples and not skipped:
        raise ValueError(f"{root}: no DAVIS frames, expected JPEGImages/.../NAME.jpg and Annotations/.../NAME.png")
    return Dataset(root, "davis", tuple(samples), skipped=tuple(skipped))


def _label_maps(root: Path) -> Iterator[Path]:
    """Label maps in order of film and frame."""
    maps = root / "Annotations"
    home = next((maps / name for name in _RESOLUTIONS if (maps / name).is_dir()), maps)
    yield from sorted(home.glob("*/*.png"))


def _splits(root: Path) -> dict[str, str]:
    """The split of each film, from lists whose lines are a film's name or begin with the path of a frame."""
    split_of: dict[str, str] = {}
    for file in sorted((root / "ImageSets").glob("**/*.txt")):
        split = normal_split(file.stem)
        for line in file.read_text().splitlines() if split else ():
            first = line.split()[0] if line.split() else ""
            film = Path(first).parent.name if Path(first).suffix else first
            if film and split:
                split_of[film] = split
    return split_of
