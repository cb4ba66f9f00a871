from __future__ import annotations

import pytest

from ivideogpt.errors import UserError, cli


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize("error", [UserError("no such\nthing"), FileNotFoundError("no such thing")])
def test_a_users_error_is_one_line_and_exit_code_2(capsys, error):
    with pytest.raises(SystemExit) as exit_:
        cli(raising(error))
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: no such thing\n"


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli(raising(KeyboardInterrupt()))
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="ours"):
        cli(raising(ValueError("ours")))
