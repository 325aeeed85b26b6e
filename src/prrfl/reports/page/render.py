"""From prepared data to HTML that needs no network connection and no other file."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup, escape

from prrfl.reports.glossary import glossary
from prrfl.reports.page.model import Heading, Panel, Picture, Section
from prrfl.reports.page.pictures import Dot, intervals
from prrfl.reports.page.sheets import verdict_sheet
from prrfl.reports.site_tests import SYMBOLS
from prrfl.reports.verdict import RULES, Verdict
from prrfl.reports.wording import answers

LIBRARIES = ("d3.min.js", "plot.umd.min.js")
"""Published files, in the order in which they must be loaded."""


@dataclass(frozen=True, eq=False)
class Page:
    """A page before it is written.

    Attributes:
        banner: what to know before anything else; empty for nothing.
        picture: the one beside the verdict.
        panels: one per method and site.
        panels_lead: what they show; empty if that is clear.
        classes: names of the labels.
        settings: all of the run, or those that the runs share.
    """

    heading: Heading
    title: str
    lead: str
    banner: str
    verdict: Verdict
    picture: Picture
    sections: Sequence[Section]
    panels: Sequence[Panel]
    panels_lead: str
    classes: Sequence[str]
    settings: Mapping[str, object]


def render(page: Page) -> str:
    """Return the page as HTML."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    words = glossary(page.classes)
    environment.filters |= {
        "data_uri": data_uri,
        "script": in_script,
        "terms": lambda text: with_terms(str(text), words),
    }
    return environment.from_string(web("page.html")).render(
        page=page,
        answers=answers(page.verdict),
        sites=verdict_sheet(page.verdict),
        rules=RULES,
        symbols=SYMBOLS,
        glossary=words,
        anchors={word: anchor(word) for word in words},
        style=Markup(web("page.css")),
        libraries=[Markup(web(name)) for name in LIBRARIES],
        scripts=[Markup(web(name)) for name in ("pictures.js", "page.js")],
    )


def web(name: str) -> str:
    """Return the text of a file that pages embed."""
    return resources.files("prrfl.reports").joinpath("web", name).read_text("utf-8")


def data_uri(png: bytes) -> str:
    """Return a PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def in_script(data: object) -> Markup:
    """Return data as JSON that cannot end the script element around it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def anchor(word: str) -> str:
    """Return the id of a word's place in the glossary."""
    return "word-" + re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")


def with_terms(text: str, words: Mapping[str, str]) -> Markup:
    """Return text as HTML in which the first use of each word of the glossary leads there."""
    longest = sorted(words, key=len, reverse=True)
    known = {word.lower(): word for word in words}
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, longest))})(?![\w-])", re.IGNORECASE)
    linked = Markup()
    end = 0
    for found in pattern.finditer(text):
        word = known.pop(found[0].lower(), "")
        if word:
            link = Markup('<a class="term" href="#{0}" aria-describedby="{0}">{1}</a>')
            linked += escape(text[end : found.start()]) + link.format(anchor(word), found[0])
            end = found.end()
    return linked + escape(text[end:])


def verdict_picture(verdict: Verdict) -> Picture:
    """Return the picture beside the verdict: each site's scores with their intervals."""
    items = []
    for one in verdict.sites:
        note = " ".join(SYMBOLS[test.outcome] for test in one.tests if test.p is not None)
        items.append(Dot(one.site, one.score, verdict.method, note))
        items += [Dot(one.site, estimate, name) for name, estimate in one.others.items()]
    return intervals("Macro-F1 at each site, the lowest first", {"macro-F1 (%)": items})
