"""Shared by all parts: an upstream with predictable responses, the program under test, and a client.

Everything runs in one event loop on the loopback. A record follows from token and id alone, so that any response can
be checked without the upstream.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import sqlite3
import sys
import tempfile
import time

BINARY = os.environ["REFRAIN_BIN"]


def check(condition, *what):
    """Fails the part unless the condition holds."""
    if not condition:
        raise AssertionError(" ".join(str(part) for part in what))


def record_of(token, task_id):
    """The record of a task. Ids that begin with `pending` are pending."""
    size = 200 + int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:2], "big") % 6000
    settled = "created_at" if task_id.startswith("pending") else "finished_at"
    body = {"id": task_id, "for": token, settled: 1767119785.25, "data": "x" * size}
    return json.dumps(body, separators=(",", ":")).encode()


class Upstream:
    """Responds to lookups and `delete`, and to anything else with `{}`. `calls` has the time of each lookup."""

    async def __aenter__(self):
        self.calls, self.up = [], True
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=1024)
        self.url = "http://127.0.0.1:%d" % self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head, body = await read_message(reader)
                status, response = self.respond(head, body)
                writer.write(
                    b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(response))
                    + response
                )
                await writer.drain()
        writer.close()

    def respond(self, head, body):
        if not self.up:
            return b"503 Service Unavailable", b'{"success":false,"error":{"code":"api_error","message":"off"}}'
        token = re.search(rb"(?im)^authorization: *bearer +(\S+)", head)
        token = token.group(1).decode() if token else ""
        try:
            requested = json.loads(body or b"{}")
        except ValueError:
            requested = {}
        action = requested.get("action")
        if action == "retrieve":
            self.calls.append(time.monotonic())
            return b"200 OK", record_of(token, requested["id"])
        if action == "retrieve_batch":
            self.calls.append(time.monotonic())
            items = b",".join(record_of(token, task_id) for task_id in requested["ids"])
            return b"200 OK", b'{"items":[%s],"count":%d}' % (items, len(requested["ids"]))
        if action == "delete":
            return b"200 OK", json.dumps({"id": requested["id"], "deleted": True}).encode()
        return b"200 OK", b"{}"


async def read_message(reader):
    """Reads one HTTP message. Returns head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    if length:
        return head, await reader.readexactly(int(length.group(1)))
    body = b""
    if re.search(rb"(?im)^transfer-encoding: *chunked", head):
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    return head, body


class Reply:
    def __init__(self, head, body, seconds):
        self.status, self.body, self.seconds = int(head[9:12]), body, seconds
        self.headers = {}
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            self.headers[name.decode().lower()] = value.strip().decode()
        self.cache = self.headers.get("x-cache", "")

    @property
    def stored(self):
        return "stored" in self.headers.get("cache-status", "")


class Client:
    """A client with one connection, which is replaced when it breaks."""

    def __init__(self, port):
        self.port, self.streams = port, None

    async def send(self, method, path, body=b"", headers=(), within=60):
        start = time.monotonic()
        async with asyncio.timeout(within):
            try:
                if self.streams is None:
                    self.streams = await asyncio.open_connection("127.0.0.1", self.port)
                reader, writer = self.streams
                lines = [f"{method} {path} HTTP/1.1", f"host: 127.0.0.1:{self.port}", f"content-length: {len(body)}"]
                lines += [f"{name}: {value}" for name, value in headers]
                writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
                reply = Reply(*await read_message(reader), time.monotonic() - start)
                if reply.headers.get("connection") == "close":
                    self.close()
                return reply
            except BaseException:
                self.close()
                raise

    async def post(self, token, requested, headers=(), path="/producer/tasks"):
        fields = [("authorization", f"Bearer {token}"), ("content-type", "application/json"), *headers]
        return await self.send("POST", path, json.dumps(requested).encode(), fields)

    async def retrieve(self, token, task_id, headers=()):
        return await self.post(token, {"action": "retrieve", "id": task_id}, headers)

    async def batch(self, token, ids):
        return await self.post(token, {"action": "retrieve_batch", "ids": ids})

    def close(self):
        if self.streams:
            self.streams[1].close()
        self.streams = None


