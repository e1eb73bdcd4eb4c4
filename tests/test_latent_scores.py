"""Scores of latents, decoders and targets: known answers, invariances, what chance gives."""

import numpy as np
import pytest
import xarray as xr

from embergraph import latent_scores as scores
from embergraph.datasets import simulated_environments
from embergraph.models.parts.errors import DataError


def cells(count: int = 2000, latents: int = 4, seed: int = 0) -> np.ndarray:
    """Independent latents: scores of them have known values."""
    return np.random.default_rng(seed).normal(size=(count, latents))


def turned(theta: float) -> np.ndarray:
    return np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])


# --- alignment and correlation ---


def test_alignment_finds_permutation_and_signs() -> None:
    true = cells()
    order, signs = np.array([2, 0, 3, 1]), np.array([-1.0, 1.0, 1.0, -1.0])
    inferred = np.empty_like(true)
    inferred[:, order] = 3 * signs * true + 1
    found = scores.align(inferred, true)
    assert found.position.tolist() == order.tolist()
    assert found.sign.tolist() == signs.tolist()
    np.testing.assert_allclose(found.correlation, 1)
    np.testing.assert_allclose(found.take(inferred - inferred.mean(0), signed=True), 3 * (true - true.mean(0)))
    assert scores.mcc(inferred, true) == pytest.approx(1)


def test_alignment_is_optimal_and_not_greedy() -> None:
    first, second = cells(4000, 2).T
    # Greedy would take the pair 0-0 (.80) and be left with 1-1 (0); the best sum is .6 + .8.
    inferred = np.stack([0.8 * first + 0.6 * second, first * 0.79 + 0.613 * cells(4000, 1, seed=5)[:, 0]], axis=1)
    found = scores.align(inferred, np.stack([first, second], axis=1))
    assert found.position.tolist() == [1, 0]


def test_more_and_fewer_inferred_latents() -> None:
    true = cells(latents=3)
    more = np.concatenate([cells(latents=2, seed=1), -true[:, ::-1], np.ones((2000, 1))], axis=1)
    found = scores.align(more, true)
    assert found.position.tolist() == [4, 3, 2]
    assert scores.mcc(more, true) == pytest.approx(1)
    table = np.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(found.take(table, signed=False), [[4, 3, 2], [10, 9, 8]])
    np.testing.assert_array_equal(found.rest(table), [[0, 1, 5], [6, 7, 11]])
    fewer = scores.align(true[:, [1]], true)
    assert fewer.position.tolist() == [-1, 0, -1]
    np.testing.assert_allclose(fewer.correlation, [0, 1, 0])
    np.testing.assert_array_equal(fewer.take([[7.0]], signed=True), [[0, 7, 0]])
    assert scores.mcc(true[:, [1]], true) == pytest.approx(1 / 3)


def test_mcc_of_rotation_noise_and_chance() -> None:
    true = cells(100_000, 2)
    assert scores.mcc(true @ turned(0.3), true) == pytest.approx(np.cos(0.3), abs=0.01)
    noisy = true + 0.5 * cells(100_000, 2, seed=1)
    assert scores.mcc(noisy, true) == pytest.approx(1 / np.sqrt(1.25), abs=0.01)
    assert scores.mcc(cells(100_000, 2, seed=2), true) < 0.02


def test_spearman_sees_order_only() -> None:
    true = cells()
    bent = -np.exp(2 * true)
    assert scores.mcc(bent, true, method="spearman") == pytest.approx(1)
    assert scores.mcc(bent, true) < 0.8


def test_constant_inferred_latents_have_no_correlation() -> None:
    true = cells(latents=2)
    assert scores.mcc(np.full_like(true, 0.1), true) == 0
    assert scores.r2(np.full_like(true, 0.1), true) == pytest.approx(0, abs=1e-12)


def test_r2_ignores_rotation_and_sees_noise() -> None:
    true = cells(50_000)
    basis = np.linalg.qr(cells(4, 4, seed=3))[0]
    assert scores.r2(true @ basis, true) == pytest.approx(1)
    assert scores.r2((true + 0.5 * cells(50_000, seed=1)) @ basis, true) == pytest.approx(0.8, abs=0.01)
    assert scores.r2(true[:, :3], true) == pytest.approx(0.75, abs=0.01)
    assert scores.r2(cells(50_000, seed=2), true) < 0.01


# --- importance ---


