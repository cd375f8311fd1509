"""How a pair is fitted and judged: recipes, divergences, schedules, fit, evaluation, decoding, diagnosis."""

from ..guides import Pair
from .bottleneck import bottleneck
from .compare import compare
from .diagnose import diagnose, to_arviz
from .divergences import (
    CUBO,
    FIVO,
    IWAE,
    KL,
    SVGD,
    TVO,
    FDivergence,
    Fisher,
    FreeBits,
    GeometricJensenShannon,
    InfoVAE,
    MinimumRate,
    Renyi,
    ReweightedWakeSleep,
    Stein,
    TargetRate,
)
from .evaluate import evaluate
from .fit import fit
from .generation import judge_samples
from .interpolation import interpolation_curve
from .recipe import Recipe, parse
from .regularised import regularised
from .run import Run, load
from .schedules import Constant, Cosine, Cyclical, Linear, Logistic
from .sequences import forecast, generate, impute, smooth
from .stein import transport
from .strategies import Beam, Greedy, Sample
from .text import interpolate, reconstruct, sample

__all__ = [
    "CUBO",
    "FIVO",
    "IWAE",
    "KL",
    "SVGD",
    "TVO",
    "Beam",
    "Constant",
    "Cosine",
    "Cyclical",
    "FDivergence",
    "Fisher",
    "FreeBits",
    "GeometricJensenShannon",
    "Greedy",
    "InfoVAE",
    "Linear",
    "Logistic",
    "MinimumRate",
    "Pair",
    "Recipe",
    "Renyi",
    "ReweightedWakeSleep",
    "Run",
    "Sample",
    "Stein",
    "TargetRate",
    "bottleneck",
    "compare",
    "diagnose",
    "evaluate",
    "fit",
    "forecast",
    "generate",
    "impute",
    "interpolate",
    "interpolation_curve",
    "judge_samples",
    "load",
    "parse",
    "reconstruct",
    "regularised",
    "sample",
    "smooth",
    "to_arviz",
    "transport",
]
