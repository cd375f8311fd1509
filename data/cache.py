"""Folders of derived files, made once, whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import BadData

try:
    import fcntl
except ImportError:  # not on Windows: two builders may then do the same work, and the first to finish wins
    fcntl = None

_MAKING = ".making"
_LOCKS = ".locks"


def cache_folder(cache: str | Path | None = None) -> Path:
    """`cache`, else GUIDEBOOK_CACHE, else the platform's folder. Made if need be; BadData if that fails."""
    folder = Path(cache or os.environ.get("GUIDEBOOK_CACHE") or _platform_cache()).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def built(folder: Path, build: Callable[[Path], None], whole: Callable[[Path], bool] = Path.exists) -> Path:
    """`folder`, filled by `build(temporary folder)` if it is not `whole` yet.

    The temporary folder is renamed only when `build` returned, so `folder` never holds half of anything;
    what a killed builder left behind is removed by the next one. Whoever comes second waits. BadData when
    the disk refuses.
    """
    if whole(folder):
        return folder
    try:
        with _locked(folder):
            if not whole(folder):
                _sweep(folder)
                _build(folder, build)
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    making = folder.with_name(folder.name + _MAKING)
    making.mkdir()
    try:
        build(making)
        for path in making.rglob("*"):
            _to_disk(path)
        if folder.exists():  # damaged, or it would not be built again
            shutil.rmtree(folder)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _to_disk(path: Path) -> None:
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _sweep(folder: Path) -> None:
    """Remove what killed builders left: a temporary folder whose lock nobody holds."""
    for making in folder.parent.glob("*" + _MAKING):
        name = making.name.removesuffix(_MAKING)
        if name == folder.name:
            shutil.rmtree(making)
            continue
        with contextlib.suppress(OSError), _locked(making.with_name(name), wait=False):
            shutil.rmtree(making)


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of `folder`. The system lets go of it when the process ends, however it ends."""
    locks = folder.parent / _LOCKS
    locks.mkdir(exist_ok=True)
    with (locks / folder.name).open("wb") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _platform_cache() -> Path:
    if sys.platform == "darwin":
        return Path("~/Library/Caches/guidebook")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")) / "guidebook"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "guidebook"


def _unwritable(folder: Path, error: OSError) -> BadData:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BadData(
            f"no room is left in the cache folder {folder}: free some, or set GUIDEBOOK_CACHE to another disk"
        )
    return BadData(
        f"the cache folder {folder} cannot be written ({error.strerror or error}): set GUIDEBOOK_CACHE to one that can"
    )
