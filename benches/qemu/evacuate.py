#!/usr/bin/env python3
"""Running Linux guests leave their host for others behind links of a given rate: by scatter, and by QEMU's own migration (default,
multifd with zstd, and post-copy after one pass over the memory). All in one run, in network namespaces of this machine.

    cargo build --release && examples/guests/make-ticker.sh
    sudo benches/qemu/evacuate.py --guests busy --repeat 5 --out benches/results/qemu/NAME.json      # downtime of a busy guest
    sudo benches/qemu/evacuate.py --guests mix --hosts 3 --out benches/results/qemu/NAME.json        # bytes and time of six guests

*Stopped* is from QEMU's STOP event at the source to its RESUME event at the destination: the vCPUs' own time, one clock. *Silent* is from
the guest's last tick at its source to its first one at its new host. The guests check their own memory: a BAD tick fails the run.
Needs root, qemu-system-x86_64 and iproute2. docs/evacuation.md has what came of it.
"""
import argparse, json, os, platform, shutil, signal, socket, subprocess, sys, tempfile, threading, time

from clones import CHILDREN, PATIENCE_S, ROOT, Net, Qmp, await_ticks, end, receivers, spawn, ticks

GUESTS = {
    # Name, MiB that it works on, pages that it looks at (and changes half of) at each tick, pause between ticks in ms.
    "busy": [("busy", 64, 512, 2)],
    "mix": [("idle", 4, 1, 100), ("files", 16, 8, 50), ("heap", 64, 32, 50), ("churn", 32, 256, 20), ("web", 24, 16, 30), ("db", 48, 128, 30)],
}


def kernels(guest):
    """The guest's own kernel, and any other that make-guests.sh has unpacked: guests of a mix have them in turn."""
    cache = os.path.join(ROOT, "target/guests/cache")
    found = []
    for package in sorted(os.listdir(cache)):
        boot = os.path.join(cache, package, "boot")
        if package.startswith("linux-image-") and os.path.isdir(boot):
            found += [os.path.join(boot, name) for name in sorted(os.listdir(boot)) if name.startswith("vmlinuz")]
    return found or [f"{guest}/vmlinuz"]


def machine(args, spec, number):
    guest = os.path.join(ROOT, "target/guests/ticker")
    _, work, step, pause = spec
    among = kernels(guest)
    append = f"console=ttyS0 quiet ticker.mib={work} ticker.step={step} ticker.pause={pause} ticker.seed={number + 1}"
    return ["-accel", "tcg", "-cpu", "max", "-machine", "q35,vmport=off", "-m", str(args.mib), "-nodefaults", "-no-reboot",
            "-display", "none", "-device", "vmgenid,guid={vmgenid}", "-kernel", among[number % len(among)],
            "-initrd", f"{guest}/initrd", "-append", append, "-serial", "file:{dir}/serial",
            "-qmp", "unix:{dir}/user.sock,server=on,wait=off", "-qmp", "unix:{dir}/leave.sock,server=on,wait=off"]


def qemu(net, host, line, directory, *more):
    os.makedirs(directory)
    line = [arg.replace("{dir}", directory).replace("{vmgenid}", "auto") for arg in line]
    log = open(f"{directory}/log", "w")
    return spawn(net.exec(host, "qemu-system-x86_64", *line, *more), stdout=log, stderr=log)


class Watch(threading.Thread):
    """Reads a QEMU's events, and when its guest ticks."""

    def __init__(self, directory):
        super().__init__(daemon=True)
        self.directory, self.events, self.at, self.over = directory, {}, [], False
        self.start()

    def run(self):
        stream, text, serial = None, b"", None
        while not self.over:
            time.sleep(0.003)
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
    before, start = net.sent(), time.monotonic()
    with open(f"{base}/send.log", "w") as log:
        sender = spawn(net.exec(0, binary, "send", "--group", "plan.json", "--keys", "keys/src", "--interface", "e0", "--rate",
                                f"{args.mbit * 96 // 100}M", "--mode", mode, "--report", "report.json"), cwd=base, stdout=log, stderr=log)
        if sender.wait(PATIENCE_S) != 0:
            raise RuntimeError(open(f"{base}/send.log").read())
    total, sent = time.monotonic() - start, net.sent() - before
    await_ticks([watch.directory for watch in targets], 70, time.monotonic())
    report = json.load(open(f"{base}/report.json"))
    told = [{"downtime_told_ms": of["downtime_s"] * 1e3, "evicted_s": of["evicted_s"], "stale_pages": of["stale_pages"],
             "dirty_pages_per_s": of["dirty_pages_per_s"]} for of in report["departures"]]
    vms = [{**figures(*pair), **of} for pair, of in zip(zip(sources, targets), told)]
    return {"total_s": total, "link_bytes": sent, "encoded_bytes": report["network"]["encoded_bytes"], "vms": vms}


