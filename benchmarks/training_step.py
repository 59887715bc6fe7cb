"""What a training step of the library costs, in time and memory, beside the same step written by hand.

Two sides of a comparison run in turn (A B, B A, ...), each once before it counts; a ratio is that of their medians.
``step``: a whole step of the training loop (RSLAD, PGD-10, SGD with momentum; drawing, making the live student, checks
and accounting included) over the plain one for a static network of the same architecture (bar: 1.05). ``attack``: the
inner attack over a bare loop, both on that static network (bar: 1.05). ``shared_attack``: one attack for the three
students of a sandwich step over one for each. ``precision``: seconds under each number format and layout, and what
``precision='auto'`` picks over the fastest (bar: 1.05). ``single_step``: single-step attacks over PGD-10. ``memory``:
the step's peak over that of the largest network alone, each side in a process of its own (bar: 1.15). On CUDA also
``throughput`` of the largest network, and ``graph``: the attack at a small batch, in a CUDA graph or not.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import _record
import timm
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import proard_nas  # noqa: F401  (registers the networks)
from proard_nas.attacks import divergence, inner_attack
from proard_nas.data import ArraySource
from proard_nas.evaluation import calibrate
from proard_nas.training import (
    CANDIDATES,
    AttackBudget,
    Noise,
    Precision,
    Stage,
    Trainer,
    TrainSettings,
    make_schedule,
    plan_training,
)
from proard_nas.training.jobs import Job, draw_students, job_macs

BATCHES = {"proard_dyn_resnet50": 16, "proard_dyn_mobilenetv3": 32}
QUICK = {"proard_dyn_resnet_tiny": 8}
TIME_BAR, MEMORY_BAR = 1.05, 1.15
FAST = Precision("float32", channels_last=True)
DRAWS = 101  # students among which the one of median cost is taken
HOPELESS = 4  # times the best: a precision not timed again
CASES = ("static largest", "library median", "library largest")  # of memory
MIB = 2**20


# -- the two sides ------------------------------------------------------------------------------


class Library:
    """A supernet in training: what `Trainer` does in one pass of its loop."""

    def __init__(self, name: str, batch: int, device: torch.device, seed: int) -> None:
        torch.manual_seed(seed)
        self.device, self.name = device, name
        self.net = timm.create_model(name, num_classes=10).to(device).train()
        FAST.prepare(self.net)
        x = torch.rand(batch, self.net.in_chans, *self.net.cfg.img_size)
        self.x = FAST.images(x.to(device))
        self.teacher = calibrate(self.net.extract(self.net.space.largest), self.x)
        FAST.prepare(self.teacher)
        self.y = torch.randint(10, (batch,)).to(device)
        settings = TrainSettings(batch, budget=AttackBudget(), precision=FAST, progress=False)
        source = ArraySource(self.x, self.y)
        self.trainer = Trainer(self.net, source, self.x, settings, teacher=self.teacher)
        self.stage = make_schedule("random", self.net.space)[-1]
        self.start(self.stage)
        students = {seed: draw_students(self.net, self.stage, seed)[0] for seed in range(DRAWS)}
        costs = sorted((self.net.cost(arch).macs, seed) for seed, arch in students.items())
        self.seed = costs[DRAWS // 2][1]  # of the draw of the median student
        self.arch = students[self.seed]

    def start(self, stage: Stage) -> None:
        """Begin a stage with an optimizer of its own."""
        self.trainer.updater.start(stage, n_steps=1000)

    def step(self, stage: Stage | None = None) -> float:
        """Draw, attack, teach, update, check and account, as the training loop does."""
        stage, trainer = stage or self.stage, self.trainer
        job = self.job(stage)
        loss = trainer.step(job, self.x, self.y)
        self.macs(job)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss}")
        return loss

    def job(self, stage: Stage) -> Job:
        students = draw_students(self.net, stage, self.seed)
        budget = stage.budget(self.trainer.settings.budget)
        return Job.of(stage, budget, students, self.seed, len(self.x), awp=0.0)

    def macs(self, job: Job) -> float:
        """Multiply-accumulates that a step takes for each image."""
        return job_macs(self.net, job, (int(self.x.shape[2]), int(self.x.shape[3])), self.trainer.teacher)

    def prepare(self, precision: Precision) -> None:
        """Go on with another precision."""
        precision.prepare(self.net)
        precision.prepare(self.teacher)
        self.trainer.use(precision)
        self.start(self.stage)


class Plain:
    """RSLAD for one static network, as one writes it by hand: nothing of the library is used."""

    def __init__(self, net: nn.Module, teacher: nn.Module, x: Tensor) -> None:
        self.net, self.teacher, self.x = net.train(), teacher.eval(), x
        self.norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)

    def step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        target = self.target()
        with self.batch_statistics():
            adversarial = self.attack(target)
        loss = 5 / 6 * kl(target, self.net(adversarial)) + 1 / 6 * kl(target, self.net(self.x))
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value}")
        return value

    def target(self) -> Tensor:
        with torch.no_grad():
            return self.teacher(self.x)

    def attack(self, target: Tensor, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10) -> Tensor:
        low, high = (self.x - eps).clamp(0, 1), (self.x + eps).clamp(0, 1)
        x = torch.clamp(self.x + 0.001 * torch.randn_like(self.x), low, high)
        for _ in range(steps):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(kl(target, self.net(x)), x)
            x = torch.clamp(x.detach() + alpha * gradient.sign(), low, high)
        return x

    @contextlib.contextmanager
    def batch_statistics(self) -> Iterator[None]:
        """Normalise with the statistics of each batch and record none; all else is in eval mode."""
        self.net.eval()
        for norm in self.norms:
            norm.training, norm.track_running_stats = True, False
        yield
        self.net.train()
        for norm in self.norms:
            norm.track_running_stats = True


def kl(target: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)


def static_largest(library: Library) -> Plain:
    return Plain(static(library, library.net.space.largest), library.teacher, library.x)


def static(library: Library, arch: Any) -> nn.Module:
    net = library.net.extract(arch)
    FAST.prepare(net)
    return net


# -- timing -------------------------------------------------------------------------------------

Timed = Callable[[], object]


def in_turn(
    actions: Mapping[str, Timed], repeats: int, device: torch.device, hopeless: float = math.inf
) -> dict[str, dict[str, Any]]:
    """Time actions in turn, in both orders; the first round is not counted.

    What takes more than ``hopeless`` times the best in the first round is not run again.

    Returns
    -------
    dict
        For each action its median and all its seconds, the first of which does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(repeats + 1):
        for name in list(actions)[:: -1 if i % 2 else 1]:
            best = min((times[0] for times in seconds.values() if times), default=math.inf)
            if i == 0 or seconds[name][0] <= hopeless * best:
                seconds[name].append(timed(actions[name], device))
    return {
        name: {"median_s": statistics.median(times[1:] or times), "seconds": times} for name, times in seconds.items()
    }


