"""The sandbox: what templates may do, and every way out of it that we know."""

from __future__ import annotations

import time

import pytest

from quilate.errors import ConfigError
from quilate.tokenization.sandbox import SandboxedTemplate

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ text.__init__.__globals__ }}",
    "{% if text.__class__ is defined %}x{% endif %}",
    "{{ text['__class__'] }}",
    "{{ text|attr('__class__') }}",
    "{{ [text]|map(attribute='__class__')|list }}",
    "{{ self.__init__ }}",
    "{{ range.__self__ }}",
    "{{ namespace.__init__ }}",
    "{{ lipsum.__globals__['os'].popen('id') }}",
    "{{ cycler.__init__ }}",
    "{{ labels.append('x') }}",
    "{{ dict(a=1).update(b=2) }}",
    "{{ '{0.__class__}'.format(text) }}",
    "{{ '{0.__class__}'.format_map(text) }}",
    "{{ '%s' % text }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import path %}",
    "{% extends 'x' %}",
]

_GROW = "{%% set n = namespace(x=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ n.x }}"
BOMBS = [
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ 2**9999999999 }}",
    "{{ 'a'.center(10**9) }}",
    "{{ 'a'|center(10**9) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '%1000000000d' % 1 }}",
    "{% for i in range(10**9) %}a{% endfor %}",
    "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    _GROW % ("'aa'", "{% set n.x = n.x ~ n.x %}"),
    _GROW % ("'aa'", "{% set n.x = n.x + n.x %}"),
    _GROW % ("'aa'", "{% set n.x = n.x.replace('a', 'aa') %}"),
    _GROW % ("'aa'", "{% set n.x = n.x|replace('a', 'aa') %}"),
    _GROW % ("'aa'", "{% set n.x = [n.x, n.x]|join %}"),
    _GROW % ("'aa'", "{% set n.x = ','.join([n.x, n.x]) %}"),
    _GROW % ("'aa'", "{% set n.x = [n.x, n.x]|tojson %}"),
    _GROW % ("'aa'", "{% set n.x = [n.x, n.x]|string %}"),
    _GROW % ("'aa'", "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
    _GROW % ("['a']", "{% set n.x = n.x + n.x %}"),
    _GROW % ("['a']", "{% set n.x = [n.x, n.x] %}"),
    _GROW % ("2", "{% set n.x = n.x * n.x %}"),
]


def render(source: str, **values: object) -> str:
    return SandboxedTemplate(source, name="plantilla").render(**{"text": "año", "labels": ["sí", "no"], **values})


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    with pytest.raises(ConfigError, match="plantilla") as caught:
        render(source)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("source", BOMBS)
def test_growth_is_bounded(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError):
        render(source)
    assert time.monotonic() - started < 20


def test_an_escape_is_called_one() -> None:
    with pytest.raises(ConfigError, match="tries to leave its sandbox: access to '__class__' of a str"):
        render("{{ text.__class__ }}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ text }}|{{ labels }}", "año|sí, no"),
        ("{{ labels|join(' / ') }}", "sí / no"),
        ("{% for l in labels if l != 'no' %}{{ loop.index }}.{{ l|upper }}{% endfor %}", "1.SÍ"),
        ("{{ none }}{{ text[:2] ~ 1 }}", "añ1"),
        ("{{ text.replace('ñ', 'n').strip() }}{{ 7 % 4 }}", "ano3"),
        ('{{ {"ñ": "<b>"}|tojson }}', '{"ñ": "<b>"}'),
        ("final\n", "final\n"),
        ("{% set n = namespace(i=0) %}{% for l in labels %}{% set n.i = n.i + 1 %}{% endfor %}{{ n.i }}", "2"),
    ],
)
def test_what_templates_are_for(source: str, expected: str) -> None:
    assert render(source) == expected


def test_text_is_never_read_as_a_template() -> None:
    assert render("{{ text }}", text="{{ 7 * 7 }} <ñ>") == "{{ 7 * 7 }} <ñ>"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ text", "template line 1: unexpected end of template"),
        ("{{ nada }}", "'nada' is undefined"),
        ("{{ text.nada }}", "no attribute 'nada'"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ raise_exception('sin turno de usuario') }}", "sin turno de usuario"),
    ],
)
def test_errors_say_what_is_wrong(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        render(source)


CHATML = """{%- if tools %}
    {{- tools|tojson }}
{%- endif %}
{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
{{ '<|im_start|>system\\nEres útil.<|im_end|>\\n' }}
    {% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message.content | trim + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


@pytest.mark.parametrize("tools", [None, [{"name": "buscar", "description": "búsqueda <rápida>"}]])
@pytest.mark.parametrize("opening", [[], [{"role": "system", "content": "Sé breve."}]])
def test_chat_templates_render_as_in_transformers(tools: list | None, opening: list) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [*opening, {"role": "user", "content": " ¿Qué es la tos? "}]
    theirs, _ = render_jinja_template([messages], tools=tools, chat_template=CHATML, add_generation_prompt=True)
    template = SandboxedTemplate(CHATML, name="chat template", chat=True)
    given = {"tools": tools} if tools else {}
    assert template.render(messages=messages, add_generation_prompt=True, **given) == theirs[0]


@pytest.mark.parametrize("source", [*ESCAPES, *BOMBS])
def test_chat_templates_are_confined_too(source: str) -> None:
    with pytest.raises(ConfigError):
        SandboxedTemplate(source, name="chat template", chat=True).render(text="año", labels=["sí"])
