"""Find LeRobot folders by ``lerobot:`` paths: on the disk, or on the Hugging Face hub, whose files are cached.

    lerobot:<folder>[@<camera>][@action=<feature>][,<folder>...]
    lerobot:<org>/<name>[@<revision>][@<camera>][@action=<feature>]

A folder that exists wins over a hub id of the same name.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ivideogpt.data.formats.lerobot import LeRobotEpisodes, LeRobotInfo
from ivideogpt.data.formats.registry import Dataset
from ivideogpt.errors import UserError, first_line
from ivideogpt.paths import split_paths

PREFIX = "lerobot:"
ACTION_CHOICE = "action="

_INFO = "meta/info.json"
_LINE = "<folder or hub id>[@<revision>][@<camera>][@action=<feature>]"


def named_dataset(name: str) -> Dataset:
    """Return one dataset of a ``lerobot:`` path. Nothing is downloaded before it is opened.

    Raises:
        UserError: the name has more choices than its kind of path has.
    """
    folder, others, actions = _choices_in(name)
    is_on_hub = is_hub_id(folder)
    if len(actions) > 1 or len(others) > 1 + is_on_hub:
        revision = "[@<revision>]" * is_on_hub
        raise UserError(f"{name}: expected <folder>{revision}[@<camera>][@action=<feature>]; '@' begins a choice there")
    action = next(iter(actions), None)
    if is_on_hub:
        return Dataset(name, partial(open_from_hub, str(folder), tuple(others), action), folder.name)
    return Dataset(
        name, partial(LeRobotEpisodes.open_folder, folder, next(iter(others), None), action), folder.resolve().name
    )


def _choices_in(name: str) -> tuple[Path, list[str], list[str]]:
    """Split into the folder or hub id, choices of revision and camera, and those of the action."""
    folder, choices = split_at_folder(name)
    actions = [choice.removeprefix(ACTION_CHOICE) for choice in choices if choice.startswith(ACTION_CHOICE)]
    return folder, [choice for choice in choices if not choice.startswith(ACTION_CHOICE)], actions


def names_in(dataset_path: str) -> list[str]:
    """Split a ``lerobot:`` path at commas, except commas in the name of an existing folder."""
    listed = dataset_path.removeprefix(PREFIX)
    return split_paths(listed, lambda name: _is_folder_of_this_format(split_at_folder(name)[0]))


def split_at_folder(name: str) -> tuple[Path, list[str]]:
    """Split into the folder, whose name may contain ``@`` if it exists, and the choices after it."""
    words = name.split("@")
    folders = [Path("@".join(words[:number])).expanduser() for number in range(1, len(words) + 1)]
    number = next((number for number, folder in enumerate(folders) if _is_folder_of_this_format(folder)), 0)
    return folders[number], [word for word in words[number + 1 :] if word]


def _is_folder_of_this_format(folder: Path) -> bool:
    return os.path.isfile(folder / _INFO)


class LeRobotFormat:
    """Format of ``lerobot:`` paths, or of such a folder alone."""

    def matches(self, path: str) -> bool:
        return path.startswith(PREFIX) or _is_folder_of_this_format(Path(path))

    def datasets(self, path: str) -> list[Dataset]:
        names = names_in(path) if path.startswith(PREFIX) else [path]
        if not names:
            raise UserError(f"dataset_path {path}: expected {PREFIX}{_LINE}[,<folder>...]")
        return [named_dataset(name) for name in names]


# ---- the hub


def is_hub_id(folder: Path) -> bool:
    """Tell whether this can only be ``<org>/<name>`` on the hub, as there is no such folder."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(folder)) is not None and not folder.exists()


def open_from_hub(hub_id: str, choices: Sequence[str], action_key: str | None) -> LeRobotEpisodes:
    """Download what one camera needs, unless it is cached, and open it.

    Args:
        choices: a revision and a camera, or one of them: it is a camera if the dataset has one of that name.

    Raises:
        UserError: the hub gives us no such dataset, or as in :meth:`LeRobotEpisodes.open_folder`.
    """
    revision, camera = _revision_and_camera(hub_id, choices)
    return LeRobotEpisodes.open_folder(download(hub_id, revision, [camera]), camera, action_key)


