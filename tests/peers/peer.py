"""A Python program of the farm, driven by the tests.

Reads one JSON object a line from stdin, {"do": NAME, …arguments}, does it, and answers with one line, {"ok": …}
or {"error": …}. Values travel as Python source, bodies in hexadecimal. It speaks to the server only with what the
farm's own programs use: requests, pickle, json and aio_pika.
"""

import base64
import hashlib
import inspect
import json
import pickle
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import requests

import campaigns
from broker import Broker
from values import evaluate, show

PICKLE = {"content-type": "application/octet-stream"}


def answer_of(response):
    """An HTTP answer, its body decoded as its Content-Type says."""
    pickled = response.headers.get("content-type", "").startswith("application/octet-stream")
    if response.request.method == "HEAD" or not response.content:
        value = None
    else:
        value = pickle.loads(response.content) if pickled else response.json()
    return {
        "status": response.status_code,
        "headers": {name.lower(): text for name, text in response.headers.items()},
        "value": show(value),
        "length": len(response.content),
    }


class Peer:
    """What the tests can ask for, one method each."""

    def __init__(self):
        self.broker = Broker()
        self.broker_calls = dict(inspect.getmembers(self.broker, inspect.iscoroutinefunction))

    def show(self, value):
        return show(evaluate(value))

    def dumps(self, value, protocol):
        return pickle.dumps(evaluate(value), protocol=protocol).hex()

    def loads(self, data):
        return show(pickle.loads(bytes.fromhex(data)))

    def json_loads(self, data):
        return show(json.loads(bytes.fromhex(data)))

    def get(self, url, uuid, **tls):
        """A worker fetches its message."""
        return answer_of(requests.get(url, params={"bufferUUID": uuid}, timeout=60, **tls))

    def wait_for(self, url, api, uuid, wait, message):
        """A worker waits for its message, which the communication interface leaves a moment later."""
        with ThreadPoolExecutor() as pool:
            parameters = {"bufferUUID": uuid, "wait": wait}
            waiting = pool.submit(requests.get, url, params=parameters, timeout=wait + 10)
            order = {"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": uuid, "BUFFER_MSG": evaluate(message)}}
            requests.post(api, json=order, timeout=60).raise_for_status()
            return answer_of(waiting.result())

    def post_pickle(self, url, value, protocol, **tls):
        data = pickle.dumps(evaluate(value), protocol=protocol)
        return answer_of(requests.post(url, data=data, headers=PICKLE, timeout=60, **tls))

    def post_with_digest(self, url, value, protocol, wrong):
        """A worker posts a frame and says what its bytes are; if `wrong`, it is mistaken."""
        data = pickle.dumps(evaluate(value), protocol=protocol)
        digest = hashlib.sha512(b"" if wrong else data).digest()
        headers = {**PICKLE, "Content-Digest": f"sha-512=:{base64.b64encode(digest).decode()}:"}
        return answer_of(requests.post(url, data=data, headers=headers, timeout=60))

    def post_with_key(self, url, value, protocol, key):
        """A worker posts a message in a request that it may repeat."""
        data = pickle.dumps(evaluate(value), protocol=protocol)
        return answer_of(requests.post(url, data=data, headers={**PICKLE, "Idempotency-Key": key}, timeout=60))

    def post_json(self, url, value, **tls):
        return answer_of(requests.post(url, json=evaluate(value), timeout=60, **tls))

    def post_size(self, url, size, chunked):
        """Posts a body of `size` bytes, its length declared, or in chunks."""

        def chunks():
            for start in range(0, size, 65536):
                yield bytes(min(65536, size - start))

        data = chunks() if chunked else bytes(size)
        return answer_of(requests.post(url, data=data, headers=PICKLE, timeout=60))

    def __getattr__(self, name):
        """Everything else is a campaign, or a call of the broker's."""
        if name in campaigns.ALL:
            return campaigns.ALL[name]
        call = self.broker_calls[name]
        return lambda **arguments: self.broker.run(call(**arguments))


def main():
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": getattr(peer, request.pop("do"))(**request)}
        except Exception:  # noqa: BLE001: the test that asked reports it
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
