//! The runbook's commands, word for word, by section. What stands in capitals is for the operator to fill in, and for a
//! test by [`fill`]. Comments between commands are kept where they tell the reader what to look for.
//!
//! A line that no scenario uses is reported by the compiler. Those of FlareDB are in `flaredb::book`.

/// A command with its placeholders filled in.
pub fn fill(text: &str, places: &[(&str, &str)]) -> String {
    places.iter().fold(text.to_owned(), |text, (place, value)| {
        assert!(text.contains(place), "{place} does not occur in {text}");
        text.replace(place, value)
    })
}

/// Quick Diagnostics.
pub mod quick {
    pub const STATUS: &str = "chainfire-client --endpoint http://NODE_IP:2379 status";
    pub const MEMBER_LIST: &str = "chainfire-client --endpoint http://NODE_IP:2379 member-list";
    pub const SERVICE_STATUS: &str = "systemctl status chainfire";
    pub const PORTS: &str = "\
nc -zv NODE_IP 2379  # API port
nc -zv NODE_IP 2380  # Raft port
nc -zv NODE_IP 2381  # Gossip port";
    pub const RESOURCES: &str = "\
top -bn1 | head -20
df -h
iostat -x 1 5";
    pub const RECENT_LOGS: &str = "journalctl -u chainfire -n 100 --no-pager";
}

/// Issue: Node Cannot Join Cluster.
pub mod joining {
    pub const CONNECTIVITY: &str = "nc -zv NEW_NODE_IP 2380";
    pub const LISTENING: &str = r#"ssh NEW_NODE_IP "ss -tlnp | grep 2380""#;
    pub const FIREWALL: &str = r#"ssh NEW_NODE_IP "sudo iptables -L -n | grep 2380""#;
    pub const TLS_CONFIGURATION: &str =
        r#"ssh NEW_NODE_IP "grep -A5 '\[network.tls\]' /etc/centra-cloud/chainfire.toml""#;
    pub const LEADER_LOGS: &str = r#"ssh LEADER_NODE "journalctl -u chainfire -n 50 | grep -i 'add.*node'""#;
    pub const OPEN_FIREWALL: &str = "\
sudo firewall-cmd --permanent --add-port=2379/tcp
sudo firewall-cmd --permanent --add-port=2380/tcp
sudo firewall-cmd --permanent --add-port=2381/tcp
sudo firewall-cmd --reload";
    pub const CERTIFICATES: &str = "sudo ls -l /etc/centra-cloud/certs/";
    pub const CERTIFICATE: &str = "openssl x509 -in /etc/centra-cloud/certs/chainfire-node-N.crt -noout -text";
    pub const EDIT: &str = "sudo vi /etc/centra-cloud/chainfire.toml";
    pub const RESTART: &str = "sudo systemctl restart chainfire";
}

/// Issue: No Leader / Leader Election Fails.
pub mod leaderless {
    pub const MEMBERS: &str = "chainfire-client --endpoint http://NODE1_IP:2379 member-list";
    pub const RAFT_STATE: &str = r#"for node in node1 node2 node3; do
  echo "=== $node ==="
  ssh $node "journalctl -u chainfire -n 20 | grep -i 'raft\|leader\|election'"
done"#;
    pub const PARTITION: &str = r#"for node in node1 node2 node3; do
  for peer in node1 node2 node3; do
    echo "$node -> $peer:"
    ssh $node "ping -c 3 $peer"
  done
done"#;
    pub const QUORUM: &str = r#"RUNNING_NODES=$(for node in node1 node2 node3; do ssh $node "systemctl is-active chainfire" 2>/dev/null; done | grep -c active)
echo "Running nodes: $RUNNING_NODES (need >= 2 for quorum)""#;
    pub const START_MAJORITY: &str = r#"# Start majority of nodes
ssh node1 "sudo systemctl start chainfire"
ssh node2 "sudo systemctl start chainfire"

# Wait for leader election
sleep 10

# Verify leader elected
chainfire-client --endpoint http://node1:2379 status | grep leader"#;
    pub const RESTART_ISOLATED: &str = r#"ssh ISOLATED_NODE "sudo systemctl restart chainfire""#;
    pub const SPLIT_BRAIN: &str = r#"# DANGER: This wipes follower data
# Stop all nodes
for node in node1 node2 node3; do
  ssh $node "sudo systemctl stop chainfire"
done

# Keep only the node with highest raft_index
# Wipe others
ssh node2 "sudo rm -rf /var/lib/chainfire/*"
ssh node3 "sudo rm -rf /var/lib/chainfire/*"

# Restart leader (node1 in this example)
ssh node1 "sudo systemctl start chainfire"
sleep 10"#;
    pub const RE_ADD_FOLLOWERS: [&str; 2] = [
        "chainfire-client --endpoint http://node1:2379 member-add --node-id 2 --peer-url node2:2380",
        "chainfire-client --endpoint http://node1:2379 member-add --node-id 3 --peer-url node3:2380",
    ];
    pub const START_FOLLOWERS: &str = r#"ssh node2 "sudo systemctl start chainfire"
ssh node3 "sudo systemctl start chainfire""#;
}

