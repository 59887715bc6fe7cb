"""Promises of the hub: what is pushed comes back bit-equal through timm. A stand-in speaks the hub's protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
import timm
import torch
import yaml
from huggingface_hub import constants
from sklearn.datasets import load_digits

from proard_nas import ProARDEstimator
from proard_nas.deploy import load_from_hub, load_student, pull_folder, push_folder, push_to_hub

FIGURES = {"natural_accuracy": 0.93, "robust_accuracy": 0.61, "attack": "PGD-20", "eps": 8 / 255, "data": "digits"}
REPO = "somebody/a-student"


class Hub(BaseHTTPRequestHandler):
    """The few endpoints of the Hugging Face hub that pushing and loading need; commits are kept in memory."""

    protocol_version = "HTTP/1.1"
    repos: dict  # repository -> {"private": bool, "commits": [{path: bytes}]}
    requests: list
    pull_requests: list

    def log_message(self, *_args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, query = self._record()
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            text = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)[1]
            return self._json(200, {"errors": [], "warnings": []} if isinstance(yaml.safe_load(text), dict) else {})
        repo, action, _ = self._api(path)
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._json(200, {"files": files})
        assert action == "commit", path
        return self._commit(repo, [json.loads(line) for line in body.splitlines()], "create_pr" in query)

    def do_GET(self):
        path, _ = self._record()
        if not path.startswith("/api/"):
            return self._file(path)
        repo, action, revision = self._api(path)
        commit = self._find(repo, revision)
        if commit is None:
            return self._json(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        sha, files = commit
        if action == "tree":
            oids = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
            return self._json(200, [{"type": "file", "path": n, "size": len(files[n]), "oid": oids[n]} for n in files])
        siblings = [{"rfilename": name} for name in files]
        private = self.repos[repo]["private"]
        return self._json(200, {"id": repo, "modelId": repo, "sha": sha, "private": private, "siblings": siblings})

    do_HEAD = do_GET  # noqa: N815

    def _create(self, wanted):
        repo = f"{wanted.get('organization') or 'somebody'}/{wanted['name']}"
        if repo in self.repos:
            return self._json(409, {"error": "exists", "url": f"{self._address()}/{repo}"})
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.repos[repo] = {"private": private, "commits": [{".gitattributes": b""}]}
        return self._json(200, {"url": f"{self._address()}/{repo}"})

    def _commit(self, repo, lines, pull_request):
        files = dict(self.repos[repo]["commits"][-1])
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.repos[repo]["commits"].append(files)
        sha, _ = self._find(repo, "main")
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self._address()}/{repo}/commit/{sha}"}
        self.pull_requests.extend([repo] * pull_request)
        pull = {"pullRequestUrl": f"{self._address()}/{repo}/discussions/1"} if pull_request else {}
        return self._json(200, {**answer, **pull})

    def _file(self, path):
        repo, revision, name = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path).groups()
        commit = self._find(repo, revision)
        if commit is None:
            return self._json(404, {}, {"X-Error-Code": "RepoNotFound"})
        sha, files = commit
        if name not in files:
            return self._json(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
        return self._answer(200, files[name], {"X-Repo-Commit": sha, "ETag": etag})

    def _find(self, repo, revision):
        commits = self.repos.get(repo, {"commits": []})["commits"]
        shas = [hashlib.sha1(f"{repo}{i}".encode()).hexdigest() for i in range(len(commits))]
        if not commits or revision not in ("main", *shas):
            return None
        i = len(commits) - 1 if revision == "main" else shas.index(revision)
        return shas[i], commits[i]

    def _api(self, path):
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit|revision|tree)/([^/]+))?", path)
        assert match, path
        return match[1], match[2], match[3] or "main"

    def _record(self):
        parts = urlsplit(self.path)
        self.requests.append((self.command, parts.path))
        return parts.path, parse_qs(parts.query)

    def _address(self):
        return f"http://{self.headers['Host']}"

    def _json(self, status, data, headers=()):
        return self._answer(status, json.dumps(data).encode(), {"Content-Type": "application/json", **dict(headers)})

    def _answer(self, status, data, headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Give a hub on this machine in place of the real one, with an empty cache; returns its class."""
    handler = type("ThisHub", (Hub,), {"repos": {}, "requests": [], "pull_requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    # These are read from the environment once, when huggingface_hub is imported.
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("HF_TOKEN", "hf_a_token_of_nobody")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    yield handler
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


def make_student(seed=0):
    net = timm.create_model("proard_dyn_resnet_tiny")
    student = net.extract(net.space.sample(seed))
    with torch.no_grad():
        student.train()(torch.rand(8, 1, 8, 8))
    return student.eval()


def same_bits(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_pushed_student_is_rebuilt_by_timm_alone_bit_equal(hub):
    student = make_student()
    address = push_to_hub(student, REPO, FIGURES)
    assert address.startswith("http://127.0.0.1:") and f"{REPO}/commit/" in address
    x = torch.rand(4, 1, 8, 8)
    for source in ("hf-hub", "hf_hub"):
        again = timm.create_model(f"{source}:{REPO}", pretrained=True).eval()
        assert same_bits(student, again) and again.arch == student.arch
        with torch.no_grad():
            assert torch.equal(again(x), student(x))
    assert not hub.repos[REPO]["private"]


@pytest.mark.slow
def test_fresh_processes_push_and_load_with_nothing_but_the_address_of_the_hub(hub, tmp_path):
    make_student().save(tmp_path / "s")
    env = {**os.environ, "HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    push = f"from proard_nas.deploy import load_student, push_to_hub; push_to_hub(load_student('s'), {REPO!r})"
    load = (
        "import timm, proard_nas, safetensors.torch\n"
        f"net = timm.create_model('hf-hub:{REPO}', pretrained=True)\n"
        "safetensors.torch.save_file(net.state_dict(), 'again.safetensors')"
    )
    for code in (push, load):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)
    saved = safetensors.numpy.load_file(tmp_path / "s" / "model.safetensors")
    again = safetensors.numpy.load_file(tmp_path / "again.safetensors")
    assert saved.keys() == again.keys()
    assert all(np.array_equal(saved[name], again[name]) for name in saved)


def test_one_commit_holds_the_card_the_facts_and_the_checksums(hub, tmp_path):
    student = make_student()
    push_to_hub(student, REPO, FIGURES)
    student.save(tmp_path / "s", FIGURES)
    _, commit = hub.repos[REPO]["commits"]
    for path in (tmp_path / "s").iterdir():
        assert commit[path.name] == path.read_bytes()
    assert ("POST", "/api/validate-yaml") in hub.requests


def test_a_student_from_the_hub_is_checked_and_brings_what_is_known(hub):
    student = make_student()
    push_to_hub(student, REPO, FIGURES)
    again = load_from_hub(REPO)
    assert same_bits(student, again) and not again.training
    assert {name: again.metadata[name] for name in FIGURES} == FIGURES
    files = hub.repos[REPO]["commits"][-1]
    files["model.safetensors"] = files["model.safetensors"][:-1] + b"\x01"
    with pytest.raises(ValueError, match=r"model\.safetensors.*SHA-256"):
        load_from_hub(REPO, cache_dir=Path(constants.HF_HUB_CACHE) / "other")


def test_a_second_push_replaces_the_card_and_an_old_commit_stays(hub):
    first, second = make_student(0), make_student(5)
    sha = push_to_hub(first, REPO, {"natural_accuracy": 0.5}).rsplit("/", 1)[1]
    push_to_hub(second, REPO, {"natural_accuracy": 0.75})
    assert same_bits(load_from_hub(REPO), second)
    assert same_bits(load_from_hub(REPO, revision=sha), first)
    assert same_bits(timm.create_model(f"hf-hub:{REPO}@{sha}", pretrained=True), first)
    assert b"75.00 %" in hub.repos[REPO]["commits"][-1]["README.md"]


def test_timms_own_push_works_on_a_student_as_it_is(hub):
    student = make_student()
    timm.models.push_to_hf_hub(student, REPO, safe_serialization=True)
    assert same_bits(timm.create_model(f"hf-hub:{REPO}", pretrained=True), student)
    with pytest.raises(FileNotFoundError, match="loads it unchecked"):
        load_from_hub(REPO)


def test_a_supernet_goes_there_and_back(hub):
    net = timm.create_model("proard_dyn_resnet_tiny", expand_ratios=(0.3, 0.6))
    push_to_hub(net, "somebody/supernet")
    again = load_from_hub("somebody/supernet")
    assert same_bits(net, again) and again.space == net.space


@pytest.mark.slow
def test_an_estimator_goes_there_and_back_and_is_private_because_it_holds_images(hub, tmp_path):
    x, y = load_digits(return_X_y=True)
    est = ProARDEstimator(
        "proard_dyn_resnet_tiny", epochs=4, attack="n-fgsm", eval_steps=1, n_labels=12, n_calibration=64, n_watch=0,
        precision="float32", device="cpu", random_state=0, progress=False,
    ).fit((x[:200] / 16).astype("float32").reshape(-1, 1, 8, 8), y[:200])  # fmt: skip
    est.save(tmp_path / "est")
    push_folder(tmp_path / "est", "somebody/estimator")
    again = ProARDEstimator.load(pull_folder("somebody/estimator"))
    assert hub.repos["somebody/estimator"]["private"]
    assert same_bits(est.supernet_, again.supernet_)
    assert est.labels_ == again.labels_
    sent = set(hub.repos["somebody/estimator"]["commits"][-1]) - {".gitattributes"}
    written = {str(path.relative_to(tmp_path / "est")) for path in (tmp_path / "est").rglob("*") if path.is_file()}
    assert sent == written - {"supernet/README.md"}


def test_pickles_are_not_even_downloaded(hub):
    push_to_hub(make_student(), REPO)
    hub.repos[REPO]["commits"][-1] |= {"pytorch_model.bin": b"pickle", "setup.py": b"code"}
    folder = pull_folder(REPO)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "checksums.json", "config.json", "model.safetensors", "proard.json",
    ]  # fmt: skip
    load_student(folder)


def test_only_whole_folders_are_sent_and_nothing_else_of_them(hub, tmp_path):
    student = make_student()
    student.save(tmp_path / "s")
    (tmp_path / "s" / "private.txt").write_text("secret")
    push_folder(tmp_path / "s", REPO, private=True)
    assert "private.txt" not in hub.repos[REPO]["commits"][-1]
    assert hub.repos[REPO]["private"]
    (tmp_path / "s" / "config.json").write_text("{}")
    before = len(hub.requests)
    with pytest.raises(ValueError, match="config.json"):
        push_folder(tmp_path / "s", REPO)
    with pytest.raises(ValueError, match="natural_accuracy"):
        push_to_hub(student, REPO, {"natural_accuracy": 93})
    with pytest.raises(FileNotFoundError, match="checksums.json"):
        push_folder(tmp_path, REPO)
    assert len(hub.requests) == before


def test_a_pull_request_can_be_opened(hub):
    push_to_hub(make_student(), REPO, create_pr=True)
    assert hub.pull_requests == [REPO]


def test_a_repository_that_is_not_there_is_named(hub):
    with pytest.raises(Exception, match="somebody/nothing"):
        load_from_hub("somebody/nothing")
