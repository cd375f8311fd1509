"""The README shows the code as it is, and every pair there is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from guidebook.guides import PAIRS, sentence_guide
from guidebook.models import sentence_vae

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("program", [sentence_vae, sentence_guide], ids=lambda f: f.__name__)
def test_the_story_in_the_readme_is_the_one_that_runs(program) -> None:
    assert inspect.getsource(program).strip() in README


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_is_in_the_table(pair: str) -> None:
    assert re.search(rf"^\| \[?`{pair}`", README, re.MULTILINE)


def test_one_screen() -> None:
    assert len(README.splitlines()) <= 120
