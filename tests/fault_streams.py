"""Sixteen streams for tests of faults: greedy, seeded, two choices at once; and what must be the same whatever happens."""
import json
import random
import re
import threading
import time

from server_process import HttpClient

PROMPTS = ["Hello", "What is LoRA?", "What is Plumbline?", "How do I start a server?", "What architecture do you have?",
           "What is a gated delta net?", "How can I add a worker on another host?", "What if one worker process crashes?"]
NUM_STREAMS = 16
NUM_TOKENS = 160
NOT_READY_SECONDS, REBUILT_SECONDS = 5, 15


def request_of(index: int) -> dict:
    """Long enough that a fault falls into their middle."""
    return {"model": "demo", "messages": [{"role": "user", "content": PROMPTS[index % len(PROMPTS)]}], "max_tokens": NUM_TOKENS,
            "ignore_eos": True, "temperature": 0 if index % 4 == 0 else 0.8, "seed": 100 + index, "n": 2 if index % 4 == 3 else 1,
            "logprobs": True, "top_logprobs": 1}


class Stream(threading.Thread):
    """One streamed request; keeps each choice's tokens with their log-probabilities, its text, and when tokens came."""

    def __init__(self, server: HttpClient, index: int) -> None:
        super().__init__(daemon=True)
        self.server, self.index = server, index
        self.choices: dict[int, list] = {choice: ["", []] for choice in range(request_of(index)["n"])}
        self.arrivals: list[float] = []
        self.finishes: list[str] = []
        self.error = None

    def run(self) -> None:
        try:
            for chunk in self.server.stream("/v1/chat/completions", request_of(self.index)):
                if "error" in chunk:
                    self.error = chunk
                    return
                for choice in chunk["choices"]:
                    mine = self.choices[choice["index"]]
                    mine[0] += choice["delta"].get("content") or ""
                    for entry in (choice.get("logprobs") or {}).get("content") or []:
                        mine[1].append((tuple(entry["bytes"] or []), entry["logprob"]))
                        self.arrivals.append(time.monotonic())
                    if choice.get("finish_reason"):
                        self.finishes.append(choice["finish_reason"])
        except OSError as error:
            self.error = error

    def first_token_after(self, moment: float) -> float | None:
        return next((arrival for arrival in self.arrivals if arrival > moment), None)


class Load:
    """All streams at once."""

    def __init__(self, server: HttpClient) -> None:
        self.server = server
        self.streams = [Stream(server, index) for index in range(NUM_STREAMS)]
        for stream in self.streams:
            stream.start()

    def wait_for_tokens(self, count: int) -> None:
        while self.num_tokens() < count and any(stream.is_alive() for stream in self.streams):
            time.sleep(0.001)
        assert any(stream.is_alive() for stream in self.streams), "the streams ended before the fault"

    def num_tokens(self) -> int:
        return sum(len(stream.arrivals) for stream in self.streams)

    def finish(self, stderr=lambda: "") -> list[dict]:
        """What each stream said; every one must have ended by its length."""
        for stream in self.streams:
            stream.join(120)
            assert not stream.is_alive(), f"stream {stream.index} hangs: {stderr()}"
            assert stream.error is None, f"stream {stream.index}: {stream.error}; {stderr()}"
            assert set(stream.finishes) == {"length"} and len(stream.finishes) == len(stream.choices), stream.finishes
            for text, tokens in stream.choices.values():
                assert len(tokens) == NUM_TOKENS, f"stream {stream.index} has {len(tokens)} tokens"
        return [stream.choices for stream in self.streams]

    def silence_after(self, moment: float) -> float:
        """Seconds from the moment to the end of the longest pause of all streams together behind it."""
        arrivals = [moment] + sorted(arrival for stream in self.streams for arrival in stream.arrivals if arrival > moment)
        pauses = [(after - before, after) for before, after in zip(arrivals, arrivals[1:])]
        return max(pauses)[1] - moment

    def slowest_after(self, moment: float) -> float:
        """Seconds that the stream which waited longest waited for a token, from the moment on or later."""
        longest = 0.0
        for stream in self.streams:
            arrivals = [moment] + [arrival for arrival in stream.arrivals if arrival > moment]
            longest = max([longest] + [after - before for before, after in zip(arrivals, arrivals[1:])])
        return longest


def compare(what: str, found: list[dict], expected: list[dict]) -> None:
    for index, (mine, theirs) in enumerate(zip(found, expected)):
        assert mine == theirs, f"{what}: stream {index} differs from the undisturbed run"


def distribution(values: list[float]) -> str:
    values = sorted(values)
    return f"median {values[len(values) // 2]:.2f} s, largest {values[-1]:.2f} s of {len(values)}"


def undisturbed_run(server: HttpClient) -> list[dict]:
    undisturbed = Load(server).finish(server.stderr)
    # The control: another seed must not give the same tokens, or the comparison proves nothing.
    other = server.post("/v1/chat/completions", {**request_of(1), "seed": 999})["choices"][0]["logprobs"]["content"]
    assert [(tuple(e["bytes"] or []), e["logprob"]) for e in other] != undisturbed[1][0][1], "seeds make no difference"
    return undisturbed


def random_moment(choice: random.Random) -> int:
    """Tokens of all streams until the fault: not in the last tenth, which may be over before the fault comes."""
    return choice.randrange(1, NUM_STREAMS * NUM_TOKENS * 9 // 10)


def expect_named(server: HttpClient, rank: int, pid: int, log: str) -> str:
    """/health, /metrics and the log name this worker and nobody else; returns what it was at."""
    fault = json.loads(server.get("/health")[1])["last_fault"]
    assert [(culprit["rank"], culprit["pid"]) for culprit in fault["culprits"]] == [(rank, pid)], fault
    operation = fault["culprits"][0]["operation"]
    assert re.search(r"step|idle", operation), fault
    metrics = server.get("/metrics")[1]
    series = re.findall(r'^plumbline_last_fault_timestamp_seconds\{.*\}', metrics, re.M)
    assert len(series) == 1 and f'pid="{pid}"' in series[0] and f'rank="{rank}"' in series[0] and operation in series[0], series
    host = re.escape(fault["culprits"][0]["host"])
    assert re.search(rf"lost rank {rank} \({host} {pid}\): .*{re.escape(operation)}", log), log
    return operation
