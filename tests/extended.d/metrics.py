"""Checks metrics and alerts with promtool: the metrics after all kinds of traffic, each alert firing and not firing."""

import subprocess

from support import *

HERE = os.path.dirname(os.path.abspath(__file__))
ALERTS = os.path.join(HERE, "../../config/prometheus-alerts.yml")
ALERTS_TEST = os.path.join(HERE, "alerts-test.yml")


def promtool(*arguments, text=None):
    """Runs promtool and returns its output. Any message on stderr, even a hint, fails the part."""
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True)
    check(done.returncode == 0 and not done.stderr.strip(), *arguments, done.stdout, done.stderr)
    return done.stdout


async def scrape(proxy, accept):
    reply = await Client(proxy.admin).send("GET", "/metrics", headers=[("accept", accept)])
    check(reply.status == 200, reply.status)
    return reply.body.decode()


async def part(folder):
    async with Upstream() as upstream, Proxy(folder, upstream) as proxy:
        promtool("check", "metrics", text=await scrape(proxy, "text/plain"))
        client = proxy.client()
        for task_id in ("a", "a", "pending-b"):
            await client.retrieve("t", task_id)
        await client.batch("t", ["a", "c", "d"])
        await client.send("POST", "/producer/audios", b"{}", [("authorization", "Bearer t")])
        upstream.up = False
        check((await client.retrieve("t", "e")).status == 503, "no error to be counted")
        text = await scrape(proxy, "text/plain")
        promtool("check", "metrics", text=text)
        series = sum(not line.startswith("#") for line in text.splitlines())
        print(f"{series} series, {len(text)} bytes, no hint of promtool")
        check((await scrape(proxy, "application/openmetrics-text")).endswith("# EOF\n"), "no end")
    print(promtool("check", "rules", ALERTS).split("\n")[1].strip())
    promtool("test", "rules", ALERTS_TEST)
    with open(ALERTS) as alerts, open(ALERTS_TEST) as tests:
        names = [line.split()[-1] for line in alerts if "- alert: " in line]
        tested = tests.read()
    for name in names:
        check(f"{name} fires\n" in tested and f"{name} does not fire" in tested, name, "is not tested both ways")
    print(f"{len(names)} alerts fire and stay silent as tested")


run(part)
