//! `flaredb-client` and a real cluster: what each command shows, and what it says where there is no placement driver.

use crate::cluster::Cluster;

/// Asked of the placement driver, a command succeeds and one of its lines begins like this.
fn shows(cluster: &Cluster, command: &str, line: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let (done, said) = cluster.client(&cluster.pd[0], &words);
    assert!(done && said.lines().any(|said| said.starts_with(line)), "`{command}` is to show `{line}`:\n{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_command_shows_what_it_is_for() {
    let mut cluster = Cluster::start(1, 3).await;
    // Nothing is moved but what is asked for.
    cluster.set_policy(r#"{"schedulers": []}"#);
    let region = cluster.page("regions").await.unwrap()["regions"][0]["id"].to_string();

    shows(&cluster, "put k v", "OK");
    shows(&cluster, "delete k", "1");
    shows(&cluster, "delete k", "0");

    shows(&cluster, "regions list", &format!("{region} \"\" \"\" "));
    shows(&cluster, &format!("regions show {region}"), &format!("id: {region}"));
    shows(&cluster, "regions at k", &format!("id: {region}"));
    shows(&cluster, &format!("explain region {region}"), &format!("region {region} at epoch "));
    shows(&cluster, &format!("explain region {region}"), "wanted: 3 voters");

    shows(&cluster, "stores", "1 Up http://");
    shows(&cluster, "stores show 2", "state: Up");
    shows(&cluster, "stores weight 2 --leader 2 --region 0.5", "the weight of store 2 is set");
    shows(&cluster, "stores show 2", "leader_weight: 2.0");
    shows(&cluster, "stores label 2 zone=z2", "zone z2");
    assert_eq!(cluster.client(&cluster.pd[0], &["stores", "label", "2", "--remove", "zone"]), (true, String::new()));
    shows(&cluster, "explain store 2", "store 2: Up, connected");
    shows(&cluster, "explain store 2", "weights: leaders 2, regions 0.5");

    shows(&cluster, "policy get max-replicas", "3");
    shows(&cluster, "policy get", "max-replicas 3");
    shows(&cluster, "policy set max-replicas=5 --dry-run", "to make: 2 replicas");
    shows(&cluster, "policy get max-replicas", "3");
    shows(&cluster, "regions store 2", &format!("{region} \"\" \"\" "));
    assert_eq!(cluster.client(&cluster.pd[0], &["regions", "check", "miss-peer"]), (true, String::new()));

    // An operator that comes to no end: the store of the replica is gone, which the placement driver does not know yet.
    let fourth = cluster.add_store(4);
    cluster.stores[fourth].spawn();
    cluster
        .until("the fourth store is heard of", async |cluster| {
            cluster.page("store/4").await.is_some_and(|store| store["capacity"].as_u64() > Some(1))
        })
        .await;
    cluster.stores[fourth].kill();
    shows(&cluster, &format!("operators add add-peer {region} 4"), &format!("begun: admin region {region} "));
    shows(&cluster, "operators", &format!("{region} admin 1/2 add a learner in store 4 "));
    shows(&cluster, &format!("operators show {region}"), "cause: admin");
    shows(&cluster, &format!("operators show {region}"), "step: 0");
    shows(&cluster, &format!("operators cancel {region}"), &format!("cancelled: admin region {region} "));
    let (shown, said) = cluster.client(&cluster.pd[0], &["operators", "show", "999999"]);
    assert!(!shown && said.contains("no operator on region 999999 is under way"), "{said}");
}

/// What is the matter, and what to do about it; keys need no placement driver.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_placement_driver_commands_say_what_to_do() {
    let asked: [&[&str]; 3] = [&["cluster-status"], &["drain", "1"], &["drain", "1", "--dry-run"]];
    let mut cluster = Cluster::start(3, 3).await;
    let say = |cluster: &Cluster, words: &[&str]| {
        for command in asked {
            let (done, said) = cluster.client(&cluster.pd[0], command);
            assert!(!done && words.iter().all(|words| said.contains(*words)), "{command:?}: {said}");
        }
    };
    (1..3).for_each(|member| cluster.pd[member].kill());
    cluster
        .until("the one that is left knows that it is too few", async |cluster| {
            cluster.client(&cluster.pd[0], &["cluster-status"]).1.contains("no leader elected")
        })
        .await;
    say(&cluster, &["no leader elected", "a majority of the placement driver's members has to run"]);
    cluster.pd[0].kill();
    say(&cluster, &["connection refused (is the placement driver running there?", "systemctl status placement-driver"]);

    // A store is not who knows, and says who is.
    for command in asked {
        let (done, said) = cluster.client(&cluster.stores[0], command);
        assert!(!done && said.contains("pd_addr"), "{command:?}: {said}");
    }
    assert_eq!(cluster.client(&cluster.stores[0], &["put", "k", "v"]), (true, "OK\n".to_owned()));
    assert_eq!(cluster.client(&cluster.stores[1], &["get", "k"]), (true, "v\n".to_owned()));
}
