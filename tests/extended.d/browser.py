"""The dashboard and CORS in a real browser: the real program, an upstream that counts, and headless Chromium.

    browser.py                      all tests
    browser.py part…                some tests: figures, search, …
    browser.py --screenshots DIR    screenshots only: light, dark, phone, tablet, empty, busy, and the dialogs
"""

from chromium import CONTRAST, Chromium
from cors import cors
from screenshots import SHOWN, screenshots
from songs import *


@contextlib.asynccontextmanager
async def dashboard(browser, proxy, expected=(), **options):
    """Opens the dashboard in a tab. At the end checks that it had no errors and sent requests to the admin port only."""
    page = await browser.page(proxy.home, **options)
    yield page
    errors = [error for error in page.errors if not any(re.search(words, error) for words in expected)]
    check(not errors, "errors on the page:", errors)
    foreign = [url for url in page.requests if not url.startswith((proxy.home, "data:"))]
    check(not foreign and page.requests, "requests to other hosts:", foreign)
    await page.close()


TITLES = "[...document.querySelectorAll('#tasks .title')].map(e => e.textContent)"


async def search_for(page, term):
    await page.js("document.getElementById('term').value = ''")
    await page.js("document.getElementById('term').focus()")
    await page.type(term)
    await page.press("Enter")


async def figures(browser):
    port = free_port()
    async with running(REFRAIN_SERVER__LISTEN=f"127.0.0.1:{port}") as (upstream, proxy), dashboard(browser, proxy) as page:
        await page.until("!document.getElementById('welcome').hidden")
        check(f"http://127.0.0.1:{port}/producer/tasks" in await page.text("#welcome-curl"), "a command to run")
        check(await page.text("#saved") == "0", "nothing is saved yet")
        ids = upstream.finished("song", [f"Song {n}" for n in range(12)])
        replies = await looked_up(proxy, ids * 3)
        check([reply.cache for reply in replies] == ["MISS"] * 12 + ["HIT"] * 24, "misses, then hits")
        await started(proxy)
        await page.until("document.getElementById('saved').textContent === '24'")
        await page.until("document.getElementById('bypassed').textContent === '1'")
        await page.until("document.getElementById('welcome').hidden")
        calls = str(len(upstream.calls))
        for figure, value in (("calls", calls), ("stored", "12"), ("rate", "66.7\xa0%"), ("passed", "0"), ("absorbed", "0"), ("bypassed", "1"), ("others", "0")):
            check(await page.text(f"#{figure}") == value, figure, await page.text(f"#{figure}"), "is not", value)
        await page.until("document.getElementById('status-word').textContent === 'Ready'")
        await page.until("document.querySelector('#chart-calls .plot').ariaLabel.includes('Saved: 24')", within=40)
        check(await page.js("document.querySelectorAll('.plot canvas').length") == 4, "four charts")
        await page.click("#range label:nth-of-type(2)")
        await page.until("document.querySelector('#chart-calls .unit').textContent.includes('5\xa0min')")
        check(await page.js("document.querySelector('#tasks tbody').rows.length") == 10, "the latest ten")
        await page.click("#tasks-more")
        await page.until("document.querySelector('#tasks tbody').rows.length === 12")


IDS = "[...document.querySelectorAll('#tasks .id')].map(e => e.textContent)"


