"""Real clients in front of refrain, unchanged but for the base URL; behind it `refrain simulate`.

The vendor's Python SDK, three of its CLIs and two of its MCP servers, a Node program and a page in headless Chromium.
Each starts tasks and polls them until they are finished. When each of them looks them up again, every lookup is a hit,
and the upstream receives none. The packages come from PyPI, in these versions:
"""

import importlib.util

from chromium import Chromium
from songs import *

SDK_AND_CLIS = ["acedatacloud==2026.10.20.0", "producer-cli==2026.10.12.2", "suno-cli==2026.10.26.0", "acedatacloud-cli==2026.10.19.2"]
# Each needs an environment of its own: their modules have the same names.
MCP_SERVERS = ["mcp-producer==2026.10.18.4", "mcp-midjourney==2026.10.18.4"]

# The simulated upstream allows one call a second, and submissions do not wait in refrain.
SDK = """
import json, sys, time
from acedatacloud import AceDataCloud
base, token, *ids = sys.argv[1:]
services = ["producer", "flux", "luma"]
with AceDataCloud(api_token=token, base_url=base) as client:
    if not ids:
        ids.append(client.audio.generate(prompt="patience", provider="producer", async_=True).id)
        time.sleep(1.5)
        ids.append(client.images.generate(prompt="patience", provider="flux", async_=True).id)
        time.sleep(1.5)
        ids.append(client.video.generate(prompt="patience", provider="luma", async_=True).id)
    for service, id in zip(services, ids):
        task = client.tasks.wait(id, service=service)
        assert task["id"] == id and task["finished_at"], task
print(json.dumps(ids))
"""

# For Node and for the page. Polls `tasks` until they are finished, or starts them first if they have no id.
FOLLOW = """async (base, token, tasks, more) => {
  const headers = {authorization: `Bearer ${token}`, "content-type": "application/json"};
  const post = (path, body, more = {}) =>
    fetch(base + path, {method: "POST", headers: {...headers, ...more}, body: JSON.stringify(body)});
  const pause = seconds => new Promise(done => setTimeout(done, 1000 * seconds));
  for (const task of tasks) {
    task.caches = [];
    if (task.id) continue;
    task.id = (await (await post(task.start, {prompt: "patience", async: true})).json()).task_id;
    await pause(1.5);
  }
  for (const task of tasks) {
    for (;;) {
      const response = await post(`/${task.service}/tasks`, {action: "retrieve", id: task.id}, more);
      if (!response.ok) throw new Error(`${task.service}: ${response.status} ${await response.text()}`);
      task.caches.push(response.headers.get("x-cache"));
      if ((await response.json()).finished_at) break;
      await pause(3);
    }
  }
  return tasks;
}"""
NODE = f"({FOLLOW})(...JSON.parse(process.argv[1])).then(tasks => console.log(JSON.stringify(tasks)))"


class Relay:
    """Stands between refrain and the simulated upstream. `lookups` has the token of each lookup that passed."""

    def __init__(self, port):
        self.port, self.lookups = port, []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = "http://127.0.0.1:%d" % self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        upstream, to_upstream = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await read_message(reader)
                path = request[0].split(b" ")[1]
                if path.endswith(b"/tasks"):
                    self.lookups.append(re.search(rb"(?im)^authorization: bearer (\S+)", request[0])[1].decode())
                to_upstream.writelines(request)
                writer.writelines(await read_message(upstream))
        to_upstream.close()
        writer.close()


