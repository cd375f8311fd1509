"""What all tests share: a busy machine is no failure of a property, and JAX compiles in haste.

Most of the time of these tests is the compilation of small programs that run once. Without its fusion emitters and its
optimisations XLA compiles them four times as fast; what one test compiled, the next reads from a cache.
"""

import ctypes
import gc
import os
import sys
import time
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

gc.set_threshold(20_000, 10, 5)

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_multi_thread_eigen=false --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="module", autouse=True)
def _forgotten():
    """What JAX compiled for one file goes with it, and what was freed, to the system: both grow to gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def pytest_collection_modifyitems(items):
    """What is slow comes last."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_runtest_setup(item):
    until = os.environ.get("GUIDEBOOK_SLOW_UNTIL")
    if until and item.get_closest_marker("slow") and time.time() > float(until):
        pytest.skip("slow, and the time for such tests is over (GUIDEBOOK_SLOW_UNTIL)")
