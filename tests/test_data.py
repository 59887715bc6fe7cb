"""Promises of the data room: one clean form, values kept, splits without overlap, and errors that teach."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.preprocessing import MinMaxScaler
from timm.data import create_loader
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision import transforms
from torchvision.datasets import FakeData

from proard_nas.data import (
    ArrayEncoder,
    ArraySource,
    DatasetSource,
    LoaderSource,
    image_batches,
    image_folder,
    labelled_source,
    load_npz,
    prepare,
    scan,
    split_indices,
)
from proard_nas.data.labels import encode_known_labels, encode_labels


def images(n=40, channels=3, size=8, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def labels(n=40, classes=4):
    return torch.arange(n) % classes


def numbered(n):
    """Return images that carry their index (divided by 1000) in every pixel, and labels."""
    return (torch.arange(n) / 1000).reshape(n, 1, 1, 1).expand(n, 3, 4, 4).contiguous(), labels(n)


def indices_of(batches):
    return [round(float(image[0, 0, 0]) * 1000) for x, _ in batches for image in x]


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


class Listed(Dataset):
    """A dataset of what it is given."""

    def __init__(self, items, classes=None):
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Noisy(Dataset):
    """A dataset whose transforms draw from all three global random streams."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        draw = (torch.rand(()).item() + np.random.rand() + random.random()) / 3  # noqa: NPY002
        return torch.full((1, 4, 4), draw), index % 2


class Streamed(IterableDataset):
    def __iter__(self):
        yield from zip(images(20), labels(20), strict=True)


# --- ArraySource


def test_array_source_keeps_the_order_and_yields_views_without_a_seed():
    x, y = numbered(10)
    batches = list(ArraySource(x, y).batches(4))
    assert indices_of(batches) == list(range(10))
    assert [len(b[1]) for b in batches] == [4, 4, 2]
    assert batches[1][0].data_ptr() == x[4:].data_ptr()


def test_array_source_order_is_a_function_of_the_seed_and_leaves_the_global_streams_alone():
    source = ArraySource(*numbered(50))
    before = global_states()
    first, second, other = (indices_of(source.batches(8, seed=seed)) for seed in (3, 3, 4))
    assert global_states() == before
    torch.manual_seed(99)
    assert first == second == indices_of(source.batches(8, seed=3)) != other
    assert sorted(first) == sorted(other) == list(range(50))
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(3)).tolist()
    assert first == expected


def test_images_and_labels_stay_together_when_shuffled():
    x, y = numbered(30)
    for batch_x, batch_y in ArraySource(x, y).batches(7, seed=1):
        assert [round(float(v) * 1000) % 4 for v in batch_x[:, 0, 0, 0]] == batch_y.tolist()


@pytest.mark.parametrize(
    ("n", "size", "drop_last", "sizes"),
    [(10, 4, True, [4, 4]), (8, 4, True, [4, 4]), (3, 4, True, [3]), (10, 4, False, [4, 4, 2]), (3, 4, False, [3])],
)
@pytest.mark.parametrize("kind", [ArraySource, lambda x, y: DatasetSource(TensorDataset(x, y))])
def test_drop_last_drops_a_short_last_batch_but_never_the_only_one(kind, n, size, drop_last, sizes):
    source = kind(*numbered(n))
    assert [len(y) for _, y in source.batches(size, seed=0, drop_last=drop_last)] == sizes
    assert source.n_batches(size, drop_last=drop_last) == len(sizes)


def test_take_and_head_pick_the_named_images():
    source = ArraySource(*numbered(20))
    assert indices_of(source.take([5, 2, 2]).batches(9)) == [5, 2, 2]
    assert indices_of(source.take(np.array([7, 0])).batches(9)) == [7, 0]
    assert indices_of(source.head(4).batches(9)) == [0, 1, 2, 3]
    drawn = indices_of(source.head(8, seed=5).batches(9))
    assert drawn == indices_of(source.head(8, seed=5).batches(9)) != list(range(8))
    assert len(set(drawn)) == 8
    assert len(source.head(100)) == len(source.head(100, seed=0)) == 20


def test_head_of_every_source_gives_the_same_images_in_memory():
    x, y = numbered(20)
    dataset = TensorDataset(x, y)
    for source in (ArraySource(x, y), DatasetSource(dataset), LoaderSource(DataLoader(dataset, batch_size=6))):
        part = source.head(9)
        assert isinstance(part, ArraySource)
        assert torch.equal(part.x, x[:9])
        assert torch.equal(part.y, y[:9])
    assert torch.equal(DatasetSource(dataset).head(9, seed=2).x, ArraySource(x, y).head(9, seed=2).x)


def test_array_source_refuses_other_types_and_lengths():
    x, y = numbered(4)
    with pytest.raises(ValueError, match=r"float64.*allowed: float32"):
        ArraySource(x.double(), y)
    with pytest.raises(ValueError, match="int64"):
        ArraySource(x, y.int())
    with pytest.raises(ValueError, match=r"allowed: int64 \(4,\)"):
        ArraySource(x, y[:3])
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        next(ArraySource(x, y).batches(0))
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, got 0"):
        ArraySource(x, y).head(0)
    assert ArraySource(x, y).to("cpu").x.device.type == "cpu"


# --- DatasetSource and LoaderSource


