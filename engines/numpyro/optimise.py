"""Optimisers of one side on optax, and clipping over both. Updates are for a learning rate of 1; the step scales them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ..protocol import OptimiserSpec


def realise(spec: OptimiserSpec) -> optax.GradientTransformation:
    """The optimiser `spec`; weight decay enters as in PyTorch (L2 for SGD and Adam, decoupled for AdamW)."""
    decay = optax.add_decayed_weights(spec.weight_decay) if spec.weight_decay else optax.identity()
    if spec.kind == "sgd":
        return optax.chain(decay, optax.trace(spec.momentum) if spec.momentum else optax.identity())
    adam = optax.scale_by_adam(*spec.betas, eps=spec.eps)
    return optax.chain(adam, decay) if spec.kind == "adamw" else optax.chain(decay, adam)


def clip(gradients: Mapping[str, Array], bound: float | None) -> tuple[dict[str, Array], Array, dict[str, Array]]:
    """`gradients` scaled to a global norm of at most `bound`, the norm before, and each one's own."""
    norms = {name: jnp.linalg.norm(gradient.ravel()) for name, gradient in gradients.items()}
    norm = optax.global_norm(norms)
    if bound is None:
        return dict(gradients), norm, norms
    scale = jnp.minimum(1.0, bound / norm)
    return jax.tree.map(lambda gradient: gradient * scale, dict(gradients)), norm, norms


def slots(state: Any) -> dict[str, np.ndarray]:
    """The optimisers' arrays, named by their path in the state."""
    found, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def load_slots(state: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Puts back what `slots` gave."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(arrays[jax.tree_util.keystr(path)], leaf.dtype), state
    )
