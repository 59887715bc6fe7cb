"""Watching a training: which students, how they are measured, which failures are noticed."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch

from proard_nas._random import derive_seed
from proard_nas.attacks import make_attack, run_attack
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, calibrate, evaluate
from proard_nas.training import AttackBudget, Stage, Trainer, TrainSettings, Validation, monitor
from proard_nas.training.monitor import COLLAPSED, OVERFITTED, Watch, fixed_students, measure

PGD = AttackSettings("pgd", 0.08, 0.03, 4)


def supernet(seed=0):
    torch.manual_seed(seed)
    return timm.create_model("proard_dyn_resnet_tiny", num_classes=3)


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return ArraySource(torch.rand(n, 1, 8, 8, generator=generator) * 0.4 + y.reshape(-1, 1, 1, 1) * 0.3, y)


def judge(rows, chance=0.1):
    """Return the verdict on each measurement: natural, robust and, where a third is given, single-step accuracy."""
    watch = Watch()
    return [
        watch.judge(dict(zip(("largest_natural", "largest_robust", "single_step"), row, strict=False)), chance)
        for row in rows
    ]


# -- verdicts ---------------------------------------------------------------------------------


def test_a_healthy_training_is_left_alone():
    assert judge([(0.1, 0.1), (0.3, 0.2), (0.5, 0.3), (0.45, 0.28), (0.6, 0.35)]) == [None] * 5


@pytest.mark.parametrize("accuracy", [0.1, 0.2])
def test_first_epochs_at_chance_are_no_collapse(accuracy):
    assert judge([(accuracy, 0.05), (0.1, 0.1), (0.05, 0.0), (0.1, 0.1)]) == [None] * 4


@pytest.mark.parametrize(
    ("best", "natural", "verdict"),
    [(0.21, 0.1, COLLAPSED), (0.2, 0.1, None), (0.9, 0.11, COLLAPSED), (0.9, 0.1101, None), (0.9, 0.0, COLLAPSED)],
)
def test_a_collapse_is_a_fall_to_a_tenth_above_chance_from_over_twice_chance(best, natural, verdict):
    assert judge([(best, 0.0), (natural, 0.0)]) == [None, verdict]


@pytest.mark.parametrize(
    ("chance", "best", "natural", "verdict"),
    [
        (0.5, 0.76, 0.5, COLLAPSED),
        (0.5, 0.75, 0.5, None),
        (0.5, 0.9, 0.526, None),
        (0.9, 0.96, 0.9, COLLAPSED),
        (0.9, 0.96, 0.94, None),
    ],
)
def test_a_collapse_is_noticed_with_two_classes_and_with_uneven_ones(chance, best, natural, verdict):
    assert judge([(best, 0.0), (natural, 0.0)], chance) == [None, verdict]


def test_a_slow_fall_to_chance_is_a_collapse_too():
    assert judge([(0.6, 0.3), (0.4, 0.3), (0.25, 0.2), (0.15, 0.16), (0.1, 0.16)])[-1] == COLLAPSED


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ((0.6, 0.19, 0.6), OVERFITTED),
        ((0.6, 0.2, 0.6), None),  # half of the best is not below half of it
        ((0.6, 0.0, 0.48), OVERFITTED),  # 0.02 below is as good as not fallen
        ((0.6, 0.0, 0.47), None),  # the network became worse at both
        ((0.6, 0.0), None),  # not watched
    ],
)
def test_overfitting_is_a_robust_accuracy_below_half_its_best_at_a_single_step_accuracy_that_held(after, verdict):
    assert judge([(0.6, 0.4, 0.5), after]) == [None, verdict]


def test_overfitting_is_against_the_best_robust_and_the_last_single_step_accuracy():
    assert judge([(0.6, 0.4, 0.5), (0.6, 0.3, 0.2), (0.6, 0.19, 0.2)]) == [None, None, OVERFITTED]


def test_a_network_that_was_never_robust_cannot_overfit():
    assert judge([(0.6, 0.06, 0.4), (0.6, 0.0, 0.9)]) == [None, None]


def test_a_verdict_is_not_part_of_the_record():
    watch = Watch()
    watch.judge({"largest_natural": 0.6, "largest_robust": 0.4, "single_step": 0.5}, 0.1)
    before = dataclasses.asdict(watch)
    assert watch.judge({"largest_natural": 0.9, "largest_robust": 0.1, "single_step": 0.9}, 0.1) == OVERFITTED
    assert dataclasses.asdict(watch) == before
    assert before == {"natural": 0.6, "robust": 0.4, "single_step": 0.5}


# -- when, and whom ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "epochs", "single", "expected"),
    [
        (None, 5, False, [0, 1, 2, 3, 4]),
        (None, 60, False, list(range(2, 60, 3))),
        (None, 60, True, list(range(60))),
        (4, 10, True, [3, 7, 9]),
        (99, 10, False, [9]),
        (None, 45, False, [*range(1, 44, 2), 44]),
    ],
)
def test_it_is_measured_some_twenty_times_a_stage_and_always_at_its_end(every, epochs, single, expected):
    validation = Validation(images(6), PGD, every=every)
    assert [epoch for epoch in range(epochs) if validation.due(epoch, epochs, single)] == expected


def test_chance_is_the_share_of_the_commonest_class():
    x = torch.zeros(5, 1, 8, 8)
    assert Validation(ArraySource(x, torch.tensor([0, 2, 2, 1, 2])), PGD).chance == pytest.approx(0.6)


@pytest.mark.parametrize("wrong", [{"n_students": 0}, {"every": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="at least one student and one epoch"):
        Validation(images(6), PGD, **wrong)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 40])
def test_the_students_watched_are_distinct_and_include_both_ends(n):
    space = supernet().space
    students = fixed_students(space, n, seed=3)
    assert len(students) == len(set(students)) == min(n, space.size)
    assert students[:2] == [space.largest, space.smallest][:n]
    assert students == fixed_students(space, n, seed=3)
    assert n < 3 or students != fixed_students(space, n, seed=4)


def test_a_small_space_is_watched_whole():
    space = supernet().space.with_elastic(("depth",)).restrict(depths=(1,))
    assert fixed_students(space, 9, seed=0) == [space.largest]
    two = supernet().space.restrict(depths=(1,)).with_elastic(("width_mult",))
    students = fixed_students(two, 999, seed=0)
    assert len(set(students)) == len(students) == two.size > 2


# -- measuring --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    net = supernet()
    source = images(45)
    settings = TrainSettings(15, budget=AttackBudget(0.05, 0.02, 2), progress=False)
    stages = [Stage("natural", 4, "natural", net.space.dimensions, lr=0.05, sampler="sandwich", students_per_step=2)]
    Trainer(net, source, source.x, settings).run(stages)
    net.zero_grad(set_to_none=True)
    return net.train()


def test_students_are_measured_as_their_extracted_and_calibrated_copies_are(trained):
    net, source, calibration = trained, images(37, seed=1), images(30, seed=2).x
    students = fixed_students(net.space, 3, seed=0)
    validation = Validation(source, PGD, batch_size=16)
    found = measure(net, students, validation, calibration, seed=5, single=True)
    rows = []
    for arch in students:
        copy = calibrate(net.extract(arch), calibration, 16)
        natural = evaluate(copy, source, "natural").accuracy
        attack, right = make_attack("pgd", copy.eval(), eps=0.08, step_size=0.03, steps=4), 0
        for index, (x, y) in enumerate(source.batches(16)):
            kept = copy(x).argmax(1) == y
            adversarial = run_attack(attack, x[kept], y[kept], seed=derive_seed(5, "validation", index))
            right += int((copy(adversarial).argmax(1) == y[kept]).sum())
        rows.append([natural, right / 37])
    assert found["students"] == [pytest.approx(row) for row in rows]
    assert len({tuple(row) for row in rows}) > 1
    assert found["natural"] == pytest.approx(sum(row[0] for row in rows) / 3)
    assert found["robust"] == pytest.approx(sum(row[1] for row in rows) / 3)
    assert [found["largest_natural"], found["largest_robust"]] == found["students"][0]
    largest = calibrate(net.extract(net.space.largest), calibration, 16)
    fgsm = evaluate(largest, source, AttackSettings("fgsm", 0.08)).accuracy
    assert found["single_step"] == pytest.approx(fgsm)
    assert rows[0][1] <= fgsm < found["largest_natural"]


def test_measuring_leaves_the_network_as_it_was(trained):
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    modes = [m.training for m in trained.modules()]
    state = torch.get_rng_state()
    measure(trained, [trained.space.largest, trained.space.smallest], Validation(images(9), PGD), images(9).x, 0, True)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert [m.training for m in trained.modules()] == modes
    assert all(p.grad is None for p in trained.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_single_step_accuracy_is_measured_only_where_asked_for(trained):
    found = measure(trained, [trained.space.largest], Validation(images(9), PGD), images(9).x, 0, False)
    assert "single_step" not in found


def test_a_network_that_is_no_supernet_is_measured_as_it_is(trained):
    copy = trained.extract(trained.space.smallest).train()
    found = measure(copy, [copy.arch], Validation(images(20, seed=1), PGD), images(30).x, 0, False)
    alone = evaluate(calibrate(trained.extract(copy.arch), images(30).x), images(20, seed=1), "natural").accuracy
    assert found["natural"] == pytest.approx(alone)


# -- in training ------------------------------------------------------------------------------


def run_with(monkeypatch, robust, natural=None, n_images=30, **settings):
    """Train for as many epochs as there are robust accuracies to be measured; return each epoch's weights, too."""
    net, source, seen, weights = supernet(), images(30), [], []
    figures = iter(zip(robust, natural or [0.9] * len(robust), strict=True))

    def figure(network, students, validation, calibration, seed, single):
        seen.append(students)
        robust, natural = next(figures)
        weights.append({name: p.detach().clone() for name, p in network.named_parameters()})
        return {
            "natural": natural, "robust": robust, "largest_natural": natural, "largest_robust": robust, "students": []
        }  # fmt: skip

    monkeypatch.setattr(monitor, "measure", figure)
    budget = AttackBudget(0.05, 0.02, 2)
    settings = TrainSettings(15, budget=budget, progress=False, **settings)
    watched = Validation(images(n_images, seed=1), PGD, n_students=3)
    trainer = Trainer(net, source, source.x, settings, validation=watched)
    stage = Stage("sat", len(robust), "sat", net.space.dimensions, lr=0.05)
    trainer.run([stage])
    return net, trainer, weights, seen


