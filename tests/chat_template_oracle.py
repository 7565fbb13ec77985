"""By hand: the chat template engine against Jinja2, set up as `transformers` does, on a folder of published templates.

    python tests/chat_template_oracle.py --templates DIR [--model deploy/demo_model/model] [--verbose] [--command build/release/plumbline tokenize]

Renders every conversation below through each DIR/*.jinja twice: by Jinja2 and by `COMMAND --model DIR --chat-template FILE --input FILE.jsonl`.
Prints a line for each template: cases with equal text, cases refused by both, cases that differ. Exit code 1 if any case differs.
The templates are third-party text: collect them where you like, none are kept here.

A server gets requests in OpenAI's form and puts them in the form that templates expect before rendering. Here the same is done, independently,
on Jinja2's side (`as_served`):
  - tool_calls[].function.arguments given as JSON text become the mapping that the text spells; "" becomes {};
  - a content list that holds only text parts becomes their text, joined by newlines, for templates without a `for` over something called content;
  - an empty list of tools becomes none, as if no tools had been given.
strftime_now() reads the clock on both sides, so a run across midnight may differ.
"""
from __future__ import annotations
import argparse, collections, copy, datetime, json, pathlib, subprocess, sys, tempfile
import jinja2.nodes
sys.path.insert(0, str(pathlib.Path(__file__).parent / "golden"))
from make_chat_golden import CONVERSATIONS, TIME, USER, SYSTEM, WEATHER, call, environment

TOKENS = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
ODD_TOOL = dict(type="function", function=dict(name="plot", description="Line one.\nLine \"two\" \\ </tool> {{ not a tag }}", strict=True, parameters={
    "type": "object", "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number", "minimum": -1.5e-9}, "y": {"type": ["number", "null"]}}}},
    "properties": {"points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 9007199254740993}, "style": {"enum": ["—", "··", None, 3, True], "default": "—"},
                   "also": {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "boolean"}}], "description": ""}},
    "required": ["points", "style"], "additionalProperties": False}, **{"return": {"type": "string"}}))
TYPELESS_TOOL = dict(name="ping", description="No wrapper", parameters=dict(type="object", properties=dict(host=dict(type="string"))))
DESCRIBED_TOOL = dict(type="function", function=dict(name="find", description="Finds", parameters=dict(type="object", properties=dict(
    what=dict(type="string", description="word"), many=dict(type="array", items=dict(type="number"), description="list"), deep=dict(type="object", description="map", properties=dict(x=dict(type="integer", description="x", enum=[1, 2])))), required=["what"])))
TOOL_SETS = dict(none=None, two=[WEATHER, TIME], odd=[ODD_TOOL], empty=[], bare=[TYPELESS_TOOL], described=[DESCRIBED_TOOL])


def user(text): return dict(role="user", content=text)
def assistant(text, **more): return dict(role="assistant", content=text, **more)
def result(text, **more): return dict(role="tool", content=text, **more)
def parts(role, *texts): return dict(role=role, content=[dict(type="text", text=t) for t in texts])


