"""The power fails: the store lies on a file system of its own, whose device is copied while the program stands still.

Only what was flushed is on the device (`commit=60`: the file system does not flush by itself meanwhile). On the copy
everything that a client was shown has to be there.
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
                # What is on its way to the clients was shown too.
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
    print(f"shown before the power failed: {shown}, all there afterwards")
    check(sum(shown) > 100, "too little was shown to mean anything")


run(part)
