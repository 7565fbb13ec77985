"""The commands that scripts rely on, run on the demo model. usage: cli_check.py PLUMBLINE"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEMO = ROOT / "deploy/demo_model/model"
EXPECTED = json.loads((ROOT / "deploy/demo_model/expected.json").read_text())["cases"]
PLUMBLINE = sys.argv[1]


def run(*arguments: object) -> str:
    done = subprocess.run([PLUMBLINE, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"plumbline {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr}"
    return done.stdout


def check_help() -> None:
    commands = ["serve", "coordinator", "worker", "generate", "logits", "score", "tokenize", "keys", "bench", "plan", "doctor"]
    for command in commands:
        assert "Example: plumbline " + command in run(command, "--help"), f"{command} --help has no example"


def check_generate() -> None:
    case = EXPECTED[0]
    text = run("generate", "--model", DEMO, "--chat", "--prompt", case["messages"][0]["content"])
    assert text == case["text"] + "\n", text


def check_tokenize(folder: pathlib.Path) -> None:
    lines = [{"messages": EXPECTED[0]["messages"], "add_generation_prompt": True}, {"text": EXPECTED[0]["prompt"]}, {"nothing": 1}]
    (folder / "lines").write_text("".join(json.dumps(line) + "\n" for line in lines))
    chat, text, nothing = map(json.loads, run("tokenize", "--model", DEMO, "--input", folder / "lines").splitlines())
    assert chat == {"text": EXPECTED[0]["prompt"], "ids": EXPECTED[0]["prompt_token_ids"]} == text
    assert "error" in nothing


def check_score(folder: pathlib.Path) -> None:
    ids = EXPECTED[0]["prompt_token_ids"] + EXPECTED[0]["token_ids"]
    (folder / "score").write_text(json.dumps({"tokens": ids}) + "\n")
    scored = json.loads(run("score", "--model", DEMO, "--input", folder / "score", "--top", 2))
    answer = range(len(EXPECTED[0]["prompt_token_ids"]), len(ids))
    assert len(scored["logprobs"]) == len(ids) and scored["logprobs"][0] is None
    for position in answer:  # greedy tokens: each is its own first alternative, to the last bit
        assert scored["top"][position]["tokens"][0] == ids[position]
        assert scored["top"][position]["logprobs"][0] == scored["logprobs"][position]
    assert abs(sum(scored["logprobs"][1:]) - scored["sum"]) < 1e-9


def check_logits(folder: pathlib.Path) -> None:
    subprocess.run([sys.executable, ROOT / "deploy/demo_tokens.py", ROOT / "deploy/demo_model/expected.json", folder / "tokens"], check=True)
    shapes = [[], ["--chunk", 64], ["--tp", 4, "--pp", 2], ["--tp", 2, "--pp", 2, "--transport", "gloo"],
              ["--tp", 2, "--pp", 2, "--transport", "shm"],
              ["--tp", 2, "--pp", 2, "--transport", "processes"], ["--tp", 2, "--transport", "processes-gloo"], ["--threads", 3]]
    cached = ["--cache-dir", folder / "cache"]
    shapes += [cached, cached, ["--tp", 2, "--pp", 2, "--transport", "processes", *cached], ["--tp", 2, "--pp", 2, *cached]]
    outputs = set()
    for number, shape in enumerate(shapes):
        out = folder / f"logits{number}"
        hashes = run("logits", "--model", DEMO, "--tokens", folder / "tokens", "--out", out, *shape)
        outputs.add((hashes, out.read_bytes()))
    assert len(outputs) == 1, "equal bits must give equal files"
    assert len(list((folder / "cache").iterdir())) == 1 + 4, "a file of packed weights per rank of either shape"
    other = run("logits", "--model", DEMO, "--tokens", folder / "tokens", "--compute-dtype", "f32")
    assert other != hashes, "f32 arithmetic must give other bits, or the hash sees nothing"


def check_bench() -> None:
    report = json.loads(run("bench", "--model", DEMO, "--device", "cpu", "--threads", 1, "--prompt-tokens", 128, "--batch", 2, "--json"))
    for key in ["prefill_tokens_per_second", "decode_tokens_per_second", "rss_bytes"]:
        assert report[key] > 0, key
    assert (report["batch"], report["prompt_tokens"], report["threads"], report["tp"], report["pp"]) == (2, 128, 1, 1, 1)
    assert re.fullmatch(r"cpu-[a-z0-9]+-\d+", report["arithmetic"])


def check_plan() -> None:
    """Bytes of Qwen3.6-27B: the published checkpoint's text part is 53,791,996,928 bytes; KV 65,536 B per token; state
    150,994,944 + 2,949,120 B per sequence."""
    config = ROOT / "tests/golden/configs/qwen3.6-27b.json"
    shapes = json.loads(run("plan", "--config", config, "--max-tokens", 64000, "--max-sequences", 3,
                            "--prefix-cache-states", 2, "--json"))
    assert [(shape["tp"], shape["pp"]) for shape in shapes] == [(tp, pp) for tp in (1, 2, 4, 8) for pp in (1, 2, 4)]
    whole = shapes[0]["ranks"][0]
    assert whole["checkpoint_bytes"] == 53_791_996_928 and whole["parameters"] == 26_895_998_464
    assert whole["kv_bytes"] == 64000 * 65_536 and whole["state_bytes"] == (3 + 2) * (150_994_944 + 2_949_120)
    for shape in shapes:
        tp, ranks = shape["tp"], shape["ranks"]
        replicated_kv = 16 * 2 * 1024 * 5120 * 2 * (tp // 4 - 1) if tp > 4 else 0  # 4 KV heads on 8 ranks
        read = sum(rank["checkpoint_bytes"] for rank in ranks)
        assert 0 <= read - 53_791_996_928 - replicated_kv < tp * 2_000_000, "only norms are read by several ranks"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        check_help()
        check_generate()
        check_tokenize(folder)
        check_score(folder)
        check_logits(folder)
        check_bench()
        check_plan()
    assert "arithmetics" in run("doctor")
    print("all commands do what scripts rely on")


if __name__ == "__main__":
    main()
