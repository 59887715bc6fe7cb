"""A measured latency is the median of what a clock says, under the setting it names, and leaves all as it was."""

from __future__ import annotations

import collections
import itertools
import json
import sys
import time

import numpy as np
import pytest
import timm
import torch
from torch import nn

import proard_nas  # noqa: F401  (registers the networks)
from proard_nas.deploy import OnnxNetwork, _runs, _timing, measure_latency
from proard_nas.deploy.latency import input_shape


class Watched(nn.Module):
    """Notes how it is called, and takes its time, by sleeping unless it is told how."""

    def __init__(self, seconds=0.0, sleep=time.sleep):
        super().__init__()
        self.pretrained_cfg = {"input_size": (2, 6, 5)}
        self.weight = nn.Parameter(torch.zeros(1))
        self.inner = nn.Dropout()
        self.seconds, self.sleep, self.shapes, self.threads, self.modes = seconds, sleep, [], [], []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        self.threads.append(torch.get_num_threads())
        self.modes.append((self.training, self.inner.training))
        self.sleep(self.seconds)
        return x


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return timm.create_model("proard_dyn_resnet_tiny").eval()


def give_clock(monkeypatch, durations):
    """Make the clock say that the runs took these milliseconds, over and over."""
    ticks = itertools.chain.from_iterable((0.0, 1e-3 * ms) for ms in itertools.cycle(durations))
    monkeypatch.setitem(_timing.CLOCKS, "wall", lambda: next(ticks))


