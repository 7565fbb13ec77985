"""Chat templates rendered by Jinja2 in the environment that `transformers` sets up.

    python make_chat_golden.py --templates DIR... --features --out chat_templates

For every *.jinja in the DIRs: OUT/NAME.jsonl with {"variables", "expected"} or {"variables", "error"}; the templates themselves are not
copied. OUT/features.jsonl: one line per language feature, with its "source".
"""
from __future__ import annotations
import argparse, datetime, json, pathlib
import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2023, 11, 15, 12, 0, 0)


class Generation(Extension):
    """{% generation %} marks what the assistant says; rendering prints its body."""
    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller):
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: NOW.strftime(f)
    return env


def outcome(source: str, variables: dict) -> dict:
    try:
        return dict(expected=environment().from_string(source).render(**variables))
    except Exception as e:
        return dict(error=f"{type(e).__name__}: {e}")


USER, BYE = dict(role="user", content="What is 17 x 23?\n  "), dict(role="user", content="Grüße, 世界 🙂 <b>&amp;</b> 'quoted' \"double\"")
SYSTEM = dict(role="system", content="  You are terse.\n")
ANSWER = dict(role="assistant", content="<think>\n17*23 = 391\n</think>\n\nIt is 391.")
PLAIN = dict(role="assistant", content="Bye.")
WEATHER = dict(type="function", function=dict(name="get_weather", description="Weather <now> & \"later\" – für alle", parameters=dict(
    type="object", properties=dict(city=dict(type="string", description="Stadt"), days=dict(type="integer", minimum=1, maximum=14.5), exact=dict(type="boolean", default=False, enum=[True, False, None])), required=["city"])))
TIME = dict(type="function", function=dict(name="now", description="", parameters=dict(type="object", properties={})))


def call(name, arguments, **more):
    return dict(id="call00001", type="function", function=dict(name=name, arguments=arguments), **more)


CALL = dict(role="assistant", content="", tool_calls=[call("get_weather", dict(city="Köln", days=2, exact=True, nested=dict(a=[1, 2.0, None, "x\ny"], b=1e-7)))])
CALLS = dict(role="assistant", content="Let me look.", reasoning_content="two tools", tool_calls=[call("get_weather", dict(city="Rom")), call("now", {})])
RESULT = dict(role="tool", content="{\"temp\": 21.5}", name="get_weather", tool_call_id="call00001")
PARTS = dict(role="user", content=[dict(type="text", text="look: "), dict(type="image"), dict(type="text", text="and say")])
TEXT_PARTS = dict(role="user", content=[dict(type="text", text="one"), dict(type="text", text="two")])

CONVERSATIONS = dict(
    empty=[], user=[USER], system=[SYSTEM, USER], system_only=[SYSTEM], turns=[SYSTEM, USER, ANSWER, BYE, PLAIN, USER], no_system=[USER, ANSWER, BYE], ends_assistant=[USER, ANSWER],
    call=[USER, CALL], result=[USER, CALL, RESULT], results=[SYSTEM, USER, CALLS, RESULT, RESULT, PLAIN, BYE], call_again=[USER, CALL, RESULT, CALLS, RESULT, RESULT],
    late_system=[USER, SYSTEM, BYE], assistant_first=[ANSWER, USER], two_users=[USER, BYE], unknown_role=[dict(role="critic", content="no"), USER], no_content=[USER, dict(role="assistant", content=None, tool_calls=CALL["tool_calls"]), RESULT],
    parts=[PARTS], text_parts=[SYSTEM, TEXT_PARTS], missing_content=[dict(role="user")], reasoning=[USER, dict(role="assistant", content="yes", reasoning_content="\nbecause\n"), BYE],
    response_only=[dict(role="user", content="<tool_response>\nx\n</tool_response>")], string_arguments=[USER, dict(role="assistant", content="", tool_calls=[call("now", "{}")])])


