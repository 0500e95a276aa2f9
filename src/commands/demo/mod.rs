//! `scatter demo`: the whole of it on this machine, beside a TCP stream to each host.

mod children;
mod clones;
mod memory;
mod place;
mod tcp;

use crate::cli::args::{Demo, Plan as PlanArgs};
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::{self, write_file};
use crate::interrupt::{self, Flag};
use crate::report::{self, Alternative, Comparison, TransferReport};
use crate::units;
use anyhow::Context;
use children::{HostSetup, ReceivingHost};
use clones::Cloned;
use memory::Memory;
use net::pki::{self, Role};
use place::Place;
use planner::Plan;
use serde_json::json;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use tcp::Load;

/// Port of the receivers where each has an address of its own.
const PORT: u16 = 47_078;
/// Port of the groups there.
const GROUP_PORT: u16 = 47_077;
const MIB: u64 = 1 << 20;

/// Everything that the demo has made.
struct Stage<'a> {
    args: &'a Demo,
    place: Place,
    dir: PathBuf,
    memory: Memory,
    interrupt: Flag,
}

pub(crate) fn run(args: &Demo) -> Outcome {
    // Before any thread or file is made: this may start the program anew.
    let entered = if args.loopback { None } else { Some(place::enter()) };
    let interrupt = interrupt::install().or_exit(Exit::System)?;
    let kept = args.keep.as_deref().map(keep).transpose()?;
    let temporary = match kept {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("scatter-demo-").tempdir().or_exit(Exit::System)?),
    };
    let dir = temporary.as_ref().map_or_else(|| kept.unwrap_or_default(), |dir| dir.path().to_owned());
    let place = place(args, entered);
    for folder in ["images", "stores", "tcp"] {
        make_dir(&dir.join(folder))?;
    }
    let memory = memory::memory(args, &dir.join("images"))?;
    println!("memory: {} VMs, {}", memory.images.len(), memory.words);
    let stage = Stage { args, place, dir, memory, interrupt };
    let outcome = stage.play();
    if stage.interrupt.load(Ordering::Relaxed) {
        return Err(Failure::new(Exit::Interrupted, "interrupted"));
    }
    let (report, cloned) = outcome?;
    stage.show(&report, cloned.as_ref())?;
    let right = verified(&report) && cloned.as_ref().is_none_or(clones::verified);
    Ok(if right { Exit::Done } else { Exit::Internal })
}

fn keep(dir: &Path) -> Outcome<PathBuf> {
    make_dir(dir)?;
    let mut entries = std::fs::read_dir(dir).or_exit(Exit::Input)?;
    if entries.next().is_some() {
        let message = format!("{} is not empty; name a new directory to keep things in", dir.display());
        return Err(Failure::new(Exit::Usage, message));
    }
    std::path::absolute(dir).or_exit(Exit::Input)
}

fn make_dir(dir: &Path) -> Outcome<()> {
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
        .or_exit(Exit::Input)
}

/// Hosts in namespaces if they can be had, else the loopback interface, and says which.
fn place(args: &Demo, entered: Option<Result<(), lab::hosts::LabError>>) -> Place {
    let made = match entered {
        None => {
            println!("hosts: {} processes on the loopback interface (--loopback), without loss", args.hosts);
            return Place::Loopback;
        }
        Some(entered) => entered.and_then(|()| Place::lab(args.hosts, args.rate, args.loss)),
    };
    match made {
        Ok(place) => {
            println!(
                "hosts: {} namespaces on a snooping bridge, {} from the sender, {} of the datagrams lost at each",
                args.hosts,
                units::bit_rate(units::float(args.rate)),
                units::percent(args.loss.into(), 1000)
            );
            place
        }
        Err(error) => {
            println!("hosts: {} processes on the loopback interface, without loss, as {error}", args.hosts);
            Place::Loopback
        }
    }
}

