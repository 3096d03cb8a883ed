#!/usr/bin/env bash
# Certificates for a cluster whose operator has no certificate authority: one CA, a pair for each node, one for clients.
#
# The CA in DIR is made once and kept; everything else is made anew in each run, which is also how certificates that expired
# are replaced. What earlier runs were told (nodes, hosts, a separate CA for clients) is read from the certificates that
# lie in DIR, so a run without options renews all of it. A file is replaced whole, under its final name, by a rename.
#
# `scp DIR/*` brings a node what it needs, and what it must not have is out of its reach: the keys of CAs lie in DIR/.ca.
#
# The first DNS name of a certificate is the name of its member: on Raft and gossip that is what the peers check, and they
# check nothing else. Nodes that are started with etcd's flags have numbers that nobody chose; their certificates (--by-host)
# have no such name, and the peers check the host.
set -euo pipefail

usage() {
    cat << 'TEXT'
usage: scripts/generate-dev-certs.sh DIR [options]

Makes in DIR, with EC P-256 keys (keys mode 0600, certificates 0644):
  ca.crt .ca/ca.key                the CA; kept when it is there, and its certificate renewed when it runs out
  chainfire-node-N.crt .key        for the nodes N of Chainfire, as server and as client
  flaredb-node-N.crt .key          for the nodes N of FlareDB
  placement-driver-node-N.crt .key for the members N of FlareDB's placement driver
  client.crt .key                  for chainfire-client, curl, Prometheus
  .bundles/NAME/                   what the host of NAME needs, and no more: ca.crt and its own pair

options:
  --nodes COUNT      so many nodes of each kind (3)
  --pd COUNT         so many members of the placement driver (1)
  --host N=NAME      a further name or IP address of the host of node N, kept by later runs; repeat it
  --days DAYS        how long the certificates are valid (365); the CA's ten years
  --by-host          Chainfire's certificates name the host, and no number: for nodes that are started with etcd's flags.
                     Kept by later runs; --by-number takes it back
  --client-ca        clients get a CA of their own, client-ca.crt and .ca/client-ca.key, for `client_ca_file`
  --force-ca         a new CA; the old one is kept as ca.old.crt and .ca/ca.old.key, and ca-both.crt holds the two
  --help

The certificate of node N is valid for chainfire-node-N, nodeN, node-N, localhost, 127.0.0.N, 127.0.0.1 and its --host;
those of FlareDB likewise, for flaredb-node-N and placement-driver-node-N. With --by-host it lacks chainfire-node-N, and the
members reach each other by one of the other names (localhost and 127.0.0.1 are nobody's).
TEXT
}

CA_DAYS=3650
NODES_MAX=254

main() {
    local directory='' nodes=0 drivers=0 days=365 client_ca='' force_ca='' by_host=''
    declare -gA hosts=()
    parse "$@"
    command -v openssl > /dev/null || fail "openssl is not installed (as root: apt-get install openssl)"
    umask 022
    { mkdir -p "$directory" && cd "$directory"; } || fail "$directory cannot be made or entered"
    umask 077
    scratch=$(mktemp -d .making-XXXXXX) || fail "$directory cannot be written"
    trap 'rm -rf "$scratch"' EXIT
    mkdir -p "$scratch/.ca"
    put_away
    [ -n "$by_host" ] || ! were_by_host || by_host=yes

    local had_ca=''
    [ ! -e ca.crt ] || had_ca=1
    authority ca "Centra development CA" "$force_ca"
    [ -z "$client_ca" ] && [ ! -e client-ca.crt ] || authority client-ca "Centra development client CA" "$force_ca"
    local clients=ca
    [ ! -e client-ca.crt ] || clients=client-ca

    local kind number
    for kind in chainfire flaredb; do
        for number in $(seq "$(count_nodes "$kind")"); do
            certify ca "$kind-node-$number" serverAuth,clientAuth "$(names_of "$kind-node-$number" "$number")"
        done
    done
    kind=placement-driver
    for number in $(seq "$(count "$kind" $((drivers > 0 ? drivers : 1)))"); do
        certify ca "$kind-node-$number" serverAuth,clientAuth "$(names_of "$kind-node-$number" "$number" DNS:placement-driver)"
    done
    certify "$clients" client clientAuth DNS:client
    bundle_all
    next_steps
}

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) usage && exit 0 ;;
            --nodes) need_number "$1" "${2:-}" 1 $NODES_MAX && nodes=$((10#$2)) && shift ;;
            --pd) need_number "$1" "${2:-}" 1 $NODES_MAX && drivers=$((10#$2)) && shift ;;
            --days) need_number "$1" "${2:-}" 0 $CA_DAYS && days=$((10#$2)) && shift ;;
            --host) remember_host "${2:-}" && shift ;;
            --client-ca) client_ca=1 ;;
            --by-host) by_host=yes ;;
            --by-number) by_host=no ;;
            --force-ca) force_ca=1 ;;
            --nodes=* | --pd=* | --days=* | --host=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
            -*) fail "$1 is not understood; see --help" ;;
            *)
                [ -z "$directory" ] || fail "one folder is enough: $directory or $1?"
                directory=$1
                ;;
        esac
        shift
    done
    [ -n "$directory" ] || fail "name the folder for the certificates; see --help"
}

