"""Keystone's API on a loopback port, with the endpoints of its catalog as they are today.

Run by the Python of the Keystone environment: serve.py KEYSTONE_CONF PORT ENDPOINTS, where ENDPOINTS is a JSON
list of [service type, region, interface, URL].
"""

import json
import os
import socketserver
import sys
import uuid
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each connection, and room for a crowd that comes at once."""

    daemon_threads = True
    request_queue_size = 256


class Handler(WSGIRequestHandler):
    """Logs no host names: looking them up takes time."""

    def address_string(self):
        return self.client_address[0]


def put_endpoints(wanted):
    from keystone.common import provider_api

    catalog = provider_api.ProviderAPIs.catalog_api
    services = {service["type"]: service["id"] for service in catalog.list_services()}
    for old in catalog.list_endpoints():
        catalog.delete_endpoint(old["id"])
    for service, region, interface, url in wanted:
        endpoint = {"id": uuid.uuid4().hex, "service_id": services[service], "region_id": region,
                    "interface": interface, "url": url, "enabled": True}
        catalog.create_endpoint(endpoint["id"], endpoint)


def main(config, port, endpoints):
    os.environ["OS_KEYSTONE_CONFIG_FILES"] = config
    sys.argv = sys.argv[:1]  # Keystone would read the rest as its own
    from keystone.wsgi.api import application

    put_endpoints(json.loads(endpoints))
    make_server("127.0.0.1", int(port), application, Server, Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
