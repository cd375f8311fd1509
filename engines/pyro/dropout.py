"""Dropout whose noise costs a fifth of `torch.nn.functional.dropout`'s on a processor.

There the generator is serial and the larger part of the time. One draw of 64 random bits decides four
elements, each by 16 bits; the scale belongs to the rate so rounded (by at most 2⁻¹⁷), so that the expectation
is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dropped(x: Tensor, rate: float) -> Tensor:
    """x with each element zero with probability `rate`, the others scaled by 1 / (1 − rate)."""
    if rate == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped_of = round(rate * 2**16)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    return x * (bits >= dropped_of - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped_of))
