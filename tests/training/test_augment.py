"""Augmentation: the right pixels, fair chances, and the same for one process as for many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import chisquare

from proard_nas.data import ArraySource
from proard_nas.training.augment import AUGMENTATIONS, Augmentation, augment, calibration_images


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n, channels=3, height=8, width=8, seed=0):
    """Images whose pixels are all different and none 0, so that a crop tells where it is from."""
    count = n * channels * height * width
    return (torch.randperm(count, generator=generator(seed)).float() + 1).reshape(n, channels, height, width)


def pil_crops(image, padding):
    """Return all crops of one image by (top, left, mirrored), made by PIL a channel at a time."""
    height, width = image.shape[-2:]
    crops = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            for mirrored in (False, True):
                channels = []
                for channel in image.numpy():
                    padded = ImageOps.expand(Image.fromarray(channel), border=padding, fill=0)
                    crop = padded.crop((left, top, left + width, top + height))
                    channels.append(np.asarray(ImageOps.mirror(crop) if mirrored else crop))
                crops[top, left, mirrored] = np.stack(channels)
    return crops


def choices(x, out, padding):
    """Return for each image which crop it became; fails if it is none."""
    found = []
    for image, result in zip(x, out, strict=True):
        hits = [key for key, crop in pil_crops(image, padding).items() if np.array_equal(crop, result.numpy())]
        assert len(hits) == 1
        found.append(hits[0])
    return found


@pytest.mark.parametrize("padding", [1, 2, 4])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 10)])
def test_each_image_becomes_one_of_its_crops_as_pil_cuts_them(padding, shape):
    x = images(6, *shape)
    found = choices(x, augment(x, generator(), padding), padding)
    assert len(set(found)) > 1, "all images had the same crop"


def test_every_crop_occurs_equally_often():
    x = images(1, 1, 5, 5).repeat(18 * 200, 1, 1, 1)
    out = augment(x, generator(), padding=1)
    crops = pil_crops(x[0], 1)
    counts = [int((out == torch.from_numpy(crop)).all(dim=(1, 2, 3)).sum()) for crop in crops.values()]
    assert sum(counts) == len(x) and len(counts) == 18
    assert chisquare(counts).pvalue > 1e-3


def test_neighbours_in_a_batch_are_independent():
    x = images(1, 1, 5, 5).repeat(9 * 9 * 200, 1, 1, 1)
    out = augment(x, generator(), padding=1, flip=False)
    crops = [torch.from_numpy(crop) for (*_, mirrored), crop in pil_crops(x[0], 1).items() if not mirrored]
    index = torch.stack([(out == crop).all(dim=(1, 2, 3)) for crop in crops]).int().argmax(0)
    pairs = torch.bincount(index[::2] * 9 + index[1::2], minlength=81)
    assert chisquare(pairs.numpy()).pvalue > 1e-3


def test_the_same_seed_gives_the_same_and_goes_on():
    x, first = images(32), generator(3)
    out = augment(x, first)
    assert torch.equal(out, augment(x, generator(3)))
    assert not torch.equal(out, augment(x, first))
    assert not torch.equal(out, augment(x, generator(4)))


def test_the_global_generator_is_neither_read_nor_written():
    state = torch.get_rng_state()
    augment(images(4), generator())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("total", "size"), [(16, 1), (16, 4), (17, 4), (3, 4)])
def test_processes_together_do_what_one_does(total, size):
    x = images(total)
    whole, joined = augment(x, generator()), torch.zeros_like(x)
    for rank in range(size):
        own, mine = x[rank::size], generator()
        joined[rank::size] = augment(own, mine, total=total, rank=rank, size=size)
        one = generator()
        augment(x, one)
        assert torch.equal(mine.get_state(), one.get_state()), "the processes' generators drift apart"
    assert torch.equal(joined, whole)


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_stays_and_values_do_not_depend_on_it(padding, flip, channels, memory_format):
    x = images(5, channels)
    out = augment(x.to(memory_format=memory_format), generator(), padding, flip)
    assert out.is_contiguous(memory_format=memory_format)
    assert torch.equal(out, augment(x, generator(), padding, flip))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8])
def test_values_are_only_moved_in_every_dtype(dtype):
    x = (images(4) % 250).to(dtype)
    assert torch.equal(augment(x, generator()).double(), augment(x.double(), generator()))


def test_the_input_stays_and_the_output_has_no_gradient():
    x = images(8).requires_grad_()
    before = x.detach().clone()
    assert not augment(x, generator()).requires_grad
    assert torch.equal(x, before)


@pytest.mark.parametrize(("side", "padding"), [(32, 4), (8, 1), (64, 8), (28, 4), (4, 0)])
def test_the_default_padding_is_an_eighth_of_the_shorter_side(side, padding):
    x = images(4, 1, side, side + 16)
    assert torch.equal(augment(x, generator()), augment(x, generator(), padding))


def test_an_empty_batch_stays_empty():
    assert augment(torch.zeros(0, 3, 8, 8), generator()).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"padding": -1}, "padding must not be negative, got -1"),
        ({"rank": 1, "size": 2}, "total given"),
        ({"rank": 2, "size": 2, "total": 8}, "rank must be below size"),
        ({"rank": 1, "size": 2, "total": 7}, "process 1 of 2 has 3 images of a batch of 7; got 4"),
    ],
)
def test_bad_arguments_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        augment(images(4), generator(), **arguments)


def test_names_give_what_they_say():
    x = images(64)
    assert set(AUGMENTATIONS) == {"none", "crop", "crop-flip"}
    assert Augmentation.from_name("none")(x, generator()) is x
    crop = Augmentation.from_name("crop")(x, generator())
    assert not any(mirrored for *_, mirrored in choices(x, crop, 1))
    both = Augmentation.from_name("crop-flip")(x, generator())
    assert {mirrored for *_, mirrored in choices(x, both, 1)} == {False, True}


def test_calibration_images_are_cropped_training_images():
    x = images(200)
    source = ArraySource(x, torch.zeros(200, dtype=torch.int64))
    assert torch.equal(calibration_images(source, 50), x[:50])
    assert torch.equal(calibration_images(source, 50, seed=3), source.head(50, seed=3).x)
    for seed in (None, 3):
        got = calibration_images(source, 50, "crop", seed)
        assert len(set(choices(source.head(50, seed=seed).x, got, 1))) > 5
        assert torch.equal(got, calibration_images(source, 50, "crop", seed))


def test_calibration_images_have_as_much_of_the_border_as_expected():
    source = ArraySource(torch.full((4000, 1, 8, 8), 0.5), torch.zeros(4000, dtype=torch.int64))
    inside = (1 - 2 / 3 / 8) ** 2  # the mean shift of a crop from a padding of 1 is 2/3 of a pixel each way
    assert calibration_images(source, 4000, "crop-flip").mean().item() == pytest.approx(0.5 * inside, rel=0.005)


def test_calibration_images_come_from_a_source():
    with pytest.raises(TypeError, match="a Tensor is no Source"):
        calibration_images(images(4), 4)


def test_an_unknown_name_suggests_a_known_one():
    with pytest.raises(ValueError, match="unknown augmentation 'crop_flip'.*Did you mean 'crop-flip'"):
        Augmentation.from_name("crop_flip")
