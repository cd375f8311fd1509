"""`docs/write_your_own_pair.md` runs as it stands: its files, its Python and its commands."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from guidebook.inference import cli

TEXT = (Path(__file__).parents[1] / "docs" / "write_your_own_pair.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
FILES = dict(re.findall(r"^## [^\n]*`(\w+\.py)`$.*?^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
SCRIPTS = [code for code in PYTHON if code not in FILES.values()]
COMMANDS = re.findall(r"^guidebook .*$", TEXT, re.MULTILINE)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder as the reader has it: the files of the page, and its data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    exec(SCRIPTS[0], {})
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture
def guidebook(monkeypatch, capsys):
    def run(command):
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        assert exit_.value.code == 0, printed.err
        return printed.out

    return run


def test_the_page_is_short_and_its_blocks_are_found():
    assert list(FILES) == ["sensors_pyro.py", "sensors_numpyro.py", "sensors.py"]
    assert len(SCRIPTS) == 2
    assert [shlex.split(command)[1] for command in COMMANDS] == ["fit", "evaluate", "diagnose"]
    assert len(TEXT.splitlines()) <= 125


def test_the_commands(desk, guidebook):
    fit, evaluate, diagnose = COMMANDS
    guidebook(fit)
    assert "active units" in guidebook(evaluate)
    found = json.loads(guidebook(f"{evaluate} --json"))
    assert found["sentences"] == 40
    assert found["kl"] > 1.0  # two factors that five sensors show clearly
    guidebook(diagnose)
    written = {path.name for path in (desk / "runs" / "sensors").iterdir()}
    assert {"recipe.toml", "weights.safetensors", "metrics.jsonl", "posterior.nc", "report.html"} <= written


def test_the_python(desk, capsys):
    names = {}
    exec(SCRIPTS[1], names)
    run, found = names["run"], names["found"]
    assert "ELBO" in capsys.readouterr().out
    valid = run.history("valid")
    assert len(valid) == 40
    assert valid["elbo"].iloc[-1] > valid["elbo"].iloc[0] + 1.0
    assert found.active_units == 2
    other = names["evaluate"](run, particles=100, engine="pyro")
    assert np.isclose(other.elbo, found.elbo, rtol=0.03)  # other draws of the same posterior


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
def test_the_native_files(desk, guidebook, engine):
    """Quickly, and the same as the story: a bound that rises."""
    source = f"sensors_{engine}.py:PAIR"
    guidebook(
        f"guidebook fit {source} fit.epochs=15 fit.optimiser.learning_rate=0.02 --data sensors.npz --out runs/{engine}"
    )
    lines = [json.loads(line) for line in (desk / "runs" / engine / "metrics.jsonl").read_text().splitlines()]
    elbo = [line["elbo"] for line in lines if line["kind"] == "valid"]
    assert elbo[-1] > elbo[0] + 0.5
    found = json.loads(guidebook(f"guidebook evaluate runs/{engine} --pair {source} --particles 20 --json"))
    assert found["sites"]["z"]["kl_from"] == "analytic"


SEQUENCES = (Path(__file__).parents[1] / "docs" / "sequences.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
def test_the_page_of_sequences(engine, tmp_path, monkeypatch, guidebook):
    monkeypatch.chdir(tmp_path)
    story, data = re.findall(r"^```python\n(.*?)^```$", SEQUENCES, re.MULTILINE | re.DOTALL)
    (tmp_path / "level.py").write_text(story)
    exec(data, {})
    fit, evaluate = re.findall(r"^guidebook .*$", SEQUENCES, re.MULTILINE)
    guidebook(fit.replace("--engine pyro", f"--engine {engine}"))
    found = json.loads(guidebook(f"{evaluate} --json"))
    steps = np.load("levels.npz")["x_lengths"].sum()
    assert 0 < found["steps"] < steps / 4
    assert found["elbo"]["total_step"] < found["filtered"]["total_step"] < -1.4


PRETRAINED = (Path(__file__).parents[1] / "docs" / "pretrained.md").read_text(encoding="utf-8")


def test_the_page_of_pretrained_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PRETRAINED, re.MULTILINE | re.DOTALL)
    names = {}
    exec(code, names)
    assert len(names["load_priors"]("priors.safetensors")) == 6
    assert len(PRETRAINED.splitlines()) <= 60
