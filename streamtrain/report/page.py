"""Sections of texts, tables and figures enter; one HTML page that needs nothing else leaves."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from streamtrain.plot.figures import svg_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDE = 1200  # pixels; a figure beyond is scrolled, and one below made smaller to fit
_LONG = 40  # rows; tables of more are set close
_UNQUOTED = " !$()*+,-./:;=?@_~[]{}|"  # of a data URI in double quotes; base64 takes a third more
_SAFE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes
    ----------
    name
        Of its file, without an ending.
    figure
        What is drawn.
    alt
        What it shows, in words.
    caption
        How it is read.
    """

    name: str
    figure: Figure
    alt: str
    caption: str


@dataclass
class Section:
    """A part of the page: HTML, made by the functions here, and the figures in it."""

    id: str
    title: str
    blocks: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def add(self, *blocks: str) -> None:
        """Append HTML."""
        self.blocks += blocks

    def draw(self, *pictures: Picture) -> None:
        """Append figures; several stand side by side where there is room."""
        self.pictures += pictures
        drawn = "".join(_figure(picture) for picture in pictures)
        self.blocks.append(f'<div class="pair">{drawn}</div>' if len(pictures) > 1 else drawn)


@dataclass(frozen=True)
class Page:
    """What a page says; all are texts, none HTML, but for the sections' blocks.

    Attributes
    ----------
    title, lead
        The heading, and the paragraphs below it.
    scores
        Numbers of the head, as (name, words).
    sections
        In their order.
    absent
        (section, why it is not there).
    footer
        What made the page, and when.
    """

    title: str
    lead: Sequence[str]
    scores: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    absent: Sequence[tuple[str, str]]
    footer: str

    def html(self) -> str:
        """Give the page, in one file."""
        css = files("streamtrain.report").joinpath("page.css").read_text(encoding="utf-8")
        listed = [(section.id, section.title) for section in self.sections]
        body = "".join(
            f'<section id="{s.id}" aria-labelledby="{s.id}-title">'
            f'<h2 id="{s.id}-title">{text(s.title)}</h2>{"".join(s.blocks)}</section>\n'
            for s in self.sections
        )
        if self.absent:
            listed.append(("absent", "Left out"))
            items = "".join(f"<li><b>{text(a)}</b>: {text(b)}</li>" for a, b in self.absent)
            body += (
                '<section id="absent" aria-labelledby="absent-title"><h2 id="absent-title">'
                f'Left out</h2><ul class="absent">{items}</ul></section>\n'
            )
        contents = "".join(f'<li><a href="#{i}">{text(t)}</a></li>' for i, t in listed)
        first, *more = [text(words) for words in self.lead]
        lead = f'<p class="lead">{first}</p>' + "".join(f"<p>{words}</p>" for words in more)
        scores = "".join(
            f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in self.scores
        )
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_SAFE}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{text(self.title)}</title>\n<link rel="icon" href="data:,">\n'
            f'<style>\n{css}</style>\n</head>\n<body>\n<div class="sheet">\n'
            f'<header><h1>{text(self.title)}</h1>{lead}<dl class="scores">{scores}</dl></header>\n'
            '<div class="body">\n<nav aria-labelledby="contents"><h2 id="contents">Contents</h2>'
            f"<ul>{contents}</ul></nav>\n<main>\n{body}</main>\n</div>\n"
            f"<footer>{text(self.footer)}</footer>\n</div>\n</body>\n</html>\n"
        )


def text(value: Any) -> str:
    """Text for HTML, also in an attribute; characters that HTML forbids become spaces."""
    plain = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", " ", str(value))
    return html.escape(plain, quote=True)


def paragraph(words: str, *, soft: bool = False) -> str:
    """Give a paragraph; `soft` is smaller, of what is said beside."""
    return f'<p class="soft">{text(words)}</p>' if soft else f"<p>{text(words)}</p>"


def heading(words: str) -> str:
    """Give a heading within a section."""
    return f"<h3>{text(words)}</h3>"


def facts(pairs: Iterable[tuple[Any, Any]]) -> str:
    """Give names and what they are, line by line."""
    items = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>'


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    chosen: int | None = None,
    fold: bool = False,
) -> str:
    """Give a table; numbers are put to the right, and the first column names its row.

    Parameters
    ----------
    rows
        Texts, whole numbers, or floats, which get three decimals.
    chosen
        Row that stands out.
    fold
        Whether the reader can fold it.
    """
    rows = [list(row) for row in rows]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(head))]
    mark = [' class="n"' if right else "" for right in numeric]
    top = "".join(f'<th scope="col"{m}>{text(h)}</th>' for h, m in zip(head, mark, strict=True))
    body = ""
    for i, row in enumerate(rows):
        cells = [f"<td{m}>{text(_word(v))}</td>" for v, m in zip(row, mark, strict=True)]
        cells[0] = f'<th scope="row"{mark[0]}>{text(_word(row[0]))}</th>'
        body += f"{'<tr class=chosen>' if i == chosen else '<tr>'}{''.join(cells)}</tr>\n"
    made = (
        f'<div class="view" role="region" aria-label="{text(caption)}" tabindex="0">'
        f"{'<table class=dense>' if len(rows) > _LONG else '<table>'}"
        f"{'' if fold else f'<caption>{text(caption)}</caption>'}"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )
    return f"<details open><summary>{text(caption)}</summary>{made}</details>" if fold else made


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-?\d[\d,]*(\.\d+)?", value) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3f}"
    return str(value)


def _figure(picture: Picture) -> str:
    svg = svg_of(picture.figure)
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    points = [float(n) for n in found.groups()] if found else [460.0, 300.0]
    wide, tall = (round(n * 96 / 72) for n in points)
    data = quote(re.sub(r"\s*\n\s*", " ", svg), safe=_UNQUOTED)
    scrolled = ' wide" role="region" tabindex="0" aria-label="' + text(picture.name)
    return (
        f'<figure><div class="view{scrolled if wide > _WIDE else ""}">'
        f'<img src="data:image/svg+xml,{data}" width="{wide}" height="{tall}" '
        f'style="--natural: {wide}px" alt="{text(picture.alt)}"></div>'
        f"<figcaption>{text(picture.caption)}</figcaption></figure>\n"
    )