# need_number FLAG VALUE MIN MAX
need_number() {
    if [[ $2 =~ ^[0-9]{1,4}$ ]] && [ "$((10#$2))" -ge "$3" ] && [ "$((10#$2))" -le "$4" ]; then return; fi
    fail "$1 takes a number from $3 to $4"
}

remember_host() {
    [[ $1 =~ ^([0-9]{1,3})=([A-Za-z0-9.:_-]+)$ ]] || fail "--host takes N=NAME or N=ADDRESS, such as 1=10.0.0.1, not '$1'"
    local node=$((10#${BASH_REMATCH[1]})) name=${BASH_REMATCH[2]}
    need_number "--host $1: the node" "$node" 1 $NODES_MAX
    hosts[$node]+=" $(alternative_name "$name")"
}

alternative_name() {
    if [[ $1 =~ ^[0-9]+(\.[0-9]+){3}$ || $1 == *:* ]]; then echo "IP:$1"; else echo "DNS:$1"; fi
}

# count KIND ASKED: those asked for, but never fewer than there are certificates.
count() {
    local count=$2 file
    for file in "$1"-node-*.crt; do
        [[ $file =~ -node-([0-9]{1,3})\.crt$ ]] || continue
        [ "${BASH_REMATCH[1]}" -le "$count" ] || [ "${BASH_REMATCH[1]}" -gt $NODES_MAX ] || count=${BASH_REMATCH[1]}
    done
    echo "$count"
}

# count_nodes KIND: likewise, and those that have a host; three when nobody said.
count_nodes() {
    local count file
    count=$(count "$1" "$nodes")
    if [ "$nodes" = 0 ] && [ "$count" -lt 3 ]; then count=3; fi
    for file in "${!hosts[@]}"; do [ "$file" -le "$count" ] || count=$file; done
    echo "$count"
}

# names_of NAME NUMBER [MORE]: all that a node's certificate is valid for, its member's name first.
names_of() {
    local names=("DNS:$1" "DNS:node$2" "DNS:node-$2" DNS:localhost "IP:127.0.0.$2" IP:127.0.0.1)
    local -A seen=()
    [[ $1 != chainfire-* || $by_host != yes ]] || seen["DNS:$1"]=1
    local name out=()
    # shellcheck disable=SC2086 # lists of words
    for name in "${names[@]}" ${3:-} ${hosts[$2]:-} $(names_in "$1.crt"); do
        [ -z "${seen[$name]:-}" ] || continue
        seen[$name]=1
        out+=("$name")
    done
    (IFS=, && echo "${out[*]}")
}

# names_in FILE: what a certificate of an earlier run was valid for.
names_in() {
    [ -e "$1" ] || return 0
    openssl x509 -in "$1" -noout -text 2> /dev/null | sed -n '/Subject Alternative Name/{n;s/IP Address:/IP:/g;s/,//g;p;}' || true
}

# Whether Chainfire's certificates of an earlier run named hosts alone.
were_by_host() {
    local names
    names=$(names_in chainfire-node-1.crt)
    [ -n "$names" ] && [[ " $names " != *" DNS:chainfire-node-1 "* ]]
}

# Keys of CAs, and folders, that somebody has left among the files.
put_away() {
    mkdir -p .ca
    local name
    for name in ca.key ca.old.key client-ca.key client-ca.old.key; do
        [ ! -e "$name" ] || mv -n "$name" .ca/
    done
    rm -rf bundles
}

# authority NAME SUBJECT FORCE: makes NAME.crt and its key unless they are there.
authority() {
    local name=$1 key=.ca/$1.key force=$3
    if [ -n "$force" ] && [ -e "$key" ] && [ -e "$name.crt" ]; then
        cp "$name.crt" "$scratch/$name.old.crt" && publish "$name.old.crt"
        cp "$key" "$scratch/.ca/$name.old.key" && publish ".ca/$name.old.key"
    elif [ -e "$key" ] && [ -e "$name.crt" ] && [ -z "$force" ]; then
        keep_authority "$name"
        return
    elif [ -e "$key" ] || { [ -e "$name.crt" ] && [ -z "$force" ]; }; then
        fail "only one of $name.crt and $key is in $directory: bring the other one back, or move it away and take --force-ca for a new CA"
    fi
    # The number tells CAs apart for those who compare subject and issuer.
    local subject="/O=Centra/CN=$2 $(openssl rand -hex 4)"
    extensions_of_authority
    openssl_quietly req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -subj "$subject" \
        -keyout "$scratch/$key" -out "$scratch/request"
    openssl_quietly x509 -req -in "$scratch/request" -signkey "$scratch/$key" -sha256 -days $CA_DAYS \
        -set_serial "$(serial)" -extfile "$scratch/extensions" -out "$scratch/$name.crt"
    publish "$key"
    publish "$name.crt"
    if [ -n "$force" ] && [ -e "$name.old.crt" ]; then
        cat "$name.crt" "$name.old.crt" > "$scratch/$name-both.crt" && publish "$name-both.crt"
    fi
}

# Checks a CA that is there; one that ends before what it would sign is signed again, with its own key and name.
keep_authority() {
    local name=$1 key=.ca/$1.key
    local of_certificate of_key
    of_certificate=$(openssl x509 -in "$name.crt" -noout -pubkey 2> /dev/null) || fail "$directory/$name.crt is no certificate"
    of_key=$(openssl pkey -in "$key" -pubout 2> /dev/null) || fail "$directory/$key is no private key that can be read"
    [ "$of_certificate" = "$of_key" ] || fail "$directory/$key does not belong to $name.crt"
    chmod 0600 "$key"
    openssl x509 -in "$name.crt" -noout -checkend $((days * 86400)) > /dev/null && return
    local subject issuer
    subject=$(openssl x509 -in "$name.crt" -noout -subject)
    issuer=$(openssl x509 -in "$name.crt" -noout -issuer)
    [ "${subject#subject}" = "${issuer#issuer}" ] || fail "$directory/$name.crt ends within $days days and another CA has signed it: renew it there, or take fewer --days"
    extensions_of_authority
    openssl_quietly x509 -x509toreq -in "$name.crt" -signkey "$key" -out "$scratch/request"
    openssl_quietly x509 -req -in "$scratch/request" -signkey "$key" -sha256 -days $CA_DAYS \
        -set_serial "$(serial)" -extfile "$scratch/extensions" -out "$scratch/$name.crt"
    publish "$name.crt"
    echo "renewed: $name.crt, with the same key and name"
}

extensions_of_authority() {
    cat > "$scratch/extensions" << 'TEXT'
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
TEXT
}

# certify CA NAME USAGES NAMES: makes NAME.crt and NAME.key.
certify() {
    cat > "$scratch/extensions" << TEXT
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = $3
subjectAltName = $4
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
TEXT
    openssl_quietly req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -subj "/O=Centra/CN=$2" \
        -keyout "$scratch/$2.key" -out "$scratch/request"
    openssl_quietly x509 -req -in "$scratch/request" -CA "$1.crt" -CAkey ".ca/$1.key" -sha256 -days "$days" \
        -set_serial "$(serial)" -extfile "$scratch/extensions" -out "$scratch/$2.crt"
    publish "$2.key"
    publish "$2.crt"
}

# publish NAME: from the scratch folder to its place, with its mode.
publish() {
    case $1 in
        *.key) chmod 0600 "$scratch/$1" ;;
        *) chmod 0644 "$scratch/$1" ;;
    esac
    mv -f "$scratch/$1" "$1"
}