async def listing(browser):
    async with running() as (upstream, proxy), dashboard(browser, proxy) as page:
        client = proxy.client()

        async def stored():
            """Every id, the last stored first."""
            # The admin port closes idle connections after 10 s.
            admin = Client(proxy.admin)
            tasks = json.loads((await admin.send("GET", "/api/tasks?limit=200")).body)["tasks"]
            admin.close()
            return [task["id"] for task in tasks]

        async def show_more(rows):
            await page.click("#tasks-more")
            await page.until(f"{IDS}.length === {rows}")

        # A batch is stored at once, within one second.
        await client.batch("t", upstream.finished("old", [f"Old {n}" for n in range(35)]))
        ids = await stored()
        await page.until(f"{IDS}.length === 10")
        await show_more(20)
        check(await page.js("new Set([...document.querySelectorAll('#tasks time')].map(e => e.dataset.at)).size") == 1, "all of one second")
        page.requests.clear()
        await eventually("two more refreshes", refreshed(page, 2))
        check(await page.js(IDS) == ids[:20], "kept over a refresh:", await page.js(IDS))
        await show_more(30)
        await show_more(35)
        check(await page.js(IDS) == ids, "each once, none left out:", await page.js(IDS))
        # A few new tasks are added at the top. More than one page of new tasks resets the list.
        await client.batch("t", upstream.finished("few", [f"Few {n}" for n in range(3)]))
        await page.until(f"{IDS}.length === 38")
        check(await page.js(IDS) == await stored(), "new ones above:", await page.js(IDS))
        await client.batch("t", upstream.finished("new", [f"New {n}" for n in range(15)]))
        ids = await stored()
        await page.until(f"{IDS}.length === 10")
        for rows in (20, 30, 40, 50, 53):
            await show_more(rows)
        check(await page.js(IDS) == ids and len(ids) == 53, "no gap:", await page.js(IDS))
        client.close()


async def started(proxy, token="t", **headers):
    """Sends a request that is passed through."""
    client = proxy.client()
    reply = await client.post(token, {"action": "generate"}, list(headers.items()), path="/producer/audios")
    client.close()
    return reply


REQUESTS = "[...document.querySelectorAll('#requests tbody tr')].map(r => [...r.cells].slice(0, 2).map(c => c.innerText.trim().replace(/\\s+/g, ' ')).join(' | '))"


async def reloaded(page):
    await page.js("window.isOld = true; location.reload()")
    await page.until(f"!window.isOld && {SHOWN}")


async def requests(browser):
    async with running(REFRAIN_UPSTREAM__MAX_RETRIES="0") as (upstream, proxy), dashboard(browser, proxy) as page:
        [song_id] = upstream.finished("song", ["Night bus"])
        miss, hit = await looked_up(proxy, [song_id, song_id])
        upstream.refused["gone"] = (b"503 Service Unavailable", b'{"success":false,"error":{"code":"api_error","message":"maintenance"}}')
        [failed] = await looked_up(proxy, ["gone"])
        await started(proxy)
        await page.until(f"{SHOWN} && {REQUESTS}.length === 4")
        shown = await page.js(REQUESTS)
        expected = ["POST /producer/audios | bypass 200", "Lookup /producer/tasks | failed 503", "Lookup /producer/tasks | hit 200", "Lookup /producer/tasks | miss 200"]
        check([row.split(" · ")[0] for row in shown] == expected, "the latest first:", shown)
        check(not any(song_id in text for text in [await page.text("#requests")]), "no id of a task")
        # Filters.
        for value, count in (("kind=failed", 1), ("outcome=hit", 1), ("outcome=aborted", 0), ("", 4)):
            await page.js(f"(e => {{ e.value = '{value}'; e.dispatchEvent(new Event('input', {{bubbles: true}})) }})(document.getElementById('requests-filter'))")
            await page.until(f"{REQUESTS}.length === {count}")
        request_id = failed.headers["x-request-id"]
        await page.js("document.getElementById('requests-id').focus()")
        await page.type(request_id[:8])
        await page.until(f"{REQUESTS}.length === 1")
        # A click anywhere in the row, not only on its button.
        await page.click("#requests td:nth-of-type(4)")
        await page.until("document.getElementById('request').open")
        check(request_id in await page.text("#request-facts"), "the id of the log")
        check("503" in await page.text("#request-facts"), "the status")
        check(await page.js("location.hash") == f"#/request/{request_id}", "the address follows")
        # The link survives a reload; closing the dialog removes it.
        await reloaded(page)
        await page.until(f"{SHOWN} && !document.getElementById('request-known').hidden")
        check(request_id in await page.text("#request-facts"), "the same request")
        await page.press("Escape")
        await page.until("location.hash === ''")
        await page.js("location.hash = '#/request/unknown-id'")
        await page.until("document.getElementById('request-error').textContent.includes('unknown-id')")
        await page.press("Escape")
        await page.until("!document.getElementById('request').open")


