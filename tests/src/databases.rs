//! Real databases as backends, Redis and PostgreSQL, and clients that open a connection for a few
//! requests, as pools do that do not keep theirs for ever.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{Host, Lab};
use crate::load::Requester;
use crate::load::http::connect;
use crate::process::Process;
use crate::skip;

/// Port of Redis.
pub const REDIS: u16 = 6379;
/// Port of PostgreSQL.
pub const POSTGRES: u16 = 5432;

/// Requests of one connection.
const REQUESTS: u32 = 10;
/// PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;

/// Why they cannot run here, if they cannot.
pub fn missing() -> Option<String> {
    if let Some(reason) = skip::reason() {
        return Some(reason);
    }
    let absent = match (redis_program(), postgres_programs()) {
        (None, _) => "Redis",
        (_, None) => "PostgreSQL",
        (Some(_), Some(_)) => return None,
    };
    Some(format!(
        "{absent} is not installed (`cargo xtask setup --ci` installs it)"
    ))
}

/// Debian's redis-tools has the server, too, under another name.
fn redis_program() -> Option<&'static str> {
    let places = [
        "/usr/bin/redis-server",
        "/usr/local/bin/redis-server",
        "/usr/bin/redis-check-rdb",
    ];
    places.into_iter().find(|path| Path::new(path).exists())
}

/// Folder of PostgreSQL's programs, of the newest version there is.
fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let places = versions.flatten().map(|version| version.path().join("bin"));
    places
        .filter(|programs| programs.join("postgres").exists())
        .max()
}

/// One of the databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of databases")]
pub enum Kind {
    Redis,
    Postgres,
}

/// A database running on a backend; killed when dropped.
#[derive(Debug)]
pub struct Database {
    kind: Kind,
    folder: PathBuf,
    process: Process,
}

impl Database {
    /// Starts it, with new data if it has none yet; whether it serves is for the probes to find out.
    pub fn start(lab: &Lab, host: &Host, kind: Kind) -> Result<Self> {
        fs::set_permissions(lab.folder(), Permissions::from_mode(0o755))?;
        let folder = lab.folder().join(format!("{kind:?}-{}", host.name));
        let process = match kind {
            Kind::Redis => redis(host, &folder)?,
            Kind::Postgres => postgres(host, &folder)?,
        };
        Ok(Self {
            kind,
            folder,
            process,
        })
    }

    /// Which it is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Has it stop as its service manager would, and waits for the end.
    pub fn stop(&mut self) -> Result<()> {
        self.process.terminate()?;
        let status = self.process.wait(crate::agent::SOON)?;
        let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        ensure!(status.success(), "{:?}: {status}: {}", self.kind, log());
        Ok(())
    }
}

/// Clients tell the instances apart by the name of a file that is not used.
fn redis(host: &Host, folder: &Path) -> Result<Process> {
    fs::create_dir_all(folder)?;
    let program = redis_program().context("no Redis")?;
    let mut command = host.namespace.command(program);
    command
        .arg0("redis-server")
        .args(["--port", &REDIS.to_string(), "--bind", "0.0.0.0", "::"])
        .args(["--protected-mode", "no", "--save", ""])
        .arg("--dir")
        .arg(folder)
        .arg("--logfile")
        .arg(folder.join("log"))
        .args(["--appendfilename", &format!("{}.aof", host.name)]);
    Process::spawn(&mut command, "redis")
}

fn postgres(host: &Host, folder: &Path) -> Result<Process> {
    let programs = postgres_programs().context("no PostgreSQL")?;
    let data = folder.join("data");
    if !data.exists() {
        fs::create_dir_all(&data)?;
        chown(folder, Some(NOBODY), Some(NOBODY))?;
        chown(&data, Some(NOBODY), Some(NOBODY))?;
        let mut initdb = as_nobody(host, &programs.join("initdb"));
        initdb
            .args(["-U", "postgres", "-A", "trust", "--no-sync", "-D"])
            .arg(&data);
        let output = initdb.output().context("cannot run initdb")?;
        ensure!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let rules = "host all all all trust\n";
        fs::write(data.join("pg_hba.conf"), rules)?;
    }
    let mut command = as_nobody(host, &programs.join("postgres"));
    command.arg("-D").arg(&data);
    for setting in [
        &format!("port={POSTGRES}"),
        &format!("cluster_name={}", host.name),
        "listen_addresses=*",
        "unix_socket_directories=",
        "fsync=off",
    ] {
        command.args(["-c", setting]);
    }
    let log = fs::File::create(folder.join("log"))?;
    command.stdout(log.try_clone()?).stderr(log);
    Process::spawn(&mut command, "postgres")
}

