"""Transformers on Pyro: fused attention, rotary or sinusoidal positions, and keys and values cached while decoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...guides import encoders
from ...models import transformers
from ...models.errors import BadInput
from ...models.measures import NEVER
from ..measures import Atoms, Components, Keys, Projections
from .denoising import attend, mean_measure, sampled, weights
from .distributions import TokenSequence
from .dropout import dropped
from .module import Realised
from .precision import _twice, product, products_in

State = tuple[Tensor, ...]
Remember = Callable[[int, Tensor], Tensor]
"""Layer and h to h with what is read of a memory."""


class Transformer(Realised):
    """The stack of blocks over h (N, T, H)."""

    embedding: Tensor

    def _embedded(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding) * math.sqrt(self.spec.hidden)

    def _run(self, h: Tensor, real: Tensor | None, remember: Remember | None = None) -> Tensor:
        """real: (N, T) what may be read, by all; None: each position reads those up to itself. remember: of a memory."""
        places = torch.arange(h.shape[1], device=h.device)
        mask = None if real is None else real[:, None, None]
        h = self._drop(self._placed(h, places))
        for layer in range(self.spec.layers):
            h = self._block(layer, h, lambda q, k, v: self._attended(q, k, v, places, mask), remember)
        return self._last(h)

    def _block(self, layer: int, h: Tensor, attend: transformers.Attend, remember: Remember | None = None) -> Tensor:
        """One block; `attend` takes queries, keys and values (N, heads, T, H / heads) to what is read of them."""

        def attention(x: Tensor) -> Tensor:
            heads = self._linear(x, "attention_in", layer).unflatten(-1, (3, self.spec.heads, -1)).transpose(1, 3)
            return self._linear(attend(*heads.unbind(2)).transpose(1, 2).flatten(2), "attention_out", layer)

        h = self._added_to(h, attention, "attention_norm", layer)
        h = remember(layer, h) if remember else h
        return self._fed_forward(layer, h)

    def _fed_forward(self, layer: int, h: Tensor) -> Tensor:
        def feedforward(x: Tensor) -> Tensor:
            return self._linear(F.gelu(self._linear(x, "feedforward_in", layer)), "feedforward_out", layer)

        return self._added_to(h, feedforward, "feedforward_norm", layer)

    def _added_to(self, h: Tensor, part: Callable[[Tensor], Tensor], norm: str, layer: int) -> Tensor:
        """h with what one part of a block adds to it, normed before or after."""
        if self.spec.norm == "pre":
            return h + self._drop(part(self._norm(h, norm, layer)))
        return self._norm(h + self._drop(part(h)), norm, layer)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        q, k = self._turned(q, places), self._turned(k, places)
        if _twice():  # the fused call has no second derivative
            mask = (
                torch.ones(len(places), len(places), dtype=torch.bool, device=q.device).tril() if mask is None else mask
            )
            return _attention(q, k, v, mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    def _placed(self, h: Tensor, places: Tensor) -> Tensor:
        """h with the sines of its places added, where positions are sinusoidal."""
        if self.spec.positions == "rotary":
            return h
        angles = _angles(places, self.spec.hidden, h.dtype)
        return h + torch.cat((angles.sin(), angles.cos()), -1)

    def _turned(self, x: Tensor, places: Tensor) -> Tensor:
        """Queries or keys (N, heads, T, H / heads) turned by their places, where positions are rotary."""
        if self.spec.positions == "sinusoidal":
            return x
        angles = _angles(places, x.shape[-1], x.dtype)
        sine, cosine = angles.sin(), angles.cos()
        one, other = x.chunk(2, -1)
        return torch.cat((one * cosine - other * sine, other * cosine + one * sine), -1)

    def _norm(self, h: Tensor, name: str, layer: int) -> Tensor:
        scale, bias = self._pair(name, layer)
        return F.layer_norm(h, scale.shape, scale, bias)

    def _last(self, h: Tensor) -> Tensor:
        if self.spec.norm == "post":
            return h
        scale = self.get_parameter("norm")
        return F.layer_norm(h, scale.shape, scale, self.get_parameter("norm_bias"))

    def _linear(self, x: Tensor, name: str, layer: int) -> Tensor:
        weight, bias = self._pair(name, layer)
        if self.precision == "float32":
            return F.linear(x, weight, bias)
        return product(x, weight, self.precision) + bias

    def _pair(self, name: str, layer: int) -> tuple[Tensor, Tensor]:
        return self.get_parameter(f"{name}_{layer}"), self.get_parameter(f"{name}_bias_{layer}")

    def _drop(self, x: Tensor) -> Tensor:
        return dropped(x, self.spec.dropout if self.training else 0.0)


class TransformerDecoder(Transformer):
    """p(x_t | x_<t, z), t = 1 … T: `decoder(z, inputs, lengths)` is the distribution of the sentence."""

    latent: Tensor
    output: Tensor

    def forward(self, z: Tensor | None, inputs: Tensor, lengths: Tensor) -> TokenSequence:
        """z (B, Z), (S, B, Z) or None; inputs (B, T) from bos on; lengths (B,) predicted tokens."""
        states = self.states(z, inputs)
        return TokenSequence(states, self.output_weight, lengths, decoder=self, z=z, precision=self.precision)

    def states(self, z: Tensor | None, inputs: Tensor) -> Tensor:
        """Teacher-forced states (B, T, H) or (S, B, T, H)."""
        h = self._embedded(inputs)
        added = self._added(z)
        h = h if added is None else h + added.unsqueeze(-2)
        return self._run(h.flatten(0, -3), None).view_as(h)

    def _added(self, z: Tensor | None) -> Tensor | None:
        """W_z z, (…, H)."""
        if self.sizes["latent"] == 0 or z is None:
            return None
        if z.shape[-1] != self.sizes["latent"]:
            raise BadInput(f"the decoder reads latents of {self.sizes['latent']} dimensions, not {z.shape[-1]}")
        return F.linear(z, self.latent)

    @property
    def output_weight(self) -> Tensor:
        """(V, H)."""
        return self.embedding if self.spec.tie_embeddings else self.output

    @torch.no_grad()
    def start(self, z: Tensor | None, rows: int, steps: int) -> State:
        """The state before the first of at most `steps` tokens, from z (rows or 1, Z): the place to come (rows,), W_z z
        (rows, H), and keys and values (rows, 2, layers, heads, steps, H / heads), which the steps fill in place.
        """
        added = self._added(z)
        zeros = self.embedding.new_zeros(rows, self.spec.hidden)
        heads = self.spec.heads
        cache = zeros.new_zeros(rows, 2, self.spec.layers, heads, steps, self.spec.hidden // heads)
        place = torch.zeros(rows, dtype=torch.int64, device=zeros.device)
        return place, zeros if added is None else added.expand(rows, -1), cache

    @torch.no_grad()
    def step(self, state: State, tokens: Tensor) -> tuple[State, Tensor]:
        """The state after `tokens` (N,), and the logits (N, V) of the next ones; no dropout, no gradients."""
        place, added, cache, *memory = state
        at = int(place[0])
        places = place[:1]

        def attend(layer: int) -> transformers.Attend:
            keys, values = cache[:, :, layer].unbind(1)

            def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                keys[:, :, at], values[:, :, at] = self._turned(k, places).squeeze(2), v.squeeze(2)
                return F.scaled_dot_product_attention(
                    self._turned(q, places), keys[:, :, : at + 1], values[:, :, : at + 1]
                )

            return attended

        training, self.training = self.training, False
        with products_in(self.precision):
            h = self._placed((self._embedded(tokens) + added).unsqueeze(1), places)
            for layer in range(self.spec.layers):
                h = self._block(layer, h, attend(layer), self._remember(memory))
            logits = self._last(h).squeeze(1) @ self.output_weight.t()
        self.training = training
        return (place + 1, added, cache, *memory), logits

    def _remember(self, memory: list[Tensor]) -> Remember | None:
        """What a state keeps of a memory, as its reader."""
        return None


class MemoryDecoder(TransformerDecoder):
    """p(x_t | x_<t, F), t = 1 … T: `decoder(F, inputs, lengths)`, F packed as `models/measures.py` says."""

    def states(self, z: Tensor | None, inputs: Tensor) -> Tensor:
        """Teacher-forced states (B, T, H) or (S, B, T, H) of z (B, K, p + 1) or (S, B, K, p + 1)."""
        keys = self._keys(z)
        h = self._run(self._embedded(inputs), None, lambda layer, h: self._reading(layer, h, keys[layer]))
        return h.view(*(z.shape[:-2] if z is not None else ()), *h.shape[1:])

    @torch.no_grad()
    def attention(self, z: Tensor, inputs: Tensor) -> Tensor:
        """What each word weighs the components by, (layers, B, heads, T, n), teacher-forced."""
        keys, found = self._keys(z), []

        def remember(layer: int, h: Tensor) -> Tensor:
            x = self._norm(h, "memory_norm", layer) if self.spec.norm == "pre" else h
            found.append(weights(x, keys[layer], self._projections(layer)))
            return self._reading(layer, h, keys[layer])

        self._run(self._embedded(inputs), None, remember)
        return torch.stack(found)

    def _keys(self, z: Tensor | None) -> list[Keys]:
        """Of each layer, of a draw (…, K, p + 1) or of a mean measure (…, M, 2 p + 1)."""
        width = self.sizes["latent"]
        if z is None or z.shape[-1] not in (1 + width, 1 + 2 * width * self.sizes["weighted"]):
            found = None if z is None else z.shape[-1]
            raise BadInput(f"the decoder attends to vectors of {width} dimensions with their weights, not {found}")
        relative = not self.sizes["weighted"]
        return [
            _keys_of(z, self._projections(layer), self.spec.heads, self.spec.rule, relative)
            for layer in range(self.spec.layers)
        ]

    def _projections(self, layer: int) -> Projections:
        return Projections(*(self.get_parameter(f"memory_{part}_{layer}") for part in ("query", "key", "value")))

    def _reading(self, layer: int, h: Tensor, keys: Keys) -> Tensor:
        """h (B, T, H) or (S B, T, H) with what it reads of keys (…, B, heads, n, H / heads): (S B, T, H)."""
        h = h.unflatten(0, (-1, keys.key.shape[-4]))

        def read(x: Tensor) -> Tensor:
            found = attend(x, keys, self._projections(layer))
            return F.linear(found, self.get_parameter(f"memory_out_{layer}"))

        return self._added_to(h, read, "memory_norm", layer).flatten(0, -3)

    @torch.no_grad()
    def start(self, z: Tensor | None, rows: int, steps: int) -> State:
        """As of any Transformer, from z (rows or 1, K, p + 1), a draw, or (rows or 1, M, 2 p + 1), a mean measure; and its
        keys and values (rows, layers, heads, n, H / heads), biases (rows, n) and gates (rows, n, p).
        """
        each = self._keys(z)
        stacked = (torch.stack(parts, 1) for parts in zip(*(keys[:2] for keys in each), strict=True))
        memory = [*stacked, *(part for part in each[0][2:] if part is not None)]
        return (*super().start(None, rows, steps), *(part.expand(rows, *part.shape[1:]) for part in memory))

    def _remember(self, memory: list[Tensor]) -> Remember:
        key, value, *rest = memory
        return lambda layer, h: self._reading(layer, h, Keys(key[:, layer], value[:, layer], *rest))


class TransformerEncoder(Transformer):
    """h of q(z | x): encoder(tokens (B, T + 1), lengths (B,)) pools the outputs at that many tokens to (B, H)."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self._pooled(self._embedded(tokens), lengths.clamp(min=1))

    def read(self, embedded: Tensor) -> Tensor:
        """(B, H) from embeddings in place of tokens, (B, T, E), all of them read."""
        rows, steps, _ = embedded.shape
        lengths = torch.full((rows,), steps, device=embedded.device)
        return self._pooled(embedded * math.sqrt(self.spec.hidden), lengths)

    def _pooled(self, h: Tensor, lengths: Tensor) -> Tensor:
        rows, steps, _ = h.shape
        real = torch.arange(steps, device=h.device) < lengths.unsqueeze(-1)
        outputs = self._run(h, real)
        if self.spec.pooling == "last":
            return outputs[torch.arange(rows, device=h.device), lengths - 1]
        pads = ~real.unsqueeze(-1)
        if self.spec.pooling == "max":
            return outputs.masked_fill(pads, -math.inf).amax(1)
        return outputs.masked_fill(pads, 0.0).sum(1) / lengths.unsqueeze(-1)


