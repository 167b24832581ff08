"""Training samples for a `Sam`: images for an encoder that learns, embeddings from the disk for one that is frozen.

Small and picklable: worker processes get a copy of the source, not of the model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from segment_anything.datasets import Dataset, SampleError
from segment_anything.embedding import ImageEmbedding
from segment_anything.geometry import ImageGeometry
from segment_anything.training.augment import AugmentOptions, augment, augment_masks
from segment_anything.training.targets import Targets, limit_objects, make_targets
from segment_anything.utils.transforms import ResizeLongestSide


@dataclass(frozen=True)
class TrainingItem:
    """One image, ready for the model."""

    name: str
    image: torch.Tensor
    """(3, h, w) uint8 in input pixels, or the embedding (1, C, g, g)."""
    targets: Targets
    seed: int
    """Of the prompts that are drawn for this image in this epoch."""


@dataclass(frozen=True)
class Frame:
    """The sizes of a model that targets depend on."""

    image_size: int
    mask_side: int

    def targets(self, masks: np.ndarray, labels: np.ndarray, most: int, seed: tuple[int, ...]) -> Targets:
        """Targets of at most `most` objects of one image, drawn by lot."""
        chosen = limit_objects(len(masks), most, np.random.default_rng(seed))
        geometry = ImageGeometry((masks.shape[1], masks.shape[2]), self.image_size)
        return make_targets(masks[chosen], labels[chosen], geometry, self.mask_side)


@dataclass(frozen=True)
class ImageSource:
    """Reads, augments and resizes images."""

    dataset: Dataset
    frame: Frame
    augmentation: AugmentOptions
    objects: int
    seed: int

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """The image's path in the data set."""
        return self.dataset.samples[index].name

    def load(self, index: int, epoch: int) -> TrainingItem:
        """One image, differently augmented in every epoch."""
        place = (self.seed, epoch, index)
        sample = augment(self.dataset[index], self.augmentation, np.random.default_rng(place))
        resized = ResizeLongestSide(self.frame.image_size).apply_image(sample.image)
        return TrainingItem(
            name=sample.name,
            image=torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))),
            targets=self.frame.targets(sample.masks, sample.labels, self.objects, place),
            seed=prompt_seed(*place),
        )


@dataclass(frozen=True)
class View:
    """One image of the data set as it was embedded."""

    index: int
    """Of the sample in the data set."""
    number: int
    """0 for the image as it is, others are augmented."""
    size_hw: tuple[int, int]
    path: str = ""
    """File of the embedding."""

    def generator(self, seed: int) -> np.random.Generator:
        """What the view's augmentation is drawn from."""
        return np.random.default_rng((seed, self.number, self.index))


@dataclass(frozen=True)
class EmbeddingSource:
    """Reads embeddings, and moves the masks as the embedded image was moved; the image itself is not read again."""

    dataset: Dataset
    views: tuple[tuple[View, ...], ...]
    """For each usable sample its views; epochs take turns."""
    frame: Frame
    augmentation: AugmentOptions
    objects: int
    seed: int

    def __len__(self) -> int:
        return len(self.views)

    def name(self, index: int) -> str:
        """The image's path in the data set."""
        return self.dataset.samples[self.views[index][0].index].name

    def load(self, index: int, epoch: int) -> TrainingItem:
        """One embedding with its targets."""
        place = (self.seed, epoch, index)
        view = self.views[index][(epoch + index) % len(self.views[index])]
        sample = self.dataset.samples[view.index]
        masks, labels = sample.read_objects(view.size_hw, len(self.dataset.classes))
        if view.number:
            _, masks, labels = augment_masks(masks, labels, self.augmentation, view.generator(self.seed))
        return TrainingItem(
            name=sample.name,
            image=read_features(view.path),
            targets=self.frame.targets(masks, labels, self.objects, place),
            seed=prompt_seed(*place),
        )


def read_embedding(path: str) -> ImageEmbedding:
    """An embedding of the cache.

    Raises:
        SampleError: if the file is gone or damaged, with the cure.
    """
    try:
        return ImageEmbedding.load(path)
    except (OSError, ValueError) as error:
        raise damaged_embedding(path, error) from error


def damaged_embedding(path: str, error: Exception) -> SampleError:
    """What to say and do about an embedding that cannot be read."""
    return SampleError(f"the cached embedding {path} cannot be read ({error}); delete it and start again.")


def read_features(path: str) -> torch.Tensor:
    """The features (1, C, g, g) of an embedding of the cache, memory-mapped: pages that are not looked at stay on disk.

    Raises:
        SampleError: as `read_embedding`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            features: torch.Tensor = file.get_tensor("features")
    except (OSError, SafetensorError) as error:
        raise damaged_embedding(path, error) from error
    return features.float()


def prompt_seed(*place: int) -> int:
    """A seed for one image in one epoch of one run."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint32)[0])
