"""Makes a Keystone's keys and database, with the projects, users and application credential that it is told of.

Run by the Python of the Keystone environment: seed.py KEYSTONE_CONF < IDENTITIES (JSON; see lablib/keystone.py).
"""

import json
import sys
import uuid

import keystone.conf
from keystone.cmd.bootstrap import Bootstrapper
from keystone.common import fernet_utils, provider_api
from keystone.common.sql import upgrades
from keystone.server import configure

CONF = keystone.conf.CONF
PROVIDERS = provider_api.ProviderAPIs


def main(config, identities):
    sys.argv = sys.argv[:1]  # Keystone would read the rest as its own
    configure(config_files=[config])
    for group in ("fernet_tokens", "credential"):
        keys = fernet_utils.FernetUtils(CONF[group].key_repository, 3, group)
        keys.create_key_directory()
        keys.initialize_key_repository()
    upgrades.offline_sync_database_to_version()

    admin = identities["admin"]
    bootstrapper = Bootstrapper()
    bootstrapper.admin_username, bootstrapper.admin_password = admin["name"], admin["password"]
    bootstrapper.project_name, bootstrapper.admin_role_name = admin["project"], "admin"
    bootstrapper.bootstrap()
    domain = bootstrapper.default_domain_id
    PROVIDERS.assignment_api.create_grant(bootstrapper.admin_role_id, user_id=bootstrapper.admin_user_id, domain_id=domain)

    roles = {role["name"]: role for role in PROVIDERS.role_api.list_roles()}
    for name, project_id in identities["projects"].items():
        PROVIDERS.resource_api.create_project(
            project_id, {"id": project_id, "name": name, "domain_id": domain, "enabled": True})
    users = {}
    for user in identities["users"]:
        created = PROVIDERS.identity_api.create_user(
            {"name": user["name"], "password": user["password"], "domain_id": domain, "enabled": True})
        users[user["name"]] = created["id"]
        for role in user["roles"]:
            PROVIDERS.assignment_api.add_role_to_user_and_project(
                created["id"], identities["projects"][user["project"]], roles[role]["id"])
    credential = identities["application_credential"]
    PROVIDERS.application_credential_api.create_application_credential({
        "id": credential["id"],
        "name": credential["name"],
        "secret": credential["secret"],
        "user_id": users[credential["user"]],
        "project_id": identities["projects"][credential["project"]],
        "roles": [{"id": roles[role]["id"]} for role in credential["roles"]],
        "unrestricted": False,
    })
    for service in identities["services"]:
        service_id = uuid.uuid4().hex
        PROVIDERS.catalog_api.create_service(service_id, {"id": service_id, "enabled": True, **service})
    for region in identities["regions"]:
        PROVIDERS.catalog_api.create_region({"id": region})


if __name__ == "__main__":
    main(sys.argv[1], json.load(sys.stdin))