impl Stage<'_> {
    fn host_name(host: u16) -> String {
        format!("h{host}")
    }

    fn hosts(&self) -> impl Iterator<Item = u16> + use<> {
        1..=self.args.hosts
    }

    /// Keys, images, running VMs.
    fn play(&self) -> Outcome<(TransferReport, Option<Cloned>)> {
        let keys = self.keys()?;
        let mut report = self.images(&keys)?;
        let cloned = clones::play(self, &keys)?;
        report.clones = cloned.as_ref().map(|cloned| cloned.report.clone());
        report::write(&report, &self.dir.join("report.json"))?;
        Ok((report, cloned))
    }

    /// Plan, transfer, comparison.
    fn images(&self, keys: &Path) -> Outcome<TransferReport> {
        let listen = self.listen_addresses()?;
        let plan = self.plan(&listen)?;
        let mut receivers = self.receivers(keys, &listen, "stores", &["--once"])?;
        receivers.iter_mut().try_for_each(ReceivingHost::ready)?;
        let before = self.place.sent_bytes().or_exit(Exit::System)?;
        let path = self.dir.join("report.json");
        let plan_path = self.dir.join("plan.json");
        let (src, rate) = (keys.join("src"), self.args.rate);
        println!("sending:");
        let status = children::send("send", &self.place, &plan_path, &src, rate, &path, &self.interrupt)?;
        let after = self.place.sent_bytes().or_exit(Exit::System)?;
        let last: Vec<Option<String>> = receivers.into_iter().map(ReceivingHost::end).collect();
        if !status.success() {
            let said = last.into_iter().flatten().collect::<Vec<_>>().join("\n");
            return Err(Failure::new(Exit::AllFailed, format!("the transfer failed ({status})\n{said}")));
        }
        let mut report = TransferReport::read(&path)?;
        let counted = before.zip(after).map(|(before, after)| after - before);
        let scatter = Alternative {
            name: "scatter".to_owned(),
            link_bytes: counted.unwrap_or(report.network.wire_bytes),
            seconds: report.times.total_s,
            verified: self.compare(&plan, "stores"),
        };
        let tcp = self.tcp(&plan)?;
        let (links, counted) = self.words();
        report.comparison = Some(Comparison {
            memory: self.memory.words.clone(),
            links,
            counted,
            scatter,
            others: vec![tcp],
        });
        Ok(report)
    }

    fn keys(&self) -> Outcome<PathBuf> {
        let dir = self.dir.join("keys");
        pki::create_ca(&dir).or_exit(Exit::System)?;
        pki::issue_host(&dir, "src", &[Role::Sender], &[], 1).or_exit(Exit::System)?;
        for host in self.hosts() {
            pki::issue_host(&dir, &Self::host_name(host), &[Role::Receiver], &[], 1).or_exit(Exit::System)?;
        }
        Ok(dir)
    }

    /// Where the receivers will listen; ports are looked for where all share an address.
    fn listen_addresses(&self) -> Outcome<Vec<SocketAddr>> {
        let address = |host: u16| match &self.place {
            Place::Lab(_) => Ok(SocketAddr::new(self.place.address(host).into(), PORT)),
            Place::Loopback => {
                TcpListener::bind((self.place.address(host), 0)).and_then(|free| free.local_addr())
            }
        };
        self.hosts().map(address).collect::<std::io::Result<_>>().or_exit(Exit::System)
    }

    /// The first VM is cloned to every host, each other one goes to the host that suits best.
    fn plan(&self, listen: &[SocketAddr]) -> Outcome<Plan> {
        let mib = |bytes: u64| bytes.div_ceil(MIB);
        let (first, rest) = self.memory.images.split_first().expect("there is at least one image");
        let share = rest.len().div_ceil(usize::from(self.args.hosts)) as u64;
        let largest = rest.iter().map(|image| mib(image.bytes)).max().unwrap_or(0);
        let rate_mbps = (self.args.rate / 1_000_000).max(1);
        let host = |(host, address): (u16, &SocketAddr)| {
            json!({"name": Self::host_name(host), "address": address.to_string(), "vcpus": 64,
                "memory_mib": mib(first.bytes) + share * largest, "rate_mbps": rate_mbps})
        };
        let vm = |image: &memory::Image, copies: u16| json!({"name": image.name, "image": image.path, "memory_mib": mib(image.bytes), "to": {"clones": copies}});
        let clone = std::iter::once(vm(first, self.args.hosts));
        let inventory = json!({
            "version": 1,
            "name": "demo",
            "source": {"name": "src", "rate_mbps": rate_mbps},
            "hosts": self.hosts().zip(listen).map(host).collect::<Vec<_>>(),
            "vms": clone.chain(rest.iter().map(|image| vm(image, 1))).collect::<Vec<_>>(),
            "multicast": {"pool": "239.77.0.0/16", "port": self.group_port()?},
        });
        let (path, output) = (self.dir.join("inventory.json"), self.dir.join("plan.json"));
        write_file(&path, &format!("{inventory:#}\n"))?;
        make_plan(path, &output)?;
        commands::read_plan(&output)
    }

    fn group_port(&self) -> Outcome<u16> {
        match &self.place {
            Place::Lab(_) => Ok(GROUP_PORT),
            Place::Loopback => {
                let free = UdpSocket::bind(("0.0.0.0", 0)).and_then(|free| free.local_addr());
                free.map(|address| address.port()).or_exit(Exit::System)
            }
        }
    }

    /// Receivers with stores under `folder`, and further flags.
    fn receivers(
        &self,
        keys: &Path,
        listen: &[SocketAddr],
        folder: &str,
        flags: &[&str],
    ) -> Outcome<Vec<ReceivingHost>> {
        let start = |(host, listen): (u16, &SocketAddr)| {
            let name = Self::host_name(host);
            let setup = HostSetup {
                name: &name,
                listen: *listen,
                store: self.dir.join(folder).join(&name),
                flags,
                keys: keys.join(&name),
            };
            ReceivingHost::start(&self.place, host, &setup)
        };
        self.hosts().zip(listen).map(start).collect()
    }

    /// What each host gets, with where it is to stand under `folder`.
    fn loads(&self, plan: &Plan, folder: &str) -> Vec<Load> {
        let images = |name: &String| -> Vec<(PathBuf, PathBuf)> {
            let there = plan.vms.iter().zip(&self.memory.images).filter(|(vm, _)| vm.hosts.contains(name));
            there
                .map(|(vm, image)| {
                    let target = self.dir.join(folder).join(name).join(format!("{}.ram", vm.name));
                    (image.path.clone(), target)
                })
                .collect()
        };
        self.hosts().map(|host| Load { host, images: images(&Self::host_name(host)) }).collect()
    }

    /// Whether every image under `folder` is its source, byte for byte.
    fn compare(&self, plan: &Plan, folder: &str) -> bool {
        let pairs: Vec<(PathBuf, PathBuf)> =
            self.loads(plan, folder).into_iter().flat_map(|load| load.images).collect();
        let different: Vec<&(PathBuf, PathBuf)> =
            pairs.iter().filter(|(source, target)| !tcp::same_bytes(source, target)).collect();
        for (source, target) in &different {
            println!("DIFFERENT: {} is not {}", target.display(), source.display());
        }
        if different.is_empty() {
            println!("compared: {} rebuilt images are byte for byte their sources", pairs.len());
        }
        different.is_empty()
    }

    fn tcp(&self, plan: &Plan) -> Outcome<Alternative> {
        println!("the same images by a plaintext TCP stream to each host:");
        let loads = self.loads(plan, "tcp");
        for host in self.hosts() {
            make_dir(&self.dir.join("tcp").join(Self::host_name(host)))?;
        }
        let before = self.place.sent_bytes().or_exit(Exit::System)?;
        let took = tcp::streams(&self.place, &loads, &self.interrupt)?;
        let after = self.place.sent_bytes().or_exit(Exit::System)?;
        let payload = || {
            let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            loads.iter().flat_map(|load| &load.images).map(|(source, _)| length(source)).sum()
        };
        Ok(Alternative {
            name: "TCP stream to each host".to_owned(),
            link_bytes: before.zip(after).map_or_else(payload, |(before, after)| after - before),
            seconds: took.as_secs_f64(),
            verified: self.compare(plan, "tcp"),
        })
    }

    /// The links, and how bytes were counted, in words.
    fn words(&self) -> (String, String) {
        match &self.place {
            Place::Lab(_) => (
                format!(
                    "{} from the sender, MTU 1500, {} of all packets lost at each host",
                    units::bit_rate(units::float(self.args.rate)),
                    units::percent(self.args.loss.into(), 1000)
                ),
                "by the sender's interface, all headers and control connections counted".to_owned(),
            ),
            Place::Loopback => (
                "the loopback interface, without loss: no link at all, so times say little".to_owned(),
                "by scatter itself with all datagrams' headers; of TCP its payload alone".to_owned(),
            ),
        }
    }

    /// The table, and the page.
    fn show(&self, report: &TransferReport, cloned: Option<&Cloned>) -> Outcome<()> {
        let comparison = report.comparison.as_ref().expect("the demo compares");
        println!("\n{:<26}{:>14}{:>12}   byte-identical", "", "sender's link", "time");
        for way in std::iter::once(&comparison.scatter).chain(&comparison.others) {
            println!(
                "{:<26}{:>14}{:>12}   {}",
                way.name,
                units::bytes(way.link_bytes),
                units::time(way.seconds),
                if way.verified { "yes" } else { "NO" }
            );
        }
        for other in &comparison.others {
            println!(
                "{:<26}{:>13.1}×{:>11.1}×",
                "less by",
                units::float(other.link_bytes) / units::float(comparison.scatter.link_bytes.max(1)),
                other.seconds / comparison.scatter.seconds.max(1e-9)
            );
        }
        if let Some(cloned) = cloned {
            clones::show(cloned);
        }
        println!(
            "\nmemory: {}\nlinks: {}\nbytes: {}",
            comparison.memory, comparison.links, comparison.counted
        );
        match report::write(report, &self.args.html) {
            Ok(()) => println!("report: {}", self.args.html.display()),
            // The demo has shown what it is for.
            Err(failure) => eprintln!("scatter: no page to look at: {:#}", failure.error),
        }
        if let Some(keep) = &self.args.keep {
            println!("everything made is in {}", keep.display());
        }
        if self.args.open {
            let quiet = || Stdio::null();
            let opened =
                Command::new("xdg-open").arg(&self.args.html).stdout(quiet()).stderr(quiet()).spawn();
            opened.context("cannot run xdg-open").or_exit(Exit::System)?;
        }
        Ok(())
    }
}

fn make_plan(inventory: PathBuf, output: &Path) -> Outcome<()> {
    commands::plan::run(&PlanArgs {
        inventory,
        output: Some(output.to_owned()),
        signatures: None,
        save_signatures: None,
        no_measure: false,
        explain: None,
        without: Vec::new(),
        apart: Vec::new(),
        groups: false,
        svg: None,
        seed: 0,
        threads: None,
    })
    .map(drop)
}

fn verified(report: &TransferReport) -> bool {
    report.comparison.as_ref().is_some_and(|comparison| comparison.scatter.verified)
}
