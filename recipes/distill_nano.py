"""Distillation learns: an encoder of nano's kind that has seen nothing comes to see what nano sees, without any mask.

    python recipes/distill_nano.py --data ../shared/data/train/coco_cc --out runs/distilled

The bundled nano teaches a nano with a random encoder; the decoder is the teacher's. Printed are, on held-out photos and
before and after, the cosine similarity of the embeddings, and how well the student's masks for tight boxes agree with
the truth and with the teacher's masks. What was measured stands in docs/training.md; longer training goes on rising.
A student of another kind (vit_t by vit_b, vit_l or vit_h) is taught by the same code: `segment-anything distill`.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from segment_anything.build_sam import load_sam
from segment_anything.datasets import SegmentationSample, open_dataset
from segment_anything.masks import mask_to_box
from segment_anything.modeling import Sam
from segment_anything.prompts import Prompt
from segment_anything.training.allocator import keep_freed_memory
from segment_anything.training.distill import adopt, distill
from segment_anything.training.options import LoopOptions
from segment_anything.training.precision import fastest_precision
from segment_anything.training.pretrain_options import DistillOptions

IMAGES, OBJECTS = 40, 8


def held_out(data: Path) -> list[SegmentationSample]:
    """The last images by name, which distillation holds out, with some of their objects."""
    dataset = open_dataset(data)
    last = sorted(range(len(dataset)), key=lambda index: dataset.samples[index].name)[-IMAGES:]
    samples = [dataset[index] for index in last]
    return [SegmentationSample(s.image, s.masks[:OBJECTS], s.labels[:OBJECTS], s.name) for s in samples if len(s.masks)]


def drawn(sam: Sam, samples: Sequence[SegmentationSample]) -> list[np.ndarray]:
    """For every image the masks (N, H, W) bool that the model draws for the tight boxes of its objects."""
    sam.eval()
    result = []
    with torch.inference_mode():
        for sample in samples:
            boxes = [Prompt.make(box=mask_to_box(mask)) for mask in sample.masks]
            decoded = sam.decode(sam.encode(sample.image), boxes, multimask_output=False)
            result.append(decoded.masks()[:, 0].numpy())
    return result


def mean_iou(masks: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Over all objects of all images; two empty masks agree."""
    values = []
    for a, b in zip(masks, others, strict=True):
        union = (a | b).sum((1, 2))
        values.append(np.where(union > 0, (a & b).sum((1, 2)) / np.maximum(union, 1), 1.0))
    return float(np.concatenate(values).mean())


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/train/coco_cc"))
    parser.add_argument("--checkpoint", help="weights of the teacher; by default the bundled ones")
    parser.add_argument("--out", type=Path, default=Path("runs/distilled"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--image-size", type=int, default=256, help="side of the input; 512 is four times the work")
    given = parser.parse_args()
    keep_freed_memory()
    teacher = load_sam("nano", checkpoint=given.checkpoint, device="cpu", image_size=given.image_size)
    student = load_sam("nano", checkpoint="random", device="cpu", image_size=given.image_size)
    adopt(student, teacher)
    samples = held_out(given.data)
    truth, taught, before = [sample.masks for sample in samples], drawn(teacher, samples), drawn(student, samples)
    started, computed = time.perf_counter(), time.process_time()
    result = distill(
        teacher,
        student,
        given.data,
        given.out,
        DistillOptions(precision=fastest_precision()),
        LoopOptions(epochs=given.epochs, progress=False),
    )
    minutes, computing = (time.perf_counter() - started) / 60, (time.process_time() - computed) / 60
    best = load_sam("nano", checkpoint=str(result.checkpoint), device="cpu", image_size=given.image_size)
    after, first, last = drawn(best, samples), result.history[0], result.history[-1]
    print("| held-out photos | before | after | teacher |\n|---|---|---|---|")
    print(f"| cosine of embeddings | {first['valid_cosine']:.3f} | {last['valid_cosine']:.3f} | 1 |")
    print(f"| square error of embeddings | {first['valid_loss']:.3f} | {last['valid_loss']:.3f} | 0 |")
    for title, wanted in (("box mIoU with the truth", truth), ("box mIoU with the teacher's masks", taught)):
        scores = [mean_iou(masks, wanted) for masks in (before, after, taught)]
        print(f"| {title} | " + " | ".join(f"{score:.3f}" for score in scores) + " |")
    print(f"\n{minutes:.1f} minutes of distillation, {computing:.1f} of computing time")


if __name__ == "__main__":
    main()
