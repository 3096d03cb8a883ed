#!/usr/bin/env bash
# Installs what is missing for the purposes named (build, demo, test, bench, package): Debian packages by apt where this user may,
# tools written in Rust into the cache folder. What it may not install it names in one line.
set -euo pipefail

DENY_VERSION=0.20.2
RUST_VERSION_MIN=1.91
CACHE=${CENTRA_CACHE:-$HOME/.cache/centra}

missing=()
need_command() { command -v "$1" > /dev/null || missing+=("$2"); }

need_venv() {
    python3 -c 'import ensurepip, venv' 2> /dev/null || missing+=(python3-venv)
}

need_libclang() {
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' > /dev/null || ldconfig -p | grep -q 'libclang.*\.so' || missing+=(libclang-dev)
}

install_missing() {
    [ ${#missing[@]} -gt 0 ] || return 0
    local as_root=()
    if [ "$(id -u)" != 0 ]; then
        if sudo -n true 2> /dev/null; then as_root=(sudo -n); else give_up; fi
    fi
    command -v apt-get > /dev/null || give_up
    echo "installing: ${missing[*]}"
    local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}")
    "${install[@]}" > /dev/null 2>&1 && return
    "${as_root[@]}" apt-get update -qq && "${install[@]}" > /dev/null || give_up
}

give_up() {
    echo "missing packages: ${missing[*]} (as root: apt-get install ${missing[*]})" >&2
    exit 1
}

need_rust() {
    local found
    found=$(rustc --version 2> /dev/null | cut -d ' ' -f 2) || found=none
    if [ "$found" = none ] || [ "$(printf '%s\n' "$RUST_VERSION_MIN" "$found" | sort -V | head -1)" != "$RUST_VERSION_MIN" ]; then
        echo "Rust $RUST_VERSION_MIN or newer is needed (found: $found): curl -sSf https://sh.rustup.rs | sh -s -- -y" >&2
        exit 1
    fi
}

# A build without optimization: it takes a minute instead of five, and the check two seconds instead of one.
need_cargo_deny() {
    local program=$CACHE/tools/bin/cargo-deny
    [ "$("$program" --version 2> /dev/null)" = "cargo-deny $DENY_VERSION" ] && return
    echo "installing: cargo-deny $DENY_VERSION into $CACHE/tools"
    local built
    built=$(mktemp -d)
    (cd / && cargo install --quiet --locked --debug --force --version "=$DENY_VERSION" --root "$CACHE/tools" \
        --target-dir "$built" cargo-deny)
    rm -rf "$built"
}

for purpose in "$@"; do
    case $purpose in
        build)
            need_command gcc gcc
            need_command g++ g++
            need_command make make
            need_command clang clang
            need_command ld.lld lld
            need_libclang
            need_command protoc protobuf-compiler
            ;;
        demo)
            need_command etcdctl etcd-client
            need_command jq jq
            need_command openssl openssl
            need_command nc netcat-openbsd
            ;;
        test)
            need_command etcdctl etcd-client
            need_command jq jq
            need_command openssl openssl
            need_command curl curl
            need_command python3 python3
            need_venv
            need_command systemd-analyze systemd
            need_command dpkg-deb dpkg
            need_command ip iproute2
            need_command nft nftables
            need_command nc netcat-openbsd
            need_command openssl openssl
            need_command ping iputils-ping
            ;;
        package)
            need_command dpkg-deb dpkg
            need_command objdump binutils
            need_command jq jq
            need_command xz xz-utils
            ;;
        bench) ;;
        *) echo "need.sh: unknown purpose $purpose" >&2 && exit 2 ;;
    esac
done
install_missing
for purpose in "$@"; do
    case $purpose in
        build) need_rust ;;
        test) need_cargo_deny ;;
    esac
done
