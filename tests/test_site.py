"""The docs site is whole: it builds without a warning, loads nothing from elsewhere, and no link is broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import tidewire
from built_site import CSS_LOAD, FAR, Site, WebPage, build_site
from doc_pages import navigation, pages

# Far scripts that the theme's own script names for features we do not use, each with the class that would call for
# it. No page may have one of these classes; were there one, the page's policy would refuse the load.
DORMANT = {
    "https://unpkg.com/ace-builds": "exec",
    "https://unpkg.com/glightbox": "glightbox",
    "https://unpkg.com/mermaid": "mermaid",
    "https://unpkg.com/pyodide": "exec",
    "https://unpkg.com/resize-observer-polyfill": "",  # only browsers from before 2020
    "https://cdn.jsdelivr.net/pyodide": "exec",
    "https://api.github.com": "md-source",
    "https://${e}/api/v4/projects/": "md-source",
}
# Addresses that are names of vocabularies, or credits in a comment: nothing fetches them.
NAMES = (
    "http://www.w3.org/",
    "https://github.com/",
    "https://fontawesome.com",
    "https://zensical.org/",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Build the site once."""
    return build_site(tmp_path_factory.mktemp("site"))


def far_loads(page: WebPage) -> list[str]:
    """Return what a page makes a browser load from another host."""
    return [f"{page.name}: {load}" for load in page.loads if FAR.match(load)]


def broken_links(built: list[WebPage], root: Path) -> list[str]:
    """Return the links of all pages to files or anchors that are not there."""
    anchors = {page.name: page.anchors for page in built}
    wrong: list[str] = []
    for page in built:
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            # The page of a path that is not there may be shown anywhere, so its links begin at the root.
            start = root if parts.path.startswith("/") else (root / page.name).parent
            path = start / unquote(parts.path).lstrip("/") if parts.path else root / page.name
            name = path.resolve().relative_to(root.resolve()).as_posix() if path.exists() else ""
            if not name or path.is_dir():
                wrong.append(f"{page.name}: {link}")
            elif parts.fragment and name in anchors and unquote(parts.fragment) not in anchors[name] | {"__top"}:
                wrong.append(f"{page.name}: {link} has no such anchor")
    return wrong


def test_the_site_builds_in_strict_mode_without_a_network(site: Site) -> None:
    """The generator finds no broken link, anchor or reference, and needs no network."""
    assert 0 == site.exit_code, site.said
    assert len(pages()) < len(site.pages) + 10


def test_no_page_loads_anything_from_elsewhere(site: Site) -> None:
    """Scripts, styles, fonts, images and frames of every page come with the site."""
    assert [] == [load for page in site.pages for load in far_loads(page)]


def test_no_style_loads_anything_from_elsewhere(site: Site) -> None:
    """Styles import nothing from another host."""
    found = {name: CSS_LOAD.findall(text) for name, text in site.texts(".css").items()}
    assert found
    assert [] == [f"{name}: {load}" for name, loads in found.items() for load in loads if FAR.match(load)]


def test_scripts_name_no_other_host_that_they_would_load_from(site: Site) -> None:
    """What the theme's script would load from elsewhere is for features that no page has."""
    scripts = {name: text for name, text in site.texts(".js").items() if name != "search.js"}
    assert scripts
    known = (*DORMANT, *NAMES)
    named = {far for text in scripts.values() for far in re.findall(r"https?://[^\s\"'`)]+", text)}
    assert [] == sorted(far for far in named if not far.startswith(known))
    used = {name for page in site.pages for name in page.classes}
    assert set() == used & set(filter(None, DORMANT.values()))


def test_each_page_forbids_its_browser_to_load_from_elsewhere(site: Site) -> None:
    """Every page carries a policy that allows the site's own files and nothing else."""
    allowed = {"'self'", "'unsafe-inline'", "file:", "data:", "blob:", "about:"}
    for page in site.pages:
        assert page.policy.startswith("default-src 'self' file:;"), page.name
        words = {word for part in page.policy.split(";") for word in part.split()[1:]}
        assert set() == words - allowed


def test_no_link_of_the_site_is_broken(site: Site) -> None:
    """Every link between pages, also one that the theme has made, leads to a file and an anchor that exist."""
    assert [] == broken_links(site.pages, site.root)


def test_the_search_knows_every_page(site: Site) -> None:
    """The search index comes with the site, as a script that works without a server, and has every page."""
    index = json.loads((site.root / "search.js").read_text("utf-8").removeprefix("var __index = ").rstrip(";\n"))
    found = {item["location"].partition("#")[0] for item in index["items"]}
    wanted = {re.sub(r"(README|index)\.md$", "index.md", name)[:-3] + ".html" for name in navigation()}
    assert set() == wanted - found


def test_the_reference_has_every_public_name(site: Site) -> None:
    """What `tidewire` and its public modules offer has its place in the reference, from its docstring."""
    for module in ("errors", "middleware", "model", "protocols", "testing"):
        page = WebPage.read(module, (site.root / f"reference/{module}.html").read_text("utf-8"))
        names = __import__(f"tidewire.{module}", fromlist=["__all__"]).__all__
        assert [] == [name for name in names if f"tidewire.{module}.{name}" not in page.anchors]
    text = (site.root / "reference/tidewire.html").read_text("utf-8")
    anchors = WebPage.read("tidewire", text).anchors
    assert [] == [name for name in tidewire.__all__ if f"tidewire.{name}" not in anchors and f">{name}<" not in text]


# --- the checkers bite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/a.css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img src="x.png" srcset="https://images.example/x.png 2x">',
        '<p style="background: url(http://images.example/x.png)">',
        '<style>@import "https://fonts.example/a.css";</style>',
    ],
)
def test_a_load_from_elsewhere_is_found(planted: str) -> None:
    """The checker of loads bites."""
    assert 1 == len(far_loads(WebPage.read("planted.html", planted)))


def test_a_link_that_people_follow_is_no_load() -> None:
    """Links to other sites are allowed, and so are those that only name a page."""
    text = '<a href="https://peps.python.org">x</a><link rel="canonical" href="https://tidewire.example/">'
    assert [] == far_loads(WebPage.read("planted.html", text))


def test_a_broken_link_of_the_site_is_found(tmp_path: Path) -> None:
    """The link checker bites on files and on anchors."""
    text = '<a href="no.html">x</a><a href="#there">x</a><a href="#gone">x</a><p id="there">'
    (tmp_path / "a.html").write_text(text)
    wrong = broken_links([WebPage.read("a.html", text)], tmp_path)
    assert ["a.html: no.html", "a.html: #gone has no such anchor"] == wrong