def test_dataset_source_order_and_transforms_are_functions_of_the_seed():
    source = DatasetSource(Noisy())
    before = global_states()
    runs = [torch.cat([x for x, _ in source.batches(5, seed=seed)]) for seed in (1, 1, 2)]
    in_order = [torch.cat([y for _, y in source.batches(5)]) for _ in range(2)]
    assert global_states() == before
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert len(runs[0].unique()) == 12
    assert in_order[0].tolist() == in_order[1].tolist() == [i % 2 for i in range(12)]


def test_loader_source_draws_are_a_function_of_the_seed_and_leave_the_global_streams_alone():
    source = LoaderSource(DataLoader(Noisy(), batch_size=5, shuffle=True))
    before = global_states()
    runs = []
    for seed in (1, 1, 2):
        batches = []
        for x, _ in source.batches(99, seed=seed):
            torch.rand(seed)  # what the consumer draws must not reach the loader
            batches.append(x)
        runs.append(torch.cat(batches))
    torch.set_rng_state(torch.tensor(before[2], dtype=torch.uint8))
    assert global_states() == before
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert len(source) == 12
    assert source.n_batches(99) == 3


def test_dataset_source_from_a_loader_keeps_its_settings():
    def collate(items):
        x, y = torch.utils.data.default_collate(items)
        return x / 2, y

    x, y = numbered(20)
    loader = DataLoader(TensorDataset(x, y), batch_size=6, shuffle=True, collate_fn=collate, drop_last=True)
    source = DatasetSource.from_loader(loader)
    batches = list(source.batches(100))
    assert [len(y) for _, y in batches] == [6, 6, 6, 2]
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), x / 2)
    with pytest.raises(ValueError, match=r"unknown loader settings \['batchsize'\]; allowed: batch_size"):
        DatasetSource(loader.dataset, {"batchsize": 3})


def test_dataset_source_with_workers_gives_the_same_bits_for_the_same_seed():
    source = DatasetSource(TensorDataset(*numbered(16)), {"num_workers": 1})
    orders = [indices_of(source.batches(4, seed=seed)) for seed in (1, 1)]
    assert orders[0] == orders[1] != list(range(16))
    assert sorted(orders[0]) == list(range(16))


def test_loader_source_reads_lists_and_other_objects_on_every_pass():
    x, y = numbered(10)
    batches = [(x[:4], y[:4]), [x[4:8].numpy(), y[4:8].numpy()], (x[8:].double(), y[8:].to(torch.uint8))]

    class Again:
        def __iter__(self):
            return iter(batches)

    for loader in (batches, tuple(batches), Again()):
        source = LoaderSource(loader)
        assert [indices_of(source.batches(1)) for _ in range(2)] == [list(range(10))] * 2
        assert {b[0].dtype for b in source.batches(1)} == {torch.float32}
        assert {b[1].dtype for b in source.batches(1)} == {torch.int64}
        assert [len(b[1]) for b in source.batches(1, drop_last=True)] == [4, 4]
        assert (source.n_batches(1), source.n_batches(1, drop_last=True), len(source)) == (3, 2, 10)


def test_loader_source_tells_the_sampler_the_epoch():
    epochs = []
    sampler = type("Sampler", (), {"set_epoch": lambda _, epoch: epochs.append(epoch)})()
    loader = type("Loader", (), {"sampler": sampler, "__iter__": lambda _: iter([numbered(4)])})()
    list(LoaderSource(loader).batches(1, seed=7))
    assert epochs == [7]


def test_one_shot_iterators_and_things_that_are_no_loader_are_refused():
    pairs = [numbered(4)]
    with pytest.raises(ValueError, match=r"generator, which can be iterated only once.*allowed: a DataLoader"):
        LoaderSource(batch for batch in pairs)
    with pytest.raises(ValueError, match="only once"):
        prepare(iter(pairs))
    for nothing in (3, "folder", {"x": 1}, None):
        with pytest.raises(TypeError, match="is no data; allowed: arrays X and y, a Dataset, or a loader"):
            prepare(nothing)


# --- the split


def test_split_parts_share_no_index_and_together_are_everything():
    y = np.repeat(np.arange(5), [100, 50, 30, 20, 10])
    train, val = split_indices(y, 0.1, seed=0)
    assert sorted([*train, *val]) == list(range(210))
    assert np.bincount(y[val]).tolist() == [10, 5, 3, 2, 1]
    assert np.array_equal(split_indices(y, 0.1, seed=0)[1], val)
    assert not np.array_equal(split_indices(y, 0.1, seed=1)[1], val)


def test_a_class_of_one_image_stays_in_the_training_part():
    y = np.array([0] * 20 + [1] * 20 + [2])
    for seed in range(20):
        train, val = split_indices(y, 0.2, seed)
        assert 40 in train
        assert np.bincount(y[val]).tolist() == [4, 4]


def test_too_few_images_to_stratify_still_leave_every_class_for_training():
    y = np.arange(100).repeat(3)
    for seed in range(10):
        train, val = split_indices(y, 0.1, seed)
        assert len(val) == 30
        assert set(y[train]) == set(range(100))


def test_the_smallest_data_still_splits():
    train, val = split_indices(np.array([0, 1]), 0.1, seed=0)
    assert (len(train), len(val)) == (1, 1)
    with pytest.raises(ValueError, match="allowed: at least 2"):
        split_indices(np.array([0]), 0.1, seed=0)
    for fraction in (0.0, 1.0, -1, 1.5):
        with pytest.raises(ValueError, match="allowed: above 0 and below 1"):
            split_indices(np.array([0, 1]), fraction, seed=0)


