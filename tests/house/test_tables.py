"""The generated tables: they show what the results hold, and `--check` sees when they do not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tables.py"
QUALITY = {
    "recipe": "ptb_vae",
    "engine": "pyro",
    "seed": 1,
    "device": "cpu",
    "seconds": 1234.0,
    "epochs": 40,
    "metrics": {"elbo": -101.234, "iw_nll": 100.56, "kl": 0.5, "active_units": 3},
    "published": {"metric": "IW-NLL", "value": 101.4, "source": "Li et al. 2019"},
    "gate": {"metric": "IW-NLL", "bound": "<= 102", "met": True},
}
SPEED = {"device": "2 cores", "measurements": [{"name": "step", "ours_ms": 100, "hand_ms": 125.0}]}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, pointed at a small project of its own."""
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "README.md").write_text("<!-- table: quality -->\n<!-- /table -->\n", encoding="utf-8")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", results)
    return module


def run(tables: ModuleType, *arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        tables.main(list(arguments))
    return int(end.value.code or 0)


def test_check_fails_until_the_tables_are_renewed(tables: ModuleType) -> None:
    (tables.RESULTS / "ptb_vae.pyro.1.json").write_text(json.dumps(QUALITY), encoding="utf-8")
    assert run(tables, "--check") == 1
    assert run(tables) == 0
    assert run(tables, "--check") == 0
    row = (tables.ROOT / "README.md").read_text(encoding="utf-8").splitlines()[3]
    assert "`ptb_vae` | pyro | 1 | -101.2 | 100.6 | – | 0.50 | – | 3 |" in row
    assert "IW-NLL 101.4 (Li et al. 2019)" in row
    assert "IW-NLL <= 102 met" in row


def test_ratios_come_from_the_times_of_one_run(tables: ModuleType) -> None:
    (tables.RESULTS / "speed.cpu.json").write_text(json.dumps(SPEED), encoding="utf-8")
    assert "| step | ms | 100 | – | 125.0 | – | – | – | 0.80 | – | – | – | – | – |" in tables.speed()


def test_a_broken_result_is_named(tables: ModuleType) -> None:
    (tables.RESULTS / "half.pyro.1.json").write_text("{", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"half\.pyro\.1\.json"):
        tables.main([])
