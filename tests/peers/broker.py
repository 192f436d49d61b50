"""The farm's AMQP side, as its programs write it with aio_pika."""

import asyncio
import json
import pickle
import threading

import aio_pika

from real_farm import RealFarm
from values import show

OWN_EXCHANGE = "USER_HTTP_SERVER_EXCHANGE"
OWN_QUEUE = "UHTTPSE_CI"
PEER_EXCHANGE = "COMMUNICATION_INTERFACE_EXCHANGE"
PEER_KEY = "CIE_USER_HTTP_SERVER"
PEER_QUEUE = "CI_FROM_USER_HTTP_SERVER"


class Broker(RealFarm):
    """Connections to brokers, by URL, on an event loop of their own so that heartbeats go on between calls."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.managers = {}
        self.orders = {}
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=60)

    async def publish(self, url, data, pickled):
        """The communication interface leaves a message; `pickled` may be "bytes" for a header that is a byte array."""
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange(OWN_EXCHANGE, aio_pika.ExchangeType.DIRECT)
            headers = {"DATA_FORMAT": bytearray(b"BYTES") if pickled == "bytes" else "BYTES"} if pickled else {}
            message = aio_pika.Message(bytes.fromhex(data), headers=headers)
            await exchange.publish(message, routing_key=OWN_QUEUE)

    async def orders_start(self, url, pause, size):
        """The communication interface begins to leave messages, one after the other and each until it is confirmed."""
        stop = asyncio.Event()
        self.orders[url] = (stop, asyncio.create_task(self._leave_orders(url, stop, pause, "x" * size)))

    async def orders_stop(self, url):
        """Ends that, and says how many have been confirmed."""
        stop, task = self.orders.pop(url)
        stop.set()
        return await task

    async def _leave_orders(self, url, stop, pause, filling):
        number, connection = 0, None
        while not stop.is_set():
            data = {"BUFFER_UUID": f"order-{number}", "BUFFER_MSG": f"the message of order-{number}.{filling}"}
            body = json.dumps({"TYPE": "ADD_BUFFER_MSG", "DATA": data}).encode()
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            try:
                if connection is None:
                    connection = await aio_pika.connect(url)
                    exchange = await (await connection.channel()).get_exchange(OWN_EXCHANGE)
                await exchange.publish(message, routing_key=OWN_QUEUE)
                number += 1
            except aio_pika.exceptions.CONNECTION_EXCEPTIONS:
                connection = None
            await asyncio.sleep(pause)
        if connection is not None:
            await connection.close()
        return number

    async def user_manager_start(self, url, exchange_as_it_is=False, durable=False, quorum=False):
        """The communication interface, on behalf of the user manager, starts to take messages.

        With `durable`, its queue outlives its connection, which it does not do in the farm. With `quorum`, it outlives
        nodes of a cluster as well.
        """
        connection = await aio_pika.connect(url)
        channel = await connection.channel()
        if exchange_as_it_is:
            exchange = await channel.get_exchange(PEER_EXCHANGE)
        else:
            exchange = await channel.declare_exchange(PEER_EXCHANGE, aio_pika.ExchangeType.DIRECT)
        lasting = durable or quorum
        arguments = {"x-queue-type": "quorum"} if quorum else None
        queue = await channel.declare_queue(PEER_QUEUE, durable=lasting, auto_delete=not lasting, arguments=arguments)
        await queue.bind(exchange, PEER_KEY)
        received = asyncio.Queue()
        if url in self.managers:
            # Messages that arrived earlier are kept.
            _, received = self.managers[url]

        async def take(message):
            async with message.process():
                await received.put(message)

        await queue.consume(take)
        self.managers[url] = (connection, received)

    async def user_manager_next(self, url, seconds):
        """The next message; None if none arrives in time."""
        _, received = self.managers[url]
        try:
            message = await asyncio.wait_for(received.get(), seconds)
        except asyncio.TimeoutError:
            return None
        pickled = message.headers.get("DATA_FORMAT") == "BYTES"
        value = pickle.loads(message.body) if pickled else json.loads(message.body)
        return {
            "body": message.body.hex(),
            "pickled": pickled,
            "headers": sorted(message.headers),
            "value": show(value),
            "message_id": message.message_id,
            "persistent": message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT,
        }

    async def user_manager_stop(self, url):
        connection, _ = self.managers.pop(url)
        await connection.close()

    async def declare_exchange(self, url, name, **properties):
        async with await aio_pika.connect(url) as connection:
            await (await connection.channel()).declare_exchange(name, **properties)

    async def declare_queue(self, url, name, **properties):
        async with await aio_pika.connect(url) as connection:
            await (await connection.channel()).declare_queue(name, **properties)

    async def delete_queue(self, url, name):
        async with await aio_pika.connect(url) as connection:
            await (await connection.channel()).queue_delete(name)

    async def replace_exchange(self, url, name, type):
        """Replaces an exchange by one of another type before anybody else declares it, and binds the queue again."""
        async with await aio_pika.connect(url) as connection:
            while True:
                channel = await connection.channel()
                await channel.exchange_delete(name)
                try:
                    exchange = await channel.declare_exchange(name, type)
                    break
                except aio_pika.exceptions.ChannelPreconditionFailed:
                    continue
            queue = await channel.get_queue(PEER_QUEUE)
            await queue.bind(exchange, PEER_KEY)

    async def exchange_is(self, url, name, **properties):
        """Whether an exchange exists with just these properties."""
        return await self._matches(url, lambda channel: channel.declare_exchange(name, **properties), name, "exchange")

    async def queue_is(self, url, name, **properties):
        """Whether a queue exists with just these properties."""
        return await self._matches(url, lambda channel: channel.declare_queue(name, **properties), name, "queue")

    async def queue_state(self, url, name):
        """How many messages wait in a queue and how many consumers it has; None where there is no such queue."""
        async with await aio_pika.connect(url) as connection:
            try:
                queue = await (await connection.channel()).declare_queue(name, passive=True)
            except aio_pika.exceptions.ChannelNotFoundEntity:
                return None
            result = queue.declaration_result
            return {"messages": result.message_count, "consumers": result.consumer_count}

    async def _matches(self, url, declare, name, kind):
        async with await aio_pika.connect(url) as connection:
            try:
                passive = await connection.channel()
                if kind == "exchange":
                    await passive.get_exchange(name)
                else:
                    await passive.get_queue(name)
                await declare(await connection.channel())
            except (aio_pika.exceptions.ChannelNotFoundEntity, aio_pika.exceptions.ChannelPreconditionFailed):
                return False
            return True