@pytest.mark.parametrize("kind", ["arrays", "dataset", "subset", "loader"])
def test_prepare_splits_every_kind_by_class_without_overlap(kind):
    x, y = numbered(100)
    dataset = TensorDataset(x, y)
    data = {
        "arrays": (x, y),
        "dataset": (dataset,),
        "subset": (Subset(TensorDataset(*numbered(150)), range(100)),),
        "loader": (DataLoader(dataset, batch_size=16, shuffle=True),),
    }[kind]
    before = global_states()
    found = [prepare(*data, seed=seed, val_fraction=0.2) for seed in (0, 0, 1)]
    train, val = (indices_of(part.batches(10)) for part in (found[0].train, found[0].val))
    assert global_states() == before
    assert sorted([*train, *val]) == list(range(100))
    assert np.bincount(np.array(val) % 4).tolist() == [5] * 4
    assert indices_of(found[1].val.batches(10)) == val != indices_of(found[2].val.batches(10))
    assert (found[0].summary.n_train, found[0].summary.n_val) == (80, 20)


def test_all_kinds_of_the_same_data_give_the_same_split():
    x, y = numbered(60)
    ways = [prepare(x.numpy(), y.numpy()), prepare(TensorDataset(x, y)), prepare(DataLoader(TensorDataset(x, y)))]
    assert len({tuple(indices_of(way.val.batches(10))) for way in ways}) == 1


@pytest.mark.parametrize(
    "loader",
    [
        [numbered(8), numbered(8)],
        Streamed(),
        DataLoader(Streamed(), batch_size=5),
        DataLoader(TensorDataset(*numbered(8)), sampler=WeightedRandomSampler([1.0] * 8, 8)),
        DataLoader(TensorDataset(*numbered(8)), sampler=RandomSampler(range(8), replacement=True)),
        DataLoader(TensorDataset(*numbered(8)), sampler=RandomSampler(range(8), num_samples=5)),
        DataLoader(TensorDataset(*numbered(8)), batch_sampler=[[0, 1], [2, 3]]),
    ],
    ids=[
        "list",
        "iterable dataset",
        "loader of one",
        "own sampler",
        "with replacement",
        "a part each pass",
        "own batch sampler",
    ],
)
def test_data_that_cannot_be_split_asks_for_val_loader_and_works_with_it(loader):
    with pytest.raises(ValueError, match=r"no validation part can be split off.*pass val_loader"):
        prepare(loader)
    size = (
        8
        if isinstance(loader, (Streamed, DataLoader)) and isinstance(getattr(loader, "dataset", loader), Streamed)
        else 4
    )
    val = TensorDataset(torch.rand(6, 3, size, size), labels(6))
    prepared = prepare(loader, val_data=val)
    assert prepared.summary.kind == "loader"
    assert (len(prepared.train), len(prepared.val)) == (prepared.summary.n_train, 6)


# --- arrays


def test_image_arrays_arrive_unchanged():
    x, y = images(), labels()
    prepared = prepare(x.double().numpy(), y.numpy())
    batch = torch.cat([b for b, _ in prepared.val.batches(100)])
    assert batch.dtype == torch.float32
    assert all(any(torch.equal(image, original) for original in x) for image in batch)
    summary = prepared.summary
    assert (summary.kind, summary.in_chans, summary.image_size, summary.num_classes) == ("images", 3, (8, 8), 4)
    assert summary.classes.tolist() == [0, 1, 2, 3]


def test_mean_and_std_are_numpys_over_the_training_part_only():
    x, y = images(60) * torch.tensor([1.0, 0.5, 0.1]).reshape(1, 3, 1, 1), labels(60)
    for data in ((x, y), (TensorDataset(x, y),), (DataLoader(TensorDataset(x, y), batch_size=7),)):
        prepared = prepare(*data)
        train = torch.cat([b for b, _ in prepared.train.batches(13)]).double().numpy()
        assert prepared.summary.mean == pytest.approx(train.mean(axis=(0, 2, 3)).tolist(), abs=1e-12)
        assert prepared.summary.std == pytest.approx(train.std(axis=(0, 2, 3)).tolist(), abs=1e-9)


def test_the_std_of_a_constant_channel_is_not_zero():
    assert prepare(torch.full((20, 1, 4, 4), 0.5), labels(20)).summary.std == (0.01,)


def test_a_summary_tells_labels_apart_and_does_not_depend_on_the_order_of_a_loader_that_shuffles():
    x, y = images(), labels()
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)]
    relabelled = y.clone()
    relabelled[0] = 1

    def summary(data, y=None):
        return prepare(data, y, val_data=None if y is not None else batches).summary

    def as_given(summary):
        return summary.mean, summary.std, summary.labels

    assert as_given(summary(batches)) == as_given(summary(batches[::-1]))
    assert summary([(x, relabelled)]).labels != summary([(x, y)]).labels == summary(batches).labels
    swapped = y[torch.tensor([1, 0, *range(2, 40)])]  # as many of each class
    for data in (lambda y: (x, y), lambda y: (TensorDataset(x, y),)):
        assert summary(*data(swapped)).labels != summary(*data(y)).labels == summary(*data(y)).labels
    val = [prepare(x, y, val_data=(x, given)).summary.labels for given in (y, swapped)]
    assert val[0] != val[1]


def test_three_dimensional_arrays_are_images_of_one_channel():
    x = images(channels=1)[:, 0]
    prepared = prepare(x, labels(), val_data=(x, labels()))
    assert torch.equal(next(prepared.val.batches(40))[0], x[:, None])
    assert prepared.summary.in_chans == 1


