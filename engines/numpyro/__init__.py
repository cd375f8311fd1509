"""The suite on NumPyro."""

from .engine import NumPyroProgram as Program
from .objective import Loss
from .ppl import PPL

__all__ = ["PPL", "Loss", "Program"]
