//! Applications made with frameworks, from `tests/applications`, behind health probes: Django,
//! FastAPI, Express and a Python gRPC server with the standard health service.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::{DSR_VIP, Host, Lab, NAT_VIP};
use crate::load::{Amount, Load, grpc, http};
use crate::process::Process;
use crate::{Service, skip};

/// The folder of Python's environment, for [`folder`].
pub const PYTHON: &str = "python";
/// The folder of Express, for [`folder`].
pub const EXPRESS: &str = "express";

/// How long an application goes on serving after it was told to stop, in seconds: more than the
/// worst time to eject at [`PACE`], 3.9 s, since that is what it waits for.
const SHUTDOWN_DELAY: u64 = 7;
/// A false alarm would be a lost request.
const PACE: &str = "interval = \"1s\"\ntimeout = \"900ms\"";

/// Where `cargo xtask setup --ci` installs the packages of one kind.
pub fn folder(kind: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.parent().unwrap_or(own);
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root.join(target).join("applications").join(kind)
}

/// Why they cannot run here, if they cannot.
pub fn missing() -> Option<String> {
    if let Some(reason) = skip::reason() {
        return Some(reason);
    }
    let stamps = [
        folder(PYTHON).join("requirements.txt"),
        folder(EXPRESS).join("installed"),
    ];
    let absent = stamps.iter().find(|stamp| !stamp.is_file())?;
    Some(format!(
        "packages from PyPI or npm are not installed: no {} (`cargo xtask setup --ci` installs \
         them)",
        absent.display()
    ))
}

/// One of the applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of frameworks")]
pub enum Framework {
    Django,
    FastApi,
    Express,
    Grpc,
}

impl Framework {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Django, Self::FastApi, Self::Express, Self::Grpc];

    /// Name of its service, and of its folder in `tests/applications`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Django => "django",
            Self::FastApi => "fastapi",
            Self::Express => "express",
            Self::Grpc => "grpc",
        }
    }

    /// Where clients find its service.
    pub const fn address(self) -> SocketAddr {
        match self {
            Self::Django => SocketAddr::new(NAT_VIP[0], 8001),
            Self::FastApi => SocketAddr::new(DSR_VIP[1], 8002),
            Self::Express => SocketAddr::new(NAT_VIP[1], 8003),
            Self::Grpc => SocketAddr::new(DSR_VIP[0], 8004),
        }
    }

    /// Its service over all backends, on the same port.
    pub fn service(self, lab: &Lab) -> Service {
        let address = self.address();
        let service = Service::tcp(lab, self.name(), address, address.port());
        let service = match self {
            Self::Django | Self::Express => service,
            Self::FastApi | Self::Grpc => service.dsr(),
        };
        match self {
            Self::Django | Self::FastApi | Self::Express => {
                service.health(&format!("probe = \"http\"\npath = \"/readyz\"\n{PACE}"))
            }
            Self::Grpc => {
                service.health(&format!("probe = \"grpc\"\nservice = \"lab.Echo\"\n{PACE}"))
            }
        }
    }

    /// Load of every kind that it takes, in words and running: none of it may fail.
    pub fn load(self, client: &Host) -> Result<Vec<(String, Load)>> {
        let to = self.address();
        let steady = Amount {
            workers: 2,
            pause: Duration::from_millis(20),
            each: None,
        };
        let load = |kind: &str, load: Result<Load>| {
            load.map(|load| (format!("{}, {kind}", self.name()), load))
        };
        match self {
            Self::Django | Self::FastApi | Self::Express => Ok(vec![
                load("new connections", Load::http(client, to, false, steady))?,
                load("kept connections", Load::http(client, to, true, steady))?,
                load(
                    "slow requests",
                    Load::start(client, steady, || {
                        http::Client::new(to, false).asking("/slow")
                    }),
                )?,
            ]),
            Self::Grpc => Ok(vec![
                load(
                    "calls",
                    Load::start(client, steady, || grpc::Client::new(to)),
                )?,
                load(
                    "slow calls",
                    Load::start(client, steady, || {
                        grpc::Client::new(to).calling("/lab.Echo/Slow")
                    }),
                )?,
            ]),
        }
    }

    fn command(self, host: &Host) -> Command {
        let own = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sources = own.join("applications").join(self.name());
        let python = folder(PYTHON).join("bin");
        let mut command = match self {
            Self::Django => host.namespace.command(python.join("gunicorn")),
            Self::FastApi | Self::Grpc => {
                let mut command = host.namespace.command(python.join("python"));
                command.arg("server.py");
                command
            }
            Self::Express => {
                let mut command = host.namespace.command("node");
                command
                    .arg("server.js")
                    .env("NODE_PATH", folder(EXPRESS).join("node_modules"));
                command
            }
        };
        command
            .current_dir(sources)
            .env("NAME", &host.name)
            .env("PORT", self.address().port().to_string())
            .env("SHUTDOWN_DELAY_SECONDS", SHUTDOWN_DELAY.to_string())
            // Nothing is left beside the sources.
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

/// An application running on a backend; killed when dropped.
#[derive(Debug)]
pub struct Application {
    process: Process,
    log: PathBuf,
}

impl Application {
    /// Starts it; whether it serves is for the probes to find out.
    pub fn start(lab: &Lab, host: &Host, framework: Framework) -> Result<Self> {
        let name = format!("{}-{}", framework.name(), host.name);
        let log = lab.folder().join(format!("{name}.log"));
        let open = || File::options().create(true).append(true).open(&log);
        let file = open().with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = framework.command(host);
        command.stdout(file.try_clone()?).stderr(file);
        let process = Process::spawn(&mut command, &name)?;
        Ok(Self { process, log })
    }

    /// SIGTERM, as a deployment sends it.
    pub fn terminate(&self) -> Result<()> {
        self.process.terminate()
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Waits until it has ended by itself, and well.
    pub fn wait(&mut self, limit: Duration) -> Result<()> {
        let status = self.process.wait(limit)?;
        ensure!(status.success(), "{status}; its log:\n{}", self.log());
        Ok(())
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