def test_a_table_is_scaled_like_scikit_learn_and_folded_into_a_square():
    rng = np.random.default_rng(0)
    x = rng.normal(5, 100, (80, 21))
    prepared = prepare(x, labels(80), seed=3)
    train_rows, val_rows = split_indices(labels(80).numpy(), 0.1, seed=3)
    scaler = MinMaxScaler(clip=True).fit(x[train_rows])
    for source, rows in ((prepared.train, train_rows), (prepared.val, val_rows)):
        batch = next(source.batches(100))[0]
        flat = batch.reshape(len(rows), 25).numpy()
        assert batch.shape == (len(rows), 1, 5, 5)
        np.testing.assert_array_equal(flat[:, :21], scaler.transform(x[rows]).astype(np.float32))
        assert not flat[:, 21:].any()
    assert (prepared.summary.kind, prepared.summary.image_size) == ("table", (5, 5))


@pytest.mark.parametrize(("features", "side"), [(1, 4), (4, 4), (16, 4), (17, 5), (25, 5), (26, 6), (784, 28)])
def test_the_side_of_a_table_is_the_next_square_and_at_least_four(features, side):
    x = np.arange(3 * features).reshape(3, features)
    assert ArrayEncoder().fit(x).transform(x).shape == (3, 1, side, side)


def test_values_outside_the_fitted_range_are_clipped():
    encoder = ArrayEncoder().fit([[0, 10], [10, 20]])
    out = encoder.transform([[-5, 15], [20, 100]])
    assert out.reshape(2, 16)[:, :2].tolist() == [[0.0, 0.5], [1.0, 1.0]]


@pytest.mark.parametrize(
    "x", [np.random.default_rng(1).normal(size=(9, 5)), images(9).numpy()], ids=["table", "images"]
)
def test_an_encoder_survives_json_bit_for_bit(x):
    encoder = ArrayEncoder("Mine").fit(x)
    again = ArrayEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert torch.equal(again.transform(x[:4]), encoder.transform(x[:4]))
    assert again.to_dict() == encoder.to_dict()
    assert (again.estimator_name, again.n_features) == ("Mine", encoder.n_features)


def test_an_encoder_refuses_other_data_than_it_was_fitted_to_in_scikit_learns_words():
    table = ArrayEncoder("ProARDEstimator").fit(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="X has 3 features, but ProARDEstimator is expecting 4 features as input"):
        table.transform(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"shape \(2, 1, 4, 4\), but ProARDEstimator is expecting 4 features as input"):
        table.transform(np.zeros((2, 1, 4, 4)))
    pictures = ArrayEncoder("Other").fit(images(3))
    with pytest.raises(ValueError, match=r"Other is expecting images of shape \(n, 3, 8, 8\)"):
        pictures.transform(images(3, size=9))
    with pytest.raises(ValueError, match=r"Other is expecting images of shape \(n, 3, 8, 8\)"):
        pictures.transform(np.zeros((2, 192)))
    with pytest.raises(ValueError, match="Reshape your data"):
        table.transform(np.zeros(4))
    with pytest.raises(ValueError, match="fitted"):  # NotFittedError is a ValueError
        ArrayEncoder().transform(np.zeros((2, 3)))


def test_bfloat16_tensors_read_only_arrays_and_lists_are_accepted():
    x = images(4).numpy()
    x.setflags(write=False)
    assert torch.equal(ArrayEncoder().fit(x).transform(x), torch.tensor(x))
    half = images(4).bfloat16()
    assert torch.equal(ArrayEncoder().fit(half).transform(half), half.float())
    assert ArrayEncoder().fit(x.tolist()).image_shape == (3, 8, 8)


def test_labels_of_any_type_are_mapped_in_sorted_order():
    codes, classes = encode_labels(["dog", "cat", "dog", "bird"])
    assert codes.tolist() == [2, 1, 2, 0]
    assert classes.tolist() == ["bird", "cat", "dog"]
    assert encode_labels(np.array([-1, 5, 5]))[0].tolist() == [0, 1, 1]
    assert encode_labels([2.0, 1.0, 2.0])[1].tolist() == [1.0, 2.0]
    assert encode_known_labels(["cat", "bird"], classes).tolist() == [1, 0]
    with pytest.raises(
        ValueError, match=r"labels \['fish'\], unknown from training; allowed: \['bird', 'cat', 'dog'\]"
    ):
        encode_known_labels(["cat", "fish"], classes)


def test_num_classes_lets_a_class_have_no_image():
    codes, classes = encode_labels([0, 3, 3], num_classes=5)
    assert codes.tolist() == [0, 3, 3]
    assert classes.tolist() == [0, 1, 2, 3, 4]
    assert encode_labels(["a", "b"], num_classes=2)[0].tolist() == [0, 1]
    with pytest.raises(
        ValueError, match=r"out of range for num_classes=3; allowed: 3 distinct labels, or integers from 0"
    ):
        encode_labels([0, 3, 3], num_classes=3)
    with pytest.raises(ValueError, match="num_classes must be a whole number of at least 2, got 1"):
        prepare(images(), labels(), num_classes=1)


def test_string_labels_reach_the_summary_and_validation_arrays_use_the_same_codes():
    names = np.array(["b", "a", "c", "a"])[labels()]
    prepared = prepare(images(), names, val_data=(images(3), ["c", "a", "b"]))
    assert prepared.summary.classes.tolist() == ["a", "b", "c"]
    assert next(prepared.val.batches(9))[1].tolist() == [2, 0, 1]
    assert (prepared.summary.n_train, prepared.summary.n_val) == (40, 3)