def chat_cases():
    base = dict(bos_token="<s>", eos_token="</s>", documents=None)
    for name, messages in CONVERSATIONS.items():
        for tools in (None, [WEATHER, TIME]):
            for prompt in (True, False):
                yield dict(base, case=name, messages=messages, tools=tools, add_generation_prompt=prompt)
    for more in (dict(enable_thinking=False), dict(enable_thinking=True), dict(preserve_thinking=True), dict(add_vision_id=True), dict(tools_in_user_message=False), dict(date_string="1 Jan 2024"), dict(keep_past_thinking=True)):
        for name in ("turns", "results", "parts"):
            yield dict(base, case=name, messages=CONVERSATIONS[name], tools=[WEATHER], add_generation_prompt=True, **more)


V = dict(s="Hello, Wörld ß", n=7, f=2.5, neg=-3, t=True, z=None, e="", l=[3, 1, 2], w=["b", "A", "c", "a"], d=dict(b=1, a=[1, "x"], C=None), big=1e16, small=1.5e-7, k=1e22, one=1.0,
         people=[dict(name="Ann", age=30, tags=["x"]), dict(name="bob", age=None), dict(age=5, name="Cy")], sp="  a b\t c\n", html="<a href='x'>&\"</a>", multi="l1\n  l2\n\nl4", keys={"items": 1, "x y": 2}, u="日本語🙂e\u0301",
         ctl="a\"b\\c\x01\x7f\u2028\n\t", many={f"k{i}": i for i in range(20)})
