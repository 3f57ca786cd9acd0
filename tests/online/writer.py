"""A process that adds events and prints the id of each once it is accepted: python writer.py ADDRESS PREFIX HOW_MANY"""

import asyncio
import sys

from recsys.online.store import OnlineStoreError, StoredEvent, open_online


async def write(address: str, prefix: str, how_many: int) -> None:
    """Four at a time, each under an id of its own until it is accepted."""
    store = open_online(address)
    numbers = iter(range(how_many))

    async def one_after_the_other() -> None:
        for number in numbers:
            event = StoredEvent(f"{prefix}{number}", f"u{number % 7}", f"i{number}", number, None)
            while True:
                try:
                    (new,) = await store.add_events([event])
                    break
                except OnlineStoreError:
                    await asyncio.sleep(0.02)
            print(event.event_id, int(new), flush=True)

    await asyncio.gather(*(one_after_the_other() for _ in range(4)))
    await store.close()


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], sys.argv[2], int(sys.argv[3])))
