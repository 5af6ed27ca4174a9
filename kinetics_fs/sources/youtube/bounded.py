"""yt-dlp with a limit on the size of what it reads into memory: pages, scripts and playlists."""

from __future__ import annotations

from types import MethodType

from yt_dlp import YoutubeDL
from yt_dlp.networking import Request, Response
from yt_dlp.networking.exceptions import HTTPError, TransportError

MAX_PAGE = 16 * 1024**2
"""Largest page in bytes. YouTube's pages and scripts have one to three million."""
_BLOCK = 256 * 1024


class BoundedYoutubeDL(YoutubeDL):  # type: ignore[misc]  # yt-dlp has no types
    """A `YoutubeDL` that refuses to read more than `MAX_PAGE` bytes at once. It reads media in blocks, without end."""

    def urlopen(self, req: Request | str) -> Response:
        try:
            return _bounded(super().urlopen(req))
        except HTTPError as error:
            _bounded(error.response)
            raise


def _bounded(response: Response) -> Response:
    read = response.read

    def read_bounded(self: Response, amt: int | None = None) -> bytes:
        if amt is not None and amt >= 0:
            return bytes(read(amt))
        received = bytearray()
        while block := read(_BLOCK):
            received += block
            if len(received) > MAX_PAGE:
                self.close()
                raise TransportError(f"the page is larger than {MAX_PAGE // 1024**2} MiB")
        return bytes(received)

    response.read = MethodType(read_bounded, response)
    return response
