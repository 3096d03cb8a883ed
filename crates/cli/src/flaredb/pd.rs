//! The placement driver's pages, asked.

use std::io;

use cli::failure::{Failure, Kind};
use serde_json::Value;

use crate::args::Global;
use crate::connect::reach;

pub const ASK_PD: &str =
    "is that the placement driver, and does it speak TLS (https://)? its address is `pd_addr` in flaredb.toml";

const START_PD: &str = "is the placement driver running there? look with `systemctl status placement-driver`, or ask \
                        another member with --endpoint; keys are read and written without it";
const START_OTHERS: &str = "a majority of the placement driver's members has to run: look with `systemctl status \
                            placement-driver` on each of them; keys are read and written without it";

/// Whoever was asked does not know the call.
pub fn unknown_there(endpoint: &str) -> Failure {
    let text = format!("{endpoint}: this is not the placement driver, which alone knows that");
    Failure::new(Kind::Refused, text).advise(ASK_PD)
}

/// Nobody listens where the placement driver was looked for.
pub fn not_there(endpoint: &str) -> Failure {
    Failure::new(Kind::Unreachable, format!("{endpoint}: connection refused")).advise(START_PD)
}

/// A member of the placement driver says so of itself and the others.
pub fn no_leader(endpoint: &str, why: &str) -> Option<Failure> {
    let failure = || Failure::new(Kind::NoLeader, format!("{endpoint}: {why}")).advise(START_OTHERS);
    why.contains("no leader elected").then(failure)
}

/// The pages behind an endpoint.
pub struct Pages<'a> {
    global: &'a Global,
}

/// Why a page was not to be had.
pub struct Refused {
    /// HTTP's; zero: there was no answer.
    pub code: u16,
    pub failure: Failure,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        refused.failure
    }
}

impl Pages<'_> {
    pub fn new(global: &Global) -> Pages<'_> {
        Pages { global }
    }

    /// Who is asked.
    pub fn members(&self) -> &[String] {
        self.global.members()
    }

    pub async fn get(&self, path: &str) -> Result<Value, Refused> {
        self.ask("GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Refused> {
        self.ask("POST", path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value, Refused> {
        self.ask("DELETE", path, None).await
    }

    /// Asks one member after the other, until one answers.
    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Refused> {
        let (last, others) = self.members().split_last().expect("there is the endpoint");
        for member in others {
            match self.ask_at(member, method, path, body).await {
                Err(Refused { code: 0, failure }) if failure.kind == Kind::Unreachable => {}
                answer => return answer,
            }
        }
        self.ask_at(last, method, path, body).await
    }

    async fn ask_at(&self, endpoint: &str, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Refused> {
        self.ask_program(endpoint, method, &format!("/pd/api/v1/{path}"), body).await
    }

    /// Any page of a store or of one member of the placement driver.
    pub async fn ask_program(
        &self,
        endpoint: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Refused> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let silent = |failure| Refused { code: 0, failure };
        let (url, tls) = reach(self.global, endpoint).map_err(silent)?;
        let asked = rpc::client::exchange(&url, method, path, body.as_bytes(), tls.as_ref());
        let answer = tokio::time::timeout(self.global.timeout, asked).await;
        let answer = answer.map_err(|_| silent(Failure::timed_out(endpoint)))?.map_err(|why| match why.kind() {
            io::ErrorKind::ConnectionRefused => silent(not_there(endpoint)),
            _ => silent(Failure::new(Kind::Unreachable, format!("{endpoint}: {why}")).advise(ASK_PD)),
        })?;
        let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let refused = |kind, text: &str| {
            let failure = Failure::new(kind, format!("{endpoint}: {text}"));
            Refused { code: answer.code, failure }
        };
        match (answer.code, value) {
            (200..300, Some(value)) => Ok(value),
            (code, Some(value)) if value["error"].is_string() => {
                let why = value["error"].as_str().unwrap_or_default();
                if let Some(failure) = no_leader(endpoint, why) {
                    return Err(Refused { code, failure });
                }
                let kind = match code {
                    503 => Kind::Unreachable,
                    504 => Kind::TimedOut,
                    _ => Kind::Refused,
                };
                Err(refused(kind, why))
            }
            _ => {
                let mut refused = refused(Kind::Refused, &format!("the server answers `{}`", answer.line));
                refused.failure = refused.failure.advise(ASK_PD);
                Err(refused)
            }
        }
    }
}

/// One part of a path, safe to put there.
pub fn escaped(part: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    part.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
