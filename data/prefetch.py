"""Batches made ahead in a thread, while the engine computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Made = TypeVar("Made")

_POLL = 0.05  # seconds until a thread whose consumer has left notices


def prefetched(make: Callable[[int], Made], steps: Iterable[int], depth: int = 4) -> Iterator[Made]:
    """make(step) for each step, in order, at most `depth` ahead.

    An exception of `make` is raised where its batch would have come. The thread ends when the consumer
    stops early.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    left = threading.Event()
    thread = threading.Thread(target=_work, args=(make, steps, ready, left), name="guidebook-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise item
            yield item
    finally:
        left.set()
        thread.join()


def _work(make, steps, ready: queue.Queue, left: threading.Event) -> None:
    try:
        for step in steps:
            if not _put(ready, left, ("made", make(step))):
                return
        _put(ready, left, ("end", None))
    except BaseException as error:  # whatever it is, it belongs to the consumer
        _put(ready, left, ("error", error))


def _put(ready: queue.Queue, left: threading.Event, item: tuple[str, Any]) -> bool:
    """Whether the consumer was still there to take it."""
    while not left.is_set():
        try:
            ready.put(item, timeout=_POLL)
            return True
        except queue.Full:
            continue
    return False
