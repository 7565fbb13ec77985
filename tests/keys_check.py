"""`plumbline keys` and a server that follows its file. usage: keys_check.py PLUMBLINE"""
import concurrent.futures
import json
import pathlib
import re
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

from server_process import MODEL, Server

PLUMBLINE = sys.argv[1]


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([PLUMBLINE, "keys", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, f"keys {arguments}: exit {done.returncode}, expected {code}\n{done.stderr}"
    return done


def check_commands(folder: pathlib.Path) -> None:
    store = folder / "commands.db"
    created = run("create", "--store", store, "--name", "alice", "--tokens-per-minute", 600, "--max-concurrent", 2)
    key = created.stdout.strip()
    assert re.fullmatch(r"pl-[0-9a-f]{64}", key), created.stdout
    assert "cannot be shown again" in created.stderr and key not in created.stderr
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    second = json.loads(run("create", "--store", store, "--name", "bob", "--json").stdout)
    assert second["id"] == 2 and second["key"] != key

    listed = json.loads(run("list", "--store", store, "--json").stdout)
    alice = listed[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", alice.pop("created"))
    assert alice == {"id": 1, "name": "alice", "revoked": None, "tokens_per_minute": 600, "max_concurrent": 2,
                     "priority": 0, "share": 1}
    assert listed[1]["tokens_per_minute"] == listed[1]["max_concurrent"] == 0
    run("set", "--store", store, 1, "--max-concurrent", 0)
    run("set", "--store", store, 1, "--priority", -2, "--share", 7)
    run("revoke", "--store", store, 2)
    listed = json.loads(run("list", "--store", store, "--json").stdout)
    assert (listed[0]["tokens_per_minute"], listed[0]["max_concurrent"], listed[0]["name"]) == (600, 0, "alice")
    assert (listed[0]["priority"], listed[0]["share"]) == (-2, 7)
    assert listed[1]["revoked"]
    table = run("list", "--store", store).stdout
    assert "alice" in table and "bob" in table and len(table.splitlines()) == 3
    kept = b"".join(file.read_bytes() for file in folder.iterdir()).decode("latin-1")
    for secret in (key, second["key"]):
        assert secret[3:] not in table + json.dumps(listed) + kept

    assert f"{store}: key 9 does not exist" in run("revoke", "--store", store, 9, code=1).stderr
    assert "revoked" in run("set", "--store", store, 2, "--name", "x", code=1).stderr
    assert "none.db" in run("list", "--store", folder / "none.db", code=1).stderr
    assert not (folder / "none.db").exists()
    (folder / "text").write_text("no database " * 1000)
    assert "text: file is not a database" in run("create", "--store", folder / "text", "--name", "x", code=1).stderr
    run("create", "--store", store, code=2)
    run("create", "--store", store, "--name", "x", "--tokens-per-minute", -1, code=2)
    run("create", "--store", store, "--name", "x", "--share", 0, code=2)
    run("set", "--store", store, 1, "--priority", 101, code=2)
    run("set", "--store", store, 1, code=2)
    run(code=2)


def check_many_at_once(folder: pathlib.Path) -> None:
    """Also when each of them finds no file yet."""
    store = folder / "many.db"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: run("create", "--store", store, "--name", n), range(16)))
    assert len(json.loads(run("list", "--store", store, "--json").stdout)) == 16


def status_of(server: Server, key: str | None, max_tokens: int = 4) -> int:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    body = json.dumps({"model": "demo", "prompt": "Plumbline is", "max_tokens": max_tokens, "ignore_eos": True})
    request = urllib.request.Request(server.http + "/v1/completions", body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        assert error.code != 401 or error.headers["WWW-Authenticate"] == "Bearer"
        assert error.code != 429 or int(error.headers["Retry-After"]) >= 1
        return error.code


def check_server(folder: pathlib.Path) -> None:
    store = folder / "served.db"
    key = run("create", "--store", store, "--name", "alice").stdout.strip()
    operator = "the operator's secret"
    (folder / "operator").write_text(operator + "\n")
    with Server(PLUMBLINE, "--keys", str(store), "--api-key-file", str(folder / "operator")) as server:
        assert status_of(server, None) == 401
        assert status_of(server, "pl-" + "0" * 64) == 401
        assert status_of(server, key) == 200
        assert status_of(server, operator) == 200
        run("set", "--store", store, 1, "--tokens-per-minute", 60)
        assert status_of(server, key, max_tokens=100) == 200
        assert status_of(server, key) == 429
        other = run("create", "--store", store, "--name", "bob").stdout.strip()
        assert status_of(server, other) == 200
        run("revoke", "--store", store, 2)
        assert status_of(server, other) == 401
        for path in ("/health", "/ready", "/metrics"):
            with urllib.request.urlopen(server.http + path, timeout=60) as answer:
                assert answer.status == 200
        arguments = pathlib.Path(f"/proc/{server.process.pid}/cmdline").read_bytes().decode()
        log = server.stderr()
    assert "rank" in log, f"the log is not the server's: {log}"
    for secret in (key[3:], other[3:], operator):
        assert secret not in log + arguments


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        check_commands(pathlib.Path(temporary))
        check_many_at_once(pathlib.Path(temporary))
        check_server(pathlib.Path(temporary))
    missing = subprocess.run([PLUMBLINE, "serve", "--model", MODEL, "--keys", "/nowhere/keys.db"],
                             capture_output=True, text=True, timeout=60)
    assert missing.returncode == 1 and "/nowhere/keys.db" in missing.stderr, missing.stderr
    print("keys are made, followed and kept secret")


if __name__ == "__main__":
    main()
