#!/usr/bin/env bash
# All checks: ruff, ruff format, mypy, pytest on all cores. Makes .venv if there is none. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_rendering
install_browser
ruff check .
ruff format --check .
mypy
exec python -m pytest --numprocesses auto --dist worksteal "$@"
