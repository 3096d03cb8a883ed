//! FlareDB Performance Optimization: each block as it stands in the runbook, as a drop-in beside the configuration, and each
//! key of it seen where it takes effect: in the options that RocksDB writes into the data folder, or in its own log there.

use super::book::tuning;
use super::cluster::{Cluster, STORE_CONFIG};

#[test]
fn every_key_takes_effect_in_rocksdb() {
    let cluster = Cluster::found(1, 1);
    let (world, machine) = (&cluster.world, cluster.store(1));
    let options = || world.on(machine, "cat $(ls -t /var/lib/flaredb/OPTIONS-* | head -1)").succeeds().out;
    let has = |expected: &[&str]| {
        let found = options();
        expected.iter().for_each(|expected| assert!(found.contains(expected), "{expected} in\n{found}"));
    };
    has(&[
        "write_buffer_size=67108864",
        "max_open_files=1000",
        "max_background_compactions=4",
        "max_background_flushes=2",
    ]);

    let tune = |text: &str| {
        cluster.drop_in(1, text);
        world.unit(machine, "restart").succeeds();
    };
    tune(tuning::INGESTION);
    has(&["write_buffer_size=268435456", "max_write_buffer_number=6"]);
    // The runbook's numbers are the defaults: other ones take effect too.
    tune("[storage]\nmax_background_compactions = 3\nmax_background_flushes = 1\n");
    has(&["max_background_compactions=3", "max_background_flushes=1", "write_buffer_size=67108864"]);
    tune(tuning::QUERIES);
    has(&["max_open_files=20000"]);
    let cache =
        world.on(machine, "grep -h -A12 'block_cache_options' /var/lib/flaredb/LOG | grep -m1 'capacity :'").succeeds();
    assert!(cache.out.trim().ends_with(&(4_u64 << 30).to_string()), "{cache}");

    // A table may stand once in a file, and a key must be known: each error names the place.
    let before = world.read(machine, STORE_CONFIG);
    world.write(machine, STORE_CONFIG, &format!("{before}\n[storage]\n[storage]\n"));
    world.on(machine, "flaredb --check-config").fails().shows("storage").shows("flaredb.toml.d/");
    world.write(machine, STORE_CONFIG, &format!("{before}\n[storage]\nwrite_bufer_size = 1\n"));
    world.on(machine, "flaredb --check-config").fails().shows("write_buffer_size").shows(STORE_CONFIG);
}
