"""Slow heads, slow bodies and slow readers, by slowhttptest and by hand: closed at the limit, others unaffected."""

import socket

from support import *

HEAD = b"POST /producer/tasks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t\r\ncontent-type: application/json\r\n"


async def closed_after(port, first, drip=None, every=5.0, limit=110):
    """Seconds until the program closes the connection of a client that sends too slowly."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    start = time.monotonic()

    async def feed():
        while drip:
            await asyncio.sleep(every)
            writer.write(drip)

    feeding = asyncio.create_task(feed())
    try:
        async with asyncio.timeout(limit):
            while await reader.read(65536):
                pass
    except (ConnectionError, TimeoutError):
        pass
    feeding.cancel()
    writer.close()
    return time.monotonic() - start


async def stuck_reader(proxy, ids, limit):
    """Seconds until the program closes the connection of a client that requests much and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", proxy.port))
    port = connection.getsockname()[1]
    body = json.dumps({"action": "retrieve_batch", "ids": ids}).encode()
    connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
    mine, start = f"0100007F:{port:04X}", time.monotonic()
    await asyncio.sleep(2)
    # The server's end of this connection while the program keeps it open (state 01: established).
    while time.monotonic() - start < limit:
        with open("/proc/net/tcp") as table:
            ends = [line.split() for line in table]
        if not any(end[2] == mine and end[3] == "01" for end in ends):
            break
        await asyncio.sleep(1)
    connection.close()
    return time.monotonic() - start


async def attack(proxy, name, *options):
    process = await asyncio.create_subprocess_exec(
        "slowhttptest", *options, "-c", "200", "-r", "100", "-l", "105", "-p", "5", "-u",
        f"http://127.0.0.1:{proxy.port}/producer/tasks",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(130):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    output = re.sub(r"\x1b\[[0-9;]*[a-zA-Z]", "", output.decode(errors="replace"))
    status = re.findall(r"Exit status: *(.*)", output)
    print(f"slowhttptest, {name}: {status[-1].strip() if status else 'no status'}")
    check(status, output[-500:])
    return status[-1]


async def others(proxy, keys, over):
    """Hits of an ordinary client meanwhile. Returns their times, sorted."""
    client, times = proxy.client(), []
    while not over.is_set():
        token, task_id, *_ = keys[int(time.monotonic() * 10) % len(keys)]
        reply = await client.retrieve(token, task_id)
        check((reply.status, reply.cache) == (200, "HIT"), reply.status, reply.cache)
        times.append(reply.seconds)
        await asyncio.sleep(0.05)
    client.close()
    return sorted(times)


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024


async def part(folder):
    async with Upstream() as upstream, Proxy(folder, upstream) as proxy:
        keys = []
        await load(proxy, "slow", 4, keys, lambda: len(keys) >= 200, tokens=1)
        own = [task_id for _, task_id, _ in keys] * 40
        token = keys[0][0]
        before, over = resident(proxy.pid), asyncio.Event()
        bystander = asyncio.create_task(others(proxy, keys, over))
        (
            nothing, half_head, dripped_head, half_body, *stuck, heads, bodies, reads,
        ) = await asyncio.gather(
            closed_after(proxy.port, b""),
            closed_after(proxy.port, HEAD),
            closed_after(proxy.port, HEAD, b"x: y\r\n"),
            closed_after(proxy.port, HEAD + b"content-length: 100\r\n\r\n{\"act"),
            *(stuck_reader(proxy, own, 110) for _ in range(8)),
            attack(proxy, "heads", "-H", "-i", "10", "-t", "POST", "-x", "24"),
            attack(proxy, "bodies", "-B", "-i", "40", "-t", "POST", "-s", "8192", "-x", "10"),
            attack(proxy, "readers", "-X", "-k", "3", "-n", "10", "-w", "1", "-y", "2", "-z", "1"),
        )
        over.set()
        times, after = await bystander, resident(proxy.pid)
        most = times[len(times) * 99 // 100]
        print(f"closed: nothing sent {nothing:.0f} s, half a head {half_head:.0f} s, a head dripped {dripped_head:.0f} s, "
              f"half a body {half_body:.0f} s, a reader that reads nothing {max(stuck):.0f} s")
        print(f"others: {len(times)} hits, 99 of 100 within {most * 1000:.0f} ms, the slowest {times[-1] * 1000:.0f} ms; resident {before:.0f} -> {after:.0f} MiB")
        for what, seconds in (("nothing", nothing), ("half", half_head), ("dripped", dripped_head)):
            check(70 < seconds < 85, "a head's limit is 75 s;", what, seconds)
        check(28 < half_body < 40, "a body's limit is 30 s:", half_body)
        check(most < 1 and times[-1] < 10, "others waited", most, times[-1])
        check(after < before + 100, "memory", before, after)
        check(55 < max(stuck) < 75, "a reader's limit is 60 s:", stuck)
        check(await proxy.stop() == 0, "a clean end")


run(part)
