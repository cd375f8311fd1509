"""The sites of two traces, of either library: where they stand, and whether model and guide fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.errors import BadInput

PARTICLES = "particles"
"""The plate of the particles."""


def frames_of(sites: Mapping[str, Any], plate: str) -> list[Any]:
    """The plate of this name, once for every site in it."""
    return [frame for site in sites.values() for frame in site["cond_indep_stack"] if frame.name == plate]


def is_shared(site: Mapping[str, Any], plate: str) -> bool:
    """Whether a site is one draw for all data."""
    return all(frame.name != plate for frame in site["cond_indep_stack"])


def rows_of(model: Mapping[str, Any], plate: str) -> int:
    """B, the size of the data plate."""
    found = frames_of(model, plate)
    if not found:
        raise BadInput(f"no site of the model stands in the plate {plate!r}: put the data in it, or name the right one")
    return found[0].size


def refuse_mismatch(guide: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """A latent of one side that the other lacks."""
    latents = {name for name, site in model.items() if not site["is_observed"]}
    for name in sorted(latents ^ set(guide)):
        here, there = ("model", "guide") if name in latents else ("guide", "model")
        raise BadInput(f"the {here} samples {name!r} and the {there} does not: a latent stands in both")


def refuse_shapes(name: str, p: Mapping[str, Any], q: Mapping[str, Any] | None, plate: str) -> None:
    """Else terms would be broadcast, and silently wrong. q: None for an observed site."""
    q = q or p
    inside = [not is_shared(site, plate) for site in (p, q)]
    if inside[0] != inside[1]:
        here, there = ("model", "guide") if inside[0] else ("guide", "model")
        raise BadInput(f"the latent {name!r} stands in the plate {plate!r} in the {here}, and outside in the {there}")
    events = [tuple(site["fn"].event_shape) for site in (p, q)]
    if events[0] != events[1]:
        raise BadInput(
            f"the latent {name!r} has the event shape {events[0]} in the model and {events[1]} in the guide: "
            "to_event declares the dimensions of one datum"
        )
    batches = [_own_batch(site) for site in (p, q)]
    if batches[0] != batches[1]:
        raise BadInput(
            f"the latent {name!r} has the batch shape {batches[0]} in the model and {batches[1]} in the guide: "
            "what one side scans or plates, the other does too"
        )


def _own_batch(site: Mapping[str, Any]) -> tuple[int, ...]:
    """The batch shape of a site without particles and leading ones."""
    shape = list(site["fn"].batch_shape)
    for frame in site["cond_indep_stack"]:
        if frame.name == PARTICLES and len(shape) >= -frame.dim:
            del shape[frame.dim]
    return tuple(shape[next((place for place, size in enumerate(shape) if size != 1), len(shape)) :])


def refuse_scale(name: str, p: Mapping[str, Any], q: Mapping[str, Any] | None, data_size: int, rows: int) -> None:
    """Terms are unscaled: a scale that is not the plate's own would be lost. q: None for an observed site."""
    scales = [float(1.0 if site["scale"] is None else site["scale"]) for site in (p, q or p)]
    allowed = (1.0, data_size / rows)
    if any(all(abs(scale - right) > 1e-6 * right for right in allowed) for scale in scales) or (
        abs(scales[0] - scales[1]) > 1e-6 * scales[0]
    ):
        guide = "" if q is None else f" and {scales[1]:g} in the guide"
        raise BadInput(
            f"the site {name!r} is scaled by {scales[0]:g} in the model{guide}, where the data plate gives "
            f"{data_size / rows:g}: leave weights out of programs and set divergence.weight"
        )
