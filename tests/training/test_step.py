"""One training step: whose images, whose gradients, whose statistics."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from proard_nas._random import derive_seed
from proard_nas.attacks import Noise
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, calibrate
from proard_nas.supernets import is_calibrated, statistics_of
from proard_nas.training import (
    AttackBudget,
    CheckpointStore,
    Passes,
    Precision,
    Stage,
    Trainer,
    TrainSettings,
    Validation,
    make_loss,
    training_cost,
)
from proard_nas.training.jobs import Job
from proard_nas.training.step import StepRunner

BUDGET = AttackBudget(0.05, 0.02, 2)
SETTINGS = TrainSettings(batch_size=12, budget=BUDGET, progress=False)


def supernet(seed=0):
    """Return a network whose residual branches are open: as it is made, they end in zeros and have no gradients."""
    torch.manual_seed(seed)
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=3)
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.2, 0.2)
    return net.train()


def images(n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.rand(n, 1, 8, 8, generator=generator) * 0.4 + y.reshape(-1, 1, 1, 1) * 0.3, y


def gradients_of(net):
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def close(found, expected, rtol=1e-4, atol=1e-6):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol, msg=name)


def job(net, loss="natural", students=None, **options):
    return Job(make_loss(loss), BUDGET, students or [net.space.largest], seed=3, total=12, **options)


@dataclasses.dataclass
class Recorded:
    """A loss of images pushed up by a tenth, which notes what it was given."""

    needs_teacher = False
    passes = Passes(student=1)
    shift: float = 0.1

    def __post_init__(self):
        self.attacked, self.starts, self.seen, self.batches = [], [], [], []

    def adversarial(self, net, batch, budget, noise):
        self.attacked.append(net.arch)
        self.starts.append(noise.uniform(batch.x))
        return batch.x + self.shift * len(self.attacked)

    def loss(self, net, batch, x_adv):
        self.seen.append(x_adv)
        self.batches.append(batch)
        return F.cross_entropy(net(x_adv), batch.y)


@dataclasses.dataclass
class Taught(Recorded):
    """The same with a teacher."""

    needs_teacher = True


# -- students ---------------------------------------------------------------------------------


def test_each_student_is_attacked_on_its_own_from_its_own_start():
    net, loss = supernet(), Recorded()
    students = [net.space.sample(i) for i in range(3)]
    x, y = images()
    StepRunner(net, Precision()).gradients(dataclasses.replace(job(net, students=students), loss=loss), x, y)
    assert loss.attacked == students
    for i in range(3):
        assert torch.equal(loss.seen[i], x + 0.1 * (i + 1))
        assert torch.equal(loss.starts[i], Noise(derive_seed(3, i)).uniform(x))


def test_a_shared_attack_is_made_once_for_the_first_student_and_used_by_all():
    net, loss = supernet(), Recorded()
    students = [net.space.sample(i) for i in range(3)]
    x, y = images()
    shared = dataclasses.replace(job(net, students=students, share_attack=True), loss=loss)
    StepRunner(net, Precision()).gradients(shared, x, y)
    assert loss.attacked == students[:1]
    assert len(loss.seen) == 3 and all(torch.equal(seen, x + 0.1) for seen in loss.seen)
    by_hand = supernet()
    for arch in students:
        (F.cross_entropy(by_hand.student(arch)(x + 0.1), y) / 3).backward()
    close(gradients_of(net), gradients_of(by_hand))


def test_the_gradient_of_several_students_is_that_of_the_mean_of_their_losses():
    net, by_hand = supernet(), supernet()
    students = [net.space.largest, net.space.smallest, net.space.sample(1)]
    x, y = images()
    value = StepRunner(net, Precision()).gradients(job(net, students=students), x, y)
    expected = sum(F.cross_entropy(by_hand.student(arch)(x), y) for arch in students) / 3
    expected.backward()
    close(gradients_of(net), gradients_of(by_hand))
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    assert not value.requires_grad


def test_gradients_are_added_to_those_there_are():
    net = supernet()
    runner, (x, y) = StepRunner(net, Precision()), images()
    runner.gradients(job(net), x, y)
    once = gradients_of(net)
    runner.gradients(job(net), x, y)
    close(gradients_of(net), {name: 2 * value for name, value in once.items()})


def test_a_students_step_leaves_alone_what_lies_outside_its_slices():
    net = supernet()
    arch = net.space.smallest
    StepRunner(net, Precision()).gradients(job(net, students=[arch]), *images())
    shapes = {name: p.shape for name, p in net.student(arch).named_parameters()}
    outside = 0
    for name, p in net.named_parameters():
        if name not in shapes:
            assert p.grad is None
            continue
        inside = torch.zeros_like(p, dtype=torch.bool)
        inside[tuple(slice(n) for n in shapes[name])] = True
        assert p.grad[~inside].abs().sum() == 0
        outside += int((~inside).sum())
    assert outside > 0


def test_dropout_is_the_same_for_the_same_seed_and_leaves_the_global_generator():
    x, y = images()
    found = []
    for seed in (3, 3, 4):
        net = supernet()
        net.head.drop.p = 0.5
        torch.manual_seed(seed * 7)
        state = torch.get_rng_state()
        StepRunner(net, Precision()).gradients(dataclasses.replace(job(net), seed=seed), x, y)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(net.head.fc.weight.grad)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


# -- teachers ---------------------------------------------------------------------------------


def test_a_live_teacher_is_the_largest_student_now_with_batch_statistics_that_nobody_records():
    net, loss = supernet(), Taught()
    net.head.drop.p = 0.5
    x, y = images()
    before = {name: value.clone() for name, value in statistics_of(net).items()}
    live = dataclasses.replace(job(net, students=[net.space.smallest], live_teacher=True), loss=loss)
    StepRunner(net, Precision()).gradients(dataclasses.replace(live, teacher_loss=make_loss("natural")), x, y)
    copy = net.extract(net.space.largest).train()
    copy.head.drop.p = 0.0
    with torch.no_grad():
        expected = copy(x)
    logits = loss.batches[0].teacher_logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    assert not logits.requires_grad and loss.batches[0].teacher is None  # which is in training mode now
    assert all(torch.equal(value, before[name]) for name, value in statistics_of(net).items())
    assert all(module.training for module in net.modules())


def test_a_live_teacher_among_the_students_learns_by_its_own_loss():
    net, by_hand, loss, own = supernet(), supernet(), Taught(), Recorded(shift=0.3)
    x, y = images()
    students = [net.space.largest, net.space.smallest]
    live = job(net, students=students, live_teacher=True, teacher_loss=own)
    StepRunner(net, Precision()).gradients(dataclasses.replace(live, loss=loss), x, y)
    assert own.attacked == [net.space.largest] and loss.attacked == [net.space.smallest]
    value = F.cross_entropy(by_hand.student(students[0])(x + 0.3), y)
    value = value + F.cross_entropy(by_hand.student(students[1])(x + 0.1), y)
    (value / 2).backward()
    close(gradients_of(net), gradients_of(by_hand))


def test_no_gradient_flows_into_a_live_teacher():
    """RSLAD of the smallest student, by hand: what lies outside of its slices has no gradient."""
    net, by_hand = supernet(), supernet()
    x, y = images()
    arch = net.space.smallest
    live = job(net, "rslad", [arch], live_teacher=True, teacher_loss=make_loss("trades"))
    loss = Fixed(x + 0.03)
    StepRunner(net, Precision()).gradients(dataclasses.replace(live, loss=loss), x, y)
    with torch.no_grad():
        target = by_hand.extract(by_hand.space.largest).train()(x).softmax(1)
    student = by_hand.student(arch)
    logs = [student(images_).log_softmax(1) for images_ in (x + 0.03, x)]
    divergences = [(target * (target.log() - log)).sum(1).mean() for log in logs]
    (5 / 6 * divergences[0] + 1 / 6 * divergences[1]).backward()
    close(gradients_of(net), gradients_of(by_hand))


class Fixed:
    """RSLAD on adversarial images that are given."""

    needs_teacher, passes = True, Passes(student=2, teacher=1)

    def __init__(self, adversarial):
        self.images = adversarial

    def adversarial(self, net, batch, budget, noise):
        return self.images

    def loss(self, net, batch, x_adv):
        return make_loss("rslad").loss(net, batch, x_adv)


@pytest.mark.parametrize("loss", ["adaad", "iad"])
def test_a_live_teacher_is_refused_where_a_loss_asks_it_more_than_once(loss):
    net = supernet()
    x, y = images()
    stages = [Stage("both", 1, loss, ("depth",), teacher="live")]
    with pytest.raises(ValueError, match="'both'.*queries its teacher more than once; allowed: teacher='frozen'"):
        Trainer(net, ArraySource(x, y), x, SETTINGS).run(stages)


def test_the_frozen_teacher_is_the_calibrated_largest_student_of_the_stage_before():
    net = supernet()
    source = ArraySource(*images(24))
    after = []
    trainer = Trainer(net, source, source.x, SETTINGS, on_epoch=lambda record: after.append(net.extract(net.arch)))
    trainer.run([Stage("teacher", 1, "natural", lr=0.1), Stage("students", 2, "rslad", ("depth",), lr=0.1)])
    expected = calibrate(after[0], source.x).eval()
    with torch.no_grad():
        torch.testing.assert_close(trainer.teacher(source.x), expected(source.x))
        assert not torch.allclose(net(source.x), expected(source.x), atol=1e-3)


def test_a_teacher_of_ones_own_teaches_and_stays_as_it_is(tmp_path):
    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc, self.asked = nn.BatchNorm2d(1), nn.Linear(64, 3), 0

        def forward(self, x):
            assert not self.training and not torch.is_grad_enabled()
            self.asked += 1
            return self.fc(self.norm(x).flatten(1))

    net, teacher, loss = supernet(), Teacher(), Taught()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    source = ArraySource(*images(24))
    settings = dataclasses.replace(SETTINGS, checkpoint_seconds=0)
    store = CheckpointStore(tmp_path, {})
    trainer = Trainer(net, source, source.x, settings, teacher=teacher, store=store)
    trainer.run([Stage("students", 1, loss, ("depth",), lr=0.1)])
    assert trainer.teacher is teacher and teacher.asked == 2
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    batch = loss.batches[0]
    with torch.no_grad():
        assert torch.equal(batch.teacher_logits, teacher(batch.x))
    tensors, _ = store.load()
    assert not any(name.startswith("teacher") for name in tensors)


# -- HAT's helper -----------------------------------------------------------------------------


@dataclasses.dataclass
class NeedsHelper(Recorded):
    """Notes the network and its helper at the first step."""

    needs_helper = True

    def loss(self, net, batch, x_adv):
        if not self.seen:
            self.first = {name: value.clone() for name, value in net.state_dict().items()}
        return super().loss(net, batch, x_adv)


def test_hats_helper_is_trained_without_attacks_and_the_network_then_starts_anew():
    net, alone, loss = supernet(), supernet(), NeedsHelper()
    initial = {name: value.clone() for name, value in net.state_dict().items()}
    source = ArraySource(*images(24))
    trainer = Trainer(net, source, source.x, SETTINGS)
    trainer.run([Stage("hat", 10, loss, lr=0.05)])
    assert [record["stage"] for record in trainer.history] == ["hat (helper)"] * 2 + ["hat"] * 10
    assert all(torch.equal(value, initial[name]) for name, value in loss.first.items())
    helper = trainer.runner.helper
    assert all(batch.helper is helper for batch in loss.batches)
    assert is_calibrated(helper) and not helper.training and not any(p.requires_grad for p in helper.parameters())
    Trainer(alone, source, source.x, SETTINGS).run([Stage("natural", 2, "natural", lr=0.05)])
    with torch.no_grad():
        assert torch.equal(helper(source.x), alone(source.x))


def test_a_second_stage_with_hat_has_the_same_helper():
    net, source = supernet(), ArraySource(*images(24))
    trainer = Trainer(net, source, source.x, SETTINGS)
    trainer.run([Stage("a", 1, "hat", lr=0.05), Stage("b", 1, "hat", ("depth",), lr=0.05)])
    assert [record["stage"] for record in trainer.history] == ["a (helper)", "a", "b"]


def test_the_helper_is_not_watched():
    net, source = supernet(), ArraySource(*images(24))
    validation = Validation(source, AttackSettings("pgd", 0.05, 0.02, 1), 1, every=1)
    history = Trainer(net, source, source.x, SETTINGS, validation=validation).run([Stage("hat", 1, "hat", lr=0.05)])
    assert ["validation" in record for record in history] == [False, True]


# -- batch norm statistics --------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", ["batch", "clean"])
@pytest.mark.parametrize("loss", ["natural", "trades"])
def test_students_never_write_the_supernets_statistics(batch_norm, loss):
    net = supernet()
    before = {name: value.clone() for name, value in statistics_of(net).items()}
    one = job(net, loss, [net.space.smallest])
    one = dataclasses.replace(one, budget=dataclasses.replace(BUDGET, batch_norm=batch_norm))
    StepRunner(net, Precision()).gradients(one, *images())
    assert all(torch.equal(value, before[name]) for name, value in statistics_of(net).items())


def test_running_statistics_are_the_leading_slices_of_the_supernets():
    net, arch = supernet(), supernet().space.smallest
    before = {name: value.clone() for name, value in statistics_of(net).items()}
    by_hand = supernet().extract(arch).train()  # momentum 0.1 from the same start: 0 and 1
    x, y = images()
    one = dataclasses.replace(job(net, students=[arch]), budget=dataclasses.replace(BUDGET, batch_norm="running"))
    StepRunner(net, Precision()).gradients(one, x, y)
    by_hand(x)
    expected, written, untouched = statistics_of(by_hand), statistics_of(net), 0
    for name, value in written.items():
        if name not in expected:
            assert torch.equal(value, before[name])
            continue
        if not value.dim():
            assert int(value) == 1
            continue
        n = len(expected[name])
        torch.testing.assert_close(value[:n], expected[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(value[n:], before[name][n:])
        assert not torch.equal(value[:n], before[name][:n])
        untouched += len(value) - n
    assert untouched > 0


def test_an_attack_with_running_statistics_sees_what_earlier_students_wrote():
    """A PGD step by hand, on the student in eval mode with the supernet's statistics."""
    net, arch = supernet(), supernet().space.smallest
    x, y = images()
    calibrate(net, x)
    by_hand = net.extract(arch, statistics_of(net.student(arch))).eval()
    loss = Kept()
    budget = AttackBudget(0.05, 0.02, 1, batch_norm="running")
    one = dataclasses.replace(job(net, students=[arch]), loss=loss, budget=budget)
    StepRunner(net, Precision()).gradients(one, x, y)
    start = (x + 0.05 * Noise(derive_seed(3, 0)).uniform(x)).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(by_hand(start), y, reduction="sum"), start)
    adversarial = (start + 0.02 * gradient.sign()).clamp(0, 1)
    adversarial = torch.max(torch.min(adversarial, x + 0.05), x - 0.05)
    agree = ((loss.images - adversarial).abs() < 1e-5).float().mean()
    assert agree > 0.99


