"""The table of pairs. A new pair is one entry here; every generic test is parametrised over it."""

from __future__ import annotations

from ..models.dmm import DMMModel, DMMStep
from ..models.language_model import SITES as LANGUAGE_SITES
from ..models.language_model import LanguageModel, language_model
from ..models.linear_gaussian import LinearGaussianModel, LinearGaussianStep
from ..models.nvae import SITES as NVAE_SITES
from ..models.nvae import NVAEModel, nvae
from ..models.rnn import SITES as RNN_SITES
from ..models.rnn import RNNModel, RNNStep, rnn
from ..models.sentence_vae import SITES as SENTENCE_SITES
from ..models.sentence_vae import SentenceModel, sentence_vae
from ..models.sequence import PLATE
from ..models.spec import Network
from ..models.srnn import SRNNModel, SRNNStep
from ..models.vae import SITES as VAE_SITES
from ..models.vae import VAEModel, vae
from ..models.vrnn import VRNNModel, VRNNStep
from .dmm_guide import DMMGuide, DMMProposal
from .linear_gaussian_guide import LinearGaussianGuide, LinearGaussianProposal
from .nvae_guide import NVAEGuide, nvae_guide
from .pair import NoLatents, Pair, Steps
from .sentence_guide import SentenceGuide, sentence_guide
from .sequence_guide import NoProposal, sequence_pair
from .srnn_guide import SRNNGuide, SRNNProposal
from .vae_guide import VAEGuide, vae_guide
from .vrnn_guide import VRNNGuide, VRNNProposal

SENTENCE_VAE = Pair(
    model=sentence_vae,
    guide=sentence_guide,
    name="sentence_vae",
    networks=lambda model, guide, vocabulary: (
        model.networks(vocabulary, guide.encoder.embedding) | guide.networks(vocabulary, model.prior.dim)
    ),
    model_spec=SentenceModel,
    guide_spec=SentenceGuide,
    plate="sentences",
    sites=SENTENCE_SITES,
    text=True,
)

NVAE = Pair(
    model=nvae,
    guide=nvae_guide,
    name="nvae",
    networks=lambda model, guide, vocabulary: model.networks(vocabulary) | guide.networks(vocabulary, model.prior.dim),
    model_spec=NVAEModel,
    guide_spec=NVAEGuide,
    plate="sentences",
    sites=NVAE_SITES,
    text=True,
)

LANGUAGE_MODEL = Pair(
    model=language_model,
    name="language_model",
    networks=lambda model, guide, vocabulary: model.networks(vocabulary),
    model_spec=LanguageModel,
    guide_spec=NoLatents,
    plate="sentences",
    sites=LANGUAGE_SITES,
    text=True,
)


def _vae_networks(model: VAEModel, guide: VAEGuide, width: int) -> dict[str, Network]:
    networks = model.networks(width)
    return networks | guide.networks(width, model.prior.dim, networks["decoder"])


VAE = Pair(
    model=vae,
    guide=vae_guide,
    name="vae",
    networks=_vae_networks,
    model_spec=VAEModel,
    guide_spec=VAEGuide,
    sites=VAE_SITES,
)

RNN = Pair(
    model=rnn,
    name="rnn",
    networks=lambda model, guide, width: model.networks(width),
    model_spec=RNNModel,
    guide_spec=NoLatents,
    plate=PLATE,
    sites=RNN_SITES,
    steps=Steps(RNNStep, NoProposal),
)


def _vrnn_networks(model: VRNNModel, guide: VRNNGuide, width: int) -> dict[str, Network]:
    sizes = {"read": model.features, "state": model.cell.hidden, "latent": model.prior.dim}
    return model.networks(width) | guide.networks(**sizes)


VRNN = sequence_pair("vrnn", VRNNStep, VRNNProposal, _vrnn_networks, VRNNModel, VRNNGuide)


def _srnn_networks(model: SRNNModel, guide: SRNNGuide, width: int) -> dict[str, Network]:
    sizes = {"read": model.recurrent.hidden + width, "state": model.prior.dim, "latent": model.prior.dim}
    return model.networks(width) | guide.networks(**sizes)


SRNN = sequence_pair("srnn", SRNNStep, SRNNProposal, _srnn_networks, SRNNModel, SRNNGuide)

DMM = sequence_pair(
    "dmm",
    DMMStep,
    DMMProposal,
    lambda model, guide, width: model.networks(width) | guide.networks(model, width),
    DMMModel,
    DMMGuide,
)

LINEAR_GAUSSIAN = sequence_pair(
    "linear_gaussian",
    LinearGaussianStep,
    LinearGaussianProposal,
    lambda model, guide, width: model.networks(width) | guide.networks(width),
    LinearGaussianModel,
    LinearGaussianGuide,
)

PAIRS = {pair.name: pair for pair in (SENTENCE_VAE, NVAE, LANGUAGE_MODEL, VAE, RNN, VRNN, SRNN, DMM, LINEAR_GAUSSIAN)}
