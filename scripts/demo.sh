#!/usr/bin/env bash
# The demo: three nodes of Chainfire on this machine, this machine's package database in them, and the death of a leader; then
# FlareDB: a placement driver and three stores, regions that split, a replica that moves to a fourth store, and the death of a store.
#
#   scripts/demo.sh          stays up until Ctrl-C
#   scripts/demo.sh --once   ends by itself; fails when anything is not as it should be
#   scripts/demo.sh --tls    clients speak TLS too, with certificates on both sides
#
# The nodes talk among themselves under mTLS, with certificates made on the spot, and whoever shows none is refused there;
# so do FlareDB's stores.
# Clients are served plain HTTP on loopback unless --tls is given. What is printed as a command can be pasted as it is.
#
# SERVER=path runs it on another program that takes etcd's flags (bin/etcd, or a real etcd).
set -euo pipefail
cd "$(dirname "$0")/.."

SERVER=${SERVER:-}
HOSTS=(127.0.0.1 127.0.0.2 127.0.0.3)
PD=127.0.0.11
STORES=(127.0.0.21 127.0.0.22 127.0.0.23)
FOURTH=127.0.0.24
CLIENT_PORT=2379
PEER_PORT=2380
GOSSIP_PORT=2381
START_SECONDS=30

once='' tls=''
for word in "$@"; do
    case $word in
        --once) once=1 ;;
        --tls) tls=1 ;;
        *) echo "demo: $word is not understood; there are --once and --tls" >&2 && exit 2 ;;
    esac
done
if [ -n "$tls" ] && [ -n "$SERVER" ]; then
    echo "demo: --tls is for our own program" >&2 && exit 2
fi
SCHEME=http${tls:+s}

folder=
declare -A pids

main() {
    refuse_ports_in_use
    folder=$(mktemp -d -t chainfire-demo-XXXXXX)
    trap 'exit 130' INT TERM
    trap clean_up EXIT
    [ -n "$SERVER" ] || make_certificates
    start_three
    [ -n "$SERVER" ] || knock_without_a_certificate
    [ -n "$SERVER" ] || follow_the_runbook
    load_packages
    read_back
    follow_a_watch
    kill_the_leader
    [ -n "$SERVER" ] || damage_a_file
    [ -n "$SERVER" ] || start_flaredb
    [ -n "$SERVER" ] || split_regions
    [ -n "$SERVER" ] || move_a_replica
    [ -n "$SERVER" ] || kill_a_store
    [ -n "$once" ] || stay
    say "Done."
}

make_certificates() {
    say "Making certificates in $folder/certs"
    # FlareDB's servers have addresses of their own; N of 127.0.0.2N is store N.
    local hosts=(--host "1=$PD") host
    for host in "${STORES[@]}" $FOURTH; do hosts+=(--host "${host: -1}=$host"); done
    scripts/generate-dev-certs.sh "$folder/certs" --nodes 4 "${hosts[@]}" > "$folder/certs.log" || fail "no certificates were made: $(tail -n 3 "$folder/certs.log")"
    openssl x509 -in "$folder/certs/chainfire-node-1.crt" -noout -subject -issuer -enddate
    [ -n "$tls" ] || return 0
    echo "Clients show one too. In another terminal, all commands below need:"
    exports
    # shellcheck disable=SC1090
    source <(exports)
}

# Which certificates clients use.
exports() {
    local program
    for program in ETCDCTL CHAINFIRE FLAREDB; do
        echo "export ${program}_CACERT=$folder/certs/ca.crt ${program}_CERT=$folder/certs/client.crt ${program}_KEY=$folder/certs/client.key"
    done
}

start_three() {
    say "Starting three nodes in $folder"
    local host
    for host in "${HOSTS[@]}"; do start "$host"; done
    for host in "${HOSTS[@]}"; do wait_for "$host"; done
    # A node tells the others its name after it has begun to serve.
    local deadline=$((SECONDS + 5))
    until [ "$(etcdctl --endpoints "$(endpoints)" member list | grep -c ' started,')" = 3 ] || [ $SECONDS -ge $deadline ]; do sleep 0.1; done
    show etcdctl --endpoints "$(endpoints)" member list -w table
}

