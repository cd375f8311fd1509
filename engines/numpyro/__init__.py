"""The suite on NumPyro."""

from .engine import Program
from .objective import Loss
from .ppl import PPL

__all__ = ["PPL", "Loss", "Program"]
