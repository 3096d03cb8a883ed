#!/usr/bin/env bash
# Puts a Python client for etcd that we did not write into the cache folder, and prints the interpreter that has it.
set -euo pipefail

CACHE=${CENTRA_CACHE:-$HOME/.cache/centra}
PACKAGES=(etcd3==0.12.0 grpcio==1.76.0 protobuf==3.20.3 six==1.17.0 tenacity==6.3.1)
VENV=$CACHE/venv
STAMP=$VENV/installed

if [ "$(cat "$STAMP" 2> /dev/null)" != "${PACKAGES[*]}" ]; then
    rm -rf "$VENV"
    if ! python3 -m venv "$VENV" >&2; then
        echo "python3 cannot make a virtual environment; as root: apt-get install python3-venv" >&2
        exit 1
    fi
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-input setuptools==80.9.0 wheel==0.45.1 >&2
    # The old source package is built with what was just installed; versions are ours, not its own wishes.
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-input --no-build-isolation --no-deps \
        "${PACKAGES[@]}" typing_extensions==4.15.0 >&2
    echo "${PACKAGES[*]}" > "$STAMP"
fi
echo "$VENV/bin/python"
