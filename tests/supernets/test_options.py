"""Promises of the constructors: options as in timm, choices as keyword arguments, typing errors refused."""

from __future__ import annotations

import dataclasses

import pytest
import safetensors.torch
import timm
import torch

from proard_nas.supernets import SUPERNETS, Architecture
from proard_nas.supernets.dyn_mobilenetv3 import MOBILENETV3, MobileNetV3

STUDENTS = timm.list_models("proard*", exclude_filters="proard_dyn*")


def build(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def numel(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", [*SUPERNETS, *STUDENTS])
def test_an_unknown_keyword_is_a_type_error(name):
    for wrong in ({"num_clases": 10}, {"depth": (0,)}, {"img_size": 32}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            build(name, **wrong)


@pytest.mark.parametrize("name", SUPERNETS)
def test_a_supernet_takes_no_architecture(name):
    with pytest.raises(TypeError, match="takes no 'arch'"):
        build(name, arch=build(name).space.smallest)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_takes_no_lists_of_choices(name):
    with pytest.raises(TypeError, match="depths"):
        build(name, depths=(0, 1))


@pytest.mark.parametrize("name", [*SUPERNETS, *STUDENTS])
def test_classes_and_channels_are_options(name):
    for classes, channels in ((3, 1), (100, 4)):
        net = build(name, num_classes=classes, in_chans=channels).eval()
        assert net(torch.zeros(2, channels, *net.cfg.img_size, device="meta")).shape == (2, classes)
        config = timm.data.resolve_data_config(model=net)
        assert config["input_size"] == (channels, *net.cfg.img_size)
        assert (config["mean"], config["std"]) == ((0.0,) * channels, (1.0,) * channels)


@pytest.mark.parametrize("name", [n for n in SUPERNETS if not n.endswith("_fine")])
def test_classes_and_channels_reach_extracted_students(name):
    net = timm.create_model(name, num_classes=3, in_chans=4, depths=build(name).space.depths[:2])
    with torch.no_grad():
        student = net.extract(net.space.smallest).eval()
        assert student(torch.rand(2, 4, 32, 32)).shape == (2, 3)
    assert student.pretrained_cfg["input_size"] == (4, *net.cfg.img_size)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_built_of_the_architecture_given_as_value_or_dict(name):
    supernet = build(name.replace("proard_", "proard_dyn_"))
    for seed in range(5):
        arch = supernet.space.sample(seed)
        assert repr(build(name, arch=arch)) == repr(build(name, arch=arch.to_dict()))
        assert numel(build(name, arch=arch)) == supernet.cost(arch).params
    assert build(name).arch == supernet.space.largest


def test_a_student_may_have_values_between_the_choices_but_not_another_shape():
    arch = build("proard_dyn_resnet_tiny").space.largest.to_dict()
    between = {**arch, "expand_ratio": [[0.42] * len(row) for row in arch["expand_ratio"]]}
    net = build("proard_resnet_tiny", arch=between)
    assert net.cost().params == numel(net)
    for wrong, message in [
        ({**arch, "depth": arch["depth"][:-1]}, "depth must have 3 values, got 2"),
        ({**arch, "expand_ratio": arch["expand_ratio"][:-1]}, "expand_ratio must have 3 stages, got 2"),
        ({**arch, "kernel_size": [[3, 3]] * 3}, "kernel_size must have 0 stages, got 3"),
        ({**arch, "width_mult": [1.0]}, "width_mult must have 4 values, got 1"),
        ({**arch, "widths": [1.0]}, "unknown architecture field 'widths'.*Did you mean 'width_mult'"),
    ]:
        with pytest.raises(ValueError, match=message):
            build("proard_resnet_tiny", arch=wrong)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("proard_dyn_resnet50", {"depths": (0, 1), "width_mults": (0.5, 1.0), "expand_ratios": (0.25, 0.5)}),
        ("proard_dyn_resnet_small", {"depths": (1, 3)}),
        ("proard_dyn_mobilenetv3", {"kernel_sizes": (3, 5), "expand_ratios": (2, 4), "depths": (1, 2)}),
        ("proard_dyn_proxyless", {"kernel_sizes": (1, 3), "expand_ratios": (1, 2), "depths": (1, 2)}),
        ("proard_dyn_wide_resnet", {"width_mults": (0.1, 0.3), "depths": (1, 2)}),
    ],
)
def test_choices_are_keyword_arguments(name, choices):
    net = timm.create_model(name, **choices)
    for field, values in choices.items():
        assert getattr(net.space, field) == values
        assert getattr(build(name).space, field) != values
    for arch in (net.space.largest, net.space.smallest, net.space.sample(0)):
        student = build(net.cfg.student, arch=arch)
        assert numel(student) == net.cost(arch).params
        assert net.student(arch).cost() == student.cost()
        assert net.extract(arch).cost() == student.cost()
    assert {k: v for k, v in net.model_args().items() if k in choices} == {k: list(v) for k, v in choices.items()}


def test_a_list_of_choices_that_the_network_does_not_have_is_a_type_error():
    with pytest.raises(TypeError, match=r"no kernel_sizes.*'depths', 'width_mults', 'expand_ratios'"):
        build("proard_dyn_resnet50", kernel_sizes=(3,))
    with pytest.raises(TypeError, match="no width_mults"):
        build("proard_dyn_mobilenetv3", width_mults=(0.5, 1.0))
    with pytest.raises(TypeError, match=r"no expand_ratios.*'depths', 'width_mults'"):
        build("proard_dyn_wide_resnet", expand_ratios=(0.5, 1.0))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"depths": ()}, "depths must list at least one choice"),
        ({"expand_ratios": ()}, "expand_ratios must list at least one choice"),
        ({"depths": (0, 0)}, "depths must not repeat"),
        ({"width_mults": (0.0, 1.0)}, "width_mults must be positive"),
        ({"depths": (-1,)}, "depths must be non-negative"),
    ],
)
def test_impossible_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        build("proard_dyn_resnet50", **choices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": -1}, "num_classes=-1"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"drop_rate": 1.0}, "drop_rate=1.0"),
        ({"drop_rate": -0.1}, "drop_rate=-0.1"),
        ({"norm_mean": (0.5,)}, "norm_mean and norm_std need one value for each of 3 channels"),
        ({"norm_mean": (0.5, 0.5, float("nan"))}, "3 channels, finite"),
        ({"norm_std": (0.5, 0.5, 0.0)}, "positive deviations"),
        ({"norm_std": (0.5, 0.5, float("nan"))}, "positive deviations"),
    ],
)
def test_impossible_options_are_refused_with_what_is_allowed(options, message):
    for name in ("proard_dyn_mobilenetv3", "proard_resnet_small"):
        with pytest.raises(ValueError, match=message):
            build(name, **options)


