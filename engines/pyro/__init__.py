"""The suite on Pyro."""

from .engine import PyroProgram as Program
from .objective import Loss
from .ppl import PPL

__all__ = ["PPL", "Loss", "Program"]
