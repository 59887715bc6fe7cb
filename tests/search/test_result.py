"""A result tells its figures with their units, keeps them through a file, and refuses what makes no sense."""

from __future__ import annotations

import builtins
import json
import math

import numpy as np
import pytest

from proard_nas.search import Candidate, GenerationRecord, SearchResult
from proard_nas.supernets.architecture import Architecture
from proard_nas.supernets.space import SearchSpace

SPACE = SearchSpace(depths=(0, 1), base_depths=(1, 1), expand_ratios=(0.25, 0.5))
ARCHS = SPACE.sample_distinct(6, seed=0)


def candidate(i, natural=0.8, robust=0.5, macs=None, **more):
    return Candidate(ARCHS[i], macs or 1_000_000 * (i + 1), 1000 * (i + 1), natural, robust, **more)


@pytest.fixture
def result():
    return SearchResult(
        front=[candidate(2, 0.87, 0.50), candidate(0, 0.80, 0.54), candidate(1, 0.85, 0.53)],
        constraints={"max_flops": 3.5},
        seed=4,
        n_evaluated=36,
        generations=(
            GenerationRecord(0, (1, 2, 9), (0.7, 0.8, 0.9), (0.4, 0.5, 0.6), (True, True, False)),
            GenerationRecord(100, (3,), (0.87,), (0.5,), (True,)),
        ),
    )


class TestFrontAndBest:
    def test_front_is_sorted_by_cost_then_by_the_better_figures(self):
        front = [
            candidate(0, 0.8, 0.5, macs=7), candidate(1, 0.8, 0.6, macs=5), candidate(2, 0.8, 0.6, macs=7),
        ]  # fmt: skip
        by_place = SearchResult(front=front).front
        assert [c.architecture for c in by_place] == [ARCHS[1], ARCHS[0], ARCHS[2]]

    def test_best_has_the_highest_mean_of_both_accuracies(self, result):
        assert result.best.architecture == ARCHS[1]

    def test_the_most_accurate_are_those_of_the_highest_mean_the_best_first(self, result):
        # (0.85 + 0.53) / 2 = 0.69, (0.87 + 0.50) / 2 = 0.685, (0.80 + 0.54) / 2 = 0.67
        expected = [ARCHS[1], ARCHS[2], ARCHS[0]]
        for k in (0, 1, 2, 3, 4):
            assert [c.architecture for c in result.most_accurate(k)] == expected[:k]

    def test_of_equals_the_cheaper_is_best(self):
        front = [candidate(0, 0.8, 0.5, macs=9), candidate(1, 0.7, 0.6, macs=5), candidate(2, 0.6, 0.7, macs=7)]
        assert SearchResult(front=front).best.macs == 5

    def test_the_verified_come_first_and_count_as_measured(self, result):
        better, worse = (
            {"natural_accuracy": 0.81, "robust_accuracy": 0.5},
            {"natural_accuracy": 0.8, "robust_accuracy": 0.45},
        )
        verified = result.with_measured({ARCHS[0]: better, ARCHS[2]: worse})
        assert verified.best.architecture == ARCHS[0]
        assert verified.best.mean_accuracy == pytest.approx(0.655)

    def test_of_the_verified_those_that_keep_the_limits_as_measured_come_first(self):
        front = [candidate(0, 0.80, 0.54), candidate(1, 0.85, 0.53), candidate(2, 0.87, 0.52)]
        result = SearchResult(front, constraints={"min_robust_accuracy": 0.5, "min_natural_accuracy": 0.7})
        below = {ARCHS[1]: {"natural_accuracy": 0.90, "robust_accuracy": 0.49},
                 ARCHS[2]: {"natural_accuracy": 0.69, "robust_accuracy": 0.60}}  # fmt: skip
        kept = {ARCHS[0]: {"natural_accuracy": 0.7, "robust_accuracy": 0.5}}
        assert result.with_measured(below | kept).best.architecture == ARCHS[0]
        assert result.with_measured(below).best.architecture == ARCHS[1]  # the best of those that miss them

    def test_half_measured_is_not_verified(self, result):
        assert result.with_measured({ARCHS[0]: {"natural_accuracy": 0.99}}).best.architecture == ARCHS[1]

    def test_an_empty_or_repeated_front_is_refused(self):
        with pytest.raises(ValueError, match="at least one"):
            SearchResult(front=[])
        with pytest.raises(ValueError, match="twice"):
            SearchResult(front=[candidate(0, 0.8), candidate(0, 0.7)])


