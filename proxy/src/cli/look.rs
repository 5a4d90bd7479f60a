//! `halyard status` and `halyard healthcheck`: a look at a running proxy through its HTTP port.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::config;
use crate::http::{Answer, fetch};
use crate::status::Status;

/// Where a proxy answers that is configured by default.
const DEFAULT_URL: &str = "http://127.0.0.1:9432";

/// How long an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// Between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Where the running proxy is.
#[derive(Debug, Args)]
pub struct Target {
    /// Ask the proxy that runs with this configuration
    #[arg(long, value_name = "FILE", env = "HALYARD_CONFIG", conflicts_with = "url")]
    pub config: Option<PathBuf>,
    /// Ask the proxy that answers here [default: http://127.0.0.1:9432]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
}

/// What `halyard status` can be told.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Where the proxy is.
    #[command(flatten)]
    pub target: Target,
    /// Print JSON, one object a look
    #[arg(long)]
    pub json: bool,
    /// Look again every second until interrupted
    #[arg(long)]
    pub watch: bool,
}

/// What `halyard healthcheck` can be told.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Where the proxy is.
    #[command(flatten)]
    pub target: Target,
}

impl Target {
    fn base_url(&self) -> io::Result<String> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let Some(file) = &self.config else {
            return Ok(DEFAULT_URL.to_owned());
        };
        let checked = config::load(file).map_err(io::Error::other)?;
        let address = checked.config.http.map(reachable);
        let off = || io::Error::other(format!("[http] is off in {}", file.display()));
        Ok(format!("http://{}", address.ok_or_else(off)?))
    }

    fn get(&self, path: &str) -> io::Result<Answer> {
        fetch(&self.base_url()?, path, ANSWER_TIME_MAX).map_err(io::Error::other)
    }
}

/// An address to connect to for one to listen on: a wildcard is reached by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Prints the status once, or again and again; 0 if the proxy answered.
pub(super) fn status(args: &StatusArgs, out: &mut impl Write) -> io::Result<ExitCode> {
    let on_screen = args.watch && !args.json && io::stdout().is_terminal();
    loop {
        let shown = look(args);
        if on_screen {
            // Home, and clear to the end of the screen.
            write!(out, "\x1b[H\x1b[J")?;
        }
        match shown {
            Ok(text) => writeln!(out, "{}", text.trim_end())?,
            // A proxy that restarts comes back.
            Err(error) if args.watch => eprintln!("halyard: {error}"),
            Err(error) => return Err(error),
        }
        out.flush()?;
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn look(args: &StatusArgs) -> io::Result<String> {
    let answer = args.target.get("/status")?;
    if answer.status != 200 {
        return Err(io::Error::other(format!(
            "the proxy answers with HTTP status {}",
            answer.status
        )));
    }
    if args.json {
        return Ok(answer.body);
    }
    let status: Status = serde_json::from_str(&answer.body)
        .map_err(|error| io::Error::other(format!("the answer is not a status of this version: {error}")))?;
    Ok(status.to_text())
}

/// 0 if the proxy is ready for clients; else 1, with its reasons.
pub(super) fn healthcheck(args: &HealthcheckArgs, out: &mut impl Write) -> io::Result<ExitCode> {
    let answer = args.target.get("/readyz")?;
    if answer.status == 200 {
        writeln!(out, "ready")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "not ready (HTTP status {}): {}",
        answer.status,
        answer.body.trim_end()
    )?;
    Ok(ExitCode::FAILURE)
}
