"""The distribution of a sentence given the states of its decoder.

    log p(x | h) = Σ_{t ≤ length} log softmax(W h_t)[x_t]

Projection, log-softmax and gather are one operation over tiles of rows, so that its memory does not grow with
batch × time × vocabulary. Where gradients are wanted, the same exponentials give those too, for an upstream
gradient of one; the backward pass scales them when the upstream gradient is the same for all counted rows (as
under the ELBO), and otherwise forms the weight's gradient again, tile by tile. States of several particles, which
bounds weigh, leave the weight's gradient to the backward pass at once.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from ...models.errors import BadInput
from .precision import _product_over_rows, _product_with, product

PAD, BOS, EOS = 0, 1, 2
TILE = 2**23  # logits in a tile: 32 MiB of float32; larger products run nearer to their floor than smaller ones


def token_log_prob(
    states: Array, weight: Array, targets: Array, lengths: Array, *, precision: str = "float32"
) -> Array:
    """Σ_{t < lengths} log softmax(W h_t)[x_t]: states (…, T, H), W (V, H), targets (…, T), lengths (…) to (…).

    Targets and lengths broadcast against the states' batch. Gradients are exact, for states and weight.
    """
    lead, hidden = states.shape[:-1], states.shape[-1]
    counted = jnp.broadcast_to(jnp.arange(lead[-1]) < jnp.asarray(lengths)[..., None], lead).reshape(-1)
    words = jnp.broadcast_to(targets, lead).reshape(-1)
    rows = jnp.where(counted[:, None], states.reshape(-1, hidden), 0)  # so that padding may hold anything
    per_token: Array = _per_token(rows, weight, words, counted, precision, len(lead) > 2)
    return per_token.reshape(lead).sum(-1)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _per_token(states: Array, weight: Array, words: Array, counted: Array, precision: str, weighed: bool) -> Array:
    """log softmax(W h)[x] per row of states (N, H), which are 0 where not counted; 0 there: (N,)."""

    def tile(_, part):
        h, own = part
        _, shift, total = _exponentials(h, weight, precision)
        return None, (h * own).sum(-1) - shift - jnp.log(total)

    return jnp.where(counted, _walk(tile, None, weight, states, weight[words])[1], 0)


def _exponentials(h: Array, weight: Array, precision: str) -> tuple[Array, Array, Array]:
    """exp(W h − shift), (n, V); the shift and the sum of each row, (n,)."""
    logits = product(h, weight, precision)
    shift = logits.max(-1)
    exponentials = jnp.exp(logits - shift[:, None])
    return exponentials, shift, exponentials.sum(-1)


def _walk(tile: Any, carry: Any, weight: Array, *rows: Array) -> tuple[Any, Any]:
    """Runs `carry, out = tile(carry, rows)` over tiles of rows (N, …), about `TILE` logits each."""
    count = len(rows[0])
    tiles = max(1, math.ceil(count * len(weight) / TILE))
    if tiles == 1:
        return tile(carry, rows)
    size = math.ceil(count / tiles)
    padded = [jnp.pad(x, [(0, size * tiles - count)] + [(0, 0)] * (x.ndim - 1)) for x in rows]
    carry, out = jax.lax.scan(tile, carry, tuple(x.reshape(tiles, size, *x.shape[1:]) for x in padded))
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], out)


def _per_token_fwd(states, weight, words, counted, precision, weighed):
    def tile(d_weight, part):
        h, own = part
        exponentials, shift, total = _exponentials(h, weight, precision)
        d_states = own - _product_with(exponentials, weight, precision) / total[:, None]
        if not weighed:
            d_weight = d_weight + _product_over_rows(exponentials, h / -total[:, None], precision)
        return d_weight, ((h * own).sum(-1) - shift - jnp.log(total), d_states)

    zeros = None if weighed else jnp.zeros_like(weight)
    d_weight, (log_prob, d_states) = _walk(tile, zeros, weight, states, weight[words])
    d_weight = None if d_weight is None else d_weight.at[words].add(states)
    return jnp.where(counted, log_prob, 0), (states, weight, words, counted, d_states, d_weight)


def _per_token_bwd(precision, weighed, residuals, upstream):
    states, weight, words, counted, d_states, d_weight = residuals
    upstream = jnp.where(counted, upstream, 0)
    first = upstream[jnp.argmax(counted)]
    uniform = jnp.all(upstream == jnp.where(counted, first, 0))

    def again():
        def tile(d_weight, part):
            h, upstream = part
            exponentials, _, total = _exponentials(h, weight, precision)
            return d_weight + _product_over_rows(exponentials, h * (upstream / -total)[:, None], precision), None

        d_weight = _walk(tile, jnp.zeros_like(weight), weight, states, upstream)[0]
        return d_weight.at[words].add(states * upstream[:, None])

    d_weight = again() if d_weight is None else jax.lax.cond(uniform, lambda: first * d_weight, again)
    return d_states * upstream[:, None], d_weight, None, None


_per_token.defvjp(_per_token_fwd, _per_token_bwd)


class TokenSequence(dist.Distribution):
    """A sentence given the states of its decoder: event shape (T,), batch shape that of the states.

    Args:
        states: (…, T, H), after dropout.
        weight: (V, H), the vocabulary projection.
        lengths: predicted tokens of each row, eos included; broadcastable to the batch shape. The rest is pads.
        decoder, z: what `sample` decodes from; z (…, Z), or a measure (…, K, p + 1), or None.
        precision: of the vocabulary products.

    Ids are 0 pad, 1 bos, 2 eos. Tokens are not checked against the vocabulary; shapes are.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as NumPyro declares it
    support: Any = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample: Any = False
    pytree_data_fields = ("states", "weight", "lengths", "decoder", "z")
    pytree_aux_fields = ("precision",)

    def __init__(
        self,
        states: Array,
        weight: Array,
        lengths: Array,
        *,
        decoder: Any = None,
        z: Array | None = None,
        precision: str = "float32",
    ) -> None:
        if states.ndim < 2 or states.shape[-1] != weight.shape[-1]:
            raise BadInput(
                f"states of shape {states.shape} do not fit a projection of shape {weight.shape}: "
                "(…, T, H) and (V, H) do"
            )
        self.states, self.weight, self.lengths = states, weight, lengths
        self.decoder, self.z, self.precision = decoder, z, precision
        super().__init__(states.shape[:-2], states.shape[-2:-1], validate_args=False)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """(…, T) to (…), in nats per sentence."""
        if value.shape[-1:] != self.event_shape:
            raise BadInput(f"sentences of shape {value.shape} do not end in T = {self.event_shape[0]} tokens")
        try:
            rows = jnp.broadcast_shapes(self.states.shape[:-2], value.shape[:-1])
        except ValueError:
            raise BadInput(f"sentences of shape {value.shape} do not fit a batch of shape {self.batch_shape}") from None
        states = jnp.broadcast_to(self.states, (*rows, *self.states.shape[-2:]))
        return token_log_prob(states, self.weight, value, self.lengths, precision=self.precision)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Ancestral samples, sample_shape + batch_shape + (T,): ids, pad after eos."""
        if self.decoder is None:
            raise BadInput("this TokenSequence was built without its decoder: it scores sentences, it cannot draw them")
        shape = (*sample_shape, *self.batch_shape)
        rows = math.prod(shape)
        z = None
        if self.z is not None:
            event = self.z.shape[self.states.ndim - 2 :]
            z = jnp.broadcast_to(self.z, (*shape, *event)).reshape(rows, *event)
        return self._decode(key, self.decoder.start(z, rows, self.event_shape[0]), rows).reshape(*shape, -1)

    def _decode(self, key: Array | None, state: Any, rows: int) -> Array:
        steps = self.event_shape[0]

        def going_on(carry):
            t, *_, alive = carry
            return (t < steps) & alive.any()

        def step(carry):
            t, state, token, ids, alive = carry
            state, logits = self.decoder.step(state, token)
            drawn = jax.random.categorical(jax.random.fold_in(cast(Array, key), t), logits).astype(token.dtype)
            token = jnp.where(alive, drawn, PAD)
            return t + 1, state, token, ids.at[:, t].set(token), alive & (token != EOS)

        ids, token = jnp.full((rows, steps), PAD), jnp.full(rows, BOS)
        return jax.lax.while_loop(going_on, step, (0, state, token, ids, jnp.ones(rows, bool)))[3]
