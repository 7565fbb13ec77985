"""The stock openai client and a generated gRPC client against a running server. usage: clients_check.py PLUMBLINE
Exits with 77 (skipped) where the Python packages are not installed."""
import subprocess
import sys

from server_process import ROOT, Server


def main() -> None:
    try:
        import grpc_health  # noqa: F401
        import grpc_reflection  # noqa: F401
        import grpc_tools  # noqa: F401
        import openai  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}")
        sys.exit(77)
    with Server(sys.argv[1], "--tp", "2", "--pp", "2") as server:
        subprocess.run([sys.executable, ROOT / "tests/clients/openai_client_check.py", server.http + "/v1", "demo"], check=True)
        subprocess.run([sys.executable, ROOT / "tests/clients/grpc_client_check.py", server.grpc], check=True)


if __name__ == "__main__":
    main()
