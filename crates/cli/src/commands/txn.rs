//! `txn`.

use std::io::{IsTerminal as _, Read as _};

use proto::etcdserverpb::response_op::Response;
use proto::etcdserverpb::{ResponseOp, TxnResponse};
use serde_json::{Value, json};

use super::keys::{Show, print, range_json};
use crate::connect::{self, Client, Repeat};
use crate::failure::Failure;
use crate::format::{header_json, key_value_json};
use crate::output::{Format, Output};
use crate::txn_text;

pub async fn run(client: &Client, out: &mut Output) -> Result<(), Failure> {
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!(
            "What must hold, an empty line, what to do then, an empty line, what to do otherwise; Ctrl-D ends it."
        );
    }
    let mut text = String::new();
    stdin
        .read_to_string(&mut text)
        .map_err(|error| Failure::usage(format!("cannot read the transaction from standard input: {error}")))?;
    let request = txn_text::parse(&text)?;
    let txn = |channel| {
        let request = request.clone();
        async move { connect::kv(channel).txn(request).await }
    };
    let response = client.call(Repeat::Never, txn).await?;
    if out.format_of_lines() == Format::Json {
        return Ok(out.json(&txn_json(&response))?);
    }
    print_plainly(&response, out)
}

fn print_plainly(response: &TxnResponse, out: &mut Output) -> Result<(), Failure> {
    out.line(if response.succeeded { "SUCCESS" } else { "FAILURE" })?;
    for ResponseOp { response } in &response.responses {
        out.line("")?;
        match response {
            Some(Response::ResponseRange(range)) => print(range, false, Show::default(), out)?,
            Some(Response::ResponsePut(put)) => {
                out.line("OK")?;
                if let Some(kv) = &put.prev_kv {
                    out.line(&kv.key)?;
                    out.line(&kv.value)?;
                }
            }
            Some(Response::ResponseDeleteRange(delete)) => out.line(delete.deleted.to_string())?,
            Some(Response::ResponseTxn(txn)) => print_plainly(txn, out)?,
            None => {}
        }
    }
    Ok(())
}

fn txn_json(response: &TxnResponse) -> Value {
    let responses = response.responses.iter().map(|ResponseOp { response }| match response {
        Some(Response::ResponseRange(range)) => json!({ "response_range": range_json(range) }),
        Some(Response::ResponsePut(put)) => {
            let prev_kv = put.prev_kv.as_ref().map(key_value_json);
            json!({ "response_put": { "header": header_json(put.header.as_ref()), "prev_kv": prev_kv } })
        }
        Some(Response::ResponseDeleteRange(delete)) => json!({
            "response_delete_range": { "header": header_json(delete.header.as_ref()), "deleted": delete.deleted }
        }),
        Some(Response::ResponseTxn(txn)) => json!({ "response_txn": txn_json(txn) }),
        None => Value::Null,
    });
    json!({
        "header": header_json(response.header.as_ref()),
        "succeeded": response.succeeded,
        "responses": responses.collect::<Vec<_>>(),
    })
}
