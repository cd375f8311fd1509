"""The few array functions that divergences need, by their NumPy names, on NumPy; each engine has them in its room."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from scipy import special

abs = np.abs
exp = np.exp
log = np.log
sqrt = np.sqrt
where = np.where
concatenate = np.concatenate
sort = np.sort
logsumexp = special.logsumexp
softmax = special.softmax


def stop_gradient(x: Any) -> Any:
    return x


def like(values: np.ndarray, x: Any) -> Any:
    """`values` as an array of the kind, type and place of `x`."""
    return values.astype(x.dtype)


def namespace(x: Any) -> Any:
    """The module with these functions for the library that `x` belongs to; NumPy's is this one."""
    engine = {"torch": "pyro", "jax": "numpyro", "jaxlib": "numpyro"}.get(type(x).__module__.partition(".")[0])
    return import_module(f".{engine}.arrays", __package__) if engine else import_module(__name__)
