"""An encoder's code is made of the states after real tokens only, whatever the pooling."""

from __future__ import annotations

from importlib import import_module

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from guidebook.guides import GRUEncoder, LSTMEncoder
from guidebook.models.spec import Network

pytestmark = pytest.mark.usefixtures("_float64")
TOKENS = np.array([[1, 4, 5, 6, 2, 0, 0], [1, 7, 2, 0, 0, 0, 0], [1, 4, 4, 4, 4, 4, 2]])
LENGTHS = np.array([5, 3, 7])


def codes(engine, kind, pooling, tokens, lengths):
    """(B, H) of an encoder whose states are far from zero."""
    encoder = {"lstm": LSTMEncoder, "gru": GRUEncoder}[kind]
    spec = encoder(embedding=3, hidden=4, pooling=pooling, initial_scale=0.8, embedding_scale=2.0)
    network = Network(spec, {"vocabulary": 9})
    realise = import_module(f"guidebook.engines.{engine}.networks").realise
    realised = realise(network, network.initial_weights("encoder", 0), dtype="float64")
    if engine == "pyro":
        return realised(torch.as_tensor(tokens), torch.as_tensor(lengths)).detach().numpy()
    return np.asarray(realised(jnp.asarray(tokens), jnp.asarray(lengths)))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(("pooling", "pool"), [("last", lambda states: states[-1]), ("mean", np.mean), ("max", np.max)])
def test_the_code_pools_the_states_of_the_real_tokens(engine, kind, pooling, pool):
    """The state after t tokens is what `last` gives for the first t."""
    found = codes(engine, kind, pooling, TOKENS, LENGTHS)
    for row, length in enumerate(LENGTHS):
        prefixes = np.arange(1, length + 1)
        states = codes(engine, kind, "last", np.tile(TOKENS[row], (length, 1)), prefixes)
        wanted = pool(states) if pooling == "last" else pool(states, axis=0)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-10)
        alone = codes(engine, kind, pooling, TOKENS[row : row + 1, :length], LENGTHS[row : row + 1])
        np.testing.assert_allclose(found[row], alone[0], rtol=1e-10)
