"""How much memory there is, and keeping what was freed in the process, so that no step faults its pages in again.

glibc hands blocks above a threshold back to the system as soon as they are freed. A step whose tensors pass
20 MB then pays for zeroed pages each time: up to half of its time at batch 64.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

VARIABLE = "GUIDEBOOK_KEEP_MEMORY"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h> of glibc


def keep_freed_memory() -> bool:
    """Asks glibc to keep freed blocks up to 1 GiB; whether it did.

    For the whole process and for good; resident memory stays at its peak. `GUIDEBOOK_KEEP_MEMORY=0` switches
    it off, and where the C library is another one nothing happens.
    """
    if os.environ.get(VARIABLE, "1") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 2**30)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def available() -> int | None:
    """Bytes that the machine can still give: on Linux those free or reclaimable, elsewhere all there are, else None."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
