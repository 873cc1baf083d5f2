"""Jinja templates in a sandbox: they can shape text, and nothing else.

Templates come from recipes and, as chat templates, from downloaded model directories: neither is trusted.

Covered: no attribute that begins with an underscore, no mutation, no loading of other templates, an allow-list of
filters, and every string, list or range a template builds is bounded, so that doubling a string fifty times stops.
Not covered: the time that nested loops over long *input* take.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from quilate.errors import ConfigError

MAX_OUTPUT_CHARACTERS = 4_000_000  # guess: far above any context window, far below the machine's memory
MAX_STEPS = 100_000  # guess: elements that all ranges of one rendering may yield together

_FILTERS = (
    "abs capitalize count default d dictsort first float groupby int items join last length list lower map max min "
    "reject rejectattr replace reverse round select selectattr sort string title tojson trim truncate unique "
    "upper wordcount"
)
MAX_BITS = 4096  # guess: the size of whole numbers a template may compute

# Noncharacters, which Unicode keeps for a program's own use: they frame what a template marks as generated.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"

_PADDING_METHODS = {"center", "expandtabs", "ljust", "rjust", "translate", "zfill"}


class _Refused(TemplateError):
    """A bound of the sandbox was hit, or the template itself raised."""


def is_template(text: str) -> bool:
    """Whether a recipe's value is a template rather than a column name."""
    return "{{" in text or "{%" in text


class SandboxedTemplate:
    """A compiled template.

    Args:
        source: Jinja text.
        name: what it is, for messages: "text", "template", "chat template of MODEL".
        names: the variables it may use; None allows any (an undefined one then fails when it is rendered).
        chat: read it as transformers reads a model's chat template: block tags swallow their line's white space, an
            undefined variable is empty, since optional ones (tools, documents) are tested for, and
            `{% generation %}` marks what the assistant says.

    Attributes:
        variables: those it uses and does not define.
        marks_generation: whether it has such marks.

    Raises:
        ConfigError: it is not Jinja, uses a variable outside `names`, or includes or imports another template.
    """

    def __init__(
        self,
        source: str,
        *,
        name: str,
        names: Iterable[str] | None = None,
        chat: bool = False,
    ) -> None:
        self.name = name
        self._environment = _Sandbox(chat)
        try:
            self._template = self._environment.from_string(source)
            used = meta.find_undeclared_variables(self._environment.parse(source))
        except TemplateError as error:
            raise self._refusal(error) from error
        self.variables: frozenset[str] = frozenset(used) - frozenset(self._environment.globals)
        self.marks_generation = self._environment.marks_generation
        if names is not None:
            unknown = sorted(self.variables - set(names))
            if unknown:
                raise ConfigError(
                    f"{name}: the template uses '{unknown[0]}', which is not defined here",
                    hint=f"defined are: {', '.join(names)}",
                )

    def render(self, **values: Any) -> str:
        """The text of the template for these values.

        Raises:
            ConfigError: an undefined variable, a forbidden operation, or more than `MAX_OUTPUT_CHARACTERS`.
        """
        self._environment.steps = 0
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(**values):
                length += len(piece)
                _check_size(length)
                pieces.append(piece)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise self._refusal(error) from error
        except (MemoryError, RecursionError) as error:
            raise self._refusal(_Refused("it recurses or grows without end")) from error
        return "".join(pieces)

    def render_marked(self, **values: Any) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the spans [start, end) of it that the template marks as generated.

        Raises:
            ConfigError: as `render`; or the marks change the text (it is shaped after it was marked, or nested).
        """
        self._environment.framing = True
        try:
            framed = self.render(**values)
        finally:
            self._environment.framing = False
        text, spans = "", []
        for index, part in enumerate(framed.split(_OPEN)):
            said, closed, after = part.partition(_CLOSE) if index else ("", _CLOSE, part)
            spans += [(len(text), len(text) + len(said))] if index and closed else []
            text += said + after
        if len(spans) != framed.count(_OPEN) or text != self.render(**values):
            raise ConfigError(
                f"{self.name}: the text changes where `{{% generation %}}` marks it",
                hint="let the template write what it marks as it is, or take the marks out",
            )
        return text, spans

    def _refusal(self, error: Exception) -> ConfigError:
        line = getattr(error, "lineno", None)
        where = f"{self.name}, template line {line}" if line else self.name
        if isinstance(error, SecurityError):
            return ConfigError(
                f"{where}: the template tries to leave its sandbox: {error}",
                hint="templates may use variables, tests, loops and text filters; distrust where this one came from",
            )
        return ConfigError(f"{where}: {error}", hint="see docs/recipes.md for what a template may use")


def _check_size(size: int) -> None:
    if size > MAX_OUTPUT_CHARACTERS:
        raise _Refused(f"it builds more than {MAX_OUTPUT_CHARACTERS:,} characters")


def _bounded(value: Any) -> Any:
    """Return `value` if its printed form is bounded; a list that holds itself twice, fifty times over, is not."""
    size = 0
    pending = [value]
    while pending:
        part = pending.pop()
        size += len(part) + 1 if isinstance(part, str) else 1
        _check_size(size)
        if isinstance(part, Mapping):
            pending += [*part.keys(), *part.values()]
        elif isinstance(part, (list, tuple)):
            pending += part
    return value


def _shown(value: Any) -> Any:
    """How values print: nothing for a missing cell, commas between list items."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, _bounded(value)))
    return _bounded(value) if isinstance(value, Mapping) else value


