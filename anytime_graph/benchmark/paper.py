from __future__ import annotations


class Paper:
    def __init__(self, *a: object) -> None: ...
