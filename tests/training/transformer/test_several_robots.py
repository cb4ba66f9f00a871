"""Two robots in one mix, from ``inspect`` to a report: of 2-D actions, and of 7-D ones a thousand times larger."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ivideogpt.action_spaces import ActionSpaces
from ivideogpt.commands import evaluate
from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.inspect import command as inspect_episodes
from ivideogpt.data.tokens.token_store import TokenStore
from ivideogpt.errors import UserError
from ivideogpt.training import export
from ivideogpt.training.transformer import tokenize_command
from ivideogpt.world_model import WorldModel
from tests.data.synthetic import write_episode
from tests.training.runs import build_gpt, fit, metrics_of, without

DIMS = {"arm": 2, "arm-2": 2, "big": 7}


@pytest.fixture(scope="module")
def robots(tmp_path_factory):
    """Three data sets, a test episode and two others each; the first two are of one robot."""
    folder = tmp_path_factory.mktemp("robots")
    rng = np.random.default_rng(0)
    for dataset, dim in DIMS.items():
        for number in range(3):
            action = rng.normal(size=(8, dim)).astype(np.float32)
            frames = rng.integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
            write_episode(folder / dataset / f"{number}.npz", 8, image=frames, action=action * 1000 ** (dim == 7))
    return folder


@pytest.fixture(scope="module")
def spaces_file(robots):
    file = robots / "spaces.json"
    inspect_episodes.main([str(robots), "--write_action_spaces", str(file)])
    return file


def config_of(robots, spaces=None, mix="folder:*") -> DataConfig:
    segment = SegmentSpec("contiguous", 4)
    return DataConfig(str(robots), mix, segment, batch_size=8, load_action=True, action_spaces=spaces)


def test_data_sets_that_look_alike_share_a_space(robots, spaces_file, capsys):
    """Twins in two spaces learn apart; two robots in one space are normalised by nobody's numbers."""
    arm, big = ActionSpaces.read(spaces_file).spaces
    assert (arm.name, arm.dim, arm.datasets) == ("arm", 2, ("arm", "arm-2"))
    assert (big.name, big.dim, big.datasets) == ("big", 7, ("big",))
    assert 300 < min(big.std) < max(big.std) < 3000
    with pytest.raises(UserError, match="exists"):
        inspect_episodes.main([str(robots), "--write_action_spaces", str(spaces_file)])
    capsys.readouterr()
    inspect_episodes.main([str(robots / "big"), "--write_action_spaces", str(robots / "one.json")])
    assert "big (7 numbers): big" in capsys.readouterr().out


def test_folders_of_one_name_keep_apart(robots, tmp_path):
    """Folders of one name in two others ended the command, which said to name them once: nobody had named them."""
    for robot in ("arm", "big"):
        shutil.copytree(robots / robot, tmp_path / "all" / robot / "pick")
    inspect_episodes.main([str(tmp_path / "all"), "--write_action_spaces", str(tmp_path / "spaces.json")])
    arm, big = ActionSpaces.read(tmp_path / "spaces.json").spaces
    assert (arm.name, arm.datasets, big.name, big.datasets) == ("arm/pick", ("arm/pick",), "big/pick", ("big/pick",))


def test_every_clip_is_encoded_by_the_space_of_its_data_set(robots, spaces_file):
    """The wrong mean for a data set makes its actions noise."""
    spaces = ActionSpaces.read(spaces_file, adapters=True)
    batch = next(iter(build_loader(config_of(robots, spaces)))).to("cpu")
    assert batch.actions.shape == (8, 4, spaces.length)
    assert batch.actions.dtype == torch.float32
    assert batch.actions.abs().max() < 6
    whose = batch.actions[..., -2:]
    assert set(map(tuple, whose.flatten(0, 1).tolist())) == {(1, 0), (0, 1)}
    assert batch.actions[..., :2][whose[..., 1] == 1].eq(0).all()
    (raw,) = np.load(robots / "big" / "1.npz")["action"][None]
    alone = next(iter(build_loader(replace(config_of(robots, spaces, "folder:big"), batch_size=1)))).to("cpu")
    recovered = alone.actions[0, :, 2:9] * torch.tensor(spaces.find("big").std) + torch.tensor(spaces.find("big").mean)
    episodes = [raw, np.load(robots / "big" / "2.npz")["action"]]
    assert any(np.allclose(recovered, rows[i : i + 4], atol=1) for rows in episodes for i in range(5))


def test_what_does_not_fit_is_named(robots, spaces_file):
    """Robots that are mixed by mistake must be noticed before training, not by a shape in a traceback."""
    with pytest.raises(UserError, match=r"\[2, 7\] dimensions.*--action_spaces"):
        next(iter(build_loader(config_of(robots))))
    with pytest.raises(UserError, match=r"expected 7; .*--action_spaces"):
        build_loader(replace(config_of(robots), action_dim=7))
    arm, big = ActionSpaces.read(spaces_file).spaces
    with pytest.raises(UserError, match="data set 'big' is in no action space"):
        build_loader(config_of(robots, ActionSpaces((arm,))))
    swapped = ActionSpaces((replace(arm, datasets=("big",)), replace(big, datasets=("arm", "arm-2"))))
    with pytest.raises(UserError, match="actions have 2 dimensions, but action space 'big' has 7"):
        build_loader(config_of(robots, swapped))


@pytest.fixture
def command(gpt_command, robots):
    argv = without(gpt_command, "--dataset_path")
    return [*argv, "--dataset_path", str(robots), "--action_conditioned", "--skip_first_val"]