def timed(action: Timed, device: torch.device) -> float:
    """Time an action to the end of what it put in the device's queue; `Prepared` ones prepare outside that."""
    if isinstance(action, Prepared):
        action.prepare()
    wait(device)
    start = time.perf_counter()
    action()
    wait(device)
    return time.perf_counter() - start


@dataclasses.dataclass
class Prepared:
    """An action with something to do before it that is not timed."""

    prepare: Timed
    action: Timed

    def __call__(self) -> None:
        self.action()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compared(times: dict[str, dict[str, Any]], what: str, against: str, bar: float | None = None) -> dict[str, Any]:
    """Put a ratio beside the times of its two sides."""
    fastest = {name: min(row["seconds"]) for name, row in times.items()}
    return {
        "what": what,
        "against": against,
        "ratio": times[what]["median_s"] / times[against]["median_s"],
        "ratio_of_fastest": fastest[what] / fastest[against],  # what other load on the machine disturbs least
        "bar": bar,
    }


# -- measures -----------------------------------------------------------------------------------


def measure_step(library: Library, repeats: int) -> dict[str, Any]:
    """Time a step of the library and the plain one for the same architecture."""
    plain = Plain(static(library, library.arch), library.teacher, library.x)
    times = in_turn({"library": library.step, "plain": plain.step}, repeats, library.device)
    return {"mmacs": library.net.cost(library.arch).mmacs, "arch": library.arch.to_dict(), "times": times,
            "ratios": [compared(times, "library", "plain", TIME_BAR)]}  # fmt: skip


