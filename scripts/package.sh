#!/usr/bin/env bash
# Makes dist/: a Debian package, a tarball, an SBOM of each program's crates, and SHA256SUMS.
#
#   scripts/package.sh [TARGET-FOLDER]     the programs are taken from TARGET-FOLDER/release
#
# The same commit gives the same bytes: files carry the commit's time, and no name of a builder.
set -euo pipefail
cd "$(dirname "$0")/.."

built=${1:-${CARGO_TARGET_DIR:-$HOME/.cache/centra/target}}/release
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
architecture=$(dpkg --print-architecture)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2> /dev/null || stat -c %Y Cargo.lock)
export SOURCE_DATE_EPOCH
umask 022
work=$(mktemp -d -t chainfire-package-XXXXXX)
trap 'rm -rf "$work"' EXIT
root=$work/root

main() {
    rm -rf dist
    mkdir -p dist "$root"
    stage_programs
    stage_files
    stage_documents
    find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    tarball
    debian
    scripts/sbom.sh chainfire "$version" > "dist/chainfire-$version.cdx.json"
    (cd dist && sha256sum -- * > "$work/sums" && mv "$work/sums" SHA256SUMS)
    ls -l dist
}

# What is debugged is the build's own program; the package's has no symbols.
stage_programs() {
    install -d "$root/usr/bin"
    local program
    for program in chainfire chainfire-client flaredb flaredb-client placement-driver; do
        install -m 0755 "$built/$program" "$root/usr/bin/$program"
        strip --strip-all "$root/usr/bin/$program"
    done
    # Under this name the program is RocksDB's own tool, of the RocksDB that it is linked with.
    ln -s chainfire "$root/usr/bin/rocksdb_ldb"
}

stage_files() {
    local unit
    for unit in packaging/systemd/*.{service,timer}; do
        install -D -m 0644 "$unit" "$root/usr/lib/systemd/system/${unit##*/}"
    done
    local name
    for name in packaging/systemd/drop-ins/*.conf; do
        install -D -m 0644 "$name" "$root/usr/share/chainfire/systemd/drop-ins/${name##*/}"
    done
    for name in chainfire flaredb; do
        install -D -m 0644 "packaging/sysusers.d/$name.conf" "$root/usr/lib/sysusers.d/$name.conf"
        install -D -m 0644 "packaging/tmpfiles.d/$name.conf" "$root/usr/lib/tmpfiles.d/$name.conf"
        install -D -m 0644 "packaging/prometheus/$name.rules.yml" "$root/usr/share/chainfire/prometheus/$name.rules.yml"
        install -D -m 0644 "packaging/grafana/$name.json" "$root/usr/share/chainfire/grafana/$name.json"
    done
    for name in chainfire flaredb placement-driver; do
        install -D -m 0644 "packaging/etc/centra-cloud/$name.toml" "$root/etc/centra-cloud/$name.toml"
        install -d "$root/etc/centra-cloud/$name.toml.d"
        completions "$built/$name" --print-completion
    done
    # Below the folder as it lies in a checkout, so that `scripts/generate-dev-certs.sh` is its name in both.
    install -D -m 0755 scripts/generate-dev-certs.sh "$root/usr/share/chainfire/scripts/generate-dev-certs.sh"
    completions "$built/chainfire-client" completion
    completions "$built/flaredb-client" completion
}

# completions PROGRAM WORD: the program prints a shell's script when it is asked by that word.
completions() {
    local program=$1 word=$2 name=${1##*/} shell target
    for shell in "bash:bash-completion/completions/$name" "zsh:zsh/vendor-completions/_$name" \
        "fish:fish/vendor_completions.d/$name.fish"; do
        target=$root/usr/share/${shell#*:}
        install -d "${target%/*}"
        "$program" "$word" "${shell%%:*}" > "$target"
    done
}

stage_documents() {
    local documents=$root/usr/share/doc/chainfire manuals=$root/usr/share/man
    install -d "$documents" "$manuals"/man{1,5,8}
    cp -r docs/ops docs/reference "$documents"
    find "$documents" -type f -exec chmod 0644 {} + -o -type d -exec chmod 0755 {} +
    install -m 0644 packaging/deb/copyright "$documents/copyright"
    gzip -9 -n -c CHANGELOG.md > "$documents/changelog.gz"
    local program
    for program in chainfire flaredb; do "$built/$program-client" man --dir "$manuals/man1"; done
    for program in chainfire flaredb placement-driver; do
        "$built/$program" --print-man=8 > "$manuals/man8/$program.8"
        "$built/$program" --print-man=5 > "$manuals/man5/$program.toml.5"
    done
    find "$manuals" -type f -exec gzip -9 -n {} +
}

tarball() {
    local name=chainfire-$version-linux-$architecture
    tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --format=gnu \
        --transform="s,^\./,$name/," --transform="s,^\.$,$name," -C "$root" . | gzip -9 -n > "dist/$name.tar.gz"
}

debian() {
    local control=$root/DEBIAN
    install -d "$control"
    local script
    for script in postinst prerm postrm; do install -m 0755 "packaging/deb/$script" "$control/$script"; done
    (cd "$root" && find etc -type f -printf '/%p\n' | LC_ALL=C sort) > "$control/conffiles"
    (cd "$root" && find usr etc -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) > "$control/md5sums"
    sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@DEPENDS@/$(depends)/" \
        -e "s/@SIZE@/$(du -k -s --apparent-size --exclude=DEBIAN "$root" | cut -f 1)/" packaging/deb/control > "$control/control"
    chmod 0644 "$control/control" "$control/conffiles" "$control/md5sums"
    find "$control" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zxz --build "$root" "dist/chainfire_${version}_$architecture.deb" > /dev/null
}

# The newest symbols that the programs ask of the C library say from which version on they run.
depends() {
    local libc
    libc=$(objdump -T "$root"/usr/bin/{chainfire,flaredb}{,-client} "$root/usr/bin/placement-driver" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -1)
    echo "libc6 (>= ${libc#GLIBC_}), libgcc-s1, libstdc++6 (>= $(gcc -dumpversion | cut -d . -f 1))"
}

main
