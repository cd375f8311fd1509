"""Transformers on NumPyro: rotary or sinusoidal positions, and keys and values cached while decoding.

Attention is written out: JAX's own takes its logits and its softmax in float32, whatever the arrays are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, cast

import jax
import jax.numpy as jnp
from jax import Array

from ...guides import encoders
from ...models import transformers
from ...models.errors import BadInput
from ...models.measures import NEVER
from ..measures import Atoms, Components, Keys, Projections
from .denoising import attend, mean_measure, sampled, weights
from .distributions import TokenSequence
from .dropout import dropped
from .module import Realised
from .precision import product

State = tuple[Array, ...]
Remember = Callable[[int, Array, Array | None], Array]
"""Layer, h and the key of its dropout to h with what is read of a memory."""


class Transformer(Realised):
    """The stack of blocks over h (N, T, H)."""

    def _embedded(self, tokens: Array) -> Array:
        return self.weights["embedding"][tokens] * math.sqrt(self.spec.hidden)

    def _run(self, h: Array, real: Array | None, key: Array | None, remember: Remember | None = None) -> Array:
        """real: (N, T) what may be read, by all; None: each position reads those up to itself. remember: of a memory."""
        places = jnp.arange(h.shape[1])
        mask = None if real is None else real[:, None, None]
        first, *each = [None] * (self.spec.layers + 1) if key is None else jax.random.split(key, self.spec.layers + 1)
        h = dropped(self._placed(h, places), self.spec.dropout, first)
        for layer in range(self.spec.layers):
            h = self._block(layer, h, lambda q, k, v: self._attended(q, k, v, places, mask), each[layer], remember)
        return self._last(h)

    def _block(
        self,
        layer: int,
        h: Array,
        attend: transformers.Attend,
        key: Array | None = None,
        remember: Remember | None = None,
    ) -> Array:
        """One block; `attend` takes queries, keys and values (N, T, heads, H / heads) to what is read of them."""

        def attention(x: Array) -> Array:
            heads = self._linear(x, "attention_in", layer).reshape(*x.shape[:2], 3, self.spec.heads, -1)
            read = attend(*(heads[:, :, part] for part in range(3))).reshape(x.shape)
            return self._linear(read, "attention_out", layer)

        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        h = self._added_to(h, attention, "attention_norm", layer, keys[0])
        h = remember(layer, h, keys[1]) if remember else h
        return self._fed_forward(layer, h, keys[2])

    def _fed_forward(self, layer: int, h: Array, key: Array | None) -> Array:
        def feedforward(x: Array) -> Array:
            x = jax.nn.gelu(self._linear(x, "feedforward_in", layer), approximate=False)
            return self._linear(x, "feedforward_out", layer)

        return self._added_to(h, feedforward, "feedforward_norm", layer, key)

    def _added_to(self, h: Array, part: Callable[[Array], Array], norm: str, layer: int, key: Array | None) -> Array:
        """h with what one part of a block adds to it, normed before or after."""
        if self.spec.norm == "pre":
            return h + dropped(part(self._norm(h, norm, layer)), self.spec.dropout, key)
        return self._norm(h + dropped(part(h), self.spec.dropout, key), norm, layer)

    def _attended(self, q: Array, k: Array, v: Array, places: Array, mask: Array | None) -> Array:
        q, k = self._turned(q, places), self._turned(k, places)
        return _attention(q, k, v, places[:, None] >= places if mask is None else mask)

    def _placed(self, h: Array, places: Array) -> Array:
        """h with the sines of its places added, where positions are sinusoidal."""
        if self.spec.positions == "rotary":
            return h
        angles = _angles(places, self.spec.hidden, h)
        return h + jnp.concatenate((jnp.sin(angles), jnp.cos(angles)), -1)

    def _turned(self, x: Array, places: Array) -> Array:
        """Queries or keys (N, T, heads, H / heads) turned by their places, where positions are rotary."""
        if self.spec.positions == "sinusoidal":
            return x
        angles = _angles(places, x.shape[-1], x)[:, None]
        sine, cosine = jnp.sin(angles), jnp.cos(angles)
        one, other = jnp.split(x, 2, -1)
        return jnp.concatenate((one * cosine - other * sine, other * cosine + one * sine), -1)

    def _norm(self, h: Array, name: str, layer: int) -> Array:
        return _layer_norm(h, self.weights[f"{name}_{layer}"], self.weights[f"{name}_bias_{layer}"])

    def _last(self, h: Array) -> Array:
        return h if self.spec.norm == "post" else _layer_norm(h, self.weights["norm"], self.weights["norm_bias"])

    def _linear(self, x: Array, name: str, layer: int) -> Array:
        return product(x, self.weights[f"{name}_{layer}"], self.precision) + self.weights[f"{name}_bias_{layer}"]


class TransformerDecoder(Transformer):
    """p(x_t | x_<t, z), t = 1 … T: `decoder(z, inputs, lengths)` is the distribution of the sentence."""

    def __call__(self, z: Array | None, inputs: Array, lengths: Array, *, key: Array | None = None) -> TokenSequence:
        """z (B, Z), (S, B, Z) or None; inputs (B, T) from bos on; lengths (B,) predicted tokens."""
        states = self.states(z, inputs, key=key)
        return TokenSequence(states, self.output_weight, lengths, decoder=self, z=z, precision=self.precision)

    def states(self, z: Array | None, inputs: Array, *, key: Array | None = None) -> Array:
        """Teacher-forced states (B, T, H) or (S, B, T, H)."""
        h = self._embedded(inputs)
        added = self._added(z)
        h = h if added is None else h + added[..., None, :]
        return self._run(h.reshape(-1, *h.shape[-2:]), None, key).reshape(h.shape)

    def _added(self, z: Array | None) -> Array | None:
        """W_z z, (…, H)."""
        latent = dict(self.sizes).get("latent", 0)
        if latent == 0 or z is None:
            return None
        if z.shape[-1] != latent:
            raise BadInput(f"the decoder reads latents of {latent} dimensions, not {z.shape[-1]}")
        return product(z, self.weights["latent"])

    @property
    def output_weight(self) -> Array:
        """(V, H)."""
        return self.weights["embedding" if self.spec.tie_embeddings else "output"]

    def start(self, z: Array | None, rows: int, steps: int) -> State:
        """The state before the first of at most `steps` tokens, from z (rows or 1, Z): the place to come (rows,), W_z z
        (rows, H), and keys and values (rows, 2, layers, steps, heads, H / heads).
        """
        added, hidden, heads = self._added(z), self.spec.hidden, self.spec.heads
        zeros = jnp.zeros((rows, hidden), self.weights["embedding"].dtype)
        cache = jnp.zeros((rows, 2, self.spec.layers, steps, heads, hidden // heads), zeros.dtype)
        return jnp.zeros(rows, int), zeros if added is None else zeros + added, cache

    def step(self, state: State, tokens: Array) -> tuple[State, Array]:
        """The state after `tokens` (N,), and the logits (N, V) of the next ones. Without dropout."""
        place, added, cache, *memory = state
        places = place[:1]
        known = jnp.arange(cache.shape[3]) <= place[0]
        h = self._placed((self._embedded(tokens) + added)[:, None], places)
        for layer in range(self.spec.layers):

            def attend(q: Array, k: Array, v: Array, layer: int = layer) -> Array:
                nonlocal cache
                both = jnp.stack((self._turned(k, places), v), 1)[:, :, None]
                cache = jax.lax.dynamic_update_slice(cache, both, (0, 0, layer, place[0], 0, 0))
                keys, values = cache[:, 0, layer], cache[:, 1, layer]
                return _attention(self._turned(q, places), keys, values, known)

            h = self._block(layer, h, attend, None, self._remember(memory))
        logits = product(self._last(h)[:, 0], self.output_weight, self.precision)
        return (place + 1, added, cache, *memory), logits

    def _remember(self, memory: list[Array]) -> Remember | None:
        """What a state keeps of a memory, as its reader."""
        return None


class MemoryDecoder(TransformerDecoder):
    """p(x_t | x_<t, F), t = 1 … T: `decoder(F, inputs, lengths)`, F packed as `models/measures.py` says."""

    def states(self, z: Array | None, inputs: Array, *, key: Array | None = None) -> Array:
        """Teacher-forced states (B, T, H) or (S, B, T, H) of z (B, K, p + 1) or (S, B, K, p + 1)."""
        keys = self._keys(z)

        def remember(layer: int, h: Array, key: Array | None) -> Array:
            return self._reading(layer, h, keys[layer], key)

        h = self._run(self._embedded(inputs), None, key, remember)
        return h.reshape(*(z.shape[:-2] if z is not None else ()), *h.shape[1:])

    def attention(self, z: Array, inputs: Array) -> Array:
        """What each word weighs the components by, (layers, B, heads, T, n), teacher-forced."""
        keys, found = self._keys(z), []

        def remember(layer: int, h: Array, key: Array | None) -> Array:
            x = self._norm(h, "memory_norm", layer) if self.spec.norm == "pre" else h
            found.append(weights(x, keys[layer], self._projections(layer)))
            return self._reading(layer, h, keys[layer])

        self._run(self._embedded(inputs), None, None, remember)
        return jnp.stack(found)

    def _keys(self, z: Array | None) -> list[Keys]:
        """Of each layer, of a draw (…, K, p + 1) or of a mean measure (…, M, 2 p + 1)."""
        sizes = dict(self.sizes)
        width = sizes["latent"]
        if z is None or z.shape[-1] not in (1 + width, 1 + 2 * width * sizes["weighted"]):
            found = None if z is None else z.shape[-1]
            raise BadInput(f"the decoder attends to vectors of {width} dimensions with their weights, not {found}")
        return [
            _keys_of(z, self._projections(layer), self.spec.heads, self.spec.rule, not sizes["weighted"])
            for layer in range(self.spec.layers)
        ]

    def _projections(self, layer: int) -> Projections:
        return Projections(*(self.weights[f"memory_{part}_{layer}"] for part in ("query", "key", "value")))

    def _reading(self, layer: int, h: Array, keys: Keys, key: Array | None = None) -> Array:
        """h (B, T, H) or (S B, T, H) with what it reads of keys (…, B, heads, n, H / heads): (S B, T, H)."""
        h = h.reshape(-1, keys.key.shape[-4], *h.shape[1:])

        def read(x: Array) -> Array:
            return product(attend(x, keys, self._projections(layer)), self.weights[f"memory_out_{layer}"])

        found = self._added_to(h, read, "memory_norm", layer, key)
        return found.reshape(-1, *found.shape[-2:])

    def start(self, z: Array | None, rows: int, steps: int) -> State:
        """As of any Transformer, from z (rows or 1, K, p + 1), a draw, or (rows or 1, M, 2 p + 1), a mean measure; and its
        keys and values (rows, layers, heads, n, H / heads), biases (rows, n) and gates (rows, n, p).
        """
        each = self._keys(z)
        stacked = (jnp.stack(parts, 1) for parts in zip(*(keys[:2] for keys in each), strict=True))
        memory = [*stacked, *(part for part in each[0][2:] if part is not None)]
        wide = (jnp.broadcast_to(part, (rows, *part.shape[1:])) for part in memory)
        return (*super().start(None, rows, steps), *wide)

    def _remember(self, memory: list[Array]) -> Remember:
        kept, value, *rest = memory
        return lambda layer, h, key: self._reading(layer, h, Keys(kept[:, layer], value[:, layer], *rest), key)


class TransformerEncoder(Transformer):
    """h of q(z | x): encoder(tokens (B, T + 1), lengths (B,)) pools the outputs at that many tokens to (B, H)."""

    def __call__(self, tokens: Array, lengths: Array, *, key: Array | None = None) -> Array:
        return self._pooled(self._embedded(tokens), jnp.maximum(lengths, 1), key)

    def read(self, embedded: Array) -> Array:
        """(B, H) from embeddings in place of tokens, (B, T, E), all of them read."""
        rows, steps, _ = embedded.shape
        return self._pooled(embedded * math.sqrt(self.spec.hidden), jnp.full(rows, steps), None)

    def _pooled(self, h: Array, lengths: Array, key: Array | None) -> Array:
        rows, steps, _ = h.shape
        real = jnp.arange(steps) < lengths[:, None]
        outputs = self._run(h, real, key)
        if self.spec.pooling == "last":
            return outputs[jnp.arange(rows), lengths - 1]
        if self.spec.pooling == "max":
            return outputs.max(1, where=real[..., None], initial=-jnp.inf)
        return outputs.sum(1, where=real[..., None]) / lengths[:, None]


class VectorEncoder(Transformer):
    """h_1 … h_T of q(F | x): encoder(tokens (B, T), lengths (B,)) is (B, T, H)."""

    def __call__(self, tokens: Array, lengths: Array, *, key: Array | None = None) -> Array:
        real = jnp.arange(tokens.shape[-1]) < jnp.maximum(lengths, 1)[:, None]
        return self._run(self._embedded(tokens), real, key)


class MeasureBlock(Transformer):
    """h of the layer above: block(h (…, T, H), F (…, K, p + 1)), F a draw or a mean measure (…, M, 2 p + 1)."""

    def __call__(self, h: Array, measure: Array, *, key: Array | None = None) -> Array:
        each = ("query", "key", "value", "query_bias", "value_bias")
        projections = Projections(*(self.weights[part] for part in each))
        keys = _keys_of(measure, projections, self.spec.heads)

        def attention(x: Array) -> Array:
            return self._linear(attend(x, keys, projections), "attention_out", 0)

        of_attention, of_feedforward = (None, None) if key is None else jax.random.split(key)
        h = self._added_to(h, attention, "attention_norm", 0, of_attention)
        return self._last(self._fed_forward(0, h, of_feedforward))


def _keys_of(
    measure: Array,
    projections: Projections,
    heads: int,
    rule: Literal["points", "exact", "reference"] = "points",
    relative: bool = False,
) -> Keys:
    """Of a draw (…, K, p + 1) or of a mean measure (…, M, 2 p + 1), which its width tells; p that of the keys."""
    width = projections.key.shape[-1]
    first, rest = measure[..., 0], measure[..., 1:]
    mask = first > NEVER
    if rule == "points" or rest.shape[-1] == width:
        return sampled(Atoms(rest[..., :width], first, mask), projections, heads, relative)
    return mean_measure(Components(first, rest[..., :width], rest[..., width:], mask), projections, heads, rule)


def _attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """(N, T, heads, …) of queries, keys and values so laid out; mask broadcasts to (N, heads, T, keys)."""
    logits = jnp.einsum("nqhd,nkhd->nhqk", q, k, precision="highest") * q.shape[-1] ** -0.5
    shares = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), -1)
    return jnp.einsum("nhqk,nkhd->nqhd", shares, v, precision="highest")


def _layer_norm(h: Array, scale: Array, bias: Array) -> Array:
    centred = h - h.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def _angles(places: Array, width: int, x: Array) -> Array:
    """place · 10000^(−2i / width), (T, width / 2), of the dtype of x."""
    frequencies = jnp.asarray([10_000.0 ** -(2 * i / width) for i in range(width // 2)], x.dtype)
    return cast(Array, places[:, None].astype(x.dtype) * frequencies)


TRANSFORMERS: dict[type, type[Realised]] = {
    transformers.TransformerDecoder: TransformerDecoder,
    transformers.MemoryDecoder: MemoryDecoder,
    encoders.VectorEncoder: VectorEncoder,
    encoders.MeasureBlock: MeasureBlock,
    encoders.TransformerEncoder: TransformerEncoder,
}