knock_without_a_certificate() {
    say "Knocking at the ports of Raft and gossip without a certificate"
    local host port
    for host in "${HOSTS[@]}"; do
        for port in $PEER_PORT $GOSSIP_PORT; do knock "$host" "$port"; done
    done
    local deadline=$((SECONDS + START_SECONDS)) client=(bin/chainfire-client --endpoint "$(endpoint "${HOSTS[0]}")")
    until [ "$("${client[@]}" status | grep -c 'gossip=alive')" = ${#HOSTS[@]} ]; do
        [ $SECONDS -lt $deadline ] || fail "gossip does not call all nodes alive:" "${HOSTS[0]}"
        sleep 0.2
    done
    echo "The members know one another there:"
    show "${client[@]}" member-list
}

# knock HOST PORT: without a certificate, and is refused.
knock() {
    local answer
    answer=$(timeout 10 openssl s_client -connect "$1:$2" -CAfile "$folder/certs/ca.crt" -ign_eof < /dev/null 2>&1) || true
    answer=$(grep -om1 'alert certificate required' <<< "$answer") || fail "$1:$2 does not ask for a certificate" "$1"
    echo "$1:$2: $answer"
}

# In a shell that knows nothing but these lines.
follow_the_runbook() {
    say "Following the runbook, line by line"
    runbook > "$folder/runbook"
    env -i PATH="$PATH" HOME="$HOME" bash -ev "$folder/runbook" 2>&1 || fail "a line of the runbook does not work"
}

# What an operator looks at first.
runbook() {
    local client="chainfire-client --endpoint $SCHEME://localhost:$CLIENT_PORT"
    [ -z "$tls" ] || client+=" --cacert $CHAINFIRE_CACERT --cert $CHAINFIRE_CERT --key $CHAINFIRE_KEY"
    cat << TEXT
export PATH=$PWD/bin:\$PATH
$client status
$client status --cluster
$client member-list
$client put greeting hello
$client get greeting
nc -zv ${HOSTS[0]} $CLIENT_PORT  # API port
nc -zv ${HOSTS[0]} $PEER_PORT  # Raft port
nc -zv ${HOSTS[0]} $GOSSIP_PORT  # Gossip port
TEXT
}

load_packages() {
    say "Loading this machine's package database: a key per package and field"
    bin/bench load-dpkg --endpoint "${HOSTS[0]}:$CLIENT_PORT"
}

read_back() {
    say "Reading it back, from a node that did not take the writes"
    show etcdctl --endpoints "$(endpoint "${HOSTS[2]}")" get /dpkg/bash/Version
    show etcdctl --endpoints "$(endpoint "${HOSTS[2]}")" get --prefix /dpkg/bash/ --keys-only --limit 5
    local stored installed
    stored=$(etcdctl --endpoints "$(endpoint "${HOSTS[2]}")" get --print-value-only /dpkg/bash/Version)
    installed=$(dpkg-query -W -f '${Version}' bash)
    [ "$stored" = "$installed" ] || fail "bash is stored as $stored and installed as $installed"
    echo "dpkg itself says the same: bash $installed"
}

follow_a_watch() {
    say "Following a watch on the second node while keys are written through the first"
    echo "\$ etcdctl --endpoints $(endpoint "${HOSTS[1]}") watch --prefix /demo/ &"
    local seen=$folder/watch.log
    etcdctl --endpoints "$(endpoint "${HOSTS[1]}")" watch --prefix /demo/ > "$seen" &
    local watcher=$!
    sleep 1
    local colour
    for colour in red green blue; do
        show etcdctl --endpoints "$(endpoint "${HOSTS[0]}")" put "/demo/$colour" "seen by the watch"
    done
    show etcdctl --endpoints "$(endpoint "${HOSTS[0]}")" del /demo/red
    local deadline=$((SECONDS + 10))
    until [ "$(grep -cE '^(PUT|DELETE)$' "$seen")" = 4 ] || [ $SECONDS -ge $deadline ]; do sleep 0.1; done
    kill "$watcher" && wait "$watcher" 2> /dev/null || true
    echo "The watch saw:"
    indent < "$seen"
    [ "$(grep -cE '^(PUT|DELETE)$' "$seen")" = 4 ] || fail "the watch did not see four events"
}

kill_the_leader() {
    say "Killing the leader under a writer"
    local status leader host survivors=()
    status=$(etcdctl --endpoints "$(endpoints)" endpoint status -w json)
    leader=$(jq -r '.[] | select(.Status.leader == .Status.header.member_id) | .Endpoint' <<< "$status" | head -1)
    leader=${leader#*://} leader=${leader%:*}
    for host in "${HOSTS[@]}"; do [ "$host" = "$leader" ] || survivors+=("$host:$CLIENT_PORT"); done
    [ ${#survivors[@]} = 2 ] || fail "no leader was found"
    echo "The leader is $leader; writing to the two others every 5 ms"
    disown "${pids[$leader]}"
    bin/bench kill-leader --pid "${pids[$leader]}" --endpoints "$(join "${survivors[@]}")"
    say "Starting the dead node again; it catches up by itself"
    start "$leader"
    wait_for "$leader"
    show etcdctl --endpoints "$(endpoints)" endpoint status -w table
}

damage_a_file() {
    say "Damaging a file of a follower; nobody repairs it by hand"
    local status follower='' host file middle byte deadline
    status=$(etcdctl --endpoints "$(endpoints)" endpoint status -w json)
    host=$(jq -r '[.[] | select(.Status.leader != .Status.header.member_id) | .Endpoint][0]' <<< "$status")
    follower=${host#*://} follower=${follower%:*}
    # A node that stops leaves what it has in table files.
    kill "${pids[$follower]}"
    wait "${pids[$follower]}" 2> /dev/null || true
    file=$(find "$folder/$follower" -maxdepth 1 -name '*.sst' -printf '%s %p\n' | sort -rn | head -1 | cut -d ' ' -f 2)
    [ -n "$file" ] || fail "no table file in $folder/$follower"
    middle=$(($(stat -c %s "$file") / 2))
    byte=$(od -An -tu1 -j "$middle" -N1 "$file")
    printf "\\x$(printf %02x $((byte ^ 255)))" | dd of="$file" bs=1 seek="$middle" conv=notrunc status=none
    echo "Flipped byte $middle of $file on $follower; starting it again and asking for a scrub"
    start "$follower"
    deadline=$((SECONDS + START_SECONDS))
    until grep -q 'This member was rebuilt from its peers' "$folder/$follower.log"; do
        [ $SECONDS -lt $deadline ] || fail "the member was not rebuilt:" "$follower"
        # It may have found the damage by itself and be starting again.
        bin/chainfire-client --endpoint "$(endpoint "$follower")" scrub > /dev/null 2>&1 || true
        sleep 0.2
    done
    wait_for "$follower"
    grep -hE 'Damage found|is lost and is rebuilt|was rebuilt from its peers' "$folder/$follower.log" | cut -c 1-160 | indent
    show bin/chainfire-client --endpoint "$(endpoint "${HOSTS[0]}")" status --cluster
    show etcdctl --endpoints "$(endpoint "$follower")" get /dpkg/bash/Version
}

start_flaredb() {
    say "Starting FlareDB: a placement driver and three stores"
    local host deadline=$((SECONDS + START_SECONDS)) client=(bin/flaredb-client --endpoint "$(endpoint $PD)")
    # shellcheck disable=SC2046 # a list of flags
    bin/placement-driver --data-dir "$folder/$PD" --api-addr "$PD:$CLIENT_PORT" --raft-addr "$PD:$PEER_PORT" \
        $(certificates placement-driver-node-1) >> "$folder/$PD.log" 2>&1 &
    pids[$PD]=$!
    # A disk that is 80 % full is given no replicas by default; this one has room for what a demo writes.
    until "${client[@]}" policy set low-space-ratio=0.99 > /dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "the placement driver does not come up:" "$PD"
        sleep 0.2
    done
    for host in "${STORES[@]}"; do start_store "$host"; done
    until "${client[@]}" -o json cluster-status 2> /dev/null | jq -e '.healthy and .operators == 0 and (.stores | length) == 3' > /dev/null; do
        [ $SECONDS -lt $deadline ] || fail "FlareDB does not come up:" "$PD"
        sleep 0.2
    done
    show "${client[@]}" cluster-status
    show bin/flaredb-client --endpoint "$(endpoint "${STORES[0]}")" put test-key "written through one store"
    show bin/flaredb-client --endpoint "$(endpoint "${STORES[2]}")" get test-key
    echo "\$ curl -s $(curl_certificates)$(endpoint $PD)/pd/api/v1/stores | jq -c '.stores[] | {id, state, available, capacity}'"
    pd_page stores | jq -c '.stores[] | {id, state, available, capacity}'
    knock "${STORES[0]}" $PEER_PORT
    knock $PD $PEER_PORT
}

# pd_page PAGE: what the placement driver tells.
pd_page() {
    # shellcheck disable=SC2046 # a list of flags
    eval curl -s $(curl_certificates) "$(endpoint $PD)/pd/api/v1/$1"
}

curl_certificates() { [ -z "$tls" ] || echo '--cacert $FLAREDB_CACERT --cert $FLAREDB_CERT --key $FLAREDB_KEY '; }

# certificates NAME: the flags of a server of FlareDB.
certificates() {
    echo "--tls-cert-file $folder/certs/$1.crt --tls-key-file $folder/certs/$1.key --tls-ca-file $folder/certs/ca.crt" \
        "--tls-api $([ -n "$tls" ] && echo mutual || echo off)"
}

# start_store HOST: on 127.0.0.2N it is store N.
start_store() {
    # shellcheck disable=SC2046 # a list of flags
    bin/flaredb --store-id "${1: -1}" --data-dir "$folder/$1" --pd-addr "$PD:$CLIENT_PORT" --api-addr "$1:$CLIENT_PORT" \
        --raft-addr "$1:$PEER_PORT" $(certificates "flaredb-node-${1: -1}") >> "$folder/$1.log" 2>&1 &
    pids[$1]=$!
}

split_regions() {
    say "Writing four MiB, and wanting regions of one MiB instead of a GiB: they split"
    local client=(bin/flaredb-client --endpoint "$(endpoint $PD)") number key value deadline=$((SECONDS + START_SECONDS))
    # As `scan` prints them: a line for the key, a line for the value.
    for number in $(seq -w 1 40); do
        echo "demo/$number"
        head -c 72000 /dev/urandom | base64 -w 0
        echo
    done > "$folder/pairs"
    while read -r key && read -r value; do
        "${client[@]}" put "$key" "$value" > /dev/null < /dev/null
    done < "$folder/pairs"
    show "${client[@]}" policy set region-split-size=1 max-merge-region-size=0
    until [ "$(pd_page regions | jq '.regions | length')" -ge 4 ]; do
        [ $SECONDS -lt $deadline ] || fail "no region splits:" "$PD"
        sleep 0.2
    done
    show "${client[@]}" regions list
    echo "Each is a Raft group of its own, with a replica on every store; writes go to its leader"
}

move_a_replica() {
    say "Starting a fourth store, and moving a replica there"
    local client=(bin/flaredb-client --endpoint "$(endpoint $PD)") region from said deadline=$((SECONDS + START_SECONDS))
    start_store $FOURTH
    until read -r region from < <(movable) && said=$("${client[@]}" operators add move-peer "$region" "$from" 4 2> /dev/null); do
        [ $SECONDS -lt $deadline ] || fail "no replica can be moved to the fourth store:" "$PD"
        sleep 0.2
    done
    printf '$ %s\n%s\n' "${client[*]} operators add move-peer $region $from 4" "$said"
    until pd_page "region/id/$region" | jq -e --argjson from "$from" '[.peers[].store_id] | index(4) and (index($from) | not)' > /dev/null; do
        [ $SECONDS -lt $deadline ] || fail "the replica does not move:" "$PD"
        sleep 0.2
    done
    echo "The fourth store has it, and store $from has not. Others are moved there too, because it has the fewest:"
    deadline=$((SECONDS + START_SECONDS))
    until "${client[@]}" -o json cluster-status 2> /dev/null | jq -e '.healthy and .operators == 0' > /dev/null; do
        [ $SECONDS -lt $deadline ] || fail "replicas move and move:" "$PD"
        sleep 0.2
    done
    show "${client[@]}" regions list
}

# A region without a replica on the fourth store, and a store with one of its replicas that does not lead.
movable() {
    pd_page regions | jq -r '[.regions[] | select(.leader and all(.peers[]; .store_id != 4))][0]
        | "\(.id) \([.peers[].store_id] - [.leader.store_id] | .[0])"'
}

kill_a_store() {
    say "Killing the store that leads, and writing on"
    local leader survivor began deadline=$((SECONDS + START_SECONDS))
    leader=127.0.0.2$(pd_page regions | jq '.regions[0].leader.store_id')
    survivor=127.0.0.21 && [ "$leader" != "$survivor" ] || survivor=127.0.0.22
    disown "${pids[$leader]}"
    kill -9 "${pids[$leader]}"
    began=$(date +%s%N)
    show bin/flaredb-client --endpoint "$(endpoint "$survivor")" put after "the death of $leader"
    echo "That took $((($(date +%s%N) - began) / 1000000)) ms: the others had to elect a leader"
    start_store "$leader"
    until [ "$(bin/flaredb-client --endpoint "$(endpoint "$leader")" get after 2> /dev/null)" = "the death of $leader" ]; do
        [ $SECONDS -lt $deadline ] || fail "the store does not come back:" "$leader"
        sleep 0.2
    done
    echo "Store ${leader: -1} is back, and has what was written without it; reading everything back through it"
    deadline=$((SECONDS + START_SECONDS))
    until bin/flaredb-client -o json --endpoint "$(endpoint $PD)" cluster-status 2> /dev/null | jq -e .healthy > /dev/null; do
        [ $SECONDS -lt $deadline ] || fail "FlareDB is not well again:" "$PD"
        sleep 0.2
    done
    bin/flaredb-client -o simple --endpoint "$(endpoint "$leader")" scan --prefix demo/ > "$folder/found"
    cmp "$folder/pairs" "$folder/found" || fail "what was read is not what was written" "$leader"
    echo "All $(($(wc -l < "$folder/found") / 2)) pairs under demo/ are as they were written"
    # Leaders that have been silent since may yet tell that the store was away: what is shown is an answer that is well.
    until said=$(bin/flaredb-client --endpoint "$(endpoint $PD)" cluster-status 2> /dev/null); do
        [ $SECONDS -lt $deadline ] || fail "FlareDB is not well again:" "$PD"
        sleep 0.2
    done
    printf '$ %s\n%s\n' "bin/flaredb-client --endpoint $(endpoint $PD) cluster-status" "$said"
}

stay() {
    trap 'exit 0' INT
    say "The cluster stays up until Ctrl-C. In another terminal, try:"
    [ -n "$SERVER" ] || runbook | indent
    [ -z "$tls" ] || exports | indent
    indent << TEXT
export ETCDCTL_ENDPOINTS=$(endpoints)
etcdctl get /dpkg/bash/Description
etcdctl get --prefix /dpkg/lib --keys-only | grep /Version | wc -l
etcdctl watch --prefix /demo/
etcdctl endpoint status -w table
etcdctl --endpoints <the leader's> move-leader <member id>
curl ${tls:+--cacert \$ETCDCTL_CACERT --cert \$ETCDCTL_CERT --key \$ETCDCTL_KEY }$(endpoint "${HOSTS[0]}")/metrics
tail -f $folder/${HOSTS[0]}.log
bin/flaredb-client --endpoint $(endpoint $PD) cluster-status
bin/flaredb-client --endpoint $(endpoint "${STORES[0]}") scan
bin/flaredb-client --endpoint $(endpoint $PD) regions list
bin/flaredb-client --endpoint $(endpoint $PD) explain store 1
bin/flaredb-client --endpoint $(endpoint $PD) drain 4
TEXT
    while :; do sleep 3600 & wait $!; done
}

# start HOST: one node; on 127.0.0.N it is node N.
start() {
    local host=$1 members=() each
    if [ -n "$SERVER" ]; then
        for each in "${HOSTS[@]}"; do members+=("node-${each##*.}=http://$each:$PEER_PORT"); done
        "$SERVER" --name "node-${host##*.}" --data-dir "$folder/$host" \
            --listen-client-urls "http://$host:$CLIENT_PORT" --advertise-client-urls "http://$host:$CLIENT_PORT" \
            --listen-peer-urls "http://$host:$PEER_PORT" --initial-advertise-peer-urls "http://$host:$PEER_PORT" \
            --initial-cluster "$(join "${members[@]}")" --initial-cluster-state new --initial-cluster-token demo \
            >> "$folder/$host.log" 2>&1 &
    else
        for each in "${HOSTS[@]}"; do members+=("${each##*.}=$each:$PEER_PORT"); done
        bin/chainfire --node-id "${host##*.}" --data-dir "$folder/$host" --api-addr "$host:$CLIENT_PORT" \
            --raft-addr "$host:$PEER_PORT" --initial-members "$(join "${members[@]}")" \
            --tls-cert-file "$folder/certs/chainfire-node-${host##*.}.crt" \
            --tls-key-file "$folder/certs/chainfire-node-${host##*.}.key" --tls-ca-file "$folder/certs/ca.crt" \
            --tls-api "$([ -n "$tls" ] && echo mutual || echo off)" >> "$folder/$host.log" 2>&1 &
    fi
    pids[$host]=$!
}

# wait_for HOST: until it answers a linearizable read.
wait_for() {
    local deadline=$((SECONDS + START_SECONDS))
    until etcdctl --endpoints "$(endpoint "$1")" --command-timeout 2s get / > /dev/null 2>&1; do
        kill -0 "${pids[$1]}" 2> /dev/null || fail "the node on $1 ended:" "$1"
        [ $SECONDS -lt $deadline ] || fail "the node on $1 does not answer after $START_SECONDS s:" "$1"
        sleep 0.2
    done
}

refuse_ports_in_use() {
    local host
    for host in "${HOSTS[@]}"; do
        refuse_in_use "$host" "$CLIENT_PORT"
        refuse_in_use "$host" "$PEER_PORT"
        [ -n "$SERVER" ] || refuse_in_use "$host" "$GOSSIP_PORT"
    done
    [ -z "$SERVER" ] || return 0
    for host in "$PD" "${STORES[@]}" "$FOURTH"; do
        refuse_in_use "$host" "$CLIENT_PORT"
        refuse_in_use "$host" "$PEER_PORT"
    done
}

refuse_in_use() {
    if (exec 3<> "/dev/tcp/$1/$2") 2> /dev/null; then
        echo "demo: $1:$2 is in use$(holder "$2"); stop what runs there and try again" >&2
        exit 1
    fi
}

# holder PORT: who listens there, where that can be found out.
holder() {
    local found
    found=$(ss -Hltnp "sport = :$1" 2> /dev/null | grep -o 'users:((.*' | head -1 | sed -E 's/users:\(\("([^"]*)",pid=([0-9]+).*/ by \1 (process \2)/') || true
    echo "$found"
}

clean_up() {
    local pid
    for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
    # Nothing is kept, so a node that takes its time is not waited for.
    (sleep 2 && kill -9 "${pids[@]}") 2> /dev/null &
    local impatience=$!
    for pid in "${pids[@]}"; do wait "$pid" 2> /dev/null || true; done
    kill "$impatience" 2> /dev/null || true
    rm -rf "$folder"
}

# endpoint HOST: where clients reach it.
endpoint() { echo "$SCHEME://$1:$CLIENT_PORT"; }
endpoints() {
    local each=() host
    for host in "${HOSTS[@]}"; do each+=("$(endpoint "$host")"); done
    join "${each[@]}"
}
join() { local IFS=,; echo "$*"; }
say() { printf '\n\e[1m%s\e[0m\n' "$*"; }
indent() { sed 's/^/    /'; }
show() { echo "\$ $*" && "$@"; }

# fail MESSAGE [HOST]: says what is wrong, with the end of the node's log.
fail() {
    echo "demo: $1" >&2
    [ -z "${2:-}" ] || tail -n 8 "$folder/$2.log" >&2
    exit 1
}

main