def measure_attack(library: Library, repeats: int) -> dict[str, Any]:
    """Time the inner attack, as RSLAD calls it, and a bare loop, on one static network."""
    plain = Plain(static(library, library.arch), library.teacher, library.x)
    target = plain.target()

    def attack() -> None:
        noise = Noise(library.seed, len(library.x))
        inner_attack(plain.net, library.x, target, AttackBudget(), noise, objective=divergence, start="gaussian")

    def bare() -> None:
        with plain.batch_statistics():
            plain.attack(target)

    times = in_turn({"library": attack, "plain": bare}, repeats, library.device)
    return {"times": times, "ratios": [compared(times, "library", "plain", TIME_BAR)]}


def measure_shared_attack(library: Library, repeats: int) -> dict[str, Any]:
    """Time a sandwich step with one attack for all its students and with one for each."""
    each = make_schedule("sandwich", library.net.space)[-1]
    shared = dataclasses.replace(each, share_attack=True)
    actions = {"shared": lambda: library.step(shared), "each": lambda: library.step(each)}
    times = in_turn(actions, fewer(repeats), library.device)
    mmacs = [library.net.cost(arch).mmacs for arch in library.job(each).students]
    return {"students_mmacs": mmacs, "times": times, "ratios": [compared(times, "shared", "each")]}


def measure_precision(library: Library, repeats: int) -> dict[str, Any]:
    """Time the step under each precision, and let ``precision='auto'`` choose."""
    choice, _ = plan_training(library.trainer, [library.stage], "auto")
    actions = {
        str(candidate): Prepared(lambda candidate=candidate: library.prepare(candidate), library.step)
        for candidate in CANDIDATES
    }
    times = in_turn(actions, fewer(repeats), library.device, HOPELESS)
    library.prepare(FAST)
    fastest = min(times, key=lambda name: times[name]["median_s"])
    return {"auto": str(choice), "fastest": fastest, "times": times,
            "ratios": [compared(times, str(choice), fastest, TIME_BAR)]}  # fmt: skip


def measure_single_step(library: Library, repeats: int) -> dict[str, Any]:
    """Time the step with single-step attacks and with PGD-10."""
    stages = {name: dataclasses.replace(library.stage, attack=name) for name in ("pgd", "n-fgsm", "ffgsm")}
    actions = {name: lambda stage=stage: library.step(stage) for name, stage in stages.items()}
    times = in_turn(actions, fewer(repeats), library.device)
    return {"times": times, "ratios": [compared(times, name, "pgd") for name in ("n-fgsm", "ffgsm")]}


