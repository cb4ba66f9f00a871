from __future__ import annotations

import pytest

from mbrl import build_workspace, workspace
from mbrl.agent_env import EnvSettings
from mbrl.records import Records
from tests.mbrl.runs import make_env


@pytest.fixture
def cheap_runs(monkeypatch):
    """Simulators that cost nothing, in this process, and a snapshot every other episode."""
    monkeypatch.setattr(EnvSettings, "make", make_env)
    monkeypatch.setattr(build_workspace, "num_processors", lambda: 1)
    monkeypatch.setattr(Records, "draw_success", lambda self: None)
    monkeypatch.setattr(workspace, "SNAPSHOT_EVERY", 2)
