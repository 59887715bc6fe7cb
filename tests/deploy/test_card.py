"""Promises of model cards: a front matter that the hub's own library reads, and the figures as they were given."""

from __future__ import annotations

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from proard_nas.deploy import model_card

FACTS = {
    "format": 1,
    "network": "proard_resnet_tiny",
    "kind": "student",
    "architecture": {"depth": [0, 1, 0]},
    "macs": 931_776,
    "params": 64_778,
    "input_size": [1, 8, 8],
    "num_classes": 10,
    "calibrated": True,
    "license": "apache-2.0",
    "versions": {"torch": "2.14.1"},
}
FIGURES = {
    "natural_accuracy": 0.9312,
    "robust_accuracy": 0.615,
    "attack": "PGD-20",
    "eps": 8 / 255,
    "n_images": 10_000,
    "data": "CIFAR-10",
    "split": "test",
}


def front(text):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def test_the_hubs_own_library_reads_the_front_matter():
    data = ModelCard(model_card({**FACTS, **FIGURES})).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "timm", "image-classification")
    assert {"timm", "proard-nas"} <= set(data.tags)
    assert data.datasets == ["cifar-10"]
    natural, robust = data.eval_results
    assert (natural.metric_value, natural.metric_name) == (0.9312, "Natural accuracy")
    assert (robust.metric_value, robust.metric_name) == (0.615, "Accuracy under PGD-20, eps=8/255")
    for result in (natural, robust):
        assert (result.dataset_name, result.dataset_split, result.metric_type) == ("CIFAR-10", "test", "accuracy")


def test_the_text_states_figures_costs_and_use():
    text = model_card({**FACTS, **FIGURES, "name": "My student", "description": "For a camera."})
    for piece in (
        "# My student",
        "trained on CIFAR-10",
        "0.9318 million multiply-accumulates at 8x8, 64,778 parameters",
        "For a camera.",
        "On 10,000 images of CIFAR-10 test.",
        "| Natural accuracy | 93.12 % |",
        "| Accuracy under PGD-20, eps=8/255 | 61.50 % |",
        "| depth | [0, 1, 0] |",
        "| versions.torch | 2.14.1 |",
        "(N, 1, 8, 8)",
        "`pretrained=False`",
    ):
        assert piece in text
    assert "Not calibrated" not in text


def test_a_card_without_figures_has_no_results_and_makes_none_up():
    text = model_card(FACTS)
    assert "model-index" not in front(text) and "datasets" not in front(text)
    assert "Accuracy" not in text


def test_every_fact_that_is_given_is_in_the_card():
    text = model_card({**FACTS, "test": {"pgd": {"accuracy": 0.5}}, "note": "made with care"})
    assert "| test.pgd.accuracy | 0.5 |" in text
    assert "| note | made with care |" in text


@pytest.mark.parametrize("name", ["a: b # c", "'\"quoted\"'", "naïve 数字 😀", "- x\n---\nlicense: mit", "no", "1.0"])
def test_any_text_stays_text(name):
    data = front(model_card({**FACTS, **FIGURES, "name": name, "data": name}))
    assert data["model-index"][0]["name"] == name
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == name
    assert data["license"] == "apache-2.0"


def test_a_cell_cannot_break_the_table():
    assert "| note | a \\| b c |" in model_card({**FACTS, "note": "a | b\nc"})


def test_only_what_the_hub_takes_as_a_data_set_is_listed_as_one():
    assert front(model_card({**FACTS, "data": "uoft-cs/cifar10"}))["datasets"] == ["uoft-cs/cifar10"]
    assert "datasets" not in front(model_card({**FACTS, "data": "my own photos (2024)"}))


@pytest.mark.parametrize(("eps", "text"), [(8 / 255, "eps=8/255"), (0.1, "eps=0.1"), (1, "eps=255/255")])
def test_eps_is_written_as_in_papers(eps, text):
    assert text in model_card({**FACTS, **FIGURES, "eps": eps})


def test_a_supernet_and_a_student_without_statistics_say_what_they_are():
    text = model_card({**FACTS, "kind": "supernet", "calibrated": False})
    assert "robust supernet" in text and "largest student" in text
    assert "Not calibrated" in text