def test_a_tuple_of_arrays_is_taken_as_x_and_y():
    assert prepare((images(), labels())).summary.kind == "images"
    assert prepare((images().tolist(), labels().tolist())).summary.kind == "images"


BAD_ARRAYS = {
    "not normalised": (
        images() * 255,
        labels(),
        r"pixels from .* to 25\d.*allowed: \[0, 1\].*Divide 8-bit images by 255",
    ),
    "normalised": (images() - 0.5, labels(), r"pixels from -0\.\d+ to .*normalisation lives inside the network"),
    "integers": (
        (images() * 255).byte().numpy(),
        labels(),
        r"type uint8; allowed: floating point.*astype\('float32'\) / 255",
    ),
    "NaN": (torch.where(images() > 0.99, torch.nan, images()), labels(), "contains NaN"),
    "infinite": (torch.where(images() > 0.99, torch.inf, images()), labels(), "contains inf"),
    "NaN in a table": (np.array([[1.0, np.nan], [2, 3]] * 9), labels(18), "Input X contains NaN"),
    "infinite table": (np.array([[1.0, np.inf], [2, 3]] * 9), labels(18), "Input X contains infinity"),
    "channels last": (
        images().permute(0, 2, 3, 1),
        labels(),
        r"\(40, 8, 8, 3\).*channels last.*transpose\(0, 3, 1, 2\)",
    ),
    "five dimensions": (images()[..., None], labels(), r"5 dimensions.*allowed: \(n, features\)"),
    "one dimension": (np.arange(5.0), labels(5), "Reshape your data"),
    "strings": (np.array([["a", "b"]] * 6), labels(6), "could not convert string|numeric"),
    "complex": (np.ones((6, 2)) * 1j, labels(6), "Complex data not supported"),
    "wrong length": (images(), labels(39), r"inconsistent numbers of samples: \[40, 39\]"),
    "no y": (images(), None, "requires y to be passed, but the target y is None"),
    "one class": (images(), labels() * 0, "1 class"),
    "one sample": (images(1), labels(1), "1 class"),
    "continuous": (images(), np.linspace(0, 1, 40), "Unknown label type: continuous"),
    "two columns of y": (images(), np.ones((40, 2)), "y should be a 1d array"),
    "NaN label": (images(), np.array([0.0, 1, 2, np.nan] * 10), "y contains NaN"),
    "empty": (np.zeros((0, 3)), np.zeros(0), "0 sample"),
    "no features": (
        np.zeros((12, 0)),
        labels(12),
        r"0 feature\(s\) \(shape=\(12, 0\)\) while a minimum of 1 is required",
    ),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_refused_with_what_was_given_and_allowed(name):
    x, y, match = BAD_ARRAYS[name]
    with pytest.raises(ValueError, match=match):
        prepare(x, y)


def test_sparse_arrays_raise_scikit_learns_type_error():
    with pytest.raises(TypeError, match=r"Sparse data was passed.*dense data is required"):
        prepare(csr_matrix(np.eye(8)), labels(8))


def test_y_together_with_data_that_has_labels_is_refused():
    dataset = TensorDataset(images(), labels())
    for data in (dataset, DataLoader(dataset), [(images(), labels())]):
        with pytest.raises(ValueError, match=r"y was given together with a .*allowed: y=None"):
            prepare(data, labels())


# --- bad loaders and datasets


def with_pixel(value):
    x = images(8)
    x[5, 1, 2, 3] = value
    return x


BAD_LOADERS = {
    "not divided": ([(images(8) * 255, labels(8))], r"batch 0 of the training data has pixels from .* Divide"),
    "normalised": (
        [(images(8), labels(8)), (images(8) * 4 - 2, labels(8))],
        r"batch 1 .*from -\d.*Remove|batch 1 .*remove Normalize",
    ),
    "integers": ([((images(8) * 255).byte(), labels(8))], r"type torch\.uint8; allowed: floating point.*ToTensor"),
    "NaN": ([(with_pixel(torch.nan), labels(8))], "NaN"),
    "infinite": ([(with_pixel(-torch.inf), labels(8))], "inf"),
    "negative label": ([(images(8), labels(8) - 1)], "label of -1, which is negative; allowed: integers from 0"),
    "label too large": ([(images(8), labels(8) + 1)], "label of 4, which is out of range; allowed: 0 to 3"),
    "float labels": ([(images(8), labels(8).float())], r"labels of type torch\.float32; allowed: integers"),
    "too few labels": ([(images(8), labels(7))], r"8 images but labels of shape \(7,\); allowed: \(8,\)"),
    "one-hot labels": ([(images(8), torch.eye(8).long())], r"labels of shape \(8, 8\)"),
    "empty": ([], "loader is empty"),
    "no labels": (
        [images(8)],
        r"batch 0 of the data is a single array of shape \(8, 3, 8, 8\) with no labels; allowed",
    ),
    "a tuple of one": ([(images(8),)], "images but no labels"),
    "three elements": ([(images(8), labels(8), labels(8))], r"3 elements; allowed: .*pairs"),
    "dicts": ([{"x": images(8), "y": labels(8)}], r"dict with the keys \['x', 'y'\]"),
    "changing shape": (
        [(images(8), labels(8)), (images(8), labels(8)), (images(8, size=9), labels(8))],
        r"batch 2 .*\(3, 9, 9\), but batch 0 has \(3, 8, 8\)",
    ),
    "single images": (
        [(image, 0) for image in images(8)],
        r"shape \(3, 8, 8\) \(one image\? a loader yields batches\)",
    ),
    "channels last": ([(images(8).permute(0, 2, 3, 1), labels(8))], "channels last"),
    "an empty batch": ([(images(8)[:0], labels(0))], "is empty"),
    "one class": ([(images(8), labels(8) * 0 + 2)], r"only one class \(1 class: 2\)"),
}


@pytest.mark.parametrize("name", BAD_LOADERS)
def test_bad_loaders_are_refused_with_what_was_given_and_allowed(name):
    batches, match = BAD_LOADERS[name]
    with pytest.raises(ValueError, match=match):
        prepare(batches, val_data=(images(8), labels(8)), num_classes=4)


@pytest.mark.parametrize(
    "name", [name for name in BAD_LOADERS if name not in ("normalised", "changing shape", "label too large")]
)
def test_a_bad_first_batch_is_named_before_validation_data_is_asked_for(name):
    batches, match = BAD_LOADERS[name]
    expected = "pass val_loader" if name == "one class" else match
    with pytest.raises(ValueError, match=expected):
        prepare(batches)


def test_a_loader_that_is_empty_on_its_second_pass_is_refused():
    once = iter([numbered(8)])
    loader = type("Loader", (), {"__iter__": lambda _: once})()
    source = LoaderSource(loader)
    assert len(source) == 8
    with pytest.raises(ValueError, match=r"a pass over it yields no batch.*on every pass"):
        list(source.batches(1))


def test_datasets_without_labels_transforms_or_images_are_refused():
    with pytest.raises(ValueError, match="no labels: the first is a Tensor"):
        prepare(Listed(list(images(8))))
    with pytest.raises(ValueError, match="no labels"):
        prepare(DataLoader(TensorDataset(images(8))))
    with pytest.raises(ValueError, match=r"type Image; allowed: float tensors.*ToTensor"):
        prepare(FakeData(8, (3, 8, 8), 2))
    with pytest.raises(ValueError, match="dataset is empty"):
        prepare(Listed([]))
    with pytest.raises(ValueError, match=r"differ in shape.*Resize"):
        prepare(Listed([(torch.rand(3, 8, 8 + i), i % 2) for i in range(4)]))


def test_errors_of_the_users_own_code_pass_through():
    class Broken(Listed):
        def __getitem__(self, index):
            if index == 3:
                raise RuntimeError("disk on fire")
            return images(1)[0], index % 2

    with pytest.raises(RuntimeError, match="disk on fire"):
        prepare(Broken([0] * 6))


def test_validation_data_must_match_the_training_data():
    x, y = images(), labels()
    for train in ((x, y), (TensorDataset(x, y),)):
        with pytest.raises(ValueError, match=r"\((n, )?3, 8, 8\)"):
            prepare(*train, val_data=(images(size=9), y))
        with pytest.raises(ValueError, match="labels"):
            prepare(*train, val_data=(x, y + 1))
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            prepare(*train, val_data=(x, y[:5]))
        with pytest.raises(ValueError, match=r"without labels; allowed: a tuple \(X, y\), a Dataset or a loader"):
            prepare(*train, val_data=x)
        with pytest.raises(ValueError, match=r"validation data has pixels.*allowed: \[0, 1\]"):
            prepare(*train, val_data=TensorDataset(x * 9, y))
        with pytest.raises(ValueError, match=r"\(3, 9, 9\); allowed: \(3, 8, 8\)"):
            prepare(*train, val_data=TensorDataset(images(size=9), y))
        with pytest.raises(ValueError, match="label of 4, which is out of range; allowed: 0 to 3"):
            prepare(*train, val_data=[(x, y + 1)])


# --- names, other libraries, files


def test_class_names_come_from_the_dataset():
    names = ["plane", "car", "bird", "cat"]
    dataset = Listed([(image, int(label)) for image, label in zip(images(), labels(), strict=True)], names)
    for data in (dataset, DataLoader(dataset, batch_size=7), Subset(Subset(dataset, range(36)), range(30))):
        assert prepare(data).summary.classes.tolist() == names
    assert prepare(dataset, num_classes=6).summary.classes.tolist() == [0, 1, 2, 3, 4, 5]
    assert prepare(TensorDataset(images(), labels())).summary.classes.tolist() == [0, 1, 2, 3]


def test_torchvision_datasets_are_read_as_torchvision_gives_them():
    data = FakeData(30, (3, 8, 8), 3, transform=transforms.ToTensor())
    prepared = prepare(DataLoader(data, batch_size=8, shuffle=True), val_data=data)
    assert torch.equal(torch.cat([x for x, _ in prepared.val.batches(4)]), torch.stack([x for x, _ in data]))
    assert prepared.summary.kind == "dataset"


def test_timms_prefetch_loader_works_and_its_normalisation_is_explained():
    def loader(**settings):
        data = FakeData(16, (3, 16, 16), 3)
        return create_loader(data, (3, 16, 16), 4, device=torch.device("cpu"), num_workers=0, **settings)

    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0, "persistent_workers": False}
    prepared = prepare(loader(**plain), val_data=loader(**plain))
    expected = torch.stack([transforms.ToTensor()(x) for x, _ in FakeData(16, (3, 16, 16), 3)])
    torch.testing.assert_close(torch.cat([x for x, _ in prepared.train.batches(1)]), expected)
    assert (prepared.summary.kind, prepared.summary.n_train) == ("loader", 16)
    with pytest.raises(ValueError, match="create_loader: mean="):
        prepare(loader(persistent_workers=False), val_data=loader(**plain))