class Kept:
    """Adversarial training that keeps its images."""

    needs_teacher, passes = False, Passes(student=1)

    def adversarial(self, net, batch, budget, noise):
        self.images = make_loss("sat").adversarial(net, batch, budget, noise)
        return self.images

    def loss(self, net, batch, x_adv):
        return F.cross_entropy(net(x_adv), batch.y)


# -- perturbed weights ------------------------------------------------------------------------


def used_by(net, students):
    """Return which elements of each tensor any of the students takes: leading slices in its own shapes."""
    used = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in net.named_parameters()}
    for arch in students:
        for name, p in net.extract(arch).named_parameters():
            used[name][tuple(map(slice, p.shape))] = True
    return used


@pytest.mark.parametrize("which", ["largest", "several"])
def test_a_perturbed_step_has_the_gradient_at_the_perturbed_weights(which):
    """Adversarial weight perturbation by plain autograd: v = gamma |w| g / |g| for each weight, then the gradient."""
    net, by_hand = supernet().double(), supernet().double()
    students = [net.space.largest] if which == "largest" else [net.space.sample(1), net.space.smallest]
    x, y = images()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    value = StepRunner(net, Precision()).gradients(job(net, students=students, awp=0.05), x, y)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())

    def mean_loss():
        return sum(F.cross_entropy(by_hand.student(arch)(x), y) for arch in students) / len(students)

    mean_loss().backward()
    first, used = gradients_of(by_hand), used_by(net, students)
    with torch.no_grad():
        for name, p in by_hand.named_parameters():
            if name in first and p.dim() > 1:
                p += 0.05 * p[used[name]].norm() * first[name] / first[name].norm()
    by_hand.zero_grad()
    perturbed = mean_loss()
    perturbed.backward()
    close(gradients_of(net), gradients_of(by_hand), rtol=1e-3, atol=1e-5)
    assert float(value) == pytest.approx(perturbed.item(), rel=1e-4)
    assert not torch.allclose(net.head.fc.weight.grad, first["head.fc.weight"], rtol=0.01, atol=1e-4)


