from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ivideogpt.errors import UserError
from ivideogpt.state_dicts import check_state_dict, load_strict, read_tensors, save_tensors


def test_every_problem_is_named_at_once():
    expected = {"a": (2,), "b": (2, 3), "c": (1,), "optional": (1,)}
    found = {"a": (2,), "b": (3, 2), "d": (1,)}
    with pytest.raises(UserError) as error:
        check_state_dict(expected, found, "model.safetensors", may_lack=["optional"])
    assert str(error.value) == (
        "model.safetensors does not fit the model; missing: c; unexpected: d; wrong shape: b is [3, 2], expected [2, 3]"
    )


def test_long_lists_are_cut():
    with pytest.raises(UserError, match=r"missing: 0, 1, .*, 9 and 5 more$"):
        check_state_dict({str(i): (1,) for i in range(15)}, {}, "file")


def test_loading_keeps_dtype_unless_tensors_are_assigned():
    tensors = {name: tensor.half() for name, tensor in nn.Linear(2, 3).state_dict().items()}
    module = nn.Linear(2, 3)
    load_strict(module, tensors, "file")
    assert module.weight.dtype == torch.float32
    with torch.device("meta"):
        module = nn.Linear(2, 3)
    load_strict(module, tensors, "file", assign=True)
    assert module.weight.dtype == torch.float16
    assert module.weight.requires_grad


def test_files_are_replaced_whole(tmp_path):
    file = tmp_path / "model.safetensors"
    save_tensors({"a": torch.ones(2), "n": torch.tensor([3])}, file)
    save_tensors({"a": torch.zeros(3, 2).T, "n": torch.tensor([3])}, file, torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    tensors = read_tensors(file)
    assert (tensors["a"].shape, tensors["a"].dtype, tensors["n"].dtype) == ((2, 3), torch.float16, torch.int64)
    assert read_tensors(file, torch.float32)["a"].dtype == torch.float32


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "model.safetensors"
    save_tensors({"a": torch.ones(2)}, file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"model\.safetensors is no safetensors file or is damaged"):
        read_tensors(file)


def test_saved_files_have_the_usual_permissions(tmp_path):
    """Weights that only their owner can read fail for everybody else on a shared machine."""
    save_tensors({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "usual").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), None, "is damaged, or its training went wrong; not finite: b"),
        (1e30, torch.float16, "beyond float16: b"),
    ],
)
def test_what_is_not_finite_is_not_read(tmp_path, value, dtype, message):
    """A transformer of NaN gave a report that looked plausible: the likeliest of NaN is code 0."""
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2), "b": torch.tensor([1.0, value])}, file, {"format": "pt"})
    with pytest.raises(UserError, match=message):
        read_tensors(file, dtype)


def test_what_is_not_finite_replaces_nothing(tmp_path):
    """The weights of a training that went wrong took the place of good ones."""
    file = tmp_path / "model.safetensors"
    save_tensors({"a": torch.ones(2)}, file)
    with pytest.raises(UserError, match=r"model\.safetensors is not written; not finite: a"):
        save_tensors({"a": torch.tensor([1.0, float("inf")]), "b": torch.ones(1)}, file)
    with pytest.raises(UserError, match="not finite, or beyond float16: big"):
        save_tensors({"big": torch.tensor([1e30])}, file, torch.float16)
    assert read_tensors(file)["a"].tolist() == [1, 1]
    save_tensors({"a": torch.full((2,), 3e38)}, tmp_path / "large.safetensors")  # finite, unlike their sum
    assert read_tensors(tmp_path / "large.safetensors")["a"].isfinite().all()
    (tmp_path / "large.safetensors").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
