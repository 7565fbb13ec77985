"""Checks a running server with the stock openai client.

Usage: openai_client_check.py BASE_URL MODEL        e.g. http://127.0.0.1:8000/v1 demo_model
Prints one line per check; exits 1 at the first that fails.
"""

import math
import sys

import openai

QUESTION = [{"role": "user", "content": "Say something."}]


def check_models(client, model):
    assert model in [entry.id for entry in client.models.list().data]
    entry = client.models.retrieve(model)
    assert entry.max_model_len > 0 and entry.numerics and entry.fingerprint is not None


def check_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 1 <= answer.usage.completion_tokens <= 16


def check_stream(client, model):
    """A stream gives the text and the usage of the whole answer."""
    arguments = dict(model=model, messages=QUESTION, max_tokens=16, temperature=0)
    whole = client.chat.completions.create(**arguments)
    text, reason, usage = "", None, None
    for chunk in client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)
    assert reason == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


def check_chat_logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert entry.logprob == values[0], "greedy: the chosen token is the likeliest, as the same float"
        assert sum(math.exp(value) for value in values) <= 1 + 1e-5


def check_completion(client, model):
    answer = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0)
    assert answer.object == "text_completion" and isinstance(answer.choices[0].text, str)
    text = "".join(chunk.choices[0].text for chunk in client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=8, temperature=0, stream=True))
    assert text == answer.choices[0].text
    both = client.completions.create(model=model, prompt=["Once upon a time", "Hello"], max_tokens=8, temperature=0)
    assert both.choices[0].text == answer.choices[0].text and both.choices[1].index == 1


def check_echo(client, model):
    """The prompt's log-probabilities do not depend on how much is generated, nor on the batch."""
    prompt = "The quick brown fox jumps over the lazy dog."
    one = client.completions.create(model=model, prompt=prompt, max_tokens=1, echo=True, logprobs=1, temperature=0)
    none = client.completions.create(model=model, prompt=prompt, max_tokens=0, echo=True, logprobs=1)
    batch = client.completions.create(
        model=model, prompt=["Hello", prompt, "x"], max_tokens=1, echo=True, logprobs=1, temperature=0)
    logprobs = one.choices[0].logprobs
    assert one.choices[0].text.startswith(prompt) and none.choices[0].text == prompt
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert len(logprobs.tokens) == one.usage.prompt_tokens + one.usage.completion_tokens
    assert none.choices[0].logprobs.token_logprobs == logprobs.token_logprobs[:-1]
    assert batch.choices[1].logprobs.token_logprobs == logprobs.token_logprobs
    assert logprobs.text_offset == sorted(logprobs.text_offset) and logprobs.text_offset[0] == 0
    for value, top in list(zip(logprobs.token_logprobs, logprobs.top_logprobs))[1:]:
        assert value <= max(top.values()) and value in top.values()


def check_choices_and_seed(client, model):
    arguments = dict(model=model, messages=QUESTION, max_tokens=12, temperature=1.5, n=3, seed=7)
    first = client.chat.completions.create(**arguments)
    second = client.chat.completions.create(**arguments)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert texts == [choice.message.content for choice in second.choices], "a seed repeats its answer"
    assert len(set(texts)) > 1, "choices are drawn apart"


def check_stop(client, model):
    arguments = dict(model=model, prompt="Once upon a time", max_tokens=24, temperature=0)
    text = client.completions.create(**arguments, extra_body={"ignore_eos": True}).choices[0].text
    stop = text[len(text) // 2:][:2]
    answer = client.completions.create(**arguments, stop=[stop], extra_body={"ignore_eos": True}).choices[0]
    assert answer.finish_reason == "stop" and answer.text == text[:text.index(stop)], (answer, stop)


def check_extra_parameters(client, model):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], max_tokens=6,
        user="someone", logit_bias={"5": -100}, presence_penalty=0.5, frequency_penalty=0.5, top_p=0.9,
        extra_body={"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True})
    assert answer.usage.completion_tokens == 6 and answer.choices[0].finish_reason == "length"


def expect(error, part, function, **arguments):
    try:
        function(**arguments)
    except error as caught:
        assert part in str(caught), f"{part!r} is not in {caught}"
        return
    raise AssertionError(f"{arguments} was accepted")


def check_errors(client, model):
    chat = client.chat.completions.create
    expect(openai.NotFoundError, "no-such-model", chat, model="no-such-model", messages=QUESTION)
    expect(openai.NotFoundError, "no-such-model", client.models.retrieve, model="no-such-model")
    expect(openai.BadRequestError, "temperature", chat, model=model, messages=QUESTION, temperature=9)
    expect(openai.BadRequestError, "temperatur", chat, model=model, messages=QUESTION, extra_body={"temperatur": 1})
    expect(openai.BadRequestError, "response_format", chat, model=model, messages=QUESTION,
           response_format={"type": "json_object"})
    expect(openai.BadRequestError, "messages", chat, model=model, messages=[])
    expect(openai.BadRequestError, "context length", client.completions.create, model=model,
           prompt="word " * 200_000)
    expect(openai.BadRequestError, "token id", client.completions.create, model=model, prompt=[2**30])
    expect(openai.APIStatusError, "", client.files.list)


CHECKS = [check_models, check_chat, check_stream, check_chat_logprobs, check_completion, check_echo,
          check_choices_and_seed, check_stop, check_extra_parameters, check_errors]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120)
    for check in CHECKS:
        check(client, sys.argv[2])
        print(f"ok {check.__name__}", flush=True)


if __name__ == "__main__":
    main()