def test_a_small_kernel_is_perturbed_by_the_size_of_its_centre():
    net = timm.create_model("proard_dyn_mobilenetv3", num_classes=3)
    used = StepRunner(net, Precision())._used([net.space.smallest])
    weight = net.stages[1][0].depthwise.conv.weight
    student = net.extract(net.space.smallest)
    channels, _, size, _ = student.stages[1][0].depthwise.conv.weight.shape
    assert size == 3 and weight.shape[-1] == 7
    expected = torch.zeros_like(weight, dtype=torch.bool)
    expected[:channels, :, 2:5, 2:5] = True
    assert torch.equal(used[weight], expected)


def test_a_small_student_is_perturbed_as_a_network_of_its_own_would_be():
    net = supernet()
    arch, (x, y) = net.space.smallest, images()
    alone = net.extract(arch)
    StepRunner(alone, Precision()).gradients(dataclasses.replace(job(net, awp=0.05), students=[arch]), x, y)
    StepRunner(net, Precision()).gradients(job(net, students=[arch], awp=0.05), x, y)
    for name, p in alone.named_parameters():
        taken = dict(net.named_parameters())[name].grad[tuple(map(slice, p.shape))]
        torch.testing.assert_close(taken, p.grad, rtol=1e-3, atol=1e-5)


