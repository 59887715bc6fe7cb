"""What importing the package costs and does, each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def seconds(statement: str) -> float:
    """Return the least processor time of five runs: others that the machine is busy with only add to it."""
    code = f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
    return min(float(run(code)) for _ in range(5))


def test_importing_registers_the_networks_in_timm():
    names = run("import timm, proard_nas; print(*timm.list_models('proard_dyn_*'))").split()
    assert names == [
        "proard_dyn_mobilenetv3",
        "proard_dyn_mobilenetv3_224",
        "proard_dyn_proxyless",
        "proard_dyn_resnet50",
        "proard_dyn_resnet50_224",
        "proard_dyn_resnet50_fine",
        "proard_dyn_resnet_small",
        "proard_dyn_resnet_tiny",
        "proard_dyn_wide_resnet",
    ]


def test_importing_loads_none_of_the_heavy_parts():
    loaded = run("import proard_nas, sys; print(*sys.modules)").split()
    assert not {"sklearn", "optuna", "torchattacks", "pandas", "matplotlib", "onnx"} & set(loaded)


def test_public_names_are_there_and_an_unknown_one_is_an_attribute_error():
    run("import proard_nas; [getattr(proard_nas, name) for name in proard_nas.__all__]")
    assert "AttributeError" in run(
        "import proard_nas\ntry: proard_nas.ProARDEstimater\nexcept AttributeError: print('AttributeError')"
    )


@pytest.mark.slow
def test_importing_costs_at_most_half_a_second_more_than_timm():
    assert seconds("import timm, proard_nas") - seconds("import timm") <= 0.5