@pytest.mark.parametrize(
    ("robust", "best"), [([0.1, 0.5, 0.2], 1), ([0.5, 0.3, 0.1], 0), ([0.1, 0.3, 0.5], 2), ([0.1, 0.5, 0.5, 0.2], 2)]
)
def test_a_stage_ends_with_the_weights_of_the_highest_robust_accuracy_the_later_of_equal_ones(
    monkeypatch, robust, best
):
    net, trainer, weights, _ = run_with(monkeypatch, robust)
    assert all(torch.equal(p, weights[best][name]) for name, p in net.named_parameters())
    assert [record["validation"]["robust"] for record in trainer.history] == robust


# Of 100 images, half of them right, the standard error is five.
@pytest.mark.parametrize(
    ("robust", "natural", "best"),
    [
        ([0.50, 0.46], [0.70, 0.75], 1),  # as robust, as far as 100 images tell, and more accurate
        ([0.50, 0.44], [0.70, 0.75], 0),  # less robust
        ([0.46, 0.50], [0.75, 0.70], 0),
        ([0.44, 0.50], [0.75, 0.70], 1),
        ([0.50, 0.46, 0.42], [0.70, 0.75, 0.80], 1),  # the error is that of the highest, not of what is kept
        ([0.46, 0.50, 0.45], [0.75, 0.70, 0.80], 2),
        ([0.46, 0.50, 0.53], [0.75, 0.70, 0.60], 2),  # a later highest leaves what was kept behind
    ],
)
def test_of_weights_as_robust_those_of_the_highest_natural_accuracy_are_kept(monkeypatch, robust, natural, best):
    net, _, weights, _ = run_with(monkeypatch, robust, natural, n_images=100)
    assert all(torch.equal(p, weights[best][name]) for name, p in net.named_parameters())


