"""Renders frames with Blender."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ..errors import ClientError

_LOG_TAIL_LINES = 20


def check(blender: str) -> None:
    """A message is delivered once, so a worker must know that it can render before it fetches."""
    try:
        subprocess.run([blender, "--version"], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ClientError(
            f"no Blender: {error}; install it (on Debian, apt-get install blender), "
            "or give --blender PATH or --images DIR"
        ) from error


def render(blender: str, scene: Path, folder: Path, frame: int) -> Path:
    """Renders one frame; an image of an earlier run is used again. It has its final name only when it is complete.
    Scripts in the .blend file do not run."""
    image, log = folder / f"frame_{frame:04}.png", folder / f"frame_{frame:04}.log"
    if image.exists():
        return image
    rendered = folder / f"rendering_{frame:04}.png"
    rendered.unlink(missing_ok=True)
    command = [blender, "--background", "--disable-autoexec", str(scene)]
    command += ["--render-output", str(folder / "rendering_####"), "--render-format", "PNG", "--use-extension", "1"]
    command += ["--render-frame", str(frame)]
    with open(log, "wb") as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode or not rendered.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        raise ClientError(f"frame {frame}: Blender exited with {done.returncode}; the end of {log}:\n{tail}")
    return rendered.replace(image)
