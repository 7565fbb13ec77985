"""Writes the prompts and answers of expected.json as token ids: usage demo_tokens.py EXPECTED.json OUT.safetensors"""
import json
import struct
import sys

expected, out = sys.argv[1], sys.argv[2]
header, data = {}, b""
for i, case in enumerate(json.load(open(expected))["cases"][:8]):
    ids = case["prompt_token_ids"] + case["token_ids"]
    payload = struct.pack(f"<{len(ids)}i", *ids)
    header[f"tokens.{i}"] = {"dtype": "I32", "shape": [len(ids)], "data_offsets": [len(data), len(data) + len(payload)]}
    data += payload
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(out, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + data)
