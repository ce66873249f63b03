"""The stores of the storage tests: corrections are saved in each of them."""

from tests.storage.conftest import bucket, memory, place, s3, store

__all__ = ["bucket", "memory", "place", "s3", "store"]
