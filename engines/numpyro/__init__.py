"""The suite on NumPyro."""

from .engine import Program
from .objective import Loss
from .ppl import PPL
from .stein import transport

__all__ = ["PPL", "Loss", "Program", "transport"]
