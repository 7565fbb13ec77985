"""A coordinator and workers started by hand, as on several hosts. usage: coordinator_check.py PLUMBLINE"""
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEMO = ROOT / "deploy/demo_model/model"
CASE = json.loads((ROOT / "deploy/demo_model/expected.json").read_text())["cases"][0]
PLUMBLINE = sys.argv[1]


def worker(address: str, token: pathlib.Path, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen([PLUMBLINE, "worker", "--coordinator", address, "--join-token-file", token, *map(str, arguments)],
                            stderr=subprocess.PIPE, text=True)


def expect_refused(process: subprocess.Popen, word: str) -> None:
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1 and word in error, f"exit {process.returncode}, expected '{word}' in: {error}"
    print(f"refused: {error.strip().splitlines()[-1][:140]}")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        token, wrong = pathlib.Path(temporary) / "token", pathlib.Path(temporary) / "wrong"
        wrong.write_text("0" * 64 + "\n")
        coordinator = subprocess.Popen(
            [PLUMBLINE, "coordinator", "--model", DEMO, "--served-model-name", "demo", "--tp", "2", "--pp", "1", "--worker-listen",
             "127.0.0.1:0", "--join-token-file", token, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        workers = []
        try:
            address = re.search(r"workers at ([\d.]+:\d+)", coordinator.stdout.readline()).group(1)
            assert token.stat().st_mode & 0o777 == 0o600, "the join token is readable by others"
            expect_refused(worker(address, wrong), "token")
            workers += [worker(address, token, "--rank", 1), worker(address, token, "--rank", 1)]
            deadline = time.monotonic() + 10
            while all(process.poll() is None for process in workers) and time.monotonic() < deadline:
                time.sleep(0.02)
            refused = next(process for process in workers if process.poll() is not None)
            workers.remove(refused)
            expect_refused(refused, "rank 1")
            workers.append(worker(address, token))
            output = "".join(coordinator.stdout.readline() for _ in range(3))
            http = re.search(r"http://[\d.]+:\d+", output).group()
            body = {"model": "demo", "messages": CASE["messages"], "temperature": 0}
            request = urllib.request.Request(http + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)["choices"][0]["message"]["content"]
            assert answer == CASE["text"], answer
            coordinator.send_signal(signal.SIGTERM)
            assert coordinator.wait(30) == 0
            for process in workers:
                assert process.wait(10) == 0, f"a worker that is sent home exits with 0, not {process.returncode}"
            print("two workers dialed in, served and went home")
        finally:
            for process in [coordinator, *workers]:
                if process.poll() is None:
                    process.kill()
                process.wait()


if __name__ == "__main__":
    main()
