"""Fit the head that predicts a mask's IoU to a finished `nano`, everything else left as it is.

    python recipes/calibrate_nano.py --start RUN.safetensors --cache CACHE/train --out nano.safetensors

While a network learns, its own masks get better under the head that judges them, and training crops are not whole
photographs. So the head, three small layers on one token, is fitted once more at the end: on photographs that may be
trained on, as the predictor sees them, prompted by a box or by up to five clicks in the middle of what is wrong, as
users and the evaluation do. The network answers each prompt once; what is learnt from is its token and the true IoU of
its masks, so the fitting itself takes seconds. A held-out twentieth of the photographs says what it brought.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco
from safetensors.torch import load_file, save

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nano_data import SHARES, Packed, PackedImage

from segment_anything.build_sam import load_sam
from segment_anything.masks import mask_to_box
from segment_anything.modeling import Sam
from segment_anything.prompts import Prompt
from segment_anything.simulate import next_click_farthest
from segment_anything.training.allocator import keep_freed_memory

HEAD = "mask_decoder.iou_prediction_head."
CLICKS = 5
MIN_AREA_PX = 200
"""Training photographs are stored at most 512 pixels long; the evaluation leaves out less than 400 of larger ones."""


@dataclass(frozen=True)
class Answers:
    """What the network answered to P prompts."""

    tokens: torch.Tensor
    """(P, C), what the head reads."""
    iou: torch.Tensor
    """(P, 4), true; NaN where the prompt did not ask for that mask."""

    @staticmethod
    def joined(parts: Sequence["Answers"]) -> "Answers":
        return Answers(torch.cat([part.tokens for part in parts]), torch.cat([part.iou for part in parts]))


def listen(sam: Sam) -> list[torch.Tensor]:
    """A list to which every IoU token that the decoder makes is added."""
    heard: list[torch.Tensor] = []
    predict = sam.mask_decoder.predict_iou

    def predict_iou(iou_token: torch.Tensor) -> torch.Tensor:
        heard.append(iou_token.detach().clone())
        return predict(iou_token)

    sam.mask_decoder.predict_iou = predict_iou  # type: ignore[method-assign]
    return heard


def play(sam: Sam, heard: list[torch.Tensor], image: np.ndarray, truths: np.ndarray) -> Iterator[Answers]:
    """Ask for the objects (N, H, W) bool of an image by their boxes, then by one to five clicks each."""
    embedding = sam.encode(image)

    def ask(prompts: Sequence[Prompt], three: bool) -> tuple[Answers, np.ndarray, torch.Tensor, torch.Tensor]:
        heard.clear()
        decoded = sam.decode(embedding, prompts, multimask_output=three)
        masks = decoded.masks(sam.mask_threshold).cpu().numpy()
        both, either = (masks & truths[:, None]).sum((2, 3)), (masks | truths[:, None]).sum((2, 3))
        iou = torch.full((len(prompts), 4), torch.nan)
        iou[:, slice(1, 4) if three else slice(0, 1)] = torch.from_numpy(both / np.maximum(either, 1)).float()
        return Answers(torch.cat(heard), iou), masks, decoded.iou_predictions, decoded.low_res_logits

    yield ask([Prompt.make(box=mask_to_box(truth)) for truth in truths], three=False)[0]
    points: list[list[tuple[int, int]]] = [[] for _ in truths]
    labels: list[list[int]] = [[] for _ in truths]
    before: list[np.ndarray | None] = [None] * len(truths)
    logits: list[np.ndarray | None] = [None] * len(truths)
    for _ in range(CLICKS):
        for index, truth in enumerate(truths):
            if before[index] is not None and np.array_equal(before[index], truth):
                return
            point, label = next_click_farthest(before[index], truth, points[index])
            points[index].append(point)
            labels[index].append(label)
        prompts = [
            Prompt.make(points=p, labels=label, mask_logits=mask)
            for p, label, mask in zip(points, labels, logits, strict=True)
        ]
        answers, masks, predicted, low_res = ask(prompts, three=True)
        yield answers
        best = predicted.argmax(dim=1).tolist()
        before = [masks[index, choice] for index, choice in enumerate(best)]
        logits = [low_res[index, choice : choice + 1].cpu().numpy() for index, choice in enumerate(best)]


def objects_of(item: PackedImage, rng: np.random.Generator, at_most: int) -> np.ndarray:
    """(N, H, W) bool of some objects that are large enough, drawn at random."""
    large = [run for run in item.objects if coco.area(run) >= MIN_AREA_PX]
    chosen = rng.permutation(len(large))[:at_most]
    return np.array([coco.decode(large[index]).astype(bool) for index in chosen])


@torch.no_grad()
def collect(sam: Sam, packed: Packed, images: int, objects: int, seed: int, part: str, sets: Sequence[str]) -> Answers:
    """Answers on photographs of a part, drawn by set as training draws crops."""
    rng = np.random.default_rng(seed)
    names = [name for name in SHARES if name in packed.index and name in sets]
    shares = np.array([SHARES[name] for name in names])
    items = {name: packed.training(name) if part == "training" else packed.held_out(name) for name in names}
    heard = listen(sam)
    found: list[Answers] = []
    for count in range(images):
        of_set = items[names[rng.choice(len(names), p=shares / shares.sum())]]
        item = of_set[rng.integers(len(of_set))]
        truths = objects_of(item, rng, objects)
        if len(truths):
            found += play(sam, heard, packed.image(item), truths)
        if (count + 1) % 50 == 0:
            print(f"{part}: {count + 1} of {images} photographs", flush=True)
    return Answers.joined(found)


def errors(predicted: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
    """(P,) absolute error for the mask that would be chosen: the single one, or the most promising of three."""
    asked = ~iou.isnan()
    chosen = predicted.detach().masked_fill(~asked, -torch.inf).argmax(dim=1, keepdim=True)
    return (predicted.gather(1, chosen) - iou.gather(1, chosen)).abs()[:, 0]


def fit(head: torch.nn.Module, answers: Answers, steps: int, lr: float, seed: int) -> None:
    """Least absolute error of all masks, those chosen counted once more: choosing the largest favours overestimates."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    asked = ~answers.iou.isnan()
    for _ in range(steps):
        rows = torch.randint(len(answers.tokens), (512,), generator=generator)
        noise = 0.05 * torch.randn(len(rows), answers.tokens.shape[1], generator=generator)
        predicted, iou = head(answers.tokens[rows] + noise), answers.iou[rows]
        each = (predicted - iou.nan_to_num()).abs()[asked[rows]].mean()
        loss = each + errors(predicted, iou).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def main() -> None:
    """Collect, fit, compare on held-out photographs, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, default=Path("segment_anything/weights/nano.safetensors"))
    parser.add_argument("--cache", type=Path, default=Path("runs/cache/train"), help="packed data of recipes/nano.py")
    parser.add_argument("--out", type=Path, default=Path("runs/nano_calibrated.safetensors"))
    parser.add_argument("--images", type=int, default=700, help="photographs to learn from")
    parser.add_argument("--held-out", type=int, default=120, help="photographs to test on")
    parser.add_argument("--objects", type=int, default=5, help="of each photograph")
    parser.add_argument("--sets", nargs="+", default=list(SHARES), help="of the packed data")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    keep_freed_memory()
    sam, packed = load_sam("nano", checkpoint=given.start, device="cpu"), Packed(given.cache)
    kept = given.out.with_suffix(".answers.pt")
    if kept.is_file():
        parts = [Answers(*pair) for pair in torch.load(kept, weights_only=True)]
    else:
        counts = {"training": given.images, "held out": given.held_out}
        parts = [
            collect(sam, packed, n, given.objects, given.seed + k, name, given.sets)
            for k, (name, n) in enumerate(counts.items())
        ]
        given.out.parent.mkdir(parents=True, exist_ok=True)
        torch.save([(part.tokens, part.iou) for part in parts], kept)
    learnt, tested = parts
    head = sam.mask_decoder.iou_prediction_head
    head.requires_grad_(True)
    before = errors(head(tested.tokens), tested.iou).mean().item()
    fit(head, learnt, given.steps, given.lr, given.seed)
    after = [errors(head(part.tokens), part.iou).mean().item() for part in (tested, learnt)]
    print(f"error of the predicted IoU, held out: {before:.4f} -> {after[0]:.4f} (learnt from: {after[1]:.4f})")
    weights = load_file(given.start)
    for name, value in head.state_dict().items():
        weights[HEAD + name] = value.to(weights[HEAD + name].dtype).contiguous()
    given.out.write_bytes(save(weights, {"model": "nano", "licence": "Apache-2.0"}))
    print(f"{given.out}: written")


if __name__ == "__main__":
    main()
