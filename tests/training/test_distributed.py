"""Two processes against one: the same steps, the same statistics, the same figures; see `main` for how they run."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from proard_nas import _fitting, distributed
from proard_nas._random import derive_seed
from proard_nas.data import ArraySource, DatasetSource, LoaderSource, prepare, sharded
from proard_nas.evaluation import AttackSettings, calibrate
from proard_nas.supernets import statistics_of
from proard_nas.training import AttackBudget, CheckpointStore, Passes, Stage, Trainer, TrainSettings, Validation
from proard_nas.training.monitor import measure
from proard_nas.training.sync_norm import synced_batch_norm

DEADLINE = 500  # seconds for both processes, of which they need some fifteen on a machine that is idle
SETTINGS = TrainSettings(
    batch_size=15, budget=AttackBudget(0.05, 0.02, 2), progress=False, sync_batch_norm=True, checkpoint_seconds=0
)
TEACHER = Stage("teacher", 1, "trades", lr=0.05)
STUDENTS = Stage("students", 1, "rslad", ("width_mult", "depth", "expand_ratio"), lr=0.05, students_per_step=2)


def supernet(seed=0):
    """Return a network whose residual branches are open: as it is made, they end in zeros and have no gradients."""
    torch.manual_seed(seed)
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=3)
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.2, 0.2)
    return net


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.rand(n, 1, 8, 8, generator=generator) * 0.4 + y.reshape(-1, 1, 1, 1) * 0.3, y


def weights_of(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def train(source, stages, settings=SETTINGS, **more):
    """Train and return what the processes must agree on, after each epoch and at the end.

    All in double precision: in single, rounding turns the sign of small gradients, and an attack's step with it.
    """
    net, after = supernet().double(), []
    trainer = Trainer(
        net, source, images(20)[0], settings, on_epoch=lambda record: after.append(weights_of(net)), **more
    )
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):  # the losses' own choice
        trainer.run(stages)
    history = [{k: record[k] for k in ("stage", "epoch", "images", "loss")} for record in trainer.history]
    return {"after": after, "end": {k: v.clone() for k, v in net.state_dict().items()}, "history": history}


def test_a_build_of_torch_without_processes_works_alone(monkeypatch):
    monkeypatch.setattr(distributed, "dist", SimpleNamespace(is_available=lambda: False))
    assert distributed.is_main() and not distributed.is_on() and distributed.gather(3) == [3]
    with distributed.process_group(torch.device("cpu")):
        assert distributed.world_size() == 1


# -- what each process does, and one alone ----------------------------------------------------


def arrays(folder):
    """Three steps of TRADES and three of RSLAD with a random student; batches of 15, 15 and 7."""
    return train(ArraySource(*images(37)), [TEACHER, dataclasses.replace(STUDENTS, students_per_step=1)])


def dataset(folder):
    return train(DatasetSource(TensorDataset(*images(37))), [dataclasses.replace(STUDENTS, loss="natural")])


def last_batch_of_two(folder):
    return train(ArraySource(*images(32)), [dataclasses.replace(TEACHER, loss="natural")])


def clean_statistics(folder):
    """The attack sees the statistics of the clean batch, which are the joined one's."""
    return train(ArraySource(*images(37)), [dataclasses.replace(TEACHER, batch_norm="clean")])


def augmented(folder):
    settings = dataclasses.replace(SETTINGS, augment="crop-flip")
    return train(ArraySource(*images(37)), [dataclasses.replace(TEACHER, loss="natural")], settings)


def perturbed_weights(folder):
    settings = dataclasses.replace(SETTINGS, awp=0.01, clip_grad=1.0, ema_decay=0.9)
    return train(ArraySource(*images(37)), [dataclasses.replace(TEACHER, loss="natural")], settings)


def ghost(folder):
    """Three steps of two random students without joined statistics, after the natural loss."""
    settings = dataclasses.replace(SETTINGS, sync_batch_norm=False, batch_size=11)
    return train(ArraySource(*images(33)), [dataclasses.replace(STUDENTS, loss="natural")], settings)


def ghost_distilled(folder):
    settings = dataclasses.replace(SETTINGS, sync_batch_norm=False)
    return train(ArraySource(*images(37)), [TEACHER, STUDENTS], settings)