def _concatenate(pieces: Iterable[str]) -> str:
    pieces = list(pieces)
    _check_size(sum(map(len, pieces)))
    return "".join(pieces)


class _ConcatenationAsAddition(NodeTransformer):
    """`a ~ b` compiles to a join nobody can bound; as an addition of strings it passes through `call_binop`."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        as_text = [nodes.Filter(part, "string", [], [], None, None, lineno=node.lineno) for part in node.nodes]
        total: nodes.Expr = as_text[0]
        for part in as_text[1:]:
            total = nodes.Add(total, part, lineno=node.lineno)
        return total


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}` around what the assistant says, as transformers knows it."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)
    environment: _Sandbox

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        self.environment.marks_generation = True
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("framed"), [], [], body).set_lineno(line)

    def framed(self, caller: Callable[[], str]) -> str:
        said = caller()
        return _OPEN + said + _CLOSE if self.environment.framing else said


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(_concatenate)

    def __init__(self, chat: bool) -> None:
        super().__init__(
            undefined=jinja2.Undefined if chat else jinja2.StrictUndefined,
            finalize=_bounded if chat else _shown,
            autoescape=False,
            keep_trailing_newline=not chat,
            trim_blocks=chat,
            lstrip_blocks=chat,
            extensions=["jinja2.ext.loopcontrols", *([_Generation] if chat else [])],
        )
        self.marks_generation = self.framing = False
        self.steps = 0
        self.filters = {name: self.filters[name] for name in _FILTERS.split()}
        to_string = self.filters["string"]
        self.filters |= {
            "join": _join,
            "replace": _replace,
            "string": lambda value: to_string(_bounded(value)),
            "tojson": _to_json,
        }
        self.globals = {
            "range": self._range,
            "namespace": jinja2.utils.Namespace,
            "dict": dict,
            "raise_exception": _raise_exception,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise SecurityError(f"line {node.lineno} loads another template")
        result: nodes.Template = _ConcatenationAsAddition().visit(tree)
        return result

    def _range(self, *bounds: int) -> range:
        steps = range(*bounds)
        self.steps += len(steps)
        if self.steps > MAX_STEPS:
            raise _Refused(f"its ranges run over more than {MAX_STEPS:,} steps")
        return steps

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr.startswith("_") or (isinstance(obj, str) and attr in _PADDING_METHODS):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Refuse `str.format`: a width in the format string builds text of any length."""
        if getattr(value, "__name__", "") in ("format", "format_map") and isinstance(value.__self__, str):
            raise SecurityError("formatting with format")

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to '{attribute}' of a {type(obj).__name__}")

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            name = getattr(obj, "__name__", "")
            if name == "join":
                return _join(args[0], owner)
            if name == "replace":
                return _replace(owner, *args)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise _Refused(f"it computes a number of more than {MAX_BITS} bits")
        elif operator == "+":
            _check_size(_size(left) + _size(right))
        elif operator == "*":
            _check_size(max(_size(left), 1) * max(_size(right), 1))
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with %")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
    """Elements of a sequence; a number stands for how often `*` would repeat one."""
    return value if isinstance(value, int) else len(value) if hasattr(value, "__len__") else 1


def _join(values: Iterable[Any], separator: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        values = [value[attribute] for value in values]
    pieces = [str(_shown(value)) for value in _bounded(list(values))]
    _check_size(sum(map(len, pieces)) + len(separator) * len(pieces))
    return separator.join(pieces)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Plain JSON, as transformers has it; Jinja's own filter escapes for HTML and spells `ñ` as an escape."""
    return json.dumps(_bounded(value), ensure_ascii=False, indent=None if indent is None else min(indent, 8))


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    _check_size(len(text) + text.count(old) * len(new))
    return text.replace(old, new, count)


def _raise_exception(message: str) -> NoReturn:
    """Chat templates call this to refuse a conversation they cannot represent."""
    raise _Refused(message)