def test_training_resumes_and_the_model_knows_its_robots(command, robots, spaces_file, tiny_world_model, tmp_path):
    """Spaces that a checkpoint, an export or a resumed run loses leave a model that nobody can steer."""
    argv = [*command, "--action_spaces", str(spaces_file)]
    whole = fit(build_gpt([*argv, "--max_train_steps", "2"]))
    part = fit(build_gpt([*argv, "--max_train_steps", "1", "--output_dir", str(tmp_path / "part")]))
    moved = tmp_path / "moved.json"
    moved.write_bytes(spaces_file.read_bytes())
    again = [*command, "--action_spaces", str(moved), "--resume_from_checkpoint", str(part)]
    fit(build_gpt([*again, "--max_train_steps", "2"]))
    weights = [load_file(run / "model.safetensors") for run in (whole, part)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert weights[0]["action_linear.weight"].shape[1] == 9
    assert [line["split"] for line in metrics_of(whole)] == ["train", "train", "validation"]
    moved.write_text(spaces_file.read_text().replace("arm-2", "arm-3"))
    with pytest.raises(UserError, match="action_spaces"):
        build_gpt([*again, "--max_train_steps", "3"])

    model = tmp_path / "model"
    export.main(["--tokenizer", str(tiny_world_model), "--transformer", str(part), "--output", str(model)])
    assert WorldModel.from_pretrained(model).metadata.action_spaces == ActionSpaces.read(spaces_file)
    assert ActionSpaces.read(model / "ivideogpt.json") == ActionSpaces.read(spaces_file)
    assert_scored_by_space(model, robots, tmp_path / "report")


def assert_scored_by_space(model, robots, folder):
    flags = ["--pretrained_model_name_or_path", str(model), "--dataset_path", str(robots), "--split", "all"]
    flags += ["--lpips_path", str(folder), "--i3d_path", str(folder), "--output_path", str(folder)]
    evaluate.main([*flags, "--oxe_data_mixes_type", "folder:arm,big", "--num_clips", "6"])
    report = json.loads((folder / "report.json").read_text())
    parts = [report["by_action_space"][name]["future"] for name in ("arm", "big")]
    means = [part["prediction"]["psnr"]["mean"] for part in parts]
    assert sum(means) / 2 == pytest.approx(report["scores"]["future"]["prediction"]["psnr"]["mean"])
    assert all("shuffled_actions" in part for part in parts)
    lone, *_ = sorted((robots / "big").glob("*.npz"))
    (folder / "lone" / "big").mkdir(parents=True)
    (folder / "lone" / "arm").symlink_to(robots / "arm")
    shutil.copy(lone, folder / "lone" / "big")
    flags[flags.index(str(robots))] = str(folder / "lone")
    for size in ("1", "10"):  # a robot's only episode has no other's actions; its batch lost them, too
        evaluate.main([*flags, "--num_clips", "4", "--batch_size", size, "--output_path", str(folder / size)])
        clips = [json.loads(line) for line in (folder / size / "clips.jsonl").read_text().splitlines()]
        assert all(("shuffled_actions" in clip["scores"]["future"]) == (clip["dataset"] == "arm") for clip in clips)
        assert {clip["dataset"] for clip in clips} == {"arm", "big"}
    text = (folder / "report.md").read_text()
    assert "### Action space big" in text
    assert {name: part["future"] for name, part in report["by_dataset"].items()} == dict(zip(("arm", "big"), parts))
    ahead = parts[0]["prediction"]["psnr"]["mean"] - parts[0]["copy_last_frame"]["psnr"]["mean"]
    row = next(line for line in text.splitlines() if line.startswith("| arm |"))
    assert row.startswith(f"| arm | 3 | {means[0]:.2f} ")
    assert f"| {ahead:.2f} " in row


def test_a_store_remembers_its_spaces(command, robots, spaces_file, tiny_world_model, tmp_path):
    """Tokens and actions that were encoded in another way would train without an error."""
    tokens = ["--pretrained_model_name_or_path", str(tiny_world_model), "--dataset_path", str(robots)]
    tokens += ["--segment_length", "4", "--stride", "4", "--device", "cpu"]
    for name, flags in {
        "train": ["--action_spaces", str(spaces_file), "--action_adapters"],
        "test": ["--action_spaces", str(spaces_file), "--action_adapters", "--split", "test"],
        "shared": ["--action_spaces", str(spaces_file), "--split", "test"],
        "none": [],
    }.items():
        tokenize_command.main([*tokens, *flags, "--output", str(tmp_path / name)])
    store = TokenStore(tmp_path / "train")
    spaces = ActionSpaces.read(spaces_file, adapters=True)
    assert store.meta.action_spaces == spaces
    assert store.read(np.arange(len(store))).actions.shape == (len(store), 4, spaces.length)
    assert TokenStore(tmp_path / "none").meta.action_dim is None
    argv = without(command, "--dataset_path", "--oxe_data_mixes_type", "--dataloader_num_workers")
    argv += ["--max_train_steps", "1", "--token_store", str(tmp_path / "train")]
    run = fit(build_gpt([*argv, "--eval_token_store", str(tmp_path / "test")]))
    assert json.loads((run / "ivideogpt.json").read_text())["action_spaces"]["adapters"]
    assert [line["split"] for line in metrics_of(run)] == ["train", "validation"]
    for flags, message in (
        (["--action_spaces", str(spaces_file)], "made with other action spaces than --action_spaces"),
        (["--eval_token_store", str(tmp_path / "shared")], "not --action_dim|other action spaces"),
        (["--action_dim", "5"], "the action spaces say 11"),
    ):
        with pytest.raises(UserError, match=message):
            build_gpt([*argv, *flags])
