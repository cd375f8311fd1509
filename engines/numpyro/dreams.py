"""The sleep phase on NumPyro: the model draws latents and data, the guide reads the data and is scored at the latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from numpyro import handlers

from ..dreams import replaced


def asleep(model: Callable[..., Any], guide: Callable[..., Any], key: Array, *args: Any, **kwargs: Any) -> Any:
    """The guide's trace at latents and data that the model draws; the model's parameters are to be held fixed.

    Raises:
        BadInput: `engines.dreams.replaced` cannot find the data among the arguments.
    """
    model_key, guide_key = jax.random.split(key)
    dream = handlers.trace(handlers.uncondition(handlers.seed(model, model_key))).get_trace(*args, **kwargs)
    shown = {
        name: (site["infer"].get("obs"), site["value"])
        for name, site in dream.items()
        if site["type"] == "sample" and (site["is_observed"] or site["infer"].get("was_observed"))
    }
    args, kwargs = replaced((args, kwargs), shown)
    return handlers.trace(handlers.replay(handlers.seed(guide, guide_key), trace=dream)).get_trace(*args, **kwargs)
