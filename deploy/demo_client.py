"""Asks the demo server questions over HTTP and gRPC and prints answers, time to first token and tokens per second."""
import argparse
import importlib
import json
import pathlib
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent


def chat(base: str, model: str, question: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
    request = urllib.request.Request(f"{base}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    start = time.monotonic()
    with urllib.request.urlopen(request) as response:
        reply = json.load(response)
    seconds = time.monotonic() - start
    tokens = reply["usage"]["completion_tokens"]
    print(f"> {question}\n{reply['choices'][0]['message']['content']}\n  [{tokens} tokens, {tokens / seconds:.0f} tokens/s]")


def chat_streamed(base: str, model: str, question: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}
    request = urllib.request.Request(f"{base}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    start, first, tokens = time.monotonic(), None, 0
    print(f"> {question}")
    with urllib.request.urlopen(request) as response:
        for line in response:
            data = line.decode().strip().removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            chunk = json.loads(data)
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            for choice in chunk["choices"]:
                text = choice["delta"].get("content")
                if text:
                    first = first or time.monotonic()
                    print(text, end="", flush=True)
    end = time.monotonic()
    rate = (tokens - 1) / (end - first) if tokens > 1 else 0
    print(f"\n  [first token after {1000 * (first - start):.0f} ms, {tokens} tokens, {rate:.0f} tokens/s]")


def chat_grpc(address: str, model: str, question: str) -> None:
    import grpc
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as generated:
        if protoc.main(["", f"-I{ROOT}", f"--python_out={generated}", f"--grpc_python_out={generated}",
                        str(ROOT / "proto/inference.proto")]) != 0:
            sys.exit("cannot compile proto/inference.proto")
        sys.path.insert(0, generated)
        messages = importlib.import_module("proto.inference_pb2")
        services = importlib.import_module("proto.inference_pb2_grpc")
    request = messages.GenerateRequest(
        model=model, chat=messages.Chat(messages=[messages.ChatMessage(role="user", content=question)]),
        sampling=messages.Sampling(temperature=0))
    start, first, tokens = time.monotonic(), None, 0
    print(f"> {question}   (gRPC)")
    with grpc.insecure_channel(address) as channel:
        for reply in services.InferenceStub(channel).Generate(request):
            if reply.text:
                first = first or time.monotonic()
                print(reply.text, end="", flush=True)
            tokens += len(reply.token_ids)
    end = time.monotonic()
    rate = (tokens - 1) / (end - first) if tokens > 1 else 0
    print(f"\n  [first token after {1000 * (first - start):.0f} ms, {tokens} tokens, {rate:.0f} tokens/s]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", required=True)
    parser.add_argument("--grpc", required=True)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    chat(args.http, args.model, "Hello")
    chat(args.http, args.model, "What architecture do you have?")
    chat_streamed(args.http, args.model, "What is Plumbline?")
    chat_grpc(args.grpc, args.model, "How do I start a server?")


if __name__ == "__main__":
    main()