def test_a_weight_without_a_gradient_is_not_perturbed():
    """Behind a batch norm whose weights are zero nothing has a gradient, and 0 / 0 must not come of it."""
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=3).train()
    StepRunner(net, Precision()).gradients(job(net, awp=0.05), *images())
    gradients = gradients_of(net)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert not gradients["stages.0.0.conv1.conv.weight"].any() and gradients["head.fc.weight"].any()


def test_perturbed_weights_are_attacked_once_and_raise_the_loss():
    net, loss = supernet(), Recorded()
    students = [net.space.sample(i) for i in range(2)]
    plain = dataclasses.replace(job(net, students=students), loss=loss)
    runner, (x, y) = StepRunner(net, Precision()), images()
    without = runner.gradients(plain, x, y)
    net.zero_grad()
    loss.attacked.clear()
    loss.seen.clear()
    with_perturbation = runner.gradients(dataclasses.replace(plain, awp=0.02), x, y)
    assert loss.attacked == students
    assert [torch.equal(a, b) for a, b in zip(loss.seen[:2], loss.seen[2:], strict=True)] == [True, True]
    assert with_perturbation > without


def test_weights_are_put_back_after_an_error():
    net = supernet()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}

    class Breaks(Recorded):
        def loss(self, network, batch, x_adv):
            if self.seen:
                raise ZeroDivisionError
            return super().loss(network, batch, x_adv)

    with pytest.raises(ZeroDivisionError):
        StepRunner(net, Precision()).gradients(dataclasses.replace(job(net, awp=0.05), loss=Breaks()), *images())
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


