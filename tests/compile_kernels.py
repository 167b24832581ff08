"""Compile every kernel for GPUs that are not here, as `test_kernels_compile.py` asks; prints a JSON line for each.

In a process of its own, as Triton's interpreter and its compiler exclude each other.
"""

import json
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from segment_anything.modeling.cuda import attention_kernels, mask_kernels
from segment_anything.modeling.cuda.grid_attention import choose_launch, power_of_two, split_width

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FLOATS = {"scale", "ratio_input", "ratio_y", "ratio_x", "threshold", "offset"}


def compiled(
    name: str, kernel: object, capability: int, tensors: dict[str, str], warps: int, stages: int, **fixed: object
):
    """Compile a kernel and say what it needs; integers that are always 1 are `fixed`, as at run time."""
    names = kernel.arg_names
    signature = {
        arg: "constexpr" if arg in fixed else tensors.get(arg, "fp32" if arg in FLOATS else "i32") for arg in names
    }
    aligned = {(names.index(arg),): [["tt.divisibility", 16]] for arg in tensors}
    source = ASTSource(kernel, signature, {(names.index(arg),): value for arg, value in fixed.items()}, aligned)
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages})
    text = made.asm["ptx"]
    products = "wgmma" if "wgmma.mma_async" in text else "mma" if "mma.sync" in text else "none"
    print(json.dumps({"kernel": name, "shared_bytes": made.metadata.shared, "tensor_cores": products}), flush=True)


def attention(capability: int, kind: str, side: int, width: int) -> None:
    """Both kernels of attention over a grid of 64 x 64 (`side` 64) or in windows."""
    plan, (d0, d1) = choose_launch((side, side), TYPES[kind]), split_width(width)
    is_cut = side != 64
    fixed = {
        "SH": side,
        "SW": side,
        "WIDTH": width,
        "D0": d0,
        "D1": d1,
        "PRECISION": "ieee" if kind == "fp32" else "tf32",
    }
    if not is_cut:
        fixed |= {"windows_y": 1, "windows_x": 1}
    pointers = dict.fromkeys(("qkv", "tables", "padding", "scores", "out"), f"*{kind}")
    name = f"{kind} {side} {width}"
    scores = attention_kernels.relative_scores_kernel
    compiled(
        f"scores {name}", scores, capability, pointers_of(scores, pointers), 4, 2, LINE=power_of_two(side), **fixed
    )
    kernel = attention_kernels.attention_kernel
    fixed |= {
        "BLOCK_Q": plan.queries,
        "BLOCK_K": plan.key_block(side),
        "LINES": 0 if plan.keys == 0 else power_of_two(2 * side),
        "CUT": is_cut,
        "PAD": is_cut,
    }
    tensors = pointers_of(kernel, pointers)
    compiled(f"attention {name}", kernel, capability, tensors, plan.warps, plan.stages, **fixed)


def pointers_of(kernel: object, pointers: dict[str, str]) -> dict[str, str]:
    """Those that a kernel has."""
    return {name: kind for name, kind in pointers.items() if name in kernel.arg_names}


def main() -> None:
    """Compile for the capability given, in the types given."""
    capability, kinds = int(sys.argv[1]), sys.argv[2:]
    for kind in kinds:
        for side in (64, 14):
            for width in (64, 80):
                attention(capability, kind, side, width)
    tensors = {"logits": "*fp32", "areas": "*i32", "boxes": "*i32"}
    compiled("masks", mask_kernels.measure_kernel, capability, tensors, 4, 2, TILE_H=32, TILE_W=64, ROWS=4, PATCH=16)


if __name__ == "__main__":
    main()
