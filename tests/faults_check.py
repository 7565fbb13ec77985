"""Faults under sixteen streams. usage: faults_check.py PLUMBLINE [--rounds N] [--only kill,stop,...] [--next-token SECONDS]

kill         kill -9 of a random worker at a random step: every stream as in the undisturbed run, and soon
stop         kill -STOP of one: /ready says so, /health, /metrics and the log name it, it is replaced, streams as undisturbed
link         the same with the link of one worker's network namespace cut (needs root and ip(8); skipped without)
coordinator  kill -9 of the coordinator: its workers go
start        one rank that cannot load: all end, one line names it
drain        SIGTERM: streams under way end as they should, new requests get 503 and Retry-After"""
import argparse
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error

from fault_streams import (NOT_READY_SECONDS, NUM_STREAMS, REBUILT_SECONDS, Load, compare, distribution, expect_named, random_moment,
                           request_of, undisturbed_run)
from link_fault import check_link
from server_process import MODEL, Server, is_running, kill, wait_for, wait_gone


def check_kill(options: argparse.Namespace) -> None:
    choice = random.Random(options.seed)
    silences, slowest = [], []
    with Server(options.plumbline, "--tp", "2", "--pp", "2") as server:
        undisturbed = undisturbed_run(server)
        for round_number in range(options.rounds):
            before, rank = server.workers(), choice.randrange(4)
            load = Load(server)
            load.wait_for_tokens(random_moment(choice))
            kill(before[rank])
            killed_at = time.monotonic()
            compare(f"round {round_number}, rank {rank} killed", load.finish(server.stderr), undisturbed)
            after = server.workers()
            assert len(after) == 4 and after[rank] != before[rank], "no replacement was started"
            assert all(after[other] == before[other] for other in range(4) if other != rank), "a survivor was restarted"
            silences.append(load.silence_after(killed_at))
            slowest.append(load.slowest_after(killed_at))
            print(f"round {round_number}: rank {rank} killed, {NUM_STREAMS} streams equal, next token after {silences[-1]:.2f} s, "
                  f"of the slowest stream {slowest[-1]:.2f} s", flush=True)
            assert silences[-1] <= options.next_token, f"the next token came after {silences[-1]:.2f} s: {server.stderr()}"
        assert "loaded its weights" in server.stderr() and "kept its weights" in server.stderr()
    print(f"kill: next token {distribution(silences)}; of the slowest stream {distribution(slowest)}")


def check_stop(options: argparse.Namespace) -> None:
    choice = random.Random(options.seed + 1)
    noticed, rebuilt = [], []
    with Server(options.plumbline, "--tp", "2", "--pp", "2") as server:
        undisturbed = undisturbed_run(server)
        for round_number in range(options.rounds):
            before, rank = server.workers(), choice.randrange(4)
            load = Load(server)
            load.wait_for_tokens(random_moment(choice))
            os.kill(before[rank], signal.SIGSTOP)
            noticed.append(wait_for(lambda: server.get("/ready")[0] == 503, NOT_READY_SECONDS, "/ready is 503"))
            rebuilt.append(noticed[-1] + wait_for(lambda: server.get("/ready")[0] == 200, REBUILT_SECONDS - noticed[-1], "/ready again"))
            operation = expect_named(server, rank, before[rank], server.stderr())
            assert wait_gone([before[rank]], 1), "the stopped worker is still there"
            compare(f"round {round_number}, rank {rank} stopped", load.finish(server.stderr), undisturbed)
            print(f"round {round_number}: rank {rank} stopped, last seen {operation}; not ready after {noticed[-1]:.2f} s, rebuilt after "
                  f"{rebuilt[-1]:.2f} s, {NUM_STREAMS} streams equal", flush=True)
    print(f"stop: not ready {distribution(noticed)}; rebuilt {distribution(rebuilt)}")


def check_coordinator(options: argparse.Namespace) -> None:
    with Server(options.plumbline, "--tp", "2", "--pp", "2") as server:
        workers = server.workers()
        assert len(workers) == 4 and all(is_running(pid) for pid in workers)
        kill(server.process.pid)
        server.process.wait()
        start = time.monotonic()
        assert wait_gone(workers, 5), "workers outlive a killed coordinator"
        print(f"coordinator killed: workers gone after {time.monotonic() - start:.2f} s")


def check_start(options: argparse.Namespace) -> None:
    """Two workers, one of which has half a checkpoint."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        broken, token = folder / "broken", folder / "token"
        shutil.copytree(MODEL, broken)
        os.truncate(broken / "model.safetensors", 1 << 20)
        coordinator = subprocess.Popen(
            [options.plumbline, "coordinator", "--model", MODEL, "--tp", "2", "--worker-listen", "127.0.0.1:0", "--join-token-file", token,
             "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        address = re.search(r"workers at ([\d.]+:\d+)", coordinator.stdout.readline()).group(1)
        start = time.monotonic()
        workers = [subprocess.Popen([options.plumbline, "worker", "--coordinator", address, "--join-token-file", token, "--rank", str(rank),
                                     "--model", model], stderr=subprocess.PIPE, text=True) for rank, model in enumerate([MODEL, broken])]
        try:
            error = coordinator.communicate(timeout=20)[1]
            for worker in workers:
                worker.communicate(timeout=20 - (time.monotonic() - start))
            seconds = time.monotonic() - start
        finally:
            for process in [coordinator, *workers]:
                if process.poll() is None:
                    process.kill()
    last = error.strip().splitlines()[-1]
    assert coordinator.returncode == 1 and "rank 1" in last and "broken/model.safetensors" in last, error
    print(f"a rank that cannot load: all ended after {seconds:.2f} s: {last[:160]}")


def check_drain(options: argparse.Namespace) -> None:
    with Server(options.plumbline, "--tp", "2", "--pp", "2") as server:
        undisturbed = undisturbed_run(server)
        load = Load(server)
        load.wait_for_tokens(NUM_STREAMS * 20)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.get("/ready")[0] == 503, 2, "/ready is 503 while draining")
        try:
            server.post("/v1/chat/completions", request_of(0))
            raise AssertionError("a new request was taken while draining")
        except urllib.error.HTTPError as error:
            assert error.code == 503 and int(error.headers["Retry-After"]) > 0, (error.code, error.headers)
        compare("SIGTERM", load.finish(server.stderr), undisturbed)
        assert server.process.wait(30) == 0
    print(f"SIGTERM: {NUM_STREAMS} streams ended as they should, a new request got 503 and Retry-After")


CHECKS = {"kill": check_kill, "stop": check_stop, "link": check_link, "coordinator": check_coordinator, "start": check_start,
          "drain": check_drain}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plumbline")
    parser.add_argument("--rounds", type=int, default=3, help="of kill, stop and link")
    parser.add_argument("--only", default=",".join(CHECKS), help="some of them, with commas between")
    parser.add_argument("--next-token", type=float, default=5, help="seconds from a kill to the next token at most")
    parser.add_argument("--seed", type=int, default=1, help="of ranks and moments")
    arguments = parser.parse_args()
    for name in arguments.only.split(","):
        CHECKS[name](arguments)
