"""Which images a run is about, and where the results of each go."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segment_anything.images import list_images


@dataclass(frozen=True)
class Job:
    """One image of a run."""

    image: Path
    name: str
    """Path of its results below the output folder, without a suffix: `holiday/beach`."""


def find_jobs(sources: Sequence[str], out: Path) -> list[Job]:
    """The images that files, folders and patterns mean, each once; results of earlier runs are left out.

    Raises:
        FileNotFoundError: if something that is no pattern does not exist.
        ValueError: if no image is found, or the results of two would go to the same place.
    """
    named: dict[Path, Path] = {}
    for source in sources:
        root = _root(source)
        for image in list_images(source):
            if image == Path(source) or not _is_result(image, out):
                named.setdefault(image, image.relative_to(root))
    if not named:
        raise ValueError(f"no images in {', '.join(sources)}.")
    stems = Counter(name.with_suffix("") for name in named.values())
    jobs = [
        Job(image, str(name if stems[name.with_suffix("")] > 1 else name.with_suffix("")))
        for image, name in named.items()
    ]
    twice = [name for name, count in Counter(job.name for job in jobs).items() if count > 1]
    if twice:
        raise ValueError(
            f"several images would be written as {twice[0]}. Give the folder above them and a pattern, such as "
            "'photos/**/*.jpg', so that results keep the folders."
        )
    return jobs


def _is_result(image: Path, out: Path) -> bool:
    """Whether an image is a picture or a mask that an earlier run wrote, for results kept beside their images."""
    inside = out.resolve() in image.resolve().parents
    return inside and (image.name.endswith("_overlay.png") or image.with_name("metadata.csv").exists())


def _root(source: str) -> Path:
    """The folder that results are named from: the given one, that of a file, or what precedes a pattern."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or not re.search(r"[*?\[]", source):
        return path.parent
    fixed = []
    for part in path.parts:
        if re.search(r"[*?\[]", part):
            break
        fixed.append(part)
    return Path(*fixed)
