import json
from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import pytest
import torch

from ivideogpt.action_spaces import ActionSpace, ActionSpaces
from ivideogpt.data.clips.batches import BadEpisode
from ivideogpt.data.tokens.token_store import (
    StoredSource,
    TokenBatch,
    TokenLoader,
    TokenStore,
    TokenStoreWriter,
    read_description,
)
from ivideogpt.errors import UserError
from tests.data.tokens.token_stores import LAYOUT, META, WEIGHTS, clips, write


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "store")


def take(loader, number):
    return list(islice(loader, number))


def numbers(batches):
    return [batch.rewards[:, 0].int().tolist() for batch in batches]


def test_clips_come_back_from_every_shard(store):
    batch = store.read(np.array([19, 0, 7, 8]))
    expected = clips(range(20))
    assert batch.tokens.dtype == torch.int64
    for name in ("tokens", "actions", "rewards"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)[[19, 0, 7, 8]])
    assert len(store) == 20
    assert store.meta == META


def test_several_stores_are_read_as_one(store, tmp_path):
    """A comma in the name of a folder that exists is a comma."""
    other = replace(META, num_clips=7, stride=5, sources=(StoredSource("push", 2, 7),), clips_per_shard=4)
    write(tmp_path / "a,b", other, offset=3)
    assert len(TokenStore(tmp_path / "a,b")) == 7
    (tmp_path / "a,b").rename(tmp_path / "other")
    both = TokenStore(f"{store.folder},{tmp_path / 'other'}")
    assert len(both) == both.meta.num_clips == 27
    assert both.meta.datasets == ("coffee-push", "push")
    batch = both.read(np.array([26, 5, 20, 19]))
    assert batch.tokens[:, 0].tolist() == [9, 5, 3, 19]
    assert batch.rewards[:, 0].tolist() == [6, 5, 0, 19]
    seen = sorted(number for batch in take(TokenLoader(both, 9), 3) for number in batch.rewards[:, 0].tolist())
    assert seen == sorted([*range(20), *range(7)])
    both.check_tokenizer(WEIGHTS)


@pytest.mark.parametrize(
    ("change", "said"), [(dict(tokenizer="other"), "tokenizer"), (dict(video_stepsize=2), "video_stepsize")]
)
def test_stores_of_another_kind_are_not_read_together(store, tmp_path, change, said):
    write(tmp_path / "other", replace(META, **change))
    with pytest.raises(UserError, match=rf"other cannot be read with .*store \(other {said}\)"):
        TokenStore(f"{store.folder},{tmp_path / 'other'}")
    with pytest.raises(UserError, match="nothing is no token store"):
        TokenStore(f"{store.folder},{tmp_path / 'nothing'}")
    with pytest.raises(UserError, match="token store ',' names no folder"):
        TokenStore(",")
    with pytest.raises(UserError, match="store is named twice"):
        TokenStore(f"{store.folder},{store.folder}/../store")


def test_parts_may_name_other_data_sets_of_the_same_robots(tmp_path):
    """A robot's new recordings are a data set more in its space, and change no action."""
    arm, hand = ActionSpace("arm", 1, datasets=("first",)), ActionSpace("hand", 1, datasets=("held",))
    spaces = ActionSpaces((arm, hand))
    more = ActionSpaces((replace(arm, datasets=("first", "second")), hand))
    other = ActionSpaces((replace(arm, mean=(1.0,), std=(1.0,)), hand))
    for name, each in (("a", spaces), ("b", more), ("c", other)):
        writer = TokenStoreWriter(tmp_path / name, replace(META, action_dim=3, num_clips=1, action_spaces=each))
        writer.begin()
        writer.write(0, [replace(clips([0]), actions=torch.zeros(1, 3, 3))])
        writer.finish()
    both = f"{tmp_path / 'a'},{tmp_path / 'b'}"
    assert TokenStore(both).meta.action_spaces == read_description(both).action_spaces == more
    with pytest.raises(UserError, match="other action_spaces"):
        TokenStore(f"{both},{tmp_path / 'c'}")


@pytest.mark.parametrize(("codes", "dtype"), [(8192, np.uint16), (65000, np.uint32)])
def test_large_vocabularies_keep_their_ids(tmp_path, codes, dtype):
    """16 bits would wrap around without a word."""
    meta = replace(META, layout=replace(LAYOUT, context_codes=codes, dynamics_codes=codes), num_clips=4)
    store = write(tmp_path / "store", meta, offset=2 * codes - 10)
    assert store.meta.token_dtype == dtype
    assert torch.equal(store.read(np.arange(4)).tokens, clips(range(4), 2 * codes - 10).tokens)


