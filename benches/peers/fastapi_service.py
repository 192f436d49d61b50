"""The service's contract in Python: FastAPI, uvicorn with uvloop and httptools, aio_pika. All is kept in memory, and a
stop loses it.

One process, as the product is one. Both of its servers are one here. With an AMQP URL as its argument it publishes
frames, with up to 1,000 unconfirmed at once, and consumes what is to be buffered.
"""

import asyncio
import collections
import io
import json
import pickle
import socket
import sys
import time
import uuid

import aio_pika
import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response

OCTET_STREAM = "application/octet-stream"
WINDOW = 1000

app = FastAPI(openapi_url=None)
buffered = {}
outbox = collections.deque()
in_flight = 0
arrived = asyncio.Event()


class DataOnly(pickle.Unpickler):
    """Workers are strangers: no class and no function is looked up for them."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def decode(kind, body):
    if kind is not None and kind.split(";")[0].strip().lower() == OCTET_STREAM:
        return DataOnly(io.BytesIO(body)).load()
    return json.loads(body)


def answer(content, status=200):
    return Response(json.dumps(content), status, media_type="application/json")


def failure(error):
    return answer({"STATUS": "FAILED", "ERROR": str(error)}, 400)


def as_pickle(content, status=200):
    return Response(pickle.dumps(content), status, media_type=OCTET_STREAM)


def read_file(path):
    with open(path, "rb") as file:
        return file.read()


@app.get("/")
async def get_data_from_server(request: Request):
    buffer_uuid = request.query_params.get("bufferUUID")
    if buffer_uuid is None:
        return as_pickle({"message": "bufferUUID is missing"}, 400)
    try:
        message = buffered.pop(buffer_uuid)
    except KeyError:
        return as_pickle({"message": "No Buffer Message"}, 400)
    data = message.get("DATA") if isinstance(message, dict) else None
    if isinstance(data, dict) and data.get("META_DATA") == "EXTRACT_BLEND_FILE_FROM_PATH":
        try:
            data["BINARY_BLEND_FILE"] = await asyncio.to_thread(read_file, data["BINARY_BLEND_FILE"])
        except OSError as error:
            buffered.setdefault(buffer_uuid, message)
            return as_pickle({"message": error.strerror}, 400)
    return as_pickle(message)


@app.post("/")
async def send_data_to_server(request: Request):
    try:
        message = decode(request.headers.get("content-type"), await request.body())
        user, main = message["USER_ID"], message["MAIN_DATA"]
        kind = main["TYPE"]
        data = main["DATA"]
    except (pickle.UnpicklingError, ValueError, KeyError, TypeError, EOFError) as error:
        return failure(error)
    if kind in ("FRAME_RENDERED", "RENDER_COMPLETED"):
        inner = {"TYPE": kind, "DATA": data, "USER_ID": user}
        if kind == "RENDER_COMPLETED":
            inner["MESSAGE"] = data
        outbox.append({"TYPE": "MESSAGE_FOR_USER_MANAGER", "DATA": {"TYPE": "USER_MESSAGE", "DATA": inner}})
        arrived.set()
    return answer({"DATA": "RECEIVED", "TIME": time.time()})


def buffer(message):
    if message["TYPE"] != "ADD_BUFFER_MSG":
        raise ValueError("Unknown message type")
    data = message["DATA"]
    buffered[data["BUFFER_UUID"]] = data["BUFFER_MSG"]


@app.post("/CommunicationInterface/AddBufferMsg")
async def add_buffer_msg(request: Request):
    try:
        buffer(decode(request.headers.get("content-type"), await request.body()))
    except (pickle.UnpicklingError, ValueError, KeyError, TypeError, EOFError) as error:
        return failure(error)
    return answer({"STATUS": "SUCCESS"})


@app.get("/readyz")
async def readyz():
    return answer({"ready": True, "outbox": {"messages": len(outbox) + in_flight}})


async def forward(exchange):
    """Publishes what is in the outbox; a confirm comes to each publication, not to one after another."""
    global in_flight
    window = asyncio.Semaphore(WINDOW)
    tasks = set()

    async def publish(message):
        global in_flight
        if message["DATA"]["DATA"]["TYPE"] == "FRAME_RENDERED":
            body, headers = pickle.dumps(message), {"DATA_FORMAT": "BYTES"}
        else:
            body, headers = json.dumps(message).encode(), {}
        persistent = aio_pika.DeliveryMode.PERSISTENT
        publication = aio_pika.Message(body, headers=headers, delivery_mode=persistent, message_id=str(uuid.uuid4()))
        try:
            await exchange.publish(publication, "CIE_USER_HTTP_SERVER", mandatory=True)
        except aio_pika.exceptions.AMQPError:
            outbox.appendleft(message)
        in_flight -= 1
        window.release()

    while True:
        while not outbox:
            arrived.clear()
            await arrived.wait()
        await window.acquire()
        in_flight += 1
        task = asyncio.create_task(publish(outbox.popleft()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def consume(channel):
    exchange = await channel.declare_exchange("USER_HTTP_SERVER_EXCHANGE", aio_pika.ExchangeType.DIRECT)
    queue = await channel.declare_queue("UHTTPSE_CI", durable=True)
    await queue.bind(exchange, "UHTTPSE_CI")

    async def take(delivery):
        async with delivery.process(ignore_processed=True):
            pickled = delivery.headers.get("DATA_FORMAT") == "BYTES"
            buffer(decode(OCTET_STREAM if pickled else None, delivery.body))

    await queue.consume(take)


async def main():
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    tasks = []
    if len(sys.argv) > 1:
        connection = await aio_pika.connect_robust(sys.argv[1])
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.declare_exchange("COMMUNICATION_INTERFACE_EXCHANGE", aio_pika.ExchangeType.DIRECT)
        tasks.append(asyncio.create_task(forward(exchange)))
        await consume(await connection.channel())
    host, port = listener.getsockname()
    config = uvicorn.Config(app, http="httptools", access_log=False, log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    address = f"http://{host}:{port}"
    print(f"worker server listening on {address}\nAPI server listening on {address}", file=sys.stderr, flush=True)
    await serving


if __name__ == "__main__":
    uvloop.run(main())
