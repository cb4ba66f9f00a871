"""The examples of docs/environments.md, one after another."""

from __future__ import annotations

import runpy

from tests.documented import ROOT, blocks


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    """Examples are what people copy."""
    examples = blocks((ROOT / "docs" / "environments.md").read_text(), "python")
    assert len(examples) >= 5
    (tmp_path / "examples.py").write_text("\n".join(examples))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(tmp_path / "examples.py"))
    assert "success_once" in capsys.readouterr().out
