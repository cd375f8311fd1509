"""A particle filter over a batch of a pair made of steps, on Pyro."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..filtering import Filtered, Filtering, common, steps_of
from ..protocol import Batch
from ..seeds import derive
from .filtering import filtered
from .programs import Realised


class Particles(Realised):
    """What `engines.protocol.Program.filter` is made of."""

    def filter(
        self,
        state: Any,
        batch: Batch,
        *,
        seed: int,
        particles: int,
        filtering: Filtering,
        observed: np.ndarray | None = None,
    ) -> Filtered:
        with self._evaluation(seed):
            seen = None if observed is None else torch.as_tensor(observed).to(self.settings.device).t()
            found = self._filtered(self.arrays(batch), particles, filtering, seed, seen)
        return Filtered(*(part.cpu().numpy() if part.dtype != self.dtype else to_numpy(part) for part in found))

    def _filtered(
        self,
        arrays: dict[str, Tensor],
        particles: int,
        filtering: Filtering,
        seed: int | None,
        observed: Tensor | None = None,
    ) -> Filtered:
        """seed: of the common noise, when judging; None: the generator's."""
        steps = steps_of(self.pair)
        step = steps.step(self.ppl, self.networks)
        x, mask = arrays["x"].transpose(0, 1), (arrays["mask"] & (arrays["weight"] > 0).unsqueeze(-1)).t()
        shape = (len(x), particles, x.shape[1])
        if seed is None:
            noise = {"ancestors": torch.rand(shape, device=x.device, dtype=x.dtype)}
        else:
            found = common(seed, shape, step.dim)
            noise = {name: torch.as_tensor(value).to(x) for name, value in found.items()}
        proposal = steps.proposal(self.ppl, self.networks, step)
        return filtered(step, proposal, x, mask, particles=particles, spec=filtering, noise=noise, observed=observed)

    @contextmanager
    def _evaluation(self, seed: int) -> Iterator[None]:
        self._training(False)
        with torch.no_grad(), self.running(derive(seed, "evaluate")):
            yield


def to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
