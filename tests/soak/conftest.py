"""Gives the tests of this folder a Ray."""

from tests.support.cluster import ray_session

__all__ = ["ray_session"]
