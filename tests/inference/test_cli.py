"""The command line: exit statuses, `--json` alone on standard output, and words a person can use."""

from __future__ import annotations

import json
import sys
import types

import pytest

from guidebook.inference import fit, terminal
from guidebook.inference import progress as display
from guidebook.models.errors import FailedRun, Interrupted

COMMANDS = ("list", "fit", "evaluate", "diagnose", "sample", "reconstruct", "interpolate", "judge", "convert")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    fit(tiny, "fit.epochs=2", out=out, progress=False)
    return out


def one_object(result):
    """What `--json` promises: one object, one line, nothing else."""
    assert result.status == 0, result.err
    assert result.out.count("\n") == 1
    return json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_list_names_what_there_is(cli):
    found = one_object(cli("list", "--json"))
    assert {"sentence_vae", "language_model"} <= found["pairs"].keys()
    assert "quickstart" in found["recipes"]
    assert {"lstm", "gru", "transformer"} == found["specs"]["decoders"].keys() == found["specs"]["encoders"].keys()
    assert found["engines"].keys() == {"pyro", "numpyro"}
    plain = cli("list")
    assert plain.status == 0
    assert all(word in plain.out for word in ("pairs", "sentence_vae", "quickstart", "cyclical", "engines"))


def test_fit_prints_one_object_and_its_progress_elsewhere(cli, tiny, tmp_path):
    result = cli("fit", tiny, "fit.max_steps=8", "--out", tmp_path / "run", "--seed", "3", "--json")
    found = one_object(result)
    assert found["run"] == str(tmp_path / "run")
    assert (found["pair"], found["engine"], found["valid"]["step"]) == ("sentence_vae", "pyro", 8)
    assert result.err.splitlines()[-1] == f"all steps done; the run is in {tmp_path / 'run'}"
    assert "seed = 3" in (tmp_path / "run" / "recipe.toml").read_text()


def test_fit_without_json_leaves_standard_output_alone(cli, tiny, tmp_path):
    result = cli("fit", tiny, "fit.max_steps=1", "--out", tmp_path / "run")
    assert (result.status, result.out) == (0, "")
    again = cli("fit", tiny, "fit.max_steps=1", "--out", tmp_path / "run", "--resume")
    assert again.status == 0


