"""Amortised guides q(z | x), one per file, their specs, and the table of pairs."""

from .encoders import Encoder, GRUEncoder, LSTMEncoder
from .pair import Pair
from .pairs import PAIRS
from .posteriors import DiagonalNormal, Posterior
from .sentence_guide import SentenceGuide, sentence_guide

__all__ = [
    "PAIRS",
    "DiagonalNormal",
    "Encoder",
    "GRUEncoder",
    "LSTMEncoder",
    "Pair",
    "Posterior",
    "SentenceGuide",
    "sentence_guide",
]
