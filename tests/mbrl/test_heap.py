"""Freed memory is kept where the C library can be told so, and nothing fails where it cannot."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from mbrl import command

CODE = """
import resource
import numpy as np
from mbrl.command import keep_freed_memory
keep_freed_memory()
np.ones(40_000_000, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(40_000_000, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not GNU's C library")
def test_large_buffers_are_not_fetched_anew():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10_000  # pages; 100,000 otherwise


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(command.sys, "platform", "darwin")
    monkeypatch.setattr(command.ctypes, "CDLL", lambda name: pytest.fail("not to be opened"))
    command.keep_freed_memory()
