from __future__ import annotations

import pytest

from ivideogpt.transformer import native


@pytest.fixture(params=["torch", "compiled"])
def kernels(request, monkeypatch):
    """Passes by torch's own kernels, as on a GPU or without a compiler, and by compiled code."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C++ compiler")
    return request.param
