//! The runbook's commands, word for word, by section. What stands in capitals is for the operator to fill in, and for a
//! test by `fill`. Lines of other programs than Chainfire (FlareDB, PD) are not here.

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
nc -zv NODE_IP 2380  # Raft port";
    pub const RESOURCES: &str = "\
top -bn1 | head -20
df -h
iostat -x 1 5";
    pub const RECENT_LOGS: &str = "journalctl -u chainfire -n 100 --no-pager";
}