@contextlib.asynccontextmanager
async def simulated_upstream(folder):
    """Runs `refrain simulate`. Returns its port."""
    process = await asyncio.create_subprocess_exec(
        BINARY, "simulate", "--listen", "127.0.0.1:0", cwd=folder, env={"PATH": os.environ["PATH"]},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(30):
            line = (await process.stdout.readline()).decode()
        yield int(line.rstrip().rpartition(":")[2])
    finally:
        process.kill()
        await process.wait()


async def output_of(*arguments, environment=None, within=200):
    """Runs a command that has to succeed. Returns its output."""
    process = await asyncio.create_subprocess_exec(
        *arguments, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(within):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    check(process.returncode == 0, *arguments, "failed:", output.decode(), errors.decode())
    return output.decode()


async def installed(folder, *requirements):
    """Installs packages in a new virtual environment. Returns its folder of programs."""
    has_venv = importlib.util.find_spec("ensurepip")
    await output_of(*([sys.executable, "-m", "venv"] if has_venv else ["virtualenv", "--quiet"]), folder)
    await output_of(f"{folder}/bin/pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    return f"{folder}/bin"


class App:
    """A client program with a token of its own. `start` polls new tasks until they are finished, `again` once more."""

    def __init__(self, name, base, folder):
        self.name, self.base, self.token, self.polls = name, base, f"token-of-{name}", 0
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": folder, "ACEDATACLOUD_API_BASE_URL": base, "ACEDATACLOUD_API_TOKEN": self.token,
            # Some CLIs wrap even their JSON at the width of the terminal.
            "COLUMNS": "100000",
        }

    async def until_finished(self, look_up):
        """Calls `look_up` until the task that it returns is finished."""
        for _ in range(30):
            task = await look_up()
            if task.get("finished_at"):
                return
            await asyncio.sleep(5)
        check(False, self.name, "is never finished:", task)


class Sdk(App):
    hits = 3

    def __init__(self, base, folder, bin):
        super().__init__("acedatacloud", base, folder)
        self.command = [f"{bin}/python", "-c", SDK, base, self.token]

    async def start(self):
        # No variable: the SDK reads none.
        self.ids = json.loads(await output_of(*self.command, environment={}))

    async def again(self):
        check(json.loads(await output_of(*self.command, *self.ids, environment={})) == self.ids, "other tasks")


class Cli(App):
    def __init__(self, base, folder, program, generate, task, batch=None):
        super().__init__(os.path.basename(program), base, folder)
        self.program, self.generate, self.task, self.batch = program, generate, task, batch
        self.hits = 2 if batch else 1

    async def run(self, *arguments):
        return json.loads(await output_of(self.program, *arguments, "--json", environment=self.environment))

    async def start(self):
        self.id = (await self.run(*self.generate))["task_id"]
        await self.until_finished(lambda: self.run(*self.task, self.id))

    async def again(self):
        task = await self.run(*self.task, self.id)
        check(task["id"] == self.id and task["finished_at"], task)
        if self.batch:
            batch = await self.run(*self.batch, self.id, self.id)
            check([item["id"] for item in batch["items"]] == [self.id, self.id], batch)


class Mcp(App):
    """Speaks to the server over stdio, as an agent does."""

    hits = 2

    def __init__(self, base, folder, bin, service, generate):
        super().__init__(f"mcp-{service}", base, folder)
        self.program, self.service, self.generate, self.number = f"{bin}/mcp-{service}", service, generate, 0

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            self.program, env=self.environment, cwd=self.environment["HOME"], limit=1 << 20,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )
        client = {"name": "test", "version": "1"}
        await self.call("initialize", protocolVersion="2025-03-26", capabilities={}, clientInfo=client)
        self.send(method="notifications/initialized")
        self.id = json.loads(await self.tool(self.generate, prompt="patience"))["task_id"]
        await self.until_finished(self.get_task)

    async def again(self):
        try:
            check((await self.get_task())["finished_at"], "not finished")
            batch = await self.tool(f"{self.service}_get_tasks_batch", task_ids=[self.id, self.id])
            check(batch.count(f"Task: {self.id} ") == 2, batch)
        finally:
            self.process.kill()
            await self.process.wait()

    async def get_task(self):
        return json.loads(await self.tool(f"{self.service}_get_task", task_id=self.id))

    async def tool(self, name, **arguments):
        result = await self.call("tools/call", name=name, arguments=arguments)
        check(not result.get("isError"), name, result)
        return result["content"][0]["text"]

    async def call(self, method, **parameters):
        self.number += 1
        self.send(id=self.number, method=method, params=parameters)
        async with asyncio.timeout(60):
            while line := await self.process.stdout.readline():
                message = json.loads(line)
                if message.get("id") == self.number:
                    check("result" in message, method, message)
                    return message["result"]
        check(False, self.name, "has ended")

    def send(self, **message):
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


class Script(App):
    """A program that calls `fetch`."""

    def __init__(self, name, base, folder, more, **starts):
        super().__init__(name, base, folder)
        self.more, self.hits = more, len(starts)
        self.tasks = [{"service": service.replace("_", "-"), "start": start} for service, start in starts.items()]

    async def start(self):
        self.tasks = await self.follow()
        for task in self.tasks:
            check(task["caches"][0] in ("MISS", "PENDING"), self.name, task)

    async def again(self):
        for task in await self.follow():
            check(task["caches"] == ["HIT"], self.name, task)

    def arguments(self):
        return [self.base, self.token, self.tasks, self.more]


class Node(Script):
    async def follow(self):
        return json.loads(await output_of("node", "-e", NODE, json.dumps(self.arguments()), environment=self.environment))


class PageScript(Script):
    page = None

    async def follow(self):
        arguments = ", ".join(map(json.dumps, self.arguments()))
        await self.page.js(f"window.result = null; ({FOLLOW})({arguments}).then(r => result = r, e => result = String(e)); 0")
        tasks = await self.page.until("window.result", within=120)
        check(isinstance(tasks, list), tasks)
        return tasks


async def part(folder):
    sdk, *mcp = await asyncio.gather(
        installed(f"{folder}/sdk", *SDK_AND_CLIS), *(installed(f"{folder}/{name}", name) for name in MCP_SERVERS)
    )
    # The rate of the simulated upstream.
    settings = {
        "REFRAIN_UPSTREAM__REQUESTS_PER_SECOND": "1",
        "REFRAIN_UPSTREAM__BURST": "1",
        "REFRAIN_UPSTREAM__MAX_RETRIES": "2",
    }
    async with (
        simulated_upstream(folder) as port, Relay(port) as relay, site() as page, Chromium() as browser,
        Proxy(folder, relay, REFRAIN_SERVER__CORS_ORIGINS=json.dumps([page]), **settings) as proxy,
    ):
        base = f"http://127.0.0.1:{proxy.port}"
        apps = [
            Sdk(base, folder, sdk),
            Cli(base, folder, f"{sdk}/producer-cli", ["generate", "patience", "--async"], ["task"], ["tasks"]),
            Cli(base, folder, f"{sdk}/suno-cli", ["generate", "patience"], ["task"], ["tasks"]),
            Cli(base, folder, f"{sdk}/adc", ["video", "patience", "--service", "luma"], ["task", "--service", "luma"]),
            Mcp(base, folder, mcp[0], "producer", "producer_generate_music"),
            Mcp(base, folder, mcp[1], "midjourney", "midjourney_imagine"),
            Node("node", base, folder, {"prefer": "wait=60"}, kling="/kling/videos", seedance="/seedance/videos", nano_banana="/nano-banana/images"),
            PageScript("chromium", base, folder, {}, suno="/suno/audios", veo="/veo/videos", wan="/wan/videos"),
        ]
        apps[-1].page = await browser.page(page)
        await asyncio.gather(*(app.start() for app in apps))

        async def requests(*outcomes):
            metrics = (await Client(proxy.admin).send("GET", "/metrics")).body.decode()
            lines = [line for line in metrics.splitlines() if line.startswith("refrain_requests_total{")]
            return sum(int(line.split()[1]) for line in lines if any(f'outcome="{word}"' in line for word in outcomes))

        for app in apps:
            calls, hits = len(relay.lookups), await requests("hit")
            await app.again()
            more = len(relay.lookups) - calls, await requests("hit") - hits
            check(more == (0, app.hits), app.name, "made (upstream lookups, hits)", more, "instead of", app.hits, "hits")
            print(f"{app.name}: upstream lookups until finished {relay.lookups.count(app.token)}, afterwards 0; hits {app.hits}")
        check(await requests("refused", "failed", "aborted") == 0, "errors")


run(part)
