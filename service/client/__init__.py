"""The Python client: `Client("http://127.0.0.1:8000")`."""

from service.client.client import Client
from service.client.errors import ClientError, Problem
from service.client.events import Event

__all__ = ["Client", "ClientError", "Event", "Problem"]