async def deep_links(browser):
    odd = "a/b %2F?#<b>ö"
    async with running() as (upstream, proxy), dashboard(browser, proxy, [r"status of 404"]) as page:
        upstream.finished("song", ["Night bus"])
        upstream.tasks[odd] = song(odd, "Odd one")
        await looked_up(proxy, ["song-0", odd])
        upstream.works["work"] = ("Paper boats", time.time(), 600)
        asking = asyncio.create_task(keep_polling(proxy, "work"))
        await page.until(f"{SHOWN} && {TITLES}.length === 2")
        await page.until("document.querySelectorAll('#pending .title').length === 1")
        title = "document.getElementById('detail-title').textContent"
        known = "document.getElementById('detail').open && !document.getElementById('detail-known').hidden"
        # A click anywhere in a row opens it, a click on a link does not.
        await page.click("#tasks tbody tr:nth-of-type(1) td:nth-of-type(3)")
        await page.until(f"{known} && {title} === 'Odd one'")
        check(await page.text("#detail-prompt") == "Odd one", "the prompt", await page.text("#detail-prompt"))
        await reloaded(page)
        await page.until(f"{SHOWN} && {known} && {title} === 'Odd one'")
        # Back and forward close and open the dialog.
        await page.press("Escape")
        await page.until("location.hash === '' && !document.getElementById('detail').open")
        await page.js("location.hash = '#/task/producer/song-0'")
        await page.until(f"{known} && {title} === 'Night bus'")
        await page.js("history.back()")
        await page.until("!document.getElementById('detail').open")
        await page.js("history.forward()")
        await page.until(f"{known} && {title} === 'Night bus'")
        await page.press("Escape")
        await page.until("!document.getElementById('detail').open")
        # A pending task has no record yet.
        await page.click("#pending tbody tr td:nth-of-type(2)")
        await page.until(f"{known} && {title} === 'Paper boats'")
        check(not await page.js("document.getElementById('detail-json').checkVisibility()"), "no record")
        check("pending" in await page.text("#detail-facts"), "its state")
        await reloaded(page)
        await page.until(f"{SHOWN} && {known} && {title} === 'Paper boats'")
        await page.press("Escape")
        await page.js("location.hash = '#/task/producer/nothing'")
        await page.until("document.getElementById('detail-error').textContent.includes('not stored')")
        await page.press("Escape")
        for wrong in ("#/task/producer", "#/task/%E0%A4%A/x", "#/other/x", "#/"):
            await page.js(f"location.hash = '{wrong}'")
            await page.until("!document.querySelector('dialog[open]')")
        asking.cancel()


async def upstream_down(browser):
    async with running(REFRAIN_UPSTREAM__BASE_URL="http://127.0.0.1:1") as (_, proxy), dashboard(browser, proxy) as page:
        await looked_up(proxy, ["other"])
        await page.until("!document.getElementById('notice').hidden")
        notice = await page.text("#notice")
        check("No response from 127.0.0.1:1 since" in notice and "the connection was refused" in notice, notice)
        check(await page.text("#status-word") == "Upstream down", "the status")


