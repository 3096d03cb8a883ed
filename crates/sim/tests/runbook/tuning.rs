//! Performance Tuning, and the tuning that the issues recommend: each block as it stands in the runbook, as a drop-in beside
//! the configuration (a table may stand once in a file), and each key of it seen where it takes effect: in the options that
//! RocksDB writes into the data folder, in its own log there, or on the wire.

use std::time::Duration;

use proto::etcdserverpb::{self as pb, request_op::Request};

use crate::book::{latency, tuning};
use crate::settings::{CONFIG, Settings};
use crate::world::World;
use crate::{client, history};

const DROP_INS: &str = "/etc/centra-cloud/chainfire.toml.d";
/// The configuration that is shipped.
const SHIPPED: &str = include_str!("../../../../packaging/etc/centra-cloud/chainfire.toml");

#[test]
fn every_key_of_storage_takes_effect_in_rocksdb() {
    let world = World::found(1);
    let before = options(&world);
    for default in ["write_buffer_size=67108864", "level0_file_num_compaction_trigger=4", "max_open_files=1000"] {
        assert!(before.contains(default), "{default} in\n{before}");
    }
    assert!(before.contains("use_direct_io_for_flush_and_compaction=false"), "{before}");

    tune(&world, tuning::WRITE_HEAVY);
    let options_found = options(&world);
    for expected in ["write_buffer_size=134217728", "max_write_buffer_number=4", "level0_file_num_compaction_trigger=8"]
    {
        assert!(options_found.contains(expected), "{expected} in\n{options_found}");
    }
    assert_eq!(cache_bytes(&world), 1 << 30);

    // The runbook's number is the default too.
    tune(&world, "[storage]\nmax_write_buffer_number = 6\n");
    assert!(options(&world).contains("max_write_buffer_number=6"));

    tune(&world, tuning::READ_HEAVY);
    let options_found = options(&world);
    for expected in ["filter_policy=bloomfilter", "max_open_files=10000"] {
        assert!(options_found.contains(expected), "{expected} in\n{options_found}");
    }
    assert_eq!(cache_bytes(&world), 2 << 30);

    tune(&world, latency::ROCKSDB_SETTINGS);
    assert!(options(&world).contains("write_buffer_size=134217728"));
    assert_eq!(cache_bytes(&world), 512 << 20);

    // Shown by the runbook without a table above it, too.
    for text in [latency::DIRECT_IO, tuning::LOW_LATENCY] {
        tune(&world, text);
        let options_found = options(&world);
        assert!(options_found.contains("use_direct_io_for_flush_and_compaction=true"), "{options_found}");
    }
    world.operator("chainfire-client --endpoint http://node1:2379 put key value").succeeds();
    world.operator("chainfire-client --endpoint http://node1:2379 get key").succeeds().shows("value");
}

/// RocksDB does not write down how many bits its filters have; the files show it.
#[test]
fn more_bits_per_key_are_larger_filters() {
    const KEYS: usize = 20_000;
    let world = World::found(1);
    world.block_on(async {
        let client = world.client(1);
        for first in (0..KEYS).step_by(100) {
            let put = |number| client::put(&format!("key-{number:08}"), "value");
            let puts = (first..first + 100).map(|number| history::operation(Request::RequestPut(put(number))));
            let txn = pb::TxnRequest { success: puts.collect(), ..Default::default() };
            client.txn(txn).await.unwrap();
        }
    });
    let mut sizes = Vec::new();
    for bits in [1, 32] {
        tune(&world, &format!("[storage]\nbloom_filter_bits_per_key = {bits}\n"));
        // Something to merge, so that all files are written again.
        world.operator("chainfire-client --endpoint http://node1:2379 put key-00000000 again").succeeds();
        world.operator("chainfire-client --endpoint http://node1:2379 defrag --timeout 60s").succeeds();
        sizes.push(bytes_at_rest(&world));
    }
    crate::tell::figure(format_args!(
        "bloom filters: {KEYS} keys in {} bytes of files with 1 bit, {} with 32",
        sizes[0], sizes[1]
    ));
    assert!(sizes[1] > sizes[0] + KEYS * 31 / 8 / 2, "{sizes:?}");
}

