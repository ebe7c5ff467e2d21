"""Routes requests: writes nginx's configuration, brings it to the workers and proves that they run it."""

from hasupervisor.act.nginx.gateway import Gateway
from hasupervisor.act.nginx.settings import NginxSettings

__all__ = ["Gateway", "NginxSettings"]