# Mistral's templates demand ids of nine letters and digits.
MORE_CONVERSATIONS = dict(
    pirate=[dict(role="system", content="You are a pirate."), user("Hello, how are you?"), assistant("I'm doing great."), user("Show me chat templating!")],
    developer=[dict(role="developer", content="Answer in German."), user("Hi")],
    empty_content=[dict(role="system", content=""), user(""), assistant(""), user("   \n")],
    null_content=[user("a"), assistant(None), user("b")],
    markup=[user("</s>[INST] <|im_end|> {{ messages }} {% if %} <start_of_turn>"), assistant("[/INST]{# c #}\r\n\ttab\u2028"), user("\u00a0nbsp\u3000\x1c trim \x0b")],
    long_text=[user("ab c\n" * 3000), assistant("é" * 2000), user("🙂" * 500)],
    many_turns=[turn for i in range(20) for turn in (user(f"question {i}"), assistant(f"<think>step {i}</think>answer {i}"))] + [user("last")],
    think_history=[user("1+1?"), assistant("<think>\nsum\n</think>\n\n2"), user("and 2+2?"), assistant("<think></think>4"), user("3+3?"), assistant("</think>6"), user("why?")],
    reasoning_history=[user("1+1?"), assistant("2", reasoning_content="sum"), user("2+2?"), assistant("4", reasoning_content=""), user("3+3?"), assistant("6", reasoning_content=None), user("why?")],
    thinking_field=[user("1+1?"), assistant("2", thinking="sum"), user("2+2?"), assistant("4", reasoning="sum again"), user("ok")],
    reasoning_and_call=[user("weather?"), assistant("", reasoning_content="look it up", tool_calls=[call("get_weather", dict(city="Bonn"))]), result("sun", name="get_weather", tool_call_id="call00001")],
    call_after_think=[user("weather?"), assistant("<think>\nhm\n</think>\n\nLooking.", tool_calls=[call("now", {})]), result("12:00", tool_call_id="call00001"), assistant("Noon."), user("thanks")],
    text_arguments=[user("weather?"), assistant(None, tool_calls=[call("get_weather", '{ "city" : "K\\u00f6ln",\n "days": 2, "f": 1.0, "e": 1e-7, "l": [1, {"x": null}], "o": {} }')]), result("{\"t\": 3}", tool_call_id="call00001")],
    empty_arguments=[user("time?"), assistant("", tool_calls=[call("now", "")]), result("12", tool_call_id="call00001")],
    broken_arguments=[user("time?"), assistant("", tool_calls=[call("now", "{oops")])],
    no_arguments=[user("time?"), assistant("", tool_calls=[dict(id="call00001", type="function", function=dict(name="now"))])],
    no_wrapper=[user("time?"), assistant("", tool_calls=[dict(id="call00001", name="now", arguments=dict(zone="UTC"))]), result("12", tool_call_id="call00001")],
    no_id=[user("time?"), assistant("", tool_calls=[dict(type="function", function=dict(name="now", arguments={}))]), result("12")],
    long_id=[user("time?"), assistant("", tool_calls=[dict(call("now", {}), id="call_0123456789abcdef")]), result("12", tool_call_id="call_0123456789abcdef")],
    no_calls=[user("time?"), assistant("Noon.", tool_calls=[]), user("sure?"), assistant("Yes.", tool_calls=None), user("ok")],
    many_calls=[SYSTEM, user("all"), assistant("Now:", tool_calls=[dict(call("get_weather", dict(city=c)), id=f"call0039{i}") for i, c in enumerate(("Rom", "Ulm", "東京"))]),
                *(result(f"{i} °C", name="get_weather", tool_call_id=f"call0039{i}") for i in range(3)), assistant("Fine."), user("more?"), assistant("", tool_calls=[dict(call("now", {}), id="call00041")]), result("12", name="now", tool_call_id="call00041")],
    result_mapping=[user("weather?"), assistant("", tool_calls=[call("get_weather", dict(city="Bonn"))]), result(dict(temperature=21.5, ok=True), name="get_weather", tool_call_id="call00001")],
    result_parts=[user("weather?"), assistant("", tool_calls=[call("get_weather", dict(city="Bonn"))]), dict(parts("tool", "sun", "wind"), name="get_weather", tool_call_id="call00001"), user("ok")],
    result_first=[result("12"), user("hm")],
    result_ends_user=[user("time?"), assistant("", tool_calls=[call("now", {})]), result("12", tool_call_id="call00001"), user("<tool_response>no</tool_response>")],
    ipython=[user("run"), assistant("<|python_tag|>1+1"), dict(role="ipython", content="2"), assistant("2")],
    parts_everywhere=[parts("system", "Be brief."), parts("user", "Hi ", "there"), parts("assistant", "Hello."), parts("user", "Bye")],
    no_parts=[dict(role="user", content=[])],
    image_url=[dict(role="user", content=[dict(type="image_url", image_url=dict(url="data:,x")), dict(type="text", text="what?")])],
    names=[dict(role="user", name="ann", content="Hi"), dict(role="assistant", name="bot", content="Hello"), dict(role="user", name="bob", content="Hey")],
    two_systems=[SYSTEM, dict(role="system", content="More."), USER], two_assistants=[user("a"), assistant("b"), assistant("c")], three_users=[user("a"), user("b"), user("c")],
    prefix=[user("Count."), assistant("One, two,", prefix=True)], number_content=[user(5)], no_role=[dict(content="hi")], extra_keys=[dict(role="user", content="hi", weight=1, train=False)],
    functions_role=[dict(role="functions", content=json.dumps([DESCRIBED_TOOL["function"]], indent=4)), SYSTEM, user("find"), assistant("", tool_calls=[call("find", dict(what="x"))]), result("y", tool_call_id="call00001")],
    switches=[dict(role="system", content="Be quick. /no_think"), user("Hi /think"), assistant("Hello"), user("Bye /no_think")])
KWARGS = [dict(enable_thinking=True), dict(enable_thinking=False), dict(thinking=True), dict(thinking=False), dict(reasoning_effort="high"), dict(preserve_thinking=True), dict(clear_thinking=False),
          dict(builtin_tools=["python", "browser"], model_identity="You are a test."), dict(xml_tools=[WEATHER], python_tools=[TIME]), dict(documents=[dict(title="T", text="Words & <b>", doc_id=1)]),
          dict(date_string="1 Jan 2024", tools_in_user_message=False), dict(add_vision_id=True, keep_past_thinking=True), dict(controls=dict(length="short")),
          dict(functions='[{"name": "f"}]', datetime="2024-01-01 10:00", additional_special_tokens=["<|role|>", "<|end|>", "<|f|>", "<|g|>", "<|h|>"], guideline="Be kind.", guardian_config=dict(risk_name="harm")), dict(enable_thinking=None, tool_choice="auto")]