@pytest.mark.parametrize("engine", [None, "pyro", "numpyro"])
def test_evaluate(cli, folder, engine):
    extra = () if engine is None else ("--engine", engine)
    found = one_object(cli("evaluate", folder, "--particles", "3", *extra, "--json"))
    for key in ("sentences", "tokens", "elbo", "reconstruction", "kl", "kl_per_dimension", "iw_nll", "particles", "perplexity",
                "perplexity_unit", "mi", "mi_ceiling", "active_units", "kl_aggregate"):  # fmt: skip
        assert key in found, key
    assert (found["sentences"], found["particles"], found["engine"]) == (7, 3, engine or "pyro")


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "RUN", "-n", "2"),
        ("sample", "RUN", "-n", "2", "--strategy", "beam", "--width", "2"),
        ("sample", "RUN", "-n", "2", "--temperature", "0.7", "--top-k", "3", "--top-p", "0.9"),
        ("reconstruct", "RUN", "-n", "2"),
        ("reconstruct", "RUN", "a b c", "d e", "--latent", "draw"),
        ("interpolate", "RUN", "a b", "c d e", "--steps", "3"),
        ("interpolate", "RUN"),
        ("evaluate", "RUN", "--particles", "2", "--split", "valid", "--max-sentences", "3"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_commands_on_a_run_speak_to_people_and_to_programs(cli, folder, arguments):
    arguments = [str(folder) if argument == "RUN" else argument for argument in arguments]
    plain = cli(*arguments)
    assert (plain.status, plain.err) == (0, "")
    assert plain.out.strip()
    assert one_object(cli(*arguments, "--json"))


def test_convert(cli, folder, tmp_path):
    pytest.importorskip("jax")
    found = one_object(cli("convert", folder, "--engine", "numpyro", "--out", tmp_path / "new", "--json"))
    assert found == {"run": str(tmp_path / "new"), "engine": "numpyro"}
    plain = cli("convert", tmp_path / "new", "--engine", "pyro")
    assert plain.out == f"{tmp_path / 'new-pyro'}\n"


def test_diagnose(cli, folder):
    found = one_object(cli("diagnose", folder, "--json"))
    assert found
    assert (folder / "posterior.nc").is_file()
    assert (folder / "report.html").is_file()


NATIVE = """
import numpy as np
import pyro, torch
from pyro.distributions import Normal
from guidebook.guides import Pair

def model(batch, data_size):
    with pyro.plate("data", data_size, subsample_size=len(batch["x"])):
        z = pyro.sample("z", Normal(torch.zeros(len(batch["x"])), 1.0))
        pyro.sample("x", Normal(z, 1.0), obs=batch["x"])

def guide(batch, data_size):
    slope = pyro.param("slope", torch.zeros(()))
    with pyro.plate("data", data_size, subsample_size=len(batch["x"])):
        pyro.sample("z", Normal(slope * batch["x"], 0.7))

PAIR = Pair(model=model, guide=guide, name="mine", engine="pyro", data={"x": np.arange(40.0, dtype=np.float32) / 20})
"""


def test_a_pair_in_a_file_is_fitted_and_judged(cli, tmp_path):
    source = tmp_path / "my_pair.py"
    source.write_text(NATIVE, encoding="utf-8")
    pair = f"{source}:PAIR"
    assert (
        one_object(cli("fit", pair, "fit.epochs=2", "fit.batch_size=8", "--out", tmp_path / "run", "--json"))["pair"]
        == "mine"
    )
    found = one_object(cli("evaluate", tmp_path / "run", "--pair", pair, "--particles", "2", "--json"))
    assert (found["tokens"], found["sentences"]) == (None, 4)
    for command in ("sample", "reconstruct", "interpolate"):
        refused = cli(command, tmp_path / "run", "--pair", pair)
        assert refused.status == 2
        assert "whose data are arrays" in refused.err
        without = cli(command, tmp_path / "run")
        assert without.status == 2
        assert "add --pair FILE.py:NAME" in without.err
    refused = cli("convert", tmp_path / "run", "--pair", pair, "--engine", "numpyro", "--out", tmp_path / "new")
    assert refused.status == 2
    assert "written in pyro; it does not run on numpyro" in refused.err


def test_without_a_command_there_is_help(cli):
    for arguments in ((), ("--help",)):
        result = cli(*arguments)
        assert (result.status, result.err) == (0, "")
        assert result.out.startswith("Usage: guidebook")
        assert all(command in result.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(cli, command):
    result = cli(command, "--help")
    assert (result.status, result.err) == (0, "")
    assert "--json" in result.out


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (FailedRun("two\nlines"), 1, "two lines"),
        (Interrupted("at step 3"), 130, "at step 3"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "x/y"), 1, "x/y: No space left on device"),
    ],
)
def test_what_ends_a_command_early_is_one_line_and_a_status(cli, monkeypatch, raised, status, said):
    def broken():
        raise raised

    monkeypatch.setitem(sys.modules, "guidebook.inference.catalogue", types.SimpleNamespace(catalogue=broken))
    result = cli("list")
    assert (result.status, result.err, result.out) == (status, f"guidebook: {said}\n", "")


def test_a_reader_that_leaves_is_no_error(cli, monkeypatch):
    def broken():
        raise BrokenPipeError

    monkeypatch.setitem(sys.modules, "guidebook.inference.catalogue", types.SimpleNamespace(catalogue=broken))
    monkeypatch.setattr(
        "sys.stderr", types.SimpleNamespace(close=lambda: None, write=lambda text: None, flush=lambda: None)
    )
    assert cli("list").status == 0


def test_numbers_that_json_cannot_hold_are_null(capsys):
    terminal.print_json({"a": float("inf"), "b": [float("nan"), 1.5], "c": {"d": (float("-inf"), "x", None, True)}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": [None, "x", None, True]}}


def test_folder_names_are_not_markup(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    out = tmp_path / "[bold]run[x]"
    fit(tiny, "fit.max_steps=1", out=out, progress=True)
    assert capsys.readouterr().err.count("[bold]run[x]") >= 2


def test_the_display_is_chosen_by_the_terminal(monkeypatch):
    with display.display(None) as show:
        assert isinstance(show, display.Plain)
    with display.display(False) as show:
        assert type(show) is display.Display
    with display.display(True) as show:
        assert isinstance(show, display.Terminal)