bundle_all() {
    local certificate name file
    rm -rf .bundles
    for certificate in *-node-*.crt client.crt; do
        name=${certificate%.crt}
        [ -e "$name.key" ] || continue
        mkdir -p ".bundles/$name"
        for file in ca.crt client-ca.crt "$name.crt" "$name.key"; do
            [ ! -e "$file" ] || cp -p "$file" ".bundles/$name/"
        done
    done
}

bundles_of() { find .bundles -maxdepth 1 -name "$1-node-*" | wc -l; }

serial() { echo "0x4$(openssl rand -hex 15)"; }

openssl_quietly() {
    openssl "$@" > "$scratch/said" 2>&1 || { cat "$scratch/said" >&2; fail "openssl $1 failed; what was made before is untouched"; }
}

next_steps() {
    local here=$PWD
    if [ -n "$force_ca" ] && [ -n "$had_ca" ]; then
        cat << TEXT
A new CA: nobody trusts it yet. Without a gap it is rolled out in three steps, each to every host before the next:
  1. $here/ca-both.crt as its ca.crt      2. its pair from $here/.bundles/     3. $here/ca.crt as its ca.crt
TEXT
    fi
    cat << TEXT
Certificates for nodes ($(bundles_of chainfire) of Chainfire, $(bundles_of flaredb) of FlareDB, $(bundles_of placement-driver) of the placement driver) and for clients are in
$here, valid for $days days.
Next, for each node N:
  scp $here/.bundles/chainfire-node-N/* nodeN:/etc/centra-cloud/certs/
  ssh nodeN 'sudo chown chainfire:chainfire /etc/centra-cloud/certs/* && sudo chmod 600 /etc/centra-cloud/certs/*.key'
TEXT
    local certs=/etc/centra-cloud/certs clients=ca.crt
    [ ! -e client-ca.crt ] || clients=client-ca.crt
    if [ "$by_host" = yes ]; then
        cat << TEXT
and to its flags (https:// in all URLs, and in them a host that its certificate names):
  --cert-file=$certs/chainfire-node-N.crt --key-file=$certs/chainfire-node-N.key
  --client-cert-auth --trusted-ca-file=$certs/$clients --peer-trusted-ca-file=$certs/ca.crt
TEXT
    else
        cat << TEXT
and in its /etc/centra-cloud/chainfire.toml:
  [network.tls]
  cert_file = "$certs/chainfire-node-N.crt"
  key_file = "$certs/chainfire-node-N.key"
  ca_file = "$certs/ca.crt"
TEXT
        [ ! -e client-ca.crt ] || echo "  client_ca_file = \"$certs/client-ca.crt\""
    fi
    cat << TEXT
FlareDB: likewise its bundles, flaredb-node-N and placement-driver-node-N, to the user flaredb, and the three files in the
section [tls] of flaredb.toml and placement-driver.toml: either all of them speak TLS, or none does.
Then: chainfire-client --endpoint https://node1:2379 --cacert $here/ca.crt --cert $here/client.crt --key $here/client.key status
Keep .ca where no server runs: whoever has its keys can make certificates for any node.
TEXT
}

fail() {
    echo "generate-dev-certs: $1" >&2
    exit 1
}

main "$@"
