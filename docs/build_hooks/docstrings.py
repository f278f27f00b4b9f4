"""An extension of griffe: docstrings, whose roles, formulas and links are reStructuredText, as markdown."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

_ROLE = re.compile(r":(?:class|func|mod):`([^`]+)`")
_MATH = re.compile(r":math:`([^`]+)`")
_MATH_BLOCK = re.compile(r"^( *)\.\. math::(.*\n(?:\1 +.*\n|\n(?=\1 ))*)", re.MULTILINE)
_LINK = re.compile(r"`([^`<]+?)\s+<([^>]+)>`_")
# A line alone, and indented text below it, as in a list of definitions; those with a colon are griffe's.
_SECTION = re.compile(r"^(\w[^\n:]*[^\n:.])\n((?:    .*\n|\n)+)", re.MULTILINE)
_LITERAL = re.compile(r"^( *)(.*?)::\n\n((?:\1    .*\n|\n)+)", re.MULTILINE)
# Functions that hide the module of their name, which is what is found under it without running the code.
_HIDING = {"fastnn.capture": "fastnn.capture.capture", "fastnn.convert": "fastnn.convert.convert"}


def _role(match: re.Match[str]) -> str:
    name = match[1]
    return f"[`{name}`][{_HIDING.get(name, name)}]" if name.startswith("fastnn.") else f"`{name}`"


def _math(tex: str, display: str) -> str:
    return convert(tex, display=display).replace(r"\_", "&#95;")  # which it leaves as it is in text


def _block(match: re.Match[str]) -> str:
    tex = match[2].strip()
    tex = rf"\begin{{split}}{tex}\end{{split}}" if "&" in tex else tex
    return f"{match[1]}{_math(tex, 'block')}\n"


def _section(match: re.Match[str]) -> str:
    return f"**{match[1]}**\n\n{textwrap.dedent(match[2])}"


def _literal(match: re.Match[str]) -> str:
    lead = f"{match[1]}{match[2]}:\n\n" if match[2] else ""
    code = textwrap.indent(textwrap.dedent(match[3]).strip("\n"), match[1])
    return f"{lead}{match[1]}```python\n{code}\n{match[1]}```\n\n"


def to_markdown(text: str) -> str:
    """A docstring, with the markup that the library's own use."""
    text = _MATH_BLOCK.sub(_block, _SECTION.sub(_section, f"{text}\n"))
    # In a span, or one that begins a line would be a paragraph of its own.
    text = _MATH.sub(lambda match: f"<span>{_math(match[1], 'inline')}</span>", text)
    text = _ROLE.sub(_role, text)
    return _LITERAL.sub(_literal, _LINK.sub(r"[\1](\2)", text)).rstrip()


class Docstrings(griffe.Extension):
    """Rewrites each docstring once it is loaded."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of `obj`, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
