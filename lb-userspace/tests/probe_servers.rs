//! Redis, PostgreSQL, LDAP and DNS probes against the real servers, and the PROXY protocol's header against
//! nginx and HAProxy, each an own instance on loopback with its data under a temporary directory.
//!
//! Where a server is not installed its test says so and is skipped; `cargo xtask setup --ci`
//! installs them. With `LB_REQUIRE_SERVERS` in the environment a missing one is a failure.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lb_userspace::model::{
    DnsProbe, Egress, HttpProbe, LdapProbe, PostgresProbe, ProbeKind, ProbeSpec, ProxyProtocol,
    RedisProbe, RedisRole, Reuse, StatusRange,
};
use lb_userspace::probe::{Class, Outcome, Prober, Verdict};

/// The servers start on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends with the value that started it.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Daemon {
    /// Asks it to end, so that it cleans up (PostgreSQL's shared memory); insists after a while.
    fn drop(&mut self) {
        let pid = libc::pid_t::try_from(self.0.id()).unwrap();
        // SAFETY: the process is this one's child and not waited for: the number is its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Ok(None) = self.0.try_wait() {
            if Instant::now() > deadline {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The first of `places` that there is.
fn installed(name: &str, places: &[PathBuf]) -> Option<PathBuf> {
    let found = places.iter().find(|path| path.exists()).cloned();
    if found.is_none() {
        let required = std::env::var_os("LB_REQUIRE_SERVERS").is_some();
        assert!(!required, "{name} is not installed");
        eprintln!("skipped: {name} is not installed; `cargo xtask setup --ci` installs it");
    }
    found
}

/// A port that is free now. Another process may take it before the server does: the probes would
/// then say so.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

async fn probe(port: u16, kind: &ProbeKind) -> Outcome {
    let spec = ProbeSpec {
        target: loopback(port),
        timeout: Duration::from_secs(5),
        kind: kind.clone().into(),
        egress: Default::default(),
    };
    Prober::new().run(&spec).await
}

/// Probes until the outcome is of this class.
async fn until(port: u16, kind: &ProbeKind, class: Class) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let outcome = probe(port, kind).await;
        if outcome.class == class {
            return outcome;
        }
        assert!(Instant::now() < deadline, "want {class:?}: {outcome:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Debian's redis-tools has the server, too, under another name; it starts no daemon.
fn redis(folder: &Path, port: u16, more: &[&str]) -> Option<Daemon> {
    let program = installed(
        "redis-server",
        &[
            "/usr/bin/redis-server".into(),
            "/usr/local/bin/redis-server".into(),
            "/usr/bin/redis-check-rdb".into(),
        ],
    )?;
    let mut command = Command::new(program);
    command
        .arg0("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--port"])
        .arg(port.to_string())
        .arg("--dir")
        .arg(folder)
        .args(more);
    Some(Daemon::start(&mut command))
}

#[tokio::test]
async fn redis_itself() {
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "secret\n").unwrap();
    let kind = |password_file: Option<&Path>, user: Option<&str>, role| {
        ProbeKind::Redis(RedisProbe {
            user: user.map(str::to_owned),
            password_file: password_file.map(Path::to_owned),
            role,
            absent_key: None,
            tls: None,
        })
    };
    let (port, replica_port) = (free_port(), free_port());
    let Some(server) = redis(folder.path(), port, &["--requirepass", "secret"]) else {
        return;
    };
    let good = kind(Some(&password), None, Some(RedisRole::Master));
    let outcome = until(port, &good, Class::Ok).await;
    assert_eq!(outcome.detail, "PONG, master");

    let outcome = probe(port, &kind(None, None, None)).await;
    assert_eq!(outcome.class, Class::Application, "{outcome:?}");
    assert!(
        outcome.detail.contains("set `password_file`"),
        "{outcome:?}"
    );
    let named = kind(Some(&password), Some("default"), None);
    assert_eq!(probe(port, &named).await.detail, "PONG");
    let nobody = kind(Some(&password), Some("nobody"), None);
    let outcome = probe(port, &nobody).await;
    assert!(outcome.detail.contains("WRONGPASS"), "{outcome:?}");

    let ProbeKind::Redis(named) = named else {
        unreachable!()
    };
    let unless = ProbeKind::Redis(RedisProbe {
        absent_key: Some("maintenance".to_owned()),
        ..named
    });
    assert_eq!(probe(port, &unless).await.detail, "no key \"maintenance\"");
    let mut client = TcpStream::connect(loopback(port)).unwrap();
    client
        .write_all(b"AUTH secret\r\nSET maintenance 1\r\nQUIT\r\n")
        .unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert_eq!(said, "+OK\r\n+OK\r\n+OK\r\n");
    let outcome = probe(port, &unless).await;
    assert_eq!(
        (outcome.class, outcome.detail.as_str()),
        (Class::Application, "the key \"maintenance\" exists")
    );

    let other = tempfile::tempdir().unwrap();
    let master = format!("127.0.0.1 {port}");
    let _replica = redis(
        other.path(),
        replica_port,
        &[
            "--masterauth",
            "secret",
            "--replicaof",
            &master,
            "--repl-diskless-sync-delay",
            "0",
        ],
    );
    let any = kind(None, None, Some(RedisRole::Any));
    let outcome = until(replica_port, &any, Class::Ok).await;
    assert_eq!(outcome.detail, format!("PONG, replica of 127.0.0.1:{port}"));
    drop(server);
    let outcome = until(replica_port, &any, Class::Application).await;
    assert!(
        outcome.detail.starts_with("replica without its master"),
        "{outcome:?}"
    );
}

/// Directory of PostgreSQL's programs, of the newest version there is.
fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut places: Vec<PathBuf> = versions
        .flatten()
        .map(|version| version.path().join("bin"))
        .filter(|programs| programs.join("postgres").exists())
        .collect();
    places.sort();
    places.reverse();
    installed("postgresql", &places)
}