def _revision_and_camera(hub_id: str, choices: Sequence[str]) -> tuple[str | None, str | None]:
    revision, camera = choices if len(choices) == 2 else (None, None)
    if len(choices) == 1:
        with suppress(UserError):  # without a main branch in the cache, it is a revision
            camera = next((key for key in _info_on_hub(hub_id, None).cameras if key == choices[0]), None)
        revision = None if camera else choices[0]
    return revision, camera


def find_on_hub(name: str) -> str | None:
    """Return commit, camera and action of a name in a ``lerobot:`` path; None for folders, and if the hub says none."""
    folder, choices, actions = _choices_in(name)
    if not is_hub_id(folder):
        return None
    try:
        revision, camera = _revision_and_camera(str(folder), choices)
        return f"{_snapshot(str(folder), revision, [_INFO]).name} {camera} {actions}"
    except UserError:
        return None


def download(hub_id: str, revision: str | None, cameras: Sequence[str | None] | None) -> Path:
    """Return the folder of a dataset in the hub's cache, with these cameras' videos. ``HF_HUB_OFFLINE`` is obeyed.

    Args:
        cameras: keys, None for the first one by name; or None for all of them.
    """
    info = _info_on_hub(hub_id, revision)
    chosen = [info.camera(key) for key in (info.cameras if cameras is None else cameras)]
    patterns = ["meta/*", info.pattern("data_path")]
    patterns += [info.pattern("video_path", camera.key) for camera in chosen if camera.is_video]
    with suppress(Exception):  # whatever it is: the download says it better, or finds all in the cache
        _announce(hub_id, revision, patterns)
    return _snapshot(hub_id, revision, patterns)


def _info_on_hub(hub_id: str, revision: str | None) -> LeRobotInfo:
    folder = _snapshot(hub_id, revision, [_INFO])
    if not _is_folder_of_this_format(folder):
        at = f" at revision {revision}" if revision else ""
        raise UserError(f"{PREFIX}{hub_id}: there is no {_INFO} in it{at}; expected a dataset in LeRobot's format")
    return LeRobotInfo.load(folder)


def _announce(hub_id: str, revision: str | None, patterns: list[str]) -> None:
    """Say how many files will be downloaded, and their size, unless all are in the cache."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    found = huggingface_hub.HfApi().dataset_info(hub_id, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in found.siblings}
    wanted = list(filter_repo_objects(sizes, allow_patterns=patterns))
    cached = partial(huggingface_hub.try_to_load_from_cache, hub_id, revision=found.sha, repo_type="dataset")
    absent = [name for name in wanted if not isinstance(cached(filename=name), str)]
    if absent:
        size = sum(map(sizes.__getitem__, absent)) / 1e6
        print(
            f"{PREFIX}{hub_id}: downloading {len(absent)} files, {size:.1f} MB, into the hub's cache", file=sys.stderr
        )


def _snapshot(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(hub_id, repo_type="dataset", revision=revision, allow_patterns=patterns)
        )
    except Exception as error:  # the hub's client raises many kinds: a proxy's errors are no OSError
        raise UserError(f"{PREFIX}{hub_id}: no such folder here, and {_reason(error, revision)}") from error


def _reason(error: Exception, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    match error:
        case errors.GatedRepoError():
            return "the hub gives it only to those who have accepted its terms: do so on its page, then hf auth login"
        case errors.RepositoryNotFoundError():
            return "the hub has no such dataset, or it is private: correct the name, or log in with hf auth login"
        case errors.RevisionNotFoundError():
            return f"it has no revision (and no camera) {revision!r} on the hub: correct what follows '@'"
    if constants.HF_HUB_OFFLINE:
        return "it is not whole in the hub's cache: download it once without HF_HUB_OFFLINE"
    return f"the hub does not give it: {first_line(error)}; check the network"