class TestCandidate:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"natural_accuracy": math.nan}, "natural_accuracy must be finite"),
            ({"robust_accuracy": 54.2}, r"robust_accuracy must be in \[0, 1\], got 54.2; for 54.2 % write 0.542"),
            ({"robust_accuracy": -0.1}, r"\[0, 1\]"),
            ({"macs": 1.5}, "macs must be a whole number"),
            ({"params": -1}, "params must be a whole number"),
            ({"latency_ms": math.inf}, "latency_ms must be finite"),
            ({"latency_ms": -1.0}, "latency_ms must not be negative"),
            ({"measured": {}}, "measured must be a non-empty mapping"),
            ({"measured": {"robust_accuracy": math.nan}}, "measured robust_accuracy must be finite"),
            ({"measured": {"autoattack_accuracy": 45}}, "measured autoattack_accuracy"),
            ({"measured": {"seconds": math.nan}}, "measured seconds must be finite"),
            ({"architecture": "big"}, "must be an Architecture"),
        ],
    )
    def test_refuses_figures_that_make_no_sense(self, change, message):
        good = {"architecture": ARCHS[0], "macs": 1, "params": 1, "natural_accuracy": 0.5, "robust_accuracy": 0.5}
        with pytest.raises(ValueError, match=message):
            Candidate(**(good | change))

    def test_takes_numpy_numbers_and_can_be_hashed(self):
        made = Candidate(ARCHS[0], np.int64(5), np.int32(6), np.float32(0.5), np.float64(0.25), measured={"eps": 0.03})
        assert [type(v) for v in (made.macs, made.params, made.natural_accuracy)] == [int, int, float]
        assert hash(made) == hash(Candidate(ARCHS[0], 5, 6, 0.5, 0.25))
        json.dumps(made.to_dict(), allow_nan=False)


class TestText:
    def test_names_unit_limits_and_best(self, result):
        text = str(result)
        assert repr(result) == text
        assert "3 students" in text
        assert "max_flops=3.5 (flops in MMACs)" in text
        header = text.splitlines()[1]
        assert "MMACs" in header
        assert "predicted natural (%)" in header
        assert "measured" not in text
        row = next(line for line in text.splitlines() if "best" in line)
        assert row.split() == ["1", "best", "2.00", "0.00", "85.00", "53.00"]

    def test_shows_measured_figures(self, result):
        text = str(result.with_measured({ARCHS[2]: {"natural_accuracy": 0.861, "robust_accuracy": 0.512}}))
        assert "measured robust (%)" in text
        assert "51.20" in text

    def test_a_long_front_is_shortened_but_shows_its_best_and_says_so(self):
        archs = list(SPACE)
        front = [Candidate(a, i + 1, 1, 0.5 + (i == 17) * 0.3, 0.5) for i, a in enumerate(archs)]
        lines = str(SearchResult(front=front)).splitlines()
        assert len(lines) < 30
        assert any("best" in line and "80.00" in line for line in lines)
        assert "more rows: to_frame()" in lines[-1]


class TestFrame:
    def test_has_one_row_for_each_student(self, result):
        frame = result.with_measured({ARCHS[1]: {"robust_accuracy": 0.52, "attack": "pgd"}}).to_frame()
        assert list(frame.columns) == [
            "mmacs",
            "macs",
            "params",
            "latency_ms",
            "natural_accuracy",
            "robust_accuracy",
            "measured_robust_accuracy",
            "measured_attack",
            "architecture",
        ]
        assert frame["mmacs"].tolist() == [1.0, 2.0, 3.0]
        assert frame["measured_robust_accuracy"].isna().tolist() == [True, False, True]
        assert frame["architecture"][0] == ARCHS[0]

    @pytest.mark.parametrize(("method", "package"), [("to_frame", "pandas"), ("plot", "matplotlib")])
    def test_missing_packages_are_named_with_their_extra(self, result, monkeypatch, method, package):
        real = builtins.__import__

        def without(name, *args, **kwargs):
            if name.split(".")[0] == package:
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(ImportError, match=r'pip install "proard-nas\[report\]"'):
            getattr(result, method)()


