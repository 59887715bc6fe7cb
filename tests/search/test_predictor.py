"""The predictor recovers known surfaces, knows how sure it is, and is the same after a round trip."""

from __future__ import annotations

import json
import time
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import mean_squared_error, r2_score

from proard_nas.search import AccuracyPredictor
from proard_nas.search.features import FeatureEncoder
from proard_nas.search.perceptron import Perceptron, fit_perceptron, make_regressor
from proard_nas.supernets.architecture import Architecture
from proard_nas.supernets.space import SearchSpace

SPACE = SearchSpace(
    depths=(0, 1, 2),
    base_depths=(1, 2, 1),
    width_mults=(0.65, 0.8, 1.0),
    n_widths=4,
    expand_ratios=(0.2, 0.25, 0.35),
    stem_residuals=(False, True),
)
KERNELS = SearchSpace(depths=(2, 3, 4), base_depths=(0, 0), kernel_sizes=(3, 5, 7), expand_ratios=(3, 4, 6))
FINE = SearchSpace(depths=(0, 1), base_depths=(1, 1), expand_ratios=(0.1, 0.15, 0.2, 0.25, 0.3, 0.35))


class Cost(NamedTuple):
    macs: int
    params: int


def cost(arch):
    work = sum(sum(row) for row in arch.expand_ratio) * sum(arch.width_mult or (1.0,))
    return Cost(int(1e7 * work) + 10**6 * arch.stem_residual, int(1e5 * work))


def surface(architectures):
    """A smooth function of capacity: more helps ever less, and robustness prefers depth."""
    capacity = np.array([np.log(cost(a).macs / 1e7) for a in architectures])
    depth = np.array([sum(a.depth) for a in architectures])
    width = np.array([a.width_mult[0] * a.width_mult[-1] for a in architectures])
    natural = 0.9 - 0.2 * np.exp(-0.5 * capacity) + 0.02 * width
    robust = 0.5 - 0.1 * np.exp(-0.7 * capacity) + 0.01 * depth
    return np.column_stack([natural, robust])


@pytest.fixture(scope="module")
def data():
    architectures = SPACE.sample_distinct(700, seed=0)
    noise = np.random.default_rng(1).normal(scale=0.001, size=(700, 2))
    return architectures, surface(architectures) + noise


@pytest.fixture(scope="module")
def fitted(data):
    architectures, labels = data
    return AccuracyPredictor(SPACE, cost, random_state=0).fit(architectures[:400], labels[:400])


class TestFeatures:
    @pytest.mark.parametrize("space", [SPACE, KERNELS, FINE])
    def test_are_the_space_s_own_encoding_and_the_log_costs(self, space):
        architectures = [space.smallest, space.largest, *space.sample_distinct(50, seed=0)]
        features = FeatureEncoder(space, cost)(architectures)
        np.testing.assert_array_equal(features[:, :-2], [space.encode(a) for a in architectures])
        np.testing.assert_allclose(features[:, -2:], [np.log1p(cost(a)) for a in architectures])


class TestRecovery:
    def test_ranks_unseen_architectures_as_the_known_surface_does(self, data, fitted):
        unseen = data[0][400:]
        predicted, true = fitted.predict(unseen), surface(unseen)
        for i in range(2):
            assert kendalltau(predicted[:, i], true[:, i]).statistic > 0.9
        assert np.sqrt(((predicted - true) ** 2).mean()) < 0.002

    def test_sixty_labels_are_enough_to_rank_well(self, data):
        architectures, labels = data
        predictor = AccuracyPredictor(SPACE, cost, random_state=0).fit(architectures[:60], labels[:60])
        predicted, true = predictor.predict(architectures[400:]), surface(architectures[400:])
        assert min(kendalltau(predicted[:, i], true[:, i]).statistic for i in range(2)) > 0.8

    def test_same_seed_same_bits_and_another_seed_others(self, data):
        architectures, labels = data

        def predict(seed):
            predictor = AccuracyPredictor(SPACE, cost, n_members=2, random_state=seed)
            return predictor.fit(architectures[:60], labels[:60]).predict(architectures)

        np.testing.assert_array_equal(predict(3), predict(3))
        assert (predict(3) != predict(4)).any()

    def test_predictions_stay_in_range(self, data):
        steep = np.clip((surface(data[0]) - [0.8, 0.45]) * 20, 0, 1)
        assert steep.max() == 1
        assert steep.min() == 0
        predicted = AccuracyPredictor(SPACE, cost, random_state=0).fit(data[0][:100], steep[:100]).predict(data[0])
        assert predicted.min() >= 0
        assert predicted.max() <= 1

    def test_equal_labels_are_predicted(self, data):
        labels = np.tile([0.9, 0.1], (50, 1))
        predicted = AccuracyPredictor(SPACE, cost, random_state=0).fit(data[0][:50], labels).predict(data[0])
        np.testing.assert_allclose(predicted, np.tile([0.9, 0.1], (700, 1)), atol=1e-3)

    def test_ten_thousand_architectures_take_less_than_two_seconds(self, fitted):
        architectures = [SPACE.sample(seed) for seed in range(10_000)]
        start = time.process_time()
        assert fitted.predict(architectures).shape == (10_000, 2)
        assert time.process_time() - start < 2

    def test_an_empty_batch_gives_an_empty_answer(self, fitted):
        assert fitted.predict([]).shape == (0, 2)