def stock(args, net, base, guests, way):
    """By QEMU's own migration, one after the other."""
    capabilities = [{"capability": "multifd", "state": way == "multifd"}, {"capability": "postcopy-ram", "state": way == "qemu-postcopy"}]
    parameters = {"max-bandwidth": 0}
    if way == "multifd":
        parameters |= {"multifd-compression": "zstd", "multifd-channels": 2}
    for number, of in enumerate(guests):
        of["target"] = f"{base}/t{number}"
        qemu(net, of["host"], of["line"], of["target"], "-incoming", "defer")
        monitor = Qmp(f"{of['target']}/leave.sock")
        monitor("migrate-set-capabilities", capabilities=capabilities)
        monitor("migrate-set-parameters", **{name: value for name, value in parameters.items() if name != "max-bandwidth"})
        of["uri"] = f"tcp:10.78.0.{of['host'] + 1}:{7800 + number}"
        monitor("migrate-incoming", uri=of["uri"])
        monitor.socket.close()
    sources = [Watch(of["dir"]) for of in guests]
    targets = [Watch(of["target"]) for of in guests]
    time.sleep(1.5)
    before, start, told = net.sent(), time.monotonic(), []
    for of in guests:
        qmp = Qmp(f"{of['dir']}/leave.sock")
        qmp("migrate-set-capabilities", capabilities=capabilities)
        qmp("migrate-set-parameters", **parameters)
        qmp("migrate", uri=of["uri"])
        switched = False
        while (now := qmp("query-migrate"))["status"] != "completed":
            if now["status"] == "failed" or time.monotonic() - start > PATIENCE_S:
                raise RuntimeError(f"{of['name']}: {now.get('error-desc', now['status'])}")
            if way == "qemu-postcopy" and not switched and now.get("ram", {}).get("dirty-sync-count", 0) > 1:
                qmp("migrate-start-postcopy")
                switched = True
            time.sleep(0.003)
        told.append({"downtime_told_ms": now["downtime"], "evicted_s": time.monotonic() - start,
                     "postcopy_requests": now["ram"].get("postcopy-requests", 0)})
    total, sent = time.monotonic() - start, net.sent() - before
    await_ticks([watch.directory for watch in targets], 70, time.monotonic())
    vms = [{**figures(*pair), **of} for pair, of in zip(zip(sources, targets), told)]
    return {"total_s": total, "link_bytes": sent, "vms": vms}


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


def one(args, net, work, way):
    base = tempfile.mkdtemp(prefix="e", dir=work)
    guests = []
    for number, spec in enumerate(GUESTS[args.guests]):
        guest = {"name": spec[0], "dir": f"{base}/v{number}", "line": machine(args, spec, number), "host": 1 + number % args.hosts}
        qemu(net, 0, guest["line"], guest["dir"])
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
    median = lambda name: sorted(of[name] for of in run["vms"])[len(run["vms"]) // 2]
    print(f"{'scatter' if ours else 'QEMU'}, {way}: {run['total_s']:.2f} s in all, link {run['link_bytes'] / 1e6:.1f} MB; stopped "
          f"{median('stopped_ms'):.0f} ms, silent {median('silent_ms'):.0f} ms (a tick takes {median('tick_p50_ms'):.0f} ms), ten ticks "
          f"{median('ten_ticks_ms'):.0f} ms (medians of {len(run['vms'])}); load {load:.1f}", flush=True)
    return {"what": way, "load": load, **run}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scatter", default=os.path.join(ROOT, "target/release/scatter"))
    parser.add_argument("--guests", default="busy", choices=sorted(GUESTS))
    parser.add_argument("--mib", type=int, default=256, help="memory of each guest")
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--mbit", type=int, default=1000, help="rate of each link")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--only", help="default: hybrid,qemu-postcopy for busy; hybrid,precopy,default,multifd,qemu-postcopy for mix")
    parser.add_argument("--out")
    args = parser.parse_args()
    ways = args.only or {"busy": "hybrid,qemu-postcopy", "mix": "hybrid,precopy,default,multifd,qemu-postcopy"}[args.guests]
    net, work = Net(args.hosts, args.mbit), tempfile.mkdtemp(prefix="qb", dir="/dev/shm")
    result = {"guests": GUESTS[args.guests], "mib": args.mib, "hosts": args.hosts, "mbit": args.mbit, "command": " ".join(sys.argv),
              "kernel": platform.release(), "cpus": os.cpu_count(), "runs": []}
    try:
        for _ in range(args.repeat):
            result["runs"] += [one(args, net, work, way) for way in ways.split(",")]
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
