"""The inputs that tests/fuzz_corpus.rs replays: one a line in fuzz/corpus/TARGET.txt, escaped as in a bytes literal.

    python3 fuzz/corpus.py unpack           writes each to a file in fuzz/corpus/TARGET, where the fuzzers look
    python3 fuzz/corpus.py pack TARGET DIR  makes TARGET.txt of the files in DIR

Keep TARGET.txt below 150 inputs and 100 KB: those of the fewest bytes that reach the most code.
"""

import sys
from hashlib import sha1
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def unpack():
    for packed in sorted(CORPUS.glob("*.txt")):
        folder = packed.with_suffix("")
        folder.mkdir(exist_ok=True)
        for line in packed.read_text("ascii").splitlines():
            data = line.encode().decode("unicode_escape").encode("latin-1")
            (folder / sha1(data).hexdigest()).write_bytes(data)


def pack(target, folder):
    inputs = sorted({path.read_bytes() for path in Path(folder).iterdir()}, key=lambda data: (len(data), data))
    # After a quote of the other kind, repr puts the whole in single quotes, and escapes these alone.
    lines = [repr(b'"' + data)[3:-1].replace(r"\'", "'") for data in inputs]
    (CORPUS / f"{target}.txt").write_text("".join(f"{line}\n" for line in lines), "ascii")


if __name__ == "__main__":
    {"unpack": unpack, "pack": pack}[sys.argv[1]](*sys.argv[2:])
