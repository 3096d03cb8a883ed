//! How RocksDB is set up: the few figures an operator may turn, and the choices that follow from this house's way
//! of writing.
//!
//! * No write-ahead log (the Raft log is the durability) and atomic flushes, so that a crash leaves all families
//!   at the same write.
//! * One writer: no concurrent memory tables, no pipelining, no yielding.
//! * Memory has one limit: memory tables are charged to the block cache, and so are index and filter blocks. These
//!   are whole per file (about 400 KiB for 64 MiB), not partitioned: that saves a fifth of every read, and fits as
//!   long as a store is below some fifty times its cache.
//! * Upper levels are stored with lz4, the last one with zstd at its fastest level: compaction is paid by the
//!   same cores that serve. A family that grows at its end keeps lz4 throughout, so that its files are moved down as they
//!   are instead of being written again.
//! * The manifest keeps a checksum of every table file as a whole, which a scrub compares.
//!
//! Left out: statistics objects (they cost on every operation; sizes come from properties, stalls from the
//! listener) and rate limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::Time;
use rust_rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionDecision, DBCompressionType, FileChecksumGenFactory,
    Options, WriteBufferManager,
};

use super::events::{Ears, Events};
use crate::engine::FamilySpec;

/// What may be chosen about a store. Sizes are in bytes.
#[derive(Clone, Copy, Debug)]
pub struct RocksOptions {
    /// A memory table of this size is sealed and flushed (with those of all other families).
    pub write_buffer_size: usize,
    /// Tables are cut at this size by merges, which by and large take up to eight such tables at once, and so much room until they
    /// are done.
    pub file_size: u64,
    /// Memory tables per family, the active one included, before writes stall.
    pub max_write_buffer_number: i32,
    /// The limit for cached blocks, index and filter blocks and memory tables together.
    pub block_cache_size: usize,
    pub level0_file_num_compaction_trigger: i32,
    pub bloom_filter_bits_per_key: u32,
    pub max_open_files: i32,
    pub use_direct_io_for_flush_and_compaction: bool,
    /// Background threads for flushes and compactions.
    pub max_background_jobs: i32,
    /// Threads for compactions and for flushes, each on its own; they take the place of the number above.
    pub max_background: Option<Background>,
    /// A compaction that takes at least this long is reported.
    pub slow_compaction_ms: u64,
    /// The machine's monotonic clock, asked when a stall begins and ends. The default one stands still, which
    /// makes every stall zero long.
    pub now: fn() -> Time,
}

/// Threads in the background, by what they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Background {
    pub compactions: i32,
    pub flushes: i32,
}

impl Default for RocksOptions {
    fn default() -> RocksOptions {
        RocksOptions {
            write_buffer_size: 64 << 20,
            file_size: 64 << 20,
            max_write_buffer_number: 4,
            block_cache_size: 256 << 20,
            level0_file_num_compaction_trigger: 4,
            bloom_filter_bits_per_key: 10,
            max_open_files: 1000,
            use_direct_io_for_flush_and_compaction: false,
            max_background_jobs: 2,
            max_background: None,
            slow_compaction_ms: 10_000,
            now: || Time::ZERO,
        }
    }
}

/// Everything needed to open a RocksDB database of these families any number of times, with shared memory.
pub(super) struct Blueprint {
    pub families: &'static [FamilySpec],
    pub cache: Cache,
    /// What `droppable` is asked with.
    pub watermark: Arc<AtomicU64>,
    options: RocksOptions,
    memtables: WriteBufferManager,
}

const FILES_MERGED: u64 = 8;
/// The part of a file's entries.
const DELETIONS_MAX: f64 = 0.5;

/// RocksDB insists on this family; nothing of the state lies in it.
const DEFAULT_FAMILY: &str = "default";

impl Blueprint {
    pub fn new(families: &'static [FamilySpec], options: &RocksOptions) -> Blueprint {
        assert!(families.iter().all(|spec| spec.name != DEFAULT_FAMILY), "a family has RocksDB's own name");
        let cache = Cache::new_hyper_clock_cache(options.block_cache_size, 0);
        // All memory tables together: one being filled and half of one being flushed.
        let memtables_bytes_max = options.write_buffer_size + options.write_buffer_size / 2;
        Blueprint {
            families,
            watermark: Arc::default(),
            options: *options,
            memtables: WriteBufferManager::new_write_buffer_manager_with_cache(
                memtables_bytes_max,
                false,
                cache.clone(),
            ),
            cache,
        }
    }

