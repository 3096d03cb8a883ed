#!/usr/bin/env bash
# Builds the package and looks at what came out: what is in it and with which rights, whether what is installed starts and
# serves, and, where this user may make a copy of the system to install into, what installing, upgrading, removing and
# purging do to users, data and settings.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/package.sh > /dev/null
deb=$(echo dist/chainfire_*.deb)
tarball=$(echo dist/chainfire-*.tar.gz)
sbom=$(echo dist/chainfire-*.cdx.json)
work=$(mktemp -d -t chainfire-check-XXXXXX)
server=
finish() {
    [ -z "$server" ] || kill "$server" 2> /dev/null || true
    rm -rf "$work"
}
trap finish EXIT
fail() { echo "check-package: $1" >&2; exit 1; }

main() {
    (cd dist && sha256sum --quiet --check SHA256SUMS) || fail "a checksum does not match"
    contents
    bill_of_materials
    documents
    starts
    same_again
    installs
}

contents() {
    dpkg-deb -c "$deb" | awk '{ print $1, $2, substr($0, index($0, "./")) }' > "$work/list"
    local each
    for each in '-rwxr-xr-x root/root ./usr/bin/chainfire' '-rwxr-xr-x root/root ./usr/bin/chainfire-client' \
        '-rwxr-xr-x root/root ./usr/bin/flaredb' '-rwxr-xr-x root/root ./usr/bin/flaredb-client' \
        '-rwxr-xr-x root/root ./usr/bin/placement-driver' \
        '-rw-r--r-- root/root ./usr/lib/systemd/system/chainfire-backup.service' \
        '-rw-r--r-- root/root ./usr/lib/systemd/system/chainfire-backup.timer' \
        '-rw-r--r-- root/root ./usr/share/chainfire/systemd/drop-ins/shared-host.conf' \
        '-rw-r--r-- root/root ./usr/share/chainfire/systemd/drop-ins/flaredb-shared-host.conf' \
        '-rw-r--r-- root/root ./usr/share/chainfire/systemd/drop-ins/placement-driver-shared-host.conf' \
        '-rwxr-xr-x root/root ./usr/share/chainfire/scripts/generate-dev-certs.sh' \
        '-rw-r--r-- root/root ./usr/share/man/man1/chainfire-client-status.1.gz' \
        '-rw-r--r-- root/root ./usr/share/man/man1/flaredb-client-cluster-status.1.gz' \
        '-rw-r--r-- root/root ./usr/share/doc/chainfire/ops/troubleshooting.md' \
        '-rw-r--r-- root/root ./usr/share/doc/chainfire/ops/alerts/ChainfireNoLeader.md' \
        '-rw-r--r-- root/root ./usr/share/doc/chainfire/reference/configuration.md' \
        '-rw-r--r-- root/root ./usr/share/doc/chainfire/reference/flaredb-configuration.md' \
        '-rw-r--r-- root/root ./usr/share/doc/chainfire/reference/placement-driver-configuration.md' \
        '-rw-r--r-- root/root ./usr/share/doc/chainfire/copyright'; do
        grep -qxF -- "$each" "$work/list" || fail "not in the package: $each"
    done
    # Pages are read to their ends: whoever stops before leaves a broken pipe, which counts as a failure.
    local name
    for name in chainfire flaredb placement-driver; do
        for each in "etc/centra-cloud/$name.toml" "usr/lib/systemd/system/$name.service" "usr/share/man/man8/$name.8.gz" \
            "usr/share/man/man5/$name.toml.5.gz"; do
            grep -qxF -- "-rw-r--r-- root/root ./$each" "$work/list" || fail "not in the package: $each"
        done
    done
    for name in chainfire chainfire-client flaredb flaredb-client placement-driver; do
        for each in "bash-completion/completions/$name" "zsh/vendor-completions/_$name" "fish/vendor_completions.d/$name.fish"; do
            grep -qxF -- "-rw-r--r-- root/root ./usr/share/$each" "$work/list" || fail "not in the package: $each"
        done
    done
    for name in chainfire flaredb; do
        for each in "lib/sysusers.d/$name.conf" "lib/tmpfiles.d/$name.conf" "share/chainfire/prometheus/$name.rules.yml" \
            "share/chainfire/grafana/$name.json"; do
            grep -qxF -- "-rw-r--r-- root/root ./usr/$each" "$work/list" || fail "not in the package: $each"
        done
        grep -qxF -- "-rw-r--r-- root/root ./usr/share/man/man1/$name-client.1.gz" "$work/list" || fail "not in the package: $name-client(1)"
    done
    grep -q ' \./usr/bin/rocksdb_ldb -> chainfire$' "$work/list" || fail "not in the package: rocksdb_ldb"
    if grep -E ' \./(var|home|root|tmp|usr/local|work)/' "$work/list"; then fail "files where no package puts any"; fi
    awk '$1 ~ /^-/ && ($2 != "root/root" || $1 ~ /^.....w|^........w|s|t/) { print; wrong = 1 } END { exit wrong }' "$work/list" \
        || fail "rights that no file of a package needs"
    dpkg-deb -e "$deb" "$work/control"
    [ "$(paste -sd ' ' "$work/control/conffiles")" = "$(echo /etc/centra-cloud/{chainfire,flaredb,placement-driver}.toml)" ] || fail "settings are not kept over upgrades"
    local script
    for script in postinst prerm postrm; do
        sh -n "$work/control/$script"
        if grep -nE '\brm\b|userdel|deluser' "$work/control/$script"; then fail "$script deletes something"; fi
    done
    dpkg-deb -x "$deb" "$work/root"
    local program
    for program in "$work"/root/usr/bin/{chainfire,flaredb}{,-client} "$work/root/usr/bin/placement-driver"; do
        if readelf -S "$program" | grep -q '\.debug_info'; then fail "$program has symbols for debugging"; fi
    done
    mkdir "$work/unpacked"
    tar -xzf "$tarball" -C "$work/unpacked" --strip-components=1
    (cd "$work/root" && find . -type f) | LC_ALL=C sort > "$work/of-deb"
    (cd "$work/unpacked" && find . -type f) | LC_ALL=C sort > "$work/of-tar"
    diff "$work/of-deb" "$work/of-tar" || fail "the tarball holds something else"
    echo "contents: $(wc -l < "$work/of-deb") files, $(stat -c %s "$deb") bytes as .deb, $(stat -c %s "$tarball") as .tar.gz"
}

