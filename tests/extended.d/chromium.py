"""A headless Chromium, driven by the DevTools protocol over two pipes, without a driver or a socket.

Every page records its errors (`errors`) and the URLs of its requests (`requests`).
"""

import asyncio
import base64
import contextlib
import json
import os
import tempfile
import time

KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32, "ArrowRight": 39}
OPTIONS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check", "--disable-gpu",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb", "--lang=en-GB",
    # Only the loopback can be reached.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
# Returns visible text with too little contrast to its background (WCAG 2.2, 1.4.3).
CONTRAST = """(() => {
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const behind = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const style = getComputedStyle(e);
    if (!e.checkVisibility({visibilityProperty: true, opacityProperty: true}) || e.disabled) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const pair = [light(parts(style.color).slice(0, 3)), light(behind(e))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) poor.push(`${e.tagName}.${e.className}#${e.id} ${ratio.toFixed(2)} ${e.textContent.trim().slice(0, 30)}`);
  }
  return poor;
})()"""


class ScriptError(AssertionError):
    """An expression raised an exception."""


class Chromium:
    async def __aenter__(self):
        self.profile = tempfile.TemporaryDirectory(prefix="refrain-chromium-", ignore_cleanup_errors=True)
        to_browser, self.writing = os.pipe()
        self.reading, from_browser = os.pipe()

        def as_three_and_four():
            first, second = os.dup(to_browser), os.dup(from_browser)
            while min(first, second) < 5:
                first, second = os.dup(first), os.dup(second)
            os.dup2(first, 3)
            os.dup2(second, 4)

        options = [*OPTIONS, f"--user-data-dir={self.profile.name}"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")
        self.process = await asyncio.create_subprocess_exec(
            "chromium", *options, "about:blank", pass_fds=(3, 4), preexec_fn=as_three_and_four,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "TZ": "UTC", "HOME": self.profile.name},
        )
        os.close(to_browser)
        os.close(from_browser)
        self.responses, self.pages, self.number = {}, {}, 0
        # Number of requests cut by a change of the machine's interfaces, for example by a container.
        self.network_changes = 0
        loop = asyncio.get_running_loop()
        self.stream = asyncio.StreamReader(limit=1 << 28)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self.stream), os.fdopen(self.reading, "rb"))
        self.listening = asyncio.create_task(self.listen())
        await self.call("Browser.getVersion")
        return self

    async def __aexit__(self, *_):
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.call("Browser.close"), 5)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await self.process.wait()
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self.listening.cancel()
        os.close(self.writing)
        self.profile.cleanup()

    async def listen(self):
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                message = json.loads((await self.stream.readuntil(b"\0"))[:-1])
                if "id" in message:
                    self.responses.pop(message["id"]).set_result(message)
                elif page := self.pages.get(message.get("sessionId")):
                    page.heard(message["method"], message["params"])
        for response in self.responses.values():
            response.cancel()

    async def call(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        response = self.responses[self.number] = asyncio.get_running_loop().create_future()
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(60):
            response = await response
        if "error" in response:
            raise RuntimeError(f"{method}: {response['error']['message']}")
        return response["result"]

    async def page(self, url, width=1280, height=900, dark=False):
        """A tab of its own profile, on this address."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = await self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = self.pages[attached["sessionId"]] = Page(self, attached["sessionId"], context)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await page.call(f"{domain}.enable")
        await page.resize(width, height)
        await page.scheme("dark" if dark else "light")
        await page.open(url)
        return page


class Page:
    def __init__(self, browser, session, context):
        self.browser, self.session, self.context = browser, session, context
        self.errors, self.requests, self.loaded = [], [], asyncio.Event()

    def heard(self, method, event):
        if method == "Network.loadingFailed" and event["errorText"] == "net::ERR_NETWORK_CHANGED":
            self.browser.network_changes += 1
        if method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
        elif method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(argument.get("value", argument)) for argument in event["args"]))
        elif method == "Page.javascriptDialogOpening":
            self.errors.append(f"a script opened a dialog: {event['message']}")
            asyncio.ensure_future(self.call("Page.handleJavaScriptDialog", accept=True))
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded.set()

    async def call(self, method, **parameters):
        return await self.browser.call(method, self.session, **parameters)

    async def open(self, url):
        self.loaded.clear()
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(30):
            await self.loaded.wait()

    async def close(self):
        await self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)

    async def resize(self, width, height):
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700)

    async def scheme(self, name, reduced=False):
        features = [{"name": "prefers-color-scheme", "value": name}]
        features += [{"name": "prefers-reduced-motion", "value": "reduce"}] if reduced else []
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def js(self, expression):
        """Value of an expression. A promise is awaited."""
        response = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in response:
            raise ScriptError(f"{expression}: {response['exceptionDetails'].get('exception', {}).get('description')}")
        return response["result"].get("value")

    async def until(self, expression, within=20):
        """Waits until the expression is true. Returns its value."""
        deadline, value = time.monotonic() + within, None
        while not value:
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {expression}; errors: {self.errors}; text: {(await self.text('body'))[:1500]}")
            # There is no document between two pages.
            with contextlib.suppress(ScriptError):
                value = await self.js(expression)
            await asyncio.sleep(0.05)
        return value

    async def text(self, selector):
        return await self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    async def click(self, selector):
        """Sends mouse events to the middle of the element."""
        spot = await self.until(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e || e.disabled) return null;"
            " e.scrollIntoView({block: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect();"
            " return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1)

    async def press(self, key, shift=False):
        code = KEYS[key]
        text = {"Enter": "\r", "Space": " "}.get(key)
        common = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **common, **({"text": text} if text else {}))
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def type(self, text):
        await self.call("Input.insertText", text=text)

    async def screenshot(self, path, full=True):
        """Saves a picture of the whole page, or of its visible part."""
        options = {}
        if full:
            size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
            options = {"captureBeyondViewport": True, "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        response = await self.call("Page.captureScreenshot", format="png", **options)
        with open(path, "wb") as file:
            file.write(base64.b64decode(response["data"]))
