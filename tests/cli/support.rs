//! What the tests share: a directory, the binary, keys, an inventory.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A directory of its own for a test.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        path
    }

    pub(crate) fn scatter(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scatter"));
        command.current_dir(self.dir.path()).env_remove("SCATTER_KEYS").env_remove("SCATTER_LOG");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.scatter().args(args).output().expect("scatter runs"))
    }

    /// A CA, a sender `src` and receivers.
    pub(crate) fn keys(&self, receivers: &[&str]) {
        self.run(&["keys", "init", "keys"]).ok();
        self.run(&["keys", "host", "keys", "src", "--role", "sender"]).ok();
        for name in receivers {
            self.run(&["keys", "host", "keys", name]).ok();
        }
    }

    /// Images `vm0.ram`, `vm1.ram`, … of generated guest memory.
    pub(crate) fn images(&self, vms: u16, mib: u32) {
        let fleet = lab::memory::Fleet { seed: 7, vms, pages: mib * 256, ..Default::default() };
        fleet.write_images(self.dir.path()).expect("written");
    }
}

/// How a run of the binary ended.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output of a run that went well.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self.out
    }

    /// Standard error of a run that ended with this code.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        self.err
    }
}

/// A child that ends with the test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Its exit code, or `None` if it had not ended in time.
    pub(crate) fn wait(&mut self, time: Duration) -> Option<i32> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.0.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A receiver on a free port of the loopback interface, listening.
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    pub(crate) store: PathBuf,
    pub(crate) running: Running,
    pub(crate) log: PathBuf,
}

impl Host {
    pub(crate) fn start(bench: &Bench, name: &'static str, more: &[&str]) -> Self {
        let port = free_tcp_port();
        let (store, log) = (bench.path(&format!("store-{name}")), bench.path(&format!("{name}.log")));
        let out = fs::File::create(&log).expect("a log");
        let mut command = bench.scatter();
        command
            .args(["receive", "--interface", "lo", "--name", name, "--listen", &format!("127.0.0.1:{port}")])
            .args(["--keys", &format!("keys/{name}"), "--while-stdin", "--store"])
            .arg(&store)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out);
        let running = Running(command.spawn().expect("scatter runs"));
        let host = Self { name, port, store, running, log };
        host.await_line("listening");
        host
    }

    /// Waits until the log has a line with `word`.
    #[track_caller]
    pub(crate) fn await_line(&self, word: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.said().contains(word) {
            assert!(Instant::now() < deadline, "{} never said `{word}`: {}", self.name, self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

pub(crate) fn free_tcp_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    free.expect("a free port").port()
}

pub(crate) fn free_udp_port() -> u16 {
    let free = UdpSocket::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    free.expect("a free port").port()
}

/// An inventory: `vms` as (name, image, target), hosts as (name, port).
pub(crate) fn inventory(vms: &[(&str, &str, serde_json::Value)], hosts: &[(&str, u16)]) -> serde_json::Value {
    let host = |(name, port): &(&str, u16)| {
        serde_json::json!({"name": name, "address": format!("127.0.0.1:{port}"), "memory_mib": 4096, "vcpus": 64,
            "rate_mbps": 1000})
    };
    let vm = |(name, image, to): &(&str, &str, serde_json::Value)| serde_json::json!({"name": name, "image": image, "memory_mib": 64, "to": to});
    serde_json::json!({
        "version": 1,
        "name": "test",
        "source": {"name": "src", "rate_mbps": 1000},
        "hosts": hosts.iter().map(host).collect::<Vec<_>>(),
        "vms": vms.iter().map(vm).collect::<Vec<_>>(),
        // Tests run side by side: each has groups of its own by its port, and of its own address.
        "multicast": {"pool": format!("239.{}.0.0/16", 200 + free_udp_port() % 27), "port": free_udp_port()},
    })
}

#[track_caller]
pub(crate) fn same_file(a: &Path, b: &Path) {
    let read = |path: &Path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(read(a) == read(b), "{} is not {}", b.display(), a.display());
}
