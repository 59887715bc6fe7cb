"""What importing the package costs and does, each in a fresh interpreter."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
NAMES = {"PIL": "pillow", "sklearn": "scikit-learn", "pynvml": "nvidia-ml-py"}  # where another one is imported
BROUGHT = {"huggingface-hub", "sqlalchemy"}  # timm and optuna need these


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


@pytest.fixture(scope="module")
def project():
    path = CHECKOUT / "pyproject.toml"
    if not path.exists():
        pytest.skip("the tests are not in a checkout")
    return tomllib.loads(path.read_text())["project"]


def imported(path: Path) -> set[str]:
    """Return the first part of each name that a file imports from elsewhere."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {module.partition(".")[0] for module in modules}


def test_whatever_is_imported_is_declared(project):
    needed = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    declared = {re.match(r"[\w.-]+", requirement)[0] for requirement in needed}
    files = sorted((CHECKOUT / "proard_nas").rglob("*.py"))
    names = set().union(*map(imported, files)) - {"proard_nas", *sys.stdlib_module_names}
    assert len(files) > 100 and {"torch", "PIL"} <= names
    assert {NAMES.get(name, name).replace("_", "-") for name in names} - declared <= BROUGHT


def test_the_lowest_versions_that_are_allowed_are_those_tested(project):
    lines = (CHECKOUT / "constraints" / "lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    lowest = dict(requirement.split(">=") for requirement in project["dependencies"])
    assert not [name for name, bound in lowest.items() if not f"{tested.get(name)}.".startswith(f"{bound}.")]


@pytest.mark.slow
def test_importing_costs_at_most_half_a_second_more_than_timm():
    assert seconds("import timm, proard_nas") - seconds("import timm") <= 0.5
