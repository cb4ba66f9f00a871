import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.data import __main__ as commands
from ivideogpt.data.tokens.token_store import TokenLoader, TokenStore
from ivideogpt.errors import UserError
from ivideogpt.pretrained import load_tokenizer
from ivideogpt.training.transformer import tokenize_command
from ivideogpt.vq_model import CompressiveVQModel
from tests.commands import run_in_two_processes
from tests.data.synthetic import write_episode

ROOT = Path(__file__).parents[3]
LENGTH, STRIDE = 4, 3


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("episodes")
    rng = np.random.default_rng(0)
    for i, num_frames in enumerate([9, 3, 12, 8]):  # the first is the test split; the second is shorter than a clip
        frames = rng.integers(0, 256, (num_frames, 64, 64, 3), dtype=np.uint8)
        write_episode(folder / "coffee-push" / f"{i}.npz", num_frames, image=frames)
    return folder


@pytest.fixture
def arguments(tiny_world_model, episodes, tmp_path):
    return [
        *("--pretrained_model_name_or_path", str(tiny_world_model / "tokenizer"), "--dataset_path", str(episodes)),
        *("--oxe_data_mixes_type", "folder:*", "--segment_length", str(LENGTH), "--stride", str(STRIDE)),
        *("--output", str(tmp_path / "store"), "--batch_size", "3", "--device", "cpu"),
    ]


def test_every_clip_is_stored_as_the_tokenizer_sees_it(arguments, tiny_world_model, episodes, tmp_path, monkeypatch):
    """Clips, actions and rewards out of step with each other would train a model that nobody can steer."""
    monkeypatch.setattr(sys, "argv", ["ivideogpt.data", "tokenize", *arguments])
    commands.main()
    store = TokenStore(tmp_path / "store")
    tokenizer = load_tokenizer(tiny_world_model)
    store.check_tokenizer(tokenizer.state_dict())
    assert store.meta.layout == tokenizer.layout(LENGTH - 2)
    expected = [("1", [0, 1, 2, 2])]
    expected += [("2", range(start, start + LENGTH)) for start in (0, 3, 6)]
    expected += [("3", range(start, start + LENGTH)) for start in (0, 3)]
    assert len(store) == len(expected)
    batch = store.read(np.arange(len(store)))
    for i, (name, indices) in enumerate(expected):
        assert batch.rewards[i].tolist() == list(indices)
        assert batch.actions[i, :, 0].tolist() == list(indices)
        frames = np.load(episodes / "coffee-push" / f"{name}.npz")["image"][list(indices)]
        clip = torch.from_numpy(frames).permute(0, 3, 1, 2)[None] / 255
        assert torch.equal(batch.tokens[i], tokenizer.tokenize(clip, 2)[0][0])
    assert next(iter(TokenLoader(store, 2))).tokens.shape == (2, store.meta.layout.sequence_length)


