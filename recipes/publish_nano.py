"""Write the averaged weights of a training run as the file that ships with the package.

    python recipes/publish_nano.py RUN/last.pt segment_anything/weights/nano.safetensors

Matrices and kernels as 16-bit floats, normalisation as it is. The file is then read back and compared.
"""

import sys
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


def main(run: Path, target: Path) -> None:
    """Write, read back, and say how far rounding moved the weights."""
    kept = torch.load(run, map_location="cpu", weights_only=True)
    average = {name: value for name, value in kept["average"].items() if not name.startswith("grouping.")}
    weights = shipped(average)
    target.parent.mkdir(parents=True, exist_ok=True)
    note = {"model": "nano", "steps": str(kept["step"]), "licence": "Apache-2.0"}
    target.write_bytes(save(weights, note))  # save_file would keep it from other users of the machine
    back = load_file(target)
    worst = max(float((back[name].float() - value.float()).abs().max()) for name, value in average.items())
    print(f"{target}: step {kept['step']}, {target.stat().st_size / 2**20:.1f} MiB, rounded by at most {worst:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