def test_normalisation_is_inside_the_network():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    plain, shifted = (
        timm.create_model("proard_resnet_small", norm_mean=m, norm_std=s).eval()
        for m, s in (((0.0,) * 3, (1.0,) * 3), (mean, std))
    )
    weights = {k: v for k, v in plain.state_dict().items() if not k.startswith("norm.")}
    shifted.load_state_dict(weights, strict=False)
    torch.nn.init.normal_(plain.head.fc.weight)
    shifted.head.fc.load_state_dict(plain.head.fc.state_dict())
    x = torch.rand(2, 3, 32, 32)
    by_hand = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(shifted(x), plain(by_hand))
    assert not torch.allclose(shifted(x), plain(x))


def test_normalisation_defaults_to_that_of_cifar10_for_colour():
    colour, grey = timm.create_model("proard_dyn_resnet_small"), timm.create_model("proard_dyn_resnet_tiny", in_chans=1)
    assert colour.norm.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    assert colour.norm.std.flatten().tolist() == pytest.approx([0.2470, 0.2435, 0.2616])
    assert (grey.norm.mean.item(), grey.norm.std.item()) == (0.5, 0.25)


@pytest.mark.parametrize("name", [name for name in timm.list_models("proard*") if name.endswith("_224")])
def test_networks_for_large_photographs_default_to_the_normalisation_and_classes_of_imagenet(name):
    smallest = build(name.replace("proard_dyn_", "proard_").replace("proard_", "proard_dyn_")).space.smallest
    net = timm.create_model(name, **({"depths": (1,)} if name in SUPERNETS else {"arch": smallest}))
    assert net.norm.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert net.norm.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert net.num_classes == 1000
    grey = build(name, in_chans=1)
    assert grey.norm.mean.shape == (1, 1, 1, 1)


def test_the_data_configuration_of_timm_leaves_normalisation_to_the_network():
    for name in SUPERNETS:
        config = timm.data.resolve_data_config(model=build(name))
        assert set(config["mean"]) == {0.0}
        assert set(config["std"]) == {1.0}


def test_an_extracted_student_remembers_how_to_build_itself(net):
    arch = net.space.sample(0)
    student = net.extract(arch)
    args = student.model_args()
    assert Architecture.from_dict(args["arch"]) == arch
    again = timm.create_model(net.cfg.student, **args)
    assert repr(again) == repr(student)
    assert torch.equal(again.norm.mean, student.norm.mean)


