"""Clients with kept-alive connections, as `requests` has them: they never send a request twice.

Arguments: the URLs of the worker server and of the API server. Works until the end of stdin, then prints the number of
requests and the failures as one line of JSON.
"""

import json
import pickle
import random
import sys
import threading
import time

import requests

WORKER, API = sys.argv[1:]
# The longest pause is shorter than --keep-alive: a client that sends when that ends may get no answer anyway.
PAUSES = [(0, 0.05)] * 4 + [(0.2, 3)] * 6

ended = threading.Event()
lock = threading.Lock()
result = {"requests": 0, "failures": []}


def expect(status, answer):
    with lock:
        result["requests"] += 1
    if answer.status_code != status:
        raise ValueError(f"{answer.request.method} {answer.url}: {answer.status_code} {answer.content!r}")
    return answer


def turn(session, name):
    frame = {"USER_ID": "worker", "MAIN_DATA": {"TYPE": "FRAME_RENDERED", "DATA": {"NAME": name}}}
    headers = {"Content-Type": "application/octet-stream"}
    expect(200, session.post(WORKER, data=pickle.dumps(frame), headers=headers, timeout=30))
    order = {"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": name, "BUFFER_MSG": {"NAME": name}}}
    expect(200, session.post(API + "CommunicationInterface/AddBufferMsg", json=order, timeout=30))
    got = expect(200, session.get(WORKER, params={"bufferUUID": name}, timeout=30))
    if pickle.loads(got.content) != {"NAME": name}:
        raise ValueError(f"GET {got.url}: {got.content!r}")


def work(number, pause):
    session = requests.Session()
    count = 0
    while not ended.wait(random.uniform(*pause)):
        count += 1
        try:
            turn(session, f"python-{number}-{count}")
        except (requests.RequestException, ValueError) as error:
            with lock:
                result["failures"].append(f"{time.strftime('%H:%M:%S')} {error!r}")


threads = [threading.Thread(target=work, args=client) for client in enumerate(PAUSES)]
for thread in threads:
    thread.start()
sys.stdin.read()
ended.set()
for thread in threads:
    thread.join()
print(json.dumps(result))