class SlowClock:
    """A clock that goes on only where it is told to, as fast as the machine may be."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setitem(_timing.CLOCKS, "wall", lambda: self.now)

    def sleep(self, seconds):
        self.now += seconds


def test_a_network_that_sleeps_takes_that_long(monkeypatch):
    latency = measure_latency(Watched(0.02), runtime="torch", repeats=5)
    assert 20 <= latency.min_ms <= latency.q25_ms <= latency.median_ms <= latency.q75_ms
    latency = measure_latency(Watched(0.02, SlowClock(monkeypatch).sleep), runtime="torch", repeats=5)
    assert (latency.min_ms, latency.median_ms, latency.q75_ms) == pytest.approx((20, 20, 20))


def test_the_cpu_clock_leaves_out_the_time_in_which_nothing_was_computed():
    latency = measure_latency(Watched(0.02), runtime="torch", threads=1, repeats=5, clock="cpu")
    assert latency.median_ms < 10


def test_figures_are_the_quantiles_of_the_runs(monkeypatch):
    durations = [5.0, 1.0, 2.0, 11.0, 3.0, 4.0, 9.0]
    give_clock(monkeypatch, durations)
    latency = measure_latency(Watched(), runtime="torch", repeats=7)
    assert latency.runs == 7
    assert (latency.median_ms, latency.min_ms) == pytest.approx((4.0, 1.0))
    assert (latency.q25_ms, latency.q75_ms) == pytest.approx(tuple(np.quantile(durations, (0.25, 0.75))))


def test_equal_runs_are_soon_enough(monkeypatch):
    give_clock(monkeypatch, [3.0])
    assert measure_latency(Watched(), runtime="torch").runs == 20


def test_runs_that_differ_go_on_until_the_median_is_known(monkeypatch):
    """The median of 4, 5 and 6 ms is 5 and the deviation 1: its standard error is 1 % of 5 ms at n runs."""
    give_clock(monkeypatch, [4.0, 5.0, 6.0])
    n = (1.2533 * 1.4826 * 1.0 / (0.01 * 5.0)) ** 2
    runs = measure_latency(Watched(), runtime="torch", budget_s=60).runs
    assert n <= runs < 1.1 * n + 1


def test_the_budget_ends_runs_that_take_long():
    latency = measure_latency(Watched(0.05), runtime="torch", repeats=1000, warmup=0, budget_s=0.4)
    assert 2 <= latency.runs <= 8


def test_it_runs_as_often_as_asked_in_eval_mode_with_the_batch_size_and_threads_given():
    network = Watched().train()
    network.inner.eval()
    before = torch.get_num_threads()
    latency = measure_latency(
        network, runtime="torch", batch_size=3, threads=before + 1, repeats=6, warmup=2, img_size=(4, 7)
    )
    assert network.shapes == [(3, 2, 4, 7)] * 8
    assert set(network.threads) == {before + 1} and torch.get_num_threads() == before
    assert set(network.modes) == {(False, False)}
    assert (network.training, network.inner.training) == (True, False)
    assert (latency.batch_size, latency.threads, latency.img_size) == (3, before + 1, (4, 7))


def test_threads_and_modes_come_back_after_an_error():
    class Broken(Watched):
        def forward(self, x):
            raise RuntimeError("broken")

    network, before = Broken().train(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken"):
        measure_latency(network, runtime="torch", threads=before + 1)
    assert torch.get_num_threads() == before and network.training


def test_the_image_size_is_the_networks_own_by_default():
    network = Watched()
    measure_latency(network, runtime="torch", repeats=1)
    assert network.shapes[0] == (1, 2, 6, 5)


@pytest.mark.parametrize(
    ("name", "in_chans"), [("test_resnet", 1), ("test_resnet", 6), ("test_vit", 2), ("tresnet_m", 3), ("tresnet_m", 1)]
)
def test_the_channels_are_those_that_a_network_was_made_with(name, in_chans):
    with torch.device("meta"):
        network = timm.create_model(name, in_chans=in_chans)
    assert input_shape(network, 32) == (in_chans, 32, 32)


def test_a_number_format_that_onnx_runtime_has_no_layers_in_is_named(net):
    student = net.extract(net.space.smallest).bfloat16()
    with pytest.raises(
        ValueError, match=r"torch\.bfloat16 on the CPU: call \.float\(\) first, or give runtime='torch'"
    ):
        measure_latency(student)
    assert measure_latency(student, runtime="torch", repeats=1).median_ms > 0


def test_what_is_said_of_a_latency_is_plain_json(net):
    latency = measure_latency(net.extract(net.space.smallest), threads=1, repeats=5)
    said = json.loads(json.dumps(latency.to_dict()))
    assert said["median_ms"] == latency.median_ms and said["img_size"] == [8, 8]
    assert said["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert said["runtime"] == "onnxruntime" and "onnxruntime" in said["versions"]
    assert {"cpu", "cores", "system"} <= said["machine"].keys()


def test_onnx_runtime_computes_what_torch_does(net):
    student = net.extract(net.space.sample(seed=1)).eval()
    (found,) = _runs.make_run(student, (2, 1, 8, 8), "onnxruntime", 1)()
    with torch.no_grad():
        expected = student(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_onnx_runtime_is_given_the_threads_that_are_asked_for(net, tmp_path, monkeypatch, threads):
    onnxruntime, given = pytest.importorskip("onnxruntime"), []
    start = onnxruntime.InferenceSession

    def record(*args, **kwargs):
        session = start(*args, **kwargs)
        given.append(session.get_session_options().intra_op_num_threads)
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    student, path = net.extract(net.space.smallest).eval(), tmp_path / "student.onnx"
    path.write_bytes(_runs.exported(student, torch.rand(1, 1, 8, 8)))
    for network in (student, path):
        assert measure_latency(network, threads=threads, repeats=1).threads == threads
    OnnxNetwork(path, threads=threads)
    assert given == [threads] * 3


def test_a_file_is_measured_as_it_is(net, tmp_path):
    path = tmp_path / "student.onnx"
    path.write_bytes(_runs.exported(net.extract(net.space.smallest).eval(), torch.rand(2, 1, 8, 8)))
    latency = measure_latency(path, batch_size=2, threads=1, repeats=5)
    assert (latency.img_size, latency.batch_size, latency.runs) == ((8, 8), 2, 5)
    with pytest.raises(ValueError, match=r"not batches of 1 at"):
        measure_latency(path, threads=1)
    with pytest.raises(ValueError, match=r"not batches of 2 at \(9, 9\)"):
        measure_latency(path, batch_size=2, threads=1, img_size=9)
    with pytest.raises(ValueError, match="runtime='onnxruntime', not 'torch'"):
        measure_latency(path, runtime="torch")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"runtime": "onnxruntme"}, "Did you mean 'onnxruntime'"),
        ({"clock": "sun"}, "allowed: 'cpu', 'wall'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"threads": 1.5}, "threads must be a whole number"),
        ({"repeats": 0}, "repeats must be"),
        ({"warmup": -1}, "warmup must be"),
        ({"img_size": (3, 3, 3)}, "img_size must be one number"),
        ({"img_size": 0}, "img_size must be a whole number"),
        ({"budget_s": float("nan")}, "budget_s must be above 0"),
        ({"clock": "cpu", "threads": 2}, "needs threads=1, got 2"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(Watched(), **({"runtime": "torch"} | wrong))


def test_a_supernet_is_refused(net):
    with pytest.raises(ValueError, match="measure supernet.extract"):
        measure_latency(net, runtime="torch")


def test_a_network_that_does_not_say_its_image_size_is_refused():
    with pytest.raises(ValueError, match="Flatten has no pretrained_cfg"):
        measure_latency(nn.Flatten(), runtime="torch")


def test_a_missing_onnx_runtime_is_named(net, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"proard-nas\[onnx\]"):
        measure_latency(net.extract(net.space.smallest))


def test_in_turn_everything_runs_once_timed_and_once_before_in_each_round():
    calls = []
    runs = [lambda name=name: calls.append(name) for name in "abc"]
    times = _timing.time_in_turn(runs, "wall", rounds=4, warmup=1)
    assert times.shape == (4, 3)
    assert collections.Counter(calls) == dict.fromkeys("abc", 1 + 2 * 4)
    rounds = [calls[3:][i : i + 6] for i in range(0, 24, 6)]
    assert all(a == b for turn in rounds for a, b in zip(turn[::2], turn[1::2], strict=True))
    assert len({tuple(turn) for turn in rounds}) > 1  # not always in the same order


def test_each_time_belongs_to_its_run(monkeypatch):
    clock = SlowClock(monkeypatch)
    runs = [lambda seconds=seconds: clock.sleep(seconds) for seconds in (0.01, 0, 0.1)]
    times = _timing.time_in_turn(runs, "wall", rounds=5, warmup=0)
    np.testing.assert_allclose(times, [[10, 0, 100]] * 5, atol=1e-9)


def _work(node, shapes):
    activation = [attribute.s for attribute in node.attribute if attribute.name == "activation"]
    return (node.domain, node.op_type, shapes.get(node.input[1]), *activation)


@pytest.mark.slow
def test_onnx_runtime_makes_the_same_convolutions_of_both_exporters(net, tmp_path):
    """So a table measured with the quick exporter holds for files made with the other."""
    import onnx
    import onnxruntime

    student = net.extract(net.space.sample(seed=0)).eval()
    x = torch.rand(1, 1, 8, 8)
    program = torch.onnx.export(student, (x,), dynamo=True, verbose=False)
    found = []
    for model in (_runs.exported(student, x), program.model_proto.SerializeToString()):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / f"{len(found)}.onnx")
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
        shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        nodes = [node for node in graph.node if "Conv" in node.op_type or node.op_type == "Gemm"]
        found.append(collections.Counter(_work(node, shapes) for node in nodes))
    assert found[0] == found[1] and found[0].total() > 5
