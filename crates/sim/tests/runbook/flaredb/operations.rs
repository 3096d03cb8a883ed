//! The placement driver's further calls, as the contract lists them: each answers through any member, does what it is for, and
//! what cannot be done is refused as JSON, with a reason.

use serde_json::{Value, json};

use super::book::operations;
use super::cluster::Cluster;

/// Code and answer of a call of one member, with the content type that curl sends by itself.
fn call(cluster: &Cluster, member: usize, method: &str, page: &str, body: &str) -> (u16, Value) {
    let address = cluster.world.address(cluster.pd(member));
    let data = if body.is_empty() { String::new() } else { format!(" -d '{body}'") };
    let line = format!("curl -sS -w '\\n%{{http_code}}' -X {method}{data} 'http://{address}:2379/pd/api/v1/{page}'");
    let said = cluster.world.operator(&line).succeeds();
    let (answer, code) = said.out.trim_end().rsplit_once('\n').expect("an answer and a code");
    let value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{method} {page}: {error} in {answer}"));
    (code.parse().expect("a code"), value)
}

/// Whether a value has the fields of a shape, and each is of the same kind; an element of a list, or a field by any name (`*`),
/// stands for all of them.
fn has_shape(value: &Value, shape: &Value) -> Result<(), String> {
    match (value, shape) {
        (Value::Object(fields), Value::Object(wanted)) => {
            wanted.iter().try_for_each(|(name, shape)| match name.as_str() {
                "*" => fields
                    .iter()
                    .try_for_each(|(name, value)| has_shape(value, shape).map_err(|why| format!("{name}: {why}"))),
                name => {
                    let value = fields.get(name).ok_or_else(|| format!("there is no `{name}`"))?;
                    has_shape(value, shape).map_err(|why| format!("{name}: {why}"))
                }
            })
        }
        (Value::Array(elements), Value::Array(wanted)) => {
            wanted.first().map_or(Ok(()), |shape| elements.iter().try_for_each(|element| has_shape(element, shape)))
        }
        (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_)) => Ok(()),
        _ => Err(format!("{value} is of another kind than {shape}")),
    }
}

#[test]
fn shapes_are_told_apart() {
    let of = |value: Value| has_shape(&value, &json!({ "a": [{ "b": 0 }], "*": [] }));
    assert_eq!(of(json!({ "a": [{ "b": 7, "c": "" }, { "b": 8 }], "d": [1] })), Ok(()));
    assert_eq!(of(json!({ "a": [{ "b": 7 }, { "b": "8" }] })), Err("a: b: \"8\" is of another kind than 0".to_owned()));
    assert_eq!(of(json!({ "a": [{ "c": 7 }] })), Err("a: there is no `b`".to_owned()));
    assert_eq!(of(json!({ "a": [], "d": 1 })), Err("d: 1 is of another kind than []".to_owned()));
}

