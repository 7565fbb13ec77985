"""A `plumbline serve` of the demo model for tests: started on free ports, stopped and checked for leftovers at the end."""
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "deploy/demo_model/model"


class HttpClient:
    """Requests to the server at self.http."""
    http: str

    def post(self, path: str, body: dict) -> dict:
        request = urllib.request.Request(self.http + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    def stream(self, path: str, body: dict):
        """Chunks of a streamed response, as they arrive."""
        request = urllib.request.Request(self.http + path, json.dumps({**body, "stream": True}).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            for line in response:
                data = line.decode().strip().removeprefix("data: ")
                if data and data != "[DONE]":
                    yield json.loads(data)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body, whatever the status."""
        try:
            with urllib.request.urlopen(self.http + path, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


class Server(HttpClient):
    def __init__(self, plumbline: str, *arguments: str) -> None:
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen(
            [plumbline, "serve", "--model", str(MODEL), "--served-model-name", "demo", "--http", "127.0.0.1:0", "--grpc",
             "127.0.0.1:0", *arguments], stdout=subprocess.PIPE, stderr=self.log, text=True)
        output = ""
        while "gRPC" not in output:
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(f"the server ended: {self.stderr()}")
            output += line
        self.http = re.search(r"https?://[\d.]+:\d+", output).group()
        self.grpc = re.search(r"gRPC\s+([\d.]+:\d+)", output).group(1)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        workers = self.workers()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(60)
            assert code == 0, f"exit code {code} on SIGTERM: {self.stderr()}"
        assert wait_gone(workers, 5), f"workers outlive the server: {workers}"

    def stderr(self) -> str:
        self.log.flush()
        return pathlib.Path(self.log.name).read_text()

    def workers(self) -> list[int]:
        """Process ids of the worker processes, by rank."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) != self.process.pid:
                    continue
                arguments = (entry / "cmdline").read_text().split("\0")
            except (OSError, ProcessLookupError):
                continue
            if "worker" in arguments:
                found[int(arguments[arguments.index("--rank") + 1])] = int(entry.name)
        return [found[rank] for rank in sorted(found)]


def is_running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(is_running(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def wait_for(condition, seconds: float, what: str) -> float:
    """Seconds until the condition holds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.005)
    return time.monotonic() - start