/// PostgreSQL refuses to run as root.
fn as_nobody(command: &mut Command) -> &mut Command {
    const NOBODY: u32 = 65534;
    // SAFETY: geteuid only reads.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn postgres(programs: &Path, data: &Path, port: u16, more: &[&str]) -> Daemon {
    let mut command = Command::new(programs.join("postgres"));
    command
        .arg("-D")
        .arg(data)
        .args(["-p", &port.to_string()])
        .args(["-c", "listen_addresses=127.0.0.1"])
        .args(["-c", "unix_socket_directories="])
        .args(["-c", "fsync=off"]);
    for setting in more {
        command.args(["-c", setting]);
    }
    Daemon::start(as_nobody(&mut command))
}

#[tokio::test]
async fn postgres_itself() {
    let Some(programs) = postgres_programs() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    // SAFETY: geteuid only reads.
    if unsafe { libc::geteuid() } == 0 {
        chown(&data, Some(65534), Some(65534)).unwrap();
    }
    let password = folder.path().join("password");
    fs::write(&password, "secret\n").unwrap();
    let made = as_nobody(&mut Command::new(programs.join("initdb")))
        .args(["-U", "postgres", "-A", "scram-sha-256", "--no-sync"])
        .arg("--pwfile")
        .arg(&password)
        .arg("-D")
        .arg(&data)
        .current_dir("/")
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );

    let kind = ProbeKind::Postgres(PostgresProbe {
        user: "lb".to_owned(),
        database: None,
    });
    let port = free_port();
    let server = postgres(&programs, &data, port, &[]);
    let outcome = until(port, &kind, Class::Ok).await;
    assert_eq!(outcome.detail, "accepts connections (asks for SCRAM)");
    drop(server);

    // A standby that still asks its archive has not started.
    fs::write(data.join("standby.signal"), "").unwrap();
    let port = free_port();
    let _standby = postgres(&programs, &data, port, &["restore_command=sleep 10; false"]);
    let outcome = until(port, &kind, Class::Starting).await;
    assert_eq!(outcome.verdict, Verdict::Failure);
    assert_eq!(
        outcome.detail,
        "FATAL: \"the database system is starting up\" (57P03)"
    );
}

#[tokio::test]
async fn dnsmasq_itself() {
    let Some(program) = installed("dnsmasq", &["/usr/sbin/dnsmasq".into()]) else {
        return;
    };
    let port = free_port();
    let _server = Daemon::start(
        Command::new(program)
            .args([
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--conf-file=/dev/null",
            ])
            .args([
                "--listen-address=127.0.0.1",
                "--bind-interfaces",
                "--user=",
                "--pid-file=",
            ])
            .args([
                "--address=/web.test/192.0.2.1",
                "--address=/web.test/2001:db8::1",
            ])
            .args(["--local=/test/"])
            .arg(format!("--port={port}")),
    );
    let kind = |name: &str, query_type, rcode, answers: &[&str]| {
        ProbeKind::Dns(DnsProbe {
            name: name.to_owned(),
            query_type,
            rcode,
            answers: answers.iter().map(|ip| ip.parse().unwrap()).collect(),
        })
    };
    const NOERROR: (&str, u8) = ("NOERROR", 0);
    const A: (&str, u16) = ("A", 1);
    let outcome = until(
        port,
        &kind("web.test", A, NOERROR, &["192.0.2.1"]),
        Class::Ok,
    )
    .await;
    assert_eq!(outcome.detail, "NOERROR, 1 record: 192.0.2.1");
    let v6 = kind("web.test", ("AAAA", 28), NOERROR, &["2001:db8::1"]);
    assert_eq!(
        probe(port, &v6).await.detail,
        "NOERROR, 1 record: 2001:db8::1"
    );
    let outcome = probe(port, &kind("none.test", A, NOERROR, &[])).await;
    assert_eq!(outcome.detail, "NXDOMAIN for none.test., want NOERROR");
    let absent = kind("none.test", A, ("NXDOMAIN", 3), &[]);
    assert_eq!(probe(port, &absent).await.verdict, Verdict::Success);
    let outcome = probe(port, &kind("", ("NS", 2), NOERROR, &[])).await;
    assert_eq!(outcome.detail, "REFUSED for ., want NOERROR");
}