class TestPlot:
    def test_data_are_percentages_of_natural_and_robust_accuracy(self, result):
        measured = {"natural_accuracy": 0.86, "robust_accuracy": 0.51}
        data = result.with_measured({ARCHS[2]: measured}).plot_data(population=[[0.7, 0.4], [0.6, 0.3]])
        assert data.axes == ("natural_accuracy", "robust_accuracy")
        np.testing.assert_allclose(data.front, [[80, 54], [85, 53], [87, 50]])
        np.testing.assert_allclose(data.verified, [[86, 51]])
        np.testing.assert_allclose(data.best, [[87, 50]])  # the only verified one
        np.testing.assert_allclose(data.population, [[70, 40], [60, 30]])
        np.testing.assert_allclose(data.first, [[70, 40], [80, 50]])
        np.testing.assert_allclose(data.last, [[87, 50]])

    def test_costs_are_in_mmacs_and_millions_of_parameters(self):
        front = [candidate(0), candidate(1)]
        data = SearchResult(front=front, objectives=("robust_accuracy", "macs")).plot_data([[0.7, 0.4, 12.5]])
        np.testing.assert_allclose(data.front, [[50, 1], [50, 2]])
        np.testing.assert_allclose(data.population, [[40, 12.5]])
        data = SearchResult(front=front, objectives=("params",)).plot_data()
        np.testing.assert_allclose(data.front, [[1, 0.001], [2, 0.002]])
        assert data.labels == ("MMACs", "parameters (millions)")

    def test_latency_can_be_an_axis(self):
        front = [candidate(0, latency_ms=2.0), candidate(1, latency_ms=1.0)]
        data = SearchResult(front=front, objectives=("latency", "natural_accuracy")).plot_data()
        np.testing.assert_allclose(data.front, [[1, 80], [2, 80]])

    @pytest.mark.parametrize(
        ("objectives", "population", "message"),
        [
            (("natural_accuracy", "robust_accuracy"), [0.5, 0.5], "shape"),
            (("natural_accuracy", "robust_accuracy"), [[0.5, math.nan]], "finite"),
            (("natural_accuracy", "macs"), [[0.5, 0.5]], "add the MMACs as a third column"),
            (("natural_accuracy", "params"), [[0.5, 0.5]], "no params"),
        ],
    )
    def test_a_population_that_cannot_be_drawn_is_refused(self, objectives, population, message):
        with pytest.raises(ValueError, match=message):
            SearchResult(front=[candidate(0)], objectives=objectives).plot_data(population)

    def test_draws_on_the_axes_given_and_returns_them(self, result):
        figure = pytest.importorskip("matplotlib.figure")
        ax = figure.Figure().subplots()
        verified = result.with_measured({ARCHS[2]: {"natural_accuracy": 0.86, "robust_accuracy": 0.51}})
        assert verified.plot(population=[[0.7, 0.4]], ax=ax) is ax
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert texts == [
            "labelled students",
            "first generation",
            "last generation",
            "front (predicted)",
            "verified (measured)",
            "best",
        ]
        assert ax.get_xlabel() == "natural accuracy (%)"
        np.testing.assert_allclose(ax.lines[0].get_xydata(), [[80, 54], [85, 53], [87, 50]])


class TestExtract:
    def test_gives_the_best_or_the_one_asked_for(self, result):
        extracting = result.with_extractor(lambda arch: arch)
        assert extracting.extract() == ARCHS[1]
        assert [extracting.extract(i) for i in (0, 2, -1)] == [ARCHS[0], ARCHS[2], ARCHS[2]]
        with pytest.raises(IndexError, match="3 students, numbered from 0; got 3"):
            extracting.extract(3)

    def test_without_an_extractor_says_what_to_do(self, result):
        with pytest.raises(RuntimeError, match=r"with_extractor\(est\.extract\), or est"):
            result.extract()


