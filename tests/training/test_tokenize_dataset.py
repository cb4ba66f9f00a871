import sys
from functools import partial

import numpy as np
import pytest
import torch

from ivideogpt.data import __main__ as commands
from ivideogpt.data.token_store import TokenLoader, TokenStore, TokenStoreWriter
from ivideogpt.errors import UserError
from ivideogpt.pretrained import load_tokenizer
from ivideogpt.training import tokenize_dataset
from tests.data.synthetic import write_episode

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


def test_an_interrupted_run_goes_on(arguments, tmp_path, monkeypatch):
    class Interrupted(Exception):
        pass

    def stop_after(calls):
        tokenize = tokenize_dataset.ClipTokenizer.__call__

        def counted(self, frames):
            nonlocal calls
            calls -= 1
            if calls < 0:
                raise Interrupted
            return tokenize(self, frames)

        return counted

    whole = tmp_path / "whole"
    tokenize_dataset.main([*arguments, "--output", str(whole)])
    with monkeypatch.context() as patch:
        patch.setattr(tokenize_dataset, "TokenStoreWriter", partial(TokenStoreWriter, clips_per_shard=1))
        patch.setattr(tokenize_dataset.ClipTokenizer, "__call__", stop_after(1))
        with pytest.raises(Interrupted):
            tokenize_dataset.main(arguments)
    assert [shard.name for shard in (tmp_path / "store").glob("shard-*")] == ["shard-00000"]
    tokenize_dataset.main(arguments)
    rows = np.arange(len(TokenStore(whole)))
    assert torch.equal(TokenStore(whole).read(rows).tokens, TokenStore(tmp_path / "store").read(rows).tokens)


def test_bfloat16_stores_tokens_of_the_same_layout(arguments, tmp_path):
    tokenize_dataset.main([*arguments, "--mixed_precision", "bf16", "--split", "test"])
    assert len(TokenStore(tmp_path / "store")) == 2


def test_impossible_commands_are_refused(arguments, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="segment_length 2 has no future"):
        tokenize_dataset.main([*arguments, "--segment_length", "2"])
    monkeypatch.setattr(sys, "argv", ["ivideogpt.data", "tokenise"])
    with pytest.raises(UserError, match=r"unknown command 'tokenise'; expected .*\{tokenize"):
        commands.main()
    assert not (tmp_path / "store").exists()
