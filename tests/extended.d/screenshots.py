"""Takes screenshots of the dashboard: light, dark, phone, tablet, empty, busy, and the dialogs."""

from chromium import Chromium
from songs import *

SHOWN = "!document.getElementById('content').hidden"


async def screenshots(folder):
    """Sends traffic and takes screenshots."""
    os.makedirs(folder, exist_ok=True)
    settings = {"REFRAIN_UPSTREAM__REQUESTS_PER_SECOND": "5", "REFRAIN_UPSTREAM__BURST": "2", "REFRAIN_TASKS__SERVICES": '["*"]',
                "REFRAIN_UPSTREAM__MAX_RETRIES": "4", "REFRAIN_SERVER__LISTEN": f"127.0.0.1:{free_port()}"}
    async with Chromium() as browser, running(0.06, **settings) as (upstream, proxy):
        async def shot(name, full=True, table=None, **options):
            page = await browser.page(proxy.home, **options)
            await page.until(f"{SHOWN} && !!document.querySelector('.plot canvas')")
            if table:
                await page.js(f"document.querySelector('#{table} button.title').click()")
                await page.until("['detail', 'request'].some(id => !document.getElementById(`${id}-known`).hidden)")
            await page.js("new Promise(done => setTimeout(done, 400))")
            await page.screenshot(os.path.join(folder, f"{name}.png"), full)
            await page.close()

        await shot("empty")
        upstream.tasks["failed-1"] = song("failed-1", "Small hours", success=False, error={"message": "the prompt was refused"})
        await looked_up(proxy, ["failed-1"], "one")
        upstream.refused_share = 0.02
        studios = [asyncio.create_task(studio(proxy, upstream, *team)) for team in (("one", 3), ("two", 8), ("three", 15))]
        await asyncio.sleep(float(os.environ.get("REFRAIN_SCREENSHOT_SECONDS", "45")))
        await shot("light")
        await shot("dark", dark=True)
        await shot("phone", width=375, height=800)
        await shot("tablet", width=800)
        await shot("detail", full=False, table="tasks")
        await shot("pending", full=False, table="pending")
        await shot("request", full=False, table="requests")
        await shot("phone-detail", full=False, table="tasks", width=375, height=800)
        studios += [asyncio.create_task(studio(proxy, upstream, f"team-{n}", 0.7)) for n in range(8)]
        await asyncio.sleep(15)
        await shot("busy")
        for task in studios:
            task.cancel()