# -- the trainer's step -----------------------------------------------------------------------


def one_epoch(net, n=24, epochs=1, loss="natural", on_step=None, **settings):
    x, y = images(n)

    class Noting(Trainer):
        def step(self, *args):
            value = super().step(*args)
            if on_step is not None:
                on_step(self)
            return value

    trainer = Noting(net, ArraySource(x, y), x, dataclasses.replace(SETTINGS, **settings))
    trainer.run([Stage("stage", epochs, loss, lr=0.1)])
    return trainer


@pytest.mark.parametrize("draw", ["step", "epoch"])
def test_students_are_drawn_for_each_step_or_for_a_whole_epoch(draw):
    drawn, net = [], supernet()

    class Noting(Trainer):
        def step(self, job, *args):
            drawn.append(tuple(job.students))
            return super().step(job, *args)

    x, y = images(48)
    stage = Stage("students", 2, "natural", net.space.dimensions, students_per_step=2, draw=draw)
    Noting(net, ArraySource(x, y), x, SETTINGS).run([stage])
    assert len(drawn) == 8
    if draw == "step":
        assert len(set(drawn)) == 8
    else:
        assert len(set(drawn[:4])) == len(set(drawn[4:])) == 1 and drawn[0] != drawn[4]
    assert all(first != second for first, second in drawn)


