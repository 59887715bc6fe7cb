"""`fit` under torchrun: two processes of the command line train, label and save one estimator."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from proard_nas import ProARDEstimator

FIT = (
    "--model proard_dyn_resnet_tiny --epochs 4 --attack-steps 1 --eval-steps 1 --n-labels 12 --n-watch 32 --lr 0.1 "
    "--device cpu --random-state 0 --no-progress"
)


# Each call joins and leaves a group: the second finds what the first has left in torchrun's store.
SCRIPT = """
import sys
from sklearn.datasets import load_digits
from proard_nas import ProARDEstimator

x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype("float32").reshape(-1, 1, 8, 8)[:256], y[:256]
est = ProARDEstimator("proard_dyn_resnet_tiny", epochs=4, attack_steps=1, eval_steps=1, n_labels=12, n_watch=32, lr=0.1,
                      device="cpu", random_state=0, progress=False, precision="float32")
est.fit(x, y)
for n in (14, 16):
    est.label(n)
print(len(est.labels_))
est.save(sys.argv[1])
"""


def torchrun(*command):
    """Run a command in two processes; return what they wrote to standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_script_may_fit_and_label_again_and_again(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    assert torchrun(str(tmp_path / "script.py"), str(tmp_path / "est")).split() == ["16", "16"]
    assert len(ProARDEstimator.load(tmp_path / "est").labels_) == 16


@pytest.mark.slow
def test_two_processes_fit_one_estimator(tmp_path):
    x, y = load_digits(return_X_y=True)
    pixels = (x / 16 * 255).astype("uint8").reshape(-1, 8, 8)
    np.savez(tmp_path / "digits.npz", x_train=pixels[:300], y_train=y[:300], x_test=pixels[300:], y_test=y[300:])
    command = ["-m", "proard_nas", "fit", "--data", str(tmp_path / "digits.npz"), "--out", str(tmp_path / "est")]
    report = json.loads(torchrun(*command, *FIT.split(), "--json"))  # of one process alone
    est = ProARDEstimator.load(tmp_path / "est")
    assert (est.n_train_, est.n_val_) == (report["n_train"], report["n_val"]) == (270, 30)
    assert len(est.labels_) == report["n_labels"] == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.npz", "est"]
