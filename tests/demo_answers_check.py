"""Every continuation of deploy/demo_model/expected.json (transformers, float32) from a running server, TP 2 x PP 2.
usage: demo_answers_check.py PLUMBLINE"""
import json
import sys

from server_process import ROOT, Server

TIE = 0.1  # a smaller lead of the expected token than this is a tie between f32 and 16-bit arithmetic


def main() -> None:
    cases = json.loads((ROOT / "deploy/demo_model/expected.json").read_text())["cases"]
    with Server(sys.argv[1], "--tp", "2", "--pp", "2") as server:
        for case in cases:
            ids = server.post("/tokenize", {"messages": case["messages"], "add_generation_prompt": True})["tokens"]
            assert ids == case["prompt_token_ids"], f"{case['name']}: the prompt's ids differ"
            choice = server.post("/v1/chat/completions", {
                "model": "demo", "messages": case["messages"], "temperature": 0, "max_tokens": 64})["choices"][0]
            got = server.post("/tokenize", {"prompt": choice["message"]["content"]})["tokens"]
            want = [token for token in case["token_ids"] if token != 2043]  # <|im_end|> is not part of the text
            for position, (a, b) in enumerate(zip(got, want)):
                if a != b:
                    assert case["margin"][position] < TIE, f"{case['name']}: token {position} is {a}, expected {b}"
                    break
            else:
                assert choice["message"]["content"] == case["text"], f"{case['name']}: {choice['message']['content']!r}"
    print(f"{len(cases)} continuations reproduced")


if __name__ == "__main__":
    main()