def test_gradients_are_clipped_to_the_norm_that_was_asked_for():
    norms = []

    def note(trainer):
        norms.append(float(torch.cat([p.grad.flatten() for p in trainer.network.parameters()]).norm()))

    one_epoch(supernet(), on_step=note)
    free = list(norms)
    norms.clear()
    one_epoch(supernet(), on_step=note, clip_grad=0.1)
    assert min(free) > 0.2
    assert norms == pytest.approx([0.1, 0.1], rel=1e-4)


def test_clipping_leaves_small_gradients_alone():
    plain, clipped = supernet(), supernet()
    one_epoch(plain)
    one_epoch(clipped, clip_grad=1e6)
    for a, b in zip(plain.parameters(), clipped.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_moving_average_is_the_one_computed_by_hand():
    """Weight after n updates: w_n = d w_(n-1) + (1 - d) w with d = min(decay, 1 - n^(-2/3)), the first a copy."""
    weights, averages = [], []

    def note(trainer):
        weights.append({k: v.clone() for k, v in trainer.network.state_dict().items()})
        averages.append({k: v.clone() for k, v in trainer.keeper.averaged.state_dict().items()})

    net = supernet()
    trainer = one_epoch(net, 36, 2, on_step=note, ema_decay=0.5)
    average = weights[0]
    for n, new in enumerate(weights):
        decay = min(0.5, 1 - (n + 1) ** (-2 / 3))
        average = {k: decay * average[k] + (1 - decay) * new[k] if new[k].is_floating_point() else new[k] for k in new}
        close(averages[n], average, rtol=1e-5, atol=1e-6)
    assert len(weights) == 6 and trainer.keeper.ema is None
    for name, p in net.named_parameters():
        torch.testing.assert_close(p, average[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(p, weights[-1][name])


def test_each_stage_has_an_average_of_its_own():
    """The second stage's first step leaves the average equal to the weights: nothing of the first is in it."""
    equal = []

    def note(trainer):
        average = trainer.keeper.averaged.state_dict()
        equal.append(all(torch.equal(value, average[k]) for k, value in trainer.network.state_dict().items()))

    x, y = images(24)

    class Noting(Trainer):
        def step(self, *args):
            value = super().step(*args)
            note(self)
            return value

    trainer = Noting(supernet(), ArraySource(x, y), x, dataclasses.replace(SETTINGS, ema_decay=0.9))
    trainer.run([Stage("a", 1, "natural", lr=0.1), Stage("b", 1, "natural", lr=0.1)])
    assert equal == [True, False, True, False]


def test_images_are_augmented_before_they_are_attacked():
    loss, net = Recorded(), supernet()
    x, y = images(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(derive_seed(0, "train", 0, 0)))
    trainer = Trainer(net, ArraySource(x, y), x, dataclasses.replace(SETTINGS, augment="crop-flip"))
    trainer.run([Stage("stage", 1, loss)])
    (seen,) = loss.batches
    assert torch.equal(seen.y, y[order]) and not torch.equal(seen.x, x[order])
    assert torch.equal(loss.seen[0], seen.x + 0.1)
    for before, after in zip(x[order], seen.x, strict=True):  # values are only moved
        assert set(after[after > 0].tolist()) <= set(before.flatten().tolist())


def test_the_last_image_alone_is_left_out():
    trainer = one_epoch(supernet(), 25)
    assert trainer.history[0]["images"] == 24 and trainer.ledger.total.steps == 2


def test_a_step_is_counted_at_its_price():
    net = supernet()
    trainer = one_epoch(net, 24, loss="trades")
    expected = training_cost(net, [Stage("stage", 1, "trades")], 24, BUDGET, (8, 8))
    assert trainer.ledger.total.macs == pytest.approx(expected.macs)


def test_a_larger_teacher_is_counted_at_its_own_price():
    net = supernet()
    large, small = net.cost(net.space.largest).macs, net.cost(net.space.smallest).macs
    teacher, student = (calibrate(net.extract(arch), images(8)[0]) for arch in (net.space.largest, net.space.smallest))
    x, y = images(24)
    trainer = Trainer(student, ArraySource(x, y), x, SETTINGS, teacher=teacher)
    trainer.run([Stage("alone", 1, "rslad", lr=0.1)])
    # Two steps of PGD forward and backward, clean and adversarial images forward and backward to the weights.
    assert trainer.ledger.total.macs == 24 * ((2 * 2 + 2 * 3) * small + large)
    stages = [Stage("steps", 1, "rslad"), Stage("live", 1, "rslad", teacher="live")]
    (_, frozen), (_, live) = training_cost(net, stages, 24, BUDGET, (8, 8), teacher=student).stages
    assert frozen == 24 * (10 * large + small) and live == 24 * (1 + 2 * 2 + 2 * 3) * large  # TRADES


def test_each_process_has_dropout_of_its_own(monkeypatch):
    def gradient(rank, rate):
        net = supernet()
        net.head.drop.p = rate
        monkeypatch.setattr("proard_nas.distributed.rank", lambda: rank)
        monkeypatch.setattr("proard_nas.distributed.world_size", lambda: 2)
        StepRunner(net, Precision()).gradients(job(net), *images())
        return net.get_classifier().weight.grad

    assert torch.equal(gradient(0, 0.0), gradient(1, 0.0))
    assert torch.equal(gradient(1, 0.5), gradient(1, 0.5))
    assert not torch.equal(gradient(0, 0.5), gradient(1, 0.5))


# -- precision and compilation ----------------------------------------------------------------


def test_bfloat16_steps_are_near_float32_ones():
    net, reference = supernet(), supernet()
    x, y = images()
    for network, precision in ((net, Precision("bfloat16")), (reference, Precision())):
        value = StepRunner(network, precision).gradients(job(network), x, y)
        assert value.dtype == torch.float32
    ours, expected = (torch.cat([p.grad.flatten() for p in n.parameters()]) for n in (net, reference))
    assert ours.dtype == torch.float32
    assert F.cosine_similarity(ours, expected, dim=0) > 0.9
    assert not torch.equal(ours, expected)


def test_training_in_bfloat16_learns():
    net = supernet()
    x, y = images(48)
    settings = dataclasses.replace(SETTINGS, precision=Precision("bfloat16"))
    Trainer(net, ArraySource(x, y), x, settings).run([Stage("natural", 10, "natural", lr=0.1)])
    with torch.no_grad():
        assert (net(x).argmax(1) == y).float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")), reason="needs a C++ compiler"
)
def test_compiled_networks_give_the_same_gradients_and_train():
    """On given images: an attack turns the last digits of its gradients into steps."""
    x, y = images(24)
    found = []
    for compiled in (False, True):
        net, loss = supernet(), Taught()
        runner = StepRunner(net, Precision(), compiled)
        runner.teacher = calibrate(supernet(1), x).eval().requires_grad_(False)
        students = [net.space.largest, net.space.smallest]
        value = runner.gradients(dataclasses.replace(job(net, students=students), loss=loss, total=24), x, y)
        found.append(gradients_of(net) | {"loss": value, "teacher": loss.batches[0].teacher_logits})
    close(found[1], found[0], rtol=1e-3, atol=1e-4)
    net = supernet()
    trainer = Trainer(net, ArraySource(x, y), x, dataclasses.replace(SETTINGS, compile_teacher=True))
    stages = [Stage("teacher", 4, "natural", lr=0.1), Stage("students", 1, "rslad", ("depth",), lr=0.05)]
    trainer.run(stages)
    with torch.no_grad():
        assert (net(x).argmax(1) == y).float().mean() > 0.8
    assert net.state_dict().keys() == supernet().state_dict().keys()
