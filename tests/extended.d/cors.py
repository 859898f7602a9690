"""CORS in a real browser: a page that is listed reads what refrain answers, one that is not does not."""

from songs import *

LOOK_UP = """(async (proxy, body, more = {}, path = '/producer/tasks') => {
  try {
    const answer = await fetch(proxy + path, {method: 'POST', cache: 'no-store', credentials: 'omit', body: JSON.stringify(body),
      headers: {authorization: 'Bearer t', 'content-type': 'application/json', ...more}});
    return {status: answer.status, body: await answer.text(), headers: Object.fromEntries(answer.headers)};
  } catch (error) { return {refused: String(error)}; }
})"""


async def cors(browser):
    async with site() as app, site() as stranger, running(REFRAIN_SERVER__CORS_ORIGINS=json.dumps([app])) as (upstream, proxy):
        ids = upstream.finished("song", ["Harbour lights", "Night bus"])
        home = json.dumps(f"http://127.0.0.1:{proxy.port}")
        page = await browser.page(app)

        async def fetch(body, *more, at=page):
            return await at.js(f"{LOOK_UP}({', '.join([home, json.dumps(body), *map(json.dumps, more)])})")

        one = {"action": "retrieve", "id": ids[0]}
        miss, hit = await fetch(one), await fetch(one)
        for answer, word in ((miss, "MISS"), (hit, "HIT")):
            check(answer.get("status") == 200 and answer["body"].encode() == upstream.tasks[ids[0]], answer)
            check(answer["headers"]["x-cache"] == word, "the page reads x-cache:", answer["headers"])
            check(answer["headers"]["cache-status"].startswith("refrain"), "and cache-status:", answer["headers"])
            check("x-request-id" in answer["headers"], "and x-request-id")
        check("age" in hit["headers"], "and age:", hit["headers"])
        check(len(upstream.calls) == 1, "one call, the preflights are answered here:", len(upstream.calls))
        waited = await fetch({"action": "retrieve_batch", "ids": ids}, {"prefer": "wait=1", "x-record-exempt": "1"})
        check(waited["headers"].get("preference-applied") and waited["status"] == 200, waited)

        # Errors can be read as well: the upstream's, and those of refrain.
        for status, code in ((401, "invalid_token"), (404, "not_found"), (429, "too_many_requests")):
            body = b'{"success":false,"error":{"code":"%s","message":"no"}}' % code.encode()
            upstream.refused[f"r{status}"] = (b"%d No\r\nretry-after: 7" % status, body)
            answer = await fetch({"action": "retrieve", "id": f"r{status}"})
            check(answer.get("status") == status and code in answer["body"], answer)
            check(status != 429 or answer["headers"]["retry-after"], "retry-after is readable:", answer)
        own = await fetch({"action": "retrieve_batch", "ids": [f"n{n}" for n in range(10_001)]})
        check(own.get("status") == 400 and "bad_request" in own["body"], own)
        gone = await fetch(one | {"id": "none"}, {"cache-control": "only-if-cached"})
        check(gone.get("status") == 504, gone)
        # What passes through can be read too, and the upstream's own CORS fields do not stand beside ours.
        passed = await fetch({"action": "else", "id": ids[0]}, {"x-anything": "1"})
        check(passed.get("status") == 200 and passed["headers"]["cache-status"] == "refrain; fwd=bypass", passed)
        check(passed["headers"].get("x-upstream") == "1", "the upstream's own fields can be read:", passed)
        check(page.errors and all("status of 4" in error or "status of 504" in error for error in page.errors), page.errors)
        await page.close()

        other = await browser.page(stranger)
        calls = len(upstream.calls)
        refused = await fetch(one, at=other)
        check("refused" in refused, "a page that is not listed:", refused)
        check(len(upstream.calls) == calls and any("CORS" in error for error in other.errors), other.errors)
        await other.close()
    async with site() as app, running(REFRAIN_SERVER__CORS_ORIGINS='["*"]', REFRAIN_UPSTREAM__TOKEN="team", REFRAIN_ACCESS__MODE="shared",
                                      REFRAIN_ACCESS__CLIENTS='[{name = "app", key = "t"}]') as (upstream, proxy):
        upstream.finished("song", ["Harbour lights"])
        home, page = json.dumps(f"http://127.0.0.1:{proxy.port}"), await browser.page(app)
        fine = await page.js(f"{LOOK_UP}({home}, {{action: 'retrieve', id: 'song-0'}})")
        check(fine.get("status") == 200 and fine["headers"]["x-cache"] == "MISS", fine)
        unknown = await page.js(f"{LOOK_UP}({home}, {{action: 'retrieve', id: 'song-0'}}, {{authorization: 'Bearer u'}})")
        check(unknown.get("status") == 401 and "invalid_token" in unknown["body"], unknown)
        await page.close()