async def search(browser):
    async with running() as (upstream, proxy), dashboard(browser, proxy) as page:
        await looked_up(proxy, upstream.finished("alpha", ["Harbour lights", "Night bus"]))
        await looked_up(proxy, upstream.finished("beta", ["Paper boats"]))
        await page.until(f"{SHOWN} && {TITLES}.length === 3")
        for term, titles in (("alpha-1", ["Night bus"]), ("BOATS", ["Paper boats"]), ("beta", ["Paper boats"]), ("ha", ["Harbour lights"])):
            await search_for(page, term)
            await page.until(f"JSON.stringify({TITLES}) === {json.dumps(json.dumps(titles, separators=(',', ':')))}")
        await search_for(page, "nowhere")
        await page.until("document.getElementById('tasks-none').textContent.includes('nowhere')")
        await search_for(page, "")
        await page.until(f"{TITLES}.length === 3")
        # The search, its focus and the selection survive a refresh.
        await search_for(page, "bus")
        await page.until(f"{TITLES}.length === 1")
        await page.js("document.getElementById('term').select()")
        page.requests.clear()
        await eventually("two more refreshes", refreshed(page, 2))
        state = await page.js(
            f"[document.activeElement.id, getSelection().toString(), {TITLES}.length]"
        )
        check(state == ["term", "bus", 1], "kept over a refresh:", state)


def refreshed(page, times):
    async def so():
        return sum("/api/stats" in url for url in page.requests) >= times
    return so


async def delete(browser):
    async with running(REFRAIN_TASKS__SERVICES='["producer","suno"]') as (upstream, proxy), dashboard(browser, proxy) as page:
        ids = upstream.finished("song", ["Harbour lights", "Night bus", "Paper boats"])
        await looked_up(proxy, ids)
        client = proxy.client()
        await client.post("t", {"action": "retrieve", "id": ids[0]}, path="/suno/tasks")
        await page.until(f"{SHOWN} && {TITLES}.length === 4")
        await search_for(page, "Night bus")
        await page.until(f"{TITLES}.length === 1")
        await page.click("#tasks button.title")
        await page.until("!document.getElementById('detail-known').hidden")
        shown = await page.js("document.getElementById('detail-json').textContent")
        check(json.loads(shown) == json.loads(upstream.tasks[ids[1]]), "the record, pretty")
        await page.click("#detail-form label:nth-of-type(2)")
        await page.until(f"document.getElementById('detail-json').textContent === {json.dumps(upstream.tasks[ids[1]].decode())}")

        await page.click("#detail-delete")
        await page.until("document.getElementById('confirm').open")
        check(await page.js("document.activeElement.id") == "confirm-no", "the safe button has the focus")
        await page.click("#confirm-no")
        await page.until("!document.getElementById('confirm').open")
        check((await client.retrieve("t", ids[1])).cache == "HIT", "kept")

        await page.click("#detail-delete")
        await page.click("#confirm-yes")
        await page.until("!document.getElementById('detail').open")
        await page.until(f"{TITLES}.length === 0")
        before = len(upstream.calls)
        check((await client.retrieve("t", ids[1])).cache == "MISS", "deleted")
        check(len(upstream.calls) == before + 1, "the next lookup goes to the upstream, once")
        check((await client.retrieve("t", ids[0])).cache == "HIT", "others stay")

        await search_for(page, "")
        await page.until(f"{TITLES}.length === 4")
        await page.js("document.getElementById('service').focus()")
        await page.type("suno")
        await page.press("Enter")
        await page.until("document.getElementById('confirm').open")
        check("suno" in await page.text("#confirm-text"), "the text names the service")
        await page.click("#confirm-yes")
        await page.until(f"{TITLES}.length === 3")
        check((await client.retrieve("t", ids[2])).cache == "HIT", "the other service stays")
        check((await client.post("t", {"action": "retrieve", "id": ids[0]}, path="/suno/tasks")).cache == "MISS", "gone")
        # Tasks stored just now are not older than a minute.
        await page.js("document.getElementById('delete-older').elements.unit.value = 'm'")
        await page.click("#delete-older button")
        await page.click("#confirm-yes")
        await page.until("document.getElementById('toast').textContent.startsWith('0 records')")
        client.close()


# Holds the next request of this method until `letGo()`.
HOLD = """((method) => {
  const real = window.fetch, held = new Promise(done => window.letGo = done);
  window.fetch = async (path, options) => {
    if (options.method !== method || !path.includes('song-0')) return real(path, options);
    window.fetch = real;
    await held;
    return real(path, options);
  };
})"""


