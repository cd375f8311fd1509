"""The sleep phase on Pyro: the model draws latents and data, the guide reads the data and is scored at the latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine

from ..dreams import replaced


def asleep(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The guide's trace at latents and data that the model draws; no gradient reaches the model.

    Raises:
        BadInput: `engines.dreams.replaced` cannot find the data among the arguments.
    """
    with torch.no_grad():
        dream: Any = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    shown = {
        name: (site["infer"]["obs"], site["value"])
        for name, site in dream.nodes.items()
        if site["type"] == "sample" and _was_data(site["infer"] or {})
    }
    args, kwargs = replaced((args, kwargs), shown)
    return poutine.trace(poutine.replay(guide, trace=dream)).get_trace(*args, **kwargs)


def _was_data(infer: Any) -> bool:
    return infer.get("was_observed", False) and not infer.get("_deterministic", False)
