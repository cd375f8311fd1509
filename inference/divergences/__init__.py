"""Divergences and bounds by `kind`: small pure functions of `Terms`, per datum, the same on both engines."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ...models.spec import kind_unless_said
from ..mistakes import kinds
from .aggregate import InfoVAE, Stein
from .base import Objectives
from .f_divergence import FDivergence
from .filtering import FIVO
from .importance import CUBO, IWAE, TVO, Renyi
from .kl import KL, Fisher, FreeBits, GeometricJensenShannon, MinimumRate, TargetRate
from .svgd import SVGD
from .wake_sleep import ReweightedWakeSleep


def _spelt_out(value: Any) -> Any:
    """KIND or KIND:VALUE as the table that it stands for: `renyi:0.5` as kind = "renyi", alpha = 0.5."""
    if not isinstance(value, str):
        return value
    kind, colon, argument = value.partition(":")
    named = kinds(Divergence)
    return {"kind": kind} | ({named[kind].shorthand: _number(argument)} if colon and kind in named else {})


def _number(text: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


Divergence = Annotated[
    KL
    | IWAE
    | Renyi
    | CUBO
    | TVO
    | FIVO
    | FDivergence
    | ReweightedWakeSleep
    | InfoVAE
    | Stein
    | SVGD
    | TargetRate
    | MinimumRate
    | GeometricJensenShannon
    | Fisher,
    Field(discriminator="kind"),
    kind_unless_said("kl"),
    BeforeValidator(_spelt_out),
]

__all__ = [
    "CUBO",
    "FIVO",
    "IWAE",
    "KL",
    "SVGD",
    "TVO",
    "Divergence",
    "FDivergence",
    "Fisher",
    "FreeBits",
    "GeometricJensenShannon",
    "InfoVAE",
    "MinimumRate",
    "Objectives",
    "Renyi",
    "ReweightedWakeSleep",
    "Stein",
    "TargetRate",
]
