"""Generative stories p(x, z), one per file, and the specs they are made of."""

from .batch import Batch
from .decoders import Decoder, GRUDecoder, LSTMDecoder
from .errors import BadInput, FailedRun
from .flows import CouplingFlow, Flow, InverseAutoregressiveFlow, PlanarFlow
from .language_model import LanguageModel, language_model
from .mlp import MLP
from .ppl import PPL
from .priors import (
    Categorical,
    ConditionalNormal,
    FlowPrior,
    GaussianMixture,
    IndependentBernoulli,
    LearnedNormal,
    Prior,
    StandardNormal,
    UniformBox,
    VampPrior,
)
from .sentence_vae import SentenceModel, sentence_vae
from .spec import Network, Spec, Weight

__all__ = [
    "MLP",
    "PPL",
    "BadInput",
    "Batch",
    "Categorical",
    "ConditionalNormal",
    "CouplingFlow",
    "Decoder",
    "FailedRun",
    "Flow",
    "FlowPrior",
    "GRUDecoder",
    "GaussianMixture",
    "IndependentBernoulli",
    "InverseAutoregressiveFlow",
    "LSTMDecoder",
    "LanguageModel",
    "LearnedNormal",
    "Network",
    "PlanarFlow",
    "Prior",
    "SentenceModel",
    "Spec",
    "StandardNormal",
    "UniformBox",
    "VampPrior",
    "Weight",
    "language_model",
    "sentence_vae",
]
