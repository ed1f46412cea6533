"""An error message or a topic in; the section of docs/faq.md that explains it, out."""

from __future__ import annotations

from functools import cache
from importlib import resources
from itertools import takewhile

from streamtrain.errors import InputError, near

COMMAND = "streamtrain faq"


def note_for(message: str) -> str | None:
    """Word where an error message is explained, or None where it is not.

    Of several sections that quote a message that of the longest quotation is named. "…" in a
    quotation stands for any text.

    Parameters
    ----------
    message
        The message, without the name of its exception.

    Returns
    -------
    str or None
        Such as "help: streamtrain faq labels-missing".
    """
    found = [
        (sum(map(len, parts)), topic)
        for topic, quoted in _quoted().items()
        for parts in quoted
        if _in_turn(parts, message)
    ]
    return f"help: {COMMAND} {max(found, key=lambda f: f[0])[1]}" if found else None


def faq_text(topic: str | None = None) -> str:
    """Give a section as plain text, or the list of all.

    Parameters
    ----------
    topic
        Name of a section; None for the list.

    Returns
    -------
    str
        Lines, without one at the end.

    Raises
    ------
    InputError
        If there is no such section.
    """
    sections = _sections()
    if topic is None:
        width = max(map(len, sections))
        lines = [f"{name:{width}}  {_title(lines)}" for name, lines in sections.items()]
        return "\n".join([*lines, "", f"{COMMAND} TOPIC says more of one."])
    if topic not in sections:
        raise InputError(
            f"there is no topic {topic!r}: {near(topic, sections)}; {COMMAND} lists all"
        )
    return "\n".join([topic, "", *_plain(sections[topic])])


@cache
def _sections() -> dict[str, list[str]]:
    """Lines of each section, by its name, in the order of the page."""
    text = (resources.files("streamtrain") / "faq.md").read_text(encoding="utf-8")
    sections: dict[str, list[str]] = {}
    for part in text.split("\n## ")[1:]:
        name, *lines = part.strip().split("\n")
        sections[name] = lines[1:]
    return sections


@cache
def _quoted() -> dict[str, list[list[str]]]:
    """Messages that each section quotes, in its block of text, as the parts between "…"."""
    quoted = {}
    for name, lines in _sections().items():
        if "```text" in lines:
            after = lines[lines.index("```text") + 1 :]
            block = takewhile(lambda line: line != "```", after)
            quoted[name] = [line.removesuffix(" …").split("…") for line in block]
    return quoted


def _in_turn(parts: list[str], message: str) -> bool:
    """Whether a message holds all parts, one after the other."""
    at = 0
    for part in parts:
        at = message.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def _title(lines: list[str]) -> str:
    return lines[0].strip("*")


def _plain(lines: list[str]) -> list[str]:
    """Markdown as a terminal shows it: code indented, no marks but backticks, no links."""
    out, code = [], False
    for line in lines:
        if line.startswith("```"):
            code = not code
        elif code:
            out.append(f"    {line}".rstrip())
        else:
            out.append(_unlinked(line.replace("**", "")))
    return out


def _unlinked(line: str) -> str:
    """`[words](place)` as the words; of another section as its command."""
    before, opened, rest = line.partition("[")
    words, linked, rest = rest.partition("](")
    if not (opened and linked):
        return line
    place, _, after = rest.partition(")")
    shown = f"{COMMAND} {place[1:]}" if place.startswith("#") else words
    return f"{before}{shown}{_unlinked(after)}"