    /// Options for the database as a whole. `events` hears of stalls, errors and slow compactions.
    pub fn database(&self, events: Option<&Arc<Events>>) -> Options {
        let mut o = Options::default();
        o.create_if_missing(true);
        o.create_missing_column_families(true);
        o.set_atomic_flush(true);
        o.set_avoid_flush_during_shutdown(true);
        o.set_allow_concurrent_memtable_write(false);
        o.set_enable_pipelined_write(false);
        o.set_unordered_write(false);
        o.set_enable_write_thread_adaptive_yield(false);
        o.set_write_buffer_manager(&self.memtables);
        o.set_max_open_files(self.options.max_open_files);
        match self.options.max_background {
            None => o.set_max_background_jobs(self.options.max_background_jobs),
            // RocksDB advises against it, and does it: whoever wants fewer merges than flushes has no other way.
            #[allow(deprecated, reason = "the two numbers are what operators throttle compactions by")]
            Some(Background { compactions, flushes }) => {
                o.set_max_background_compactions(compactions);
                o.set_max_background_flushes(flushes);
            }
        }
        o.set_skip_stats_update_on_db_open(true);
        o.set_use_direct_io_for_flush_and_compaction(self.options.use_direct_io_for_flush_and_compaction);
        o.set_avoid_unnecessary_blocking_io(true);
        o.set_bytes_per_sync(1 << 20);
        o.set_max_manifest_file_size(64 << 20);
        o.set_keep_log_file_num(4);
        o.set_max_log_file_size(4 << 20);
        o.set_stats_dump_period_sec(0);
        o.set_stats_persist_period_sec(0);
        o.set_file_checksum_gen_factory(&FileChecksumGenFactory::crc32c());
        if let Some(events) = events {
            o.add_event_listener(Ears(events.clone()));
        }
        o
    }

    /// One descriptor per family, RocksDB's own included.
    pub fn descriptors(&self) -> Vec<ColumnFamilyDescriptor> {
        let own = FamilySpec { name: DEFAULT_FAMILY, droppable: None, bloom: false, sequential: false };
        let all = self.families.iter().chain([&own]);
        all.map(|spec| ColumnFamilyDescriptor::new(spec.name, self.family(spec))).collect()
    }

    /// Options for one family; also what its files outside a database are written with.
    pub fn family(&self, spec: &FamilySpec) -> Options {
        let mut o = Options::default();
        o.set_write_buffer_size(self.options.write_buffer_size);
        o.set_max_write_buffer_number(self.options.max_write_buffer_number);
        o.set_level_zero_file_num_compaction_trigger(self.options.level0_file_num_compaction_trigger);
        o.set_target_file_size_base(self.options.file_size);
        o.set_max_compaction_bytes(self.options.file_size * FILES_MERGED);
        o.set_level_compaction_dynamic_level_bytes(true);
        o.set_compression_type(DBCompressionType::Lz4);
        if !spec.sequential {
            o.set_bottommost_compression_type(DBCompressionType::Zstd);
            const WINDOW_BITS_DEFAULT: i32 = -14;
            const ZSTD_LEVEL: i32 = 1;
            o.set_bottommost_compression_options(WINDOW_BITS_DEFAULT, ZSTD_LEVEL, 0, 0, true);
        }
        // Files with more deletions than anything else are merged whether or not there is too much of them: what they delete
        // takes room until then.
        o.add_compact_on_deletion_collector_factory(0, 0, DELETIONS_MAX);
        o.set_block_based_table_factory(&self.tables(spec));
        if spec.bloom {
            o.set_memtable_prefix_bloom_ratio(0.05);
            o.set_memtable_whole_key_filtering(true);
        }
        if let Some(droppable) = spec.droppable {
            let watermark = self.watermark.clone();
            o.set_compaction_filter("droppable", move |_level: u32, key: &[u8], value: &[u8]| {
                if droppable(key, value, watermark.load(Ordering::Relaxed)) {
                    CompactionDecision::Remove
                } else {
                    CompactionDecision::Keep
                }
            });
        }
        o
    }

    fn tables(&self, spec: &FamilySpec) -> BlockBasedOptions {
        let mut t = BlockBasedOptions::default();
        t.set_format_version(FORMAT_VERSION);
        t.set_block_size(8 << 10);
        t.set_block_cache(&self.cache);
        t.set_cache_index_and_filter_blocks(true);
        t.set_cache_index_and_filter_blocks_with_high_priority(true);
        if spec.bloom {
            t.set_bloom_filter(f64::from(self.options.bloom_filter_bits_per_key), false);
            t.set_whole_key_filtering(true);
        }
        t
    }
}

/// The layout of table files.
const FORMAT_VERSION: i32 = 7;