/// A program on a host that gives up root once it is there.
fn as_nobody(host: &Host, program: &Path) -> Command {
    let mut command = host.namespace.command("setpriv");
    command
        .args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")])
        .arg("--clear-groups")
        .arg(program)
        .current_dir("/");
    command
}

/// A client that opens a new connection after every few requests.
#[derive(Debug)]
pub struct Client {
    kind: Kind,
    to: SocketAddr,
    open: Option<(BufReader<TcpStream>, u32)>,
}

impl Client {
    /// A client of the service at this address.
    pub const fn new(kind: Kind, to: SocketAddr) -> Self {
        Self {
            kind,
            to,
            open: None,
        }
    }

    fn connect(&self) -> Result<BufReader<TcpStream>> {
        let mut stream = BufReader::new(connect(self.to)?);
        match self.kind {
            Kind::Redis => {}
            Kind::Postgres => {
                let parameters = b"user\0postgres\0database\0postgres\0\0";
                let length = u32::try_from(8 + parameters.len())?;
                let mut message = length.to_be_bytes().to_vec();
                // Version 3.0 of the protocol.
                message.extend(196_608_u32.to_be_bytes());
                message.extend(parameters);
                stream.get_mut().write_all(&message)?;
                postgres_answer(&mut stream).context("logging in")?;
            }
        }
        Ok(stream)
    }
}

impl Requester for Client {
    /// Has the server say which it is.
    fn request(&mut self) -> Result<String> {
        let (mut stream, done) = match self.open.take() {
            Some(open) => open,
            None => (self.connect()?, 0),
        };
        let name = match self.kind {
            Kind::Redis => redis_name(&mut stream)?,
            Kind::Postgres => {
                let query = b"SELECT current_setting('cluster_name')\0";
                let mut message = vec![b'Q'];
                message.extend(u32::try_from(4 + query.len())?.to_be_bytes());
                message.extend(query);
                stream.get_mut().write_all(&message)?;
                postgres_answer(&mut stream)?.context("no row")?
            }
        };
        if done + 1 < REQUESTS {
            self.open = Some((stream, done + 1));
        }
        Ok(name)
    }
}

/// A write and a read.
fn redis_name(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let ask = b"INCR requests\r\nCONFIG GET appendfilename\r\n";
    stream.get_mut().write_all(ask)?;
    let mut lines = Vec::new();
    // A number; then a list of two texts, each behind its length.
    while lines.len() < 6 {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line)? > 0, "closed by the server");
        ensure!(!line.starts_with('-'), "an error: {line}");
        lines.push(line.trim_end().to_owned());
    }
    let name = lines[5].strip_suffix(".aof");
    Ok(name.with_context(|| format!("{lines:?}"))?.to_owned())
}

/// Reads until the server is ready for a query; gives the first column of the row before that.
fn postgres_answer(stream: &mut BufReader<TcpStream>) -> Result<Option<String>> {
    let mut column = None;
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length = u32::from_be_bytes(length).checked_sub(4);
        let mut body = vec![0; usize::try_from(length.context("a length under 4")?)?];
        stream.read_exact(&mut body)?;
        match kind {
            b'Z' => return Ok(column),
            b'E' => bail!("an error: {}", String::from_utf8_lossy(&body)),
            // The number of columns, then each behind its length.
            b'D' => {
                let text = body.get(6..).context("a short row")?;
                column = Some(String::from_utf8(text.to_vec())?);
            }
            _ => {}
        }
    }
}
