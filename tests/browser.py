"""A real Chromium without a window, driven through a pipe by the DevTools protocol."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One page of a size; ``scale`` is device pixels for each of its own."""

    def __init__(
        self, folder: Path, page: Path, width: int, height: int, *, scale: int = 1
    ) -> None:
        assert CHROMIUM is not None
        to_read, write = os.pipe()
        read, to_write = os.pipe()

        def connect() -> None:  # Chromium reads from 3 and writes to 4
            os.dup2(to_read, 8), os.dup2(to_write, 9)
            os.dup2(8, 3), os.dup2(9, 4)

        self._process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
                f"--user-data-dir={folder}",
            ],
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            close_fds=False,
        )
        os.close(to_read), os.close(to_write)
        self._write, self._read = os.fdopen(write, "wb", 0), os.fdopen(read, "rb")
        self._calls, self._session = 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.call("Page.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600},
        )
        self.call("Page.navigate", url=page.as_uri())
        self.run(
            "new Promise((done) => document.readyState === 'complete' ? done() :"
            " addEventListener('load', () => done()))"
        )

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._write.close(), self._read.close()

    def call(self, method: str, **params: Any) -> Any:
        """Do it and return what it gives."""
        self._calls += 1
        message: dict[str, Any] = {"id": self._calls, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self) -> bytes:
        data = bytearray()
        while byte := self._read.read(1):
            if byte == b"\0":
                return bytes(data)
            data += byte
        raise EOFError("the browser ended")

    def run(self, script: str) -> Any:
        """The value of an expression, in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int = 0) -> None:
        """A key, as a keyboard sends it."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text
            )

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """With the left button of a mouse."""
        for kind, (x, y) in (
            ("mousePressed", start),
            ("mouseMoved", end),
            ("mouseReleased", end),
        ):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self) -> npt.NDArray[np.uint8]:
        """[H, W, 3]."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
