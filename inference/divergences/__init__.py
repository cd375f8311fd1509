"""Divergences and bounds by `kind`: small pure functions of `Terms`, per datum, the same on both engines."""

from typing import Annotated

from pydantic import Field

from ...models.spec import kind_unless_said
from .aggregate import InfoVAE, Stein
from .base import Objectives
from .f_divergence import FDivergence
from .filtering import FIVO
from .importance import CUBO, IWAE, TVO, Renyi
from .kl import KL, Fisher, FreeBits, GeometricJensenShannon, MinimumRate, TargetRate
from .svgd import SVGD
from .wake_sleep import ReweightedWakeSleep

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
