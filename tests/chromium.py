"""A headless Chromium, driven by its own DevTools protocol over two pipes: no port, no library."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox: a container's root has none; the pages are our own. No name is looked up, so that a
# page that asks for the network fails the same way everywhere.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-extensions", "--remote-debugging-pipe", "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


def find_browser() -> str | None:
    """Return the path of a Chromium, from `DSNB_BROWSER` or the usual names; none if absent."""
    named = os.environ.get("DSNB_BROWSER")
    return named or next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One browser with one tab; `events` holds what the tab reported since `events` was cleared."""

    def __init__(self, program: str, profile: Path):
        (theirs, self.ours), (self.answers, out) = os.pipe(), os.pipe()
        words = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads its file 3 and writes its file 4.
        shell = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{out}', "-", *words]
        with (profile.parent / "chromium.log").open("wb") as log:
            self.process = subprocess.Popen(
                shell, pass_fds=(theirs, out), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        os.close(theirs)
        os.close(out)
        self.count, self.rest, self.session, self.events = 0, b"", None, []
        tab = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Page.setLifecycleEventsEnabled", enabled=True)

    def _read(self, until: float) -> dict:
        while b"\0" not in self.rest:
            if not select.select([self.answers], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self.answers, 1 << 20)
            if not part:
                raise ConnectionError("the browser has ended")
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def send(self, method: str, seconds: float = 60, **given) -> dict:
        """Ask the browser for `method`; return its answer, keeping what it reports meanwhile."""
        self.count += 1
        words = {"id": self.count, "method": method, "params": given}
        words |= {"sessionId": self.session} if self.session else {}
        os.write(self.ours, json.dumps(words).encode() + b"\0")
        until = time.monotonic() + seconds
        while (message := self._read(until)).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def run(self, script: str) -> object:
        """Return the value of JavaScript in the page, awaited where it is a promise."""
        how = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.send("Runtime.evaluate", expression=script, **how)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, address: str, width: int, phone: bool = False) -> None:
        """Load a page in a window of `width` pixels and wait until it has loaded."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, mobile=phone,
                  deviceScaleFactor=1)  # fmt: skip
        self.events.clear()
        mine = self.send("Page.navigate", url=address)["loaderId"]
        until, seen = time.monotonic() + 60, 0
        while True:
            for event in (now["params"] for now in self.events[seen:]):
                if event.get("name") == "load" and event.get("loaderId") == mine:
                    return
            seen = len(self.events)
            self.events.append(self._read(until))

    def print(self, **how) -> bytes:
        """Return the page as it would be printed, a PDF."""
        return base64.b64decode(self.send("Page.printToPDF", **how)["data"])

    def close(self) -> None:
        """End the browser and its processes."""
        os.close(self.ours)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.answers)