def test_a_scan_reports_labels_and_warns_of_classes_without_images(caplog):
    found = scan(LoaderSource([(images(8), labels(8) + 1)]))
    assert found.labels.tolist() == (labels(8) + 1).tolist()
    assert found.image_shape == (3, 8, 8)
    assert "no image with a label of 0" in caplog.text
    scan(ArraySource(torch.zeros(4, 1, 4, 4), labels(4)))
    assert "all pixels of the training data are equal" in caplog.text


def test_npz_archives_are_read_a_part_at_a_time(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8), np.arange(6)[:, None]
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    images, classes = load_npz(tmp_path / "a.npz")
    expected = np.stack([transforms.ToTensor()(image).numpy() for image in x])
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(load_npz(tmp_path / "a.npz", "test")[0], expected[:2])
    assert classes.tolist() == list(range(6))
    np.savez(tmp_path / "b.npz", x_train=x[..., 0], y_train=np.array(list("abcabc")))
    assert load_npz(str(tmp_path / "b.npz"))[0].shape == (6, 1, 5, 4)
    with pytest.raises(ValueError, match=r"no test part; allowed: an archive with x_test"):
        load_npz(tmp_path / "b.npz", "test")
    with pytest.raises(ValueError, match="unknown part 'tset'.*Did you mean 'test'"):
        load_npz(tmp_path / "b.npz", "tset")
    table = rng.normal(size=(6, 3))
    np.savez(tmp_path / "c.npz", x_train=table, y_train=y)
    np.testing.assert_array_equal(load_npz(tmp_path / "c.npz")[0], table)


