"""Bad input, each through the command line: one line, the right status, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import signal
import tomllib

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from guidebook.guides import PAIRS
from guidebook.inference import files, fit
from guidebook.inference import progress as display
from guidebook.inference.files import read_arrays
from guidebook.models.errors import BadInput


@pytest.fixture(scope="module")
def original(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("original") / "run"
    fit(tiny, "fit.epochs=1", out=out, progress=False)
    return out


@pytest.fixture
def run(original, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture
def refused(cli):
    """Runs a command that must fail, and returns what it said."""

    def run(*arguments, status=2):
        result = cli(*arguments)
        assert result.out == ""
        *before, last = result.err.splitlines()
        assert last.startswith("guidebook: "), result.err
        assert result.status == status, result.err
        assert "Traceback" not in result.err
        assert not before or status != 2, result.err
        return last.removeprefix("guidebook: ")

    return run


# --- text ---

TEXTS = {
    "missing": (None, "there is no file"),
    "empty": (b"", "nothing in it"),
    "blank": (b"\n\n  \n", "no sentence|empty|word"),
    "binary": (b"a b\n\x00\x01\x02\x03\n", "binary|text"),
    "not UTF-8": ("a b\nd\xe9j\xe0 vu\n".encode("latin-1"), "UTF-8"),
    "one word": (b"a a a\n" * 30, "distinct words"),
    "a line of a million words": (b"a b\n" + b"a " * 1_000_000 + b"\n", "1,?000,?000 words|max_words|words"),
    "gzip cut short": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "gz|cannot|truncated|cut"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_cannot_be_read(refused, tiny, tmp_path, kind):
    content, said = TEXTS[kind]
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    message = refused("fit", tiny, f"data.corpus={text}", "--out", tmp_path / "out")
    assert "text.txt" in message or kind == "one word", message
    assert any(word in message for word in said.split("|")) or _matches(said, message), message
    assert not (tmp_path / "out").exists()


def _matches(pattern, message):
    import re

    return re.search(pattern, message) is not None


def test_empty_lines_are_no_sentences(cli, tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\na b c\n   \n" * 20, encoding="utf-8")
    result = cli("fit", tiny, f"data.corpus={text}", "fit.max_steps=1", "--out", tmp_path / "out")
    assert result.status == 0, result.err
    assert "20 " in result.err.splitlines()[0]


def test_a_text_too_small_to_be_split_says_which_split_is_empty(refused, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a b c\nb c d\n", encoding="utf-8")
    message = refused("fit", "quickstart", f"data.corpus={text}", "data.tokeniser.min_count=1", "fit.batch_size=1",
                      "--out", tmp_path / "out")  # fmt: skip
    assert "split of" in message
    assert "would be empty" in message
    assert not (tmp_path / "out").exists()


# --- recipes and settings ---


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["fit.epoch=3"], "did you mean 'epochs'"),
        (["model.decoder.kind=lstn"], "did you mean 'lstm'"),
        (["fit.epochs=three"], "integer"),
        (["fit.optimiser.learning_rate=-1"], "fit.optimiser.learning_rate = -1 is wrong"),
        (["fit.batch_size=41"], "batch_size = 41 is larger than the training split, which has 40"),
        (["--engine", "jax"], "engine = 'jax' is unknown"),
        (["--device", "gpu"], "there is no device 'gpu'"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["--data", "x.npz"], "unknown key 'data.file'"),
        (["fit.max_steps"], "is no setting"),
        (["divergnce.kind=kl"], "did you mean 'divergence'"),
        (["kind=kl"], "unknown key 'kind'"),
        (["model.kind=vae"], "unknown key 'model.kind'"),
        (["data.tokeniser={kind='bpe', size=10}"], "size|260|ids"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_wrong_setting(refused, tiny, tmp_path, settings, said):
    message = refused("fit", tiny, *settings, "--out", tmp_path / "out")
    assert any(word in message for word in said.split("|")), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fti"], "No such command 'fti'"),
        (["fit"], "Missing argument 'RECIPE'"),
        (["fit", "quikstart"], "did you mean 'quickstart'"),
        (["fit", "none.toml"], "no recipe file none.toml"),
        (["fit", "none.py:PAIR"], "there is no file none.py"),
        (["evaluate"], "Missing argument 'RUN'"),
        (["evaluate", "nowhere"], "there is no run folder nowhere"),
        (["sample", "nowhere"], "there is no run folder nowhere"),
        (["convert", "nowhere"], "Missing option '--engine'"),
        (["evaluate", ".", "--particles", "0"], "Invalid value for '--particles'"),
        (["list", "--what"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line(refused, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "RUN", "--split", "dev"], "there is no split 'dev'"),
        (["reconstruct", "RUN", "--split", "dev"], "there is no split 'dev'"),
        (["reconstruct", "RUN", "  "], "has no word"),
        (["evaluate", "RUN", "--device", "cuda:x"], "there is no device 'cuda:x'"),
        (["evaluate", "RUN", "--engine", "jax"], "there is no engine 'jax'"),
        (["sample", "RUN", "--temperature", "-1"], "temperature"),
        (["sample", "RUN", "--top-p", "1.5"], "top_p"),
        (["sample", "RUN", "--strategy", "best"], "'best' is not one of"),
        (["interpolate", "RUN", "a", "b", "--steps", "1"], "Invalid value for '--steps'"),
        (["convert", "RUN", "--engine", "jax"], "there is no engine 'jax'"),
        (["fit", "RECIPE", "--out", "RUN"], "already holds a run"),
        (["fit", "RECIPE", "--out", "RUN", "--resume", "fit.seed=2"], "fit.seed is 0 in"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_question_to_a_run(refused, original, tiny, arguments, said):
    before = {path.name: path.read_bytes() for path in original.iterdir() if path.is_file()}
    names = {"RUN": original, "RECIPE": tiny}
    assert said in refused(*(names.get(argument, argument) for argument in arguments))
    assert {path.name: path.read_bytes() for path in original.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
def test_cuda_where_there_is_none(refused, tiny, tmp_path, engine):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    if torch.cuda.is_available() or jax.default_backend() == "gpu":
        pytest.skip("there is a GPU here")
    message = refused("fit", tiny, "--engine", engine, "--device", "cuda", "--out", tmp_path / "out")
    assert "finds no GPU here: use --device cpu" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("engine", "library"), [("pyro", "pyro"), ("pyro", "torch"), ("numpyro", "numpyro"), ("numpyro", "equinox")]
)
def test_an_engine_that_is_not_installed_names_its_extra(refused, tiny, tmp_path, monkeypatch, engine, library):
    load = importlib.import_module

    def absent(name, *rest):
        if name == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    message = refused("fit", tiny, "--engine", engine, "--out", tmp_path / "out")
    assert (
        message == f"the engine {engine!r} needs {library}, which is not installed: pip install 'guidebook[{engine}]'"
    )
    assert not (tmp_path / "out").exists()


# --- run folders ---

READERS = [
    ["evaluate", "RUN", "--particles", "2"],
    ["sample", "RUN"],
    ["reconstruct", "RUN"],
    ["convert", "RUN", "--engine", "numpyro"],
]


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
@pytest.mark.parametrize("name", ["recipe.toml", "weights.safetensors", "tokeniser.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_run(refused, run, command, name, damage):
    path = run / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60])
    message = refused(*(run if argument == "RUN" else argument for argument in command))
    assert name in message
    assert not (run.parent / "run-numpyro").exists()


@pytest.mark.parametrize("keep", [0, 1, 20, 30])
def test_a_recipe_cut_anywhere(refused, run, keep):
    path = run / "recipe.toml"
    path.write_bytes(path.read_bytes()[:keep])
    assert "recipe.toml" in refused("sample", run)


def test_a_run_can_be_judged_without_its_checkpoint_and_metrics(cli, run):
    (run / "state.safetensors").unlink()
    (run / "metrics.jsonl").write_bytes(b'{"kind": "tra')
    result = cli("evaluate", run, "--particles", "2")
    assert result.status == 0, result.err


@pytest.mark.parametrize("name", ["weights.safetensors", "state.safetensors", "tokeniser.json"])
def test_a_run_of_a_newer_version(refused, tiny, run, name):
    path = run / name
    if path.suffix == ".json":
        path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    else:
        save_file(load_file(path), path, {"format": "2", "about": "{}"})
    if name.startswith("weights"):
        with (run / "recipe.toml").open("a") as file:
            file.write("[a_table_of_the_future]\n")
    command = ["fit", tiny, "fit.epochs=2", "--resume", "--out", run] if name.startswith("state") else ["sample", run]
    message = refused(*command)
    assert "newer" in message
    assert "format 2" in message
    assert name in message


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("encoder.embedding"), "lack 'encoder.embedding'"),
        (lambda a: a.update({"encoder.embedding": np.zeros((2, 2), np.float32)}), "has shape (2, 2)"),
        (lambda a: a.update({"encoder.more": np.zeros(2, np.float32)}), "hold 'encoder.more'"),
        (
            lambda a: a["encoder.embedding"].__setitem__(0, np.nan),
            "'encoder.embedding' holds values that are not finite",
        ),
    ],
    ids=["missing", "misshapen", "extra", "not finite"],
)
def test_weights_that_do_not_fit(refused, run, engine, change, said):
    arrays, about = read_arrays(run / "weights.safetensors")
    change(arrays)
    files.write_arrays(run / "weights.safetensors", arrays, about)
    message = refused("evaluate", run, "--engine", engine, "--particles", "2")
    assert said in message


@pytest.mark.parametrize(("about", "said"), [({}, "lacks data_size"), ([], "is damaged")])
def test_a_header_that_says_too_little(refused, run, about, said):
    arrays, _ = read_arrays(run / "weights.safetensors")
    files.write(run / "weights.safetensors", save(arrays, {"format": "1", "about": json.dumps(about)}))
    assert said in refused("evaluate", run, "--particles", "2")


def test_data_that_have_changed_since(refused, tmp_path):
    """Else a test split could hold rows that were trained on."""
    x = (np.random.default_rng(0).random((60, 4)) < 0.5).astype(np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    settings = ("model.prior.dim=2", "model.decoder.hidden=[3]", "guide.encoder.hidden=[3]", "guide.features=3")
    vae, out = PAIRS["vae"], tmp_path / "run"
    fit(vae, *settings, "fit.epochs=1", data=tmp_path / "x.npz", out=out, progress=False)
    np.savez(tmp_path / "x.npz", x=x[::-1][:50])
    assert "have changed since it was fitted" in refused("evaluate", out, "--particles", "2")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": np.zeros((30, 4))}, "an array x of numbers, (rows, D), and the data have none"),
        ({"x": np.zeros((30, 2, 2))}, "one of float64 and shape"),
        ({"x": np.full((30, 4), 7.0)}, "for x from 0 to 1, and here it goes from 7 to 7"),
    ],
    ids=["no x", "images", "not in 0 to 1"],
)
def test_arrays_that_a_vae_cannot_read(tmp_path, arrays, said):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(BadInput) as caught:
        fit(PAIRS["vae"], "fit.batch_size=4", data=tmp_path / "x.npz", out=tmp_path / "run", progress=False)
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_is_a_file(refused, tiny, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert "is a file" in refused("fit", tiny, "--out", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_that_cannot_be_written(refused, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    message = refused("fit", tiny, "--out", tmp_path / "file" / "out", status=1)
    assert "could not be saved" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_up(refused, tiny, tmp_path, monkeypatch):
    """The checkpoint before stays whole, and the run can go on once there is room."""
    replace, writes = os.replace, []

    def full(source, target):
        writes.append(target)
        if len(writes) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        message = refused("fit", tiny, "fit.checkpoint_seconds=1e-9", "--out", out, status=1)
    assert "No space left on device; what was saved before is untouched" in message
    assert read_arrays(out / "state.safetensors")[1]["step"] >= 1
    assert not list(out.glob(".*"))
    fit(tiny, "fit.checkpoint_seconds=1e-9", out=out, resume=True, progress=False)


def test_control_c(refused, cli, tiny, tmp_path, monkeypatch):
    def step(self, number):
        if number == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(display.Plain, "step", step, raising=False)
        message = refused("fit", tiny, "--out", tmp_path / "out", status=130)
    assert message == f"interrupted at step 3; go on with --resume --out {tmp_path / 'out'}"
    assert read_arrays(tmp_path / "out" / "state.safetensors")[1]["step"] == 3
    assert cli("fit", tiny, "--out", tmp_path / "out", "--resume").status == 0


def test_control_c_before_the_first_step_leaves_no_run(refused, tiny, tmp_path, monkeypatch):
    def stop(self, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(display.Plain, "note", stop, raising=False)
    assert refused("fit", tiny, "--out", tmp_path / "out", status=130) == "interrupted"
    assert not (tmp_path / "out").exists()


def test_a_run_that_blows_up(refused, tiny, tmp_path, engine):
    wild = "fit.optimiser={kind='sgd', learning_rate=1e29, clip=inf}"
    message = refused("fit", tiny, wild, "--engine", engine, "--out", tmp_path / "out", status=1)
    assert "is not finite; the checkpoint of step 0 is kept" in message
    assert "site" in message
    assert tomllib.loads((tmp_path / "out" / "recipe.toml").read_text())["fit"]["optimiser"]["learning_rate"] == 1e29