def batch_norms(folder):
    """Joined batch norm of each kind: its output, gradients and statistics for one random batch."""
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(7, 4, 3, 3, generator=generator) * 2 + 1 for _ in range(2))
    rank, size, results = distributed.rank(), distributed.world_size(), {}
    for name, norm in {"torch": nn.BatchNorm2d(4), "timm": timm.layers.BatchNormAct2d(4)}.items():
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.2, -0.3, 0.0]))
        mine = x[rank::size].clone().requires_grad_()
        with synced_batch_norm(norm):
            output = norm(mine)
            (output - target[rank::size]).square().sum().backward()
        distributed.sum_in_place([norm.weight.grad, norm.bias.grad])
        results[name] = {
            "output": output.detach(),
            "to_images": mine.grad,
            "to_weight": norm.weight.grad,
            "to_bias": norm.bias.grad,
            "mean": norm.running_mean,
            "var": norm.running_var,
            "kind": type(norm).__name__,
        }
    return results


def calibrated(folder):
    net = supernet()
    student = net.student(net.space.smallest)
    uneven = statistics_of(calibrate(student, images(37)[0], 7, reduce=True))
    single = statistics_of(calibrate(net.extract(net.space.smallest), images(9)[0], 16, reduce=True))
    return {"uneven": dict(uneven), "a process without a batch": single}


def validated(folder):
    net = supernet()
    calibrate(net, images(20)[0])
    validation = Validation(ArraySource(*images(37, seed=1)), AttackSettings("pgd", 0.01, 0.004, 4), batch_size=10)
    return measure(net, [net.space.largest, net.space.smallest], validation, images(30)[0], seed=5, single=True)


class Counting(CheckpointStore):
    """Counts what this process writes."""

    saved = 0

    def save(self, *args, **options):
        self.saved += 1
        return super().save(*args, **options)


def open_store(folder, name):
    """Open a folder that the processes share, the main one first."""
    if distributed.is_main():
        CheckpointStore(folder / name, {})
    distributed.wait_for_all()
    return Counting(folder / name, {})


class Natural:
    """The natural loss, which sends a signal to its own process where it is called for the n-th time."""

    needs_teacher, passes = False, Passes(student=1, attacked=False)

    def __init__(self, rank=0, call=0):
        self.sends, self.calls, self.call = distributed.rank() == rank, 0, call

    def adversarial(self, net, batch, budget, noise):
        return None

    def loss(self, net, batch, x_adv):
        self.calls += 1
        if self.sends and self.calls == self.call:
            os.kill(os.getpid(), signal.SIGTERM)
        return F.cross_entropy(net(batch.x), batch.y)


def stopped(folder):
    """A signal to the second process only, in the fourth of six steps; then both go on."""
    source, results = ArraySource(*images(37)), {}
    for name, call in (("uninterrupted", 0), ("stopped", 4)):
        net, store = supernet(), open_store(folder, name)
        stages = [Stage("natural", 2, Natural(rank=1, call=call), STUDENTS.elastic, lr=0.05)]
        trainer = Trainer(net, source, source.x, SETTINGS, store=store)
        trainer.run(stages)
        results[name] = {"weights": weights_of(net), "interrupted": trainer.interrupted, "saved": store.saved}
        results[name]["at"] = (trainer.keeper.state.epoch, trainer.keeper.state.step)
    net = supernet(seed=1)
    trainer = Trainer(net, source, source.x, SETTINGS, store=open_store(folder, "stopped"))
    stages = [Stage("natural", 2, Natural(), STUDENTS.elastic, lr=0.05)]
    distributed.wait_for_all()
    restored = trainer.restore(stages)
    distributed.wait_for_all()
    trainer.run(stages)
    results["resumed"] = {"weights": weights_of(net), "restored": restored, "history": len(trainer.history)}
    return results


def late_signal(folder):
    """A signal to the second process after the last step."""

    def on_epoch(record):
        if distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = Trainer(supernet(), ArraySource(*images(30)), images(20)[0], SETTINGS, on_epoch)
    trainer.run([dataclasses.replace(TEACHER, loss="natural")])
    return trainer.interrupted


def one_callback_stops(folder):
    source = ArraySource(*images(30))
    trainer = Trainer(supernet(), source, source.x, SETTINGS, on_epoch=lambda record: distributed.rank() == 0)
    return len(trainer.run([Stage("natural", 3, "natural")]))


