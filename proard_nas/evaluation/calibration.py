"""Batch norm statistics for one student from training images: no student is evaluated without its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from proard_nas import distributed
from proard_nas._errors import check_name
from proard_nas._numbers import whole_number
from proard_nas._random import derive_seed
from proard_nas.attacks import AttackBudget, Noise, attack_mode, inner_attack
from proard_nas.attacks.autoattack import count_classes
from proard_nas.data.checks import check_label_form, check_label_range, check_pixels
from proard_nas.supernets import StudentNet, Supernet, statistics_of
from proard_nas.supernets.supernet import has_seen_images, load_statistics, share_statistics

KINDS = ("clean", "adversarial", "mixed")
Network = TypeVar("Network", bound=nn.Module)


class UncalibratedError(RuntimeError):
    """A student's batch norm statistics have not been computed for it."""


def calibrate(
    network: Network,
    images: Tensor,
    batch_size: int = 256,
    *,
    kind: str = "clean",
    labels: Tensor | None = None,
    budget: AttackBudget | None = None,
    seed: int = 0,
    reduce: bool = False,
) -> Network:
    """Compute a network's batch norm statistics in one pass over images.

    The statistics are replaced by the average over batches of equal weight. Everything else
    (weights, modes, other students) stays as it is.

    Parameters
    ----------
    network : nn.Module
        A live or extracted student, any network with batch norm, or a supernet, of which the
        active student is calibrated.
    images : Tensor of shape (N, C, H, W)
        *Training* images in [0, 1]; the library's default is 4,000.
    batch_size : int, default=256
    kind : {'clean', 'adversarial', 'mixed'}, default='clean'
        The statistics of the images, of adversarial images made for this network, or of both: of each batch, every
        second image is adversarial.
    labels : Tensor of shape (N,), default=None
        The classes of the images, which an attack needs; `'clean'` makes no use of them.
    budget : AttackBudget, default=None
        The attack, which maximises cross-entropy from a uniform start. None is PGD-10, step 2/255, eps 8/255, on the
        network as a clean calibration leaves it (``batch_norm='running'``). See the notes.
    seed : int, default=0
        Of the attack's random starts.
    reduce : bool, default=False
        Share the batches between the processes of a distributed run, which must all make this call with the same
        images; the statistics are those of a single process.

    Returns
    -------
    nn.Module
        The same network, whose statistics changed in place.

    Notes
    -----
    Adversarial images depend on the statistics, and these on the images. The circle is cut after one turn: the network
    is calibrated on the clean images first, attacked in eval mode with those statistics, and calibrated on what comes
    out. It is then, during the attack, the function that an attacker meets, and an image's attack does not depend on
    its batch. A budget with ``batch_norm='batch'`` attacks with the statistics of each batch instead, as training does.

    Raises
    ------
    TypeError
        If the images are no tensor.
    ValueError
        If there is no image, pixels lie outside [0, 1], the kind is unknown, the labels that an attack needs are
        missing or do not fit, or the network wraps a supernet whose active student is not the largest.
    """
    whole_number("batch_size", batch_size, 1)
    _check(images, kind, batch_size)
    if isinstance(network, Supernet) and network.active != network.space.largest:
        student = network.student(network.active)
        calibrate(student, images, batch_size, kind=kind, labels=labels, budget=budget, seed=seed, reduce=reduce)
        share_statistics_of_active(network, student)
        return network
    if any(isinstance(one, Supernet) and one.active != one.space.largest for one in network.modules()):
        raise ValueError("the network wraps a supernet that runs another student than its largest; allowed: the "
                         "supernet itself")  # fmt: skip
    mine = slice(distributed.rank(), None, distributed.world_size()) if reduce else slice(None)
    chunks = even_chunks(images, batch_size)[mine]
    classes = None if kind == "clean" else _checked_labels(network, images, kind, labels)
    with _kept_on_error(network):
        _compute_statistics(network, chunks, reduce)
        if classes is not None:
            seeds = [derive_seed(seed, "calibrate", i) for i in range(-(-len(images) // batch_size))][mine]
            budget = budget or AttackBudget(batch_norm="running")
            targets = even_chunks(classes, batch_size)[mine]
            every = 2 if kind == "mixed" else 1
            attacked = [_attack(network, *part, budget, every) for part in zip(chunks, targets, seeds, strict=True)]
            _compute_statistics(network, attacked, reduce)
    return network


def check_images(images: Tensor) -> None:
    """Raise TypeError or ValueError unless there are images to calibrate on."""
    if not isinstance(images, Tensor):
        raise TypeError(
            f"calibration images must be a Tensor of shape (N, C, H, W), got a {type(images).__name__}; "
            "torch.from_numpy makes one of an array"
        )
    if images.ndim != 4:
        raise ValueError(f"calibration images must have the shape (N, C, H, W), got {tuple(images.shape)}")
    if len(images) == 0:
        raise ValueError("calibration needs at least one image, got none")
    check_pixels(images, "the batch to calibrate on")


def _check(images: Tensor, kind: str, batch_size: int) -> None:
    check_images(images)
    check_name("calibration", kind, KINDS)
    if kind == "mixed" and min(len(chunk) for chunk in even_chunks(images, batch_size)) < 2:
        raise ValueError(
            "calibration kind='mixed' needs two images or more in each batch, one clean and one adversarial; "
            f"{len(images)} images with batch_size={batch_size} give batches of one"
        )


def _checked_labels(network: nn.Module, images: Tensor, kind: str, labels: Tensor | None) -> Tensor:
    """Return the classes that an attack needs, as int64; raise ValueError unless they fit images and network."""
    if labels is None:
        raise ValueError(f"calibration kind={kind!r} attacks the images and needs their classes: give labels=...")
    labels = torch.as_tensor(labels)
    check_label_form(labels, len(images), "the calibration")
    with attack_mode(network):
        n_classes = count_classes(network, images[:1].to(next(network.parameters()).device))
    check_label_range(labels, n_classes, "the calibration")
    return labels.long()


def _attack(network: nn.Module, x: Tensor, y: Tensor, seed: int, budget: AttackBudget, every: int) -> Tensor:
    """Return a batch whose last image of ``every`` is adversarial, where the batch was."""
    device = next(network.parameters()).device
    chosen = slice(every - 1, None, every)
    adversarial = inner_attack(network, x[chosen].to(device), y[chosen].to(device), budget, Noise(seed))
    result = x.clone()
    result[chosen] = adversarial.to(x.device)
    return result


@contextlib.contextmanager
def _kept_on_error(network: nn.Module) -> Iterator[None]:
    """Give a network back the statistics that it had if what is done inside fails."""
    before = {name: statistic.clone() for name, statistic in statistics_of(network).items()}
    try:
        yield
    except BaseException:
        load_statistics(network, before)
        raise


def _compute_statistics(network: nn.Module, chunks: Sequence[Tensor], reduce: bool) -> None:
    """Replace a network's statistics by the average over batches; over all processes' batches if asked."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes = [(module, module.training) for module in network.modules()]
    momenta = [norm.momentum for norm in norms]
    device = next(network.parameters()).device
    try:
        network.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None
        with torch.no_grad():
            for batch in chunks:
                network(batch.to(device))
            if reduce:
                _average(norms, len(chunks))
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _average(norms: list[nn.modules.batchnorm._BatchNorm], n_batches: int) -> None:
    """Average statistics over the processes, each weighted by its number of batches."""
    statistics = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
    count = torch.full((), float(n_batches), device=statistics[0].device) if statistics else torch.zeros(())
    for tensor in statistics:
        tensor.mul_(n_batches)
    distributed.sum_in_place([*statistics, count])
    for tensor in statistics:
        tensor.div_(count)
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(int(count))


def share_statistics_of_active(supernet: Supernet, student: nn.Module) -> None:
    """Give a supernet's active student the statistics of its live copy."""
    supernet._active_statistics = {name: value.clone() for name, value in statistics_of(student).items()}
    share_statistics(student, supernet._active_statistics)


def even_chunks(images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Split images into batches of nearly equal size, none larger than ``batch_size``."""
    return images.tensor_split(-(-len(images) // batch_size))


def require_calibrated_students(network: nn.Module, what: str = "this network") -> None:
    """Raise `UncalibratedError` if a network is a student without statistics of its own, or wraps one."""
    for module in network.modules():
        if isinstance(module, StudentNet):
            require_calibrated(module, what)


def require_calibrated(network: nn.Module, what: str = "this network") -> None:
    """Raise `UncalibratedError` unless every batch norm of a network has statistics of its own."""
    statistics = network.active_statistics if isinstance(network, Supernet) else statistics_of(network)
    if not has_seen_images(statistics):
        raise UncalibratedError(
            f"{what}'s batch norm statistics have not been computed for it: calibrate it on training images "
            "first (proard_nas.evaluation.calibrate), as ProARDEstimator and SearchResult.extract do"
        )
