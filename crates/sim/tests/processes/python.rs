//! A Python client that we did not write (`etcd3` from PyPI), against our server.

use std::path::Path;
use std::process::Command;

use crate::cluster::{CLIENT_PORT, Cluster};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_works() {
    let root = base::crate_folder!().join("../..");
    // Prints the interpreter that has the client; installs it the first time.
    let installed = Command::new(root.join("scripts/python-client.sh")).output().unwrap();
    let said = String::from_utf8_lossy(&installed.stderr);
    assert!(installed.status.success(), "scripts/python-client.sh: {said}");
    let python = String::from_utf8(installed.stdout).unwrap();

    let cluster = Cluster::start(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let output = crate::cluster::command(Path::new(python.trim()))
        .arg(base::crate_folder!().join("tests/processes/python_client.py"))
        .args([cluster.nodes[follower].address.to_string(), CLIENT_PORT.to_string()])
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert_eq!(text.lines().last(), Some("all is well"), "{text}");
}
