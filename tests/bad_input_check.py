"""What users get wrong at the command line: exit code and one line that names the culprit and what would be right.
usage: bad_input_check.py PLUMBLINE"""
import json
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEMO = ROOT / "deploy/demo_model/model"
TOKENS = ROOT / "tests/golden/qwen3/expected.safetensors"
PLUMBLINE = sys.argv[1]


def expect(code: int, words: list[str], *arguments: object) -> None:
    run = subprocess.run([PLUMBLINE, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    what = f"plumbline {' '.join(map(str, arguments))}"
    assert run.returncode == code, f"{what}: exit {run.returncode}, expected {code}\n{run.stderr}"
    for word in words:
        assert word in run.stderr, f"{what}: '{word}' is not in\n{run.stderr}"
    if code == 1:
        last = run.stderr.strip().splitlines()[-1]
        assert last.startswith("plumbline: "), f"{what}: last line is {last!r}"
    print(f"ok  {run.stderr.strip().splitlines()[-1][:150]}")


def copy_of_demo(folder: pathlib.Path, name: str, **config: object) -> pathlib.Path:
    """A copy of the demo model with other values in its config.json."""
    model = folder / name
    shutil.copytree(DEMO, model)
    settings = json.loads((model / "config.json").read_text())
    settings.update(config)
    (model / "config.json").write_text(json.dumps(settings))
    return model


def safetensors(path: pathlib.Path, name: str, ids: list[int]) -> pathlib.Path:
    header = json.dumps({name: {"dtype": "I32", "shape": [len(ids)], "data_offsets": [0, 4 * len(ids)]}}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack(f"<{len(ids)}i", *ids))
    return path


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        logits = ["logits", "--tokens", TOKENS, "--model"]
        expect(2, ["--tokens"], "logits", "--model", DEMO)
        expect(2, ["nonsense"], "logits", "--model", DEMO, "--tokens", TOKENS, "--nonsense")
        expect(1, ["--model", "--config"], "logits", "--tokens", TOKENS)
        expect(1, ["nowhere"], *logits, folder / "nowhere")
        expect(1, ["gpt9", "llama"], *logits, copy_of_demo(folder, "unknown", model_type="gpt9"))
        expect(1, ["size 8", "sizes that fit: 1, 2, 4"], *logits, copy_of_demo(folder, "heads", num_attention_heads=4), "--tp", 8)
        expect(1, ["5", "stages"], *logits, DEMO, "--pp", 5)
        expect(1, ["model.embed_tokens.weight", "320"], *logits, copy_of_demo(folder, "wide", hidden_size=320))
        expect(1, ["model.layers.4"], *logits, copy_of_demo(
            folder, "deep", num_hidden_layers=5, layer_types=["linear_attention"] * 3 + ["full_attention"] * 2))
        torn = copy_of_demo(folder, "torn")
        data = (torn / "model.safetensors").read_bytes()
        (torn / "model.safetensors").write_bytes(data[:-1000])
        expect(1, ["model.safetensors"], *logits, torn)
        (torn / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
        expect(1, ["model.safetensors", "header"], *logits, torn)
        (torn / "model.safetensors").unlink()
        expect(1, ["model.safetensors"], *logits, torn)
        broken = copy_of_demo(folder, "broken")
        (broken / "config.json").write_text("{")
        expect(1, ["config.json"], *logits, broken)
        expect(1, ["99999", "2048"], "logits", "--model", DEMO, "--tokens", safetensors(folder / "t", "tokens.0", [1, 99999]))
        expect(1, ["tokens.0"], "logits", "--model", DEMO, "--tokens", safetensors(folder / "u", "other", [1]))
        expect(1, ["4097", "4096"], "logits", "--model", DEMO, "--tokens", safetensors(folder / "v", "tokens.0", [1] * 4097))
        expect(1, ["cpu-best-9", "cpu-scalar-1"], *logits, DEMO, "--arithmetic", "cpu-best-9")
        expect(1, ["CUDA"], *logits, DEMO, "--device", "cuda")
        expect(1, ["--layers 9", "4"], *logits, DEMO, "--layers", 9)
        expect(1, ["random:SEED"], *logits, DEMO, "--weights", "zeros")
        expect(1, ["GiB too little"], "bench", "--config", ROOT / "tests/golden/configs/mixtral-8x7b.json", "--max-tokens", 10**9)
        expect(1, ["tokenizer.json"], "serve", "--model", ROOT / "tests/golden/qwen3", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
        expect(1, ["--http", "HOST:PORT"], "serve", "--model", DEMO, "--http", "8080")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            expect(1, [address], "serve", "--model", DEMO, "--http", address, "--grpc", "127.0.0.1:0")
            expect(1, [address], "serve", "--model", DEMO, "--http", "127.0.0.1:0", "--grpc", address)
        expect(1, ["token"], "worker", "--coordinator", "127.0.0.1:1", "--join-token-file", folder / "none")


if __name__ == "__main__":
    main()
