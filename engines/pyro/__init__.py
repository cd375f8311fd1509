"""The suite on Pyro."""

from .engine import Program
from .objective import Loss
from .ppl import PPL

__all__ = ["PPL", "Loss", "Program"]
