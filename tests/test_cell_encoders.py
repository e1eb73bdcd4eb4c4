"""Encoders of cells: transforms against numpy, rotations absorbed, descriptors where they belong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from embergraph.guides.parts import cell_encoders
from embergraph.guides.parts.cell_encoders import CellEncoder
from embergraph.models.parts.decoders import LinearDecoder, MLPDecoder
from embergraph.models.parts.errors import DataError, LoadError

P, D, F, N = 8, 3, 4, 30
EVERY = [("x", ()), ("x", (6, 5)), ("x_u", ()), ("x_u", (6,)), ("film", (6, 5))]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def made(sees: str, hidden: tuple[int, ...], transform: str = "log1p") -> CellEncoder:
    encoder = CellEncoder(P, D, hidden, transform, sees, F)
    for weight in encoder.film.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return encoder


def counts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.poisson(torch.rand(N, P) * 20)
    x[:, 2] = 5.0
    return x, x.sum(-1), torch.randn(N, F)


def rotation(d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.double)).Q


@pytest.mark.parametrize(
    ("transform", "wanted"),
    [
        ("identity", lambda x, library: x),
        ("log1p", lambda x, library: np.log1p(x)),
        ("log1p_library", lambda x, library: np.log1p(400 * x / library[:, None])),
    ],
)
def test_transform_and_standardisation_against_numpy(transform, wanted, monkeypatch):
    monkeypatch.setattr(cell_encoders, "ROWS", 7)  # in several pieces
    x, library, _ = counts()
    encoder = CellEncoder(P, D, (), transform).fit_transform_(x, library)
    t = wanted(x.double().numpy(), library.double().numpy())
    spread = t.std(0)
    if transform != "log1p_library":
        spread[2] = 1.0
    np.testing.assert_allclose(encoder.center.numpy(), t.mean(0), rtol=1e-6)
    np.testing.assert_allclose(encoder.scale.numpy(), spread, rtol=1e-6)
    head = (t - t.mean(0)) / spread @ encoder.head.weight.detach().double().numpy().T
    head += encoder.head.bias.detach().numpy()
    location, log_variance = encoder(x, library)
    np.testing.assert_allclose(location.detach().numpy(), head[:, :D], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_variance.detach().numpy(), head[:, D:].clip(-8, 4), rtol=1e-4, atol=1e-5)


def test_target_sum_scales_cells():
    x, library, _ = counts()
    encoder = CellEncoder(P, D, transform="log1p_library", target_sum=1e4)
    np.testing.assert_allclose(encoder.transformed(x, library).expm1().sum(-1).numpy(), 1e4, rtol=1e-4)
    assert torch.equal(encoder.transformed(torch.zeros(2, P), torch.zeros(2)), torch.zeros(2, P))


@pytest.mark.parametrize("constant", [0.0, 0.1, 0.7, 1e5])
def test_a_constant_gene_enters_as_zero(constant):
    x = torch.randn(N, P).abs()
    x[:, 2] = constant
    for transform in ("identity", "log1p"):
        encoder = CellEncoder(P, D, (), transform).fit_transform_(x)
        assert encoder.scale[2] == 1
        weight = encoder.head.weight.detach().clone()
        before = encoder(x)[0]
        with torch.no_grad():
            encoder.head.weight[:, 2] += 1
        torch.testing.assert_close(encoder(x)[0], before, atol=1e-6 * (1 + constant), rtol=0)
        assert not torch.equal(weight, encoder.head.weight)


@pytest.mark.parametrize("seed", range(3))
def test_rotation_is_absorbed_exactly_in_the_location_and_averaged_in_the_log_variance(seed):
    torch.manual_seed(seed)
    x, library, u = counts()
    for sees, hidden in EVERY:
        encoder, turn = made(sees, hidden).double(), rotation(D)
        before = encoder(x, library, u)
        encoder.rotate(turn)
        location, log_variance = encoder(x, library, u)
        torch.testing.assert_close(location, before[0] @ turn, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(location, before[0] @ turn.T, atol=1e-2)
        assert before[1].abs().max() < 3.9  # not clamped
        torch.testing.assert_close(log_variance, before[1] @ turn.square(), rtol=1e-10, atol=1e-10)
        permutation = torch.eye(D, dtype=torch.double)[[2, 0, 1]]
        encoder.rotate(-permutation)  # relabelling is exact in both
        again = encoder(x, library, u)
        torch.testing.assert_close(again[0], -location @ permutation, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(again[1], log_variance @ permutation, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_decoded_cells_do_not_see_a_rotation_of_encoder_and_decoder(seed):
    torch.manual_seed(seed)
    x, d = torch.poisson(torch.rand(50, 100) * 20), 20
    for decoder in (LinearDecoder(d, 100), MLPDecoder(d, 100)):
        encoder, turn = CellEncoder(100, d, transform="log1p").fit_transform_(x), rotation(d)
        before = decoder(encoder(x)[0])
        encoder.rotate(turn)
        moved = decoder(encoder(x)[0])
        decoder.rotate(turn)
        assert (decoder(encoder(x)[0]) - before).abs().max() < 1e-5
        assert (moved - before).abs().max() > 1e-2


def test_log_variances_are_clamped_on_expression_unlike_any_seen():
    x, _, _ = counts()
    encoder = CellEncoder(P, D, (6,)).fit_transform_(x)
    _, log_variance = encoder(1e6 * torch.randn(200, P))
    assert log_variance.min() == -8
    assert log_variance.max() == 4


@pytest.mark.parametrize("hidden", [(6,), (6, 5)])
def test_film_starts_without_descriptors_and_reads_them_by_feature_and_layer(hidden):
    x, _, u = counts()
    encoder = CellEncoder(P, D, hidden, "log1p", "film", F).fit_transform_(x)
    plain = CellEncoder(P, D, hidden, "log1p")
    plain.load_state_dict(encoder.state_dict(), strict=False)
    for ours, theirs in zip(encoder(x, u=u), plain(x), strict=True):
        assert torch.equal(ours, theirs)
    for modulation in encoder.film:  # descriptors can be learnt from the start
        encoder.zero_grad()
        encoder(x, u=u)[0].square().sum().backward()
        gain, shift = modulation.weight.grad.chunk(2)
        assert (gain.abs().sum(0) > 0).all()
        assert (shift.abs().sum(0) > 0).all()
        assert len(gain.abs().sum(1).unique()) > 1  # every unit has a modulation of its own
    with torch.no_grad():
        for weight in encoder.film.parameters():
            weight.normal_()
    h = (x.log1p() - encoder.center) / encoder.scale
    for layer, modulation in zip(encoder.layers, encoder.film, strict=True):
        h = linear(h, layer.weight, layer.bias)
        gain, shift = (u @ modulation.weight.T).tensor_split(2, -1)
        assert gain.shape == h.shape
        h = torch.relu((1 + gain) * h + shift)
    found = encoder(x, u=u)[0]
    torch.testing.assert_close(found, encoder.head(h)[:, :D], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, encoder(x, u=u.flip(-1))[0], atol=1e-2)
    torch.testing.assert_close(encoder(x, u=0 * u)[0], plain(x)[0])  # no descriptor, no modulation


def test_descriptors_side_by_side():
    x, _, u = counts()
    encoder = CellEncoder(P, D, (), sees="x_u", num_features=F)
    wanted = torch.cat([x, u], -1) @ encoder.head.weight.T + encoder.head.bias
    torch.testing.assert_close(encoder(x, u=u)[0], wanted[:, :D])
    assert encoder.uses_descriptors
    assert not CellEncoder(P, D, num_features=F).uses_descriptors
    for sees, hidden in EVERY[2:]:
        with pytest.raises(DataError, match="^u: found None; wanted descriptors"):
            made(sees, hidden)(x)


def test_leading_axes_and_dtypes():
    x, library, u = counts()
    for sees, hidden in EVERY:
        encoder = made(sees, hidden, "log1p_library")
        together = encoder(x.expand(2, N, P), library, u)[0]
        assert together.shape == (2, N, D)
        torch.testing.assert_close(together[1], encoder(x, library, u)[0])
        assert encoder(x.long(), library, u.double())[0].dtype == torch.float
        assert encoder.double()(x, library, u)[0].dtype == torch.double


def test_settings_and_state_rebuild_an_encoder():
    x, library, u = counts()
    for sees, hidden in EVERY:
        encoder = made(sees, hidden, "log1p_library").fit_transform_(x, library)
        settings = json.loads(json.dumps(encoder.settings()))
        again = CellEncoder.from_settings(settings)
        again.load_state_dict(encoder.state_dict())
        for ours, theirs in zip(again(x, library, u), encoder(x, library, u), strict=True):
            assert torch.equal(ours, theirs)
        assert again.settings() == settings
    with pytest.raises(LoadError, match="encoder: found 'gp'; wanted 'cell_encoder'"):
        CellEncoder.from_settings({"kind": "gp"})


def test_what_is_refused():
    x, _, _ = counts()
    for wrong, message in (
        (lambda: CellEncoder(0, D), "num_genes, num_latents, hidden: found 0, 3"),
        (lambda: CellEncoder(P, D, (4, 0)), "num_genes, num_latents, hidden: found 8, 3"),
        (lambda: CellEncoder(P, D, transform="sqrt"), "transform: found 'sqrt'"),
        (lambda: CellEncoder(P, D, sees="u"), "sees: found 'u'"),
        (lambda: CellEncoder(P, D, sees="film"), "num_features: found 0"),
        (lambda: CellEncoder(P, D, (), sees="film", num_features=F), "hidden: found no layer"),
        (lambda: CellEncoder(P, D, target_sum=0.0), "target_sum: found 0.0"),
        (lambda: CellEncoder(P, D).fit_transform_(x[:, 1:]), "x: found shape"),
        (lambda: CellEncoder(P, D).fit_transform_(x[:0]), "x: found shape"),
        (lambda: CellEncoder(P, D, transform="log1p").fit_transform_(x - 100), "x: found values"),
        (lambda: CellEncoder(P, D, transform="log1p_library").fit_transform_(x), "library: found None"),
        (lambda: CellEncoder(P, D).rotate(2 * torch.eye(D)), "rotation: found R'R off"),
    ):
        with pytest.raises(DataError, match=f"^{message}.*; wanted"):
            wrong()