#[tokio::test]
async fn slapd_itself() {
    let Some(program) = installed("slapd", &["/usr/sbin/slapd".into()]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let start = |name: &str, settings: &str| {
        let (port, file) = (free_port(), folder.path().join(name));
        fs::write(&file, settings).unwrap();
        let mut command = Command::new(&program);
        command
            .args(["-d", "0", "-h", &format!("ldap://127.0.0.1:{port}/"), "-f"])
            .arg(&file);
        (port, Daemon::start(&mut command))
    };
    let kind = ProbeKind::Ldap(LdapProbe { tls: None });
    let (port, server) = start("open.conf", "");
    let outcome = until(port, &kind, Class::Ok).await;
    assert_eq!(outcome.detail, "anonymous bind: success");
    drop(server);
    assert_eq!(probe(port, &kind).await.class, Class::Refused);
    let (port, _server) = start("closed.conf", "disallow bind_anon\n");
    let outcome = until(port, &kind, Class::Application).await;
    assert_eq!(
        outcome.detail,
        "anonymous bind refused: inappropriateAuthentication (48), \"anonymous bind disallowed\""
    );
}

/// Asks nginx, or HAProxy, which take no connection without a header. What they take for the client's
/// address is the body of the answer.
async fn introduced(port: u16, version: Option<ProxyProtocol>, expect_body: &str) -> Outcome {
    let status = StatusRange {
        first: 200,
        last: 200,
    };
    let spec = ProbeSpec {
        target: loopback(port),
        timeout: Duration::from_secs(5),
        kind: ProbeKind::Http(HttpProbe {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: Some("localhost".to_owned()),
            expect_status: vec![status],
            expect_body: Some(expect_body.to_owned()),
            reuse: Some(Reuse {
                max_age: Duration::from_secs(60),
                max_uses: 10,
            }),
            ..HttpProbe::default()
        })
        .into(),
        egress: Egress {
            proxy_protocol: version,
            ..Egress::default()
        },
    };
    let prober = Prober::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let outcome = prober.run(&spec).await;
        if outcome.class != Class::Refused {
            // A kept connection has had its header.
            let again = prober.run(&spec).await;
            assert_eq!(again.class, outcome.class, "{again:?}");
            return outcome;
        }
        assert!(Instant::now() < deadline, "it never listens");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Both versions are taken, and to go without is a failure.
async fn demands_a_header(port: u16) {
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let outcome = introduced(port, Some(version), "127.0.0.1").await;
        assert_eq!(outcome.class, Class::Ok, "{version:?}: {outcome:?}");
        let steps: Vec<_> = outcome.steps.iter().map(|step| step.name).collect();
        assert_eq!(steps[..2], ["connect", "proxy"]);
    }
    let outcome = introduced(port, None, "127.0.0.1").await;
    assert_eq!(outcome.verdict, Verdict::Failure, "{outcome:?}");
}

#[tokio::test]
async fn nginx_that_demands_a_proxy_header() {
    let Some(program) = installed("nginx", &["/usr/sbin/nginx".into()]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (port, at) = (free_port(), folder.path().display());
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
        .concat();
    let text = format!(
        "daemon off;\nmaster_process off;\npid {at}/nginx.pid;\nerror_log {at}/error.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{\n{temporary}access_log off;\nserver {{\n\
         listen 127.0.0.1:{port} proxy_protocol;\n\
         location / {{ return 200 \"$remote_addr\"; }}\n}}\n}}\n"
    );
    let file = folder.path().join("nginx.conf");
    fs::write(&file, text).unwrap();
    let _server = Daemon::start(Command::new(program).arg("-c").arg(&file));
    demands_a_header(port).await;
}

#[tokio::test]
async fn haproxy_that_demands_a_proxy_header() {
    let Some(program) = installed("haproxy", &["/usr/sbin/haproxy".into()]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let text = format!(
        "defaults\n mode http\n timeout client 9s\n\
         frontend web\n bind 127.0.0.1:{port} accept-proxy\n\
         http-request return status 200 content-type text/plain lf-string %[src]\n"
    );
    let file = folder.path().join("haproxy.cfg");
    fs::write(&file, text).unwrap();
    let _server = Daemon::start(Command::new(program).args(["-db", "-f"]).arg(&file));
    demands_a_header(port).await;
}
