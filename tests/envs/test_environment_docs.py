"""The examples of docs/environments.md, one after another."""

from __future__ import annotations

import runpy

from tests.documented import ROOT, blocks

SERVED = "http://127.0.0.1:8765"


def test_the_examples_run(tmp_path, monkeypatch, capsys, server):
    """Examples are what people copy."""
    examples = "\n".join(blocks((ROOT / "docs" / "environments.md").read_text(), "python"))
    assert examples.count(SERVED) == 1
    (tmp_path / "examples.py").write_text(examples.replace(SERVED, server.address))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(tmp_path / "examples.py"))
    assert "success_once" in capsys.readouterr().out