# Separated by ";;" and line ends.
EXPRESSIONS = r"""
s ;; n ;; f ;; neg ;; t ;; z ;; e ;; l ;; d ;; big ;; small ;; k ;; one ;; 1 + 2 * 3 - 4 / 2 ;; 7 // 2 ;; -7 // 2 ;; -7 % 3 ;; 7 % -3
7.5 // 2 ;; -7.5 % 2 ;; 2 ** 10 ;; 2 ** -1 ;; 2 ** 3 ** 2 ;; -2 ** 2 ;; 1 / 3 ;; 10 / 5 ;; 1e3 ;; 1_000 ;; 1.5e-3 ;; 0.1 + 0.2
100000000000000000.0 ;; 123456789012345680.0 ;; 1e15 ;; 0.0001 ;; 0.00001 ;; 5 % 0 ;; 1 // 0 ;; "a" "b" 'c' ;; "a" ~ 1 ~ none ~ true
"ab" * 3 ;; [1] * 2 ;; [1] + [2] ;; (1,) + (2,) ;; "a" + 1 ;; 1 + "a" ;; "x\ty\u00e9\x41\\n\'" ;; '\q' ;; "%s is %d" % ("x", 3)
"%5.2f|%-5s|%05d" % (1.239, "ab", 42) ;; "%s" % n ;; "%(a)s" % {"a": 1} ;; "%s" % (1, 2) ;; 1 < 2 < 3 ;; 1 < 2 > 5 ;; 1 == 1.0
"a" < "b" ;; 1 < "a" ;; [1, 2] < [1, 3] ;; 1 in l ;; "ell" in s ;; "b" in d ;; 5 not in l ;; not 1 in l ;; "x" in missing
missing in l ;; 1 in "a" ;; 1 in 5 ;; true and 0 ;; 0 or "x" ;; not none ;; none == missing ;; missing == other ;; s[0] ;; s[-1]
s[99] ;; u[3] ;; u[::-1] ;; s[1:4] ;; s[:-2] ;; s[::2] ;; l[::-1] ;; l[5:] ;; l[-2:] ;; l[1] ;; l[-9] ;; l["x"] ;; d["a"] ;; d.a
d.zz ;; d["zz"] ;; d.a.1 ;; d["a"][1] ;; keys.items ;; keys["items"] ;; keys["x y"] ;; n.x ;; n["x"] ;; z.x ;; z["x"] ;; missing.x
missing["x"] ;; missing.x.y ;; l[1:"a"] ;; d[1:2] ;; l[::0] ;; s.upper() ;; s.lower() ;; s.title() ;; "it's ok-now".title()
s.split() ;; s.split(", ") ;; "a,b,c".split(",", 1) ;; "a,b,c".rsplit(",", 1) ;; " a  b ".split() ;; " a  b ".split(" ")
"a b c".split(none, 1) ;; "a".split("") ;; sp.strip() ;; sp.lstrip() ;; sp.rstrip() ;; "xxaxx".strip("x") ;; "xyaxy".lstrip("yx")
s.startswith("He") ;; s.endswith(("x", "ß")) ;; s.startswith(1) ;; s.replace("l", "L") ;; s.replace("l", "L", 1)
"ab".replace("", "-") ;; s.find("W") ;; s.find("zz") ;; u.find("🙂") ;; s.count("l") ;; ", ".join(w) ;; "".join(l)
"a-b-c".partition("-") ;; "a-b-c".rpartition("-") ;; "abc".partition("x") ;; multi.splitlines() ;; multi.splitlines(true)
"abc".isdigit() ;; "12".isdigit() ;; "".isalpha() ;; "ab".isalpha() ;; "aB1".isalnum() ;; " ".isspace() ;; "AB".isupper()
"ab1".islower() ;; "ab".center(7) ;; "abc".center(6) ;; "ab".ljust(4) ~ "|" ;; "ab".rjust(4) ;; "-4".zfill(4)
"{} {}".format(1, "x") ;; "{1}{0}".format(1, 2) ;; "{a}".format(a=3) ;; "{{}}".format() ;; "abc".removeprefix("a")
"abc".removesuffix("bc") ;; "ABC".casefold() ;; "abc".nope() ;; s.capitalize() ;; d.get("b")
d.get("q") ;; d.get("q", 5) ;; d.items()|list ;; d.keys()|list ;; l.index(1) ;; l.count(1) ;; l.append(4) ;; d.update({}) ;; l.pop()
w.sort() ;; s.__class__ ;; d.__class__ ;; missing() ;; n() ;; d.nope() ;; s|upper ;; s|lower ;; s|title ;; "foo-bar (baz) it's"|title
s|capitalize ;; sp|trim ;; "xax"|trim("x") ;; s|length ;; l|length ;; d|length ;; u|length ;; missing|length ;; z|length ;; n|length
l|first ;; l|last ;; ""|first ;; []|last ;; s|first ;; l|join ;; l|join(", ") ;; people|join("; ", attribute="name")
"abc"|join("-") ;; z|join ;; l|sort ;; l|sort(reverse=true) ;; w|sort ;; w|sort(case_sensitive=true)
people|sort(attribute="name")|map(attribute="name")|list ;; [1, "a"]|sort ;; d|dictsort ;; d|dictsort(reverse=true)
{"x": 2, "y": 1}|dictsort(by="value") ;; w|unique|list ;; ["a", "A", 1, 1.0]|unique|list ;; l|reverse|list ;; s|reverse ;; l|sum
people|map(attribute="age")|list ;; people|map(attribute="zz", default=0)|list ;; people|map(attribute="zz")|list
w|map("upper")|list ;; w|map("replace", "a", "z")|join ;; people|selectattr("age")|list|length
people|selectattr("age", "equalto", 5)|map(attribute="name")|list ;; people|rejectattr("age", "none")|list|length
l|select("greaterthan", 1)|list ;; l|reject("odd")|list ;; l|select|list ;; people|selectattr("tags", "defined")|list ;; l|min
l|max ;; w|max ;; []|max ;; l|batch(2)|list ;; l|batch(2, 0)|list ;; "3"|int ;; "3.7"|int ;; "x"|int ;; "x"|int(5) ;; 3.9|int
"0x1f"|int(0, 16) ;; z|int ;; t|int ;; "2.5"|float ;; "x"|float ;; 3|float ;; 2.5|round ;; 3.14159|round(2) ;; 2.4|round(0, "ceil")
7|round ;; -3|abs ;; -3.5|abs ;; 1234.5|round(-2) ;; z|string ;; l|string ;; t|string ;; n|list ;; s|list ;; d|list ;; missing|list
z|list ;; missing|default("x") ;; z|default("x") ;; z|default("x", true) ;; e|default("x", true) ;; e ;; d("y", boolean=true)
missing|default ;; missing.x|default("q") ;; d.zz|default("q") ;; s|replace("l", "1") ;; n|replace("7", "8") ;; multi|indent
multi|indent(2, true) ;; multi|indent(2, false, true) ;; multi|indent("> ", first=true) ;; e|indent ;; "a b c"|wordcount
"%s-%s"|format(1, 2) ;; "ab"|center(6) ;; d|items|list ;; missing|items|list ;; l|items ;; s|nofilter ;; s is notest ;; d|attr("b")
d|attr("keys") is callable ;; html ;; e ;; html|escape ;; html|safe ;; (html|safe) + "<x>" ;; "<x>" + (html|safe)
(html|safe) ~ "<y>" ;; html|safe|upper ;; (html|safe)|length ;; html|safe is string ;; html ;; e is escaped ;; d|tojson ;; l|tojson
s|tojson ;; ctl|tojson ;; u|tojson(ensure_ascii=true) ;; d|tojson(indent=2) ;; {}|tojson(indent=2) ;; []|tojson(indent=2)
[[], {}]|tojson(indent=4) ;; d|tojson(sort_keys=true) ;; d|tojson(separators=(",", ":")) ;; d|tojson(indent=2, separators=(",", ": "))
big|tojson ;; one|tojson ;; small|tojson ;; z|tojson ;; t|tojson ;; missing|tojson ;; (1, 2)|tojson
{1: 2, none: 3, true: 4, 1.5: 6}|tojson ;; html|tojson ;; many|tojson ;; d|tojson(false) ;; range|tojson ;; d|tojson(indent="\t")
n is defined ;; missing is defined ;; missing is undefined ;; z is none ;; z is not none ;; s is string ;; n is string ;; d is mapping
l is mapping ;; l is iterable ;; s is iterable ;; d is iterable ;; n is iterable ;; z is iterable ;; missing is iterable
l is sequence ;; s is sequence ;; d is sequence ;; n is sequence ;; n is number ;; t is number ;; f is number ;; s is number
n is integer ;; t is integer ;; f is integer ;; f is float ;; t is boolean ;; n is boolean ;; t is true ;; n is true ;; t is false
not t is true ;; n is odd ;; n is even ;; n is divisibleby 7 ;; n is divisibleby(2) ;; n is eq 7 ;; n is ne 7 ;; n is gt 5
n is lt 5 ;; n is ge 7 ;; n is le 6 ;; n is equalto 7 ;; n is == 7 ;; 1 is in l ;; 9 is not in l ;; "a" is lower ;; "A" is upper
range is callable ;; n is sameas 7 ;; z is sameas none ;; x is defined and x ;; s is string and n is number ;; (n is odd) == true
not x is defined ;; n if t else f ;; n if z ;; (n if z) is defined ;; "a" if t else "b" if z else "c" ;; [n if t else f, 1]
{"a": 1}["a"] ;; {"a": 1}.a ;; (1, 2) ;; () ;; (1,)
[1, [2, {"k": "v"}], none, true, 1.5, "q'\"\n\\é\x00\u200b"]|{"a": {"b": 'c'}}|{1: 2}|range(5)|list|range(1, 9, 3)|list|range(5, 0, -2)|list|range(0)|list|range(1000000)|list|dict(a=1, b=2)|dict({"x": 1}, y=2)|namespace(a=1).a|namespace(a=1).b|namespace(a=1).b is defined|strftime_now("%Y %B")|raise_exception("stop: " ~ n)|+n|-f|-s|- n|abs|-(1|float)|[1,2,]|{"a":1,}|"a" in ["a"] and "b" not in ["a"]|1 if 0|(s, n)[1]|people[0].name[0]|people[-1]["name"]|d["a"] | length | string + "x"|l|first + 1|"x" ~ l|first|not s|s and n|1 == 1 == true|loop|varargs|self.x|"a" is string is defined
"""
TEMPLATES = [
    "a\n", "a\n\n", "", "\n", "{% if true %}\nx\n{% endif %}\ny", "  {% if true %}\n  x\n  {% endif %}\n", "a  {%- if true -%}  \n b {%- endif -%} c", "a {%+ if true +%}\nb{% endif %}", "  {%+ if true %} x{% endif %}", "{{ 1 }}\n{{ 2 }}\n",
    "{{- 1 -}}  \n  {{- 2 }}", " {{ 1 }} ", "{# c #}x", "  {# c #}\nx", "a\n  {#- c -#}  \n b", "a {# {{ x }} {% if %} #} b", "{% raw %}{{ x }}{% if %}{% endraw %}|", "{%- raw -%} {{ x }} {%- endraw -%} b", "  {% raw %}\n  y{% endraw %}\nz", "\r\na\r\nb\r", "\tx {% set a = 1 %}\n  y{{ a }}",
    "x{% for i in l %}{{ i }},{% endfor %}", "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.depth }};{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}", "{% for i in missing %}x{% else %}none{% endfor %}", "{% for i in z %}x{% endfor %}", "{% for i in 5 %}x{% endfor %}", "{% for i in l if i > 1 %}{{ i }}{{ loop.index }}{{ loop.last }} {% else %}e{% endfor %}", "{% for i in l if i > 9 %}{{ i }}{% else %}e{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for k, v in d|items %}{{ k }}{% endfor %}", "{% for c in u %}[{{ c }}]{% endfor %}", "{% for a, b in [[1, 2], [3, 4]] %}{{ a + b }} {% endfor %}", "{% for a, b in [[1, 2, 3]] %}{{ a }}{% endfor %}", "{% for (a, b) in [(1, 2)] %}{{ b }}{% endfor %}",
    "{% for i in l %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "{% for i in l %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% else %}e{% endfor %}", "{% for i in l %}{% for j in l %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }}{{ loop.depth }} {% endfor %}{% endfor %}",
    "{% for i in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(i > 1) }}{% endfor %}", "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}", "{% set ns = namespace(x=1, y='a') %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{% set ns.z = 3 %}{{ ns.z }}", "{% set d.x = 1 %}",
    "{% set a, b = 1, 2 %}{{ b }}{{ a }}", "{% set x %}a{{ n }}b{% endset %}[{{ x }}]", "{% set x | upper | trim %} a{{ n }}b {% endset %}[{{ x }}]", "{% set x = 1, 2 %}{{ x }}", "{% if z %}{% set q = 1 %}{% else %}{% set q = 2 %}{% endif %}{{ q }}", "{% set x %}{% set y = 5 %}{% endset %}{{ y is defined }}",
    "{% macro m(a, b=2, c='x') %}({{ a }},{{ b }},{{ c }}){% endmacro %}{{ m(1) }}{{ m(1, c=3) }}{{ m() }}{{ m(b=1, a=2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(q=2) }}", "{% macro m(a) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, q=4) }}",
    "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}in{{ n }}{% endcall %}", "{% macro m() %}<{{ caller(5) }}>{% endmacro %}{% call(x) m() %}in{{ x }}{% endcall %}", "{% macro f(k) %}{% if k > 0 %}{{ k }}{{ f(k - 1) }}{% endif %}{% endmacro %}{{ f(4) }}", "{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}{% for i in l %}{% set x = 9 %}{{ m() }}{% endfor %}",
    "{% macro m() %}{% set x = 5 %}{{ x }}{% endmacro %}{{ m() }}{{ x is defined }}", "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(3) }}", "{% macro m() %} a {% endmacro %}[{{ m()|trim }}]{{ m.name }}", "{% macro m(x) %}{{ x is defined }}{{ x }}{% endmacro %}{{ m() }}{{ m(none) }}", "{{ m() }}{% macro m() %}1{% endmacro %}", "{% macro m(x) %}{{ x.y }}{% endmacro %}{{ m() }}",
    "{% filter upper %}abc{{ n }}{% endfilter %}", "{% filter replace('a', 'b') | upper %}abc{% endfilter %}", "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}", "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q is defined }}", "{% generation %}x{% set q = 1 %}{{ q }}{% endgeneration %}|{{ q is defined }}", "a\n  {% generation %}\n  b\n  {% endgeneration %}\nc",
    "{% if n > 5 and s %}y{% elif n %}m{% else %}n{% endif %}", "{% if missing %}a{% endif %}b", "{% if missing.x %}a{% endif %}", "{% if not (n == 7) %}a{% else %}b{% endif %}", "{% if (n, 1) %}a{% endif %}", "{% if l[0] == 3 and l|length > 2 or z.q %}k{% endif %}", "{{ {'a': {'b': 1}} }}", "{{ {'a': {'b': [1]}}['a']['b'][0] }}}}", "{{ '}}' }}{{ '%}' }}", "{% set x = {'a': 1} %}{{ x }}",
    "{% for m in people %}{{ '\\n' if not loop.first }}{{ m.name }}{% endfor %}", "{% for p in people %}{% if loop.previtem is defined and loop.previtem.age %}{{ p.name }}{% endif %}{% endfor %}", "{{ people | map(attribute='name') | map('lower') | join(',') }}", "{% for m in people[::-1] %}{{ m.name }}{% endfor %}", "{% for m in people[1:] %}{{ m.name }}{{ loop.index0 }}{% endfor %}",
    "{% set loop_x = 3 %}{% for i in range(loop_x) %}{{ i }}{% endfor %}", "{% for i in range(3) %}{% set outer = loop %}{% for j in range(2) %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}", "{% set l2 = l + [9] %}{{ l2 }}{{ l }}", "{% set x = x | default('d') %}{{ x }}", "{% for x in l %}{{ x }}{% endfor %}{{ x is defined }}", "{% set x = 0 %}{% for x in l %}{{ x }}{% endfor %}{{ x }}",
    "{% if true %}{% endif", "{{ 1 ", "{% if true %}", "{% endif %}", "{% foo %}", "{{ 1 + }}", "{{ (1 }}", "{{ 'a }}", "{# x", "{% for i l %}{% endfor %}", "{% set 1 = 2 %}", "{{ a b }}", "{{ 1 if }}", "{% break %}", "{% macro m(a=1, b) %}{% endmacro %}", "{{ [1, 2 }}", "{{ {1} }}", "{% raw %}x", "{{ $ }}", "{{ 1 ) }}", "{% include 'x' %}", "{{ f(a=1, 2) }}", "{% else %}", "{% for i in l %}{% elif %}{% endfor %}", "{{ x.1a }}", "{{ }}", "{% %}",
    "{{ d.b.c.d }}", "line1\n{{ 'x' }}\n{{ missing.x }}", "{%- for m in l %}\n{{ m }}\n{%- endfor %}\n", "{%- set a = 1 -%}\n\n{{- a }}\n", "{% set x = 'a' %}   \n  b", "   {{ 1 }}\n   {% set q = 2 %}\n   {{ q }}", "{% if 1 %}{% if 0 %}a{% else %}b{% endif %}{% endif %}c", "{{ '%d' % 3.7 }}{{ '%s %s' % ('a', none) }}{{ '%r' % 'x' }}%", "{{ loop }}", "{{ caller is defined }}", "{% for i in l recursive %}{% endfor %}",
]


# Where this interpreter says no although Jinja2 has an answer: recursive loops; objects whose text holds addresses.
LEFT_OUT = {"{% for i in l recursive %}{% endfor %}"}


def expressions() -> list[str]:
    return [e.strip() for line in EXPRESSIONS.strip().splitlines() for e in line.split(";;")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--templates", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--features", action="store_true", help="also write features.jsonl")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for folder in args.templates for p in folder.glob("*.jinja")):
        with open(args.out / f"{path.stem.replace('chat_template', 'demo_model')}.jsonl", "w") as out:
            for variables in chat_cases():
                out.write(json.dumps(dict(variables=variables, **outcome(path.read_text(), variables))) + "\n")
    if args.features:
        with open(args.out / "features.jsonl", "w") as out:
            out.write(json.dumps(dict(variables=V)) + "\n")
            for source in [*("{{ " + e + " }}" for e in expressions()), *(t for t in TEMPLATES if t not in LEFT_OUT)]:
                result = outcome(source, V)
                if " at 0x" not in result.get("expected", "") and "<jinja2" not in result.get("expected", ""):
                    out.write(json.dumps(dict(source=source, **result)) + "\n")


if __name__ == "__main__":
    main()