async def late(browser):
    async with running() as (upstream, proxy), dashboard(browser, proxy, [r"status of 404"]) as page:
        await looked_up(proxy, upstream.finished("song", ["Harbour lights", "Night bus", "Paper boats"]))
        await page.until(f"{SHOWN} && {TITLES}.length === 3")

        async def open_detail(title):
            await page.js(f"[...document.querySelectorAll('#tasks button.title')].find(e => e.textContent === '{title}').click()")

        async def known(title):
            await page.until(f"!document.getElementById('detail-known').hidden && document.getElementById('detail-title').textContent === '{title}'")

        # A delete continues after its dialogs are closed. Dialogs opened meanwhile stay open.
        await open_detail("Harbour lights")
        await known("Harbour lights")
        await page.js(f"{HOLD}('DELETE')")
        await page.click("#detail-delete")
        await page.click("#confirm-yes")
        await page.until("document.getElementById('confirm-yes').disabled")
        await page.press("Escape")
        await page.until("!document.getElementById('confirm').open")
        await page.press("Escape")
        await page.until("!document.getElementById('detail').open")
        await open_detail("Night bus")
        await known("Night bus")
        await page.click("#detail-delete")
        await page.until("document.getElementById('confirm').open")
        await page.js("letGo()")
        await page.until("document.getElementById('toast').textContent.startsWith('1 record')")
        await page.until(f"{TITLES}.length === 2")
        check(await page.js("['confirm', 'detail'].every(id => document.getElementById(id).open)"), "the next question was closed")
        check(not await page.js("document.getElementById('confirm-yes').disabled"), "and can be confirmed")
        await page.click("#confirm-no")
        await page.press("Escape")
        await page.until("!document.querySelector('dialog[open]')")

        # The late response for a closed task must not appear at another task.
        await looked_up(proxy, ["song-0"])
        await page.until(f"{TITLES}.length === 3")
        admin = Client(proxy.admin)
        await page.js(f"{HOLD}('GET')")
        await open_detail("Harbour lights")
        await page.press("Escape")
        await page.until("!document.getElementById('detail').open")
        await admin.send("DELETE", "/api/tasks/producer/song-0")
        admin.close()
        await open_detail("Night bus")
        await known("Night bus")
        await page.js("letGo()")
        await eventually("the late response arrived", lambda: heard(page, "status of 404"))
        await page.js("new Promise(done => setTimeout(done, 200))")
        check(await page.text("#detail-error") == "", "another task's error:", await page.text("#detail-error"))


async def heard(page, words):
    return any(words in error for error in page.errors)


async def hostile(browser):
    async with running() as (upstream, proxy), dashboard(browser, proxy) as page:
        ids = upstream.finished("bad", HOSTILE, LINKS)
        await looked_up(proxy, ids)
        upstream.works["worse"] = (HOSTILE[0], time.time(), 600)
        odd = '<img src=x onerror="alert(2)">'
        upstream.tasks[odd] = song(odd, HOSTILE[1], error={"message": HOSTILE[0]}, success=False)
        await looked_up(proxy, ["worse", odd])
        asking = asyncio.create_task(keep_polling(proxy, "worse"))
        await page.until(f"{SHOWN} && {TITLES}.length === {len(HOSTILE) + 1}")
        titles = set(await page.js(TITLES))
        check(titles == set(HOSTILE), "titles are text; differ:", titles ^ set(HOSTILE))
        await page.until("document.querySelectorAll('#pending .title').length === 1")
        rows = await page.js("document.querySelectorAll('#tasks tbody tr').length")
        for n in range(rows):
            await page.js(f"document.querySelectorAll('#tasks button.title')[{n}].click()")
            await page.until("!document.getElementById('detail-known').hidden")
            await page.press("Escape")
            await page.until("!document.getElementById('detail').open")
        elements = await page.js("['script', 'img', 'iframe', 'style', 'object'].map(tag => document.getElementsByTagName(tag).length)")
        check(elements == [3, 1, 0, 0, 0], "elements that a task made:", elements)
        links = await page.js(
            "[...document.querySelectorAll('.links a')].map(a => [a.protocol, a.rel, a.target, a.referrerPolicy, a.host, a.attributes.length])"
        )
        check(links, "some links are sound")
        for protocol, *rest in links:
            check(protocol in ("http:", "https:"), protocol)
            check(rest == ["noopener noreferrer", "_blank", "no-referrer", "cdn.example.com", 6], rest)
        asking.cancel()
    async with running() as (_, proxy):
        # The checks above do find violations.
        page = await browser.page(proxy.home)
        await page.until(SHOWN)
        await page.js("document.body.insertAdjacentHTML('beforeend', '<img src=http://evil.example/x.png onerror=alert(1)>')")
        await page.js("const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)")
        await eventually("violations are seen", lambda: seen(page))
        check(await page.js("window.ran") is None, "an inline script does not run")
        await page.close()


