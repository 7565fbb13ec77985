"""By hand: the tokenizer against the Hugging Face `tokenizers` library on random Unicode text.

    python tests/tokenizer_oracle.py --model DIR [--count 10000] [--seed 1] [--command build/release/plumbline tokenize]

DIR holds a tokenizer.json. Texts mix scripts, marks, emoji, white space, digits, code and the tokenizer's own added tokens. Runs
`COMMAND --model DIR --input FILE.jsonl` and compares its ids line by line. Exit code 1 if a line differs.
"""
from __future__ import annotations
import argparse, json, pathlib, random, subprocess, sys, tempfile, unicodedata
from tokenizers import Tokenizer

RANGES = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF), (0xE00, 0xEFF), (0x1100, 0x11FF), (0x1E00, 0x1FFF),
          (0x2000, 0x206F), (0x20A0, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE00, 0xFFEF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0, 0x10FFFF)]
WORDS = ["the", " The", "don't", " I'LL", "ſ", "naïve", "İ", "\n", "\n\n\n", "\r\n", "\t", "   ", "\u3000", "\u00a0", "2026", "½", "٣", " def f(x):", "e\u0301\u0316", "👩‍👩‍👧", "\u200d", "\ufeff", "\u180e", "_", "ǅ", "ﬁ"]


def random_text(rng: random.Random, added: list[str]) -> str:
    out = []
    for _ in range(rng.randrange(1, 30)):
        kind = rng.random()
        if kind < 0.3:
            out.append(rng.choice(WORDS))
        elif kind < 0.35 and added:
            out.append(rng.choice(added))
        else:
            low, high = rng.choice(RANGES)
            for _ in range(rng.randrange(1, 6)):
                c = chr(rng.randrange(low, high + 1))
                # Unassigned characters have other properties in other versions of Unicode.
                if unicodedata.category(c) not in ("Cs", "Cn"):
                    out.append(c)
    return "".join(out)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--command", nargs="+", default=["build/release/plumbline", "tokenize"])
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    added = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    rng = random.Random(args.seed)
    texts = [random_text(rng, added) for _ in range(args.count)]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps({"text": t}) + "\n" for t in texts)
        file.flush()
        out = subprocess.run([*args.command, "--model", str(args.model), "--input", file.name], check=True, capture_output=True, text=True).stdout
    lines = out.split("\n")[:-1]
    wrong = abs(len(lines) - len(texts))
    for text, line in zip(texts, lines):
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        answer = json.loads(line)
        if answer.get("ids") != expected or answer.get("text") != text:
            wrong += 1
            if wrong <= 5:
                print(f"text {text!r}\n  expected {expected}\n  answered {line}", file=sys.stderr)
    print(f"{len(texts)} texts, {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
