//! The runbook's commands for FlareDB and its placement driver, word for word, by section, and what else it and its contract
//! promise of them: log lines, error texts, metrics, alerts, documents.
//!
//! A line that no scenario uses is reported by the compiler; what cannot be run yet stands in [`NOT_RUN`], with the reason.

/// Quick Diagnostics.
pub mod quick {
    pub const STATUS: &str = "flaredb-client --endpoint http://PD_IP:2379 cluster-status";
    pub const STORES: &str = "curl http://PD_IP:2379/pd/api/v1/stores | jq '.stores[] | {id, state, capacity}'";
    pub const SERVICE_STATUS: &str = "systemctl status flaredb";
    pub const PORTS: &str = "\
nc -zv NODE_IP 2379  # API port
nc -zv NODE_IP 2380  # Raft port";
    pub const RECENT_LOGS: &str = "journalctl -u flaredb -n 100 --no-pager";
}

/// Issue: Store Not Registering with PD.
pub mod registering {
    pub const CONNECTIVITY: &str = r#"ssh FLAREDB_NODE "nc -zv PD_IP 2379""#;
    pub const ADDRESS: &str = r#"ssh FLAREDB_NODE "grep pd_addr /etc/centra-cloud/flaredb.toml""#;
    pub const STORE_LOGS: &str = r#"ssh FLAREDB_NODE "journalctl -u flaredb -n 100 | grep -i 'pd\|register'""#;
    pub const PD_LOGS: &str = r#"ssh PD_NODE "journalctl -u placement-driver -n 100 | grep -i register""#;
    pub const UNIQUE: &str = "curl http://PD_IP:2379/pd/api/v1/stores | jq '.stores[] | .id'";
    pub const OPEN_FIREWALL: &str = r#"# Open firewall on PD node
ssh PD_NODE "sudo firewall-cmd --permanent --add-port=2379/tcp"
ssh PD_NODE "sudo firewall-cmd --reload"

# Restart store
ssh FLAREDB_NODE "sudo systemctl restart flaredb""#;
    pub const NEW_ID: &str = r#"ssh FLAREDB_NODE "sudo vi /etc/centra-cloud/flaredb.toml""#;
    pub const WIPE: &str = r#"# Wipe old data (contains old store_id)
ssh FLAREDB_NODE "sudo rm -rf /var/lib/flaredb/*"

# Restart
ssh FLAREDB_NODE "sudo systemctl restart flaredb""#;
    pub const SETTINGS: &str = r#"ssh FLAREDB_NODE "sudo vi /etc/centra-cloud/flaredb.toml""#;
    /// What is to stand there if PD uses TLS.
    pub const TLS: &str = r#"
[tls]
cert_file = "/etc/centra-cloud/certs/flaredb-node-N.crt"
key_file = "/etc/centra-cloud/certs/flaredb-node-N.key"
ca_file = "/etc/centra-cloud/certs/ca.crt"
"#;
    pub const RESTART: &str = r#"ssh FLAREDB_NODE "sudo systemctl restart flaredb""#;
    pub const ERROR: &str = "failed to register with PD";
}

/// Issue: Region Rebalancing Stuck.
pub mod stuck {
    pub const REGION_STATS: &str = "curl http://PD_IP:2379/pd/api/v1/stats/region | jq";
    pub const CAPACITY: &str =
        "curl http://PD_IP:2379/pd/api/v1/stores | jq '.stores[] | {id, state, available, capacity}'";
    pub const OPERATORS: &str = "curl http://PD_IP:2379/pd/api/v1/operators | jq";
    pub const SCHEDULE: &str = "curl http://PD_IP:2379/pd/api/v1/config/schedule | jq";
    pub const DOWN: &str = r#"curl http://PD_IP:2379/pd/api/v1/stores | jq '.stores[] | select(.state!="Up")'"#;
    pub const RESTART_DOWN: &str = r#"ssh DOWN_STORE_NODE "sudo systemctl restart flaredb""#;
    pub const REMOVE: &str = "curl -X DELETE http://PD_IP:2379/pd/api/v1/store/DOWN_STORE_ID";
    pub const FULL: &str =
        "curl http://PD_IP:2379/pd/api/v1/stores | jq '.stores[] | select((.available / .capacity) < 0.1)'";
    pub const SCHEDULERS: &str = "curl http://PD_IP:2379/pd/api/v1/config/schedule | jq '.schedulers'";
    pub const LIMITS: &str = r#"curl -X POST http://PD_IP:2379/pd/api/v1/config/schedule \
  -d '{"max-snapshot-count": 3, "max-pending-peer-count": 16}'"#;
    pub const ERROR: &str = "failed to schedule operator";
}

