"""Empirical priors of the attention layers of a model in one pass over its data, and their file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...models.errors import BadInput
from ..identity import EmpiricalPrior, Moments
from .attentions import attentions


def empirical_priors(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    progress: Callable[[int], object] | None = None,
) -> dict[str, EmpiricalPrior]:
    """Name of a layer → the moments of the vectors that it attends to, over all tokens that are no padding.

    batches: what `model(**batch)` takes, with decoder_input_ids or labels; those of fine-tuning, say. One pass without
    dropout or gradients. progress: called with the number of batches seen, after each.
    """
    found = attentions(model)
    moments = {name: Moments(layer.head_dim) for layers in found.values() for name, layer in layers.items()}
    masks: dict[str, Tensor | None] = {}
    hooks = [
        layer.register_forward_pre_hook(_reading(name, kind, moments[name], masks), with_kwargs=True)
        for kind, layers in found.items()
        for name, layer in layers.items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for seen, batch in enumerate(batches, 1):
            here = {name: each.to(model.device) for name, each in batch.items()}
            encoder = here.get("attention_mask")
            decoder = _decoder_mask(here, getattr(model.config, "pad_token_id", None))
            masks.update(encoder=encoder, cross=encoder, decoder=decoder)
            with torch.no_grad():
                model(**here, use_cache=False)
            if progress is not None:
                progress(seen)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return {name: _named(name, each.prior) for name, each in moments.items()}


def _reading(name: str, kind: str, moments: Moments, masks: Mapping[str, Tensor | None]) -> Callable[..., None]:
    """A hook that adds what a layer is about to attend to."""

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = kwargs["key_value_states"] if kind == "cross" else args[0] if args else kwargs["hidden_states"]
        mask = masks[kind]
        if mask is not None and mask.shape != states.shape[:2]:
            raise BadInput(f"{name} attends to vectors {tuple(states.shape[:2])}, their mask is {tuple(mask.shape)}")
        rows = states.flatten(0, 1) if mask is None else states[mask.bool()]
        moments.add(rows.cpu().double().numpy())

    return hook


def _decoder_mask(batch: Mapping[str, Tensor], pad: int | None) -> Tensor:
    """(B, T): False at padding. The first place holds what the decoder starts with, which may be the padding's id."""
    if "decoder_attention_mask" in batch:
        return batch["decoder_attention_mask"]
    if "decoder_input_ids" in batch:
        read = batch["decoder_input_ids"][:, 1:]
    elif "labels" in batch:
        read = batch["labels"][:, :-1]
    else:
        raise BadInput("a batch needs decoder_input_ids or labels, or the decoder has nothing to read")
    there = read != -100
    if pad is not None:
        there &= read != pad
    return torch.cat([torch.ones_like(there[:, :1]), there], -1) if there.shape[-1] else there.new_ones(len(there), 1)


def _named(name: str, prior: Callable[[], EmpiricalPrior]) -> EmpiricalPrior:
    try:
        return prior()
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None


def save_priors(priors: Mapping[str, EmpiricalPrior], path: str | Path) -> None:
    """One safetensors file, which replaces `path` whole or not at all; BadInput if there is no such folder."""
    path = Path(path)
    if not path.parent.is_dir() or path.is_dir():
        raise BadInput(f"{path} cannot be written: the name of a file in a folder that exists would be right")
    partial = path.with_name(f".{path.name}.partial")
    save_file(
        {f"{name}.{field}": np.asarray(x) for name, each in priors.items() for field, x in each._asdict().items()},
        partial,
    )
    os.replace(partial, path)


def load_priors(path: str | Path) -> dict[str, EmpiricalPrior]:
    """What `save_priors` wrote; BadInput if the file is missing or another."""
    try:
        arrays = load_file(path)
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist: save_priors writes it") from None
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is truncated or not a safetensors file: {error}") from None
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        name, _, field = key.rpartition(".")
        found.setdefault(name, {})[field] = array
    if any(set(each) != set(EmpiricalPrior._fields) for each in found.values()):
        raise BadInput(
            f"{path} does not hold {', '.join(EmpiricalPrior._fields)} of every layer: save_priors writes it"
        )
    return {name: EmpiricalPrior(**each) for name, each in found.items()}
