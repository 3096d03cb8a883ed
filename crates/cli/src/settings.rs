//! What holds for every command: where the servers are, how to speak to them, how answers are shown.
//!
//! A setting is taken from its flag, else from its `CHAINFIRE_…` variable, else from etcdctl's `ETCDCTL_…` variable, else
//! it has its default.
//!
//! A context ([`crate::contexts`]) stands for endpoints and certificates together. One that is named with `--context`
//! comes before all variables. The current one counts only where neither flags nor variables name endpoints: the
//! certificates of one cluster are never mixed with the endpoints of another.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum as _};
use rpc::client::TlsFiles;

use crate::contexts::{Context, Contexts};
use crate::failure::Failure;
use crate::format::parse_duration;
use crate::output::Format;
use cli::endpoint::with_scheme;

const DEFAULT_ENDPOINT: &str = "127.0.0.1:2379";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Connection and output")]
pub struct Global {
    /// Where nodes answer, with or without http:// or https://; repeat it or separate by commas, the first that can be
    /// reached is used [env: CHAINFIRE_ENDPOINTS] [default: http://127.0.0.1:2379]
    #[arg(long = "endpoint", visible_alias = "endpoints", value_name = "URL", global = true, value_delimiter = ',')]
    pub endpoints: Vec<String>,
    /// The CA that servers are trusted by, in PEM; with it, endpoints without a scheme are https:// [env:
    /// CHAINFIRE_CACERT] [default: the system's CAs]
    #[arg(long, value_name = "FILE", global = true)]
    pub cacert: Option<PathBuf>,
    /// The certificate to show to servers, in PEM [env: CHAINFIRE_CERT]
    #[arg(long, value_name = "FILE", global = true)]
    pub cert: Option<PathBuf>,
    /// Its private key, in PEM [env: CHAINFIRE_KEY]
    #[arg(id = "key-file", long = "key", value_name = "FILE", global = true)]
    pub key: Option<PathBuf>,
    /// The name that a server's certificate must hold, instead of the host in its URL
    #[arg(long, value_name = "NAME", global = true)]
    pub server_name: Option<String>,
    /// Believe any server's certificate. For looking into trouble only
    #[arg(long, global = true)]
    pub insecure_skip_tls_verify: bool,
    /// A named cluster: see `context` [env: CHAINFIRE_CONTEXT]
    #[arg(long, value_name = "NAME", global = true)]
    pub context: Option<String>,
    /// How answers are shown [default: table on a terminal, simple otherwise]
    #[arg(
        short = 'o',
        long,
        visible_short_alias = 'w',
        visible_alias = "write-out",
        global = true,
        env = "CHAINFIRE_OUTPUT"
    )]
    pub output: Option<Format>,
    /// How long a command may take [default: 5s]
    #[arg(long, visible_alias = "command-timeout", value_name = "DURATION", global = true, value_parser = parse_duration, env = "CHAINFIRE_TIMEOUT")]
    timeout: Option<Duration>,
    /// How long to wait for each endpoint to accept the connection [default: 2s]
    #[arg(long, value_name = "DURATION", global = true, value_parser = parse_duration, env = "CHAINFIRE_DIAL_TIMEOUT")]
    dial_timeout: Option<Duration>,
}

/// What holds for every command, settled.
#[derive(Clone, Debug)]
pub struct Settings {
    /// At least one, each with its scheme.
    pub endpoints: Vec<String>,
    pub tls: TlsFiles,
    pub output: Option<Format>,
    pub timeout: Duration,
    pub dial_timeout: Duration,
}

impl Global {
    /// Fills in the environment, the contexts and the defaults.
    pub fn settle(self) -> Result<Settings, Failure> {
        let named = self.context.clone().or_else(|| variable("CHAINFIRE_CONTEXT"));
        // Whatever it is that one is named for, contexts themselves can be mended without one.
        let chosen = named.map(|name| Contexts::load()?.find(&name)).transpose()?;
        let variables = chosen.is_none();
        let given = |name: &str| if variables { either(name) } else { None };

        let mut endpoints: Vec<String> =
            self.endpoints.into_iter().filter(|endpoint| !endpoint.trim().is_empty()).collect();
        if endpoints.is_empty() {
            let listed = given("ENDPOINTS").unwrap_or_default();
            endpoints.extend(listed.split(',').filter(|endpoint| !endpoint.is_empty()).map(str::to_owned));
        }
        let context = match chosen {
            Some(chosen) => chosen,
            None if endpoints.is_empty() => Contexts::load()?.current()?.unwrap_or_default(),
            None => Context::default(),
        };
        if endpoints.is_empty() {
            endpoints.clone_from(&context.endpoints);
        }
        if endpoints.is_empty() {
            endpoints.push(DEFAULT_ENDPOINT.to_owned());
        }
        let file = |flag: Option<PathBuf>, name: &str, of_context: Option<PathBuf>| {
            flag.or_else(|| given(name).map(PathBuf::from)).or(of_context)
        };
        let tls = TlsFiles {
            ca: file(self.cacert, "CACERT", context.cacert),
            cert: file(self.cert, "CERT", context.cert),
            key: file(self.key, "KEY", context.key),
            server_name: self.server_name.or(context.server_name),
            trust_anyone: self.insecure_skip_tls_verify
                || either("INSECURE_SKIP_TLS_VERIFY").is_some_and(|value| value == "true"),
        };
        for endpoint in &mut endpoints {
            *endpoint = with_scheme(endpoint, &tls)?;
        }
        let output = match (self.output, variable("ETCDCTL_WRITE_OUT")) {
            (None, Some(text)) => Some(Format::from_str(&text, true).map_err(|_| {
                Failure::usage(format!("ETCDCTL_WRITE_OUT: `{text}` is not among table, json and simple"))
            })?),
            (flag, _) => flag,
        };
        Ok(Settings {
            endpoints,
            tls,
            output,
            timeout: duration(self.timeout, "ETCDCTL_COMMAND_TIMEOUT", DEFAULT_TIMEOUT)?,
            dial_timeout: duration(self.dial_timeout, "ETCDCTL_DIAL_TIMEOUT", DEFAULT_DIAL_TIMEOUT)?,
        })
    }
}

/// A setting's own variable, else etcdctl's.
fn either(name: &str) -> Option<String> {
    variable(&format!("CHAINFIRE_{name}")).or_else(|| variable(&format!("ETCDCTL_{name}")))
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn duration(flag: Option<Duration>, name: &str, default: Duration) -> Result<Duration, Failure> {
    match (flag, variable(name)) {
        (Some(flag), _) => Ok(flag),
        (None, Some(text)) => parse_duration(&text).map_err(|why| Failure::usage(format!("{name}: {why}"))),
        (None, None) => Ok(default),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::args::Cli;

    #[test]
    fn endpoints_are_completed() {
        let settle = |words: &[&str]| Cli::parse_from(words).global.settle().unwrap();
        let settings = settle(&["x", "--endpoint", "a:1,http://b:2/", "--endpoints", "c:3", "status"]);
        assert_eq!(settings.endpoints, ["http://a:1", "http://b:2", "http://c:3"]);
        let settings = settle(&["x", "--endpoint", "a:1,http://b:2", "status", "--cacert", "ca.crt"]);
        assert_eq!(settings.endpoints, ["https://a:1", "http://b:2"]);
        assert_eq!(settings.tls.ca, Some("ca.crt".into()));
        assert!(Cli::parse_from(["x", "--endpoint", "ftp://a", "status"]).global.settle().is_err());
    }
}
