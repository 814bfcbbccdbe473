"""`python -m gpuspawner.service`: the service until SIGTERM, and where a Hub has started it, until that Hub ends.

A Hub that is killed leaves its services behind, and the next one starts new ones: two would then do the same work.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Until the loop runs, whatever ends it ends it at once. The imports take a moment, and a Hub that is stopped right
    # after its start would wait half a minute for a service that has missed its signal.
    for early in (signal.SIGTERM, signal.SIGINT):
        signal.signal(early, signal.SIG_DFL)

import asyncio
import logging
import os
import sys
from collections.abc import Mapping

from gpuspawner.dockerd import Engine
from gpuspawner.errors import ConfigError
from gpuspawner.extensions import Extensions
from gpuspawner.hubapi import HubApi
from gpuspawner.notices import FileNotices
from gpuspawner.service.settings import Settings
from gpuspawner.service.watch import LOG, Watch

PARENT_SECONDS = 0.5


def main(environ: Mapping[str, str]) -> None:
    """Run until told to end. Exit status 1: the environment says too little, or what cannot be read."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="[%(levelname).1s %(asctime)s.%(msecs)03d %(name)s] %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    try:
        settings = Settings.of(environ)
    except ConfigError as error:
        sys.exit(f"gpuspawner.service does not start: {error}")
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    engine = Engine(threads=2)
    hub = HubApi(settings.api_url, settings.api_token)
    watch = Watch(
        engine.leased,
        hub.stop,
        Extensions(settings.state),
        FileNotices(settings.state),
        settings.policy,
        settings.hub,
    )
    LOG.info(
        "Watching the time limits of the Hub %r every %d s (process %d)",
        settings.hub,
        settings.look_seconds,
        os.getpid(),
    )
    tasks = [asyncio.ensure_future(watch.run(settings.look_seconds))]
    if settings.hub_process:
        tasks.append(asyncio.ensure_future(_until_orphaned(settings.hub_process, ended)))
    await ended.wait()
    for task in tasks:
        task.cancel()
    LOG.info("The watch ends (process %d)", os.getpid())
    logging.shutdown()
    # A call that the engine does not answer holds its thread, and Python would wait for that. Nothing is lost: state
    # files change by a rename, and a stop that has begun is the Hub's.
    os._exit(0)


async def _until_orphaned(parent: int, ended: asyncio.Event) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110 - another process is waited for: nobody could set an Event
        await asyncio.sleep(PARENT_SECONDS)
    ended.set()


if __name__ == "__main__":
    main(os.environ)
