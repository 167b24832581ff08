"""Tells the C library to keep freed memory for the next training step instead of giving it back to the system.

glibc maps every large tensor anew and faults in its pages one by one; a training step on a CPU spends a quarter of its
time on that (docs/log.md). The price is that large blocks of many sizes leave holes: not where blocks of a large
encoder are computed again to save memory (ViT-B with low rank: a peak of 8.9 GiB instead of 3.7, no faster). Nothing
to do on GPUs and with other C libraries.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # the parameters' numbers in malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Set it for this process, until it ends; returns whether there was anything to set."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
