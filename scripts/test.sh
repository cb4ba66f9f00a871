#!/usr/bin/env bash
# All checks: ruff, ruff format, mypy, pytest on all cores. Makes .venv if there is none. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_rendering
install_browser
# No requirement of the project, as its wheel has 85 MB; the tests of Lance tables are skipped without it.
python -c 'import lance' 2>/dev/null || python -m pip install -qq --disable-pip-version-check 'pylance==14.0.2' ||
    echo "note: no pylance: tests of Lance tables are skipped" >&2
ruff check .
ruff format --check .
mypy
exec python -m pytest --numprocesses auto --dist worksteal "$@"
