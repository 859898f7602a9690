"""A full disk, failing writes and flushes, a read-only folder: responses throughout, few retries, recovery without a
restart."""

from support import *


async def degraded_and_healed(proxy, upstream, name, fault, may_fit=0.0):
    """Runs load before, during and after the fault.

    The share `may_fit` of the responses may be stored during the fault: on a full disk, a small write may still fit into
    the blocks that the write-ahead log has.
    """
    seen, during, after = [], [], []
    await load(proxy, name + "-before", 4, seen, lambda: len(seen) >= 40)
    check(all(stored for *_, stored in seen), "stored before the fault")
    async with fault:
        deadline = time.monotonic() + 60
        errors = await proxy.store_errors()

        async def refuses():
            end = time.monotonic() + 0.5
            await load(proxy, f"{name}-until-{time.monotonic()}", 4, during, lambda: time.monotonic() > end)
            return await proxy.readiness() == 503

        await eventually("readiness 503", refuses, 60)
        # While the fault is known, no client waits for the disk, and a write is tried about once a second.
        start, count = time.monotonic(), len(during)
        errors_before = await proxy.store_errors()
        check(errors_before > errors, "counted:", errors, errors_before)
        await load(proxy, name + "-during", 8, during, lambda: time.monotonic() > start + 6)
        attempts = await proxy.store_errors() - errors_before
        responses = len(during) - count
        check(2 <= attempts <= (16 if may_fit else 10), "attempts in 6 s:", attempts)
        check(responses > 100, "responses in 6 s:", responses)
        stored = sum(stored for *_, stored in during[count:])
        check(stored <= may_fit * responses, "counts as stored meanwhile:", stored, "of", responses)
        # A write that fits makes the store ready until the next one fails.
        await eventually("still not ready", refuses, 10 if may_fit else 1)
        await all_hits(proxy, seen)
        check(time.monotonic() < deadline + 60, "in time")

    async def ready():
        return await proxy.readiness() == 200

    await eventually("ready again", ready)
    await load(proxy, name + "-after", 4, after, lambda: len(after) >= 40)
    check(all(stored for *_, stored in after), "stored after the fault")
    kept = seen + [key for key in during if key[2]] + after
    await all_hits(proxy, kept)
    print(f"{name}: {responses} responses and {attempts} attempts in 6 s of the fault")
    return kept


@contextlib.asynccontextmanager
async def full_until_grown(mount):
    yield
    await command("mount", "-o", "remount,size=64m", mount)


async def on_a_small_disk(folder, upstream):
    mount = os.path.join(folder, "small")
    os.mkdir(mount)
    await command("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", mount)
    try:
        async with Proxy(mount, upstream, REFRAIN_STORE__MEMORY_BYTES="0") as proxy:
            kept = await degraded_and_healed(proxy, upstream, "tmpfs", full_until_grown(mount), may_fit=0.1)
            check(await proxy.stop() == 0, "a clean end")
        sound(proxy.path)
        async with Proxy(mount, upstream) as proxy:
            await all_hits(proxy, kept)
    finally:
        await command("umount", mount)


async def injected(folder, upstream, name, *injections):
    place = os.path.join(folder, name)
    os.mkdir(place)
    async with Proxy(place, upstream, REFRAIN_STORE__MEMORY_BYTES="0") as proxy:
        kept = await degraded_and_healed(proxy, upstream, name, tracing(proxy, *injections))
        # After kill -9 the file has only flushed data.
        await proxy.kill()
    sound(proxy.path)
    async with Proxy(place, upstream) as proxy:
        await all_hits(proxy, kept)


async def read_only(folder, upstream):
    mount = os.path.join(folder, "read-only")
    os.mkdir(mount)
    await command("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mount)
    try:
        async with Proxy(mount, upstream) as proxy:
            await proxy.stop()
        await command("mount", "-o", "remount,ro", mount)
        proxy = Proxy(mount, upstream)
        check(not await proxy.start(), "it must not start on a read-only file system")
        check(await proxy.ended() == 1 and len(proxy.log) == 1, proxy.log)
        print("read-only:", proxy.log[0])
    finally:
        await command("umount", mount)


async def part(folder):
    async with Upstream() as upstream:
        await on_a_small_disk(folder, upstream)
        await injected(folder, upstream, "ENOSPC", "pwrite64:error=ENOSPC:when=5+")
        await injected(folder, upstream, "EIO", "pwrite64:error=EIO:when=3+")
        await injected(folder, upstream, "failing-flush", "fsync,fdatasync:error=EIO:when=2+")
        await read_only(folder, upstream)


run(part)
