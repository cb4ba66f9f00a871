#!/usr/bin/env bash
# The other name of oxe-64-act-free.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/oxe-64-act-free.sh" "$@"