/// Issue: High Write Latency.
pub mod latency {
    pub const DISK: &str = "iostat -x 1 10";
    pub const REPLICATION_LAG: &str = "chainfire-client --endpoint http://LEADER_IP:2379 status";
    pub const NETWORK: &str = r#"for node in node1 node2 node3; do
  echo "=== $node ==="
  ping -c 10 $node
done"#;
    pub const CPU: &str = "top -bn1 | grep chainfire";
    pub const STALLS: &str = "journalctl -u chainfire -n 500 | grep -i stall";
    pub const DATA_DIRECTORY: &str = "\
df -h /var/lib/chainfire
mount | grep /var/lib/chainfire";
    pub const ROCKSDB_SETTINGS: &str = "\
[storage]
# Increase write buffer size
write_buffer_size = 134217728  # 128MB (default: 64MB)
# Increase block cache
block_cache_size = 536870912   # 512MB (default: 256MB)";
    pub const DIRECT_IO: &str = "use_direct_io_for_flush_and_compaction = true";
    pub const RESTART: &str = "sudo systemctl restart chainfire";
    pub const MTU: &str = "ip link show | grep mtu";
    pub const TICK: &str = "\
[raft]
tick_interval_ms = 200  # Increase from default 100ms";
}

/// Issue: Data Inconsistency After Crash.
pub mod inconsistency {
    pub const STOP: &str = "sudo systemctl stop chainfire";
    pub const REPAIR: &str = "rocksdb_ldb --db=/var/lib/chainfire repair";
    pub const CHECK: &str = "rocksdb_ldb --db=/var/lib/chainfire checkconsistency";
    pub const START: &str = "sudo systemctl start chainfire";
    pub const WATCH: &str =
        r#"watch -n 1 "chainfire-client --endpoint http://localhost:2379 status | grep raft_index""#;
    pub const RESTORE: &str = r#"# Restore from backup
sudo systemctl stop chainfire
sudo mv /var/lib/chainfire /var/lib/chainfire.corrupted
sudo mkdir -p /var/lib/chainfire

# Extract latest backup
LATEST_BACKUP=$(ls -t /var/backups/chainfire/*.tar.gz | head -1)
sudo tar -xzf "$LATEST_BACKUP" -C /var/lib/chainfire --strip-components=1

# Fix permissions
sudo chown -R chainfire:chainfire /var/lib/chainfire

# Restart
sudo systemctl start chainfire"#;
    pub const REMOVE: &str = "chainfire-client --endpoint http://LEADER_IP:2379 member-remove --node-id FAILED_NODE_ID";
    pub const WIPE: &str = "\
sudo systemctl stop chainfire
sudo rm -rf /var/lib/chainfire/*
sudo systemctl start chainfire";
    pub const RE_ADD: &str = r"chainfire-client --endpoint http://LEADER_IP:2379 member-add \
  --node-id FAILED_NODE_ID \
  --peer-url FAILED_NODE_IP:2380 \
  --learner";
    pub const PROMOTE: &str =
        "chainfire-client --endpoint http://LEADER_IP:2379 member-promote --node-id FAILED_NODE_ID";
}

/// Issue: TLS Handshake Failures.
pub mod tls {
    pub const FILES: &str = "ls -l /etc/centra-cloud/certs/";
    pub const VALIDITY: &str = "openssl x509 -in /etc/centra-cloud/certs/chainfire-node-1.crt -noout -dates";
    pub const ISSUER: &str = "\
openssl x509 -in /etc/centra-cloud/certs/ca.crt -noout -subject
openssl x509 -in /etc/centra-cloud/certs/chainfire-node-1.crt -noout -issuer";
    pub const CONNECTION: &str = r"openssl s_client -connect NODE_IP:2379 \
  -CAfile /etc/centra-cloud/certs/ca.crt \
  -cert /etc/centra-cloud/certs/chainfire-node-1.crt \
  -key /etc/centra-cloud/certs/chainfire-node-1.key";
    pub const REGENERATE: &str = r#"# Regenerate certificates
cd /path/to/centra-cloud
./scripts/generate-dev-certs.sh /etc/centra-cloud/certs

# Distribute to all nodes
for node in node1 node2 node3; do
  scp /etc/centra-cloud/certs/* $node:/etc/centra-cloud/certs/
done

# Restart services
for node in node1 node2 node3; do
  ssh $node "sudo systemctl restart chainfire"
done"#;
    pub const SAME_CA: &str = r#"# On CA-generating node:
./scripts/generate-dev-certs.sh /tmp/new-certs

# Distribute to all nodes
for node in node1 node2 node3; do
  scp /tmp/new-certs/* $node:/etc/centra-cloud/certs/
  ssh $node "sudo chown -R chainfire:chainfire /etc/centra-cloud/certs"
  ssh $node "sudo chmod 600 /etc/centra-cloud/certs/*.key"
done

# Restart all services
for node in node1 node2 node3; do
  ssh $node "sudo systemctl restart chainfire"
done"#;
    /// How both end.
    pub const RESTART_ALL: &str = r#"for node in node1 node2 node3; do
  ssh $node "sudo systemctl restart chainfire"
done"#;
    pub const PERMISSIONS: &str = "\
# Fix certificate file permissions
sudo chown chainfire:chainfire /etc/centra-cloud/certs/*
sudo chmod 644 /etc/centra-cloud/certs/*.crt
sudo chmod 600 /etc/centra-cloud/certs/*.key

# Restart service
sudo systemctl restart chainfire";
}

/// Chainfire Performance Optimization.
pub mod tuning {
    pub const WRITE_HEAVY: &str = "\
[storage]
# Increase write buffer
write_buffer_size = 134217728  # 128MB

# More write buffers
max_write_buffer_number = 4

# Larger block cache for hot data
block_cache_size = 1073741824  # 1GB

# Reduce compaction frequency
level0_file_num_compaction_trigger = 8  # Default: 4";
    pub const READ_HEAVY: &str = "\
[storage]
# Larger block cache
block_cache_size = 2147483648  # 2GB

# Enable bloom filters
bloom_filter_bits_per_key = 10

# More table cache
max_open_files = 10000  # Default: 1000";
    pub const LOW_LATENCY: &str = "\
[raft]
# Reduce tick interval
tick_interval_ms = 50  # Default: 100

[storage]
# Enable direct I/O
use_direct_io_for_flush_and_compaction = true";
}

/// Monitoring & Alerts: the expressions of its queries and alerts. The alerts themselves are tested with their rules.
pub mod monitoring {
    pub const EXPRESSIONS: [&str; 5] = [
        "histogram_quantile(0.99, rate(chainfire_write_duration_seconds_bucket[5m]))",
        r#"chainfire_raft_index{role="leader"} - chainfire_raft_index{role="follower"}"#,
        "chainfire_has_leader == 0",
        "histogram_quantile(0.99, rate(chainfire_write_duration_seconds_bucket[5m])) > 0.5",
        r#"up{job="chainfire"} == 0"#,
    ];
    /// The expression of ChainfireHighWriteLatency holds above so many seconds.
    pub const HIGH_LATENCY_SECONDS: f64 = 0.5;
    pub const KEY_METRICS: [&str; 2] = ["raft_index", "raft_term"];
}

/// Log Analysis.
pub mod logs {
    pub const ERRORS: &str = r#"journalctl -u chainfire --since "1 hour ago" | grep ERROR"#;
    pub const COUNT_ERRORS: &str =
        r#"journalctl -u chainfire --since "1 day ago" | grep ERROR | awk '{print $NF}' | sort | uniq -c | sort -rn"#;
    pub const LEADER_CHANGES: &str = r#"journalctl -u chainfire | grep "Leader elected" | tail -20"#;
    pub const SLOW: &str = "journalctl -u chainfire -n 10000 | grep -E 'latency=[0-9]{3,}ms'";
    pub const CONNECTION_ERRORS: &str =
        r"journalctl -u chainfire -n 5000 | grep -i 'connection refused\|timeout\|unreachable'";
    pub const LAG: &str = r"journalctl -u chainfire | grep -i 'lag\|behind\|catch.*up'";
}
