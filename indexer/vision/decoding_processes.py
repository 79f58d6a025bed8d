"""Decodes images in other processes, which are ended when an image takes too long, and may crash.

A process is started for the first image and kept for the next ones. Files and pixels are handed over in shared memory,
without copies in the sockets: an image costs less than a millisecond more than in this process.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
from typing import IO, Any

import numpy as np

from indexer.errors import RejectedImage
from indexer.types import Pixels
from indexer.vision import pillow_decoder
from indexer.vision.pillow_decoder import Limits, Photo, count_pixels, too_large, unreadable

SECONDS, SECONDS_OF_MEGAPIXEL = 2.0, 0.1
"""How long an image may take: a HEIC of 12 megapixels takes 0.3 s on an idle core, an AVIF with transparency 0.4."""

START_SECONDS = 60.0
"""How long a process may take to start: 0.3 s on an idle machine."""

IDLE_SECONDS = 60.0
"""How long a process waits for the next image."""

MEMORY = 512 * 2**20
MEMORY_OF_PIXEL = 16
"""What a process may allocate, in bytes: for itself, and for each pixel that `Limits` allows (13 are needed)."""

MESSAGE_BYTES = 2**16
REQUEST = struct.Struct("<QQ")
"""Limits: bytes and pixels."""

READY = b"ready"

MAPPED = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
"""All pages are mapped at once, because all of them are read."""

COMMAND = (
    "import sys; sys.path[:] = sys.argv[2:]; from indexer.vision.decoding_processes import serve; "
    "serve(int(sys.argv[1]))"
)


class DecodingProcesses:
    """Processes that decode one image at a time each: as many as there are threads that decode."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Process] = []

    def decode(self, data: bytes, limits: Limits) -> Photo:
        """Returns an image at full size. Raises RejectedImage."""
        seconds = SECONDS + SECONDS_OF_MEGAPIXEL * min(count_pixels(data), limits.max_pixels) / 1e6
        while True:
            process, is_new = self._take()
            try:
                answer, pixels = process.ask(data, limits, seconds)
            except TimeoutError:
                process.end()
                raise unreadable(f"decoding it takes more than {seconds:.0f} seconds; save it as JPEG or PNG") from None
            except (EOFError, OSError) as error:
                process.end()
                if not is_new:  # it may have ended before, while it waited
                    continue
                raise unreadable("it cannot be decoded: the decoder ended; save it as JPEG or PNG") from error
            except BaseException:
                process.end()
                raise
            with self._lock:
                self._idle.append(process)
            return _photo(answer, pixels)

    def close(self) -> None:
        """Ends the processes that wait for images."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def _take(self) -> tuple[_Process, bool]:
        with self._lock:
            if self._idle:
                return self._idle.pop(), False
        try:
            return _Process(), True
        except OSError as error:
            raise too_large(f"no process can be started that decodes it: {error.strerror or error}") from error


class _Process:
    """A process that runs `serve`, and the socket to it."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair()
        with other:
            command = [sys.executable, "-c", COMMAND, str(other.fileno()), *sys.path]
            self._process = subprocess.Popen(  # noqa: S603 (the command is not from outside)
                command, stdin=subprocess.DEVNULL, pass_fds=[other.fileno()]
            )
        self._socket.settimeout(START_SECONDS)
        try:
            is_ready = self._socket.recv(len(READY)) == READY
        except TimeoutError:
            is_ready = False
        if not is_ready:
            self.end()
            raise OSError("it does not start")

    def ask(self, data: bytes, limits: Limits, seconds: float) -> tuple[dict[str, Any], Pixels | None]:
        """Returns the answer for an image. Raises TimeoutError, and EOFError or OSError if the process has ended."""
        self._socket.settimeout(seconds)
        with _shared_file() as file:
            file.write(data)
            file.flush()
            socket.send_fds(self._socket, [REQUEST.pack(limits.max_bytes, limits.max_pixels)], [file.fileno()])
        message, files, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 1)
        if not message:
            raise EOFError
        answer: dict[str, Any] = json.loads(message)
        if not files:
            return answer, None
        try:
            mapped = mmap.mmap(files[0], 0, flags=MAPPED, prot=mmap.PROT_READ)
        finally:
            os.close(files[0])
        return answer, np.frombuffer(mapped, np.uint8).reshape(answer["shape"])

    def end(self) -> None:
        self._socket.close()
        self._process.kill()  # without effect if it has ended
        self._process.wait()


def _photo(answer: dict[str, Any], pixels: Pixels | None) -> Photo:
    if pixels is None:
        raise RejectedImage(answer["message"], code=answer["code"])
    return Photo(pixels, answer["width"], answer["height"])


def _shared_file() -> IO[bytes]:
    """Opens a file in memory, or a temporary one, that has no name."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("image"), "w+b")
    return tempfile.TemporaryFile()


def serve(descriptor: int) -> None:
    """Answers the images of a socket, until it is closed or none comes for IDLE_SECONDS. Runs in its own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes
    warnings.simplefilter("ignore")  # Pillow warns of each damaged tag, on standard error
    with socket.socket(fileno=descriptor) as requests:
        requests.sendall(READY)
        while True:
            requests.settimeout(IDLE_SECONDS)
            try:
                message, files, _, _ = socket.recv_fds(requests, REQUEST.size, 1)
            except TimeoutError:
                return
            if not message:
                return
            requests.settimeout(None)
            with os.fdopen(files[0], "rb") as file:
                file.seek(0)
                data = file.read()
            _answer(requests, data, Limits(*REQUEST.unpack(message)))


def _answer(requests: socket.socket, data: bytes, limits: Limits) -> None:
    _bound_memory(MEMORY + MEMORY_OF_PIXEL * limits.max_pixels)
    with _shared_file() as file:

        def allocate(shape: tuple[int, int, int]) -> Pixels:
            file.truncate(math.prod(shape))
            return np.frombuffer(mmap.mmap(file.fileno(), 0, flags=MAPPED), np.uint8).reshape(shape)

        try:
            photo = pillow_decoder.decode(data, limits, allocate=allocate)
        except RejectedImage as error:
            refusal = {"code": str(error.code), "message": error.message[: MESSAGE_BYTES // 8]}
            requests.sendall(json.dumps(refusal).encode())
        else:
            answer = {"width": photo.width, "height": photo.height, "shape": photo.pixels.shape}
            socket.send_fds(requests, [json.dumps(answer).encode()], [file.fileno()])


def _bound_memory(most: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
