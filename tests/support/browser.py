"""Pages in a real browser: headless Chromium, driven by its DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = "chromium"
_ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio"),
    *("--disable-extensions", "--disable-background-networking", "--disable-component-update"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
)
_SECONDS = 60

CONTRAST = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = rgb => rgb.slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length == 3 || colour[3] == 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest('title, desc, style')) continue;
    let front, back;
    if (element.namespaceURI.endsWith('svg')) {
      front = parse(getComputedStyle(element).fill);
      let box = element.previousElementSibling;
      while (box && box.tagName == 'text') box = box.previousElementSibling;
      const over = box && box.tagName == 'rect' && box.getBoundingClientRect
        && element.getBoundingClientRect().left >= box.getBoundingClientRect().left
        && element.getBoundingClientRect().left < box.getBoundingClientRect().right
        && element.getBoundingClientRect().top < box.getBoundingClientRect().bottom
        && element.getBoundingClientRect().bottom > box.getBoundingClientRect().top;
      back = over ? parse(getComputedStyle(box).fill) : behind(element);
    } else {
      front = parse(getComputedStyle(element).color);
      back = behind(element);
    }
    const [a, b] = [luminance(front), luminance(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const text = walker.currentNode.data.trim().slice(0, 40);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${text}`);
  }
  return found.slice(0, 20);
})()
"""
"""Texts whose contrast is below 4.5."""

WIDER = """
[...document.querySelectorAll('body *')].filter(one => {
  if (one.closest('.scroll, nav ul, pre, .skip, .regs thead')) return false;
  return one.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(one => one.tagName + ' ' + one.className).slice(0, 10)
"""
"""Elements that reach beyond the right edge of the page."""


@dataclass
class Seen:
    """What a page did while it was shown.

    :param requests: URLs that were asked for, without the page itself.
    """

    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


class Browser:
    """A running browser with one tab."""

    def __init__(self, out: int, answers: int) -> None:
        self._out, self._answers = out, answers
        self._number, self._rest = 0, b""
        self._session: str | None = None
        self._url = ""
        self.seen = Seen()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Security"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method, and return its result; events on the way are noted."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def show(self, path: Path, width: int, *, dark: bool = False) -> None:
        """Load a page, and wait until it is there."""
        self.seen = Seen()
        self._url = path.as_uri()
        scheme = "dark" if dark else "light"
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip
        self.call("Page.navigate", url=self._url)
        until = time.monotonic() + _SECONDS
        while self.value("document.readyState + location.href") != f"complete{self._url}":
            assert time.monotonic() < until, "the page does not load"
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=self._clip())
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """Return the page as it would be printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])

    def _clip(self) -> dict[str, Any]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            assert select.select([self._answers], [], [], _SECONDS)[0], "the browser is silent"
            data = os.read(self._answers, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, event: Any) -> None:
        if method == "Network.requestWillBeSent" and event["request"]["url"] != self._url:
            if not event["request"]["url"].startswith("data:,"):
                self.seen.requests.append(event["request"]["url"])
        elif method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.seen.messages.append(json.dumps(event))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser; it ends with the block."""
    theirs, out = os.pipe()
    answers, back = os.pipe()
    with tempfile.TemporaryDirectory(prefix="svmstream-browser-") as home:

        def descriptors() -> None:
            for one, number in [(os.dup(theirs), 3), (os.dup(back), 4)]:
                os.dup2(one, number)  # what a copy gets is inherited

        process = subprocess.Popen(
            [PROGRAM, *_ARGUMENTS, f"--user-data-dir={home}/profile", "about:blank"],
            preexec_fn=descriptors,  # noqa: PLW1509 - the protocol is on descriptors 3 and 4
            close_fds=False, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home},
        )  # fmt: skip
        os.close(theirs)
        os.close(back)
        try:
            yield Browser(out, answers)
        finally:
            os.close(out)
            os.close(answers)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