def collectives(folder):
    """Collective calls of each step, without joined statistics; one student has no part in some parameters."""
    counts, calls, all_reduce = [], [0], dist.all_reduce

    class Counted(Trainer):
        def step(self, *args):
            before = calls[0]
            loss = super().step(*args)
            counts.append(calls[0] - before)
            return loss

    def counted(*args, **options):
        calls[0] += 1
        return all_reduce(*args, **options)

    source = ArraySource(*images(45))
    settings = dataclasses.replace(SETTINGS, sync_batch_norm=False, ema_decay=0.9, clip_grad=1.0)
    dist.all_reduce = counted
    try:
        Counted(supernet(), source, source.x, settings).run([TEACHER, STUDENTS])
    finally:
        dist.all_reduce = all_reduce
    return counts


def different_data(folder):
    """A loader that shows each process another part, as with a DistributedSampler; then the whole in both."""
    said = []
    for part in (slice(distributed.rank(), 36, 2), slice(0, 36)):
        x, y = (values[part] for values in images(36))
        try:
            _fitting._check_same_data(prepare([(x, y)], val_data=(x, y)))
            said.append("")
        except ValueError as error:
            said.append(str(error))
    return said


def main_before_the_other(folder):
    with distributed.main_first():
        found = (folder / "downloaded").exists()
        if distributed.is_main():
            time.sleep(0.2)
            (folder / "downloaded").touch()
    return found


SCENARIOS = {
    f.__name__: f
    for f in (
        arrays,
        dataset,
        last_batch_of_two,
        clean_statistics,
        augmented,
        perturbed_weights,
        ghost,
        ghost_distilled,
        batch_norms,
        calibrated,
        validated,
        stopped,
        late_signal,
        one_callback_stops,
        collectives,
        different_data,
        main_before_the_other,
    )
}


def main(rank, folder):
    """Run all scenarios as one of two processes, which meet through a file; each leaves its results in the folder."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=DEADLINE / 2)
    )
    for name, scenario in SCENARIOS.items():
        try:
            result = scenario(folder)
        except BaseException:
            (folder / f"{name}-{rank}.txt").write_text(traceback.format_exc())
            raise
        torch.save(result, folder / f"{name}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))


# -- what comes out ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    """Run both processes once; return a function from a scenario's name to each one's result."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        processes = [
            subprocess.Popen([sys.executable, __file__, str(rank), name], stderr=subprocess.PIPE, env=environment)
            for rank in range(2)
        ]
        for process in processes:
            stack.callback(process.kill)
        said = [process.communicate(timeout=DEADLINE)[1].decode() for process in processes]

        def result(scenario):
            for rank in range(2):
                if (folder / f"{scenario}-{rank}.txt").exists():
                    pytest.fail((folder / f"{scenario}-{rank}.txt").read_text())
                if not (folder / f"{scenario}-{rank}.pt").exists():
                    pytest.fail(f"process {rank} did not come to {scenario!r}: {said[rank][-2000:]}")
            return [torch.load(folder / f"{scenario}-{rank}.pt", weights_only=False) for rank in range(2)]

        yield result


def distance(found, expected):
    """Return the largest difference of any tensor's values, relative to the tensor's largest."""
    assert found.keys() == expected.keys()
    largest = {name: float(tensor.double().abs().max().clamp(min=1e-12)) for name, tensor in expected.items()}
    return max(float((found[name] - expected[name]).double().abs().max()) / largest[name] for name in expected)


def moved(weights):
    """Return how far weights are from where training began."""
    return distance(weights, weights_of(supernet()))


