//! The names are those of openstackclient, so that a habit and an `openrc` carry over.
#![allow(
    clippy::doc_markdown,
    rustdoc::bare_urls,
    reason = "these comments are texts that users read"
)]

use clap::Args;

use super::error::Origin;
use crate::model::Secret;

/// What was said of the cloud by option or variable; all optional.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cloud")]
pub struct Settings {
    /// A cloud of clouds.yaml, which is looked for in the working directory, ~/.config/openstack and
    /// /etc/openstack
    #[arg(long, env = "OS_CLOUD", value_name = "NAME", global = true)]
    pub os_cloud: Option<String>,

    /// That clouds.yaml, and no other
    #[arg(long, env = "OS_CLIENT_CONFIG_FILE", value_name = "FILE", global = true)]
    pub os_client_config_file: Option<String>,

    /// That secure.yaml, and no other: what it says is put over clouds.yaml
    #[arg(long, env = "OS_CLIENT_SECURE_FILE", value_name = "FILE", global = true)]
    #[arg(hide_short_help = true)]
    pub os_client_secure_file: Option<String>,

    /// password, v3applicationcredential, v3token, or for a Cinder without Keystone: none, http_basic
    #[arg(long, env = "OS_AUTH_TYPE", value_name = "TYPE", global = true)]
    pub os_auth_type: Option<String>,

    /// Keystone's address, such as https://cloud.example.org:5000/v3
    #[arg(long, env = "OS_AUTH_URL", value_name = "URL", global = true)]
    pub os_auth_url: Option<String>,

    /// The user's name
    #[arg(long, env = "OS_USERNAME", value_name = "NAME", global = true)]
    pub os_username: Option<String>,

    /// The user's id
    #[arg(long, env = "OS_USER_ID", value_name = "ID", global = true, hide_short_help = true)]
    pub os_user_id: Option<String>,

    /// The user's domain; by default the one with the id default
    #[arg(long, env = "OS_USER_DOMAIN_NAME", value_name = "NAME", global = true)]
    #[arg(hide_short_help = true)]
    pub os_user_domain_name: Option<String>,

    /// The user's domain, by its id
    #[arg(long, env = "OS_USER_DOMAIN_ID", value_name = "ID", global = true)]
    #[arg(hide_short_help = true)]
    pub os_user_domain_id: Option<String>,

    /// The user's password. Every user of this machine can read a command line: better in OS_PASSWORD or
    /// in a file
    #[arg(long, env = "OS_PASSWORD", value_name = "PASSWORD", global = true)]
    #[arg(hide_env_values = true, hide_short_help = true)]
    pub os_password: Option<Secret<String>>,

    /// The project's name
    #[arg(long, env = "OS_PROJECT_NAME", value_name = "NAME", global = true)]
    pub os_project_name: Option<String>,

    /// The project's id
    #[arg(long, env = "OS_PROJECT_ID", value_name = "ID", global = true)]
    pub os_project_id: Option<String>,

    /// The project's domain; by default the one with the id default
    #[arg(long, env = "OS_PROJECT_DOMAIN_NAME", value_name = "NAME", global = true)]
    #[arg(hide_short_help = true)]
    pub os_project_domain_name: Option<String>,

    /// The project's domain, by its id
    #[arg(long, env = "OS_PROJECT_DOMAIN_ID", value_name = "ID", global = true)]
    #[arg(hide_short_help = true)]
    pub os_project_domain_id: Option<String>,

    /// A domain to act in instead of a project
    #[arg(long, env = "OS_DOMAIN_NAME", value_name = "NAME", global = true)]
    #[arg(hide_short_help = true)]
    pub os_domain_name: Option<String>,

    /// A domain to act in, by its id
    #[arg(long, env = "OS_DOMAIN_ID", value_name = "ID", global = true, hide_short_help = true)]
    pub os_domain_id: Option<String>,

    /// Act in the whole system instead of a project: all
    #[arg(long, env = "OS_SYSTEM_SCOPE", value_name = "SCOPE", global = true)]
    #[arg(hide_short_help = true)]
    pub os_system_scope: Option<String>,

    /// A token to get tokens with. Better in OS_TOKEN or in a file, as a password
    #[arg(long, env = "OS_TOKEN", value_name = "TOKEN", global = true)]
    #[arg(hide_env_values = true, hide_short_help = true)]
    pub os_token: Option<Secret<String>>,

    /// The application credential's id
    #[arg(long, env = "OS_APPLICATION_CREDENTIAL_ID", value_name = "ID", global = true)]
    #[arg(hide_short_help = true)]
    pub os_application_credential_id: Option<String>,

    /// The application credential's name; its user is needed too then
    #[arg(long, env = "OS_APPLICATION_CREDENTIAL_NAME", value_name = "NAME", global = true)]
    #[arg(hide_short_help = true)]
    pub os_application_credential_name: Option<String>,

    /// The application credential's secret. Better in OS_APPLICATION_CREDENTIAL_SECRET or in a file
    #[arg(long, env = "OS_APPLICATION_CREDENTIAL_SECRET", value_name = "SECRET", global = true)]
    #[arg(hide_env_values = true, hide_short_help = true)]
    pub os_application_credential_secret: Option<Secret<String>>,

    /// The region whose Cinder is asked
    #[arg(long, env = "OS_REGION_NAME", value_name = "NAME", global = true)]
    pub os_region_name: Option<String>,

    /// Which of Cinder's endpoints in the catalog: public, internal or admin
    #[arg(long, env = "OS_INTERFACE", value_name = "WHICH", global = true)]
    #[arg(hide_short_help = true)]
    pub os_interface: Option<String>,