def test_first_frames_of_stored_clips_are_shorter_clips(arguments, tmp_path):
    """Else every length needs a store of its own, and clips of two lengths cannot be read together."""
    tokenize_command.main(arguments)
    tokenize_command.main([*arguments, "--segment_length", "3", "--output", str(tmp_path / "short")])
    short = TokenStore(tmp_path / "short")
    both = TokenStore(f"{tmp_path / 'store'},{tmp_path / 'short'}", num_frames=3)
    assert both.meta.layout == short.meta.layout
    assert (len(both), len(short)) == (6 + 7, 7)
    cut, expected = (
        both.read(np.arange(6)),
        short.read(np.array([0, 1, 2, 3, 5, 6])),
    )  # the fifth begins too late for four
    for name in ("tokens", "actions", "rewards"):
        assert torch.equal(getattr(cut, name), getattr(expected, name))
    assert torch.equal(both.read(np.arange(6, 13)).tokens, short.read(np.arange(7)).tokens)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_interrupted_run_goes_on(arguments, tmp_path, monkeypatch):
    class Interrupted(Exception):
        pass

    def stop_after(calls):
        tokenize = CompressiveVQModel.tokenize

        def counted(*args):
            nonlocal calls
            calls -= 1
            if calls < 0:
                raise Interrupted
            return tokenize(*args)

        return counted

    arguments = [*arguments, "--clips_per_shard", "2"]
    tokenize_command.main([*arguments, "--output", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        patch.setattr(CompressiveVQModel, "tokenize", stop_after(1))
        with pytest.raises(Interrupted):
            tokenize_command.main(arguments)
    assert [shard.name for shard in (tmp_path / "store").glob("shard-*")] == ["shard-00000"]
    tokenize_command.main(arguments)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_later_passes_are_augmented_each_by_its_own_draw(arguments, tmp_path):
    """A pass that repeats another one is wasted disk; a pass 0 that is augmented has nothing to compare with."""
    tokenize_command.main([*arguments, "--output", str(tmp_path / "once")])
    tokenize_command.main([*arguments, "--num_passes", "3", "--seed", "5", "--dataloader_num_workers", "1"])
    once, store = TokenStore(tmp_path / "once"), TokenStore(tmp_path / "store")
    number = len(once)
    assert len(store) == 3 * number
    passes = [store.read(np.arange(number) + i * number) for i in range(3)]
    assert torch.equal(passes[0].tokens, once.read(np.arange(number)).tokens)
    assert all(torch.equal(later.actions, passes[0].actions) for later in passes)
    context = store.meta.layout.context_tokens
    for one, other in ((0, 1), (0, 2), (1, 2)):
        changed = (passes[one].tokens[:, :context] != passes[other].tokens[:, :context]).any(dim=1)
        assert changed.all()
    assert (store.meta.num_passes, store.meta.augmentation, store.meta.seed) == (3, "weak", 5)
    assert [(of.num_episodes, of.num_clips) for of in store.meta.sources] == [(3, number)]


def test_bad_episodes_stop_or_are_left_out(arguments, episodes, tmp_path, capsys):
    folder = tmp_path / "episodes"
    shutil.copytree(episodes, folder)
    (folder / "coffee-push" / "1.npz").write_bytes(b"nothing")  # found when it is opened
    good = folder / "coffee-push" / "2.npz"
    with np.load(good) as arrays:
        np.savez_compressed(good, **arrays)
    flip_frame_bytes(good)  # found when its frames are read
    command = [*arguments, "--dataset_path", str(folder)]
    with pytest.raises(UserError, match=r"1\.npz: truncated or not an npz file"):
        tokenize_command.main(command)
    tokenize_command.main([*command, "--on_bad_episode", "skip"])
    assert len(TokenStore(tmp_path / "store")) == 2  # those of 3.npz
    assert "skipped 2 bad episodes" in capsys.readouterr().out


def test_episodes_that_were_written_again_are_another_store(arguments, episodes, tmp_path):
    """Names and lengths stay as they are: a finished store kept the old actions, an unfinished one mixed both."""
    folder = shutil.copytree(episodes, tmp_path / "episodes")
    command = [*arguments, "--dataset_path", str(folder)]
    tokenize_command.main(command)
    before = contents(tmp_path / "store")
    file = folder / "coffee-push" / "2.npz"
    with np.load(file) as arrays:
        write_episode(file, 12, **dict(arrays) | {"action": arrays["action"] + 1})
    with pytest.raises(UserError, match=r"another token store \(other episodes: some were added, removed or written"):
        tokenize_command.main(command)
    assert contents(tmp_path / "store") == before
    shutil.copy(episodes / "coffee-push" / "2.npz", file)
    tokenize_command.main(command)


def flip_frame_bytes(path):
    """Random frames hardly compress, so that they take the first half of the file."""
    content = bytearray(path.read_bytes())
    for place in range(500, len(content) // 3):
        content[place] ^= 0xFF
    path.write_bytes(content)


def test_processes_share_the_work_and_the_store_is_the_same(arguments, tmp_path):
    """Shards that depended on the number of processes could not be continued with another."""
    flags = [*arguments, "--num_passes", "2", "--clips_per_shard", "3"]
    tokenize_command.main(flags)
    shared = ["--output", str(tmp_path / "shared")]
    del flags[flags.index("--device") : flags.index("--device") + 2]
    done = run_in_two_processes("-m", "ivideogpt.data", "tokenize", *flags, *shared)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("12 clips of 3 episodes") == 1
    assert contents(tmp_path / "shared") == contents(tmp_path / "store")


def test_a_store_holds_the_tokens_of_float32_whatever_is_asked(arguments, tmp_path):
    """Those of bfloat16 are others, and nobody who predicts from the model would give it such."""
    with pytest.warns(UserWarning, match="--mixed_precision has no effect"):
        tokenize_command.main([*arguments, "--mixed_precision", "bf16", "--split", "test"])
    tokenize_command.main([*arguments, "--split", "test", "--output", str(tmp_path / "plain")])
    assert len(TokenStore(tmp_path / "store")) == 2
    assert contents(tmp_path / "store") == contents(tmp_path / "plain")


def test_impossible_commands_are_refused(arguments, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="segment_length 2 has no future"):
        tokenize_command.main([*arguments, "--segment_length", "2"])
    for flags, message in (
        (["--num_passes", "2", "--split", "test"], "--split test never is"),
        (["--strong_aug"], "needs --num_passes"),
    ):
        with pytest.raises(UserError, match=message):
            tokenize_command.main([*arguments, *flags])
    monkeypatch.setattr(sys, "argv", ["ivideogpt.data", "tokenise"])
    with pytest.raises(UserError, match=r"unknown command 'tokenise'; expected .*\{inspect,.*tokenize\}"):
        commands.main()
    assert not (tmp_path / "store").exists()