# What one part of the package says of another is there once it is installed.
documents() {
    local root=$work/root file target page section
    "$root/usr/bin/rocksdb_ldb" --help 2>&1 | grep -q checkconsistency || fail "rocksdb_ldb is not RocksDB's tool"
    while read -r page; do
        section=${page##*(}
        [ -s "$root/usr/share/man/man${section%)}/${page%(*}.${section%)}.gz" ] || fail "a unit names man:$page, which is not installed"
    done < <(grep -ohE 'man:[a-z.-]+\([0-9]\)' "$root"/usr/lib/systemd/system/* | sed 's/^man://' | sort -u)
    # Pages are read to their ends: whoever stops before leaves a broken pipe, which counts as a failure.
    local name
    for name in chainfire flaredb placement-driver; do
        zcat "$root/usr/share/man/man8/$name.8.gz" | tr -d '\\' | grep -i "^\.TH $name 8 " > /dev/null || fail "$name(8) says that it is another page"
        zcat "$root/usr/share/man/man5/$name.toml.5.gz" | tr -d '\\' | grep -i "^\.TH $name.toml 5 " > /dev/null || fail "$name.toml(5) says that it is another page"
    done
    while IFS=: read -r file target; do
        [ -e "${file%/*}/$target" ] || fail "${file#"$root"} links $target, which is not installed"
    done < <(grep -roE '\]\([^)#:]+' "$root/usr/share/doc/chainfire" --include='*.md' | sed 's/:](/:/')
    # Places that pages, units and rules name. Those of the node's own come with its first start.
    while read -r target; do
        [ -e "$root$target" ] || fail "$target is named and not installed"
    done < <(grep -rhoE '/usr/(share|lib|bin)/[A-Za-z0-9_./-]*chainfire[A-Za-z0-9_./-]*[A-Za-z0-9_-]' "$root/usr/share/doc/chainfire" \
        "$root/usr/share/chainfire" "$root/usr/lib/systemd" "$root/etc" | sort -u)
    mkdir "$work/certs"
    "$root/usr/share/chainfire/scripts/generate-dev-certs.sh" "$work/certs" > /dev/null && [ -s "$work/certs/.bundles/chainfire-node-3/ca.crt" ] \
        && [ -s "$work/certs/.bundles/flaredb-node-3/ca.crt" ] && [ -s "$work/certs/.bundles/placement-driver-node-1/ca.crt" ] || fail "what is installed makes no certificates"
    echo "documents: links, pages and paths lead somewhere"
}

bill_of_materials() {
    local parts
    parts=$(jq '.components | length' "$sbom")
    jq -e '.bomFormat == "CycloneDX" and ([.components[].name] | contains(["tokio", "raft", "rust-librocksdb-sys", "flaredb", "placement"]))
        and ([.components[] | select((.licenses | length) == 0)] | length) == 0
        and ([.components[] | select(.hashes != [])] | length) > 100' "$sbom" > /dev/null || fail "the SBOM lacks something"
    echo "bill of materials: $parts crates"
}

# What is installed runs by its own settings: only the folder is another one.
starts() {
    local root=$work/root address=127.93.$((RANDOM % 250 + 1)).$((RANDOM % 250 + 1))
    "$root/usr/bin/chainfire" --check-config --config "$root/etc/centra-cloud/chainfire.toml" | grep -q '^the configuration is valid$'
    mkdir -p "$root/etc/centra-cloud/chainfire.toml.d"
    printf '[storage]\ndata_dir = "%s"\n[network]\napi_addr = "%s:2379"\nraft_addr = "%s:2380"\n%s' \
        "$work/data" "$address" "$address" \
        "$("$root/usr/bin/chainfire" --help | grep -q -- --gossip-addr && echo "gossip_addr = \"$address:2381\"")" \
        > "$root/etc/centra-cloud/chainfire.toml.d/50-check.toml"
    "$root/usr/bin/chainfire" --config "$root/etc/centra-cloud/chainfire.toml" > "$work/log" 2>&1 &
    server=$!
    local client=("$root/usr/bin/chainfire-client" --endpoint "http://$address:2379") tries=0
    until "${client[@]}" put packaged yes > /dev/null 2>&1; do
        tries=$((tries + 1))
        if [ $tries -gt 100 ] || ! kill -0 "$server" 2> /dev/null; then cat "$work/log" >&2 && fail "what is installed does not serve"; fi
        sleep 0.3
    done
    "${client[@]}" get packaged | grep -q yes
    kill "$server"
    wait "$server" || fail "the server does not end in good order"
    server=
    flaredb_starts "$address"
    echo "what is installed starts, serves and stops"
}

# The store brings its own placement driver along.
flaredb_starts() {
    local root=$work/root each
    for each in flaredb placement-driver; do
        "$root/usr/bin/$each" --check-config --config "$root/etc/centra-cloud/$each.toml" | grep -q '^the configuration is valid$'
    done
    "$root/usr/bin/flaredb" --standalone --config "$root/etc/centra-cloud/flaredb.toml" --data-dir "$work/flaredb" \
        --api-addr "$1:2379" --raft-addr "$1:2380" --pd-addr "$1:2389" > "$work/log" 2>&1 &
    server=$!
    local client=("$root/usr/bin/flaredb-client" --endpoint "http://$1:2379") tries=0
    until "${client[@]}" put packaged yes > /dev/null 2>&1; do
        tries=$((tries + 1))
        if [ $tries -gt 100 ] || ! kill -0 "$server" 2> /dev/null; then cat "$work/log" >&2 && fail "FlareDB as installed does not serve"; fi
        sleep 0.3
    done
    "${client[@]}" get packaged | grep -q yes
    kill "$server"
    wait "$server" || fail "FlareDB does not end in good order"
    server=
}

same_again() {
    cp dist/SHA256SUMS "$work/first"
    scripts/package.sh > /dev/null
    diff "$work/first" dist/SHA256SUMS || fail "a second build gives other bytes"
    echo "a second build gives the same bytes"
}

# In a copy of this system that lasts as long as the shell in it.
installs() {
    mkdir -p "$work/system"
    # shellcheck disable=SC2016
    local copy='mount -t tmpfs none "$1" && mkdir "$1"/up "$1"/in "$1"/at && mount -t overlay overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/in" "$1/at"'
    if ! unshare -m sh -c "$copy" sh "$work/system" 2> /dev/null; then
        echo "installing is not tried: this user may not make a copy of the system"
        return
    fi
    cp "$deb" "$work/chainfire.deb"
    unshare -m sh -c "$copy"' && cp "$2" "$1/at/tmp/chainfire.deb" && exec chroot "$1/at" sh -euc "$3"' sh "$work/system" "$work/chainfire.deb" '
        say() { echo "check-package: $1" >&2; exit 1; }
        rm -rf /var/lib/chainfire /etc/centra-cloud
        dpkg -i /tmp/chainfire.deb > /tmp/said 2>&1 || { cat /tmp/said; say "it cannot be installed"; }
        [ "$(stat -c "%U %G %a" /var/lib/chainfire)" = "chainfire chainfire 700" ] || say "the data folder is not the users own"
        [ "$(stat -c "%U %G %a" /var/lib/flaredb /var/lib/placement-driver | sort -u)" = "flaredb flaredb 700" ] \
            || say "the data folders of FlareDB are not the users own"
        [ -d /etc/centra-cloud/certs ] || say "there is no folder for certificates"
        echo precious > /var/lib/chainfire/data
        echo "# changed here" >> /etc/centra-cloud/chainfire.toml
        dpkg -i /tmp/chainfire.deb > /tmp/said 2>&1 || { cat /tmp/said; say "it cannot be installed again"; }
        tail -n 1 /etc/centra-cloud/chainfire.toml | grep -q "changed here" || say "an upgrade overwrites settings"
        dpkg -r chainfire > /dev/null 2>&1 || say "it cannot be removed"
        [ ! -e /usr/bin/chainfire ] && [ ! -e /usr/bin/flaredb ] && [ -e /etc/centra-cloud/chainfire.toml ] || say "removing takes too little or too much"
        dpkg -P chainfire > /dev/null 2>&1 || say "it cannot be purged"
        [ "$(cat /var/lib/chainfire/data)" = precious ] || say "a purge deletes data"
        [ ! -e /etc/centra-cloud/chainfire.toml ] || say "a purge leaves settings"
    '
    echo "installing, upgrading, removing and purging leave data and settings as they should"
}

main
