# Sourced by quickstart.sh and test.sh: goes to the repository's root and puts .venv first on the PATH.
# The environment is made on the first run; later runs compare a checksum and do nothing. VENV=... names another folder.
# PYTHON=... names the interpreter to make it with (3.11, 3.12 or 3.13: MuJoCo has no wheels for later ones).

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-$PWD/.venv}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11, 3.12 or 3.13 is needed${PYTHON:+ and $PYTHON is none of them};" \
        "name one with PYTHON=/path/to/python" >&2
    return 1
}

install_requirements() {
    local stamp="$VENV/.installed" wanted python clear=()
    wanted="$(cat requirements.txt pyproject.toml | cksum) $PWD"
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        echo "making $VENV with $("$python" --version)"
        if [ -f "$VENV/pyvenv.cfg" ]; then # half-made, or its interpreter is gone; any other folder keeps its files
            clear=(--clear)
        fi
        "$python" -m venv ${clear[@]+"${clear[@]}"} "$VENV"
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing requirements.txt (about 2 GB, a few minutes)"
        "$VENV/bin/python" -m pip install -qq --disable-pip-version-check -r requirements.txt
        echo "$wanted" >"$stamp"
    fi
}

# MuJoCo renders off-screen through EGL or OSMesa. Without them everything works except recording and what renders.
has_rendering() {
    "$VENV/bin/python" - <<'PY'
import sys
from ctypes.util import find_library

sys.exit(sys.platform == "linux" and not (find_library("EGL") and find_library("GL")) and not find_library("OSMesa"))
PY
}

has_browser() {
    command -v chromium || command -v chromium-browser || command -v google-chrome
} >/dev/null

# Installs Debian packages where that needs no password; a note if it cannot.
# Arguments: what they are for, what happens without them, the packages.
install_packages() {
    local purpose=$1 otherwise=$2 as_root=()
    shift 2
    if [ "$(id -u)" != 0 ]; then
        as_root=(sudo -n)
    fi
    if command -v apt-get >/dev/null && ${as_root[@]+"${as_root[@]}"} true 2>/dev/null; then
        echo "installing $* for $purpose"
        ${as_root[@]+"${as_root[@]}"} apt-get update -qq &&
            ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -qq --no-install-recommends "$@" >/dev/null && return
    fi
    echo "note: nothing for $purpose ($*): $otherwise" >&2
}

install_rendering() {
    has_rendering || install_packages "off-screen rendering" "tests that render are skipped" libegl1 libgl1 libosmesa6
}

install_browser() {
    has_browser || install_packages "tests in a browser" "tests of pages are skipped" chromium
}

install_requirements
export PATH="$VENV/bin:$PATH"
