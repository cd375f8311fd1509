"""What a fitted pair of sentences is decoded from on Pyro: the prior, the mean of q(F | x), and the decoder word by word."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from ..protocol import Batch
from . import objective
from .particles import Particles, to_numpy


class _AtMeans(Messenger):
    """Around a guide: each measure at its mean, in place of a draw."""

    def _pyro_sample(self, msg: Any) -> None:
        if hasattr(msg["fn"], "mean_measure"):
            msg["value"] = msg["fn"].mean_measure


class Decoding(Particles):
    """The part of `engines.protocol.Program` that makes sentences."""

    def prior_draws(self, state: Any, *, seed: int, rows: int, lengths: np.ndarray | None = None) -> np.ndarray:
        with self._evaluation(seed):
            prior = self.ppl.module("prior", self.networks["prior"])
            if lengths is None:
                return to_numpy(prior().sample((rows,)))
            numbers = torch.as_tensor(np.array(lengths), device=self.settings.device)
            return to_numpy(prior(numbers, int(max(lengths))).sample())

    def mean_measures(self, state: Any, batch: Batch) -> dict[str, np.ndarray]:
        _, guide = self.programs()
        with self._evaluation(0):
            trace = poutine.trace(_AtMeans()(guide)).get_trace(self.arrays(batch))
            return {name: to_numpy(site["value"]) for name, site in objective.sites(trace).items()}

    def attention(self, state: Any, batch: Batch, measure: np.ndarray) -> np.ndarray:
        with self._evaluation(0):
            means = torch.as_tensor(measure).to(self.settings.device, self.dtype)
            return to_numpy(self._decoder.attention(means, self.arrays(batch)["inputs"]))

    def decode_start(self, state: Any, latent: np.ndarray | None, rows: int, steps: int) -> Any:
        z = None if latent is None else torch.as_tensor(latent).to(self.settings.device, self.dtype)
        with torch.no_grad():
            return self._decoder.start(z, rows, steps)

    def decode_step(self, state: Any, cache: Any, tokens: np.ndarray) -> tuple[Any, np.ndarray]:
        with torch.no_grad():
            cache, logits = self._decoder.step(cache, torch.as_tensor(tokens).to(self.settings.device))
        return cache, logits.float().cpu().numpy()

    def decode_reorder(self, cache: Any, index: np.ndarray) -> Any:
        rows = torch.as_tensor(index).to(self.settings.device)
        return tuple(part[rows] for part in cache)

    @property
    def _decoder(self) -> Any:
        return self.networks["decoder"].eval()
