"""A worker behind a link that is cut: network namespaces stand for hosts. Part of faults_check.py."""
import argparse
import os
import pathlib
import random
import re
import subprocess
import tempfile
import threading
import time

from fault_streams import (NOT_READY_SECONDS, NUM_STREAMS, REBUILT_SECONDS, Load, compare, distribution, expect_named, random_moment,
                           undisturbed_run)
from server_process import MODEL, HttpClient, wait_for

HERE, THERE = "10.213.77.1", "10.213.77.2"
NUM_RANKS = 4
GONE_SECONDS = 15  # of a worker that reaches nobody


class Namespace:
    """A network namespace at the other end of a virtual cable."""

    def __init__(self) -> None:
        self.name = f"plumbline-{os.getpid()}"
        self.cable = f"plumb{os.getpid() % 100000}"
        self.ip("netns", "add", self.name)
        self.ip("link", "add", self.cable, "type", "veth", "peer", "name", "cable", "netns", self.name)
        self.ip("address", "add", f"{HERE}/30", "dev", self.cable)
        self.ip("link", "set", self.cable, "up")
        for command in (["address", "add", f"{THERE}/30", "dev", "cable"], ["link", "set", "cable", "up"], ["link", "set", "lo", "up"]):
            self.ip("-n", self.name, *command)

    @staticmethod
    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    def cut(self) -> None:
        self.ip("link", "set", self.cable, "down")

    def remove(self) -> None:
        self.ip("link", "delete", self.cable)
        self.ip("netns", "delete", self.name)


class ManualCluster(HttpClient):
    """A coordinator, and workers of which one lives in the namespace."""

    def __init__(self, plumbline: str, namespace: Namespace, far_rank: int) -> None:
        self.plumbline, self.processes = plumbline, []
        self.folder = tempfile.TemporaryDirectory()
        self.token = pathlib.Path(self.folder.name) / "token"
        self.log = open(pathlib.Path(self.folder.name) / "log", "w+")
        self.coordinator = subprocess.Popen(
            [plumbline, "coordinator", "--model", MODEL, "--served-model-name", "demo", "--tp", "2", "--pp", "2", "--transport", "gloo",
             "--worker-listen", f"{HERE}:0", "--join-token-file", self.token, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.processes.append(self.coordinator)
        self.address = re.search(r"workers at ([\d.]+:\d+)", self.coordinator.stdout.readline()).group(1)
        self.workers = [self.start_worker(rank, ["ip", "netns", "exec", namespace.name] if rank == far_rank else [])
                        for rank in range(NUM_RANKS)]
        output = "".join(self.coordinator.stdout.readline() for _ in range(3))
        self.http = re.search(r"http://[\d.]+:\d+", output).group()

    def start_worker(self, rank: int, prefix: list[str]) -> subprocess.Popen:
        worker = subprocess.Popen(
            [*prefix, self.plumbline, "worker", "--coordinator", self.address, "--join-token-file", self.token, "--rank", str(rank)],
            stderr=subprocess.PIPE, text=True)
        self.processes.append(worker)
        return worker

    def offer_replacement(self, rank: int) -> None:
        """What a supervisor on a spare host does: tries until the rank is free."""
        def keep_trying() -> None:
            while self.coordinator.poll() is None and self.start_worker(rank, []).wait() != 0:
                time.sleep(0.2)
        threading.Thread(target=keep_trying, daemon=True).start()

    def stderr(self) -> str:
        return pathlib.Path(self.log.name).read_text()

    def close(self) -> None:
        self.coordinator.kill()
        self.coordinator.wait()
        for process in self.processes:
            process.kill()
            process.wait()
        self.log.close()
        self.folder.cleanup()


def check_link(options: argparse.Namespace) -> None:
    try:
        namespace = Namespace()
        namespace.remove()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"link: skipped, no network namespaces here: {getattr(error, 'stderr', None) or error}")
        return
    choice = random.Random(options.seed + 2)
    noticed, rebuilt = [], []
    for round_number in range(options.rounds):
        rank = choice.randrange(NUM_RANKS)
        namespace = Namespace()
        cluster = ManualCluster(options.plumbline, namespace, rank)
        try:
            undisturbed = undisturbed_run(cluster)
            load = Load(cluster)
            load.wait_for_tokens(random_moment(choice))
            namespace.cut()
            cut_at = time.monotonic()
            cluster.offer_replacement(rank)
            noticed.append(wait_for(lambda: cluster.get("/ready")[0] == 503, NOT_READY_SECONDS, "/ready is 503"))
            wait_for(lambda: cluster.get("/ready")[0] == 200, REBUILT_SECONDS - noticed[-1], "/ready again")
            rebuilt.append(time.monotonic() - cut_at)
            far = cluster.workers[rank]
            operation = expect_named(cluster, rank, far.pid, cluster.stderr())
            compare(f"round {round_number}, link of rank {rank} cut", load.finish(cluster.stderr), undisturbed)
            wait_for(lambda: far.poll() is not None, GONE_SECONDS, "the cut-off worker ends")
            gone = time.monotonic() - cut_at
            assert far.returncode == 1 and cluster.address in far.stderr.read()
            print(f"round {round_number}: link of rank {rank} cut, last seen {operation}; not ready after {noticed[-1]:.2f} s, rebuilt after "
                  f"{rebuilt[-1]:.2f} s, {NUM_STREAMS} streams equal, the cut-off worker ended within {gone:.2f} s", flush=True)
        finally:
            cluster.close()
            namespace.remove()
    print(f"link: not ready {distribution(noticed)}; rebuilt {distribution(rebuilt)}")