async def seen(page):
    return sum("Content Security Policy" in error for error in page.errors) >= 2


async def token(browser):
    secret = "correct-horse.battery~staple"
    ports = {"REFRAIN_SERVER__LISTEN": f"127.0.0.1:{free_port()}", "REFRAIN_ADMIN__LISTEN": f"127.0.0.1:{free_port()}"}
    async with running(REFRAIN_ADMIN__TOKEN=secret, **ports) as (upstream, proxy):
        async with dashboard(browser, proxy, [r"status of 401|ERR_CONNECTION|ERR_EMPTY|ERR_NETWORK"]) as page:
            await page.until("!document.getElementById('locked').hidden")
            check(await page.js("document.getElementById('content').hidden"), "nothing shows without the token")
            check(await page.js("document.activeElement.id") == "token", "the field has the focus")
            await page.type("wrong")
            await page.press("Enter")
            await page.until("document.getElementById('token-error').textContent.includes('not the token')")
            await page.type(secret)
            await page.press("Enter")
            await page.until(f"{SHOWN} && document.getElementById('locked').hidden")
            await looked_up(proxy, upstream.finished("song", ["Night bus"]))
            await page.until(f"{TITLES}.length === 1")
            kept = await page.js("[location.href, JSON.stringify(localStorage), document.cookie]")
            check(secret not in "".join(kept), "stored for the tab only:", kept)
            # After a change of the token, the content is removed and not only hidden.
            await search_for(page, "song-0")
            await page.js("document.querySelector('#tasks button.title').click()")
            await page.until("!document.getElementById('detail-known').hidden")
            await proxy.stop()
            await proxy.reading
            secret = proxy.environment["REFRAIN_ADMIN__TOKEN"] = "another-horse.battery~staple"
            await proxy.start()
            await page.until("!document.getElementById('locked').hidden")
            left = await page.js("document.documentElement.outerHTML + [...document.querySelectorAll('input, select')].map(e => e.value)")
            check("Night bus" not in left and "song-0" not in left, "still in the page:", left)
            check(await page.js("document.getElementById('saved').textContent + document.getElementById('detail-json').textContent") == "–", "figures and record are gone")
            await page.type(secret)
            await page.press("Enter")
            await page.until(f"{TITLES}.length === 1")
            await page.click("#clear-token")
            await page.until("!document.getElementById('locked').hidden")
            check(await page.js("sessionStorage.length") == 0 and await page.js(TITLES) == [], "the token and what it showed are gone")
            check(not any(secret in url for url in page.requests), "never in a URL")