def identical(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "scenario", [arrays, dataset, last_batch_of_two, clean_statistics, augmented, perturbed_weights]
)
def test_two_processes_with_joined_statistics_take_the_steps_of_one(results, scenario):
    alone = scenario(None)
    for found in results(scenario.__name__):
        assert [r | {"loss": 0} for r in found["history"]] == [r | {"loss": 0} for r in alone["history"]]
        losses = [[record["loss"] for record in result["history"]] for result in (found, alone)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        for ours, expected in zip(found["after"], alone["after"], strict=True):
            assert moved(expected) > 1e-2
            assert distance(ours, expected) < 1e-9
        assert distance(found["end"], alone["end"]) < 1e-9


def test_both_processes_end_with_the_same_bits(results):
    for scenario in (arrays, perturbed_weights, ghost, ghost_distilled):
        first, second = results(scenario.__name__)
        assert identical(first["end"], second["end"])
        assert [r["loss"] for r in first["history"]] == [r["loss"] for r in second["history"]]


def test_without_joined_statistics_gradients_are_the_mean_of_the_parts(results):
    """Ghost batch norm by hand: each half normalised alone, gradients weighted by the halves' sizes (6 and 5)."""
    x, y = images(33)
    net = supernet().double().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=2e-4)
    seed = derive_seed(0, "train", 0, 0)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(seed))
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * step / 3)) / 2
        optimizer.zero_grad()
        batch = order[11 * step : 11 * (step + 1)]
        rng = np.random.default_rng(derive_seed(0, "train", 0, 0, step))
        for arch in [net.space.sample(rng), net.space.sample(rng)]:
            for half in (batch[0::2], batch[1::2]):
                loss = F.cross_entropy(net.student(arch)(x[half]), y[half])
                (loss * len(half) / 11 / 2).backward()
        optimizer.step()
    for found in results("ghost"):
        assert distance(found["after"][0], weights_of(net)) < 1e-9
    assert distance(ghost(None)["after"][0], weights_of(net)) > 1e-3  # one process has the joined batch's statistics


@pytest.mark.parametrize("kind", ["torch", "timm"])
def test_joined_batch_norm_is_batch_norm_of_the_joined_batch(results, kind):
    alone, found = batch_norms(None)[kind], [result[kind] for result in results("batch_norms")]
    for rank in range(2):
        for name in ("output", "to_images"):
            torch.testing.assert_close(found[rank][name], alone[name][rank::2], rtol=1e-4, atol=1e-5)
        for name in ("to_weight", "to_bias", "mean", "var"):
            torch.testing.assert_close(found[rank][name], alone[name], rtol=1e-4, atol=1e-5)
        assert found[rank]["kind"] == alone["kind"] == {"torch": "BatchNorm2d", "timm": "BatchNormAct2d"}[kind]


def test_every_batch_norm_of_a_network_is_joined_and_put_back():
    net = supernet()
    kinds = [type(m) for m in net.modules()]
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with synced_batch_norm(net):
        student = net.student(net.space.smallest)
        inside = [m for m in (*norms, *student.modules()) if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert len(inside) > len(norms) > 0
        assert all(type(m).__name__.startswith("Joined") for m in inside)
    assert [type(m) for m in net.modules()] == kinds
    assert not any(hasattr(m, "process_group") for m in norms)


def test_a_batch_norm_that_cannot_be_joined_is_refused():
    with pytest.raises(TypeError, match="cannot synchronise \\['BatchNorm1d'\\]; allowed: \\['BatchNorm2d'"):
        synced_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))).__enter__()


def test_calibration_of_two_processes_is_that_of_one(results):
    alone = calibrated(None)
    for found in results("calibrated"):
        for name, statistics in alone.items():
            assert distance(found[name], statistics) < 1e-5, name


def test_validation_of_two_processes_is_that_of_one(results):
    alone = validated(None)
    assert 0 < alone["robust"] < alone["natural"] < 1
    assert results("validated") == [alone, alone]


def test_only_the_main_process_writes_checkpoints(results):
    saved = [result["uninterrupted"]["saved"] for result in results("stopped")]
    assert saved[0] > 6 and saved[1] == 0


def test_a_signal_to_one_process_stops_both_after_the_same_step(results):
    for result in results("stopped"):
        assert result["stopped"]["interrupted"] is signal.SIGTERM
        assert result["stopped"]["at"] == (1, 1)
        assert result["uninterrupted"]["interrupted"] is None


def test_two_processes_go_on_from_a_checkpoint_as_if_they_had_never_stopped(results):
    for result in results("stopped"):
        assert result["resumed"]["restored"] and result["resumed"]["history"] == 2
        assert identical(result["resumed"]["weights"], result["uninterrupted"]["weights"])
        assert not identical(result["stopped"]["weights"], result["uninterrupted"]["weights"])


def test_a_signal_to_one_process_after_the_last_step_is_known_to_both(results):
    assert results("late_signal") == [signal.SIGTERM, signal.SIGTERM]


