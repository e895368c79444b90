"""`axon serve`."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from service.adapters.clock import SystemClock
from service.adapters.redis_dataset_uses import RedisDatasetUses
from service.adapters.redis_jobs import connect
from service.adapters.redis_webhooks import RedisWebhookStore
from service.bootstrap.api import Api, build_engine
from service.bootstrap.queue import build_queue, redis_url
from service.bootstrap.running import before
from service.core.ports import JobQueue
from service.listening import Report, allow_connections, report
from service.settings import Settings

_THREADS = 64


async def serve(settings: Settings, stop: asyncio.Event, on_ready: Callable[[Report], None]) -> None:
    """`axon serve`: the API alone, over a queue that runs elsewhere."""
    allow_connections(settings.max_connections)
    if settings.store_url is not None:
        # A bucket that hangs holds a thread for each call, and bodies are inflated in others of the same pool.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="calls"))
    queue = build_queue(settings, redis_url(settings))
    webhooks = RedisWebhookStore(connect(redis_url(settings))) if settings.webhook_hosts else None
    uses = RedisDatasetUses(connect(redis_url(settings)))
    api = Api(settings, queue, build_engine(settings), webhooks, uses)
    sending = None if webhooks is None else asyncio.create_task(_send_webhooks(settings, queue, webhooks, stop))
    try:
        endpoints = await api.start()
        if await before(stop, api.wait_ready()):
            # What is there by now stays. Left to the collector, JAX's objects cost every request 0.1 s now and then.
            gc.collect()
            gc.freeze()
            on_ready(report(settings, endpoints, {"api": os.getpid()}))
            await stop.wait()
    finally:
        ended = await api.stop()
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        await uses.close()
        await queue.close()
    if not ended:
        # A thread that compiles would be ended in the middle of XLA, which aborts the process.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


async def _send_webhooks(settings: Settings, queue: JobQueue, store: RedisWebhookStore, stop: asyncio.Event) -> None:
    from service.adapters.webhook_sender import HttpWebhookSender
    from service.core.webhook_delivery import WebhookDelivery

    sender = HttpWebhookSender()
    try:
        await WebhookDelivery(queue, store, sender, SystemClock(), settings.webhook_hosts).run(stop)
    finally:
        await sender.close()
        await store.close()