class TestPerceptron:
    def test_plain_arrays_predict_what_scikit_learn_predicts(self, data):
        architectures, labels = data
        X = FeatureEncoder(SPACE, cost)(architectures)
        ours = fit_perceptron(X[:100], labels[:100], (16, 8), seed=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            theirs = make_regressor((16, 8), 100, seed=5).fit(X[:100], labels[:100])
        np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=0, atol=1e-9)

    def test_round_trip_keeps_every_bit(self, data):
        X = FeatureEncoder(SPACE, cost)(data[0][:50])
        network = fit_perceptron(X, data[1][:50], (8,), seed=0)
        again = Perceptron.from_dict(json.loads(json.dumps(network.to_dict())))
        np.testing.assert_array_equal(again.predict(X), network.predict(X))


class TestUncertainty:
    def test_covers_about_as_many_errors_as_a_normal_distribution(self, data, fitted):
        report = fitted.evaluate(data[0][400:], data[1][400:])
        for figures in report.values():
            assert 0.55 < figures["within_1_std"] < 0.9
            assert 0.88 < figures["within_2_std"] <= 1

    def test_is_larger_away_from_the_labels(self):
        known = SPACE.restrict(depths=(0, 1), width_mults=(0.65, 0.8))
        architectures = known.sample_distinct(200, seed=0)
        predictor = AccuracyPredictor(SPACE, cost, random_state=0).fit(architectures, surface(architectures))
        near = predictor.predict_with_std(known.sample_distinct(100, seed=1))[1]
        far = predictor.predict_with_std(SPACE.restrict(depths=(2,), width_mults=(1.0,)).sample_distinct(100, seed=1))[
            1
        ]
        assert (far.min(axis=0) > near.max(axis=0)).all()

    def test_is_finite_and_positive_with_noise(self, data, fitted):
        _, std = fitted.predict_with_std(data[0])
        assert np.isfinite(std).all()
        assert (std > 0).all()


