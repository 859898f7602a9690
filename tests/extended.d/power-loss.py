"""Power loss: the store is on its own file system, whose device is copied while the program is stopped.

The device has only flushed data (`commit=60`: the file system does not flush by itself in that time). The copy must have
every record that a client received.
"""

import random
import shutil

from support import *

ROUNDS = 8


async def round(folder, upstream, number):
    image, copy, mount = (os.path.join(folder, name) for name in ("disk", "copy", "mount"))
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    await command("mkfs.ext4", "-q", "-F", image)
    os.makedirs(mount, exist_ok=True)
    await command("mount", "-o", "loop,commit=60", image, mount)
    seen = []
    try:
        async with Proxy(mount, upstream) as proxy:
            stopped = time.monotonic() + random.uniform(0.2, 2.5)

            async def power_fails():
                await asyncio.sleep(stopped - time.monotonic())
                proxy.signal(signal.SIGSTOP)
                # Responses on their way to the clients count as received.
                await asyncio.sleep(0.3)
                shown = len(seen)
                shutil.copyfile(image, copy)
                proxy.signal(signal.SIGKILL)
                return shown

            shown, _ = await asyncio.gather(power_fails(), load(proxy, f"power-{number}", 16, seen))
    finally:
        await command("umount", mount)
    await command("mount", "-o", "loop", copy, mount)
    try:
        upstream.up = False
        async with Proxy(mount, upstream) as proxy:
            check(not any("corrupt" in name for name in os.listdir(mount)), os.listdir(mount))
            await all_hits(proxy, seen[:shown])
            await proxy.stop()
        sound(proxy.path)
    finally:
        upstream.up = True
        await command("umount", mount)
    return shown


async def part(folder):
    async with Upstream() as upstream:
        shown = [await round(folder, upstream, number) for number in range(ROUNDS)]
    print(f"received before the power loss: {shown}, all stored afterwards")
    check(sum(shown) > 100, "too few records were received")


run(part)
