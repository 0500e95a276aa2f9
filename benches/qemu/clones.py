#!/usr/bin/env python3
"""One running Linux guest under stock QEMU becomes N running clones on hosts behind links of a given rate: by scatter, and by
QEMU's own migration to each in turn (default, and multifd with zstd). All in one run, in network namespaces of this machine.

    cargo build --release && examples/guests/make-ticker.sh
    sudo benches/qemu/clones.py --out benches/results/qemu/NAME.json

Needs root, qemu-system-x86_64 and iproute2. The guest checks its own memory: a BAD tick fails the run. Written in Python since it only
drives programs; nothing else here depends on it. docs/qemu.md has what came of it.
"""
import argparse, json, os, platform, re, shutil, signal, socket, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PATIENCE_S = 180
CHILDREN = []
# Of scatter: from a capture that was rehearsed; from a capture; from the running source, whose working set an earlier rehearsal told; from the
# running source, rehearsed by the command itself; from the running source.
OURS = ("rehearsed", "captured", "known", "tried", "running")


def machine_and_commit():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"], capture_output=True,
                            text=True).stdout.strip()
    return {"kernel": platform.release(), "cpu": model, "cpus": os.cpu_count(), "commit": commit}


def ip(*args, ns=None):
    subprocess.run(["ip"] + (["-n", ns] if ns else []) + list(args), check=True, capture_output=True)


class Net:
    """Hosts 0 (the source) to n on a bridge that snoops multicast; each link has the rate in both directions."""

    def __init__(self, hosts, mbit):
        self.prefix = f"qb{os.getpid() % 10000}"
        self.names = [f"{self.prefix}-h{n}" for n in range(hosts + 1)]
        self.switch = f"{self.prefix}-sw"
        for ns in self.names + [self.switch]:
            ip("netns", "add", ns)
            ip("link", "set", "lo", "up", ns=ns)
        ip("link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "1",
           "mcast_query_response_interval", "10", ns=self.switch)
        ip("link", "set", "br0", "up", ns=self.switch)
        ip("link", "set", "br0", "type", "bridge", "mcast_querier", "1", ns=self.switch)
        for n, ns in enumerate(self.names):
            ip("link", "add", f"p{n}", "type", "veth", "peer", "name", "e0", "netns", ns, ns=self.switch)
            ip("link", "set", f"p{n}", "master", "br0", "up", ns=self.switch)
            ip("addr", "add", f"10.78.0.{n + 1}/24", "dev", "e0", ns=ns)
            ip("link", "set", "e0", "up", ns=ns)
            ip("route", "add", "224.0.0.0/4", "dev", "e0", ns=ns)
            for where, dev in ((ns, "e0"), (self.switch, f"p{n}")):
                subprocess.run(["ip", "netns", "exec", where, "tc", "qdisc", "replace", "dev", dev, "root", "tbf", "rate",
                                f"{mbit}mbit", "burst", "73728", "limit", "1250000"], check=True)
        time.sleep(0.5)

    def exec(self, host, *command):
        return ["ip", "netns", "exec", self.names[host], *command]

    def sent(self):
        out = subprocess.run(self.exec(0, "cat", "/sys/class/net/e0/statistics/tx_bytes"), check=True, capture_output=True)
        return int(out.stdout)

    def traffic(self):
        """Bytes on all links so far: each host has one, and both directions count."""
        counters = [f"/sys/class/net/e0/statistics/{way}_bytes" for way in ("tx", "rx")]
        said = [subprocess.run(self.exec(n, "cat", *counters), check=True, capture_output=True).stdout for n in range(len(self.names))]
        return sum(int(line) for host in said for line in host.split())

    def close(self):
        for ns in self.names + [self.switch]:
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)


