"""Files of a run folder: whole or not at all, and what is wrong with them said in one sentence."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import save_file

from guidebook.inference import files
from guidebook.inference.files import Metrics, read_arrays, read_metrics, write, write_arrays
from guidebook.models.errors import BadInput, FailedRun

numbers = st.sampled_from([np.float32, np.float64, np.int32, np.int64]).flatmap(
    lambda kind: arrays(kind, array_shapes(min_dims=0, max_dims=3))
)


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=9), numbers, max_size=4), st.dictionaries(st.text(), st.integers() | st.text()))
def test_arrays_come_back_as_they_went(tmp_path_factory, tensors, about):
    path = tmp_path_factory.mktemp("arrays") / "x.safetensors"
    tensors.pop("__metadata__", None)
    write_arrays(path, tensors, about)
    found, beside = read_arrays(path)
    assert beside == about == read_arrays(path, arrays=False)[1]
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_infinity_stays_infinity_beside_the_arrays(tmp_path):
    write_arrays(tmp_path / "x", {}, {"best": float("inf")})
    assert read_arrays(tmp_path / "x")[1] == {"best": float("inf")}


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["os.replace", "os.fsync"])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch, call):
    path = tmp_path / "x"
    write(path, b"old")
    monkeypatch.setattr(files.os, call.removeprefix("os."), no_room)
    with pytest.raises(
        FailedRun, match=r"x could not be saved: No space left on device; what was saved before is untouched"
    ):
        write(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert path.read_bytes() == b"old"


def test_a_kill_in_the_middle_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_arrays(path, {"w": np.ones(3)})

    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", killed)
        with pytest.raises(SystemExit):
            write_arrays(path, {"w": np.zeros(3)})
    np.testing.assert_array_equal(read_arrays(path)[0]["w"], np.ones(3))
    write_arrays(path, {"w": np.full(3, 2.0)})
    np.testing.assert_array_equal(read_arrays(path)[0]["w"], np.full(3, 2.0))
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FailedRun, match="could not be saved"):
        write(tmp_path / "file" / "x", b"")
    assert (tmp_path / "file").read_text() == "x"


def test_files_have_the_rights_that_the_user_gives_new_ones(tmp_path):
    before = os.umask(0o022)
    try:
        write(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 40, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "weights.safetensors"
    write_arrays(path, {"w": np.ones(3)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=r"weights.safetensors is truncated or not a safetensors file"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"format": "2", "about": "{}"}, r"newer guidebook \(format 2\): upgrade"),
        ({"format": "two", "about": "{}"}, "truncated or not"),
        ({"format": "1", "about": "{"}, "truncated or not"),
        ({"format": "1"}, "truncated or not"),
        (None, "not written by guidebook"),
    ],
)
def test_a_file_of_others_or_of_the_future(tmp_path, metadata, said):
    path = tmp_path / "weights.safetensors"
    save_file({"w": np.ones(2)}, path, metadata)
    with pytest.raises(BadInput, match=said):
        read_arrays(path)


def test_a_missing_file_makes_the_run_incomplete(tmp_path):
    with pytest.raises(BadInput, match=r"is no complete run: state.safetensors is missing"):
        read_arrays(tmp_path / "state.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="folder"):
        read_arrays(tmp_path / "folder")


def lines(steps):
    return [{"kind": "train", "step": step, "objective": step / 3} for step in steps]


@settings(max_examples=40)
@given(st.integers(0, 400))
def test_metrics_cut_anywhere_read_as_the_lines_before(tmp_path_factory, keep):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    metrics = Metrics(path, keep_until=-1)
    for line in lines(range(5)):
        metrics.append(line)
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    whole = content[:keep].count(b"\n")
    found = read_metrics(path)
    assert found in (lines(range(whole)), lines(range(whole + 1)))


def test_metrics_past_the_checkpoint_are_dropped_on_resume(tmp_path):
    metrics = Metrics(tmp_path / "m", keep_until=-1)
    for line in lines([0, 10, 20]):
        metrics.append(line)
    again = Metrics(tmp_path / "m", keep_until=10)
    again.append(lines([15])[0])
    assert [line["step"] for line in read_metrics(tmp_path / "m")] == [0, 10, 15]


@pytest.mark.parametrize("rubbish", ["12", "[]", "null", '{"step": 3}', "\x00\xff", "{"])
def test_metrics_end_where_rubbish_begins(tmp_path, rubbish):
    good = json.dumps(lines([1])[0])
    (tmp_path / "m").write_text(f"{good}\n{rubbish}\n{good}\n", encoding="utf-8")
    assert read_metrics(tmp_path / "m") == lines([1])
    assert read_metrics(tmp_path / "none") == []


def test_metrics_on_a_full_disk(tmp_path, monkeypatch):
    metrics = Metrics(tmp_path / "m", keep_until=-1)
    monkeypatch.setattr(type(metrics.path), "open", no_room)
    with pytest.raises(FailedRun, match="could not be written: No space left"):
        metrics.append(lines([1])[0])
