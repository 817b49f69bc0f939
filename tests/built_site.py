"""The built docs site as the tests read it: pages with their anchors, links and loads; scripts and styles."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from source_tree import ROOT

# What a browser fetches by itself, by tag. A link in `<a href>` is only followed by a person.
LOADING = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
# Relations of `<link>` that name another page and load nothing.
NAMING = {"canonical", "next", "prev", "alternate", "edit"}
FAR = re.compile(r"^\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
CSS_LOAD = re.compile(r"""(?:url\(|@import\s+)\s*["']?([^"')\s;]+)""")


@dataclass
class Site:
    """A built site below *root*; *said* is what the generator printed."""

    root: Path
    exit_code: int
    said: str

    @property
    def pages(self) -> list[WebPage]:
        """Every HTML page."""
        return [
            WebPage.read(path.relative_to(self.root).as_posix(), path.read_text("utf-8"))
            for path in sorted(self.root.rglob("*.html"))
        ]

    def texts(self, ending: str) -> dict[str, str]:
        """Return the files whose name ends so, by path."""
        return {
            path.relative_to(self.root).as_posix(): path.read_text("utf-8")
            for path in sorted(self.root.rglob(f"*{ending}"))
        }


@dataclass
class WebPage(HTMLParser):
    """One HTML page: its anchors, the links a person may follow, and what a browser loads by itself."""

    name: str
    text: str
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    policy: str = ""

    @classmethod
    def read(cls, name: str, text: str) -> WebPage:
        """Return the page of *text*."""
        page = cls(name, text)
        HTMLParser.__init__(page)
        page.feed(text)
        page.loads += CSS_LOAD.findall("\n".join(re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL)))
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag names, links to and loads."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.classes |= set(given.get("class", "").split())
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "meta" and given.get("http-equiv", "").lower() == "content-security-policy":
            self.policy = given["content"]
        if tag == "link" and set(given.get("rel", "").split()) <= NAMING:
            return
        self.loads += [given[name] for name in LOADING.get(tag, ()) if given.get(name)]
        self.loads += CSS_LOAD.findall(given.get("style", ""))


def build_site(folder: Path) -> Site:
    """Build the docs in *folder* as ``make docs`` does, with every way to the network closed."""
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    closed = dict.fromkeys(
        ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        env={**os.environ, **closed, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    return Site(folder / "build/site", ran.returncode, ran.stdout + ran.stderr)
