"""A resumed run may differ in what cannot change its results, and in what its user changes on purpose."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.errors import UserError
from ivideogpt.runs.resume import ResumeRules, refuse

RULES = ResumeRules(may_change=frozenset({"log_steps"}), data=("data",), weights=("model",), allow="--anyway")


@pytest.fixture
def folders(tmp_path):
    for name in ("data", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "0.npz").write_bytes(b"an episode")
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    return {"data": str(tmp_path / "data"), "model": str(tmp_path / "model")}


def moved(folders, tmp_path) -> dict[str, str]:
    return {name: shutil.move(path, tmp_path / f"new-{name}").__str__() for name, path in folders.items()}


def test_folders_that_moved_are_no_change(folders, tmp_path):
    """A run on a cluster's scratch disk could not be resumed after its data was staged under another path."""
    digests = RULES.digests(folders)
    now = moved(folders, tmp_path)
    assert RULES.changes(now, folders, digests) == {}
    (tmp_path / "new-data" / "1.npz").write_bytes(b"another")
    assert RULES.changes(now, folders, digests) == {"data": [folders["data"], now["data"]]}


def test_other_weights_of_the_same_size_are_a_change(folders, tmp_path):
    """Another tokenizer of the same architecture gives other tokens."""
    digests = RULES.digests(folders)
    now = moved(folders, tmp_path)
    (tmp_path / "new-model" / "model.safetensors").write_bytes(b"WEIGHTS")
    assert RULES.changes(now, folders, digests).keys() == {"model"}


def test_a_model_s_folder_is_what_is_in_its_parts(folders):
    """Only files directly in a folder counted: for README's form of the path another tokenizer was no change."""
    tokenizer = Path(folders["model"], "tokenizer")
    tokenizer.mkdir()
    for file in Path(folders["model"]).glob("*.*"):
        file.rename(tokenizer / file.name)
    digests = RULES.digests(folders)
    assert digests.keys() == {"data", "model"}
    (tokenizer / "model.safetensors").write_bytes(b"WEIGHTS")
    assert RULES.changes(folders, folders, digests).keys() == {"model"}


def test_weights_that_were_written_anew_in_their_place_are_a_change(folders):
    """A file of action spaces that was edited between two parts of a run exchanged its robots in silence."""
    digests = RULES.digests(folders)
    assert RULES.changes(folders, folders, digests) == {}
    Path(folders["model"], "model.safetensors").write_bytes(b"WEIGHTS")
    changes = RULES.changes(folders, folders, digests)
    with pytest.raises(UserError, match=r"given model=.*, which has other contents now"):
        refuse(changes, "--anyway", lambda name, _, now: f"{name}={now}", "start a new run")


@pytest.mark.parametrize("place", ["where it was", "elsewhere"])
def test_episodes_that_were_written_again_are_a_change(folders, tmp_path, place):
    """Half of a run on corrected actions: their files have the same names and sizes, and mostly the same place."""
    file = Path(folders["data"], "0.npz")
    arrays = {"image": np.zeros((40, 16, 16, 3), np.uint8), "action": np.zeros((40, 4), np.float32)}
    np.savez(file, **arrays)
    digests, size = RULES.digests(folders), file.stat().st_size
    os.utime(file)
    assert RULES.changes(folders, folders, digests) == {}
    arrays["action"][7, 2] = 1
    np.savez(file, **arrays)
    assert file.stat().st_size == size
    now = folders if place == "where it was" else moved(folders, tmp_path)
    assert RULES.changes(now, folders, digests).keys() == {"data"}


def test_digests_of_earlier_versions_are_no_change(folders, tmp_path):
    """They were of names and sizes: no run that had begun before an update could be resumed after it."""
    digests = {**RULES.digests(folders), "data": "0" * 32}
    assert RULES.changes(folders, folders, digests) == {}
    now = {"data": str(shutil.copytree(folders["data"], tmp_path / "copy"))}
    assert RULES.changes(now, folders, digests) == {}


def test_without_digests_the_old_place_is_compared(folders, tmp_path):
    """Runs of earlier versions recorded none; a copy is the same content, and what has gone is not known to be."""
    now = {"data": str(shutil.copytree(folders["data"], tmp_path / "copy"))}
    assert RULES.changes(now, folders) == {}
    shutil.rmtree(folders["data"])
    assert RULES.changes(now, folders).keys() == {"data"}


def test_a_hub_id_is_compared_by_name():
    assert RULES.changes({"model": "someone/else"}, {"model": "someone/this"}).keys() == {"model"}


def test_other_settings_are_refused_by_name_and_say_how_to_go_on():
    changes = RULES.changes({"lr": 2, "log_steps": 5, "new": 1}, {"lr": 1, "log_steps": 1})
    assert changes == {"lr": [1, 2]}
    with pytest.raises(UserError, match="given lr=2: start a new run, or add --anyway to go on with them"):
        refuse(changes, RULES.allow, lambda name, before, now: f"{name}={now}", "start a new run")


def test_noted_changes_are_what_the_next_resumption_keeps(tmp_path, folders):
    """A run that was given a lower learning rate was refused when the same command resumed it again."""
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"args": {"lr": 1, "data": "gone"}, "contents": {"data": "digest"}}))
    asked = {"lr": 2, "data": folders["data"]}
    RULES.note(file, {"lr": [1, 2], "data": ["gone", folders["data"]]}, 7, asked, args="args")
    record = json.loads(file.read_text())
    assert record["changes"] == [
        {"step": 7, "lr": {"before": 1, "now": 2}, "data": {"before": "gone", "now": folders["data"]}}
    ]
    assert record["args"] == asked
    assert record["contents"] == RULES.digests({"data": folders["data"]})


def test_folders_in_a_list_are_compared_each(folders, tmp_path):
    """Token stores that are read as one."""
    second = shutil.copytree(folders["data"], tmp_path / "second")
    both = {"data": f"{folders['data']},{second}"}
    digests = RULES.digests(both)
    moved_second = shutil.move(second, tmp_path / "elsewhere")
    now = {"data": f"{folders['data']},{moved_second}"}
    assert RULES.changes(now, both, digests) == {}
    assert RULES.changes(folders, both, digests).keys() == {"data"}
    (tmp_path / "elsewhere" / "1.npz").write_bytes(b"another")
    assert RULES.changes(now, both, digests).keys() == {"data"}