class TestMeasured:
    def test_a_card_gets_the_figures_that_say_how_they_were_measured(self, result):
        figures = {"natural_accuracy": 0.7, "robust_accuracy": 0.4, "attack": "PGD-20", "eps": 0.1, "n_images": 9}
        measured = result.with_measured({ARCHS[0]: figures | {"seconds": 2.0}, ARCHS[1]: {"robust_accuracy": 0.4}})
        expected = [{**figures, "split": "validation"}, {}, {}]
        assert [candidate.card_figures for candidate in measured.front] == expected

    def test_leaves_the_original_alone_and_adds_up(self, result):
        once = result.with_measured({ARCHS[0]: {"natural_accuracy": 0.7, "attack": "fgsm"}})
        twice = once.with_measured({ARCHS[0]: {"robust_accuracy": 0.4, "attack": "pgd"}})
        assert result.front[0].measured is None
        assert twice.front[0].measured == {"natural_accuracy": 0.7, "robust_accuracy": 0.4, "attack": "pgd"}
        assert twice.seed == result.seed

    def test_a_student_that_is_not_on_the_front_is_refused(self, result):
        with pytest.raises(ValueError, match="not on the front"):
            result.with_measured({ARCHS[5]: {"natural_accuracy": 0.5}})

    def test_nan_is_refused(self, result):
        with pytest.raises(ValueError, match="finite"):
            result.with_measured({ARCHS[0]: {"natural_accuracy": math.nan}})


class TestFile:
    def test_round_trip_keeps_everything_but_study_and_extractor(self, result, tmp_path):
        path = tmp_path / "result.json"
        full = result.with_measured({ARCHS[0]: {"natural_accuracy": 0.1 + 0.2, "robust_accuracy": 0.4}})
        full.with_extractor(lambda arch: arch).save(path)
        again = SearchResult.load(path)
        assert again.to_dict() == full.to_dict()
        assert again.front == full.front
        assert again.generations == full.generations
        assert again.best == full.best
        assert (again.study, again.extractor) == (None, None)
        assert SearchResult.load(path, extractor=lambda arch: arch).extract() == ARCHS[0]
        assert [file.name for file in tmp_path.iterdir()] == ["result.json"]

    def test_a_write_that_fails_leaves_the_old_file(self, result, tmp_path, monkeypatch):
        path = tmp_path / "result.json"
        result.save(path)
        before = path.read_bytes()

        def fail(_):
            raise OSError("disk full")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            result.save(path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["result.json"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"version": 2}, "version 2; this library reads version 1"),
            ({"format": "other"}, "no search result"),
            ({"front": []}, "at least one"),
            ({"front": [{"macs": 1}]}, "must have the fields"),
            ({"objectives": ["speed"]}, "unknown objective"),
            ({"constraints": {"max_flops": -1}}, "max_flops"),
            ({"constraints": {"max_flop": 1}}, "damaged search result: .*max_flop"),
            ({"generations": [{}]}, "lacks 'number'"),
            ({"front": 5}, "damaged search result"),
        ],
    )
    def test_refuses_what_it_cannot_read(self, result, tmp_path, change, message):
        path = tmp_path / "result.json"
        path.write_text(json.dumps(result.to_dict() | change))
        with pytest.raises(ValueError, match=message) as caught:
            SearchResult.load(path)
        assert str(caught.value).startswith(f"{path}: ")

    def test_refuses_a_missing_field(self, result):
        data = result.to_dict()
        del data["seed"]
        with pytest.raises(ValueError, match="lacks"):
            SearchResult.from_dict(data)

    @pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
    def test_refuses_nan_and_infinity(self, result, tmp_path, text):
        path = tmp_path / "result.json"
        path.write_text(json.dumps(result.to_dict()).replace("0.54", text))
        with pytest.raises(ValueError, match=f"it holds {text}"):
            SearchResult.load(path)

    def test_refuses_other_text_naming_the_file(self, tmp_path):
        path = tmp_path / "result.json"
        path.write_text("{")
        with pytest.raises(ValueError, match=r"result\.json"):
            SearchResult.load(path)

    def test_architectures_come_back_equal(self, tmp_path):
        arch = Architecture(
            depth=(0, 1), width_mult=(0.65, 1.0), expand_ratio=((0.2,), (0.25, 0.35)), stem_residual=True
        )
        path = tmp_path / "result.json"
        SearchResult(front=[Candidate(arch, 1, 1, 0.5, 0.5)]).save(path)
        assert SearchResult.load(path).best.architecture == arch