/// Heartbeats are counted where they arrive. At rest there is little else.
#[test]
fn the_tick_interval_is_the_pace_of_heartbeats() {
    const MEASURED: Duration = Duration::from_secs(4);
    let world = World::found(3);
    let mut paces = Vec::new();
    for (tick_ms, text) in [(100, "# as it is by default"), (50, tuning::LOW_LATENCY), (200, latency::TICK)] {
        (1..=3).for_each(|node| world.stop(node));
        (1..=3).for_each(|node| drop_in(&world, node, text));
        world.start_all();
        world.until_serving(&[1, 2, 3]);
        let leader = world.leader();
        let follower = leader % 3 + 1;
        let count = "add table inet count\nadd chain inet count in { type filter hook input priority 5; policy accept; }\n\
                     flush chain inet count in\n";
        // Acknowledgements of the transport carry nothing: segments of at least 100 bytes are messages.
        let rule =
            format!("add rule inet count in ip saddr {} tcp dport 2380 ip length > 100 counter", world.address(leader));
        world.on(follower, &format!("nft -f - <<'END'\n{count}{rule}\nEND")).succeeds();
        std::thread::sleep(MEASURED);
        let counted = world.on(follower, "nft list chain inet count in").succeeds();
        let packets = counted.out.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        let packets: u64 = packets.unwrap_or_else(|| panic!("a counter was expected of\n{counted}"));
        let expected = MEASURED.as_millis() as u64 / tick_ms;
        crate::tell::figure(format_args!(
            "tick {tick_ms} ms: {packets} messages in {} s, {expected} heartbeats expected",
            MEASURED.as_secs()
        ));
        paces.push(packets as f64 / expected as f64);
    }
    assert!(paces.iter().all(|pace| (0.6..2.0).contains(pace)), "messages per expected heartbeat: {paces:?}");
}

#[test]
fn a_repeated_table_is_refused_with_the_way_to_add_to_it() {
    let world = World::new(1);
    world.certify();
    let mut settings = Settings::founder(&world);
    settings.rest = tuning::READ_HEAVY.to_owned();
    world.set_up(1, &settings);
    world
        .on(1, "chainfire --config /etc/centra-cloud/chainfire.toml --check-config")
        .fails()
        .shows("storage")
        .shows("chainfire.toml.d/");
}

/// The runbook's line at the end of the file that is shipped, where it stands in another section: refused, with the place
/// where it belongs, and in effect there.
#[test]
fn a_line_appended_to_the_shipped_file_is_refused_with_the_section_it_belongs_to() {
    let world = World::new(1);
    let check = "chainfire --check-config";
    world.write(1, CONFIG, &format!("{SHIPPED}\n{}\n", latency::DIRECT_IO));
    let (key, _) = latency::DIRECT_IO.split_once(" = ").expect("a key and its value");
    let refused = world.on(1, check).fails().shows(&format!("{CONFIG}:{}: ", SHIPPED.lines().count() + 2));
    refused.shows(&format!("`{key}` of [storage]")).shows(&format!("a [storage] of its own in {DROP_INS}/NAME.toml"));

    world.write(1, CONFIG, SHIPPED);
    drop_in(&world, 1, &format!("[storage]\n{}", latency::DIRECT_IO));
    world.on(1, check).succeeds().shows(&format!("storage.{key} = true ({DROP_INS}/tuning.toml:2)"));
}

/// Restarts the only node with this text in a drop-in, and nothing else.
fn tune(world: &World, text: &str) {
    drop_in(world, 1, text);
    world.on(1, latency::RESTART).succeeds();
    world.until_serving(&[1]);
}

fn drop_in(world: &World, node: usize, text: &str) {
    world.on(node, &format!("mkdir -p {DROP_INS}")).succeeds();
    world.write(node, &format!("{DROP_INS}/tuning.toml"), &format!("{text}\n"));
}

/// What RocksDB says it runs with.
fn options(world: &World) -> String {
    world.on(1, "cat $(ls -t /var/lib/chainfire/OPTIONS-* | head -1)").succeeds().out
}

/// Of all table files, once they stay as they are: a defrag gives space back in the background.
fn bytes_at_rest(world: &World) -> usize {
    let mut before = None;
    world.until_some("files that stay as they are", || {
        std::thread::sleep(Duration::from_secs(1));
        let bytes = world.on(1, "cat /var/lib/chainfire/*.sst | wc -c").succeeds().out;
        let same = before.replace(bytes.clone()).is_some_and(|before| before == bytes);
        same.then(|| bytes.trim().parse().expect("a number"))
    })
}

fn cache_bytes(world: &World) -> u64 {
    let found =
        world.on(1, "grep -h -A12 'block_cache_options' /var/lib/chainfire/LOG | grep -m1 'capacity :'").succeeds();
    let bytes = found.out.rsplit(':').next().and_then(|text| text.trim().parse().ok());
    bytes.unwrap_or_else(|| panic!("a capacity was expected of\n{found}"))
}
