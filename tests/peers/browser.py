"""Drives Debian's Chromium for the tests: one JSON object per line in each direction, as peer.py does.

One browser serves all tests of a process; each page has a context of its own.
"""

import itertools
import json
import sys
import traceback

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
# Chromium's sandbox does not start as root
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
# of a click on what is not there; tests wait for facts before they click
TIMEOUT_MS = 30_000

numbers = itertools.count(1)
pages = {}


def open_page(browser, url, scheme, width):
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        reduced_motion="reduce",
        ignore_https_errors=True,
    )
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.requests, page.errors = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(url)
    number = next(numbers)
    pages[number] = page
    return number


def button(page, name):
    page.get_by_role("button", name=name).first.click()


def axe(page):
    found = Axe().run(page).response["violations"]
    return [
        [violation["id"], violation["help"], [node["html"] for node in violation["nodes"]]]
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


ACTIONS = {
    "text": lambda page: page.inner_text("body"),
    "evaluate": lambda page, script: page.evaluate(script),
    "button": button,
    "fill": lambda page, label, text: page.get_by_label(label).fill(text),
    "press": lambda page, key: page.keyboard.press(key),
    "axe": axe,
    "log": lambda page: {"requests": page.requests, "errors": page.errors},
    "close": lambda page: page.context.close(),
}


def answer(browser, asked):
    what = asked.pop("do")
    if what == "open":
        return open_page(browser, **asked)
    number = asked.pop("page")
    page = pages.pop(number) if what == "close" else pages[number]
    return ACTIONS[what](page, **asked)


def main():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for line in sys.stdin:
            try:
                result = {"ok": answer(browser, json.loads(line))}
            except Exception:
                result = {"error": traceback.format_exc()}
            print(json.dumps(result), flush=True)
        browser.close()


main()
