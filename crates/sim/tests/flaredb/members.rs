//! Members of the placement driver: they hand over to one another, and go.

use std::net::Ipv4Addr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cluster::{CLIENT_PORT, Cluster};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_hand_over_and_one_that_was_removed_says_so() {
    let mut cluster = Cluster::start_secure(3, 1).await;
    let leader = async |cluster: &Cluster| cluster.page("leader").await.unwrap()["member_id"].as_u64().unwrap();
    let first = leader(&cluster).await;
    let second = first % 3 + 1;
    // Whoever is asked; the command comes back when it is done.
    let (done, said) = cluster.client(&cluster.pd[first as usize - 1], &["pd", "transfer", &format!("pd-{second}")]);
    assert!(done && said == format!("pd-{second} leads now (member {second})\n"), "{said}");
    assert_eq!(leader(&cluster).await, second);
    let (done, said) = cluster.client(&cluster.pd[0], &["pd", "transfer", &second.to_string()]);
    assert!(done && said.contains("leads already"), "{said}");
    let (done, said) = cluster.client(&cluster.pd[0], &["pd", "resign"]);
    let third = leader(&cluster).await;
    assert!(done && third != second && said.contains(&format!("member {third}")), "{said}");

    let (asked, gone) = (&cluster.pd[third as usize - 1], &cluster.pd[second as usize - 1]);
    let (done, said) = cluster.client(asked, &["pd", "remove", "--node-id", &second.to_string()]);
    assert!(done, "{said}");
    let url = gone.url();
    let words = "this member was removed from its cluster";
    cluster
        .until("the member says that it was removed", async |cluster| {
            let page = rpc::client::page(&url, "/health", cluster.tls().as_ref()).await.unwrap_or_default();
            let health: Value = serde_json::from_slice(&page).unwrap_or_default();
            health["health"] == "false" && health["reason"] == words
        })
        .await;
    let (listed, said) = cluster.client(&cluster.pd[third as usize - 1], &["pd", "members"]);
    assert!(listed && said.lines().count() == 2 && !said.contains(&format!("pd-{second}")), "{said}");
}

/// It is not waited for as long as the connection lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_never_comes_is_refused() {
    let cluster = Cluster::start(1, 1).await;
    let refused = |address: Ipv4Addr| async move {
        let mut connection = TcpStream::connect((address, CLIENT_PORT)).await.unwrap();
        let head = format!("POST /pd/api/v1/operators HTTP/1.1\r\nHost: {address}\r\nContent-Length: 9\r\n\r\n{{");
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = connection.read_to_string(&mut answer);
        tokio::time::timeout(crate::cluster::PATIENCE, read).await.expect("it ends").unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        assert!(head.starts_with("HTTP/1.1 408") && body["error"].is_string(), "{answer}");
    };
    tokio::join!(refused(cluster.pd[0].address), refused(cluster.stores[0].address));
}