class Qmp:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.002)
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self("qmp_capabilities")

    def close(self):
        # The socket stays open as long as a file of it is.
        self.file.close()
        self.socket.close()

    def __call__(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


def machine(args):
    guest = os.path.join(ROOT, "target/guests/ticker")
    return ["-accel", "tcg", "-cpu", "max", "-machine", "q35,vmport=off", "-m", str(args.mib), "-nodefaults", "-no-reboot",
            "-display", "none", "-device", "vmgenid,guid={vmgenid}", "-kernel", f"{guest}/vmlinuz", "-initrd", f"{guest}/initrd",
            "-append", f"console=ttyS0 quiet ticker.mib={args.work} ticker.pause=20", "-serial", "file:{dir}/serial",
            "-qmp", "unix:{dir}/user.sock,server=on,wait=off"]


def monitor(directory, command):
    """Tells a guest's QEMU one thing."""
    qmp = Qmp(f"{directory}/user.sock")
    qmp(command)
    qmp.close()


def spawn(command, **options):
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    CHILDREN.append(child)
    return child


def end(child):
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def qemu(net, host, args, directory, *more):
    os.makedirs(directory)
    fill = {"{dir}": directory, "{vmgenid}": "auto"}
    line = []
    for arg in machine(args):
        for name, value in fill.items():
            arg = arg.replace(name, value)
        line.append(arg)
    return spawn(net.exec(host, "qemu-system-x86_64", *line, *more))


def ticks(directory):
    try:
        with open(f"{directory}/serial", errors="replace") as file:
            said = file.read()
    except FileNotFoundError:
        return 0
    if "BAD" in said:
        raise RuntimeError(f"{directory}: {said[-400:]}")
    # Whole lines: a guest that was captured while it said one says its end first.
    return len(re.findall(r"^TICK \d+ OK ", said, re.MULTILINE))


def await_ticks(directories, count, start, alive=lambda: None):
    """Seconds after start until each of the guests has ticked so often."""
    at = {}
    while len(at) < len(directories):
        for directory in directories:
            if directory not in at and ticks(directory) >= count:
                at[directory] = time.monotonic() - start
        alive()
        if time.monotonic() - start > PATIENCE_S:
            raise RuntimeError(f"{len(at)} of {len(directories)} guests ticked")
        time.sleep(0.01)
    return sorted(at.values())


def receivers(args, net, base, machine, vms):
    """Keys, hosts that listen with this `machine`, and base/plan.json of `vms`; the receivers' processes."""
    binary = os.path.abspath(args.scatter)
    hosts = range(1, args.hosts + 1)
    with open(f"{base}/machine.json", "w") as file:
        json.dump({"qemu": [machine | {"end-with-receiver": True, "warm": args.warm}]}, file)
    run = lambda *line: subprocess.run([binary, *line], cwd=base, check=True, capture_output=True)
    run("keys", "init", "keys")
    run("keys", "host", "keys", "src", "--role", "sender")
    listening = []
    for n in hosts:
        run("keys", "host", "keys", f"h{n}")
        log = open(f"{base}/h{n}.log", "w")
        listening.append(spawn(net.exec(n, binary, "receive", "--name", f"h{n}", "--keys", f"keys/h{n}", "--interface", "e0", "--listen",
                                        f"10.78.0.{n + 1}:7700", "--store", f"st{n}", "--clones", f"{base}/c{n}", "--workers", "2",
                                        "--launch", "qemu", "--qemu", "machine.json"), cwd=base, stdout=log, stderr=log))
    inventory = {"version": 1, "name": "bench", "source": {"name": "src", "rate_mbps": args.mbit}, "vms": vms,
                 "hosts": [{"name": f"h{n}", "address": f"10.78.0.{n + 1}:7700", "memory_mib": 1 << 20, "vcpus": 64,
                            "rate_mbps": args.mbit} for n in hosts],
                 "multicast": {"pool": "239.77.0.0/16", "port": 7701}}
    with open(f"{base}/inventory.json", "w") as file:
        json.dump(inventory, file)
    run("plan", "inventory.json", "-o", "plan.json", "--no-measure")
    deadline = time.monotonic() + 60
    while any("listening" not in open(f"{base}/h{n}.log").read() for n in hosts):
        if time.monotonic() > deadline:
            raise RuntimeError("a receiver does not listen: " + open(f"{base}/h1.log").read())
        time.sleep(0.05)
    return listening


def scatter(args, net, work, source, captured, name):
    """By scatter: from a captured image or from the running source, each with what a rehearsal touched first or without."""
    binary = os.path.abspath(args.scatter)
    hosts = range(1, args.hosts + 1)
    base = tempfile.mkdtemp(prefix="s", dir=work)
    launch = {"kind": "qemu"} | ({"working_set": f"{captured}/working-set"} if name in ("rehearsed", "known") else {})
    if name in ("rehearsed", "captured"):
        vm = {"image": f"{captured}/memory", "launch": launch | {"attachments": {"state": f"{captured}/state"}}}
    else:
        vm = {"image": f"qmp:{source}/user.sock", "launch": launch}
    vm |= {"name": "golden", "memory_mib": args.mib, "to": {"clones": args.clones}, "clones_per_host": -(-args.clones // args.hosts)}
    listening = receivers(args, net, base, {"name": "ticker", "args": machine(args), "memory": args.memory}, [vm])
    before, traffic, start = net.sent(), net.traffic(), time.monotonic()
    log = open(f"{base}/send.log", "w")
    sender = spawn(net.exec(0, binary, "clone", "--group", "plan.json", "--keys", "keys/src", "--interface", "e0", "--rate",
                            f"{args.mbit * 96 // 100}M", "--report", "report.json",
                            *(["--rehearse", f"{work}/machine.json"] if name == "tried" else [])), cwd=base, stdout=log, stderr=log)
    directories = [f"{base}/c{n}/golden-h{n}-{k}" for n in hosts for k in range(1, args.clones // args.hosts + 1)]

    def alive():
        if sender.poll() not in (None, 0):
            raise RuntimeError(open(f"{base}/send.log").read())

    first = await_ticks(directories, 1, start, alive)
    if sender.wait(PATIENCE_S) != 0:
        raise RuntimeError(open(f"{base}/send.log").read())
    total, sent, traffic = time.monotonic() - start, net.sent() - before, net.traffic() - traffic
    # More than a sweep over all of the guest's memory.
    await_ticks(directories, 70, start)
    report = json.load(open(f"{base}/report.json"))
    for receiver in listening:
        end(receiver)
    clones, network = report["clones"], report["network"]
    shutil.rmtree(base)
    return {"first_tick_s": first, "all_memory_s": total, "link_bytes": sent, "traffic_bytes": traffic, "wire_bytes": network["wire_bytes"],
            "encoded_bytes": network["encoded_bytes"], "prepare_s": report["times"]["prepare_s"],
            "first_instruction_last_s": clones["first_instruction_last_s"], "pages_answered": clones["pages_answered"],
            "faults": {of: clones[f"faults_{of}"] for of in ("here", "block", "sender")},
            "captures": report.get("captures", []), "rehearsals": clones.get("rehearsals", []), "encoding": report["settings"]["encoding"], "how": clones["clones"][0]["how"]}


def stock(args, net, work, source, qmp, multifd):
    """By QEMU's own migration, to one clone after the other: a VM has one destination at a time."""
    base = tempfile.mkdtemp(prefix="q", dir=work)
    names = {"max-bandwidth": 0}
    capabilities = [{"capability": "multifd", "state": multifd}]
    if multifd:
        names |= {"multifd-compression": "zstd", "multifd-channels": 2}
    targets = []
    for k in range(args.clones):
        host = 1 + k % args.hosts
        child = qemu(net, host, args, f"{base}/{k}", "-incoming", "defer")
        monitor = Qmp(f"{base}/{k}/user.sock")
        monitor("migrate-set-capabilities", capabilities=capabilities)
        if multifd:
            monitor("migrate-set-parameters", **{n: v for n, v in names.items() if n != "max-bandwidth"})
        uri = f"tcp:10.78.0.{host + 1}:{7800 + k}"
        monitor("migrate-incoming", uri=uri)
        targets.append((child, uri))
    qmp("migrate-set-capabilities", capabilities=capabilities)
    qmp("migrate-set-parameters", **names)
    before, traffic, start, first, pauses = net.sent(), net.traffic(), time.monotonic(), [], []
    for k, (_, uri) in enumerate(targets):
        qmp("migrate", uri=uri)
        while (now := qmp("query-migrate"))["status"] not in ("completed", "failed"):
            time.sleep(0.003)
        if now["status"] == "failed":
            raise RuntimeError(now.get("error-desc", "failed"))
        qmp("cont")
        pauses.append(now["downtime"] / 1e3)
    total, sent, traffic = time.monotonic() - start, net.sent() - before, net.traffic() - traffic
    directories = [f"{base}/{k}" for k in range(args.clones)]
    # Ticks of clones that run since long are found late here only if they came since the loop above; the last is what counts.
    first = await_ticks(directories, 1, start)
    await_ticks(directories, 70, start)
    for child, _ in targets:
        end(child)
    shutil.rmtree(base)
    return {"all_memory_s": total, "last_first_tick_s": first[-1], "link_bytes": sent, "traffic_bytes": traffic, "pauses_s": pauses}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scatter", default=os.path.join(ROOT, "target/release/scatter"))
    parser.add_argument("--mib", type=int, default=1024, help="memory of the guest")
    parser.add_argument("--work", type=int, default=128, help="MiB that the guest works on")
    parser.add_argument("--clones", type=int, default=8)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--mbit", type=int, default=1000, help="rate of each link")
    parser.add_argument("--memory", default="private", choices=["private", "shared"])
    parser.add_argument("--warm", type=int, help="QEMUs that wait at each host, as stock ones do; default: as many as come")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--only", default=",".join(OURS) + ",default,multifd")
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.warm is None:
        args.warm = -(-args.clones // args.hosts) if args.memory == "private" else 0
    net, work, result = Net(args.hosts, args.mbit), tempfile.mkdtemp(prefix="qb", dir="/dev/shm"), None
    try:
        source = f"{work}/src"
        qemu(net, 0, args, source)
        # Warmed up: over a sweep of its checks, and long after what a kernel does behind its boot.
        await_ticks([source], 70, time.monotonic())
        captured = f"{work}/g"
        with open(f"{work}/machine.json", "w") as file:
            json.dump({"qemu": [{"name": "rehearsal", "args": machine(args)}]}, file)
        said = subprocess.run([args.scatter, "capture", "qemu", f"{source}/user.sock", captured, "--rehearse", f"{work}/machine.json"],
                              check=True, capture_output=True, text=True)
        told = [said.stderr.splitlines()[0].split(" captured ", 1)[1], said.stdout.splitlines()[0].split(": ", 1)[1]]
        print("captured", "; ".join(told))
        allocated = os.stat(f"{captured}/memory").st_blocks * 512
        result = {"guest": {"mib": args.mib, "work_mib": args.work, "not_zero_bytes": allocated, "state_bytes": os.stat(f"{captured}/state").st_size},
                  "clones": args.clones, "hosts": args.hosts, "mbit": args.mbit, "memory": args.memory, "command": " ".join(sys.argv),
                  **machine_and_commit(), "captured": told[0], "rehearsal": told[1], "runs": []}
        for _ in range(args.repeat):
            for name in args.only.split(","):
                load = os.getloadavg()[0]
                if name in OURS:
                    # A captured guest is files: where it came from is no part of this, and would take CPUs that no clone's host has to share.
                    at_rest = name in ("rehearsed", "captured")
                    if at_rest:
                        monitor(source, "stop")
                    run = scatter(args, net, work, source, captured, name)
                    if at_rest:
                        monitor(source, "cont")
                    last = run["first_tick_s"][-1]
                    print(f"scatter, {name}: last of {args.clones} ticked after {last:.2f} s (first instruction of the last, as told to the "
                          f"sender: {run['first_instruction_last_s']:.2f} s), all memory after {run['all_memory_s']:.2f} s; link "
                          f"{run['link_bytes'] / 1e6:.1f} MB, {run['link_bytes'] / run['encoded_bytes']:.3f} of one encoded copy; load {load:.1f}")
                else:
                    qmp = Qmp(f"{source}/user.sock")
                    run = stock(args, net, work, source, qmp, name == "multifd")
                    qmp.close()
                    print(f"QEMU, {name}: last of {args.clones} ticked after {run['last_first_tick_s']:.2f} s, all memory after "
                          f"{run['all_memory_s']:.2f} s; link {run['link_bytes'] / 1e6:.1f} MB; load {load:.1f}")
                count = ticks(source)
                await_ticks([source], count + 3, time.monotonic())
                result["runs"].append({"what": name, "load": load, **run})
    finally:
        for child in CHILDREN:
            if child.poll() is None:
                child.kill()
                child.wait()
        net.close()
        shutil.rmtree(work, ignore_errors=True)
    if args.out:
        os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
        with open(args.out, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
