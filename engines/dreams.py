"""The sleep phase of wake-sleep: what the model has drawn takes the place of what it was shown, wherever it stood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.batch import Batch
from ..models.errors import BadInput
from .arrays import namespace

EOS = 2
Dreams = Mapping[str, tuple[Any, Any]]
"""Observed site → the value it was given, the value that was drawn."""


def replaced(arguments: Any, dreams: Dreams) -> Any:
    """The arguments of a program with each observed array exchanged for its dream; the array is known by identity.

    arguments: arrays in tuples, dicts and `Batch`es. Of sentences, all that follows from `targets` follows: a dream has
    no word dropout, and is cut at the width of the batch.

    Raises:
        BadInput: an observed value that is none of the arguments' arrays, or has another shape than its dream.
    """
    by_identity = {id(shown): _like(dream, shown) for shown, dream in dreams.values() if _fits(dream, shown)}
    met: set[int] = set()

    def exchanged(value: Any) -> Any:
        if id(value) in by_identity:
            met.add(id(value))
            return by_identity[id(value)]
        if isinstance(value, Batch):
            return Batch(exchanged(value.arrays), value.data_size)
        if isinstance(value, Mapping):
            found = {key: exchanged(own) for key, own in value.items()}
            sentences = {"tokens", "inputs", "targets", "lengths"} <= found.keys()
            return _sentences(found) if sentences and found["targets"] is not value["targets"] else found
        return tuple(map(exchanged, value)) if isinstance(value, tuple) else value

    found = exchanged(arguments)
    for site, (shown, _) in dreams.items():
        if id(shown) not in met:
            raise BadInput(
                f"the sleep phase cannot show the guide what the model draws for {site!r}: its obs is no array of the "
                "batch as it was handed in; observe that array itself (obs=batch.x), or leave divergence.sleep at 0"
            )
    return found


def _sentences(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`targets` (B, T) up to the first eos as a sentence of the batch."""
    targets = arrays["targets"]
    tokens = namespace(targets).concatenate((arrays["tokens"][:, :1], targets), -1)
    lengths = 1 + ((targets == EOS).cumsum(-1)[:, :-1] == 0).sum(-1)
    return {**arrays, "tokens": tokens, "inputs": tokens[:, :-1], "lengths": _like(lengths, arrays["lengths"])}


def _fits(dream: Any, shown: Any) -> bool:
    return tuple(dream.shape) == tuple(getattr(shown, "shape", (None,)))


def _like(value: Any, shown: Any) -> Any:
    return namespace(value).like(value, shown)
