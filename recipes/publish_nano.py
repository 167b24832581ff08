"""Write the averaged weights of a training run as the file that ships with the package.

    python recipes/publish_nano.py RUN/last.pt segment_anything/weights/nano.safetensors
    python recipes/publish_nano.py RUN/last.pt FILE --mean START --share 0.5

Matrices and kernels as 16-bit floats, normalisation as it is. The file is then read back and compared. With `--mean`
the mean with weights published before: of a network that was trained on from another, it is often better than either
(https://arxiv.org/abs/2203.05482).
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save


def shipped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as they are stored: float16 where a tensor has two axes or more (random frequencies excepted)."""
    return {
        name: (value.half() if value.ndim > 1 and "gaussian" not in name else value).contiguous()
        for name, value in weights.items()
        if value.dtype != torch.bool
    }


def mean(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """`share` of the first and the rest of the second; counters of batches, which are integers, of the first."""
    return {
        name: value * share + others[name].float() * (1 - share) if value.is_floating_point() else value
        for name, value in weights.items()
    }


def main(run: Path, target: Path, other: Path | None, share: float) -> None:
    """Write, read back, and say how far rounding moved the weights."""
    kept = torch.load(run, map_location="cpu", weights_only=True)
    average = {name: value for name, value in kept["average"].items() if not name.startswith("grouping.")}
    if other is not None:
        average = mean(average, load_file(other), share)
    weights = shipped(average)
    target.parent.mkdir(parents=True, exist_ok=True)
    note = {"model": "nano", "steps": str(kept["step"]), "licence": "Apache-2.0"}
    target.write_bytes(save(weights, note))  # save_file would keep it from other users of the machine
    back = load_file(target)
    worst = max(float((back[name].float() - value.float()).abs().max()) for name, value in average.items())
    print(f"{target}: step {kept['step']}, {target.stat().st_size / 2**20:.1f} MiB, rounded by at most {worst:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="last.pt of a run")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--mean", type=Path, help="published weights to average with")
    parser.add_argument("--share", type=float, default=0.5, help="of the run in that mean")
    given = parser.parse_args()
    main(given.run, given.target, given.mean, given.share)
