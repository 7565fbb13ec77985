"""The second sight of a 4,000-token prompt on the demo model, a hybrid, through a running server: its first token within a tenth
of the first sight's time, the answer equal to the digit, the hit in usage and metrics. Also over TP 2 x PP 2, and not with
the cache off.
usage: prefix_cache_check.py PLUMBLINE"""
import random
import re
import sys
import time
import urllib.request

from server_process import Server

LENGTH, HIT = 4000, 3968  # the last multiple of 64 below


def ask(server: Server, prompt: list[int]) -> tuple[float, list, dict]:
    """Seconds to the only token, its log-probabilities, the usage."""
    start = time.monotonic()
    answer = server.post("/v1/completions", {"model": "demo", "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5})
    return time.monotonic() - start, answer["choices"][0]["logprobs"], answer["usage"]


def counters(server: Server) -> dict[str, int]:
    with urllib.request.urlopen(server.http + "/metrics") as response:
        lines = re.findall(r"^plumbline_prefix_cache_(\w+) (\d+)$", response.read().decode(), re.M)
    return {name: int(value) for name, value in lines}


def main() -> None:
    numbers = random.Random(1)
    prompts = [[numbers.randrange(2000) for _ in range(LENGTH)] for _ in range(3)]
    with Server(sys.argv[1], "--max-tokens", "16384", "--prefix-cache", "off") as server:
        ask(server, prompts[0][:100])
        cold = [ask(server, prompt) for prompt in prompts]
        assert ask(server, prompts[0])[2]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert counters(server)["query_tokens_total"] == 0
    with Server(sys.argv[1], "--max-tokens", "16384") as server:
        ask(server, prompts[0][1:100])
        ratios = []
        for prompt, (_, logprobs, _) in zip(prompts, cold):
            first, second = ask(server, prompt), ask(server, prompt)
            assert first[1] == logprobs and second[1] == logprobs, "the cache changes the answer"
            assert first[2]["prompt_tokens_details"]["cached_tokens"] == 0, first
            assert second[2]["prompt_tokens_details"]["cached_tokens"] == HIT, second
            ratios.append(second[0] / first[0])
        assert counters(server)["hit_tokens_total"] == 3 * HIT, counters(server)
        assert counters(server)["query_tokens_total"] == 6 * LENGTH + 99, counters(server)
        assert min(ratios) <= 0.1, f"the second sight takes {ratios} of the first's time"
    with Server(sys.argv[1], "--max-tokens", "16384", "--tp", "2", "--pp", "2") as server:
        for _ in range(2):
            assert ask(server, prompts[0])[1] == cold[0][1], "the shape changes the answer"
        assert counters(server)["hit_tokens_total"] == HIT
    print(f"second sight of {LENGTH} tokens: {min(ratios):.3f} of the first's time")


if __name__ == "__main__":
    main()