def fewer(repeats: int) -> int:
    """Return repeats for what is far from 1, or has no bar."""
    return max(1, repeats // 2)


# -- memory -------------------------------------------------------------------------------------


def measure_memory(library: Library, repeats: int) -> dict[str, Any]:
    """Measure the peak of a few steps, each case in a process of its own with the system's allocator.

    A case holds its network (static, or the supernet with a live student), the teacher (a frozen largest network), and
    from the first step on momentum and gradients. The median student takes six steps, the largest network two: only
    what makes students anew may pile them up. ``step_mib`` is the peak over what there was before the first step;
    ``peak_mib`` is all of it, interpreter and libraries included (on CUDA: what torch has allocated there).
    """
    arguments = [library.name, str(len(library.x)), str(library.device)]
    env = {name: value for name, value in os.environ.items() if name not in _record.KEEP_MEMORY}
    found = {}
    for case in CASES:
        command = [sys.executable, __file__, "--memory-of", case, *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"measuring the memory of {case!r} failed:\n{done.stderr}")
        found[case] = json.loads(done.stdout.splitlines()[-1])
    base = found[CASES[0]]
    ratios = [
        {"what": f"{case}, {name}", "against": CASES[0], "ratio": found[case][key] / base[key], "bar": MEMORY_BAR}
        for case in CASES[1:]
        for name, key in (("step's own", "step_mib"), ("all", "peak_mib"))
    ]
    return {"cases": found, "ratios": ratios}


def memory_of(case: str, name: str, batch: str, device: str) -> dict[str, float]:
    """Build one side, take some steps, and return MiB before and at the peak."""
    library = Library(name, int(batch), torch.device(device), seed=0)
    step: Timed
    if case == "static largest":
        step = static_largest(library).step
        del library
    else:
        stage = library.stage if case == "library median" else largest_only(library)
        step = lambda: library.step(stage)  # noqa: E731
    memory = Memory(torch.device(device))
    for _ in range(6 if case == "library median" else 2):
        step()
    peak = memory.peak()
    return {"built_mib": memory.before, "peak_mib": peak, "step_mib": peak - memory.before}


def largest_only(library: Library) -> Stage:
    return dataclasses.replace(library.stage, elastic=())


class Memory:
    """MiB now, and the peak since: of torch on CUDA, else resident memory of this process (Linux).

    `resource.getrusage` does not do for the latter: its peak outlives ``exec``, so that a child begins with that of the
    process which started it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / MIB
            return
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
        self.before = self._status("VmRSS")

    def peak(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        return self._status("VmHWM")

    @staticmethod
    def _status(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


# -- on CUDA ------------------------------------------------------------------------------------


def measure_throughput(library: Library, repeats: int) -> dict[str, Any]:
    """Measure images and floating-point operations (two for a MAC) a second of the largest network's steps."""
    stage, device = largest_only(library), library.device
    matmul = matmul_rate(device)
    macs = library.macs(library.job(stage)) * len(library.x)
    rows = {}
    for precision in CANDIDATES:
        library.prepare(precision)
        times = in_turn({"step": lambda: library.step(stage)}, repeats, device)["step"]
        rate = 2 * macs / times["median_s"]
        rows[str(precision)] = {
            **times,
            "images_per_s": len(library.x) / times["median_s"],
            "tflops": rate / 1e12,
            "share_of_matmul": rate / matmul,
        }
    library.prepare(FAST)
    best = max(rows, key=lambda name: rows[name]["tflops"])
    ratios = [
        {"what": f"TFLOP/s, {best}", "against": "bfloat16 matmul", "ratio": rows[best]["share_of_matmul"], "bar": None}
    ]
    return {"macs_per_step": macs, "matmul_tflops": matmul / 1e12, "precisions": rows, "ratios": ratios}


def matmul_rate(device: torch.device, n: int = 8192, repeats: int = 20) -> float:
    """Return the device's floating-point operations a second in bfloat16 matrix products."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = in_turn({"matmul": lambda: a @ b}, repeats, device)["matmul"]
    return 2 * n**3 / times["median_s"]


def measure_graph(library: Library, repeats: int, batch: int = 16) -> dict[str, Any]:
    """Time PGD-10 at a small batch, where launching kernels is what takes time, with and without a CUDA graph."""
    plain = Plain(static(library, library.arch), library.teacher, library.x[:batch])
    target = plain.target()
    with plain.batch_statistics():
        try:
            replay = captured_attack(plain, target)
        except RuntimeError as error:
            return {"error": str(error), "ratios": []}
        times = in_turn({"graph": replay, "eager": lambda: plain.attack(target)}, repeats, library.device)
    return {"batch": len(plain.x), "times": times, "ratios": [compared(times, "graph", "eager")]}


def captured_attack(plain: Plain, target: Tensor, eps: float = 8 / 255, alpha: float = 2 / 255) -> Timed:
    """Capture one iteration of the attack and return what replays it ten times from a fresh start."""
    x = plain.x.clone()
    low, high = (plain.x - eps).clamp(0, 1), (plain.x + eps).clamp(0, 1)

    def iterate() -> None:
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(kl(target, plain.net(leaf)), leaf)
        with torch.no_grad():
            x.copy_(torch.clamp(x + alpha * gradient.sign(), low, high))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # before a capture, libraries choose their algorithms
            iterate()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        iterate()

    def replay() -> Tensor:
        x.copy_(plain.x + 0.001 * torch.randn_like(plain.x))
        for _ in range(10):
            graph.replay()
        return x

    return replay


# -- the command --------------------------------------------------------------------------------

MEASURES = {
    "step": measure_step,
    "attack": measure_attack,
    "shared_attack": measure_shared_attack,
    "precision": measure_precision,
    "single_step": measure_single_step,
    "memory": measure_memory,
    "throughput": measure_throughput,
    "graph": measure_graph,
}
FIRST_MODEL_ONLY, CUDA_ONLY = ("memory",), ("throughput", "graph")


def table(results: Mapping[str, Any]) -> str:
    rows = []
    for model, measures in results.items():
        for name, found in measures.items():
            for r in found.get("ratios", ()):
                times = [
                    found["times"][r[side]]["median_s"] if "times" in found else None for side in ("what", "against")
                ]
                rows.append([model, name, r["what"], r["against"], *times, r["ratio"], r["bar"]])
    header = ["supernet", "measure", "what", "against", "what, s", "against, s", "ratio", "bar"]
    text = tabulate(rows, header, floatfmt=".3f")
    rates = [
        [model, precision, row["images_per_s"], row["tflops"], row["share_of_matmul"]]
        for model, measures in results.items()
        for precision, row in measures.get("throughput", {}).get("precisions", {}).items()
    ]
    header = ["supernet", "precision", "images a second", "TFLOP/s", "of a matrix product's"]
    return text + f"\n\n{tabulate(rates, header, floatfmt='.3g')}" * bool(rates)


def measured(model: str, wanted: Sequence[str], device: torch.device, first: bool) -> list[str]:
    """Return the measures to take of one model."""
    left_out = (() if first else FIRST_MODEL_ONLY) + (() if device.type == "cuda" else CUDA_ONLY)
    return [name for name in MEASURES if name in wanted and name not in left_out]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help=f"{', '.join(BATCHES)} by default; memory is that of the first")
    parser.add_argument("--batch", type=int, help="for all models; otherwise each has its own")
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed steps of what has a bar, half as many of the rest"
    )
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=tuple(MEASURES))
    parser.add_argument("--quick", action="store_true", help="a tiny network: whether it runs, not how fast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="torch's own number otherwise; 1 is steadier on a shared machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="default: benchmarks/results/training_step.json, on CUDA training_step_cuda.json")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep", help="of memory: see _record.py")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(memory_of(*args.memory_of)))
        return
    if args.allocator == "keep":
        _record.keep_memory()
    if args.threads or args.quick:
        # Threads that wait for each other take longer than a tiny network, or many times a step on a busy machine.
        torch.set_num_threads(args.threads or 1)
    started, device = time.time(), torch.device(args.device)
    out = args.out or _record.RESULTS / f"training_step{'_cuda' * (device.type == 'cuda')}.json"
    batches = QUICK if args.quick else BATCHES
    models, repeats = args.models or list(batches), 1 if args.quick else args.repeats
    results: dict[str, Any] = {}
    for model in models:
        library = Library(model, args.batch or batches.get(model, 16), device, args.seed)
        results[model] = {"batch": len(library.x)}
        for name in measured(model, args.only, device, first=model == models[0]):
            results[model][name] = MEASURES[name](library, repeats)
            for r in results[model][name]["ratios"]:
                bar = "" if r["bar"] is None else f" (bar {r['bar']})"
                print(f"{model}, {name}: {r['what']} over {r['against']} {r['ratio']:.3f}{bar}", flush=True)
            settings = {"repeats": repeats, "device": str(device), "precision": str(FAST)}
            path = _record.save(out, {**settings, "supernets": results}, args.seed, started)
        del library
    print(table({model: {k: v for k, v in found.items() if k != "batch"} for model, found in results.items()}))
    print("wrote", path)


if __name__ == "__main__":
    main()