    /// Cinder's endpoint, such as http://cinder.example.org:8776/v3: needed without Keystone; with
    /// Keystone it is used instead of the catalog's
    #[arg(long, env = "OS_ENDPOINT", value_name = "URL", global = true)]
    pub os_endpoint: Option<String>,

    /// Cinder's endpoint instead of the catalog's, as clouds.yaml names it; wins over --os-endpoint
    #[arg(long, env = "OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE", value_name = "URL", global = true)]
    #[arg(hide_short_help = true)]
    pub os_block_storage_endpoint_override: Option<String>,

    /// The certificates (PEM) to trust, instead of the system's
    #[arg(long, env = "OS_CACERT", value_name = "FILE", global = true)]
    pub os_cacert: Option<String>,

    /// Our own certificate (PEM), for servers that ask for one
    #[arg(long, env = "OS_CERT", value_name = "FILE", global = true, hide_short_help = true)]
    pub os_cert: Option<String>,

    /// The key (PEM) of our own certificate, where it is not in the same file
    #[arg(long, env = "OS_KEY", value_name = "FILE", global = true, hide_short_help = true)]
    pub os_key: Option<String>,

    /// Do not verify the servers' certificates: whoever answers in their place gets the credentials
    #[arg(long, env = "OS_INSECURE", global = true, hide_short_help = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub insecure: Option<String>,
}

impl Settings {
    /// Those that describe a cloud: the key of clouds.yaml that each stands for, and what was said.
    pub(super) fn said(&self) -> Vec<(&'static str, Origin, String)> {
        let plain = |value: &Option<String>| value.clone();
        let secret = |value: &Option<Secret<String>>| value.as_ref().map(|s| s.expose().clone());
        let all: [(&'static str, &'static str, Option<String>); 25] = [
            ("auth_type", "--os-auth-type (OS_AUTH_TYPE)", plain(&self.os_auth_type)),
            ("auth_url", "--os-auth-url (OS_AUTH_URL)", plain(&self.os_auth_url)),
            ("username", "--os-username (OS_USERNAME)", plain(&self.os_username)),
            ("user_id", "--os-user-id (OS_USER_ID)", plain(&self.os_user_id)),
            (
                "user_domain_name",
                "--os-user-domain-name (OS_USER_DOMAIN_NAME)",
                plain(&self.os_user_domain_name),
            ),
            (
                "user_domain_id",
                "--os-user-domain-id (OS_USER_DOMAIN_ID)",
                plain(&self.os_user_domain_id),
            ),
            ("password", "--os-password (OS_PASSWORD)", secret(&self.os_password)),
            ("project_name", "--os-project-name (OS_PROJECT_NAME)", plain(&self.os_project_name)),
            ("project_id", "--os-project-id (OS_PROJECT_ID)", plain(&self.os_project_id)),
            (
                "project_domain_name",
                "--os-project-domain-name (OS_PROJECT_DOMAIN_NAME)",
                plain(&self.os_project_domain_name),
            ),
            (
                "project_domain_id",
                "--os-project-domain-id (OS_PROJECT_DOMAIN_ID)",
                plain(&self.os_project_domain_id),
            ),
            ("domain_name", "--os-domain-name (OS_DOMAIN_NAME)", plain(&self.os_domain_name)),
            ("domain_id", "--os-domain-id (OS_DOMAIN_ID)", plain(&self.os_domain_id)),
            ("system_scope", "--os-system-scope (OS_SYSTEM_SCOPE)", plain(&self.os_system_scope)),
            ("token", "--os-token (OS_TOKEN)", secret(&self.os_token)),
            (
                "application_credential_id",
                "--os-application-credential-id (OS_APPLICATION_CREDENTIAL_ID)",
                plain(&self.os_application_credential_id),
            ),
            (
                "application_credential_name",
                "--os-application-credential-name (OS_APPLICATION_CREDENTIAL_NAME)",
                plain(&self.os_application_credential_name),
            ),
            (
                "application_credential_secret",
                "--os-application-credential-secret (OS_APPLICATION_CREDENTIAL_SECRET)",
                secret(&self.os_application_credential_secret),
            ),
            ("interface", "--os-interface (OS_INTERFACE)", plain(&self.os_interface)),
            ("endpoint", "--os-endpoint (OS_ENDPOINT)", plain(&self.os_endpoint)),
            (
                "block_storage_endpoint_override",
                "--os-block-storage-endpoint-override (OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE)",
                plain(&self.os_block_storage_endpoint_override),
            ),
            ("cacert", "--os-cacert (OS_CACERT)", plain(&self.os_cacert)),
            ("cert", "--os-cert (OS_CERT)", plain(&self.os_cert)),
            ("key", "--os-key (OS_KEY)", plain(&self.os_key)),
            ("insecure", "--insecure (OS_INSECURE)", plain(&self.insecure)),
        ];
        all.into_iter()
            .filter_map(|(key, option, value)| {
                Some((key, option, value.filter(|v| !v.is_empty())?))
            })
            .map(|(key, option, value)| (key, Origin::Option(option), value))
            .collect()
    }

    /// The cloud that was named.
    pub(super) fn cloud(&self) -> Option<&str> {
        self.os_cloud.as_deref().filter(|name| !name.is_empty())
    }

    /// The region that was named.
    pub(super) fn region(&self) -> Option<&str> {
        self.os_region_name.as_deref().filter(|name| !name.is_empty())
    }
}