class TestEvaluate:
    def test_figures_equal_scipy_s_and_scikit_learn_s(self, data, fitted):
        architectures, labels = data[0][400:], data[1][400:]
        predicted, report = fitted.predict(architectures), fitted.evaluate(architectures, labels)
        for i, name in enumerate(("natural_accuracy", "robust_accuracy")):
            x, y = predicted[:, i], labels[:, i]
            assert report[name]["rmse"] == pytest.approx(mean_squared_error(y, x) ** 0.5)
            assert report[name]["r2"] == pytest.approx(r2_score(y, x))
            assert report[name]["kendall_tau"] == pytest.approx(kendalltau(x, y).statistic)
            assert report[name]["n_labels"] == 300

    def test_tied_labels_count_by_tau_b(self, data, fitted):
        architectures = data[0][:40]
        labels = np.round(surface(architectures), 2)
        tau = fitted.evaluate(architectures, labels)["natural_accuracy"]["kendall_tau"]
        x, y = fitted.predict(architectures)[:, 0], labels[:, 0]
        sign = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
        pairs = np.triu(np.ones_like(sign), 1) > 0
        untied = [(np.sign(v[:, None] - v)[pairs] != 0).sum() for v in (x, y)]
        assert tau == pytest.approx(sign[pairs].sum() / np.sqrt(untied[0] * untied[1]))

    def test_equal_labels_give_zeros_not_nan(self, data):
        labels = np.full((50, 2), 0.1)
        predictor = AccuracyPredictor(SPACE, cost, random_state=0).fit(data[0][:50], labels)
        report = predictor.evaluate(data[0][:50], labels)
        assert report["robust_accuracy"]["kendall_tau"] == 0
        assert report["robust_accuracy"]["r2"] == 0
        json.dumps(report, allow_nan=False)

    def test_holdout_reports_labels_it_had_not_seen_then_fits_them_all(self, data):
        architectures, labels = data[0][:200], data[1][:200]
        predictor = AccuracyPredictor(SPACE, cost, random_state=0)
        report = predictor.holdout(architectures, labels, fraction=0.15, seed=7)
        assert report["natural_accuracy"]["n_labels"] == 30
        assert predictor.n_labels_ == 200
        whole = AccuracyPredictor(SPACE, cost, random_state=0).fit(architectures, labels)
        np.testing.assert_array_equal(predictor.predict(architectures), whole.predict(architectures))
        order = np.random.default_rng(7).permutation(200)
        part = AccuracyPredictor(SPACE, cost, random_state=0)
        part.fit([architectures[i] for i in order[30:]], labels[order[30:]])
        assert part.evaluate([architectures[i] for i in order[:30]], labels[order[:30]]) == report


class TestRoundTrip:
    def test_json_gives_the_same_bits(self, data, fitted):
        text = json.dumps(fitted.to_dict(), allow_nan=False)
        again = AccuracyPredictor.from_dict(json.loads(text), SPACE, cost)
        for ours, theirs in zip(again.predict_with_std(data[0]), fitted.predict_with_std(data[0]), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert json.dumps(again.to_dict()) == text

    @pytest.mark.parametrize(
        ("change", "message"), [({"version": 2}, "version 2"), ({"format": "x"}, "no predictor"), ({}, "another space")]
    )
    def test_refuses_what_it_cannot_read(self, fitted, change, message):
        space = SPACE if change else KERNELS
        with pytest.raises(ValueError, match=message):
            AccuracyPredictor.from_dict(fitted.to_dict() | change, space, cost)


class TestRefusals:
    def test_prediction_before_fit(self):
        predictor = AccuracyPredictor(SPACE, cost)
        for call in (lambda: predictor.predict([SPACE.largest]), predictor.to_dict):
            with pytest.raises(NotFittedError, match="not fitted"):
                call()

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.full((19, 2), 0.5), "20 architectures and 19 labels"),
            (np.full((20, 3), 0.5), r"shape \(n, 2\)"),
            (np.full(20, 0.5), r"shape \(n, 2\)"),
            (np.vstack([np.full((19, 2), 0.5), [[0.5, np.nan]]]), "robust_accuracy=nan for architecture 19"),
            (np.vstack([[[87.0, 0.5]], np.full((19, 2), 0.5)]), "natural_accuracy=87.0 for architecture 0"),
            (np.vstack([[[0.5, -0.1]], np.full((19, 2), 0.5)]), "robust_accuracy=-0.1"),
        ],
    )
    def test_bad_labels(self, labels, message):
        with pytest.raises(ValueError, match=message):
            AccuracyPredictor(SPACE, cost).fit(SPACE.sample_distinct(20, seed=0), labels)

    def test_too_few_labels(self):
        with pytest.raises(ValueError, match="at least 10 labelled architectures, got 9"):
            AccuracyPredictor(SPACE, cost).fit(SPACE.sample_distinct(9, seed=0), np.full((9, 2), 0.5))

    def test_architecture_outside_the_space(self, fitted):
        with pytest.raises(ValueError, match="outside the search space"):
            fitted.predict([Architecture(depth=(0, 0, 7))])

    @pytest.mark.parametrize("settings", [{"n_members": 1}, {"n_members": 2.5}, {"hidden_layer_sizes": (0,)}])
    def test_impossible_settings(self, settings):
        with pytest.raises(ValueError, match=next(iter(settings))):
            AccuracyPredictor(SPACE, cost, **settings)

    @pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
    def test_impossible_fraction(self, data, fraction):
        with pytest.raises(ValueError, match="fraction"):
            AccuracyPredictor(SPACE, cost).holdout(data[0][:50], data[1][:50], fraction=fraction)
