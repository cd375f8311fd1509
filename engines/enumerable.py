"""What can be enumerated: one discrete latent a datum, of at most `LARGEST` values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.errors import BadInput

LARGEST = 1 << 12
_INSTEAD = 'estimator = "score" would be right'


def refuse_latents(guide: Mapping[str, Any]) -> tuple[str, Any]:
    """The one latent of the guide, by name."""
    if len(guide) != 1:
        named = ", ".join(map(repr, guide)) or "none"
        raise BadInput(f"enumeration sums over the values of one latent and the guide has {named}: {_INSTEAD}")
    return next(iter(guide.items()))


def refuse_other(name: str, *, one_a_datum: bool, discrete: bool) -> None:
    if not discrete:
        raise BadInput(f"enumeration sums over the values of a latent and {name!r} is continuous: {_INSTEAD}")
    if not one_a_datum:
        raise BadInput(
            f"enumeration sums over one draw of the latent for every datum, and {name!r} has another number: {_INSTEAD}"
        )


def refuse_size(name: str, values: int, coordinates: int) -> None:
    if values**coordinates > LARGEST:
        raise BadInput(
            f"enumeration would sum over {values}^{coordinates} values of the latent {name!r}, "
            f"and at most {LARGEST} are listed: {_INSTEAD}"
        )
