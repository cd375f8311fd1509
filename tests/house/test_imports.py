"""Who imports whom: models ← guides ← engines ← inference; data imports none; frameworks only in an engine.

Read from the source, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "models": {"models"},
    "guides": {"models", "guides"},
    "data": {"data"},
    "engines": {"models", "guides", "engines"},
    "inference": {"models", "guides", "engines", "data", "inference", "recipes"},
    "recipes": set(),
}
FRAMEWORKS = {
    "pyro": {"torch", "pyro"},
    "numpyro": {"jax", "jaxlib", "numpyro", "equinox", "optax"},
    "huggingface": {"torch", "transformers"},
}
ANY_FRAMEWORK = {"flax", "tensorflow"}.union(*FRAMEWORKS.values())
SOURCES = sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


class Import(NamedTuple):
    line: int
    target: str
    relative: bool


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file; our own as a path below the root ("models.spec"), wherever it stands."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, relative=False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield Import(node.lineno, node.module or "", relative=False)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            yield from (Import(node.lineno, target, relative=True) for target in targets(node, base))


def targets(node: ast.ImportFrom, base: tuple[str, ...]) -> list[str]:
    """`from .x import y` names x; `from . import y` names y where that is a file or a folder."""
    if node.module:
        return [".".join((*base, node.module))]
    return [".".join((*base, alias.name)) if exists((*base, alias.name)) else ".".join(base) for alias in node.names]


def exists(parts: tuple[str, ...]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_the_rooms_import_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    wrong = [
        f"{name(path)}:{i.line} imports {i.target}"
        for i in imports(path)
        if i.relative and i.target.split(".")[0] not in MAY_IMPORT[room]
    ]
    assert not wrong


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_frameworks_stay_inside_their_engine(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    allowed = FRAMEWORKS.get(parts[1], set()) if parts[0] == "engines" else set()
    found = {i.target.split(".")[0] for i in imports(path) if not i.relative}
    assert not found & ANY_FRAMEWORK - allowed


@pytest.mark.parametrize("path", sorted((ROOT / "engines").glob("*/*.py")), ids=name)
def test_the_engines_do_not_know_each_other(path: Path) -> None:
    others = tuple(f"engines.{room}" for room in FRAMEWORKS if room != path.parent.name)
    assert not [i for i in imports(path) if i.relative and i.target.startswith(others)]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_among_the_rooms_are_relative_and_exist(path: Path) -> None:
    for i in imports(path):
        assert i.relative or i.target.split(".")[0] not in {"guidebook", *MAY_IMPORT}, f"line {i.line}: {i.target}"
        assert not i.relative or exists(tuple(i.target.split("."))), f"line {i.line}: no module {i.target}"


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]), ids=name
)
def test_everybody_else_imports_by_name(path: Path) -> None:
    for i in imports(path):
        assert i.target.split(".")[0] not in MAY_IMPORT, f"line {i.line}: say guidebook.{i.target}"
        if i.target.startswith("guidebook."):
            assert exists(tuple(i.target.split(".")[1:])), f"line {i.line}: no module {i.target}"


def test_importing_the_suite_loads_no_framework() -> None:
    """One may look at recipes, run folders and the help text without waiting for torch or jax."""
    rooms = [f"guidebook.{room}" for room in MAY_IMPORT]
    program = f"import sys, {', '.join(rooms)}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not set(loaded.split()) & ANY_FRAMEWORK
