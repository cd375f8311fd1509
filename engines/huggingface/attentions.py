"""The attention layers of an encoder-decoder by kind, and which of them can become denoising attention."""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ...models.errors import BadInput

KINDS = ("encoder", "cross", "decoder")

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_TAKEN = ("hidden_states", "key_value_states", "past_key_values", "attention_mask")
_IGNORED = ("output_attentions",)
_SELF, _CROSS = ("self_attn",), ("encoder_attn", "cross_attention")


def attentions(model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """Kind → name → layer: from encoder to encoder, "cross" from decoder to encoder, and from decoder to decoder.

    Raises:
        BadInput: no encoder-decoder, or one of its layers cannot become denoising attention; says which and why.
    """
    if not (isinstance(model, PreTrainedModel) and model.config.is_encoder_decoder):
        raise BadInput(f"{type(model).__name__} is no encoder-decoder of transformers, as BART or Marian are")
    found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    encoder = set(model.get_encoder().modules())
    for name, layer in model.named_modules():
        if not _attends(layer):
            continue
        reason = _refusal(layer)
        role = name.rpartition(".")[-1]
        if reason is None and role not in (*_SELF, *_CROSS):
            reason = f"is called {role}, not {' or '.join((*_SELF, *_CROSS))}"
        if reason is not None:
            raise BadInput(
                f"{name} ({type(layer).__name__}) cannot become denoising attention: it {reason}; "
                f"multi-head attention with {', '.join(_PROJECTIONS)} can, as BART and Marian have it"
            )
        kind = "cross" if role in _CROSS else "encoder" if layer in encoder else "decoder"
        found[kind][name] = layer
    for kind in KINDS:
        if not found[kind]:
            raise BadInput(f"{type(model).__name__} has no attention of the kind {kind!r} that can be found")
    return found


def _attends(layer: nn.Module) -> bool:
    return "Attention" in type(layer).__name__ and any(isinstance(each, nn.Linear) for each in layer.children())


def _refusal(layer: Any) -> str | None:
    """Why not, or None."""
    if hasattr(layer, "has_relative_attention_bias"):
        return "adds relative position biases to logits that it does not scale"
    if "prior_key" in dict(layer.named_buffers(recurse=False)):
        return "is one already"
    for each in _PROJECTIONS:
        if not isinstance(getattr(layer, each, None), nn.Linear):
            return f"has no linear {each}"
    for each in ("num_heads", "head_dim", "scaling"):
        if not hasattr(layer, each):
            return f"does not say its {each}"
    query, key, value = layer.q_proj, layer.k_proj, layer.v_proj
    heads, width = layer.num_heads, layer.head_dim
    if key.out_features < query.out_features:
        return f"has {query.out_features // width} heads of queries but {key.out_features // width} of keys (grouped)"
    if not (query.out_features == key.out_features == value.out_features == heads * width):
        return f"does not project queries, keys and values to {heads} heads of width {width}"
    if key.in_features != value.in_features:
        return "does not make keys and values of the same vectors"
    if not math.isclose(layer.scaling, width**-0.5):
        return f"scales its logits by {layer.scaling:g}, not by 1 / √{width}"
    beside = [
        name for name, each in layer.named_children() if name not in _PROJECTIONS and not isinstance(each, nn.Dropout)
    ]
    beside += [name for name, _ in layer.named_parameters(recurse=False)]
    if beside:
        return f"has {beside[0]} beside its projections"
    takes = inspect.signature(layer.forward).parameters
    for each in _TAKEN:
        if each not in takes:
            return f"takes no {each}"
    named = (name for name, each in takes.items() if each.kind is not inspect.Parameter.VAR_KEYWORD)
    unknown = [name for name in named if name not in (*_TAKEN, *_IGNORED)]
    return f"takes {unknown[0]}, which denoising attention does not" if unknown else None