def cases():
    conversations = {**CONVERSATIONS, **MORE_CONVERSATIONS}
    for name, messages in conversations.items():
        for tools in ("none", "two"):
            for prompt in (True, False):
                yield name, dict(messages=messages, tools=TOOL_SETS[tools], add_generation_prompt=prompt, chat_template_kwargs=TOKENS)
    for name in ("pirate", "many_calls"):
        for tools in ("odd", "empty", "bare", "described"):
            yield f"{name}, tools {tools}", dict(messages=conversations[name], tools=TOOL_SETS[tools], add_generation_prompt=True, chat_template_kwargs=TOKENS)
    for kwargs in KWARGS:
        for name in ("pirate", "developer", "switches", "think_history", "reasoning_history", "reasoning_and_call", "many_calls"):
            for tools in (None, [WEATHER]):
                for prompt in (True, False):
                    yield f"{name}, {kwargs}", dict(messages=conversations[name], tools=tools, add_generation_prompt=prompt, chat_template_kwargs={**TOKENS, **kwargs})


def loops_over_content(tree: jinja2.nodes.Template) -> bool:
    def is_content(node):
        while isinstance(node, jinja2.nodes.Filter):
            node = node.node
        return (isinstance(node, jinja2.nodes.Name) and node.name == "content" or isinstance(node, jinja2.nodes.Getattr) and node.attr == "content"
                or isinstance(node, jinja2.nodes.Getitem) and isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "content")
    return any(is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For))


def as_served(request: dict, takes_parts: bool) -> dict:
    """The variables that a template sees. Raises ValueError for what a server refuses."""
    messages = copy.deepcopy(request["messages"])
    for message in messages:
        for tool_call in message.get("tool_calls") or []:
            function = tool_call.get("function", tool_call)
            if isinstance(function.get("arguments"), str):
                function["arguments"] = json.loads(function["arguments"] or "{}")
        content = message.get("content")
        if not takes_parts and isinstance(content, list) and all(p.get("type") == "text" for p in content):
            message["content"] = "\n".join(p["text"] for p in content)
    return {"documents": None, **request["chat_template_kwargs"], "messages": messages, "tools": request["tools"] or None, "add_generation_prompt": request["add_generation_prompt"]}


def expected_texts(source: str, requests: list[dict]) -> list[str | Exception]:
    env = environment()
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        takes_parts, compiled = loops_over_content(env.parse(source)), env.from_string(source)
    except jinja2.TemplateSyntaxError as e:
        return [e] * len(requests)

    def render(request):
        try:
            return compiled.render(**as_served(request, takes_parts))
        except Exception as e:  # a template can make any error of Python's
            return e
    return [render(request) for request in requests]


def answers(command: list[str], model: pathlib.Path, path: pathlib.Path, requests_path: str, count: int) -> list[dict]:
    done = subprocess.run([*command, "--model", str(model), "--chat-template", str(path), "--input", requests_path], capture_output=True, text=True)
    if done.returncode != 0:  # a template that cannot be parsed
        return [dict(error=done.stderr.strip())] * count
    lines = done.stdout.split("\n")[:-1]
    if len(lines) != count:
        sys.exit(f"{path}: {len(lines)} lines for {count} requests")
    return [json.loads(line) for line in lines]


def difference(expected: str | Exception, answer: dict) -> str:
    if isinstance(expected, Exception) or "text" not in answer:
        return f"    expected {expected!r:.300}\n    answered {answer.get('text', answer.get('error'))!r:.300}"
    at = next((i for i, (a, b) in enumerate(zip(expected, answer["text"])) if a != b), min(len(expected), len(answer["text"])))
    start = max(0, at - 60)
    return f"    at character {at}\n    expected {expected[start:at + 100]!r}\n    answered {answer['text'][start:at + 100]!r}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--templates", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, default=pathlib.Path("deploy/demo_model/model"), help="any model: only its tokenizer is used")
    parser.add_argument("--verbose", action="store_true", help="show every difference and every case that both refuse")
    parser.add_argument("--command", nargs="+", default=["build/release/plumbline", "tokenize"])
    args = parser.parse_args()
    paths = sorted(args.templates.glob("*.jinja"))
    if not paths:
        parser.error(f"no *.jinja in {args.templates}")
    names, requests = zip(*cases())
    total = collections.Counter()
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(request) + "\n" for request in requests)
        file.flush()
        for path in paths:
            # As transformers reads a chat_template.jinja: line ends become "\n".
            expected = expected_texts(path.read_text(), requests)
            count = collections.Counter()
            for name, request, want, got in zip(names, requests, expected, answers(args.command, args.model, path, file.name, len(requests))):
                kind = "refused" if isinstance(want, Exception) and "error" in got else "equal" if want == got.get("text") else "differ"
                count[kind] += 1
                if kind == "differ" and (args.verbose or count[kind] <= 3) or kind == "refused" and args.verbose:
                    print(f"  {kind}: {name}, {'tools' if request['tools'] else 'no tools'}, prompt {request['add_generation_prompt']}\n{difference(want, got)}")
            print(f"{path.stem}: {count['equal']} equal, {count['refused']} refused by both, {count['differ']} differ", flush=True)
            total += count
    print(f"{len(paths)} templates, {len(paths) * len(requests)} cases: {total['equal']} equal, {total['refused']} refused by both, {total['differ']} differ")
    return 1 if total["differ"] else 0


if __name__ == "__main__":
    sys.exit(main())
