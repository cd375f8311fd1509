"""A pair as the suite's other rooms read it."""

import pytest
from pydantic import ValidationError

from guidebook.guides import PAIRS, DiagonalNormal, LSTMEncoder, Pair, SentenceGuide
from guidebook.guides.pair import NoLatents
from guidebook.models import MLP, Network


def test_networks_are_wrapped_and_their_sizes_kept():
    spec = MLP(inputs=2, outputs=3)
    pair = Pair(model=print, guide=print, networks={"bare": spec, "sized": Network(spec, {"latent": 2})})
    found = pair.realisable(NoLatents(), NoLatents())
    assert found["bare"].spec is spec
    assert dict(found["bare"].sizes) == {}
    assert dict(found["sized"].sizes) == {"latent": 2}
    assert all(network.declared for network in found.values())
    assert not Network(object()).declared


def test_networks_may_hang_on_the_tables():
    pair = PAIRS["sentence_vae"]
    guide = SentenceGuide(posterior=DiagonalNormal(), encoder=LSTMEncoder(embedding=3, hidden=5))
    found = pair.realisable(pair.model_spec(), guide, 17)
    assert found["encoder"].sizes["vocabulary"] == 17
    assert found["posterior"].spec.layout(**found["posterior"].sizes)["weight"].shape == (2 * 32, 5)


def test_a_guide_without_latents_takes_no_keys():
    with pytest.raises(ValidationError):
        NoLatents.model_validate({"posterior": {}})


def test_specs_are_frozen():
    with pytest.raises(ValidationError):
        LSTMEncoder().hidden = 3
