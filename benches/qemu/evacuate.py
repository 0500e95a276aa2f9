#!/usr/bin/env python3
"""Running Linux guests leave their host for others behind links of a given rate: by scatter, and by QEMU's own migration (default,
multifd with zstd, and post-copy after one pass over the memory; one VM after the other, or all at once). All in one run, in network
namespaces of this machine.

    cargo build --release && examples/guests/make-mix.sh
    sudo benches/qemu/evacuate.py --guests busy --repeat 5 --out benches/results/qemu/NAME.json      # downtime of a busy guest
    sudo benches/qemu/evacuate.py --guests real --hosts 3 --mbit 1000,250 --out benches/results/qemu/NAME.json
    sudo benches/qemu/evacuate.py --guests hard --hosts 3 --mbit 1000,250 --out benches/results/qemu/NAME.json

`real`: eight guests, four workloads under each of two kernels (examples/guests/live), which dirty their memory as such workloads do. `hard`: six
whose work memory cannot be compressed and is changed at random, as no real guest's is. Guests are booted once and saved; each
measurement starts them from there.

*Stopped* is from QEMU's STOP event at the source to its RESUME event at the destination: the vCPUs' own time, one clock. *Silent* is from
the guest's last tick at its source to its first one at its new host. The guests check their own memory: a BAD tick fails the run.
Needs root, qemu-system-x86_64 and iproute2. docs/evacuation.md has what came of it.
"""
import argparse, json, os, platform, shutil, signal, socket, statistics, subprocess, sys, tempfile, threading, time

from clones import machine_and_commit, CHILDREN, PATIENCE_S, ROOT, Net, Qmp, await_ticks, end, receivers, spawn, ticks

GUESTS = {
    # Name, MiB that it works on, pages that it looks at (and changes half of) at each tick, pause between ticks in ms.
    "busy": [("busy", 64, 512, 2)],
    "hard": [("idle", 4, 1, 100), ("files", 16, 8, 50), ("heap", 64, 32, 50), ("churn", 32, 256, 20), ("web", 24, 16, 30), ("db", 48, 128, 30)],
    # The region that is checked stands beside a workload and is small.
    "real": [(f"{workload}{number}", 4, 8, 150) for number in range(2) for workload in ("idle", "files", "heap", "churn")],
}
# One machine with two CPUs, a disk on storage that both ends have, which it writes to, and a network card.
GUESTS["large"] = [("files0", 64, 64, 50)]
WAYS = {"large": "hybrid,precopy,default,qemu-postcopy",
        "busy": "hybrid,qemu-postcopy", "hard": "hybrid,precopy,default,default-at-once,multifd,multifd-at-once,qemu-postcopy",
        "real": "hybrid,precopy,default,default-at-once,multifd,multifd-at-once,qemu-postcopy"}


