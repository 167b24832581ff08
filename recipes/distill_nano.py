"""Distillation learns: an encoder of nano's kind that has seen nothing comes to see what nano sees, without any mask.

    python recipes/distill_nano.py --data ../shared/data/train/coco_cc --out runs/distilled

The bundled nano teaches a nano with a random encoder; the decoder is the teacher's. Promise: on held-out photos the
cosine similarity of the embeddings rises from about 0 to above 0.5 in 20 minutes on two cores, and box mIoU with the
student, 0.1 or less before, comes to at least half of the teacher's. Longer training goes on rising; a student of
another kind (vit_t taught by vit_b, vit_l or vit_h) is taught by the same command, `segment-anything distill`.
"""

import argparse
import time
from pathlib import Path

import torch

from segment_anything.build_sam import load_sam
from segment_anything.datasets import open_dataset
from segment_anything.modeling import Sam
from segment_anything.training.allocator import keep_freed_memory
from segment_anything.training.distill import adopt, distill
from segment_anything.training.measure import iou_of_boxes
from segment_anything.training.options import LoopOptions
from segment_anything.training.pretrain_options import DistillOptions


def box_miou(sam: Sam, data: Path, images: int = 20, objects: int = 8) -> float:
    """Mean IoU of masks for tight boxes on the last images by name, which distillation holds out."""
    dataset = open_dataset(data)
    held_out = sorted(range(len(dataset)), key=lambda index: dataset.samples[index].name)[-images:]
    values: list[float] = []
    sam.eval()
    for index in held_out:
        sample = dataset[index]
        with torch.inference_mode():
            embedding = sam.encode(sample.image)
        values += iou_of_boxes(sam, embedding, sample.masks[:objects]).tolist()
    return sum(values) / max(1, len(values))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/train/coco_cc"))
    parser.add_argument("--checkpoint", help="weights of the teacher; by default the bundled ones")
    parser.add_argument("--out", type=Path, default=Path("runs/distilled"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--image-size", type=int, default=256, help="side of the input; 512 is four times the work")
    given = parser.parse_args()
    started = time.perf_counter()
    keep_freed_memory()
    teacher = load_sam("nano", checkpoint=given.checkpoint, device="cpu", image_size=given.image_size)
    student = load_sam("nano", checkpoint="random", device="cpu", image_size=given.image_size)
    adopt(student, teacher)
    scores = {"teacher": box_miou(teacher, given.data), "student before": box_miou(student, given.data)}
    result = distill(
        teacher,
        student,
        given.data,
        given.out,
        DistillOptions(precision="bf16"),
        LoopOptions(epochs=given.epochs, progress=False),
    )
    best = load_sam("nano", checkpoint=str(result.checkpoint), device="cpu", image_size=given.image_size)
    scores["student after"] = box_miou(best, given.data)
    first, last = result.history[0], result.history[-1]
    print(f"cosine {first['valid_cosine']:.3f} -> {last['valid_cosine']:.3f}, ", end="")
    print(f"square error {first['valid_loss']:.3f} -> {last['valid_loss']:.3f}")
    print(", ".join(f"{name}: box mIoU {value:.3f}" for name, value in scores.items()))
    minutes, computed = (time.perf_counter() - started) / 60, time.process_time() / 60
    print(f"{minutes:.1f} minutes, {computed:.1f} of computing time")


if __name__ == "__main__":
    main()
