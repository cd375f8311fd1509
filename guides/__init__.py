"""Amortised guides q(z | x), one per file, their specs, and the table of pairs."""

from .encoders import Encoder, GRUEncoder, LSTMEncoder
from .pair import Pair
from .pairs import PAIRS
from .posteriors import (
    Bernoulli,
    Categorical,
    DeltaNormal,
    DiagonalNormal,
    FlowNormal,
    FullNormal,
    Laplace,
    Logistic,
    LowRankNormal,
    PointMass,
    Posterior,
    RelaxedBernoulli,
    RelaxedCategorical,
    UniformBox,
)
from .sentence_guide import SentenceGuide, sentence_guide
from .sequence_guide import sequence_pair

__all__ = [
    "PAIRS",
    "Bernoulli",
    "Categorical",
    "DeltaNormal",
    "DiagonalNormal",
    "Encoder",
    "FlowNormal",
    "FullNormal",
    "GRUEncoder",
    "LSTMEncoder",
    "Laplace",
    "Logistic",
    "LowRankNormal",
    "Pair",
    "PointMass",
    "Posterior",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "SentenceGuide",
    "UniformBox",
    "sentence_guide",
    "sequence_pair",
]
