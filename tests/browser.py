"""Drives the page in Chromium: every view, wide and narrow, light and dark, and by the keyboard alone.

    python tests/browser.py FOLDER OUT          # a folder of sessions; screenshots go to OUT

Beside these it drives one whose loop runs, one whose loop has only begun, and one that cannot be read.
Fails on an error on the console, a request to anywhere else, a chart that is not drawn, a page wider than its window,
and a server that does not end quietly.
"""

import asyncio
import base64
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import websockets

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "research"))
from sitting import created, looping  # noqa: E402

VIEWS = ("overview", "recipes", "lineage", "decisions", "effects", "time", "proof", "log", "propose")
SIZES = ((1440, False), (1024, True), (390, False), (390, True))
DRAWN = ("!!document.querySelector('#view') && "
         "[...document.querySelectorAll('figure.chart')].every(f => f.querySelector('canvas, p'))")
UPDATE = """(async () => { const begun = performance.now();
  await htmx.ajax('GET', location.href, {target: '#view', swap: 'innerHTML'});
  return Math.round(performance.now() - begun); })()"""
PORT = 9444


class Browser:
    """One tab, by Chromium's debugging protocol."""

    def __init__(self, socket):
        self.socket, self.calls, self.faults, self.requests = socket, 0, [], []

    async def call(self, method, **params):
        self.calls += 1
        number = self.calls
        await self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            told = json.loads(await asyncio.wait_for(self.socket.recv(), 60))
            if told.get("id") == number:
                return told.get("result", told)
            match told.get("method"):
                case "Runtime.exceptionThrown":
                    self.faults.append(told["params"]["exceptionDetails"].get("text", "exception"))
                case "Log.entryAdded" if told["params"]["entry"]["level"] == "error":
                    self.faults.append(told["params"]["entry"]["text"])
                case "Network.requestWillBeSent":
                    self.requests.append(told["params"]["request"]["url"])

    async def ask(self, expression):
        found = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True)
        return found["result"].get("value")

    async def until(self, expression, seconds=20):
        end = time.monotonic() + seconds
        while not (found := await self.ask(expression)) and time.monotonic() < end:
            await asyncio.sleep(0.1)
        assert found, expression
        return found

    async def go(self, url):
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def press(self, key):
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")

    async def picture(self, path):
        found = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def shelf(folder):
    """A folder of the sessions there, and of others that are no more at rest."""
    with tempfile.TemporaryDirectory() as made, ExitStack() as going:
        shown = Path(made)
        for path in Path(folder).resolve().iterdir():
            (shown / path.name).symlink_to(path)
        (shown / "broken").mkdir()
        (shown / "broken" / "ledger.sqlite").write_bytes(b"no ledger at all" * 100)
        going.enter_context(created(shown / "begun"))
        going.enter_context(looping(shown / "running"))
        yield shown


async def drive(address, out):
    origin = address.split("/?")[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/json") as answer:
        target = next(t for t in json.load(answer) if t["type"] == "page")["webSocketDebuggerUrl"]
    async with websockets.connect(target, max_size=1 << 28) as socket:
        tab = Browser(socket)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.call(f"{domain}.enable")
        await tab.go(address)
        await tab.until(DRAWN, 120)
        links = "JSON.stringify([...document.querySelectorAll('tbody a')].map(a => a.pathname))"
        sessions = [link.split("/")[2] for link in json.loads(await tab.ask(links))]
        assert {"begun", "running"} <= {*sessions} and "not a database" in await tab.ask("document.body.innerText")
        await tab.picture(out / "home.png")
        for name in sessions:
            for width, dark in SIZES:
                await tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
                               mobile=width < 500)
                await tab.call("Emulation.setEmulatedMedia", features=[
                    {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
                for view in VIEWS:
                    await tab.go(f"{origin}/s/{name}/{view}")
                    await tab.until(DRAWN, 120)
                    assert await tab.ask("document.documentElement.scrollWidth <= innerWidth"), (name, view, width)
                    await tab.picture(out / f"{name}-{view}-{width}-{'dark' if dark else 'light'}.png")
                    painted = await tab.ask("Math.round(performance.getEntriesByType('paint')[0]?.startTime ?? 0)")
                    update = await tab.ask(UPDATE) if view != "propose" else 0
                    print(f"{name} {view} {width} {'dark' if dark else 'light'}: first paint {painted} ms, update "
                          f"{update} ms", flush=True)
        await keyboard(tab, f"{origin}/s/{next(name for name in sessions if name not in ('begun', 'running'))}")
        assert not tab.faults, tab.faults
        elsewhere = [url for url in tab.requests if not url.startswith((origin, "data:"))]
        assert not elsewhere, elsewhere


async def keyboard(tab, session):
    """From the overview to a recipe and back, without a mouse."""
    await tab.go(f"{session}/overview")
    await tab.until("!!window.htmx")
    await tab.press("g")
    await tab.press("r")
    await tab.until("location.pathname.endsWith('/recipes') && document.readyState === 'complete' && !!window.htmx")
    await tab.until("!!document.querySelector('#view tbody tr')", 60)
    await tab.press("j")
    await tab.until("document.activeElement.tagName === 'TR'")
    await tab.press("/")
    await tab.until("document.activeElement.type === 'search'")
    rows = await tab.ask("document.querySelectorAll('#view tbody tr').length")
    for letter in "zzzz":
        await tab.press(letter)
    await tab.until(f"document.querySelectorAll('#view tbody tr').length < {rows}")
    await tab.ask("document.activeElement.blur()")
    was = await tab.ask("document.documentElement.dataset.theme || ''")
    await tab.press("b")
    await tab.until(f"document.documentElement.dataset.theme !== '{was}'")
    await tab.press("?")
    await tab.until("document.getElementById('keys').open")


def main(folder, out):
    out.mkdir(parents=True, exist_ok=True)
    program = shutil.which("chromium") or shutil.which("google-chrome") or sys.exit("chromium: not installed")
    with shelf(folder) as shown, tempfile.TemporaryDirectory() as profile:
        page = subprocess.Popen([sys.executable, "-m", "research.page", shown], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, cwd=ROOT)
        browser = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", f"--remote-debugging-port={PORT}",
             f"--user-data-dir={profile}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = page.stdout.readline().strip()
            for _ in range(100):
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{PORT}/json"):
                    break
                time.sleep(0.2)
            asyncio.run(drive(address, out))
            page.send_signal(signal.SIGINT)  # while the browser listens
            assert page.communicate(timeout=30)[1] == "stopped\n"
        finally:
            for process in (page, browser):
                process.terminate()
                process.wait()
    print("every view drawn, no error, nothing asked elsewhere")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
