"""LeRobot datasets by hub id, from a stand-in of the hub on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from ivideogpt.data.clips.dataset import DataConfig, build_sources
from ivideogpt.data.formats.registry import find_episodes
from ivideogpt.errors import UserError
from ivideogpt.runs.resume import refuse
from ivideogpt.training.common.run import RULES
from tests.data.formats.hub import Hub, commit, serve
from tests.data.formats.lerobot_folder import FRONT, LENGTHS, WRIST, level, write_folder
from tests.data.formats.lerobot_v2_folder import write_v2_folder
from tests.data.formats.test_lerobot import CODEC_ERROR, shown


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    revisions = {"main": write_folder(root / "v3"), "v2.1": write_v2_folder(root / "v2")}
    (root / "other").mkdir()
    (root / "other" / "README.md").write_text("a dataset of another kind")
    datasets = {
        "me/arm": revisions,
        "me/other": {"main": root / "other"},
        "me/gated": "gated",
        "me/down": "down",
    }
    with serve(Hub(datasets)) as hub:
        yield hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The client's settings are read from the environment when it is imported."""
    monkeypatch.chdir(tmp_path)
    server.asked.clear()
    connect(monkeypatch, server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()


def connect(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def opened(path):
    (found,) = find_episodes(f"lerobot:{path}")
    return found


def test_only_what_the_camera_needs_is_downloaded_and_said(hub, capsys, monkeypatch):
    """Bug prevented: gigabytes of other cameras, without a word."""
    found = opened("me/arm")
    said = capsys.readouterr().err
    assert "lerobot:me/arm: downloading 7 files, 0.0 MB, into the hub's cache\n" in said
    assert not any(WRIST in name for name in hub.asked)
    assert {name.split("/")[0] for name in hub.asked} == {"meta", "data", "videos"}
    assert (found.name, len(found.episodes)) == ("arm", len(LENGTHS))
    frames = found.episodes.open(3).read(np.array([0, 5]))
    np.testing.assert_allclose(shown(frames), [level(3, 0), level(3, 5)], atol=CODEC_ERROR)
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    ((source, _),) = build_sources(DataConfig("lerobot:me/arm"), "all")
    assert len(source.episodes) == len(LENGTHS)
    assert hub.asked == []
    assert "downloading" not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"me/arm: .* not whole in the hub's cache: .* without HF_HUB_OFFLINE"):
        opened(f"me/arm@{WRIST}")


def test_a_revision_a_camera_or_both(hub):
    """Bug prevented: the camera taken for a revision, or the newest revision read in place of the one asked for."""
    for path, root, camera in (
        (f"me/arm@{WRIST}", "v3", WRIST),
        ("me/arm@v2.1", "v2", FRONT),
        (f"me/arm@v2.1@{WRIST}@action=next.reward", "v2", WRIST),
    ):
        episodes = opened(path).episodes
        assert (episodes.info.version, episodes.camera.key) == (root + ".", camera)
        assert len(episodes) == len(LENGTHS)
        levels = shown(episodes.open(1).read(np.arange(2)))
        np.testing.assert_allclose(levels, [level(1, i, camera) for i in range(2)], atol=CODEC_ERROR)
    assert episodes.action_key == "next.reward"


def test_a_resumed_run_notices_another_commit(hub, monkeypatch):
    """Half of a run on data that somebody has replaced since, with nothing in its record."""
    asked = {"dataset_path": f"lerobot:me/arm@{WRIST}", "seed": 0}
    digests = RULES.digests(asked)
    assert commit(hub.datasets["me/arm"]["main"]) in digests["dataset_path"]
    assert RULES.changes(asked, asked, digests) == {}
    same, other = ({**asked, "dataset_path": f"lerobot:me/arm@{revision}@{WRIST}"} for revision in ("main", "v2.1"))
    assert RULES.changes(same, asked, digests) == {}
    assert RULES.changes(other, asked, digests).keys() == {"dataset_path"}
    monkeypatch.setitem(hub.datasets["me/arm"], "main", hub.datasets["me/arm"]["v2.1"])
    changes = RULES.changes(asked, asked, digests)
    with pytest.raises(UserError, match=r"given lerobot:me/arm@.*, which has other contents now: start anew"):
        refuse(changes, RULES.allow, lambda name, before, now: now, "start anew")
    assert RULES.digests({"dataset_path": "lerobot:me/nothing"}) == {}  # whoever reads it says what is wrong


def test_a_folder_that_exists_wins(hub, tmp_path):
    write_folder(tmp_path / "me" / "arm", "image")
    assert opened("me/arm").episodes.info.root == "me/arm"
    assert hub.asked == []
    (tmp_path / "me" / "gated").mkdir()
    with pytest.raises(UserError, match=r"me/gated: no LeRobot folder, there is no me/gated/meta/info.json"):
        opened("me/gated")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "me/nothing",
            "no such folder here, and the hub has no such dataset, or it is private: correct the name, or log",
        ),
        ("me/gated", "the hub gives it only to those who have accepted its terms"),
        ("me/arm@top", r"it has no revision \(and no camera\) 'top' on the hub: correct what follows '@'"),
        ("me/arm@v2.1@top", f"no camera top; it has {FRONT}, {WRIST}"),
        ("me/other", r"me/other: there is no meta/info.json in it; expected a dataset in LeRobot's format"),
        ("me/arm@a@b@c", r"expected <folder>\[@<revision>\]\[@<camera>\]\[@action=<feature>\]"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(hub, path, message):
    with pytest.raises(UserError, match=message) as error:
        opened(path)
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    connect(monkeypatch, f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"the hub does not give it: .*; check the network") as error:
        opened("me/arm")
    assert "\n" not in str(error.value)


def test_commands(hub, tmp_path):
    """As users run them: the environment alone says where the hub is."""
    code = Path(__file__).parents[3]
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "own"), "HF_HUB_OFFLINE": "0"}
    script = code / "datasets" / "lerobot_to_npz.py"
    flags = ["--input_path", "lerobot:me/arm@v2.1", "--all_cameras", "--output_path", "out", "--num_workers", "1"]
    done = subprocess.run([sys.executable, script, *flags], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lerobot:me/arm: downloading 17 files" in done.stderr
    assert "5 episodes written" in done.stdout
    assert done.stdout.endswith("train with --dataset_path out --oxe_data_mixes_type folder:arm\n")
    with np.load(tmp_path / "out/arm/episode_000003.npz", allow_pickle=False) as episode:
        assert episode["wrist"].shape == (LENGTHS[3], 16, 32, 3)
        assert set(episode["language_instruction"]) == {"take it back"}