def test_stores_without_actions_and_rewards(tmp_path):
    meta = replace(META, action_dim=None, has_rewards=False, num_clips=3)
    writer = TokenStoreWriter(tmp_path / "store", meta)
    writer.begin()
    writer.write(0, [TokenBatch(clips(range(3)).tokens)])
    writer.finish()
    batch = TokenStore(tmp_path / "store").read(np.arange(2))
    assert batch.actions is None
    assert batch.rewards is None


def test_an_interrupted_store_goes_on_and_is_refused_until_it_is_whole(tmp_path):
    folder = tmp_path / "store"
    with pytest.raises(UserError, match="is not finished"):
        write(folder, upto=2)
    (folder / "partial-00002").mkdir()  # a shard that was being written
    (folder / "partial-00002" / "rewards.npy").touch()
    assert torch.equal(write(folder).read(np.arange(20)).tokens, clips(range(20)).tokens)


def test_shards_come_in_any_order_from_anybody(store, tmp_path):
    """Several processes share the shards: a store must not depend on who was faster."""
    writers = [TokenStoreWriter(tmp_path / "shared", META) for _ in range(2)]
    writers[0].begin()
    for shard in (3, 1, 0, 2):
        writers[shard % 2].write(shard, [clips(META.clips_of(shard))])
    writers[0].finish()
    assert contents(tmp_path / "shared") == contents(store.folder)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_finished_store_is_not_written_again(store):
    writer = TokenStoreWriter(store.folder, META)
    writer.begin()
    assert writer.missing() == []


def test_clips_that_could_not_be_read_leave_no_gap(tmp_path):
    """Their shard is shorter, or empty, which a memory map cannot be; the others keep their numbers."""
    writer = TokenStoreWriter(tmp_path / "store", META)
    writer.begin()
    bad = [BadEpisode("a.npz", "a.npz: truncated")]
    writer.write(0, [clips(range(1, 6))], bad)
    writer.write(1, [], bad)
    for shard in (2, 3):
        writer.write(shard, [clips(META.clips_of(shard))])
    writer.finish()
    store = TokenStore(tmp_path / "store")
    assert len(store) == 13
    assert store.read(np.arange(13)).rewards[:, 0].tolist() == [*range(1, 6), *range(12, 20)]
    assert writer.skipped() == {"a.npz": "a.npz: truncated"}


