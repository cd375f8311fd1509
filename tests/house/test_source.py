"""Rules every file keeps: no pickle, no path of somebody's machine, no room for leftovers, readable sizes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("models", "guides", "engines", "inference", "data", "recipes", "tests", "benchmarks")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TEXTS = sorted(
    path
    for room in (*ROOMS, "docs", "notebooks", ".ci")
    for path in (ROOT / room).rglob("*")
    if path.is_file() and path.suffix in {"", ".py", ".md", ".toml", ".json", ".ipynb", ".yaml", ".html", ".css"}
) + sorted(ROOT / file for file in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml"))

PICKLING = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
TORCH_PICKLING = {("torch", "save"), ("torch", "load"), ("eqx", "tree_serialise_leaves")}
MACHINE_PATH = re.compile(r"(?<![\w.:/$<)}\]])/(?:home|root|Users|work|tmp|mnt|media|var/folders)/[\w.-]+")
LARGEST = {"tests": 20 * 1024}
"""Bytes; 16 KiB where nothing is said. A table of cases may be longer than an idea."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def pickles(node: ast.AST) -> bool:
    """Whether this node imports a pickling library, or writes or reads pickles through another one."""
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] in PICKLING for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return not node.level and (node.module or "").split(".")[0] in PICKLING
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return (node.value.id, node.attr) in TORCH_PICKLING or node.attr in {"to_pickle", "read_pickle"}
    if isinstance(node, ast.keyword):
        return node.arg == "allow_pickle" and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    return False


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_pickle(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    assert not [getattr(node, "lineno", 0) for node in nodes if pickles(node)]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_no_path_of_a_machine(path: Path) -> None:
    assert not MACHINE_PATH.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_stay_readable(path: Path) -> None:
    assert path.stat().st_size <= LARGEST.get(name(path).split("/")[0], 16 * 1024), "split it: one idea per file"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_rooms_are_named_by_what_is_in_them(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "helper", "misc", "common", "tools"}


@pytest.mark.parametrize("path", [path for path in SOURCES if not name(path).startswith("tests")], ids=name)
def test_every_file_says_what_it_is(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)) or (path.name == "__init__.py" and not source)


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("import pickle", True),
        ("from joblib import dump", True),
        ("torch.save(x, f)", True),
        ("np.load(f, allow_pickle=True)", True),
        ("np.load(f, allow_pickle=False)", False),
        ("from .marshal import x", False),
    ],
)
def test_the_pickle_rule_sees_what_it_should(line: str, caught: bool) -> None:
    assert any(map(pickles, ast.walk(ast.parse(line)))) is caught


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ('open("/ho' + 'me/ann/x.txt")', True),
        ("cd /wo" + "rk/main", True),
        ("https://example.org/home/page", False),
        ("$(CURDIR)/tmp/x", False),
        ("/dev/full", False),
    ],
)
def test_the_path_rule_sees_what_it_should(text: str, caught: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is caught
