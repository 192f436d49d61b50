"""The farm's two services behind the exchange, as they are: the communication interface forwards to a queue of the user
manager's and drops what is unroutable. Each looks for a lost broker on a cycle of its own."""

import asyncio
import pickle

import aio_pika

PEER_EXCHANGE = "COMMUNICATION_INTERFACE_EXCHANGE"
PEER_KEY = "CIE_USER_HTTP_SERVER"
PEER_QUEUE = "CI_FROM_USER_HTTP_SERVER"
MANAGER_EXCHANGE = "USER_MANAGER_EXCHANGE"
MANAGER_QUEUE = "UME_COMMUNICATION_INTERFACE"


class Service:
    """A program that serves on one connection after the other."""

    def __init__(self, url, cycle, serve):
        self.connected = asyncio.Event()
        self.task = asyncio.create_task(self._run(url, cycle, serve))

    async def _run(self, url, cycle, serve):
        while True:
            try:
                async with await aio_pika.connect(url) as connection:
                    lost = asyncio.Event()
                    connection.close_callbacks.add(lambda *_: lost.set())
                    await serve(connection)
                    self.connected.set()
                    await lost.wait()
            except (*aio_pika.exceptions.CONNECTION_EXCEPTIONS, aio_pika.exceptions.AMQPError, OSError):
                pass
            self.connected.clear()
            await asyncio.sleep(cycle)

    async def stop(self):
        self.task.cancel()
        await asyncio.wait([self.task])


class RealFarm:
    """What the tests can ask of it."""

    def __init__(self):
        self.received = {}
        self.services = {}

    async def real_farm_start(self, url, interface_cycle, manager_cycle):
        self.received[url] = asyncio.Queue()
        self.services[url, "interface"] = Service(url, interface_cycle, self._forward)
        await self.real_manager_start(url, manager_cycle)
        await self.services[url, "interface"].connected.wait()

    async def real_manager_start(self, url, manager_cycle):
        received = self.received[url]

        async def take(connection):
            channel = await connection.channel()
            exchange = await channel.declare_exchange(MANAGER_EXCHANGE, aio_pika.ExchangeType.DIRECT)
            queue = await channel.declare_queue(MANAGER_QUEUE, auto_delete=True)
            await queue.bind(exchange, MANAGER_QUEUE)
            await queue.consume(received.put, no_ack=True)

        self.services[url, "manager"] = Service(url, manager_cycle, take)
        await self.services[url, "manager"].connected.wait()

    async def real_manager_stop(self, url):
        await self.services.pop((url, "manager")).stop()

    async def real_farm_stop(self, url):
        for name in ["interface", "manager"]:
            await self.services.pop((url, name)).stop()

    async def real_manager_next(self, url, seconds):
        """The number of the next frame that the user manager gets, None where none comes in time."""
        try:
            message = await asyncio.wait_for(self.received[url].get(), seconds)
        except asyncio.TimeoutError:
            return None
        return pickle.loads(message.body)["DATA"]["DATA"]["DATA"]["FRAME"]

    async def _forward(self, connection):
        channel = await connection.channel()
        exchange = await channel.declare_exchange(PEER_EXCHANGE, aio_pika.ExchangeType.DIRECT)
        manager = await channel.declare_exchange(MANAGER_EXCHANGE, aio_pika.ExchangeType.DIRECT)
        queue = await channel.declare_queue(PEER_QUEUE, auto_delete=True)
        await queue.bind(exchange, PEER_KEY)

        async def forward(message):
            # whether it was returned does not matter
            await manager.publish(aio_pika.Message(message.body), routing_key=MANAGER_QUEUE)

        await queue.consume(forward, no_ack=True)