def test_a_callback_that_ends_training_in_one_process_ends_it_in_both(results):
    assert results("one_callback_stops") == [1, 1]


def test_processes_that_were_given_different_data_do_not_train(results):
    for different, same in results("different_data"):
        assert "without a DistributedSampler" in different and not same


def test_the_main_process_downloads_before_the_others_look(results):
    assert results("main_before_the_other") == [False, True]


def test_a_step_has_one_collective_call(results):
    assert results("collectives") == [[1] * 6, [1] * 6]


# -- who gets which images --------------------------------------------------------------------


def numbered(n):
    """Return images that say which they are, and labels."""
    return torch.arange(n).reshape(-1, 1, 1, 1) / 1000 + torch.zeros(n, 1, 2, 2), torch.arange(n) % 3


def make_source(kind, n):
    x, y = numbered(n)
    if kind == "arrays":
        return ArraySource(x, y)
    if kind == "loader":
        return LoaderSource([(x[i : i + 5], y[i : i + 5]) for i in range(0, n, 5)])
    settings = {"dataset": None, "dataset of a loader": {"batch_size": 5}, "dataset with workers": {"num_workers": 1}}
    return DatasetSource(TensorDataset(x, y), settings[kind])


@pytest.mark.parametrize("kind", ["arrays", "dataset", "dataset of a loader", "loader"])
@pytest.mark.parametrize(("n", "size"), [(20, 2), (23, 2), (21, 2), (23, 3), (26, 4)])
def test_together_processes_see_each_image_once_in_the_order_of_one(kind, n, size):
    alone = [x[:, 0, 0, 0].mul(1000).round().int().tolist() for x, _ in make_source(kind, n).batches(5, seed=7)]
    assert sorted(itertools.chain(*alone)) == list(range(n))
    parts = [list(sharded(make_source(kind, n), 5, 7, rank, size)) for rank in range(size)]
    for index, expected in enumerate(alone):
        joined = {}
        for rank in range(size):
            if index == len(parts[rank]):  # of a last batch that is shorter than the processes are many
                assert len(expected) <= rank
                continue
            (x, y), total = parts[rank][index]
            assert total == len(expected)
            numbers = x[:, 0, 0, 0].mul(1000).round().int().tolist()
            assert y.tolist() == [number % 3 for number in numbers]
            joined |= {rank + size * i: number for i, number in enumerate(numbers)}
        assert [joined[i] for i in range(len(expected))] == expected


def test_so_they_do_with_workers():
    test_together_processes_see_each_image_once_in_the_order_of_one("dataset with workers", 23, 2)


def test_another_epoch_has_another_order():
    orders = [
        [int(i) for (_, y), _ in sharded(ArraySource(numbered(20)[0], torch.arange(20)), 5, seed, 0, 1) for i in y]
        for seed in (1, 2)
    ]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_a_dataset_loads_only_a_processs_own_part():
    loaded = []

    class Noticing(TensorDataset):
        def __getitem__(self, index):
            loaded.append(index)
            return super().__getitem__(index)

    list(sharded(DatasetSource(Noticing(*numbered(20))), 5, 7, 1, 2))
    assert len(loaded) == len(set(loaded)) == 8  # two of the five of each batch


@pytest.mark.parametrize("workers", [0, 1])
def test_each_process_draws_random_transforms_of_its_own(workers):
    class Drawn(TensorDataset):
        def __getitem__(self, index):
            return torch.rand(1, 2, 2), super().__getitem__(index)[1]

    source = DatasetSource(Drawn(*numbered(20)), {"num_workers": workers})
    first, second = (torch.cat([x for (x, _), _ in sharded(source, 5, 7, rank, 2)]) for rank in range(2))
    assert not (first[:, None] == second).all(-1).all(-1).any()
    again = torch.cat([x for (x, _), _ in sharded(source, 5, 7, 1, 2)])
    assert torch.equal(again, second)


def test_a_plain_loaders_images_are_shared_too():
    loader = DataLoader(TensorDataset(*numbered(11)), batch_size=4, shuffle=True)
    seen = [y.tolist() for rank in range(2) for (_, y), _ in sharded(DatasetSource.from_loader(loader), 99, 3, rank, 2)]
    assert sorted(itertools.chain(*seen)) == sorted(i % 3 for i in range(11))
