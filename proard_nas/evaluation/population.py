"""The labels of many students: measured once each, by one process or many, and recorded as they are done."""

from __future__ import annotations

import dataclasses
import os
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from proard_nas import distributed
from proard_nas._numbers import whole_number
from proard_nas._random import derive_seed
from proard_nas.attacks import ATTACKS, attack_title, register_attacks
from proard_nas.attacks.objectives import is_right
from proard_nas.data import ArraySource, Source, check_source
from proard_nas.supernets import Architecture, Supernet

from .accuracy import NO_IMAGE, AttackSettings, attack_or_default, is_own, labelled_logits, survives
from .calibration import calibrate, check_images
from .labelling import run_each
from .labels import IMAGES, Label, Labels, Record, append_line

CALIBRATION = "calibration_checksum"

__all__ = ["Label", "Labels", "append_line", "label_student", "label_students"]


def label_students(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    source: Source,
    calibration: Tensor,
    *,
    attack: AttackSettings | str | None = None,
    n_images: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    n_jobs: int | None = None,
    record: str | os.PathLike[str] | None = None,
    progress: bool = True,
    on_label: Callable[[Label], object] | None = None,
) -> Labels:
    """Measure students: each is calibrated, then measured naturally and under an attack.

    All students see the same images. The attack's random starts are drawn by the same seed, but for the images that a
    student classifies rightly: students that differ in these start elsewhere. Under torchrun, each process measures its
    share and all return the labels of all; every process must make this call with the same arguments.

    Parameters
    ----------
    supernet : Supernet
    architectures : sequence of Architecture
        Duplicates are measured once; the labels are in the order of the first of each.
    source : Source
        Validation images; never those of a test split.
    calibration : Tensor of shape (N, C, H, W)
        Training images.
    attack : AttackSettings or str, default=None
        A name stands for the default settings. None is PGD-20, step 2/255, eps 8/255.
    n_images : int, default=None
        Measure on so many of the source's images, drawn by the seed; None, or as many as there are, measures on all.
    batch_size : int, default=256
    seed : int, default=0
        Of the attack's random starts.
    n_jobs : int, default=None
        Processes that measure, each on one thread; None is this one alone, on all of torch's threads, and -1 is one
        for each core. Within ``joblib.parallel_config(backend='dask')`` they are those of the Dask cluster.
    record : path, default=None
        A file that gets one line for each student as it is measured; students already in it
        are not measured again. Process 1 of 4 under torchrun writes ``labels-1-of-4.jsonl`` for ``labels.jsonl``, and
        what other numbers of processes have left there is used.
    progress : bool, default=True
        A progress bar with the time left where the output is a terminal.
    on_label : callable, default=None
        Called in this process with each label that it has measured, once it is recorded.

    Raises
    ------
    ImportError
        If the reference AutoAttack is asked for and not installed.
    TypeError
        If the source is none, or the calibration images are no tensor.
    ValueError
        If there is no image, an architecture is not in the space, pixels lie outside [0, 1], or the record is another
        file or holds labels of other settings, of other calibration images or, where the source is an `ArraySource`,
        of other images.

    Notes
    -----
    A label is a count of images, so that another number of threads, whose sums round differently, gives the same one
    unless an image lies on the border between two classes; the same number of threads always does.

    Only this process writes the record. Workers whose process was killed finish what they were given, write nothing,
    and end after joblib's five minutes of waiting.
    """
    attack, batch_size = attack_or_default(attack), whole_number("batch_size", batch_size, 1)
    attack_title(attack.name)  # what is not installed is named before the work
    check_source(source)
    if len(source) == 0:
        raise ValueError(NO_IMAGE)
    check_images(calibration)
    wanted = list(dict.fromkeys(supernet.space.validate(arch) for arch in architectures))
    held = isinstance(source, ArraySource)  # transforms may change the others
    if n_images is not None and n_images < len(source):
        source = source.head(n_images, seed=derive_seed(seed, "images"))
    settings = {
        **dataclasses.asdict(attack),
        "n_images": len(source),
        "n_calibration": len(calibration),
        "batch_size": batch_size,
        "seed": int(seed),
        "weights": checksum(supernet),
        IMAGES: images_checksum(source) if held else None,
        CALIBRATION: tensor_checksum(calibration),
    }
    known_before = {name: settings[name] for name in ("weights", IMAGES, CALIBRATION)}
    defaults = {**dataclasses.asdict(AttackSettings()), "batch_size": 256, **known_before}
    known = Record(Path(record) if record else None, settings, defaults)
    known.exchange()  # now all processes share out the same students
    todo = [arch for arch in wanted if arch not in known.labels][distributed.rank() :: distributed.world_size()]

    own = {attack.name: ATTACKS[attack.name]} if is_own(attack) else {}

    def measure(arch: Architecture) -> Label:
        register_attacks(own)
        return label_student(supernet, arch, source, calibration, attack, batch_size, seed)

    shown = progress and distributed.is_main()
    bar = tqdm(desc="labelling students", total=len(todo), disable=None if shown else True, delay=2, leave=False)
    with bar:
        for label in run_each(measure, todo, n_jobs):
            known.add(label)
            bar.update()
            if on_label is not None:
                on_label(label)
    known.exchange()
    return Labels(tuple(known.labels[arch] for arch in wanted), settings)


def label_student(
    supernet: Supernet,
    arch: Architecture,
    source: Source,
    calibration: Tensor,
    attack: AttackSettings,
    batch_size: int = 256,
    seed: int = 0,
) -> Label:
    """Measure one student; see `label_students`."""
    start = time.perf_counter()
    with torch.no_grad():
        student = calibrate(supernet.student(arch), calibration, batch_size)
    natural = robust = total = 0
    for index, (images, labels) in enumerate(source.batches(batch_size)):
        x, y, logits = labelled_logits(student, images, labels)
        right = is_right(logits, y)
        natural += int(right.sum())
        robust += int(survives(student, x, y, right, right, attack, derive_seed(seed, "evaluate", index)).sum())
        total += len(x)
    return Label(arch, natural / total, robust / total, time.perf_counter() - start)


def images_checksum(source: Source) -> str:
    """Return a checksum of labelled images that does not depend on their order."""
    total = 0
    for images, labels in source.batches(256):
        for image, label in zip(images.cpu().numpy(), labels.tolist(), strict=True):
            total += zlib.crc32(image.tobytes(), label)
    return f"{total % 2**32:08x}"


def checksum(supernet: Supernet) -> str:
    """Return a checksum of a supernet's weights: labels belong to them, and a record of others is refused."""
    value = 0
    for parameter in supernet.parameters():
        value = _crc(parameter, value)
    return f"{value:08x}"


def tensor_checksum(tensor: Tensor) -> str:
    """Return a checksum of a tensor's values, in order."""
    return f"{_crc(tensor):08x}"


def _crc(tensor: Tensor, start: int = 0) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), start)
