"""Many users at once. usage: load_check.py PLUMBLINE [--minutes N] [--streams N] [--seed N]

Streams that keep a server of two processes busy, with clients that leave in the middle: no error, nothing held at the end,
memory flat. Then one key queues a hundred requests, and another's single one waits at most two steps longer than alone."""
import argparse
import http.client
import json
import pathlib
import random
import re
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request

from server_process import Server

QUARTER_GROWTH_MB = 8  # of a process, from the second quarter to the last


def metrics(server: Server) -> dict[str, float]:
    with urllib.request.urlopen(server.http + "/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and line[0] != "#"}


def rss_mb(pid: int) -> float:
    """Without the pages of files, which come and go with the page cache."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return sum(int(re.search(rf"{kind}:\s+(\d+)", status).group(1)) for kind in ("RssAnon", "RssShmem")) / 1024


def quantiles(values: list[float]) -> str:
    ordered = sorted(values)
    return " ".join(f"p{p} {1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)]:.1f} ms" for p in (50, 99))


class Client:
    """One stream after the other until `end`; `seed` decides what is asked and when it leaves."""

    def __init__(self, server: Server, seed: int, end: float) -> None:
        self.url, self.random, self.end = urllib.parse.urlparse(server.http), random.Random(seed), end
        self.first, self.between, self.errors = [], [], []
        self.num_done = self.num_left = 0
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while time.monotonic() < self.end:
            try:
                self.ask()
            except Exception as error:  # every kind is a finding
                self.errors.append(repr(error))
                return

    def ask(self) -> None:
        r = self.random
        words = r.choice([3, 20, 100, 250])
        body = {"model": "demo", "prompt": " ".join(r.choice(["plumb", "line", "is", "straight", "and", "hangs"]) for _ in range(words)),
                "max_tokens": r.choice([1, 8, 32, 100]), "n": r.choice([1, 1, 1, 2]), "temperature": r.choice([0, 1]),
                "seed": r.randrange(1 << 30), "ignore_eos": True, "stream": True}
        leaves_after = r.randrange(30) if r.random() < 0.2 else None
        connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=120)
        try:
            asked_at = time.monotonic()
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            if leaves_after == 0:
                self.num_left += 1
                return
            response = connection.getresponse()
            assert response.status == 200, response.read()
            last, num_chunks, ended = {}, 0, False
            for line in response:
                data = line.decode().strip().removeprefix("data: ")
                if not data:
                    continue
                if ended := data == "[DONE]":
                    break
                chunk = json.loads(data)
                assert "error" not in chunk, chunk
                now, choice = time.monotonic(), chunk["choices"][0]["index"]
                if choice in last:
                    self.between.append(now - last[choice])
                else:
                    self.first.append(now - asked_at)
                last[choice] = now
                num_chunks += 1
                if num_chunks == leaves_after:
                    self.num_left += 1
                    return
            assert ended, "the stream broke off"
            self.num_done += 1
        finally:
            connection.close()


def check_load(plumbline: str, seconds: float, streams: int, seed: int) -> None:
    with Server(plumbline, "--tp", "2", "--max-sequences", "32", "--max-tokens", "16384") as server:
        processes = [server.process.pid, *server.workers()]
        assert len(processes) == 3, processes
        begin = time.monotonic()
        clients = [Client(server, seed * 1000 + i, begin + seconds) for i in range(streams)]
        memory: list[list[float]] = []
        while time.monotonic() < begin + seconds:
            memory.append([rss_mb(pid) for pid in processes])
            time.sleep(min(1.0, seconds / 40))
        for client in clients:
            client.thread.join(180)
            assert not client.thread.is_alive(), "a stream does not end"
        errors = [error for client in clients for error in client.errors]
        assert not errors, f"{len(errors)} errors, the first: {errors[0]}"

        deadline = time.monotonic() + 10
        held = ("plumbline_kv_blocks_used", "plumbline_state_slots_used", "plumbline_running_sequences", "plumbline_queued_sequences")
        while any((figures := metrics(server))[name] for name in held) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(figures[name] for name in held), {name: figures[name] for name in held}
        assert figures["plumbline_sequences_failed_total"] == 0, figures["plumbline_sequences_failed_total"]

        quarter = len(memory) // 4
        for i, pid in enumerate(processes):
            second, last = (statistics.median(row[i] for row in memory[a:b]) for a, b in
                            ((quarter, 2 * quarter), (3 * quarter, len(memory))))
            print(f"  {'coordinator' if i == 0 else f'rank {i - 1}'}: {second:.1f} MB in the second quarter, {last:.1f} MB in the last")
            assert last - second < QUARTER_GROWTH_MB, f"process {pid} grows: {second:.1f} to {last:.1f} MB"
        first = [value for client in clients for value in client.first]
        between = [value for client in clients for value in client.between]
        num_done, num_left = (sum(getattr(client, name) for client in clients) for name in ("num_done", "num_left"))
        assert num_done > 0 and num_left > 0
        print(f"  {streams} streams for {seconds:.0f} s: {num_done} answers, {num_left} clients left, "
              f"{figures['plumbline_generated_tokens_total']:.0f} tokens, {figures['plumbline_preemptions_total']:.0f} preemptions\n"
              f"  first token {quantiles(first)}, per token {quantiles(between)}, "
              f"queue {figures['plumbline_queue_seconds_sum'] / figures['plumbline_queue_seconds_count'] * 1000:.1f} ms on average")


def steps_to_first_token(server: Server, key: str) -> float:
    """Steps of the server from the request to its first token, and the request itself."""
    body = json.dumps({"model": "demo", "prompt": "A plumb line", "max_tokens": 1, "stream": True})
    request = urllib.request.Request(server.http + "/v1/completions", body.encode(),
                                     {"Content-Type": "application/json", "Authorization": f"Bearer {key}"})
    before = metrics(server)["plumbline_steps_total"]
    with urllib.request.urlopen(request, timeout=120) as response:
        response.readline()
        return metrics(server)["plumbline_steps_total"] - before


def check_fairness(plumbline: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder) / "keys.db"
        keys = [subprocess.run([plumbline, "keys", "create", "--store", store, "--name", name], capture_output=True, text=True,
                               check=True).stdout.strip() for name in ("many", "single")]
        with Server(plumbline, "--tp", "2", "--max-sequences", "8", "--keys", str(store)) as server:
            steps_to_first_token(server, keys[1])
            alone = min(steps_to_first_token(server, keys[1]) for _ in range(3))
            failed = []

            def ask(n: int) -> None:
                body = {"model": "demo", "prompt": f"{seed} {n} " * 30, "max_tokens": 400, "ignore_eos": True}
                request = urllib.request.Request(server.http + "/v1/completions", json.dumps(body).encode(),
                                                 {"Content-Type": "application/json", "Authorization": f"Bearer {keys[0]}"})
                try:
                    with urllib.request.urlopen(request, timeout=300) as answer:
                        json.load(answer)
                except OSError as error:
                    failed.append(repr(error))

            threads = [threading.Thread(target=ask, args=(n,)) for n in range(100)]
            for thread in threads:
                thread.start()
            queued = 'plumbline_key_queued_sequences{key_id="1",key="many"}'
            deadline = time.monotonic() + 60
            while metrics(server).get(queued, 0) < 80:
                assert time.monotonic() < deadline, "the queue does not fill"
                time.sleep(0.05)
            delayed = []
            for _ in range(5):
                delayed.append(steps_to_first_token(server, keys[1]))
                assert metrics(server).get(queued, 0) > 20, "the queue ended too early to show anything"
                time.sleep(0.3)  # what a request was ahead is made good
            for thread in threads:
                thread.join()
            assert not failed, failed[0]
            # The median: steps also go on while the figures are fetched.
            assert statistics.median(delayed) <= alone + 2, f"{delayed} steps to the first token beside a hundred requests, {alone} alone"
            print(f"  fairness: {sorted(delayed)} steps to the first token beside a hundred requests of another key, {alone:.0f} alone")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("plumbline")
    parser.add_argument("--minutes", type=float, default=1 / 3)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    check_fairness(flags.plumbline, flags.seed)
    check_load(flags.plumbline, 60 * flags.minutes, flags.streams, flags.seed)
    print("many users are served, fairly, and nothing is left behind")


if __name__ == "__main__":
    main()
