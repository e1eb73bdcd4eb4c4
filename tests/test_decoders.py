"""Decoders: what they compute, what a rotation of the latents leaves alone, and what is saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from embergraph.models.parts.decoders import DECODERS, Decoder, LinearDecoder, MLPDecoder
from embergraph.models.parts.errors import DataError, LoadError

D, P, F, N = 4, 7, 3, 11


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def rotation(d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.double)).Q


def every_decoder(d: int = D, p: int = P) -> list[Decoder]:
    return [cls(d, p, num_features=f) for cls in DECODERS.values() for f in (0, F)] + [MLPDecoder(d, p, (5,))]


def test_linear_against_numpy():
    decoder, c, u = LinearDecoder(D, P, F), torch.randn(N, D), torch.randn(N, F)
    weight, bias, feature = (v.detach().numpy() for v in (decoder.weight, decoder.bias, decoder.feature_weight))
    wanted = c.numpy() @ weight + u.numpy() @ feature + bias
    np.testing.assert_allclose(decoder(c, u).detach().numpy(), wanted, rtol=1e-5, atol=1e-6)
    plain = LinearDecoder(D, P)
    step = plain(torch.eye(D)) - plain(torch.zeros(D))
    torch.testing.assert_close(step, plain.mixing.T)
    assert plain.mixing.shape == (P, D)
    assert torch.equal(plain(torch.zeros(D)), plain.offset)


@pytest.mark.parametrize("features", [0, F])
def test_mlp_against_layers_on_concatenated_inputs(features):
    decoder, c, u = MLPDecoder(D, P, (6, 5), features), torch.randn(N, D), torch.randn(N, F)
    inputs = torch.cat([c, u], -1) if features else c
    layers = [decoder.first, *decoder.between, decoder.last]
    assert [tuple(layer.weight.shape) for layer in layers] == [(6, D + features), (5, 6), (P, 5)]
    h = torch.relu(layers[1](torch.relu(layers[0](inputs))))
    torch.testing.assert_close(decoder(c, u if features else None), layers[2](h))
    before = decoder(c, u)
    with torch.no_grad():
        decoder.offset.add_(1)
    torch.testing.assert_close(decoder(c, u), before + 1)


def test_draws_share_descriptors_and_only_conditional_decoders_read_them():
    c, u = torch.randn(2, 3, N, D), torch.randn(N, F)
    for decoder in every_decoder():
        together = decoder(c, u)
        assert together.shape == (2, 3, N, P)
        torch.testing.assert_close(decoder(c[1, 2], u), together[1, 2])
        assert decoder.uses_descriptors == (decoder.num_features > 0)
        assert torch.equal(decoder(c, u + 1), together) != decoder.uses_descriptors
        if decoder.uses_descriptors:
            with pytest.raises(DataError, match="^u: found None; wanted"):
                decoder(c)


@pytest.mark.parametrize("seed", range(3))
def test_rotated_latents_give_the_same_output_in_single_precision(seed):
    torch.manual_seed(seed)
    for decoder in every_decoder(20, 100):
        turn, c, u = rotation(20), torch.randn(50, 20), torch.randn(50, F)
        before = decoder(c, u)
        decoder.rotate(turn)
        rotated = (c.double() @ turn).float()
        assert (decoder(rotated, u) - before).abs().max() < 1e-5
        assert (decoder((c.double() @ turn.T).float(), u) - before).abs().max() > 1e-2  # the other way round fails
        decoder.rotate(turn.T)
        assert (decoder(c, u) - before).abs().max() < 1e-5


def test_rotations_that_are_none():
    stretched = rotation(D)
    stretched[0] *= 1.1
    for decoder in every_decoder():
        for wrong in (torch.eye(D + 1), stretched, torch.full((D, D), torch.nan)):
            with pytest.raises(DataError, match="^rotation: found .*; wanted "):
                decoder.rotate(wrong)


def test_start_is_that_of_torch():
    linear, reference = LinearDecoder(9, 4000), torch.nn.Linear(9, 4000)
    for ours, theirs in ((linear.weight, reference.weight), (linear.bias, reference.bias)):
        assert ours.abs().max() <= 1 / 3
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_settings_and_state_rebuild_a_decoder():
    c, u = torch.randn(N, D), torch.randn(N, F)
    for decoder in every_decoder():
        settings = json.loads(json.dumps(decoder.settings()))
        again = Decoder.from_settings(settings)
        assert type(again) is type(decoder)
        again.load_state_dict(decoder.state_dict())
        assert torch.equal(again(c, u), decoder(c, u))
        assert again.settings() == decoder.settings()
    with pytest.raises(LoadError, match="decoder: found 'cubic'; wanted one of"):
        Decoder.from_settings({"kind": "cubic"})


def test_sizes_and_dtype():
    for wrong in (lambda: LinearDecoder(0, P), lambda: LinearDecoder(D, P, -1), lambda: MLPDecoder(D, 0)):
        with pytest.raises(DataError, match="^num_latents, num_genes, num_features: found"):
            wrong()
    for hidden in ((), (4, 0)):
        with pytest.raises(DataError, match="^hidden: found"):
            MLPDecoder(D, P, hidden)
    for decoder in every_decoder():
        decoder.double()
        decoder.rotate(rotation(D).float())
        assert decoder(torch.randn(N, D).double(), torch.randn(N, F).double()).dtype == torch.double
