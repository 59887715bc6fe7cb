"""Grey to RGB and back: torchvision's and PIL's values, at fit and at predict time, in every form of data."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from proard_nas import ProARDEstimator, _fitting
from proard_nas.data import ArrayEncoder, image_batches, labelled_source, prepare, to_channels


def colours(n=40, channels=3, size=8):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(3))


def labels(n=40):
    return torch.arange(n) % 4


def all_images(source):
    return torch.cat([images for images, _ in source.batches(7)])


def test_grey_is_the_luma_of_torchvision_and_pil():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    grey = to_channels(images, 1)
    torch.testing.assert_close(grey, v2.functional.rgb_to_grayscale(images))
    by_pil = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])
    assert np.abs(grey[:, 0].numpy() - by_pil / 255).max() <= 0.5 / 255 + 1e-4  # PIL rounds to bytes


def test_colour_is_the_grey_value_three_times_as_in_pil():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4), dtype=np.uint8)
    by_pil = np.asarray(Image.fromarray(pixels).convert("RGB")).transpose(2, 0, 1)
    colour = to_channels(torch.from_numpy(pixels)[None, None].float() / 255, 3)
    assert torch.equal(colour[0], torch.from_numpy(by_pil.copy()).float() / 255)


def test_images_of_the_channels_asked_for_are_returned_themselves():
    images = colours()
    assert to_channels(images, 3) is images
    assert to_channels(images, None) is images


@pytest.mark.parametrize(("channels", "in_chans"), [(4, 3), (3, 2), (1, 4)])
def test_other_channels_are_refused_with_what_is_allowed(channels, in_chans):
    with pytest.raises(ValueError, match=f"images of {channels} channels, but in_chans={in_chans}; allowed: in_chans="):
        to_channels(colours(channels=channels), in_chans)
    with pytest.raises(ValueError, match=f"images of {channels} channels, but in_chans={in_chans}; allowed"):
        prepare(colours(channels=channels), labels(), in_chans=in_chans)


def as_forms(x, y):
    data = TensorDataset(x, y)
    return {
        "arrays": ((x.numpy(), y.numpy()), None),
        "dataset": ((data,), None),
        "plain loader": ((DataLoader(data, batch_size=6),), None),
        "other loader": (([(x, y)],), [(x, y)]),
    }


@pytest.mark.parametrize("kind", ["arrays", "dataset", "plain loader", "other loader"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_every_form_of_data_is_converted_in_both_parts_and_in_the_statistics(kind, in_chans):
    x = colours(channels=4 - in_chans)
    expected = v2.functional.rgb_to_grayscale(x) if in_chans == 1 else x.repeat(1, 3, 1, 1)
    args, val = as_forms(x, labels())[kind]
    prepared = prepare(*args, val_data=val, in_chans=in_chans, seed=5)
    plain = prepare(*as_forms(expected, labels())[kind][0], val_data=val and [(expected, labels())], seed=5)
    for part in ("train", "val"):
        torch.testing.assert_close(all_images(getattr(prepared, part)), all_images(getattr(plain, part)))
    assert prepared.summary.in_chans == in_chans
    assert prepared.summary.mean == pytest.approx(plain.summary.mean)
    assert prepared.scaler.image_shape == (in_chans, 8, 8)


def test_later_data_is_converted_the_same_way_also_after_saving():
    x, y = colours(), labels()
    encoder = prepare(x, y, in_chans=1).scaler
    encoder = ArrayEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    grey = v2.functional.rgb_to_grayscale(x)
    for given in (x, grey):
        torch.testing.assert_close(encoder.transform(given), grey)
    dataset = TensorDataset(x, y)
    torch.testing.assert_close(torch.cat(list(image_batches(dataset, encoder, 16))), grey)
    torch.testing.assert_close(all_images(labelled_source(dataset, None, encoder, np.arange(4), 16)), grey)
    with pytest.raises(ValueError, match=r"expecting images of shape \(n, 1, 8, 8\)"):
        encoder.transform(colours(size=9))


def test_without_in_chans_other_channels_than_those_of_fit_are_refused():
    encoder = prepare(colours(), labels()).scaler
    with pytest.raises(ValueError, match=r"expecting images of shape \(n, 3, 8, 8\)"):
        encoder.transform(colours(channels=1))


def test_a_table_fills_as_many_channels_as_asked_for():
    table = np.random.default_rng(0).normal(size=(20, 7))
    encoder = ArrayEncoder(in_chans=3).fit(table)
    images = encoder.transform(table)
    assert images.shape == (20, 3, 4, 4)
    torch.testing.assert_close(images[:, 2], ArrayEncoder().fit(table).transform(table)[:, 0])


@pytest.mark.slow
def test_an_estimator_of_one_channel_takes_colour_images_everywhere(monkeypatch, tmp_path):
    monkeypatch.setattr(_fitting, "prepare", functools.partial(prepare, in_chans=1))
    y = labels(60) % 2
    x = (colours(60) + y.reshape(-1, 1, 1, 1)) / 2
    estimator = ProARDEstimator(
        "proard_dyn_resnet_tiny", model_args={"in_chans": 1}, epochs=4, attack_steps=1, eval_steps=1, n_labels=12,
        n_watch=0, n_calibration=32, lr=0.1, precision="float32", random_state=0, progress=False, device="cpu",
    ).fit(x.numpy(), y.numpy())  # fmt: skip
    assert (estimator.in_chans_, estimator.supernet_.in_chans) == (1, 1)
    grey = v2.functional.rgb_to_grayscale(x)
    np.testing.assert_allclose(estimator.predict_proba(x), estimator.predict_proba(grey), rtol=1e-5)
    estimator.save(tmp_path / "est")
    again = ProARDEstimator.load(tmp_path / "est")
    np.testing.assert_allclose(again.predict_proba(x), estimator.predict_proba(x), rtol=1e-5)
    student = again.extract()
    assert again.evaluate(TensorDataset(x, y), student=student, attack="natural").accuracy == pytest.approx(
        (student(grey).argmax(1) == y).float().mean().item()
    )