@pytest.mark.parametrize("method", ["lasso", "boosting"])
def test_dci_of_the_identity_and_of_a_mixture(method: str) -> None:
    true = cells(400, 3)
    good = scores.dci(-2 * true[:, [2, 0, 1]], true, method=method)
    for name in ("disentanglement", "completeness", "informativeness"):
        assert good[name] > 0.9, name
    assert good["importance"].argmax("latent").values.tolist() == [1, 2, 0]
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)) + 2)[0]
    mixed = scores.dci(true @ basis, true, method=method)
    assert mixed["disentanglement"] < 0.5
    assert mixed["completeness"] < 0.5


def test_dci_tells_disentangled_from_complete() -> None:
    true = cells(5000, 2)
    # Two copies of each true latent, with noise of their own: every copy is pure, no true latent is in one place.
    noise = 0.5 * cells(5000, 4, seed=1)
    found = scores.dci(np.repeat(true, 2, axis=1) + noise, true, method="lasso")
    assert found["disentanglement"] > 0.8
    # Half the entropy of 4: two equal importances.
    assert found["completeness"] == pytest.approx(0.5, abs=0.1)
    nothing = scores.dci(np.zeros((5000, 2)), true, method="lasso")
    assert [float(nothing[name]) for name in ("disentanglement", "completeness", "informativeness")] == [0, 0, 0]


def test_dci_formulae() -> None:
    importance = np.array([[1.0, 1.0], [0.0, 2.0]])
    assert scores._concentration(importance) == pytest.approx(0.5)
    shares = np.array([1 / 3, 2 / 3])
    expected = (1 * 1 + 3 * (1 + (shares * np.log2(shares)).sum())) / 4
    assert scores._concentration(importance.T) == pytest.approx(expected)
    assert scores._concentration(np.ones((3, 1))) == 1


# --- decoders and encoders ---


@pytest.mark.parametrize("theta", [0.0, 0.1, 0.3, np.pi / 4, 1.4])
def test_column_disentanglement_of_a_rotation(theta: float) -> None:
    true = cells(10, 2)
    expected = max(np.cos(theta) ** 2, np.sin(theta) ** 2)
    assert scores.column_disentanglement(true @ turned(theta), true) == pytest.approx(expected)
    scaled = (true @ turned(theta))[:, ::-1] * np.array([-1.0, 1.0])
    assert scores.column_disentanglement(scaled, true) == pytest.approx(expected)


def test_column_disentanglement_of_scales_and_sizes() -> None:
    true = cells(30, 3)
    assert scores.column_disentanglement(true * np.array([2.0, -5.0, 0.1]), true) == pytest.approx(1)
    assert scores.column_disentanglement(np.concatenate([true, cells(30, 2, seed=1)], 1), true) == pytest.approx(1)
    assert scores.column_disentanglement(np.zeros_like(true), true) == 0
    equal = np.linalg.inv(np.ones((3, 3)) - 3 * np.eye(3) / 2)
    moves = np.linalg.inv(equal) ** 2
    assert scores.column_disentanglement(true @ equal, true) == pytest.approx((moves.max(0) / moves.sum(0)).mean())


def test_encoder_disentanglement_of_the_best_linear_encoder() -> None:
    offsets = [{}, {0: 1.0}, {1: 1.0}]
    calm, first, second = (
        simulated_environments(3, offsets=[moved], num_cells=50)["expression"].values for moved in offsets
    )
    mixing = simulated_environments(3, num_cells=1)["true_mixing"].values
    loadings = mixing @ turned(0.3)
    encoded = [x @ np.linalg.pinv(loadings).T for x in (calm, first, second)]
    found = scores.encoder_disentanglement(encoded[0], np.stack(encoded[1:]))
    assert found == pytest.approx(scores.column_disentanglement(loadings, mixing))
    assert found == pytest.approx(np.cos(0.3) ** 2)


def test_moves_do_not_cancel_over_cells() -> None:
    before = np.zeros((2, 2))
    after = np.array([[[1.0, 1.0], [1.0, -1.0]], [[0.0, 2.0], [0.0, 2.0]]])
    assert scores.encoder_disentanglement(before, after) == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize("flip", [1.0, -1.0])
