"""What a result was measured on, and from which commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def device() -> str:
    """The kind of machine, e.g. "2 cores, Intel(R) Xeon(R) Processor, AMX bfloat16"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    amx = ", AMX bfloat16" if any("amx_bf16" in line for line in lines if line.startswith("flags")) else ""
    return f"{os.cpu_count()} cores, {next(names, platform.machine())}{amx}"


def commit() -> str:
    """The commit that is checked out, "+" where the tree differs from it."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return found.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def resident(field: str) -> float:
    """MiB of this process: `VmRSS` now, or `VmHWM`, the peak of it (Linux).

    Not `ru_maxrss`, which a process started from a larger one inherits from it.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
