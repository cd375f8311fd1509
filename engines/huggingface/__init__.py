"""Pretrained encoder-decoders of Hugging Face with denoising attention in place of theirs (COLM 2024)."""

from .attentions import attentions
from .denoising import regularised
from .priors import empirical_priors, load_priors, save_priors

__all__ = ["attentions", "empirical_priors", "load_priors", "regularised", "save_priors"]
