"""Values of every type that the contract carries: shown, compared and made up."""

import math
import random
import string
import sys

sys.set_int_max_str_digits(0)

NAMES = {"nan": math.nan, "inf": math.inf}


def evaluate(source):
    """The value that a test writes as Python source."""
    return eval(source, dict(NAMES))  # noqa: S307: the source is a test's own


def show(value):
    """Python source of a value, equal for two values exactly when types, order and contents are equal.

    Dicts keep their order; sets, which have none, are sorted.
    """
    kind = type(value)
    if kind is dict:
        return "{" + ", ".join(f"{show(key)}: {show(item)}" for key, item in value.items()) + "}"
    if kind is list:
        return "[" + ", ".join(map(show, value)) + "]"
    if kind is tuple:
        return "(" + ", ".join(map(show, value)) + (",)" if len(value) == 1 else ")")
    if kind in (set, frozenset) and value:
        items = "{" + ", ".join(sorted(map(show, value))) + "}"
        return items if kind is set else f"frozenset({items})"
    return repr(value)


class Maker:
    """Makes up values; the same ones for the same seed."""

    def __init__(self, seed, json_only):
        self.random = random.Random(seed)
        self.json_only = json_only
        self.shared = []

    def value(self):
        """A fresh value, in which some containers may occur more than once."""
        self.shared = []
        return self.any(depth=self.random.choice([1, 2, 3, 5]))

    def any(self, depth):
        pick = self.random.random()
        if depth > 0 and pick < 0.5:
            return self.container(depth)
        if self.shared and pick < 0.6:
            return self.random.choice(self.shared)
        return self.scalar()

    def container(self, depth):
        size = self.random.choice([0, 1, 2, 3, 4, 7])
        kinds = ["list", "dict"] if self.json_only else ["list", "dict", "tuple", "set", "frozenset"]
        kind = self.random.choice(kinds)
        if kind == "dict":
            made = {self.key(): self.any(depth - 1) for _ in range(size)}
        elif kind in ("set", "frozenset"):
            items = [self.key() for _ in range(size)]
            made = set(items) if kind == "set" else frozenset(items)
        else:
            items = [self.any(depth - 1) for _ in range(size)]
            made = items if kind == "list" else tuple(items)
        self.shared.append(made)
        return made

    def key(self):
        """Something that a dict takes as a key: for JSON a str, else anything hashable."""
        if self.json_only or self.random.random() < 0.6:
            return self.text()
        hashable = [self.integer, self.real, self.data, self.pair, lambda: None, lambda: True]
        return self.random.choice(hashable)()

    def pair(self):
        return (self.text(), self.integer())

    def scalar(self):
        kinds = [self.integer, self.real, self.text, lambda: None, lambda: True, lambda: False]
        if not self.json_only:
            kinds += [self.data, lambda: bytearray(self.data())]
        return self.random.choice(kinds)()

    def integer(self):
        bits = self.random.choice([1, 7, 8, 15, 16, 31, 32, 53, 63, 64, 65, 200, 2040, 2100])
        near = (1 << bits) + self.random.choice([-1, 0, 1])
        return self.random.choice([0, 1, -1, near, -near, self.random.getrandbits(bits)])

    def real(self):
        edges = [0.0, -0.0, 0.1, 1e308, -1e308, 5e-324, 1e16, 123456789.125, 1 / 3]
        if not self.json_only:
            edges += [math.inf, -math.inf, math.nan]
        return self.random.choice([*edges, self.random.uniform(-1e9, 1e9)])

    def text(self):
        alphabets = [string.ascii_letters, string.printable, "äß€中\u2028\x7f", "\0\"\\/\n😀é"]
        alphabet = self.random.choice(alphabets)
        size = self.random.choice([0, 1, 5, 20, 255, 256, 300])
        return "".join(self.random.choices(alphabet, k=size))

    def data(self):
        return self.random.randbytes(self.random.choice([0, 1, 10, 255, 256, 1000]))