class Proxy:
    """The program under test. It is killed at the end of the block if it still runs."""

    def __init__(self, folder, upstream, wrap=(), **settings):
        self.folder, self.wrap, self.log, self.reading = folder, wrap, [], None
        self.environment = {
            "PATH": os.environ["PATH"],
            "REFRAIN_SERVER__LISTEN": "127.0.0.1:0",
            "REFRAIN_ADMIN__LISTEN": "127.0.0.1:0",
            "REFRAIN_UPSTREAM__BASE_URL": upstream.url,
            "REFRAIN_UPSTREAM__REQUESTS_PER_SECOND": "1000",
            "REFRAIN_UPSTREAM__BURST": "100",
            "REFRAIN_UPSTREAM__MAX_RETRIES": "0",
            **settings,
        }
        self.path = os.path.join(folder, "refrain.db")

    async def __aenter__(self):
        await self.start()
        return self

    async def __aexit__(self, *_):
        await self.kill()

    async def start(self):
        """Starts the program. Returns whether it is ready; otherwise `log` has the reason."""
        self.process = await asyncio.create_subprocess_exec(
            *self.wrap, BINARY, "serve", cwd=self.folder, env=self.environment,
            stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, limit=1 << 20,
        )
        self.pid, self.port, self.admin = self.process.pid, None, None
        is_up = asyncio.Event()
        self.reading = asyncio.create_task(self.read_log(is_up))
        async with asyncio.timeout(30):
            await is_up.wait()
        return self.admin is not None

    async def read_log(self, is_up):
        while line := (await self.process.stderr.readline()).decode(errors="replace"):
            self.log.append(line.rstrip())
            if found := re.search(r" is ready; .* client=http://\S*:(\d+) .* dashboard=http://\S*:(\d+) ", line):
                self.port, self.admin = int(found[1]), int(found[2])
                is_up.set()
        is_up.set()

    async def ended(self, within=40):
        async with asyncio.timeout(within):
            return await self.process.wait()

    async def stop(self):
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self):
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            await self.ended()
        await self.reading

    def signal(self, number):
        os.kill(self.pid, number)

    def client(self):
        return Client(self.port)

    async def readiness(self):
        return (await Client(self.admin).send("GET", "/readyz")).status

    async def store_errors(self, kind="write"):
        text = (await Client(self.admin).send("GET", "/metrics")).body.decode()
        found = re.search(r'refrain_store_errors_total\{kind="%s"\} (\d+)' % kind, text)
        return int(found[1]) if found else 0


@contextlib.asynccontextmanager
async def tracing(proxy, *injections):
    """Attaches strace to the running program and injects these faults into writes to the store's files."""
    paths = [option for suffix in ("", "-wal") for option in ("-P", proxy.path + suffix)]
    options = [option for injection in injections for option in ("-e", "inject=" + injection)]
    output = os.path.join(tempfile.gettempdir(), f"refrain-strace-{proxy.pid}")
    tracer = await asyncio.create_subprocess_exec(
        "strace", "-f", "-qq", "-o", output, *paths, *options, "-p", str(proxy.pid),
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(10):
            while "TracerPid:\t0\n" in open(f"/proc/{proxy.pid}/status").read():
                check(tracer.returncode is None, "strace could not attach")
                await asyncio.sleep(0.02)
        yield output
    finally:
        if tracer.returncode is None:
            tracer.terminate()
            await tracer.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(output)


async def eventually(what, condition, within=20):
    deadline = time.monotonic() + within
    while not await condition():
        check(time.monotonic() < deadline, "never:", what)
        await asyncio.sleep(0.1)


async def load(proxy, name, workers, seen, until=None, tokens=4):
    """Looks up new ids until `until()` or until the program is gone.

    `seen` receives (token, id, stored) of each complete response.
    """
    gone = asyncio.Event()

    async def work(number):
        client, n = proxy.client(), 0
        while not gone.is_set() and not (until and until()):
            token, task_id = f"token-{(number + n) % tokens}", f"{name}-{number}-{n}"
            n += 1
            try:
                reply = await client.retrieve(token, task_id)
            except (OSError, asyncio.IncompleteReadError):
                gone.set()
                break
            check(reply.status == 200, reply.status, reply.body)
            check(reply.body == record_of(token, task_id), "not the bytes of", task_id)
            seen.append((token, task_id, reply.stored))
        client.close()

    await asyncio.gather(*(work(number) for number in range(workers)))


async def all_hits(proxy, keys, workers=16):
    """Checks that every task is served from the store, byte for byte."""
    keys = iter(list(keys))

    async def work():
        client = proxy.client()
        for token, task_id, *_ in keys:
            reply = await client.retrieve(token, task_id)
            check((reply.status, reply.cache) == (200, "HIT"), task_id, "is lost:", reply.status, reply.cache)
            check(reply.body == record_of(token, task_id), "not the bytes of", task_id)
        client.close()

    await asyncio.gather(*(work() for _ in range(workers)))


def sound(path):
    """Checks the file with SQLite, and that every row has a complete record. Returns the number of rows."""
    with contextlib.closing(sqlite3.connect(path)) as file:
        verdict = file.execute("PRAGMA integrity_check").fetchone()[0]
        check(verdict == "ok", verdict)
        rows = 0
        for task_id, record in file.execute("SELECT id, record FROM task"):
            task = json.loads(record)
            check(record_of(task["for"], task_id.decode()) == record, "half-written:", task_id)
            rows += 1
    return rows


async def command(*arguments):
    """Runs a system command that has to succeed. Returns its output."""
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    check(process.returncode == 0, *arguments, "failed:", output.decode())
    return output.decode()


def run(part):
    """Runs a part in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="refrain-extended-") as folder:
        asyncio.run(part(folder))
    sys.exit(0)
