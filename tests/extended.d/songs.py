"""Shared by the browser tests: an upstream with titled songs, the program in front of it, clients, and a page of another
origin.
"""

import random
import socket

from support import *

SONGS = [
    "Harbour lights", "Night bus", "Paper boats", "Wintergreen", "Glass mountain", "Copper wire", "Lanterns on the hill", "Small hours",
    "Two rooms and a view of the sea", "The river keeps its own time", "A slow train to nowhere in particular",
]
# Titles and links that try to inject markup or scripts.
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "\u202egnp.exe " + "a" * 150,
    "</bdi></td><iframe src=https://evil.example/></iframe>",
    "{{constructor.constructor('alert(1)')()}}",
]
LINKS = [
    "javascript:alert(1)", "data:text/html,<script>alert(1)</script>", "//evil.example/a.mp3", "https://cdn.example.com/a.m4a",
    "vbscript:x", " javascript:alert(1)", "http://cdn.example.com/\"onmouseover=alert(1)",
]


def song(task_id, title, at=None, links=(), **response):
    """A final record."""
    at = at or time.time()
    data = [{"id": task_id, "title": title, "state": "succeeded", "progress": "100%", **links_of(links)}]
    body = {"_id": "x", "id": task_id, "type": "audios", "created_at": at - 40.25, "request": {"prompt": title},
            "response": {"success": True, "data": data, **response}, "finished_at": at}
    return json.dumps(body).encode()


def links_of(links):
    names = ["image_url", "audio_url", "video_url"]
    return {names[n] if n < 3 else f"extra{n}_url": link for n, link in enumerate(links)}


class Songs(Upstream):
    """Final records by id in `tasks`, pending tasks in `works`.

    An id in `refused` receives that status and body. `refused_share` of all calls receives `429`.
    """

    refused_share = 0

    def __init__(self, delay=0):
        self.tasks, self.works, self.refused, self.delay = {}, {}, {}, delay

    def finished(self, name, titles, links=()):
        """Adds finished tasks with these titles. Returns their ids."""
        ids = [f"{name}-{n}" for n in range(len(titles))]
        self.tasks.update((task_id, song(task_id, title, links=links)) for task_id, title in zip(ids, titles))
        return ids

    async def serve(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head, body = await read_message(reader)
                await asyncio.sleep(self.delay * (0.6 + random.random() ** 4 * 3))
                status, response = self.respond(head, body)
                writer.write(
                    b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(response)) + response
                )
                await writer.drain()
        writer.close()

    def respond(self, head, body):
        requested = json.loads(body)
        if not requested["action"].startswith("retrieve"):
            # Like an upstream with its own list of origins.
            return b"200 OK\r\naccess-control-allow-origin: https://other.example\r\nx-upstream: 1", b"{}"
        ids = requested.get("ids") or [requested["id"]]
        self.calls.append(time.monotonic())
        if random.random() < self.refused_share:
            return b"429 Too Many Requests", b'{"success":false,"error":{"code":"too_many_requests","message":"slow down"}}'
        for task_id in ids:
            if refusal := self.refused.get(task_id):
                return refusal
        texts = [text for task_id in ids if (text := self.tasks.get(task_id) or self.work(task_id))]
        if "ids" in requested:
            return b"200 OK", b'{"items":[%s],"count":%d}' % (b",".join(texts), len(texts))
        return b"200 OK", texts[0] if texts else b"{}"

    def work(self, task_id):
        if task_id not in self.works:
            return None
        title, begun, takes = self.works[task_id]
        share = (time.time() - begun) / takes
        if share >= 1:
            links = [f"https://cdn.example.com/{task_id}.{kind}" for kind in ("jpg", "m4a")]
            self.tasks[task_id] = song(task_id, title, links=links)
            return self.tasks[task_id]
        data = [{"id": task_id, "title": title, "state": "processing", "progress": f"{share:.0%}"}]
        return json.dumps({"id": task_id, "type": "audios", "created_at": begun, "response": {"data": data}}).encode()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.asynccontextmanager
async def running(delay=0, **settings):
    """Runs an upstream and the program in front of it, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="refrain-browser-") as folder:
        async with Songs(delay) as upstream, Proxy(folder, upstream, **settings) as proxy:
            proxy.home = f"http://127.0.0.1:{proxy.admin}/"
            yield upstream, proxy


async def looked_up(proxy, ids, token="t"):
    client = proxy.client()
    replies = [await client.retrieve(token, task_id) for task_id in ids]
    client.close()
    return replies


async def keep_polling(proxy, *ids, token="t", every=0.3, headers=()):
    """Polls each task until it is cancelled."""
    async def one(task_id):
        client = proxy.client()
        while True:
            await client.retrieve(token, task_id, headers)
            await asyncio.sleep(every * (0.5 + random.random()))

    await asyncio.gather(*(one(task_id) for task_id in ids))


@contextlib.asynccontextmanager
async def site():
    """Serves a page of another origin. Returns its address."""
    page = b"<!doctype html><meta charset=utf-8><link rel=icon href=data:,><title>an app</title>"

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await read_message(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(page) + page)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield "http://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
    server.close()


async def studio(proxy, upstream, token, every):
    """Starts songs at random intervals; clients poll each until it is final, and some times more."""
    async def follow(task_id):
        client, left = proxy.client(), 25
        while left:
            reply = await client.retrieve(token, task_id)
            left -= reply.cache == "HIT"
            await asyncio.sleep((1 if left == 25 else 3) * (0.5 + random.random()))
        client.close()

    async with asyncio.TaskGroup() as group:
        while True:
            task_id = f"{random.getrandbits(32):08x}-{random.getrandbits(16):04x}-4{random.getrandbits(12):03x}-{random.getrandbits(48):012x}"
            upstream.works[task_id] = (random.choice(SONGS), time.time(), 8 + random.random() * 50)
            for _ in range(3):
                group.create_task(follow(task_id))
            await asyncio.sleep(every * (0.3 + random.random() * 1.4))
