"""The engines are mirrored rooms: the same files, and in each the same public names in the same order."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ENGINES = Path(__file__).parents[2] / "engines"
PYRO, NUMPYRO = ENGINES / "pyro", ENGINES / "numpyro"


def files(room: Path) -> list[str]:
    return sorted(str(path.relative_to(room)) for path in room.rglob("*.py"))


def public_names(path: Path) -> list[str]:
    """What a file defines at its top level, without a leading underscore and without its imports."""
    return [
        name for node in ast.parse(path.read_text(encoding="utf-8")).body for name in defined(node) if name[0] != "_"
    ]


def defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def test_the_same_files() -> None:
    assert files(PYRO) == files(NUMPYRO)


@pytest.mark.parametrize("file", sorted({*files(PYRO)} & {*files(NUMPYRO)}))
def test_the_same_public_names_in_the_same_order(file: str) -> None:
    assert public_names(PYRO / file) == public_names(NUMPYRO / file)