async def keyboard(browser):
    async with running() as (upstream, proxy), dashboard(browser, proxy) as page:
        await looked_up(proxy, upstream.finished("song", ["Harbour lights", "Night bus", "Paper boats"]))
        await page.until(f"{SHOWN} && {TITLES}.length === 3")
        unmarked = []

        async def tab_to(what, most=60):
            for _ in range(most):
                await page.press("Tab")
                # The focus mark of a radio button is drawn on its label.
                if not await page.js(
                    "(e => e === document.body || getComputedStyle(e.matches('.switch input') ? e.nextSibling : e).outlineStyle !== 'none')(document.activeElement)"
                ):
                    unmarked.append(await page.js("document.activeElement.outerHTML.slice(0, 80)"))
                if await page.js(f"document.activeElement.matches({json.dumps(what)})"):
                    return
            raise AssertionError(f"never reached by Tab: {what}")

        await tab_to(".skip", 1)
        await page.press("Enter")
        await tab_to(".figure button", 1)
        check(await page.js("document.getElementById('saved-definition').checkVisibility({visibilityProperty: true})"), "the definition shows on focus")
        await page.press("Escape")
        check(not await page.js("document.getElementById('saved-definition').checkVisibility({visibilityProperty: true})"), "and disappears on Escape")
        await tab_to("#range input")
        await page.press("ArrowRight")
        await page.until("document.querySelector('#range [value=\"24h\"]').checked")
        await tab_to("#term")
        await page.type("night")
        await page.press("Enter")
        await page.until(f"{TITLES}.length === 1")
        await tab_to("#tasks button.title", 3)
        await page.press("Enter")
        await page.until("!document.getElementById('detail-known').hidden")
        for _ in range(20):
            await page.press("Tab")
            check(await page.js("document.activeElement === document.body || !!document.activeElement.closest('#detail')"), "the focus left the dialog")
        await page.press("Escape")
        await page.until("!document.getElementById('detail').open")
        check(await page.js("document.activeElement.matches('#tasks button.title')"), "the focus is back where it was")
        await tab_to("#service")
        await tab_to("body > footer a", 20)
        check(not unmarked, "focus without a mark:", unmarked)


async def widths(browser):
    long = "s" * 64
    async with running(REFRAIN_TASKS__CUSTOM_SERVICES=f'[{{ name = "{long}", class = "batch", max_batch = 20 }}]') as (upstream, proxy), dashboard(browser, proxy) as page:
        await looked_up(proxy, upstream.finished("bad" + "x" * 90, HOSTILE, LINKS))
        client = proxy.client()
        await client.post("t", {"action": "retrieve", "id": "bad" + "x" * 90 + "-0"}, path=f"/{long}/tasks")
        client.close()
        upstream.works["worse" * 20] = ("w" * 300, time.time(), 600)
        asking = asyncio.create_task(keep_polling(proxy, "worse" * 20))
        await page.until(f"{SHOWN} && {TITLES}.length === {len(HOSTILE) + 1}")
        await page.until("document.querySelectorAll('#pending .title').length === 1")
        await page.until("document.querySelectorAll('#queues tbody tr').length > 0")
        for width in (320, 360, 375, 600, 768, 1024, 1280, 1920):
            await page.resize(width, 800)
            for shown in ("", "document.querySelector('#tasks button.title').click()", "document.getElementById('detail-delete').click()"):
                await page.js(shown or "0")
                await page.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
                wide = await page.js("[document.scrollingElement.scrollWidth, innerWidth]")
                check(wide[0] <= width, "wider than the window:", wide, "at", width, shown)
                cut = await page.js("[...document.querySelectorAll('.card, dialog .body')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.className)")
                check(not cut, "wider than the box:", cut, "at", width, shown)
            await page.press("Escape")
            await page.press("Escape")
            await page.until("!document.querySelector('dialog[open]')")
        asking.cancel()


