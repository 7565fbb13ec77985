"""kill -9 of a worker under eight streams, and of the coordinator. usage: faults_check.py PLUMBLINE [ROUNDS]

A worker's death: a replacement starts, no stream is lost, every token equals the undisturbed run's. The coordinator's: all
workers are gone within five seconds."""
import random
import sys
import threading
import time

from server_process import Server, is_running, kill, wait_gone

PROMPTS = ["Hello", "What is LoRA?", "What is Plumbline?", "How do I start a server?", "What architecture do you have?",
           "What is a gated delta net?", "How can I add a worker on another host?", "What if one worker process crashes?"]


def request_of(index: int) -> dict:
    """Greedy and seeded ones, long enough that a kill falls into their middle."""
    return {"model": "demo", "messages": [{"role": "user", "content": PROMPTS[index]}], "max_tokens": 160, "ignore_eos": True,
            "temperature": 0 if index % 2 == 0 else 0.8, "seed": 100 + index, "logprobs": True, "top_logprobs": 1}


class Stream(threading.Thread):
    """One streamed request; keeps each token with its log-probability."""

    def __init__(self, server: Server, index: int) -> None:
        super().__init__()
        self.server, self.index = server, index
        self.tokens: list[tuple] = []
        self.finish = self.error = None
        self.longest_gap = 0.0

    def run(self) -> None:
        try:
            last = time.monotonic()
            for chunk in self.server.stream("/v1/chat/completions", request_of(self.index)):
                if "error" in chunk:
                    self.error = chunk
                    return
                now = time.monotonic()
                self.longest_gap, last = max(self.longest_gap, now - last), now
                for choice in chunk["choices"]:
                    for entry in (choice.get("logprobs") or {}).get("content") or []:
                        self.tokens.append((tuple(entry["bytes"] or []), entry["logprob"]))
                    self.finish = choice.get("finish_reason") or self.finish
        except OSError as error:
            self.error = error


def run_streams(server: Server, kill_rank: int | None, kill_after: int) -> list[Stream]:
    streams = [Stream(server, index) for index in range(len(PROMPTS))]
    for stream in streams:
        stream.start()
    if kill_rank is not None:
        while sum(len(stream.tokens) for stream in streams) < kill_after and any(s.is_alive() for s in streams):
            time.sleep(0.001)
        assert any(stream.is_alive() for stream in streams), "the streams ended before the kill"
        kill(server.workers()[kill_rank])
    for stream in streams:
        stream.join(120)
        assert not stream.is_alive(), f"stream {stream.index} hangs: {server.stderr()}"
        assert stream.error is None, f"stream {stream.index}: {stream.error}; {server.stderr()}"
        assert stream.finish == "length", f"stream {stream.index} ended with {stream.finish}"
    return streams


def check_worker_death(plumbline: str, rounds: int) -> None:
    choice = random.Random(1)
    with Server(plumbline, "--tp", "2", "--pp", "2") as server:
        undisturbed = [stream.tokens for stream in run_streams(server, None, 0)]
        assert all(len(tokens) == 160 for tokens in undisturbed)
        for round_number in range(rounds):
            before = server.workers()
            rank = choice.randrange(4)
            streams = run_streams(server, rank, choice.randrange(100, 800))
            for stream, expected in zip(streams, undisturbed):
                assert stream.tokens == expected, f"round {round_number}: stream {stream.index} differs after the kill"
            after = server.workers()
            assert len(after) == 4 and after[rank] != before[rank], "no replacement was started"
            print(f"round {round_number}: rank {rank} killed, 8 streams equal, longest gap "
                  f"{max(stream.longest_gap for stream in streams):.2f} s")
        # The control: another seed must not give the same tokens, or the comparison proves nothing.
        other = server.post("/v1/chat/completions", {**request_of(1), "seed": 999})["choices"][0]["logprobs"]["content"]
        assert [(tuple(e["bytes"] or []), e["logprob"]) for e in other] != undisturbed[1], "seeds make no difference"


def check_coordinator_death(plumbline: str) -> None:
    with Server(plumbline, "--tp", "2", "--pp", "2") as server:
        workers = server.workers()
        assert len(workers) == 4 and all(is_running(pid) for pid in workers)
        kill(server.process.pid)
        server.process.wait()
        start = time.monotonic()
        assert wait_gone(workers, 5), "workers outlive a killed coordinator"
        print(f"coordinator killed: workers gone after {time.monotonic() - start:.2f} s")


if __name__ == "__main__":
    check_worker_death(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
    check_coordinator_death(sys.argv[1])
