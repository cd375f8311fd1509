"""What the configuration claims: packages are complete, paths exist, pins cover what is installed."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
ROOMS = ("models", "guides", "engines", "inference", "data", "recipes")
SHELVES = (*ROOMS, "tests", "benchmarks")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def folders() -> set[str]:
    return {str(path.parent.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py")}


def requirements() -> list[Requirement]:
    extras = [each for extra in PROJECT["optional-dependencies"].values() for each in extra]
    return [r for r in map(Requirement, [*PROJECT["dependencies"], *extras]) if r.name != PROJECT["name"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_folder_of_code_is_a_package_of_the_wheel() -> None:
    assert set(SETUPTOOLS["package-dir"].values()) == folders()
    assert set(SETUPTOOLS["packages"]) == set(SETUPTOOLS["package-dir"])
    assert all(name == f"guidebook.{path.replace('/', '.')}" for name, path in SETUPTOOLS["package-dir"].items())


def test_every_folder_of_code_has_an_init() -> None:
    assert not [folder for folder in folders() if not (ROOT / folder / "__init__.py").is_file()]


def test_no_namespace_folder_shadows_the_package() -> None:
    assert not (ROOT / "guidebook").exists()


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_files_that_are_not_code_are_declared(room: str) -> None:
    """A template or a recipe that package-data forgets works in a checkout and is missing from the wheel."""
    for path in (ROOT / room).rglob("*"):
        if path.is_file() and path.suffix not in {".py", ".pyc"}:
            package = "guidebook." + ".".join(path.parent.relative_to(ROOT).parts)
            patterns = [*SETUPTOOLS["package-data"]["*"], *SETUPTOOLS["package-data"].get(package, [])]
            assert any(path.match(pattern) for pattern in patterns), f"{path.relative_to(ROOT)} is in no package-data"


def test_all_means_both_engines() -> None:
    (everything,) = map(Requirement, PROJECT["optional-dependencies"]["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == {"pyro", "numpyro"}


def test_frameworks_are_extras_only() -> None:
    names = {Requirement(each).name for each in PROJECT["dependencies"]}
    assert not names & {"torch", "pyro-ppl", "jax", "numpyro", "equinox", "optax", "transformers"}


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    pinned = pins()
    assert canonicalize_name(requirement.name) in pinned, "renew constraints.txt"
    assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_constraints_name_no_local_build() -> None:
    assert not [name for name, version in pins().items() if "+" in version]


def test_the_console_script_exists() -> None:
    module, function = PROJECT["scripts"]["guidebook"].split(":")
    path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    assert re.search(rf"^(def {function}\b|{function} =)", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_installed_version_is_the_declared_one() -> None:
    assert importlib.metadata.version("guidebook") == PROJECT["version"]


def test_the_changelog_knows_this_version() -> None:
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_licence() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / ".ci" / "run", ROOT / ".pre-commit-config.yaml"], ids=lambda page: page.name
)
def test_make_targets_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"(?:`|\" |entry: |^)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert not [target for target in named if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)]


def test_ci_and_pre_commit_run_the_same_commands() -> None:
    """The hooks are a part of what CI runs, and the README's test command is another."""
    steps = re.findall(
        r"^step .* make (?:-\S+ )*([a-z]+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert "apart" in steps
    apart = re.search(r"^apart: ([a-z ]+)", MAKEFILE, re.MULTILINE)
    assert apart
    steps += apart[1].split()
    hooks = re.findall(r"entry: make ([a-z]+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {"test", "lint", "types", "house", "wheel", "isolation"} <= set(steps)
    assert set(hooks) <= set(steps)
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_pyright_reads_every_shelf() -> None:
    assert set(PYPROJECT["tool"]["pyright"]["include"]) == set(SHELVES)