def machine(args, spec, number):
    """The command line of a guest. Those of a mix have the kernels in turn, and each workload has each."""
    guests = os.path.join(ROOT, "target/guests")
    with open(f"{guests}/cache/kernels") as file:
        kernels = file.read().split()
    name, work, step, pause = spec
    of = GUESTS[args.guests]
    kernel = kernels[(number + number // 4 if args.guests == "real" else number) % len(kernels)] if len(of) > 1 else kernels[0]
    append = f"console=ttyS0 quiet ticker.mib={work} ticker.step={step} ticker.pause={pause}"
    initrd, more = f"{guests}/ticker/initrd", []
    if args.guests in ("real", "large"):
        initrd = f"{guests}/mix/{kernel}.initrd"
        append += f" rdinit=/live guest.workload={name[:-1]} guest.seed={number + 1} guest.mib={args.mib * 35 // 100}"
        more = ["-drive", f"if=none,id=root,file={guests}/mix/root.ext4,format=raw,readonly=on", "-device", "virtio-blk-pci,drive=root"]
    else:
        append += f" ticker.seed={number + 1}"
    if args.guests == "large":
        disk = f"{args.keep}/disk.qcow2"
        if not os.path.exists(disk):
            os.makedirs(args.keep, exist_ok=True)
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
        more += ["-drive", f"if=none,id=store,file={disk},format=qcow2", "-device", "virtio-blk-pci,drive=store", "-smp", "2",
                 "-netdev", "hubport,id=n0,hubid=0", "-device", "virtio-net-pci,netdev=n0,romfile="]
        more += {"file": ["-object", f"memory-backend-file,id=ram,size={args.mib}M,mem-path=/dev/shm,share=on", "-machine", "memory-backend=ram"],
                 "huge": ["-object", f"memory-backend-memfd,id=ram,size={args.mib}M,hugetlb=on,hugetlbsize=2M", "-machine",
                          "memory-backend=ram"], "plain": []}[args.ram]
    return ["-accel", "tcg", "-cpu", "max", "-machine", "q35,vmport=off", "-m", str(args.mib), "-nodefaults", "-no-reboot",
            "-display", "none", "-device", "vmgenid,guid={vmgenid}", "-kernel", f"{guests}/mix/{kernel}.vmlinuz",
            "-initrd", initrd, "-append", append, *more, "-serial", "file:{dir}/serial",
            "-qmp", "unix:{dir}/user.sock,server=on,wait=off", "-qmp", "unix:{dir}/leave.sock,server=on,wait=off"]


def qemu(net, host, line, directory, *more):
    os.makedirs(directory)
    line = [arg.replace("{dir}", directory).replace("{vmgenid}", "auto") for arg in line]
    log = open(f"{directory}/log", "w")
    return spawn(net.exec(host, "qemu-system-x86_64", *line, *more), stdout=log, stderr=log)


def idle_s():
    """Seconds that CPUs of this machine have had nothing to do."""
    with open("/proc/stat") as file:
        words = file.readline().split()
    return (int(words[4]) + int(words[5])) / os.sysconf("SC_CLK_TCK")


class Watch(threading.Thread):
    """Reads a QEMU's events, and when its guest ticks."""

    def __init__(self, directory):
        super().__init__(daemon=True)
        self.directory, self.events, self.at, self.over = directory, {}, [], False
        self.start()

    def run(self):
        stream, text, serial = None, b"", None
        while not self.over:
            # Often enough for ticks; the guests need the CPUs more.
            time.sleep(0.01)
            try:
                if stream is None:
                    stream = socket.socket(socket.AF_UNIX)
                    stream.connect(f"{self.directory}/user.sock")
                    stream.sendall(b'{"execute":"qmp_capabilities"}\n')
                    stream.setblocking(False)
            except OSError:
                stream = None
                continue
            try:
                text += stream.recv(65536)
            except BlockingIOError:
                pass
            except OSError:
                return
            *lines, text = text.split(b"\n")
            for line in lines:
                event = json.loads(line or b"{}")
                if "event" in event:
                    stamp = event["timestamp"]
                    self.events[event["event"]] = stamp["seconds"] + stamp["microseconds"] / 1e6
            if serial is None and os.path.exists(f"{self.directory}/serial"):
                serial = open(f"{self.directory}/serial", "rb")
            new = serial.read().count(b" OK ") if serial else 0
            self.at += [time.time()] * new


def await_sweep(args, directories):
    """More than a sweep over all of the guests' memory; and their disks, where they have some, work."""
    await_ticks(directories, 70, time.monotonic())
    for directory in directories if args.guests == "large" else []:
        with open(f"{directory}/serial", errors="replace") as file:
            if file.read().count("is right") < 3:
                raise RuntimeError(f"{directory}: its disk does not work")


def figures(source, target):
    """Of one guest, in ms."""
    source.over = target.over = True
    before = source.at[-1]
    gaps = sorted(b - a for a, b in zip(source.at[-60:], source.at[-59:]))
    after = [at for at in target.at if at > before]
    return {"stopped_ms": (target.events["RESUME"] - source.events["STOP"]) * 1e3, "silent_ms": (after[0] - before) * 1e3,
            "tick_p50_ms": gaps[len(gaps) // 2] * 1e3, "ten_ticks_ms": (after[9] - before) * 1e3}


def scatter(args, net, base, guests, mode):
    binary = os.path.abspath(args.scatter)
    vms = [{"name": of["name"], "image": f"qmp:{of['dir']}/leave.sock", "memory_mib": args.mib, "to": {"hosts": [f"h{of['host']}"]}}
           for of in guests]
    receivers(args, net, base, {"name": "guest", "args": guests[0]["line"]}, vms)
    sources = [Watch(of["dir"]) for of in guests]
    targets = [Watch(f"{base}/c{of['host']}/{of['name']}") for of in guests]
    time.sleep(1.5)
    before, traffic, idle, start = net.sent(), net.traffic(), idle_s(), time.monotonic()
    with open(f"{base}/send.log", "w") as log:
        sender = spawn(net.exec(0, binary, "send", "--group", "plan.json", "--keys", "keys/src", "--interface", "e0", "--rate",
                                f"{args.mbit * 96 // 100}M", "--mode", mode, "--report", "report.json"), cwd=base, stdout=log, stderr=log)
        if sender.wait(PATIENCE_S) != 0:
            raise RuntimeError(open(f"{base}/send.log").read())
    total, idle, sent = time.monotonic() - start, idle_s() - idle, net.sent() - before
    traffic = net.traffic() - traffic
    await_sweep(args, [watch.directory for watch in targets])
    report = json.load(open(f"{base}/report.json"))
    told = [{"downtime_told_ms": of["downtime_s"] * 1e3, "evicted_s": of["evicted_s"], "stale_pages": of["stale_pages"],
             "dirty_pages_per_s": of["dirty_pages_per_s"]} for of in report["departures"]]
    vms = [{**figures(*pair), **of} for pair, of in zip(zip(sources, targets), told)]
    return {"total_s": total, "link_bytes": sent, "traffic_bytes": traffic, "idle": idle / total / os.cpu_count(), "encoded_bytes":
            report["network"]["encoded_bytes"], "times": report["times"], "encoding": report["settings"]["encoding"], "vms": vms}


def stock(args, net, base, guests, way):
    """By QEMU's own migration, one VM after the other or all at once."""
    how, at_once = way.removesuffix("-at-once"), way.endswith("-at-once")
    capabilities = [{"capability": "multifd", "state": how == "multifd"}, {"capability": "postcopy-ram", "state": how == "qemu-postcopy"}]
    parameters = {"max-bandwidth": 0}
    if how == "multifd":
        parameters |= {"multifd-compression": "zstd", "multifd-channels": 2}
    for number, of in enumerate(guests):
        of["target"] = f"{base}/t{number}"
        qemu(net, of["host"], of["line"], of["target"], "-incoming", "defer")
        monitor = Qmp(f"{of['target']}/leave.sock")
        monitor("migrate-set-capabilities", capabilities=capabilities)
        monitor("migrate-set-parameters", **{name: value for name, value in parameters.items() if name != "max-bandwidth"})
        of["uri"] = f"tcp:10.78.0.{of['host'] + 1}:{7800 + number}"
        monitor("migrate-incoming", uri=of["uri"])
        monitor.close()
    sources = [Watch(of["dir"]) for of in guests]
    targets = [Watch(of["target"]) for of in guests]
    monitors = []
    for of in guests:
        monitors.append(Qmp(f"{of['dir']}/leave.sock"))
        monitors[-1]("migrate-set-capabilities", capabilities=capabilities)
        monitors[-1]("migrate-set-parameters", **parameters)
    time.sleep(1.5)
    before, traffic, idle, start = net.sent(), net.traffic(), idle_s(), time.monotonic()
    told, switched = [None] * len(guests), set()
    waiting, under_way = list(range(len(guests))), []
    while waiting or under_way:
        while waiting and (at_once or not under_way):
            under_way.append(waiting.pop(0))
            monitors[under_way[-1]]("migrate", uri=guests[under_way[-1]]["uri"])
        for at in list(under_way):
            now = monitors[at]("query-migrate")
            if now["status"] == "completed":
                under_way.remove(at)
                told[at] = {"downtime_told_ms": now["downtime"], "evicted_s": time.monotonic() - start,
                            "postcopy_requests": now["ram"].get("postcopy-requests", 0)}
            elif now["status"] == "failed" or time.monotonic() - start > PATIENCE_S:
                raise RuntimeError(f"{guests[at]['name']}: {now.get('error-desc', now['status'])}")
            elif how == "qemu-postcopy" and at not in switched and now.get("ram", {}).get("dirty-sync-count", 0) > 1:
                monitors[at]("migrate-start-postcopy")
                switched.add(at)
        time.sleep(0.003)
    total, idle, sent = time.monotonic() - start, idle_s() - idle, net.sent() - before
    traffic = net.traffic() - traffic
    await_sweep(args, [watch.directory for watch in targets])
    vms = [{**figures(*pair), **of} for pair, of in zip(zip(sources, targets), told)]
    return {"total_s": total, "link_bytes": sent, "traffic_bytes": traffic, "idle": idle / total / os.cpu_count(), "vms": vms}


def boot(args, net, work):
    """Boots the guests, and saves each once it works; or takes those that were."""
    os.makedirs(args.keep, exist_ok=True)
    saved = [{"name": spec[0], "host": 1 + number % args.hosts, "line": machine(args, spec, number),
              "saved": f"{args.keep}/{args.guests}-{args.mib}-{args.ram}-{spec[0]}"} for number, spec in enumerate(GUESTS[args.guests])]
    if all(os.path.exists(guest["saved"]) for guest in saved):
        return saved
    for number, guest in enumerate(saved):
        guest["child"] = qemu(net, 0, guest["line"], f"{work}/boot{number}")
    await_ticks([f"{work}/boot{number}" for number in range(len(saved))], 20, time.monotonic())
    for number, guest in enumerate(saved):
        monitor = Qmp(f"{work}/boot{number}/leave.sock")
        monitor("migrate-set-parameters", **{"max-bandwidth": 0})
        monitor("migrate", uri=f"file:{guest['saved']}.part")
        while (now := monitor("query-migrate"))["status"] != "completed":
            if now["status"] == "failed":
                raise RuntimeError(f"{guest['name']}: {now.get('error-desc', '')}")
            time.sleep(0.01)
        monitor("quit")
        guest.pop("child").wait(30)
        os.rename(f"{guest['saved']}.part", guest["saved"])
    CHILDREN.clear()
    return saved


def sweep(work):
    """Ends QEMUs with files in this directory: those that a receiver started live on without it."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                line = file.read()
            if line.startswith("qemu-system") and work in line:
                os.kill(int(pid), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass


def one(args, net, work, saved, way):
    base = tempfile.mkdtemp(prefix="e", dir=work)
    guests = []
    for number, known in enumerate(saved):
        guest = {**known, "dir": f"{base}/v{number}"}
        qemu(net, 0, guest["line"], guest["dir"], "-incoming", f"file:{guest['saved']}")
        guests.append(guest)
    await_ticks([of["dir"] for of in guests], 70, time.monotonic())
    load = os.getloadavg()[0]
    ours = way in ("hybrid", "postcopy", "precopy")
    run = (scatter if ours else stock)(args, net, base, guests, way)
    for child in CHILDREN:
        end(child)
    CHILDREN.clear()
    sweep(base)
    shutil.rmtree(base)
    median = lambda name: statistics.median(of[name] for of in run["vms"])
    print(f"{args.mbit} Mbit/s, {'scatter' if ours else 'QEMU'}, {way}: {run['total_s']:.2f} s in all, link {run['link_bytes'] / 1e6:.1f} MB, all links {run['traffic_bytes'] / 1e6:.0f} MB, CPUs idle {run['idle']:.0%}; stopped "
          f"{median('stopped_ms'):.0f} ms, silent {median('silent_ms'):.0f} ms (a tick takes {median('tick_p50_ms'):.0f} ms), ten ticks "
          f"{median('ten_ticks_ms'):.0f} ms (medians of {len(run['vms'])}); load {load:.1f}", flush=True)
    return {"what": way, "load": load, **run}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scatter", default=os.path.join(ROOT, "target/release/scatter"))
    parser.add_argument("--guests", default="busy", choices=sorted(GUESTS))
    parser.add_argument("--mib", type=int, default=256, help="memory of each guest")
    parser.add_argument("--ram", default="plain", choices=["plain", "file", "huge"], help="of large: file on /dev/shm, huge pages of 2 MiB")
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--mbit", default="1000", help="rate of each link; several: one after the other")
    parser.add_argument("--warm", type=int, help="QEMUs that wait at each host, as stock ones do; default: as many as come")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--only", help="default: " + "; ".join(f"{ways} for {guests}" for guests, ways in WAYS.items()))
    parser.add_argument("--keep", help="a directory where the saved guests stay, for a later run")
    parser.add_argument("--out")
    args = parser.parse_args()
    # Whatever ends this ends its guests.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    work = tempfile.mkdtemp(prefix="qb", dir="/dev/shm")
    args.keep = args.keep or work
    if args.warm is None:
        args.warm = -(-len(GUESTS[args.guests]) // args.hosts)
    rates = [int(rate) for rate in args.mbit.split(",")]
    args.mbit = rates[0]
    net = Net(args.hosts, args.mbit)
    result = {"guests": GUESTS[args.guests], "mib": args.mib, "hosts": args.hosts, "command": " ".join(sys.argv),
              **machine_and_commit(), "runs": []}
    try:
        saved = boot(args, net, work)
        for args.mbit in rates:
            net.close()
            net = Net(args.hosts, args.mbit)
            for _ in range(args.repeat):
                for way in (args.only or WAYS[args.guests]).split(","):
                    result["runs"].append({"mbit": args.mbit, **one(args, net, work, saved, way)})
    finally:
        for child in CHILDREN:
            if child.poll() is None:
                child.kill()
                child.wait()
        sweep(work)
        net.close()
        shutil.rmtree(work, ignore_errors=True)
    if args.out:
        os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
        with open(args.out, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
