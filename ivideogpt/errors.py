"""Errors that are the user's to solve, and how a command reports them. Knows nothing of the package."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec


class UserError(ValueError):
    """An error that the user can solve. The message says what was given, what was expected and what to change."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's class where it has no message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def require(*packages: str, extra: str = "data") -> None:
    """Raise UserError naming the extra to install if one of these optional packages is missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(f"the package {missing[0]} is not installed: pip install -e '.[{extra}]' in the project folder")


def cli(main: Callable[[], object]) -> None:
    """Run a command; a user's error becomes one line on stderr and exit code 2, Ctrl-C one and 130 (128 + SIGINT).

    So does what the system refuses: a full or read-only disk, a missing folder, a file that may not be read. A bug
    keeps its traceback.

    A plain ``ValueError`` is not caught: from a library it is more likely our fault than the user's.
    """
    threading.excepthook = _report_thread
    try:
        main()
    except BrokenPipeError:  # whoever read our output has closed it: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at the exit
        sys.exit(128 + signal.SIGPIPE)
    except (UserError, OSError) as error:
        _report("error: " + " ".join(str(error).split()))
        sys.exit(2)
    except KeyboardInterrupt:
        _report("interrupted")
        sys.exit(130)


def _report(line: str) -> None:
    """Print a line on stderr, under the progress bars that are still open there, not behind them."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)  # not imported for this: it costs a command's start
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
    print(line, file=sys.stderr)


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """Leave errors of the system to the main thread, in which TensorBoard raises those of its own thread again."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)
