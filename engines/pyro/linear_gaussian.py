"""The parts of the linear-Gaussian state-space pair on Pyro."""

from __future__ import annotations

from torch import Tensor

from ...guides.linear_gaussian_guide import Gains as GainsSpec
from ...guides.linear_gaussian_guide import Smoother as SmootherSpec
from ...models.linear_gaussian import Dynamics as DynamicsSpec
from .module import Realised


class Dynamics(Realised):
    """dynamics() is a, q and r, each (D,)."""

    decay: Tensor
    log_state_variance: Tensor
    log_noise_variance: Tensor

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.decay, self.log_state_variance.exp(), self.log_noise_variance.exp()


class Gains(Realised):
    """gains() is w, g and s², each (D,)."""

    by_state: Tensor
    by_data: Tensor
    log_variance: Tensor

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.by_state, self.by_data, self.log_variance.exp()


LINEAR_GAUSSIAN: dict[type, type[Realised]] = {DynamicsSpec: Dynamics, GainsSpec: Gains, SmootherSpec: Realised}