@pytest.mark.parametrize("name", ["proard_dyn_resnet_tiny", "proard_dyn_mobilenetv3"])
def test_a_pooling_that_concatenates_is_refused(name):
    with pytest.raises(ValueError, match="global_pool='catavgmax' concatenates"):
        timm.create_model(name, global_pool="catavgmax")
    net = timm.create_model(name, num_classes=3)
    with pytest.raises(ValueError, match="global_pool='catavgmax' concatenates"):
        net.reset_classifier(5, "catavgmax")
    assert net.num_classes == 3
    net.reset_classifier(5, "avgmax")


@pytest.mark.parametrize("name", ["proard_dyn_resnet_tiny", "proard_dyn_mobilenetv3"])
def test_a_classifier_in_place_of_none_is_of_the_networks_number_format_and_device(name):
    net = timm.create_model(name).double().eval()
    net.reset_classifier(0)
    net.reset_classifier(7)
    x = torch.rand(2, net.in_chans, *net.cfg.img_size, dtype=torch.float64)
    assert net(x).shape == (2, 7) and net(x).dtype == torch.float64
    net.to("meta").reset_classifier(0)
    net.reset_classifier(3)
    assert net(x.to("meta")).shape == (2, 3)


@pytest.mark.parametrize("name", ["proard_dyn_resnet_tiny", "proard_dyn_mobilenetv3"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((5, "median"), "unknown global_pool 'median'; allowed: '', 'avg'"),
        ((-1, "max"), "num_classes must be a whole number of at least 0, got -1"),
    ],
)
def test_an_impossible_classifier_is_refused_and_nothing_changes(name, given, message):
    net = timm.create_model(name)
    before = repr(net), net.model_args()
    with pytest.raises(ValueError, match=message):
        net.reset_classifier(*given)
    assert (repr(net), net.model_args()) == before


def test_a_reduction_is_the_product_of_the_strides_whatever_the_size_of_the_images():
    net = MobileNetV3(dataclasses.replace(MOBILENETV3, img_size=(28, 28)), device="meta")
    assert [info["reduction"] for info in net.feature_info] == [1, 1, 2, 4, 4, 8]


def test_whole_numbers_normalise_as_floats():
    net = timm.create_model("proard_resnet_small", norm_mean=(0, 0, 0), norm_std=(1, 1, 2)).eval()
    assert net.norm.mean.dtype == net.norm.std.dtype == torch.float32
    same = timm.create_model("proard_resnet_small", norm_mean=(0.0, 0.0, 0.0), norm_std=(1.0, 1.0, 2.0)).eval()
    same.load_state_dict(net.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(net(x), same(x))


@pytest.fixture(scope="module", params=[None, "float16"])
def weights(request, tmp_path_factory):
    """Give a saved colour student, and the tensors of its file."""
    folder = tmp_path_factory.mktemp("weights") / "student"
    torch.manual_seed(0)
    options = {"num_classes": 3, "norm_mean": (0.1, 0.2, 0.3), "norm_std": (0.4, 0.5, 0.6)}
    timm.create_model("proard_resnet_small", **options).save(folder, dtype=request.param)
    return folder, safetensors.torch.load_file(folder / "model.safetensors")


def pretrained(folder, **options):
    """Build the network from the file alone, and from the folder, whose configuration gives the normalisation, too."""
    overlay = {"file": str(folder / "model.safetensors"), "num_classes": 3}
    yield timm.create_model("proard_resnet_small", pretrained=True, pretrained_cfg_overlay=overlay, **options)
    yield timm.create_model(f"local-dir:{folder}", pretrained=True, **options)


def test_weights_bring_their_normalisation(weights):
    folder, stored = weights
    for net in pretrained(folder):
        assert all(torch.equal(tensor, stored[name].to(tensor.dtype)) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("mean", [(0.7, 0.8, 0.9), (0, 0, 1)])
def test_a_normalisation_that_is_given_wins_over_that_of_the_weights(weights, mean):
    folder, stored = weights
    for net in pretrained(folder, norm_mean=mean):
        assert net.norm.mean.flatten().tolist() == pytest.approx(mean)
        rest = {name: tensor for name, tensor in net.state_dict().items() if name != "norm.mean"}
        assert all(torch.equal(tensor, stored[name].to(tensor.dtype)) for name, tensor in rest.items())


def test_weights_of_colour_images_make_a_network_for_grey_ones(weights):
    folder, stored = weights
    overlay = {"file": str(folder / "model.safetensors"), "num_classes": 3}
    net = timm.create_model("proard_resnet_small", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1).eval()
    assert (net.norm.mean.item(), net.norm.std.item()) == (0.5, 0.25)
    first = net.pretrained_cfg["first_conv"] + ".weight"
    summed = stored[first].float().sum(1, keepdim=True).to(stored[first].dtype)  # as timm does
    torch.testing.assert_close(net.state_dict()[first], summed.float())
    assert net(torch.rand(2, 1, 32, 32)).isfinite().all()