/// The contract: the further calls of the placement driver that operators use, below `/pd/api/v1/`.
pub mod operations {
    /// One store, one region, and a page of regions, as [`READ`] has them.
    pub const STORE: &str = r#"{"id": 0, "state": "", "address": "", "capacity": 0, "available": 0, "region_count": 0, "leader_count": 0,
          "last_heartbeat_unix_seconds": 0, "uptime_seconds": 0, "labels": [{"key": "", "value": ""}],
          "store": {"id": 0, "address": "", "version": "", "state_name": "", "labels": []},
          "status": {"capacity": 0, "available": 0, "used_size": 0, "leader_count": 0, "leader_weight": 0, "leader_score": 0,
           "leader_size": 0, "region_count": 0, "region_weight": 0, "region_score": 0, "region_size": 0, "sending_snap_count": 0,
           "is_busy": false, "start_ts": "", "last_heartbeat_ts": "", "uptime": ""}}"#;
    pub const REGION: &str = r#"{"id": 0, "start_key": "", "end_key": "", "epoch": {"conf_ver": 0, "version": 0},
          "peers": [{"id": 0, "store_id": 0, "is_learner": false}], "leader": {"store_id": 0}, "pending_peers": [0],
          "down_peers": [0], "approximate_size": 0, "approximate_keys": 0}"#;
    pub const REGIONS: &str = r#"{"count": 0, "regions": [<REGION>]}"#;
    const HOT: &str = r#"{"as_leader": {"*": {"total_flow_bytes": 0, "statistics": [{"region_id": 0, "flow_bytes": 0}]}}, "as_peer": {}}"#;
    const LIMIT: &str = r#"{"add-peer": {"rate": 0, "own": false}, "remove-peer": {"rate": 0, "own": false}}"#;
    const MEMBER: &str = r#"{"name": "", "member_id": 0, "peer_urls": [""], "client_urls": [""]}"#;
    const POLICY: &str = r#"{"schedulers": [""], "max-snapshot-count": 0, "max-pending-peer-count": 0, "max-replicas": 0,
          "leader-schedule-limit": 0, "max-store-down-time": ""}"#;
    const OPERATORS: &str = r#"[{"id": 0, "region_id": 0, "cause": "", "reason": "", "steps": [""]}]"#;
    /// Page, and what it has: fields of these kinds, in each element of a list alike, `*` for any name.
    pub const READ: [(&str, &str); 34] = [
        ("members", r#"{"members": [<MEMBER>], "leader": <MEMBER>, "etcd_leader": <MEMBER>}"#),
        ("leader", MEMBER),
        ("health", r#"[{"name": "", "member_id": 0, "client_urls": [""], "health": true}]"#),
        ("status", r#"{"version": "", "cluster_id": 0, "leader": 0, "term": 0, "plans": true}"#),
        ("version", r#"{"version": ""}"#),
        ("config", r#"{"schedule": <POLICY>, "replication": {"max-replicas": 0, "location-labels": ""}}"#),
        ("config/replicate", r#"{"max-replicas": 0, "location-labels": ""}"#),
        ("config/schedule", POLICY),
        ("stores", r#"{"count": 0, "stores": [<STORE>]}"#),
        ("stores/limit", r#"{"*": <LIMIT>}"#),
        ("store/1", STORE),
        ("store/1/limit", LIMIT),
        (
            "stats/region",
            r#"{"count": 0, "empty_count": 0, "pending_peers": 0, "storage_size": 0, "storage_keys": 0,
               "store_leader_count": {"*": 0}, "store_peer_count": {"*": 0}, "store_leader_size": {"*": 0},
               "store_leader_keys": {"*": 0}, "store_peer_size": {"*": 0}, "store_peer_keys": {"*": 0}}"#,
        ),
        ("regions", REGIONS),
        ("regions/key?key=a&limit=4", REGIONS),
        ("regions/store/1", REGIONS),
        ("regions/check/miss-peer", REGIONS),
        ("regions/check/extra-peer", REGIONS),
        ("regions/check/down-peer", REGIONS),
        ("regions/check/pending-peer", REGIONS),
        ("regions/check/learner-peer", REGIONS),
        ("regions/check/offline-peer", REGIONS),
        ("regions/check/empty-region", REGIONS),
        ("region/id/REGION_ID", REGION),
        ("region/key/a", REGION),
        ("hotspot/regions/read", HOT),
        ("hotspot/regions/write", HOT),
        ("hotspot/stores", r#"{"bytes-read-rate": {"*": 0}, "bytes-write-rate": {"*": 0}, "query-rate": {"*": 0}}"#),
        ("schedulers", r#"[""]"#),
        ("operators", OPERATORS),
        ("operators/records", OPERATORS),
        ("explain/region/REGION_ID", r#"{"text": ""}"#),
        ("explain/store/1", r#"{"text": "", "store": 0}"#),
        ("explain/removal/1", r#"{"text": ""}"#),
    ];

    /// A shape of [`READ`], with the names in it filled in.
    pub fn shape(text: &str) -> serde_json::Value {
        let names =
            [("<REGION>", REGION), ("<STORE>", STORE), ("<LIMIT>", LIMIT), ("<MEMBER>", MEMBER), ("<POLICY>", POLICY)];
        let text = names.into_iter().fold(text.to_owned(), |text, (name, shape)| text.replace(name, shape));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
    /// Method, page and body: what is done in turn, each undone by another one.
    pub const CHANGED: [(&str, &str, &str); 14] = [
        ("POST", "store/1/label", r#"{"zone": "z1"}"#),
        ("DELETE", "store/1/label/zone", ""),
        ("POST", "store/1/weight", r#"{"leader": 2.0, "region": 0.5}"#),
        ("POST", "store/1/weight", r#"{"leader": 1.0, "region": 1.0}"#),
        ("POST", "store/1/limit", r#"{"rate": 7}"#),
        ("DELETE", "store/1/limit", ""),
        ("POST", "store/1/state?state=Up", ""),
        ("POST", "schedulers/balance-region-scheduler", r#"{"delay": 600}"#),
        ("POST", "schedulers/balance-region-scheduler", r#"{"delay": 0}"#),
        ("DELETE", "schedulers/balance-leader-scheduler", ""),
        ("POST", "schedulers", r#"{"name": "balance-leader-scheduler"}"#),
        ("POST", "config/schedule", r#"{"max-snapshot-count": 3}"#),
        ("POST", "explain/policy", r#"{"max-replicas": 5}"#),
        ("POST", "leader/resign", ""),
    ];
    /// Asked of the placement driver for what it must refuse: method, page, body, code.
    pub const REFUSED: [(&str, &str, &str, u16); 10] = [
        ("GET", "nothing", "", 404),
        ("GET", "store/9", "", 404),
        ("GET", "store/one", "", 400),
        ("PUT", "stores", "", 405),
        ("GET", "stores?sort=id", "", 400),
        ("DELETE", "store/1", "", 409),
        ("DELETE", "operators/REGION_ID", "", 404),
        ("POST", "operators", r#"{"name": "dance"}"#, 400),
        ("POST", "config/schedule", "max-replicas=5", 400),
        ("POST", "config/schedule", r#"{"max-replica": 5}"#, 400),
    ];
}

/// Issue: Read/Write Timeout.
pub mod timeouts {
    pub const RESPONSIVENESS: &str = "time flaredb-client --endpoint http://STORE_IP:2379 get test-key";
    pub const CPU: &str = r#"ssh STORE_NODE "top -bn1 | grep flaredb""#;
    pub const SLOW: &str = r#"ssh STORE_NODE "journalctl -u flaredb -n 500 | grep -i 'slow\|timeout'""#;
    pub const DISK: &str = r#"ssh STORE_NODE "iostat -x 1 10""#;
    pub const COMPACTIONS: &str = r#"ssh STORE_NODE "journalctl -u flaredb | grep -i compaction | tail -50""#;
    pub const THROTTLE: &str = "\
[storage]
max_background_compactions = 2  # Reduce from default 4
max_background_flushes = 1      # Reduce from default 2";
    pub const RESTART: &str = "sudo systemctl restart flaredb";
    pub const PARTITION: &str = r#"ssh STORE_NODE "ping -c 10 PD_IP""#;
    pub const ERROR: &str = "context deadline exceeded";
    /// Of the client.
    pub const DEFAULT_TIMEOUT: &str = "30s";
}

/// FlareDB Performance Optimization.
pub mod tuning {
    pub const INGESTION: &str = "\
[storage]
# Larger write buffers
write_buffer_size = 268435456  # 256MB
max_write_buffer_number = 6

# More background jobs
max_background_compactions = 4
max_background_flushes = 2";
    pub const QUERIES: &str = "\
[storage]
# Larger block cache
block_cache_size = 4294967296  # 4GB

# Keep more files open
max_open_files = 20000";
}

/// Monitoring & Alerts: the expressions of its queries and alerts. The alerts themselves are tested with their rules.
pub mod monitoring {
    pub const EXPRESSIONS: [&str; 4] = [
        "flaredb_store_state == 1",
        "rate(flaredb_pending_peers_total[5m])",
        "flaredb_store_state == 0",
        "flaredb_pending_peers_total > 100",
    ];
    /// What the key metrics are called: store state, regions and their distribution, pending peers, queries per store, room.
    pub const OF_PD: [&str; 9] = [
        "flaredb_store_state",
        "flaredb_store_regions",
        "flaredb_store_leaders",
        "flaredb_store_capacity_bytes",
        "flaredb_store_available_bytes",
        "flaredb_store_heartbeat_age_seconds",
        "flaredb_pending_peers",
        "flaredb_pending_peers_total",
        "placement_regions",
    ];
    pub const OF_STORES: [&str; 12] = [
        "flaredb_regions",
        "flaredb_region_leaders",
        "flaredb_requests_total",
        "flaredb_request_duration_seconds_bucket",
        "flaredb_slow_requests_total",
        "flaredb_raft_apply_duration_seconds_bucket",
        "flaredb_log_write_duration_seconds_bucket",
        "flaredb_raft_follower_lag_entries",
        "flaredb_rocksdb_stall_seconds_total",
        "flaredb_rocksdb_compactions_total",
        "flaredb_disk_capacity_bytes",
        "flaredb_disk_available_bytes",
    ];
}

/// Log Analysis.
pub mod logs {
    pub const REGISTERED: &str = "INFO flaredb_pd_client: Registered with PD, store_id=";
    pub const SNAPSHOT: &str = "INFO flaredb_raft: Applied snapshot, index=";
    pub const QUERY: &str = "INFO flaredb_service: Handled query, rows=";
    pub const HEARTBEAT: &str = "WARN flaredb_pd_client: Heartbeat to PD failed, retrying...";
    pub const COMPACTION: &str = "WARN flaredb_storage: Compaction is slow, duration=";
    pub const REPLICATION: &str = "ERROR flaredb_raft: Failed to replicate log, peer=store";
    /// The runbook's searches, of another unit.
    pub const ERRORS: &str = r#"journalctl -u flaredb --since "1 hour ago" | grep ERROR"#;
    pub const COUNT_ERRORS: &str =
        r#"journalctl -u flaredb --since "1 day ago" | grep ERROR | awk '{print $NF}' | sort | uniq -c | sort -rn"#;
}

/// References and the contract's documents.
pub const DOCUMENTS: [&str; 5] = [
    "docs/ops/flaredb.md",
    "docs/ops/scale-out.md",
    "docs/ops/alerts/FlareDBStoreDown.md",
    "docs/ops/alerts/FlareDBHighPendingPeers.md",
    "docs/reference/metrics-flaredb.md",
];

/// What the runbook and its contract have for FlareDB and no test of this suite runs, and why.
pub const NOT_RUN: [(&str, &str); 1] =
    [("nc -zv NODE_IP 2381  # Gossip port", "the placement driver knows who is alive: stores have no gossip")];
