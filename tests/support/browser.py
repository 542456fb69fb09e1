"""Pages held to account: a strict parser, a hostile name, and a headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br", "hr", "img", "link", "input", "col"}

HOSTILE = (
    "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'&]]>\x00\x1b[2J\u202e\ud800"
)
"""A name as a checkpoint or a file may have it."""

FRAME = """<body><iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const shown = [...page.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width > 0);
  document.title = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    pictures: shown.length,
    widest: Math.max(0, ...shown.map(svg => svg.getBoundingClientRect().right)),
    background: getComputedStyle(page.body).backgroundColor,
  }});
}};
</script>"""


class Strict(HTMLParser):
    """Every element is closed where it should be; remembers what it saw."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def in_browser(page: str, folder: Path, width: int, dark: bool) -> dict[str, Any]:
    """What a browser makes of a page in a frame of that width, and what it complains of."""
    (folder / "page.html").write_text(page)
    (folder / "frame.html").write_text(FRAME.format(width=width))
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"),
            *(f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--window-size=1400,1000"),
            *(f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom"),
            f"file://{folder / 'frame.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    told = re.search(r"<title>(.*)</title>", done.stdout)
    assert told is not None, done.stderr
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {**json.loads(told[1].replace("&quot;", '"')), "complaints": complaints}