def test_bad_archives_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*allowed: an \.npz archive"):
        load_npz(tmp_path / "none.npz")
    np.savez(tmp_path / "keys.npz", x_train=np.zeros(3), images=np.zeros(3))
    with pytest.raises(ValueError, match=r"keys \['x_train', 'images'\] but not \['y_train'\]; allowed"):
        load_npz(tmp_path / "keys.npz")
    np.savez(tmp_path / "half.npz", x_train=np.zeros(3), y_train=np.zeros(3), x_test=np.zeros(3))
    with pytest.raises(ValueError, match=r"not \['y_test'\]"):
        load_npz(tmp_path / "half.npz")
    np.savez(tmp_path / "pickle.npz", x_train=np.array([{}]), y_train=np.zeros(1))
    with pytest.raises(ValueError, match=r"no \.npz archive of plain arrays"):
        load_npz(tmp_path / "pickle.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"is no \.npz archive, or a damaged one; allowed: what numpy"):
        load_npz(tmp_path / "text.npz")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "keys.npz").read_bytes()[:200])
    for name in ("empty", "cut"):
        with pytest.raises(ValueError, match=r"is no \.npz archive, or a damaged one; allowed: what numpy"):
            load_npz(tmp_path / f"{name}.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"is no \.npz archive, or a damaged one; allowed: what numpy"):
        load_npz(tmp_path / "array.npy")
    np.savez(tmp_path / "first.npz", x_train=np.zeros((4, 3, 8, 8), np.uint8), y_train=np.zeros(4))
    with pytest.raises(ValueError, match=r"8-bit images of shape \(4, 3, 8, 8\); allowed"):
        load_npz(tmp_path / "first.npz")


def test_an_image_folder_gives_tensors_in_range_and_the_names_of_its_classes(tmp_path):
    for index, (image, _) in enumerate(FakeData(12, (3, 20, 30), 2)):
        folder = tmp_path / ("cat", "dog")[index % 2]
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{index}.png")
    prepared = prepare(image_folder(tmp_path, 16))
    assert prepared.summary.classes.tolist() == ["cat", "dog"]
    assert (prepared.summary.in_chans, prepared.summary.image_size) == (3, (16, 16))
    assert image_folder(tmp_path, (8, 24))[0][0].shape == (3, 8, 24)
    image = transforms.ToTensor()(next(iter(FakeData(1, (3, 20, 30), 2)))[0])
    torch.testing.assert_close(image_folder(tmp_path, (20, 30))[0][0], image)
    with pytest.raises(FileNotFoundError, match=r"no folder .*one sub-folder for each class"):
        image_folder(tmp_path / "none", 16)


def test_images_of_a_loader_are_drawn_from_the_whole_pass_by_the_seed():
    x, y = numbered(60)
    source = LoaderSource([(x[i : i + 10], y[i : i + 10]) for i in range(0, 60, 10)])
    drawn = {seed: source.head(20, seed=seed) for seed in (0, 1)}
    numbers = {seed: indices_of([(found.x, found.y)]) for seed, found in drawn.items()}
    assert len(set(numbers[0])) == 20 and numbers[0] != numbers[1] and max(numbers[0]) >= 30
    assert drawn[0].y.tolist() == [n % 4 for n in numbers[0]]
    assert numbers[0] == indices_of([(source.head(20, seed=0).x, None)])
    assert indices_of([(source.head(15).x, None)]) == list(range(15))
    assert len(source.head(100, seed=0)) == 60


def test_rows_of_numpy_numbers_are_a_table():
    rows = [list(row) for row in np.random.default_rng(0).random((40, 16))]
    assert prepare(rows, labels().tolist()).summary.kind == "table"


def test_labels_of_a_dataset_are_refused_where_training_had_other_numbers():
    x = images()
    with pytest.raises(ValueError, match=r"labels of training were \[1, 2, 3, 4\].*not clear"):
        prepare(x, labels() + 1, val_data=Listed([(image, 1) for image in x[:4]]))
    with pytest.raises(ValueError, match=r"labels of training were \[1\.0, 2\.0, 3\.0, 4\.0\].*not clear"):
        prepare(x, labels().double() + 1, val_data=Listed([(image, 1) for image in x[:4]]))
    prepare(x, labels(), val_data=Listed([(image, 1) for image in x[:4]]))
    prepare(x, labels().double(), val_data=Listed([(image, 1) for image in x[:4]]))


def test_what_is_split_off_is_checked_before_anything_is_read():
    class Unread(Listed):
        def __getitem__(self, index):
            raise AssertionError("an image was read")

    for change, message in (
        ({"val_fraction": 1.5}, "val_fraction is 1.5"),
        ({"val_fraction": None}, "val_fraction is None"),
        ({"val_data": images()}, "array without labels"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(Unread(range(9)), **change)


def test_dates_as_labels_are_refused():
    x, y = np.random.default_rng(0).random((4, 1, 8, 8)), np.array(["2026-01-01", "2026-01-02"] * 2, "datetime64[D]")
    with pytest.raises(ValueError, match=r"labels of type datetime64\[D\]; allowed: numbers and texts"):
        prepare(x, y)


def test_a_label_that_cannot_be_a_class_is_refused():
    with pytest.raises(ValueError, match=r"label of 4000000000; allowed: 0 to C-1 for C classes, at most 1,000,000"):
        prepare(Listed([(image, 4_000_000_000 * (i % 2)) for i, image in enumerate(images(10))]))


def test_named_classes_given_later_are_those_of_training():
    names, items = ["plane", "car", "bird", "cat"], list(zip(images(), labels().tolist(), strict=True))
    ordered, y = sorted(names), np.array(names)[labels()]
    for train, classes in (((Listed(items, names),), names), ((images(), y), ordered)):
        prepared = prepare(*train, val_data=Listed(items, classes))
        known = prepared.summary.classes
        for given in (Listed(items, classes), DataLoader(Listed(items, classes)), Listed(items)):
            assert len(labelled_source(given, None, prepared.scaler, known, 8)) == 40
        for other in (classes[::-1], classes[:3]):
            message = rf"classes are \[{str(other)[1:-1]}\], training's are \[{str(classes)[1:-1]}\].*est\.classes_"
            for given in (Listed(items, other), DataLoader(Listed(items, other))):
                with pytest.raises(ValueError, match=message):
                    labelled_source(given, None, prepared.scaler, known, 8)
                with pytest.raises(ValueError, match=message):
                    prepare(*train, val_data=given)
    numbered = prepare(images(), labels())
    assert len(labelled_source(Listed(items, names), None, numbered.scaler, numbered.summary.classes, 8)) == 40


def test_more_classes_than_the_labels_type_can_count_are_numbered_rightly():
    y = np.array([0, 1, 43], dtype=np.uint8)
    _, classes = encode_labels(y, 300)
    assert classes.tolist() == list(range(300))
    assert encode_known_labels(y, classes).tolist() == [0, 1, 43]
    assert encode_labels(y.astype(np.int8), 100)[1].dtype == np.int8


def test_arrays_beside_named_classes_have_names_or_numbers_as_labels():
    names, x, y = ["plane", "car", "bird", "cat"], images(), labels()
    dataset = Listed(list(zip(x, y.tolist(), strict=True)), names)
    for given in (y, y.tolist(), np.array(names)[y]):
        prepared = prepare(dataset, val_data=(x, given))
        later = labelled_source(x, given, prepared.scaler, prepared.summary.classes, 8)
        for source in (prepared.val, later):
            assert next(source.batches(40))[1].tolist() == y.tolist()
    with pytest.raises(ValueError, match=r"labels \[4\], unknown from training; allowed: \['plane', 'car'"):
        prepare(dataset, val_data=(x, y + 1))
    assert encode_known_labels([1, 0], np.array(["0", "1", "a"])).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"labels \[1, 2\], unknown"):  # '1' is at place 0
        encode_known_labels([1, 2], np.array(["1", "10", "2"]))


def test_what_rounding_puts_outside_0_to_1_is_moved_to_its_ends():
    x = images().round() * (1 + 9e-6) - 4e-6
    for train in ((x, labels()), (TensorDataset(x, labels()),), ([(x, labels())],)):
        prepared = prepare(*train, val_data=TensorDataset(x, labels()))
        for source in (prepared.train, prepared.val):
            assert torch.equal(torch.cat([batch for batch, _ in source.batches(7)]).unique(), torch.tensor([0.0, 1.0]))
        (later,) = image_batches([(x, labels())], prepared.scaler, 40)
        assert torch.equal(later, images().round())
    with pytest.raises(ValueError, match=r"pixels from 0 to 1\.0001"):
        prepare(images().round() * 1.0001, labels())


def test_images_of_a_loader_given_later_are_checked_as_arrays_are():
    prepared = prepare(images(), labels())
    for given, message in ((images(4) * 255, "pixels from"), (images(4, size=12), "allowed: .3, 8, 8., as for")):
        with pytest.raises(ValueError, match=message):
            list(image_batches([(given, labels(4))], prepared.scaler, 2))