#[test]
fn every_call_of_the_contract_answers_and_does_what_it_is_for() {
    let cluster = Cluster::found(3, 3);
    let first = cluster.page("regions")["regions"][0].clone();
    let region = first["id"].to_string();
    cluster.world.until("all stores and the region were heard of", || {
        let heard = |store: &Value| store["last_heartbeat_unix_seconds"].is_u64();
        let stores = cluster.page("stores")["stores"].as_array().cloned().unwrap_or_default();
        stores.len() == 3 && stores.iter().all(heard) && cluster.page("region/key/a")["leader"].is_object()
    });
    for (number, (page, shape)) in operations::READ.iter().enumerate() {
        let (code, value) = call(&cluster, number % 3 + 1, "GET", &page.replace("REGION_ID", &region), "");
        assert!(code == 200 && value.get("error").is_none(), "{page}: {code} {value}");
        if let Err(why) = has_shape(&value, &operations::shape(shape)) {
            panic!("{page}: {why}: {value:#}");
        }
    }

    let read = |page: &str| call(&cluster, 2, "GET", page, "").1;
    // What shows that it was done.
    let shown = |page: &str| -> Value {
        match page {
            "store/1/label" | "store/1/label/zone" => read("store/1")["labels"].clone(),
            "store/1/weight" => read("store/1")["leader_weight"].clone(),
            "store/1/limit" => read("store/1/limit")["add-peer"]["rate"].clone(),
            "store/1/state?state=Up" => read("store/1")["state"].clone(),
            "schedulers/balance-region-scheduler" => read("schedulers?status=paused"),
            "schedulers/balance-leader-scheduler" | "schedulers" => read("schedulers?status=disabled"),
            "config/schedule" => read("config/schedule")["max-snapshot-count"].clone(),
            _ => Value::Null,
        }
    };
    let wanted = [
        json!([{ "key": "zone", "value": "z1" }]),
        json!([]),
        json!(2.0),
        json!(1.0),
        json!(7),
        json!(15),
        json!("Up"),
        json!(["balance-region-scheduler"]),
        json!([]),
        json!(["balance-leader-scheduler"]),
        json!([]),
        json!(3),
        Value::Null,
        Value::Null,
    ];
    let leader = read("leader")["member_id"].clone();
    for ((number, (method, page, body)), wanted) in operations::CHANGED.iter().enumerate().zip(wanted) {
        let (code, value) = call(&cluster, number % 3 + 1, method, page, body);
        assert!(code == 200 && value.get("error").is_none(), "{method} {page}: {code} {value}");
        assert_eq!(shown(page), wanted, "{method} {page} {body}");
        if *page == "explain/policy" {
            assert!(
                value["replicas"] == 2 && value["bytes"].is_u64() && value["blocked"][0]["regions"] == 1,
                "{value}"
            );
        }
    }
    cluster.world.until("another member leads", || {
        let now = read("leader")["member_id"].clone();
        now.is_u64() && now != leader
    });
    let name = format!("leader/transfer/{leader}");
    cluster.world.until("the leader is handed back", || {
        // It has to hear of all of them first.
        call(&cluster, 1, "POST", &name, "");
        read("leader")["member_id"] == leader
    });

    // An operator of people's, and its record.
    cluster.until_replicated(3);
    let to = cluster.leader() % 3 + 1;
    let body = format!(r#"{{"name": "transfer-leader", "region_id": {region}, "to_store_id": {to}}}"#);
    cluster.world.until("the operator is begun", || call(&cluster, 3, "POST", "operators", &body).0 == 200);
    cluster.world.until("its record tells cause, steps and durations", || {
        let records = read("operators/records");
        let admin = records.as_array().into_iter().flatten().find(|record| record["cause"] == "admin").cloned();
        admin.is_some_and(|record| {
            let steps = record["steps"].as_array().map(Vec::len);
            assert!(steps == Some(1) && record["began_unix_seconds"].is_u64(), "{record}");
            record["outcome"] == "done" && record["step_seconds"].as_array().map(Vec::len) == steps
        })
    });

    for (number, (method, page, body, wanted)) in operations::REFUSED.iter().enumerate() {
        let (code, value) = call(&cluster, number % 3 + 1, method, &page.replace("REGION_ID", &region), body);
        let why = value["error"].as_str().unwrap_or_default();
        assert!(code == *wanted && why.len() > 10, "{method} {page}: {code} {value}");
    }
}

#[test]
fn an_operator_is_looked_at_and_called_off_and_a_member_goes() {
    let cluster = Cluster::found(3, 4);
    let world = &cluster.world;
    // Nothing is moved but what is asked for.
    cluster.set_policy(r#"{"schedulers": []}"#);
    world.until("nothing is under way", || cluster.page("operators") == json!([]));
    cluster.until_replicated(3);
    let region = cluster.page("regions")["regions"][0].clone();
    let id = region["id"].to_string();
    let peers = region["peers"].as_array().cloned().unwrap_or_default();
    let free = (1..=4_usize).find(|store| peers.iter().all(|peer| peer["store_id"] != *store));
    let free = free.expect("three of four hold it");
    world.until("it is heard of", || cluster.page(&format!("store/{free}"))["last_heartbeat_unix_seconds"].is_u64());
    // It comes to no end: the store is gone, which the placement driver does not know yet.
    world.kill(cluster.store(free));
    let body = format!(r#"{{"name": "add-peer", "region_id": {id}, "store_id": {free}}}"#);
    let (code, begun) = call(&cluster, 2, "POST", "operators", &body);
    assert_eq!(code, 200, "{begun}");
    let (code, shown) = call(&cluster, 3, "GET", &format!("operators/{id}"), "");
    let steps = [format!("add a learner in store {free}"), format!("promote the learner in store {free}")];
    assert_eq!((code, &shown["id"], &shown["steps"]), (200, &begun["id"], &json!(steps)), "{shown}");
    assert_eq!((&shown["region_id"], &shown["cause"], &shown["step"]), (&region["id"], &json!("admin"), &json!(0)));
    let (code, cancelled) = call(&cluster, 1, "DELETE", &format!("operators/{id}"), "");
    assert!(code == 200 && cancelled["message"].as_str().unwrap_or_default().starts_with("cancelled: "), "{cancelled}");
    let (code, none) = call(&cluster, 2, "GET", "operators/999999", "");
    assert!(code == 404 && none["error"].is_string(), "{code} {none}");

    let leader = cluster.page("leader")["member_id"].as_u64().expect("a leader") as usize;
    let (leaving, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let (code, unknown) = call(&cluster, other, "DELETE", "members/id/9", "");
    assert!(code == 404 && unknown["error"].is_string(), "{code} {unknown}");
    let pd = format!("flaredb-client --endpoint http://{}:2379 pd", world.address(cluster.pd(other)));
    let gone = world.operator(&format!("{pd} remove --node-id {leaving}")).succeeds();
    assert_eq!(gone.out, format!("member {leaving} is removed; stop it\n"));
    let ids = || -> Vec<u64> {
        let page = call(&cluster, other, "GET", "members", "").1;
        page["members"].as_array().into_iter().flatten().filter_map(|one| one["member_id"].as_u64()).collect()
    };
    world.until("two members are left", || ids().len() == 2);
    assert!(!ids().contains(&(leaving as u64)), "{:?}", ids());
    world.stop(cluster.pd(leaving));
    assert_eq!(call(&cluster, other, "GET", "stores", "").1["count"], 4);
}
