//! Damage in what a running store, or a member of the placement driver, does not read by itself: its scrub finds it, and
//! nobody has to do anything.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::cluster::{Cluster, Process, get, put};
use crate::lost::flip_in_log;
use crate::tell::figure;

const SCRUB: &str = "--scrub-interval=2s";
const FOUND: &str = "Scrub found damage, why=";

fn harm(what: &str, folder: &Path) {
    match what {
        "log" => flip_in_log(folder),
        _ => flip_in_table(folder),
    }
}

/// A byte in the middle of the largest table.
fn flip_in_table(folder: &Path) {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let tables = files.filter(|path| path.extension().is_some_and(|end| end == "sst"));
    let table = tables.max_by_key(|path| fs::metadata(path).unwrap().len()).expect("there are tables");
    // In place: the store has it open.
    let file = fs::OpenOptions::new().read(true).write(true).open(&table).unwrap();
    let (middle, mut byte) = (file.metadata().unwrap().len() / 2, [0]);
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
}

/// A figure of a process's own page.
async fn value(process: &Process, name: &str) -> Option<f64> {
    let page = rpc::client::page(&process.url(), "/metrics", None).await.ok()?;
    let page = String::from_utf8(page).ok()?;
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.parse().ok()
}

/// A pass that begins from now on comes to its end, and it read something.
async fn has_looked(cluster: &mut Cluster, of: fn(&Cluster) -> Vec<&Process>, prefix: &str) {
    let (passes, bytes) = (format!("{prefix}_scrub_passes_total"), format!("{prefix}_scrub_bytes_total"));
    for index in 0..of(cluster).len() {
        let before = value(of(cluster)[index], &passes).await.unwrap_or(0.0);
        let found = of(cluster)[index].said().matches(FOUND).count();
        cluster
            .until("a scrub has looked", async |cluster| {
                let process = of(cluster)[index];
                let looked = value(process, &passes).await.is_some_and(|passes| passes >= before + 2.0);
                looked && value(process, &bytes).await.is_some_and(|bytes| bytes > 0.0)
            })
            .await;
        assert_eq!(of(cluster)[index].said().matches(FOUND).count(), found, "nothing is damaged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_finds_damage_by_itself_and_is_made_anew() {
    let mut cluster = Cluster::new(1, 3);
    for store in &mut cluster.stores {
        store.flag(SCRUB);
    }
    let mut cluster = cluster.started().await;
    let value = "v".repeat(1000);
    for number in 0..1000 {
        put(&mut cluster.raw(0).await, &format!("k{number:03}"), &format!("{value}{number}")).await.unwrap();
    }
    // The log first: what is made anew begins with a short one.
    for what in ["log", "state"] {
        let leader = cluster.leader().await;
        let victim = (leader + 1) % 3;
        // What is in memory goes to tables.
        cluster.stores[victim].stop().await;
        cluster.stores[victim].spawn();
        cluster.until("the store is back", async |cluster| cluster.has_replicas(3).await).await;
        has_looked(&mut cluster, |cluster| cluster.stores.iter().collect(), "flaredb").await;
        let is_anew = "This store was damaged and begins anew";
        let (folder, times) =
            (cluster.data_dir(&cluster.stores[victim]), cluster.stores[victim].said().matches(is_anew).count());
        let began = Instant::now();
        harm(what, &folder);
        cluster
            .until("the damaged store is made anew", async |cluster| {
                let anew = cluster.stores[victim].said().matches(is_anew).count() == times + 1;
                let page = cluster.page("stores").await.unwrap_or_default();
                let stores = page["stores"].as_array().cloned().unwrap_or_default();
                let up = stores.len() == 3 && stores.iter().all(|store| store["state"] == "Up");
                anew && up && cluster.has_replicas(3).await
            })
            .await;
        figure(format_args!(
            "a store whose {what} was damaged while it ran was whole again after {} ms",
            began.elapsed().as_millis()
        ));
        let said = cluster.stores[victim].said();
        assert!(said.contains(FOUND) && said.contains("CF8540"), "{said}");
        assert!(said.contains(&format!("begins anew, what it held is made anew from others, what={what}")), "{said}");
        for number in (0..1000).step_by(97) {
            let read = get(&mut cluster.raw(victim).await, &format!("k{number:03}")).await.unwrap();
            assert_eq!(read, Some(format!("{value}{number}")), "{what}");
        }
    }
}

/// Where nobody looks unless asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_programs_look_when_they_are_asked() {
    let mut cluster = Cluster::new(1, 3);
    for process in cluster.pd.iter_mut().chain(&mut cluster.stores) {
        process.flag("--scrub-interval=0s");
    }
    let mut cluster = cluster.started().await;
    for number in 0..100 {
        put(&mut cluster.raw(0).await, &format!("k{number:03}"), &"v".repeat(1000)).await.unwrap();
    }
    let victim = 1;
    cluster.stores[victim].stop().await;
    cluster.stores[victim].spawn();
    cluster.until("the store is back", async |cluster| cluster.has_replicas(3).await).await;
    let (done, said) = cluster.client(&cluster.pd[0], &["-o", "json", "scrub", "--cluster"]);
    assert!(done && said.matches("nothing is damaged").count() == 4, "{said}");
    harm("state", &cluster.data_dir(&cluster.stores[victim]));
    let (done, said) = cluster.client(&cluster.stores[victim], &["-o", "simple", "scrub"]);
    assert!(!done && !said.contains("nothing is damaged"), "{said}");
    cluster
        .until("the damaged store is made anew", async |cluster| {
            cluster.stores[victim].said().contains("This store was damaged and begins anew")
                && cluster.has_replicas(3).await
        })
        .await;
    cluster
        .until("nothing is damaged any more", async |cluster| {
            cluster.client(&cluster.pd[0], &["-o", "simple", "scrub", "--cluster"]).0
        })
        .await;
}

/// How often a member said that it was rebuilt.
fn rebuilt(member: &Process) -> usize {
    member.said().matches("This member was rebuilt from its peers").count()
}

/// Damages a member's log or state and waits until it is whole; what it said meanwhile.
async fn is_rebuilt(cluster: &mut Cluster, member: usize, harm: impl FnOnce(PathBuf)) -> String {
    let (times, said) = (rebuilt(&cluster.pd[member]), cluster.pd[member].said().len());
    harm(cluster.data_dir(&cluster.pd[member]));
    let began = Instant::now();
    cluster.until("the member is rebuilt", async |cluster| rebuilt(&cluster.pd[member]) > times).await;
    cluster
        .until("all members are well", async |cluster| {
            let health = cluster.page("health").await.unwrap_or_default();
            health.as_array().is_some_and(|all| all.len() == 3 && all.iter().all(|one| one["health"] == true))
        })
        .await;
    figure(format_args!(
        "a damaged member of the placement driver was whole again after {} ms",
        began.elapsed().as_millis()
    ));
    cluster.pd[member].said()[said..].to_owned()
}

async fn follower(cluster: &Cluster) -> usize {
    let members = cluster.page("members").await.unwrap();
    let leader = members["leader"]["member_id"].as_u64().unwrap() as usize - 1;
    (leader + 1) % 3
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_finds_damage_by_itself_and_is_rebuilt() {
    let mut cluster = Cluster::new(3, 1);
    for pd in &mut cluster.pd {
        pd.flag(SCRUB);
    }
    let mut cluster = cluster.started().await;
    for what in ["log", "state"] {
        let victim = follower(&cluster).await;
        cluster.pd[victim].stop().await;
        cluster.pd[victim].spawn();
        has_looked(&mut cluster, |cluster| cluster.pd.iter().collect(), "placement").await;
        let said = is_rebuilt(&mut cluster, victim, |folder| harm(what, &folder)).await;
        assert!(said.contains(FOUND), "{said}");
        assert!(said.contains(&format!("quarantined, what={what}")), "{said}");
        assert_eq!(cluster.page("stores").await.unwrap()["count"], 1);
    }
    put(&mut cluster.raw(0).await, "k", "v").await.unwrap();
}

/// Damaged while it did not run. One that is alone says what it lacks, and nothing is lost by starting it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_begins_with_damage_is_rebuilt_or_says_why_not() {
    let mut cluster = Cluster::start(3, 1).await;
    for what in ["log", "state"] {
        let victim = follower(&cluster).await;
        cluster.pd[victim].stop().await;
        let harm = |folder: PathBuf| {
            if what == "log" { flip_in_log(&folder) } else { std::fs::remove_file(folder.join("CURRENT")).unwrap() }
        };
        let folder = cluster.data_dir(&cluster.pd[victim]);
        harm(folder);
        cluster.pd[victim].spawn();
        is_rebuilt(&mut cluster, victim, drop).await;
        assert_eq!(cluster.page("stores").await.unwrap()["count"], 1);
    }

    let mut alone = Cluster::start(1, 1).await;
    alone.pd[0].stop().await;
    std::fs::remove_file(alone.data_dir(&alone.pd[0]).join("CURRENT")).unwrap();
    for _ in 0..2 {
        alone.pd[0].spawn();
        alone.until("it ends", async |alone| alone.pd[0].has_ended()).await;
        alone.pd[0].reap();
        let said = alone.pd[0].said();
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains("there is no other member to rebuild it from"), "{last}");
    }
}
