"""Cinder's API, scheduler and volume managers in one process: no message broker, no root helper.

Run by the Python of the Cinder environment: serve.py --config-file FILE, or only to
make the database: serve.py --config-file FILE --only-database.
"""

# ruff: noqa: E402  (eventlet's patches come before every other import)
try:
    from cinder.monkey_patch import patch
except ImportError:  # an older release
    from eventlet import monkey_patch as patch

patch()

import sys

import os_brick
from cinder import coordination, i18n, objects, privsep, rpc, service, version
from cinder.cmd import volume as volume_command  # registers the option backend_host
from cinder.common import config
from cinder.db import migration
from oslo_config import cfg
from oslo_log import log as logging
from oslo_service import service as oslo_service
from oslo_service import wsgi

CONF = cfg.CONF
CONF.register_opt(cfg.PortOpt("keystone_listen_port", help="Serve those who bring a token of Keystone here."), group="lab")


def api_with_keystone(port):
    """The API once more, with Keystone's middleware: which it gets is decided when it is loaded."""
    CONF.set_override("auth_strategy", "keystone")
    application = wsgi.Loader(CONF).load_app("osapi_volume")
    CONF.clear_override("auth_strategy")
    return wsgi.Server(CONF, "osapi_volume_keystone", application, host=CONF.osapi_volume_listen, port=port)


def main(arguments):
    only_database = "--only-database" in arguments
    i18n.enable_lazy()
    objects.register_all()
    CONF([argument for argument in arguments if argument != "--only-database"],
         project="cinder", version=version.version_string())
    config.set_middleware_defaults()
    logging.setup(CONF, "cinder")
    if only_database:
        migration.db_sync()
        return

    privsep.sys_admin_pctxt.set_client_mode(False)  # privileged functions run right here
    os_brick.setup(CONF)
    coordination.COORDINATOR.start()
    rpc.init(CONF)
    launcher = oslo_service.ServiceLauncher(CONF)
    launcher.launch_service(service.Service.create(binary="cinder-scheduler"))
    for backend in CONF.enabled_backends:
        CONF.register_opt(volume_command.host_opt, group=backend)
        launcher.launch_service(service.Service.create(
            host=f"{CONF.host}@{backend}", service_name=backend, binary="cinder-volume", coordination=False))
    launcher.launch_service(service.WSGIService("osapi_volume"))
    if CONF.lab.keystone_listen_port:
        launcher.launch_service(api_with_keystone(CONF.lab.keystone_listen_port))
    launcher.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
