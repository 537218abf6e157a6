"""Limits on everything that comes from outside."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and how much of the machine it may use; numbers are the largest that are allowed.

    Beyond a limit of size the answer is 400 or 413, beyond one of rate 429, beyond one of load or time 503.
    """

    # One request.
    header_bytes: int = 16 * 1024
    json_bytes: int = 64 * 1024
    json_depth: int = 8
    picture_bytes: int = 16 * 2**20
    picture_pixels: int = 40_000_000
    """Checked before a picture is decoded."""
    sentences: int = 8
    sentence_characters: int = 1000
    results: int = 200
    filters: int = 8
    filter_characters: int = 200

    # One client, by its address (IPv6: by its network of 64 bits).
    searches_per_minute: int = 300
    files_per_minute: int = 12_000
    """Pictures, thumbnails and everything else that is not a search."""
    wrong_tokens_per_minute: int = 10

    # All clients together.
    connections: int = 512
    received_bytes: int = 256 * 2**20
    """Of bodies that are being received."""
    waiting: int = 64
    """Searches that wait for a thread; as many files may wait besides."""

    # Seconds.
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    search_seconds: float = 20.0
    answer_seconds: float = 30.0
    """In which a client must take each part of an answer."""

    @property
    def upload_bytes(self) -> int:
        """A body with a picture: the picture, and room for the other fields of the form."""
        return self.picture_bytes + self.json_bytes


LIMITS = Limits()
