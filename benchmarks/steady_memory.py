"""Whether memory stays where it was over many images: automatic masks and a click on each of 200, of changing size.

    python benchmarks/steady_memory.py --images 200

Linux only. Images differ in size, so that what is kept by shape would show; resident memory is read after each image,
and the highest of the last quarter is compared with the highest of the second: what grows with images keeps growing.
"""

import argparse
import ctypes
import gc
import sys

import numpy as np
from amg_memory import resident_bytes

from segment_anything import SamAutomaticMaskGenerator, SamPredictor, load_sam

MIB = 2**20


def resident_after_each(images: int, model: str, checkpoint: str | None, points_per_side: int) -> list[int]:
    """Bytes of resident memory after each image."""
    sam = load_sam(model, checkpoint=checkpoint, device="cpu")
    generator = SamAutomaticMaskGenerator(sam, points_per_side, pred_iou_thresh=0.0, output_mode="coco_rle")
    predictor = SamPredictor(sam)
    rng = np.random.default_rng(0)
    resident = []
    for _ in range(images):
        height, width = (int(side) for side in rng.integers(200, 1200, 2))
        blocks = rng.integers(0, 256, (height // 50 + 1, width // 50 + 1, 3), dtype=np.uint8)
        image = blocks.repeat(50, axis=0).repeat(50, axis=1)[:height, :width]
        generator.generate(image)
        predictor.set_image(image)
        predictor.predict(np.array([[width / 2, height / 2]]), np.array([1]))
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # so that what the allocator keeps for later does not count
        resident.append(resident_bytes("VmRSS"))
    return resident


def main() -> None:
    """Measure; exit status 1 if memory grows by more than a hundredth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", default=None, help='a file, or "random"')
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--points-per-side", type=int, default=4)
    args = parser.parse_args()
    resident = resident_after_each(args.images, args.model, args.checkpoint, args.points_per_side)
    quarter = max(1, len(resident) // 4)
    before, after = max(resident[quarter : 2 * quarter]), max(resident[-quarter:])
    print("| images | resident after the first, MiB | highest of the second quarter | highest of the last | growth |")
    print("|---|---|---|---|---|")
    growth = after / before - 1
    print(f"| {len(resident)} | {resident[0] / MIB:.0f} | {before / MIB:.0f} | {after / MIB:.0f} | {growth:+.1%} |")
    sys.exit(int(growth > 0.01))


if __name__ == "__main__":
    main()
