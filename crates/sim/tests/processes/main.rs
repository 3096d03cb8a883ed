//! Real processes under real faults: clusters of the program `chainfire`, started by etcd's flags, driven by clients and
//! judged from outside.
//!
//! | module | what must hold |
//! |---|---|
//! | `linearizable` | what concurrent clients saw under kills and pauses is linearizable |
//! | `durability`, `power` | nothing acknowledged is lost when all nodes die at once, and with them what was not synced |
//! | `disk_faults` | a write, sync or read that fails costs one node at most a restart or its data |
//! | `watching` | a watch that reconnects gets every revision once |
//! | `leadership` | a stopped leader hands over; a killed one is replaced soon |
//! | `catch_up` | a node that missed much is filled by a snapshot, whenever it is killed |
//! | `in_flight` | a snapshot that is damaged or cut off on its way is refused, and sent again |
//! | `rolling` | all nodes are restarted one after the other, and no client notices |
//! | `versions` | members of two builds work together, there and back; what a later one wrote is left alone |
//! | `restore` | a snapshot saved under load becomes a new cluster, of any size |
//! | `backup` | archives, incremental chains, rounds; the runbook's `tar` into a running cluster and into none |
//! | `membership`, `changing` | members come, go, are promoted, also while nodes are killed |
//! | `lost_logs` | what lost its log is rebuilt, what is a copy does not act |
//! | `operation` | what the service manager, SIGHUP, the log and the metrics owe to an operator |
//! | `stalled_disk`, `lossy`, `stopping` | who cannot write leads no more; lost packets cost an election at most; who is needed stops late |
//! | `offline` | folders of stopped nodes are checked and repaired, and one of three goes on alone |
//! | `healing` | damaged data is never served, and is made good from the others |
//! | `scrubbing` | damage is found though nobody asks |
//! | `spared` | a log that is whole is given up only when the others can do without it |
//! | `every_node` | any node takes any request, and tells its health over HTTP |
//! | `bad_requests`, `bad_bytes`, `bad_starts`, `full_disk` | what is wrong is refused in the right words and harms nobody |
//! | `gossip` | who is alive is known soon, by members only; a node finds its cluster through any one of them |
//! | `secure`, `access` | certificates on every port: who is refused, and how they are changed under load; who may call which method |
//! | `by_hand` | our client on a terminal, and what it takes along for others |
//! | `etcdctl`, `python` | clients that others wrote |
//!
//! The rest is the harness: `cluster` (processes), `disks` (to be filled and frozen), `failing_disk` (whose calls
//! fail, and which loses its power), `harm` (to their files), `client` (one
//! endpoint), `pki` (certificates), `history` (clients whose doings are recorded), `planted` (the judge of histories, and
//! faults that it must see), `tell` (figures, seeds, how many faults were made, and tests that cannot run here). Checks that judge
//! by themselves have a test beside them that they see what they look for.
//!
//! With `PROCESSES_PROGRAM=/usr/bin/etcd` the same tests run against an etcd, which checks the tests themselves; most of
//! what only Chainfire promises is left out then, and the bounds on its pauses are not etcd's.

mod access;
mod backup;
mod bad_bytes;
mod bad_requests;
mod bad_starts;
mod by_hand;
mod catch_up;
mod changing;
mod client;
mod cluster;
mod disk_faults;
mod disks;
mod durability;
mod etcdctl;
mod every_node;
mod failing_disk;
mod full_disk;
mod gossip;
mod harm;
mod healing;
mod history;
mod in_flight;
mod leadership;
mod linearizable;
mod lossy;
mod lost_logs;
#[path = "../common/machine.rs"]
mod machine;
mod membership;
mod offline;
mod operation;
mod pki;
mod planted;
mod power;
mod python;
mod restore;
mod rolling;
mod scrubbing;
mod secure;
mod spared;
mod stalled_disk;
mod stopping;
mod tell;
mod versions;
mod watching;
