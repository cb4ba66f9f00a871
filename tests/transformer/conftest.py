from __future__ import annotations

import pytest
import torch

from ivideogpt.transformer.backends.cpu_kernels import kernels as native


@pytest.fixture(params=["torch", "compiled"])
def kernels(request, monkeypatch):
    """Passes by torch's own kernels, as on a GPU or without a compiler, and by compiled code.

    New memory holds NaN: fresh from the system it would hold zeros, and reading it would go unnoticed.
    """
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C++ compiler")
    new_empty = torch.Tensor.new_empty

    def poisoned(*args, **kwargs):
        made = new_empty(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    return request.param
