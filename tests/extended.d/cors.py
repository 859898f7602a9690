"""CORS in a real browser: a listed page can read responses, another page cannot."""

from songs import *

LOOKUP = """(async (proxy, body, more = {}, path = '/producer/tasks') => {
  try {
    const response = await fetch(proxy + path, {method: 'POST', cache: 'no-store', credentials: 'omit', body: JSON.stringify(body),
      headers: {authorization: 'Bearer t', 'content-type': 'application/json', ...more}});
    return {status: response.status, body: await response.text(), headers: Object.fromEntries(response.headers)};
  } catch (error) { return {refused: String(error)}; }
})"""


async def cors(browser):
    async with site() as app, site() as elsewhere, running(REFRAIN_SERVER__CORS_ORIGINS=json.dumps([app])) as (upstream, proxy):
        ids = upstream.finished("song", ["Harbour lights", "Night bus"])
        home = json.dumps(f"http://127.0.0.1:{proxy.port}")
        page = await browser.page(app)

        async def fetch(body, *more, at=page):
            return await at.js(f"{LOOKUP}({', '.join([home, json.dumps(body), *map(json.dumps, more)])})")

        one = {"action": "retrieve", "id": ids[0]}
        miss, hit = await fetch(one), await fetch(one)
        for response, word in ((miss, "MISS"), (hit, "HIT")):
            check(response.get("status") == 200 and response["body"].encode() == upstream.tasks[ids[0]], response)
            check(response["headers"]["x-cache"] == word, "the page reads x-cache:", response["headers"])
            check(response["headers"]["cache-status"].startswith("refrain"), "and cache-status:", response["headers"])
            check("x-request-id" in response["headers"], "and x-request-id")
        check("age" in hit["headers"], "and age:", hit["headers"])
        check(len(upstream.calls) == 1, "one call, preflights are answered by refrain:", len(upstream.calls))
        waited = await fetch({"action": "retrieve_batch", "ids": ids}, {"prefer": "wait=1", "x-record-exempt": "1"})
        check(waited["headers"].get("preference-applied") and waited["status"] == 200, waited)

        # Errors of the upstream and of refrain can be read too.
        for status, code in ((401, "invalid_token"), (404, "not_found"), (429, "too_many_requests")):
            body = b'{"success":false,"error":{"code":"%s","message":"no"}}' % code.encode()
            upstream.refused[f"r{status}"] = (b"%d No\r\nretry-after: 7" % status, body)
            response = await fetch({"action": "retrieve", "id": f"r{status}"})
            check(response.get("status") == status and code in response["body"], response)
            check(status != 429 or response["headers"]["retry-after"], "retry-after is readable:", response)
        own = await fetch({"action": "retrieve_batch", "ids": [f"n{n}" for n in range(10_001)]})
        check(own.get("status") == 400 and "bad_request" in own["body"], own)
        gone = await fetch(one | {"id": "none"}, {"cache-control": "only-if-cached"})
        check(gone.get("status") == 504, gone)
        # Bypassed responses can be read too, and the CORS headers of the upstream are replaced.
        passed = await fetch({"action": "else", "id": ids[0]}, {"x-anything": "1"})
        check(passed.get("status") == 200 and passed["headers"]["cache-status"] == "refrain; fwd=bypass", passed)
        check(passed["headers"].get("x-upstream") == "1", "headers of the upstream can be read:", passed)
        check(page.errors and all("status of 4" in error or "status of 504" in error for error in page.errors), page.errors)
        await page.close()

        other = await browser.page(elsewhere)
        calls = len(upstream.calls)
        refused = await fetch(one, at=other)
        check("refused" in refused, "a page that is not listed:", refused)
        check(len(upstream.calls) == calls and any("CORS" in error for error in other.errors), other.errors)
        await other.close()
    async with site() as app, running(REFRAIN_SERVER__CORS_ORIGINS='["*"]', REFRAIN_UPSTREAM__TOKEN="team", REFRAIN_ACCESS__MODE="shared",
                                      REFRAIN_ACCESS__CLIENTS='[{name = "app", key = "t"}]') as (upstream, proxy):
        upstream.finished("song", ["Harbour lights"])
        home, page = json.dumps(f"http://127.0.0.1:{proxy.port}"), await browser.page(app)
        fine = await page.js(f"{LOOKUP}({home}, {{action: 'retrieve', id: 'song-0'}})")
        check(fine.get("status") == 200 and fine["headers"]["x-cache"] == "MISS", fine)
        unknown = await page.js(f"{LOOKUP}({home}, {{action: 'retrieve', id: 'song-0'}}, {{authorization: 'Bearer u'}})")
        check(unknown.get("status") == 401 and "invalid_token" in unknown["body"], unknown)
        await page.close()
