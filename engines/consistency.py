"""Consistency of the posteriors of a datum and of its augmentation t(x) (Sinha & Dieng 2021): what the engines share.

A batch holds t(x) beside x, each array of it named `augmented/NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .terms import Sides

AUGMENTED = "augmented/"


def views(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The batches of x and of t(x), which share what is not augmented."""
    plain = {name: array for name, array in arrays.items() if not name.startswith(AUGMENTED)}
    return plain, plain | {name.removeprefix(AUGMENTED): arrays[name] for name in arrays.keys() - plain.keys()}


def joined(one: Any, other: Any, penalty: Any) -> Any:
    """The sum of two losses (B,), or `Sides`, and of a penalty (B,) that is the guide's."""
    if isinstance(one, Sides):
        return Sides(one.value + other.value + penalty, one.model + other.model, one.guide + other.guide + penalty)
    return one + other + penalty
