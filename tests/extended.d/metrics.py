"""Checks metrics and alerts with promtool: the metrics after all kinds of traffic, each alert firing and not firing.

Prometheus itself then scrapes refrain with the configuration of docker-compose.yml.
"""

import shutil
import socket
import subprocess

from support import *

HERE = os.path.dirname(os.path.abspath(__file__))
CONFIG = os.path.join(HERE, "../../config")
ALERTS = os.path.join(CONFIG, "prometheus-alerts.yml")
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


async def scrape_by_prometheus(folder, upstream):
    """Starts Prometheus with config/prometheus.yml, of which only the addresses and paths are replaced."""
    token = os.path.join(folder, "token")
    with open(token, "w") as file:
        file.write("admin-token")
    shutil.copy(ALERTS, folder)
    with open(os.path.join(CONFIG, "prometheus.yml")) as file:
        config = file.read()
    async with Proxy(folder, upstream, REFRAIN_ADMIN__TOKEN="admin-token") as proxy:
        for old, new in [
            ("refrain:8081", f"127.0.0.1:{proxy.admin}"),
            ("/tmp/refrain-token", token),
            ("scrape_interval: 15s", "scrape_interval: 1s"),
        ]:
            check(config.count(old) == 1, old)
            config = config.replace(old, new)
        path = os.path.join(folder, "prometheus.yml")
        with open(path, "w") as file:
            file.write(config)
        promtool("check", "config", path)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            "prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}",
            stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async def query(path):
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    reply = await Client(port).send("GET", path)
                    return json.loads(reply.body)["data"] if reply.status == 200 else None

            async def is_up():
                found = await query("/api/v1/query?query=up")
                return bool(found) and [one["value"][1] for one in found["result"]] == ["1"]

            await eventually("Prometheus scrapes refrain", is_up, 40)
            rules = (await query("/api/v1/rules"))["groups"][0]["rules"]
        finally:
            process.terminate()
            await process.wait()
    print(f"Prometheus scrapes with the token and has {len(rules)} rules")
    return len(rules)


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
    async with Upstream() as upstream:
        check(await scrape_by_prometheus(folder, upstream) == len(names), "rules are missing")


run(part)