class VectorEncoder(Transformer):
    """h_1 … h_T of q(F | x): encoder(tokens (B, T), lengths (B,)) is (B, T, H)."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        real = torch.arange(tokens.shape[-1], device=tokens.device) < lengths.clamp(min=1).unsqueeze(-1)
        return self._run(self._embedded(tokens), real)


class MeasureBlock(Transformer):
    """h of the layer above: block(h (…, T, H), F (…, K, p + 1)), F a draw or a mean measure (…, M, 2 p + 1)."""

    def forward(self, h: Tensor, measure: Tensor) -> Tensor:
        each = ("query", "key", "value", "query_bias", "value_bias")
        projections = Projections(*(self.get_parameter(part) for part in each))
        keys = _keys_of(measure, projections, self.spec.heads)

        def attention(x: Tensor) -> Tensor:
            return self._linear(attend(x, keys, projections), "attention_out", 0)

        return self._last(self._fed_forward(0, self._added_to(h, attention, "attention_norm", 0)))


def _keys_of(
    measure: Tensor,
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


def _angles(places: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """place · 10000^(−2i / width), (T, width / 2)."""
    exponents = torch.arange(0, width, 2, device=places.device, dtype=torch.float64) / width
    return (places.unsqueeze(-1) * 10_000.0**-exponents).to(dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    logits = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, -math.inf)
    return logits.softmax(-1) @ v


TRANSFORMERS: dict[type, type[Realised]] = {
    transformers.TransformerDecoder: TransformerDecoder,
    transformers.MemoryDecoder: MemoryDecoder,
    encoders.VectorEncoder: VectorEncoder,
    encoders.MeasureBlock: MeasureBlock,
    encoders.TransformerEncoder: TransformerEncoder,
}