def test_the_fewer_the_images_the_less_they_tell(monkeypatch):
    figures = ([0.50, 0.44], [0.70, 0.75])
    for n_images, best in ((50, 1), (100, 0)):
        net, _, weights, _ = run_with(monkeypatch, *figures, n_images=n_images)
        assert all(torch.equal(p, weights[best][name]) for name, p in net.named_parameters())


def test_without_keeping_the_best_a_stage_ends_with_its_last_weights(monkeypatch):
    net, _, weights, _ = run_with(monkeypatch, [0.3, 0.2, 0.1], keep_best=False)
    assert all(torch.equal(p, weights[2][name]) for name, p in net.named_parameters())


def test_averaged_weights_are_those_measured_and_kept(monkeypatch):
    net, _, weights, _ = run_with(monkeypatch, [0.1, 0.3, 0.2], ema_decay=0.5)
    assert all(torch.equal(p, weights[1][name]) for name, p in net.named_parameters())
    plain = run_with(monkeypatch, [0.1, 0.3, 0.2])[2]
    assert not torch.equal(weights[1]["head.fc.weight"], plain[1]["head.fc.weight"])


def test_the_same_students_are_watched_all_along(monkeypatch):
    net, _, _, seen = run_with(monkeypatch, [0.1, 0.3, 0.2])
    assert len(seen) == 3 and seen[0] == seen[1] == seen[2]
    assert seen[0][:2] == [net.space.largest, net.space.smallest] and len(set(seen[0])) == 3