@pytest.mark.parametrize("theta", [0.0, 0.4, 2.0])
def test_angle_test_finds_the_angle_under_any_scales(theta: float, flip: float) -> None:
    true = cells(10, 2)
    inferred = true @ turned(theta) @ np.diag([2.5, -0.3 * flip])
    found = scores.angle_test(inferred, true)
    assert found.attrs["residual"] < 0.006  # half a step of the grid
    off = theta % (np.pi / 2)
    assert found.attrs["distance"] == pytest.approx(min(off, np.pi / 2 - off), abs=0.011)
    assert found["residual"].dims == ("angle",)
    # Sines and cosines by hand at one angle of the grid.
    angle = found["angle"].values[100]
    image = true @ turned(angle)
    best = [image[:, k] * (inferred[:, k] @ image[:, k]) / (image[:, k] @ image[:, k]) for k in range(2)]
    left = np.linalg.norm(inferred - np.stack(best, 1)) / np.linalg.norm(inferred)
    assert found["residual"].values[100] == pytest.approx(left)
    mirrored = scores.angle_test(inferred[:, ::-1] * [1.0, -1.0], true)
    assert mirrored.attrs["distance"] == pytest.approx(found.attrs["distance"], abs=0.011)


def test_angle_test_has_no_angle_for_a_shear() -> None:
    true = cells(10, 2)
    sheared = true @ np.array([[1.0, 1.0], [0.0, 1.0]])
    assert scores.angle_test(sheared, true).attrs["residual"] > 0.2


def test_drift() -> None:
    offset = np.arange(-20, 20.5, 0.5)
    assert scores.drift(offset, 0.3 * np.maximum(np.abs(offset), 1e-3) ** 2)["slope"] == pytest.approx(2)
    flat = scores.drift(offset, np.full(offset.shape, 0.5))
    assert flat["slope"] == pytest.approx(0)
    assert flat["area"] == pytest.approx(np.log(0.5))
    line = scores.drift([2.0, 0.0, 1.0], np.exp([3.0, 1.0, 2.0]))
    assert line["area"] == pytest.approx(2)
    with pytest.raises(DataError, match="error"):
        scores.drift([1.0, 2.0], [0.0, 1.0])
    with pytest.raises(DataError, match="offset"):
        scores.drift([-1.0, 1.0], [0.5, 1.0])


# --- targets ---

TRUTH = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=bool)


