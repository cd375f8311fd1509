import subprocess
import sys
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


BUILDER = """
import sys, time
from pathlib import Path
from guidebook.data.cache import built

def build(making):
    (making / "file").write_text("whole")
    with Path(sys.argv[2]).open("a") as log: log.write("built\\n")
    time.sleep(float(sys.argv[3]))

print((built(Path(sys.argv[1]), build) / "file").read_text())
"""


def builder(folder, log, seconds):
    """Another process that builds `folder`, taking so long."""
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(folder), str(log), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_build_is_swept_by_the_next(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    with builder(cache / "made", tmp_path / "log", 60) as process:
        while not (tmp_path / "log").exists():
            time.sleep(0.01)
        built(cache / "other", lambda making: None)
        assert left(cache) == ["made.making", "other"]  # it is still at work
        process.kill()
    built(cache / "third", lambda making: None)
    assert left(cache) == ["other", "third"]


def test_builders_at_once_build_once(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    processes = [builder(cache / "made", tmp_path / "log", 0.5) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["whole\n"] * 3
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
