"""`plumbline serve` over TLS, with TLS between coordinator and workers too. usage: tls_check.py PLUMBLINE"""
import http.client
import json
import pathlib
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

from server_process import MODEL, ROOT, Server

PLUMBLINE = sys.argv[1]
CASE = json.loads((ROOT / "deploy/demo_model/expected.json").read_text())["cases"][0]


def expect_failure(code: int, words: list[str], *arguments: object) -> None:
    done = subprocess.run([PLUMBLINE, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, f"{arguments}: exit {done.returncode}, expected {code}\n{done.stderr}"
    assert all(word in done.stderr for word in words), f"{words} are not in {done.stderr}"
    assert code != 1 or len(done.stderr.strip().splitlines()) == 1, f"more than one line: {done.stderr}"
    print(f"ok  {done.stderr.strip().splitlines()[-1][:150]}")


def check_start(certificates: pathlib.Path) -> None:
    """What is wrong with a certificate is one line, before anything is loaded."""
    serve = ["serve", "--model", MODEL, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    def files(flag: str, certificate: str, key: str, ca: str = "") -> list:
        return [f"--{flag}-cert", certificates / certificate, f"--{flag}-key", certificates / key,
                *([f"--{flag}-ca", certificates / ca] if ca else [])]
    expect_failure(1, ["none.pem", "cannot be read"], *serve, *files("tls", "none.pem", "server.key"))
    expect_failure(1, ["client.key", "does not belong to", "server.pem"], *serve, *files("tls", "server.pem", "client.key"))
    expect_failure(1, ["expired.pem", "has expired"], *serve, *files("tls", "expired.pem", "expired.key"))
    expect_failure(1, ["server.key", "no certificate"], *serve, *files("tls", "server.pem", "server.key"), "--tls-client-ca",
                   certificates / "server.key")
    expect_failure(1, ["stranger.pem", "does not come from the authority in", "ca.pem"], *serve,
                   *files("cluster", "stranger.pem", "stranger.key", "ca.pem"))
    expect_failure(2, ["--tls-cert requires --tls-key"], *serve, "--tls-cert", certificates / "server.pem")
    expect_failure(2, ["--cluster-cert requires"], *serve, *files("cluster", "server.pem", "server.key"))
    expect_failure(2, ["--tls-client-ca requires --tls-cert"], *serve, "--tls-client-ca", certificates / "ca.pem")


def trusting(certificate: pathlib.Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


def ask(server: Server, tls: ssl.SSLContext, key: str) -> str:
    """The answer's text, or the status that came instead."""
    body = json.dumps({"model": "demo", "messages": CASE["messages"], "temperature": 0}).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(server.http + "/v1/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60, context=tls) as response:
            return json.load(response)["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        return str(error.code)


def check_server(certificates: pathlib.Path) -> None:
    operator = certificates / "operator"
    operator.write_text("the-operators-key\n")
    own = lambda flag, name: [f"--{flag}-cert", str(certificates / f"{name}.pem"), f"--{flag}-key", str(certificates / f"{name}.key")]
    with Server(PLUMBLINE, "--tp", "2", "--api-key-file", str(operator), *own("tls", "server"), *own("cluster", "client"),
                "--cluster-ca", str(certificates / "ca.pem")) as server:
        assert server.http.startswith("https://"), server.http
        right = trusting(certificates / "ca.pem")
        assert ask(server, right, "the-operators-key") == CASE["text"]
        assert ask(server, right, "") == ask(server, right, "wrong") == "401"
        try:
            ask(server, trusting(certificates / "other_ca.pem"), "the-operators-key")
            raise AssertionError("a server of an authority that is not trusted was believed")
        except urllib.error.URLError as error:
            assert isinstance(error.reason, ssl.SSLCertVerificationError), error
        address = server.http.removeprefix("https://")
        plain = http.client.HTTPConnection(address, timeout=10)
        try:
            plain.request("GET", "/health")
            raise AssertionError(f"plain HTTP was answered: {plain.getresponse().status}")
        except (http.client.HTTPException, ConnectionError):
            pass
        large = http.client.HTTPSConnection(address, timeout=10, context=right)
        large.putrequest("POST", "/v1/chat/completions")
        large.putheader("Content-Length", str(1 << 30))
        large.endheaders()
        assert large.getresponse().status == 413
        assert ask(server, right, "the-operators-key") == CASE["text"]

        secrets = [line for name in ("server", "client") for line in (certificates / f"{name}.key").read_text().splitlines()[1:-1]]
        for pid in [server.process.pid, *server.workers()]:
            arguments = pathlib.Path(f"/proc/{pid}/cmdline").read_text()
            assert str(certificates / "client.key") in arguments  # a path
            assert not any(secret in arguments for secret in secrets)
        assert not any(secret in server.stderr() for secret in secrets)
    print("served over TLS, inside and outside")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        certificates = pathlib.Path(temporary)
        subprocess.run([ROOT / "tests/make_certificates.sh", certificates], check=True, capture_output=True)
        check_start(certificates)
        check_server(certificates)


if __name__ == "__main__":
    main()
