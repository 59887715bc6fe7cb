"""Saved folders to and from the Hugging Face hub; timm loads a network from there by ``hf-hub:USER/NAME``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from proard_nas._folders import Folder, checked_files
from proard_nas.supernets import StudentNet
from proard_nas.supernets.saving import CARD

from .saving import ESTIMATOR, load_student

logger = logging.getLogger(__name__)

SAFE = ("*.json", "*.jsonl", "*.safetensors", CARD)  # what may be downloaded: no pickle, no code


def push_to_hub(
    network: StudentNet,
    repo_id: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Add model",
) -> str:
    """Save a student or supernet to a repository of the Hugging Face hub, model card included.

    ``timm.create_model('hf-hub:USER/NAME', pretrained=True)`` after ``import proard_nas`` then
    gives the same bits.

    Parameters
    ----------
    network : StudentNet
    repo_id : str
        ``'USER/NAME'``; made if it does not exist.
    metadata : mapping, default=None
        As for ``network.save``.
    private : bool, default=False
        Whether a repository that is made is private.
    token : str, default=None
        With the right to write; None takes the one of ``hf auth login`` or ``HF_TOKEN``.
    revision : str, default=None
        An existing branch; None is the main one.
    create_pr : bool, default=False
        Propose the change in a pull request in place of making it.
    commit_message : str, default='Add model'

    Returns
    -------
    str
        The address of the commit.

    Raises
    ------
    ValueError
        If the network or metadata cannot be saved; nothing is sent then.
    huggingface_hub.errors.HfHubHTTPError
        If the hub refuses.

    Notes
    -----
    ``timm.models.push_to_hf_hub(network, repo_id, safe_serialization=True)`` works too. It leaves
    out checksums and metadata and writes a card of its own; here one commit holds everything.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "network"
        network.save(folder, metadata)
        return push_folder(
            folder,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
        )


def push_folder(
    folder: Folder,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Add model",
) -> str:
    """Send a saved student, supernet or estimator to the Hugging Face hub as it is.

    Only files that have their checksums are sent, and the card, all in one commit.

    Parameters
    ----------
    folder : path
        What `save_student` or ``ProARDEstimator.save`` wrote.
    private : bool, default=None
        Whether a repository that is made is private. None is yes for an estimator, which holds
        training images, else no.
    repo_id, token, revision, create_pr, commit_message
        See `push_to_hub`.

    Returns
    -------
    str
        The address of the commit.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is not whole; nothing is sent then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    names = checked_files(folder)
    if private is None:
        private = ESTIMATOR in names
    names += [CARD] * (folder / CARD).exists()
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    commit = api.create_commit(
        repo_id,
        [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names],
        commit_message=commit_message,
        revision=revision,
        create_pr=create_pr,
    )
    logger.info("sent %s to %s", folder, commit.commit_url)
    return str(commit.commit_url)


def pull_folder(
    repo_id: str, *, revision: str | None = None, token: str | None = None, cache_dir: Folder | None = None
) -> Path:
    """Bring a saved student, supernet or estimator from the Hugging Face hub and return its folder.

    Parameters
    ----------
    repo_id : str
        ``'USER/NAME'``.
    revision : str, default=None
        Branch, tag or commit; a commit is the same files for ever.
    token : str, default=None
        For private repositories.
    cache_dir : path, default=None
        None is the hub's own cache.

    Returns
    -------
    Path
        In the cache: for `load_student` or ``ProARDEstimator.load``, which check the files. Only
        safetensors, JSON and the card are downloaded.
    """
    from huggingface_hub import snapshot_download

    where = None if cache_dir is None else str(cache_dir)
    path = snapshot_download(repo_id, revision=revision, token=token, cache_dir=where, allow_patterns=list(SAFE))
    return Path(path)


def load_from_hub(
    repo_id: str, *, revision: str | None = None, token: str | None = None, cache_dir: Folder | None = None
) -> StudentNet:
    """Load a student or supernet from the Hugging Face hub, checked as `load_student` does.

    See `pull_folder` for the parameters and `load_student` for what is returned and raised.
    """
    return load_student(pull_folder(repo_id, revision=revision, token=token, cache_dir=cache_dir))
