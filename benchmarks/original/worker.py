"""One package under measurement, in a process of its own: reads tasks from stdin, answers on stdout, a JSON line each.

Which package it is `benchmarks/compare_original.py` says. Linux only: peaks are the kernel's high-water mark of
resident memory, reset before each task.
"""

import ctypes
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[1:1] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from amg_memory import resident_bytes  # noqa: E402
from peers import ALIAS, AroundNano, OnnxWorker, TransformersWorker  # noqa: E402
from tasks import Worker  # noqa: E402

PEERS = {"transformers": TransformersWorker, "onnxruntime": OnnxWorker, ALIAS: AroundNano}


def run(worker: Worker, task: str, arguments: dict[str, Any], times: int) -> dict[str, Any]:
    """Run a task some times: seconds of each, peak of resident memory over that before, and what the last returned."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tasks freed and the allocator kept would hide a peak
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds, result = [], None
    for _ in range(times):
        start = time.perf_counter()
        result = getattr(worker, task)(**arguments)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_bytes": resident_bytes("VmHWM") - before, "result": result}


def main() -> None:
    """Serve until stdin closes."""
    *arguments, package = sys.argv[1:]
    worker = PEERS[package](*arguments) if package in PEERS else Worker(*arguments, package)
    print(json.dumps(worker.about()), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(worker, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