def test_target_scores_by_hand() -> None:
    probability = np.array([[0.9, 0.6, 0.0], [0.0, 0.8, 0.3], [0.0, 0.0, 0.0]])
    found = scores.target_scores(probability, TRUTH)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    # Ranked: hit, hit, miss, hit.
    assert found["auprc"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["brier"] == pytest.approx((0.1**2 + 0.6**2 + 0.2**2 + 0.7**2) / 9)
    # Alone in their bins: .1 + .6 + .2 + .7.
    assert found["calibration_error"] == pytest.approx(1.6 / 9)
    assert found["found_targets"] == found["true_targets"] == 1


def test_target_scores_after_alignment() -> None:
    true = cells(latents=3)
    inferred = np.concatenate([cells(latents=1, seed=1), -true[:, [1, 2, 0]]], axis=1)
    probability = np.concatenate([np.zeros((3, 1)), TRUTH[:, [1, 2, 0]]], axis=1) * 0.98
    alignment = scores.align(inferred, true)
    found = scores.target_scores(probability, TRUTH, alignment)
    assert found["f1"] == 1
    assert found["brier"] == pytest.approx(3 * 0.02**2 / 12)
    # A latent that stands for no true one has only false targets.
    probability[:, 0] = 1
    worse = scores.target_scores(probability, TRUTH, alignment)
    assert worse["precision"] == pytest.approx(0.5)
    assert worse["recall"] == 1
    # A true latent without partner is never found.
    half = scores.target_scores(TRUTH[:, :2] * 1.0, TRUTH, scores.align(true[:, :2], true))
    assert half["recall"] == pytest.approx(2 / 3)
    assert half["precision"] == 1


def test_target_scores_without_targets_or_decisions() -> None:
    nothing = scores.target_scores(np.zeros((3, 3)), np.zeros((3, 3)))
    assert float(nothing.to_array().sum()) == 0
    shy = scores.target_scores(np.full((3, 3), 0.4), TRUTH)
    assert [float(shy[name]) for name in ("precision", "recall", "f1", "found_targets")] == [0, 0, 0, 0]
    assert shy["auprc"] == pytest.approx(1 / 3)


def test_all_ones_have_the_f1_of_their_density() -> None:
    truth = np.zeros((80, 10), dtype=bool)
    truth[:, 0] = True
    assert scores.target_scores(np.ones((80, 10)), truth)["f1"] == pytest.approx(2 * 0.1 / 1.1)


def test_calibration_error_of_honest_and_of_overconfident_probabilities() -> None:
    rng = np.random.default_rng(0)
    honest = rng.random(200_000)
    truth = rng.random(200_000) < honest
    assert scores.calibration_error(honest, truth) < 0.005
    sure = np.where(honest > 0.5, 1.0, 0.0)
    assert scores.calibration_error(sure, truth) == pytest.approx(0.25, abs=0.005)
    # A bin averages: over- and under-statement within it cancel, and more bins part them.
    pair = np.array([0.02, 0.08]), np.array([0.0, 0.0])
    assert scores.calibration_error(*pair, num_bins=1) == pytest.approx(0.05)
    assert scores.calibration_error(np.array([0.7, 0.71]), np.array([0, 1])) == pytest.approx((0.7 + 0.29) / 2)
    assert scores.calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0
    assert scores.calibration_error(np.array([0.85, 0.95]), np.array([1, 0])) == pytest.approx((0.15 + 0.95) / 2)


def test_coverage() -> None:
    truth = np.random.default_rng(1).normal(size=50_000)
    assert scores.coverage(-1.2816, 1.2816, truth) == pytest.approx(0.8, abs=0.006)
    assert scores.coverage([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 2.0, 5.0], where=[True, True, False]) == 0.5
    with pytest.raises(DataError, match="where"):
        scores.coverage(0.0, 1.0, truth, where=truth > 100)
    with pytest.raises(DataError, match="lower"):
        scores.coverage(1.0, 0.0, truth)


def test_sparsity() -> None:
    names = ["a", "control", "b"]
    mean = xr.DataArray(
        [[1.0, 3.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.1, 2.0]], {"condition": names}, ("condition", "latent")
    )
    assert scores.moved_latents(mean, control="control") == pytest.approx((1 + 2) / 2)
    assert scores.moved_latents(mean.values, control=1, scale=[3.0, 1.0, 1.0]) == pytest.approx((1 + 1) / 2)
    assert scores.moved_latents(mean) == pytest.approx((2 + 1 + 1) / 3)
    assert scores.hoyer([[0.0, -3.0, 0.0], [0.0, 0.0, 0.0]]) == pytest.approx(1)
    assert scores.hoyer([[2.0, -2.0, 2.0]]) == pytest.approx(0)
    assert scores.hoyer([[3e-200, 4e-200]]) == pytest.approx((np.sqrt(2) - 7 / 5) / (np.sqrt(2) - 1))
    assert scores.hoyer(np.zeros((2, 3))) == 1


# --- refusals ---


def test_refuses_what_does_not_match() -> None:
    true = cells(50, 2)
    named = xr.DataArray(true, {"cell": np.arange(50)}, ("cell", "latent"))
    assert scores.mcc(named, named.transpose()) == pytest.approx(1)
    with pytest.raises(DataError, match="same order"):
        scores.mcc(named, named[::-1])
    with pytest.raises(DataError, match="50 and 49 cells"):
        scores.mcc(true, true[1:])
    with pytest.raises(DataError, match="true"):
        scores.r2(true, np.ones((50, 2)))
    with pytest.raises(DataError, match="NaN"):
        scores.mcc(np.full((50, 2), np.nan), true)
    for call in (scores.mcc, scores.dci):
        with pytest.raises(DataError, match="method"):
            call(true, true, method="kendall")
    with pytest.raises(DataError, match="20"):
        scores.dci(true[:10], true[:10])
    with pytest.raises(DataError, match="genes"):
        scores.column_disentanglement(true, true[1:])
    with pytest.raises(DataError, match="gene, 2"):
        scores.angle_test(true[:, :1], true)
    with pytest.raises(DataError, match="after"):
        scores.encoder_disentanglement(true, true)
    with pytest.raises(DataError, match="probability"):
        scores.target_scores(TRUTH * 2.0, TRUTH)
    with pytest.raises(DataError, match="probability, truth"):
        scores.target_scores(np.zeros((3, 2)), TRUTH)
    with pytest.raises(DataError, match="alignment"):
        scores.target_scores(np.zeros((3, 2)), TRUTH, scores.align(true, true))
    with pytest.raises(DataError, match="control"):
        scores.moved_latents(true, control="control")