async def themes(browser):
    async with running() as (upstream, proxy), dashboard(browser, proxy) as page:
        ids = upstream.finished("song", ["Harbour lights"], ["https://cdn.example.com/a.jpg"])
        upstream.tasks["failed"] = song("failed", "Night bus", success=False, error={"message": "refused"})
        upstream.works["work"] = ("Paper boats", time.time(), 600)
        asking = asyncio.create_task(keep_polling(proxy, "work"))
        await looked_up(proxy, [*ids, "failed"] * 3)
        await page.until(f"{SHOWN} && {TITLES}.length === 2")
        await page.until("document.querySelectorAll('#pending .title').length === 1")
        await page.until("document.querySelectorAll('.plot canvas').length === 4")
        papers = []
        for name in ("light", "dark"):
            await page.scheme(name, reduced=True)
            papers.append(await page.js("getComputedStyle(document.body).backgroundColor"))
            check((poor := await page.js(CONTRAST)) == [], name, "is hard to read:", poor)
            await page.js("document.querySelector('#tasks button.title').click()")
            await page.until("!document.getElementById('detail-known').hidden")
            check((poor := await page.js(CONTRAST)) == [], name, "is hard to read:", poor)
            await page.press("Escape")
            check(await page.js("getComputedStyle(document.getElementById('toast')).transitionDuration") == "0s", "no motion")
            drawn = "[...document.querySelectorAll('.plot canvas')].every(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v))"
            check(await page.js(drawn), "charts are drawn")
        check(papers[0] != papers[1], "light and dark differ:", papers)
        await page.click("#theme")
        check(await page.js("getComputedStyle(document.body).backgroundColor") == papers[0], "the switch wins over the system")
        await page.open(proxy.home)
        check(await page.js("getComputedStyle(document.body).backgroundColor") == papers[0], "and is remembered")
        asking.cancel()


async def outage(browser):
    ports = {"REFRAIN_SERVER__LISTEN": f"127.0.0.1:{free_port()}", "REFRAIN_ADMIN__LISTEN": f"127.0.0.1:{free_port()}"}
    async with running(**ports) as (upstream, proxy), dashboard(browser, proxy, [r"ERR_CONNECTION|ERR_EMPTY|ERR_NETWORK"]) as page:
        await looked_up(proxy, upstream.finished("song", [f"Song {n}" for n in range(10)]))
        await page.until(f"{SHOWN} && {TITLES}.length === 10")
        check(await proxy.stop() == 0, "a clean end")
        await page.until("document.getElementById('status').dataset.state === 'unreachable'")
        check("does not respond" in await page.text("#notice"), "the notice reports it")
        check(len(await page.js(TITLES)) == 10, "known tasks stay")
        await proxy.reading
        await proxy.start()
        await page.until("document.getElementById('status').dataset.state === 'ready'")
        check(await page.js("document.getElementById('notice').hidden"), "the notice went")
        # A hidden page sends no requests. A visible one refreshes at once.
        await page.js("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        await page.js("document.dispatchEvent(new Event('visibilitychange'))")
        await page.until("new Promise(done => setTimeout(() => done(1), 1000))")
        page.requests.clear()
        await asyncio.sleep(11)
        check(page.requests == [], "requests while hidden:", page.requests)
        await page.js("delete document.hidden")
        await page.js("document.dispatchEvent(new Event('visibilitychange'))")
        await eventually("it refreshes", refreshed(page, 1), within=4)


PARTS = [figures, listing, requests, deep_links, upstream_down, search, delete, late, hostile, token, keyboard, widths, themes, outage, cors]


async def tests(names):
    async with Chromium() as browser:
        for one in PARTS:
            if names and one.__name__ not in names:
                continue
            start = time.monotonic()
            for attempt in range(4):
                changes = browser.network_changes
                try:
                    await one(browser)
                    break
                except Exception as error:
                    # An error of the browser, not of the page: run the part again.
                    if browser.network_changes > changes and attempt < 3:
                        print(f"{one.__name__}: again, the machine's network changed", flush=True)
                        continue
                    print(f"{one.__name__}: failed: {error}", flush=True)
                    raise
            print(f"{one.__name__}: ok, {time.monotonic() - start:.0f} s", flush=True)


if "--screenshots" in sys.argv:
    asyncio.run(screenshots(sys.argv[sys.argv.index("--screenshots") + 1]))
else:
    asyncio.run(tests(sys.argv[1:]))
