import multiprocessing
import os
import signal
import time

import pytest

from guidebook.data import BadData, Data, load
from guidebook.data.cache import built, cache_folder


def left(cache):
    """What is in the cache beside the locks."""
    return sorted(path.name for path in cache.iterdir() if path.name != ".locks")


def test_a_folder_is_built_once(tmp_path):
    calls = []
    for _ in range(2):
        built(tmp_path / "made", lambda making: calls.append((making / "file").write_text("x")))
    assert len(calls) == 1
    assert left(tmp_path) == ["made"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, BadData])
def test_an_interrupted_build_leaves_nothing(error, tmp_path):
    def build(making):
        (making / "half").write_text("x")
        raise error

    with pytest.raises(error):
        built(tmp_path / "made", build)
    assert left(tmp_path) == []


def test_a_full_disk_is_said(tmp_path):
    def build(making):
        raise OSError(28, "No space left on device")

    with pytest.raises(BadData, match="no room is left in the cache folder"):
        built(tmp_path / "made", build)


def _hangs(folder):
    def build(making):
        (making / "half").write_text("x")
        time.sleep(60)

    built(folder, build)


def test_a_killed_build_is_swept_by_the_next(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_hangs, args=(tmp_path / "made",))
    process.start()
    while not (tmp_path / "made.making" / "half").exists():
        time.sleep(0.01)
    built(tmp_path / "other", lambda making: None)
    assert left(tmp_path) == ["made.making", "other"]  # it still runs
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    built(tmp_path / "third", lambda making: None)
    assert left(tmp_path) == ["other", "third"]


def _builds(folder, log):
    def build(making):
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.2)
        (making / "file").write_text("whole")

    assert (built(folder, build) / "file").read_text() == "whole"


def test_builders_at_once_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    cache = tmp_path / "cache"
    cache.mkdir()
    processes = [context.Process(target=_builds, args=(cache / "made", tmp_path / "log")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_corpus_is_read_from_the_cache(write, lines, cache, monkeypatch):
    spec = Data(corpus=write(lines(300)))
    first = load(spec, cache=cache)
    monkeypatch.setattr("guidebook.data.corpus.write_tokenised", None)
    monkeypatch.setattr("guidebook.data.corpus.train_tokeniser", None)
    assert load(spec, cache=cache).fingerprint == first.fingerprint


@pytest.mark.parametrize("damage", ["cut", "missing", "no json"])
def test_a_damaged_cache_is_built_again(damage, write, lines, cache):
    spec = Data(corpus=write(lines(300)))
    first = load(spec, cache=cache)
    train = cache / f"corpus-{first.fingerprint}" / "train"
    expected = first.train[5].tolist()
    if damage == "cut":
        (train / "ids").write_bytes(b"\0")
    elif damage == "missing":
        (train / "offsets").unlink()
    else:
        (train / "split.json").write_text("{")
    assert load(spec, cache=cache).train[5].tolist() == expected


def test_an_interrupted_corpus_leaves_nothing(write, lines, cache):
    def interrupt(stage, done):
        if stage == "tokenising":
            raise KeyboardInterrupt

    spec = Data(corpus=write(lines(300)))
    with pytest.raises(KeyboardInterrupt):
        load(spec, cache=cache, progress=interrupt)
    assert not [name for name in left(cache) if not name.startswith("tokeniser-") or name.endswith(".making")]
    assert len(load(spec, cache=cache).train) > 200


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDEBOOK_CACHE", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("GUIDEBOOK_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "guidebook"
