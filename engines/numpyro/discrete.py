"""Discrete latents, plain and relaxed: a relaxed draw is differentiable, mass and KL stay the discrete ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.lax import stop_gradient
from numpyro.distributions import constraints


class Bernoulli(dist.BernoulliLogits):
    """Draws are 0.0 and 1.0, of the logits' type: a network reads them. Between the two log_prob is linear."""

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        return super().sample(key, sample_shape).astype(jnp.result_type(self.logits))

    def enumerate_support(self, expand: bool = True) -> Array:
        return super().enumerate_support(expand).astype(jnp.result_type(self.logits))

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        return value * self.logits - jax.nn.softplus(self.logits)


class OneHotCategorical(dist.Distribution):
    """Unit vectors, event shape (K,): log p(e_k) = log softmax(logits)_k. logits (…, K)."""

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012 - NumPyro's way to declare them
    support = constraints.independent(constraints.boolean, 1)  # pyright: ignore[reportAssignmentType]
    has_enumerate_support = True

    def __init__(self, logits: Array, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def probs(self) -> Array:
        return jax.nn.softmax(self.logits, axis=-1)

    @property
    def mean(self) -> Array:
        return self.probs

    @property
    def variance(self) -> Array:
        return self.probs * (1 - self.probs)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        chosen = jax.random.categorical(key, self.logits, shape=(*sample_shape, *self.batch_shape))
        return jax.nn.one_hot(chosen, self.event_shape[0], dtype=self.logits.dtype)

    def enumerate_support(self, expand: bool = True) -> Array:
        size = self.event_shape[0]
        values = jnp.eye(size, dtype=self.logits.dtype).reshape(size, *(1 for _ in self.batch_shape), size)
        return jnp.broadcast_to(values, (size, *self.batch_shape, size)) if expand else values

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        return (value * jax.nn.log_softmax(self.logits, axis=-1)).sum(-1)


class ConcreteBernoulli(Bernoulli):
    """A Bernoulli whose `sample` is sigmoid((logits + logistic noise) / temperature) (Maddison et al. 2017).

    straight_through: the draw is rounded, its gradient that of the unrounded (Jang et al. 2017).
    """

    reparametrized_params = ["logits"]  # noqa: RUF012 - NumPyro's way to declare them
    pytree_aux_fields = ("temperature", "straight_through")

    def __init__(self, logits: Array, temperature: float, straight_through: bool) -> None:
        self.temperature, self.straight_through = temperature, straight_through
        super().__init__(logits)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        noise = jax.random.logistic(key, sample_shape + self.batch_shape, jnp.result_type(self.logits))
        soft = jax.nn.sigmoid((self.logits + noise) / self.temperature)
        return soft - stop_gradient(soft) + stop_gradient(jnp.round(soft)) if self.straight_through else soft


class ConcreteCategorical(OneHotCategorical):
    """Unit vectors, `sample` softmax((logits + Gumbel noise) / temperature) (Maddison et al. 2017; Jang et al. 2017).

    straight_through: the draw is the nearest unit vector, its gradient that of the unrounded.
    """

    reparametrized_params = ["logits"]  # noqa: RUF012 - NumPyro's way to declare them
    pytree_aux_fields = ("temperature", "straight_through")

    def __init__(self, logits: Array, temperature: float, straight_through: bool) -> None:
        self.temperature, self.straight_through = temperature, straight_through
        super().__init__(logits)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        noise = jax.random.gumbel(key, sample_shape + self.batch_shape + self.event_shape, self.logits.dtype)
        soft = jax.nn.softmax((self.logits + noise) / self.temperature, axis=-1)
        if not self.straight_through:
            return soft
        hard = jax.nn.one_hot(soft.argmax(-1), soft.shape[-1], dtype=soft.dtype)
        return soft - stop_gradient(soft) + hard