def test_another_store_is_not_appended_to(store, tmp_path):
    with pytest.raises(UserError, match=r"another token store \(other stride, tokenizer\)"):
        TokenStoreWriter(store.folder, replace(META, stride=1, tokenizer="x")).begin()
    (tmp_path / "precious.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        TokenStoreWriter(tmp_path, META).begin()


def test_only_some_shards_are_open_at_a_time(store, monkeypatch):
    """A process may have 1024 files open; a large store has more shards."""
    monkeypatch.setattr("ivideogpt.data.tokens.token_store._OPEN_SHARDS", 1)
    again = TokenStore(store.folder)
    assert torch.equal(again.read(np.arange(20)[::-1]).tokens, store.read(np.arange(20)[::-1]).tokens)
    assert again._open_shard.cache_info().currsize == 1


def test_damaged_stores_are_refused(store, tmp_path):
    with pytest.raises(UserError, match="no token store"):
        TokenStore(tmp_path)
    shard = store.folder / "shard-00001"
    (shard / "actions.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(UserError, match=r"shard-00001/actions\.npy: truncated or not an npy file"):
        TokenStore(store.folder)
    np.save(shard / "actions.npy", np.zeros((6, 3, 2)))
    with pytest.raises(UserError, match=r"holds \(6, 3, 2\) float64, but meta\.json says \(6, 3, 2\) float32"):
        TokenStore(store.folder)
    (store.folder / "meta.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="format 99, expected 2"):
        TokenStore(store.folder)


def test_the_tokenizer_is_recognised_by_its_weights(store):
    store.check_tokenizer({name: tensor.bfloat16() for name, tensor in reversed(WEIGHTS.items())})
    for other in (
        WEIGHTS | {"bias": torch.tensor([1.0, 1.1])},
        WEIGHTS | {"weight": WEIGHTS["weight"].reshape(3, 2)},
        {"weight": WEIGHTS["weight"]},
    ):
        with pytest.raises(UserError, match="made by another tokenizer"):
            store.check_tokenizer(other)


def test_every_clip_once_an_epoch_in_another_order(store):
    drawn = np.ravel(numbers(take(TokenLoader(store, 5, seed=0), 8))).tolist()
    epochs = [drawn[:20], drawn[20:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 2
    assert epochs[0] != epochs[1]
    assert numbers(take(TokenLoader(store, 5, seed=1), 4)) != numbers(take(TokenLoader(store, 5, seed=0), 4))


def test_resuming_goes_on_with_the_next_clip(store):
    loader = TokenLoader(store, 3, seed=4)
    take(loader, 7)
    resumed = TokenLoader(store, 3, seed=4)
    resumed.load_state_dict(loader.state_dict())
    assert numbers(take(resumed, 7)) == numbers(take(loader, 7))
    assert resumed.state_dict() == {"samples": 42}


def test_ranks_take_different_clips(store):
    ranks = [numbers(take(TokenLoader(store, 5, rank=rank, world_size=2), 2)) for rank in range(2)]
    assert sorted(np.ravel(ranks)) == list(range(20))


def test_validation_batches_are_the_same_every_time(store):
    loader = TokenLoader(store, 3)
    first = numbers(loader.first(2))
    take(loader, 3)
    assert numbers(loader.first(2)) == first == numbers(take(TokenLoader(store, 3), 2))
    assert loader.state_dict() == {"samples": 9}


def test_batches_larger_than_the_store_are_refused(store):
    with pytest.raises(UserError, match=r"20 clips, fewer than one step of 4 x 6"):
        TokenLoader(store, 6, world_size=4)


def test_tokens_beyond_the_vocabulary_are_refused(store, tmp_path):
    """Bug prevented: an id that wraps around in 16 bits when written, or reads past the embeddings when trained on."""
    beyond = clips(range(6), offset=LAYOUT.vocab_size - 5)
    with pytest.raises(UserError, match=rf"token ids from {LAYOUT.vocab_size - 5} to {LAYOUT.vocab_size}, expected 0"):
        new_writer(tmp_path / "new").write(0, [beyond])
    file = store.folder / "shard-00001" / "tokens.npy"
    tokens = np.load(file)
    tokens[2, 3] = LAYOUT.vocab_size
    np.save(file, tokens)
    assert len(TokenStore(store.folder).read(np.arange(8)).tokens) == 8
    with pytest.raises(UserError, match=rf"to {LAYOUT.vocab_size}, expected 0 to {LAYOUT.vocab_size - 1}"):
        TokenStore(store.folder).read(np.array([8]))


@pytest.mark.parametrize(("value", "message"), [(np.nan, "holds NaN or infinite"), (3e38, r"holds 3e\+38")])
def test_actions_and_rewards_that_nothing_can_have_are_refused(store, tmp_path, value, message):
    """Bug prevented: one NaN in a store, and every weight is NaN a step later."""
    for name in ("actions", "rewards"):
        batch = clips(range(6))
        spoilt = getattr(batch, name).clone()
        spoilt[1] = value
        with pytest.raises(UserError, match=f"shard 0 of .*: {name} {message}"):
            new_writer(tmp_path / name).write(0, [replace(batch, **{name: spoilt})])
        file = store.folder / "shard-00000" / f"{name}.npy"
        whole = np.load(file)
        np.save(file, spoilt.numpy())
        with pytest.raises(UserError, match=f"{name} {message}"):
            TokenStore(store.folder).read(np.array([1]))
        np.save(file, whole)


def new_writer(folder):
    writer = TokenStoreWriter(folder, META)
    writer.begin()
    return writer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_dim": "2"}, "action_dim is '2'"),
        ({"clips_per_shard": True}, "clips_per_shard is True"),
        ({"num_clips": -1}, "num_clips is -1, expected 0"),
        ({"num_clips": 1e3}, "num_clips is 1000.0, expected int"),
        ({"shards": [10**30, 1]}, "its shards hold .* more than num_clips 20"),
        ({"shards": "6662"}, "shards is no list"),
        ({"layout": asdict(LAYOUT) | {"context_tokens": 10**15}}, "context_tokens is 1000000000000000"),
        ({"sources": [{"name": 3, "num_episodes": 1, "num_clips": 20}]}, "name is 3, expected str"),
    ],
)
def test_descriptions_are_checked_for_types_and_ranges(store, change, message):
    """Bug prevented: a size that a file claims is allocated, or fails deep inside numpy."""
    file = store.folder / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=rf"meta\.json: no description of a token store \({message}.*make it again"):
        TokenStore(store.folder)
