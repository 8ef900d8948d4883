//! `clouds.yaml`, `OS_*` and `--os-*`: who wins, what they mean, and what is said of a slip.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::PathBuf};

use attachd::{
    cloud::{Cloud, CloudError, Identity, Places, Settings},
    keystone::{
        ApplicationCredential, Credentials, Domain, Interface, Method, Project, Scope, User,
    },
    model::Secret,
};
use tempfile::TempDir;

const PLAIN: &str = "\
clouds:
  prod:
    auth:
      auth_url: https://prod:5000/v3
      username: demo
      password: hunter2
      project_name: web
      user_domain_name: Default
      project_domain_id: default
    region_name: RegionOne
  test:
    auth_type: v3applicationcredential
    auth:
      auth_url: https://test:5000
      application_credential_id: 0123e4
      application_credential_secret: hunter2
";

/// Directories to look in, with these files in the first one.
struct Files {
    first: TempDir,
    second: TempDir,
}

impl Files {
    fn of(files: &[(&str, &str)]) -> Self {
        let made =
            Self { first: tempfile::tempdir().unwrap(), second: tempfile::tempdir().unwrap() };
        for (name, text) in files {
            fs::write(made.first.path().join(name), text).unwrap();
        }
        made
    }

    fn places(&self) -> Places {
        Places {
            directories: vec![self.first.path().to_owned(), self.second.path().to_owned()],
            home: Some(PathBuf::from("/home/op")),
            ..Places::default()
        }
    }

    fn find(&self, settings: &Settings) -> Result<Cloud, CloudError> {
        Cloud::find(settings, &self.places())
    }

    fn error(&self, settings: &Settings) -> String {
        let error = self.find(settings).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        error.to_string()
    }
}

fn named(cloud: &str) -> Settings {
    Settings { os_cloud: Some(cloud.to_owned()), ..Settings::default() }
}

fn credentials(cloud: Cloud) -> Credentials {
    match cloud.identity {
        Identity::Keystone(credentials) => credentials,
        Identity::Standalone { .. } => panic!("without Keystone"),
    }
}

fn password_of(cloud: Cloud) -> String {
    match credentials(cloud).method {
        Method::Password { password, .. } => password.expose().clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_named_cloud_is_taken_from_the_file() {
    let files = Files::of(&[("clouds.yaml", PLAIN)]);
    let prod = files.find(&named("prod")).unwrap();
    assert_eq!(prod.service.region.as_deref(), Some("RegionOne"));
    assert_eq!(prod.service.interface, Interface::Public);
    let name = |name: &str| name.to_owned();
    assert_eq!(
        credentials(prod),
        Credentials {
            auth_url: "https://prod:5000/v3".parse().unwrap(),
            method: Method::Password {
                user: User::Name { name: name("demo"), domain: Domain::Name(name("Default")) },
                password: Secret::new(name("hunter2")),
            },
            scope: Scope::Project(Project::Name {
                name: name("web"),
                domain: Domain::Id(name("default")),
            }),
        }
    );
    let test = credentials(files.find(&named("test")).unwrap());
    assert_eq!(test.scope, Scope::Unsaid);
    // It looks like a number.
    let Method::ApplicationCredential { which, .. } = test.method else { panic!() };
    assert_eq!(which, ApplicationCredential::Id(name("0123e4")));
}

#[test]
fn without_a_name_the_only_cloud_is_taken_and_of_two_none() {
    let only = Files::of(&[("clouds.yaml", PLAIN.split("  test:").next().unwrap())]);
    assert_eq!(password_of(only.find(&Settings::default()).unwrap()), "hunter2");
    let region = Settings { os_region_name: Some("Two".to_owned()), ..Settings::default() };
    assert_eq!(only.find(&region).unwrap().service.region.as_deref(), Some("Two"));

    let two = Files::of(&[("clouds.yaml", PLAIN)]);
    let error = two.error(&Settings::default());
    assert!(error.contains("--os-cloud") && error.contains("prod, test"), "{error}");
    let error = two.error(&named("live"));
    assert!(error.contains("no cloud \"live\"") && error.contains("prod, test"), "{error}");

    let none = Files::of(&[]);
    let error = none.error(&Settings::default());
    let directory = none.first.path().display().to_string();
    assert!(error.contains("no clouds.yaml in") && error.contains(&directory), "{error}");
}

#[test]
fn options_that_tell_who_we_are_stand_for_themselves_where_no_cloud_is_named() {
    let files = Files::of(&[("clouds.yaml", PLAIN.split("  test:").next().unwrap())]);
    let settings = Settings {
        os_auth_url: Some("http://other:5000".to_owned()),
        os_username: Some("me".to_owned()),
        os_password: Some(Secret::new("mine".to_owned())),
        ..Settings::default()
    };
    let found = credentials(files.find(&settings).unwrap());
    assert_eq!(found.auth_url.as_str(), "http://other:5000/");
    assert_eq!(found.scope, Scope::Unsaid, "the file's project is another cloud's");
}

#[test]
fn an_option_goes_over_the_file_and_takes_the_place_of_both_forms() {
    let files = Files::of(&[("clouds.yaml", PLAIN)]);
    let settings = Settings {
        os_password: Some(Secret::new("mine".to_owned())),
        os_project_id: Some("c0ffee".to_owned()),
        os_region_name: Some("RegionTwo".to_owned()),
        os_interface: Some("internalURL".to_owned()),
        os_username: Some(String::new()),
        ..named("prod")
    };
    let found = files.find(&settings).unwrap();
    assert_eq!(found.service.region.as_deref(), Some("RegionTwo"));
    assert_eq!(found.service.interface, Interface::Internal);
    let found = credentials(found);
    assert_eq!(found.scope, Scope::Project(Project::Id("c0ffee".to_owned())));
    let Method::Password { user: User::Name { name, .. }, password } = found.method else {
        panic!()
    };
    assert_eq!((name.as_str(), password.expose().as_str()), ("demo", "mine"), "empty is unset");

    let by_id = PLAIN.replace("project_name: web", "project_id: beef");
    let files = Files::of(&[("clouds.yaml", &by_id)]);
    let settings = Settings { os_project_name: Some("api".to_owned()), ..named("prod") };
    let Scope::Project(Project::Name { name, .. }) =
        credentials(files.find(&settings).unwrap()).scope
    else {
        panic!("the file's id won over the option's name")
    };
    assert_eq!(name, "api");
}

#[test]
fn secure_yaml_goes_over_clouds_yaml_and_a_profile_under_it() {
    let files = Files::of(&[
        (
            "clouds.yaml",
            "clouds:\n  a:\n    profile: vendor\n    auth: {username: me, password: old, project_id: 12}\n",
        ),
        ("secure.yaml", "clouds:\n  a:\n    auth:\n      password: new\n"),
        (
            "clouds-public.yaml",
            "public-clouds:\n  vendor:\n    auth:\n      auth_url: https://{region_name}.vendor/v3\n      username: nobody\n    region_name: eu\n    block_storage_endpoint_override: https://volumes.vendor/v3\n",
        ),
    ]);
    let found = files.find(&named("a")).unwrap();
    assert_eq!(found.service.endpoint.as_deref(), Some("https://volumes.vendor/v3"));
    let found = credentials(found);
    assert_eq!(found.auth_url.as_str(), "https://eu.vendor/v3");
    let Method::Password { user: User::Name { name, domain }, password } = found.method else {
        panic!()
    };
    assert_eq!((name.as_str(), password.expose().as_str()), ("me", "new"));
    assert_eq!(domain, Domain::Id("default".to_owned()), "as openstackclient has it");
}

#[test]
fn the_first_directory_with_a_file_wins_and_a_named_file_wins_over_all() {
    let files = Files::of(&[]);
    let cloud = |password| {
        format!(
            "clouds: {{a: {{auth: {{auth_url: 'http://k', username: u, password: {password}}}}}}}"
        )
    };
    fs::write(files.second.path().join("clouds.yaml"), cloud("second")).unwrap();
    assert_eq!(password_of(files.find(&named("a")).unwrap()), "second");
    fs::write(files.first.path().join("clouds.yml"), cloud("first")).unwrap();
    assert_eq!(password_of(files.find(&named("a")).unwrap()), "first");

    let elsewhere = files.second.path().join("elsewhere");
    let places = Places { clouds: Some(elsewhere.clone()), ..files.places() };
    let error = Cloud::find(&named("a"), &places).unwrap_err();
    assert!(
        matches!(&error, CloudError::Unreadable { path, .. } if *path == elsewhere),
        "{error:?}"
    );
    fs::write(&elsewhere, cloud("named")).unwrap();
    assert_eq!(password_of(Cloud::find(&named("a"), &places).unwrap()), "named");
}

#[test]
fn regions_with_values_are_chosen_by_name_or_the_first() {
    let text = "clouds:\n  a:\n    auth: {auth_url: http://k, username: u, password: p}\n    regions:\n    - one\n    - name: two\n      values: {interface: internal, auth: {auth_url: http://two}}\n";
    let files = Files::of(&[("clouds.yaml", text)]);
    assert_eq!(files.find(&named("a")).unwrap().service.region.as_deref(), Some("one"));
    let two = Settings { os_region_name: Some("two".to_owned()), ..named("a") };
    let found = files.find(&two).unwrap();
    assert_eq!(found.service.interface, Interface::Internal);
    assert_eq!(credentials(found).auth_url.as_str(), "http://two/");
    let three = Settings { os_region_name: Some("three".to_owned()), ..named("a") };
    let error = files.error(&three);
    assert!(error.contains("line 4") && error.contains("one, two"), "{error}");
}

#[test]
fn flat_keys_and_old_names_mean_the_same() {
    for text in [
        "auth: {auth_url: http://k, username: u, password: p, project_id: c0ffee}",
        "auth_url: http://k\n    username: u\n    password: p\n    project_id: c0ffee",
        "auth-url: http://k\n    user_name: u\n    password: p\n    tenant-id: c0ffee",
        "auth: {auth_url: http://k, username: u, password: p, project_id: other}\n    project_id: c0ffee",
        "auth: {auth_url: http://k, username: u, password: p, project_id: c0ffee}\n    password: beside",
    ] {
        let files = Files::of(&[("clouds.yaml", &format!("clouds:\n  a:\n    {text}\n"))]);
        let found = files.find(&named("a")).unwrap();
        assert_eq!(
            credentials(found.clone()).scope,
            Scope::Project(Project::Id("c0ffee".to_owned())),
            "{text}"
        );
        assert_eq!(password_of(found), "p", "{text}");
    }
}

#[test]
fn scopes_and_methods_are_told_apart() {
    let auth = |more: &str| {
        let text = format!("clouds:\n  a:\n    auth: {{auth_url: http://k, {more}}}\n");
        Files::of(&[("clouds.yaml", &text)])
    };
    let scope = |more: &str| {
        credentials(auth(&format!("username: u, password: p, {more}")).find(&named("a")).unwrap())
            .scope
    };
    assert_eq!(scope("system_scope: all"), Scope::System);
    assert_eq!(scope("domain_id: d"), Scope::Domain(Domain::Id("d".to_owned())));
    let shared = scope("domain_name: d, project_name: w");
    let domain = Domain::Name("d".to_owned());
    assert_eq!(shared, Scope::Project(Project::Name { name: "w".to_owned(), domain }));
    let error =
        auth("username: u, password: p, system_scope: all, project_id: c0ffee").error(&named("a"));
    assert!(error.contains("line 3") && error.contains("project_id"), "{error}");

    let method = |more: &str| credentials(auth(more).find(&named("a")).unwrap()).method;
    assert_eq!(method("token: t"), Method::Token(Secret::new("t".to_owned())));
    let by_name =
        method("application_credential_name: n, application_credential_secret: s, user_id: u");
    let which =
        ApplicationCredential::Name { name: "n".to_owned(), user: User::Id("u".to_owned()) };
    assert_eq!(
        by_name,
        Method::ApplicationCredential { which, secret: Secret::new("s".to_owned()) }
    );
}

#[test]
fn a_cinder_without_keystone_needs_endpoint_and_project() {
    let settings = |auth_type: &str| Settings {
        os_auth_type: Some(auth_type.to_owned()),
        os_endpoint: Some("http://cinder:8776/v3".to_owned()),
        os_project_id: Some("c0ffee".to_owned()),
        ..Settings::default()
    };
    let files = Files::of(&[]);
    for name in ["none", "noauth"] {
        let found = files.find(&settings(name)).unwrap();
        assert_eq!(found.address().unwrap().as_str(), "http://cinder:8776/v3");
        let Identity::Standalone { user, password, .. } = found.identity else { panic!() };
        assert_eq!((user.as_str(), password), ("attachd", None));
    }
    for (without, word) in [
        (Settings { os_endpoint: None, ..settings("none") }, "OS_ENDPOINT"),
        (Settings { os_project_id: None, ..settings("none") }, "OS_PROJECT_ID"),
        (settings("http_basic"), "OS_PASSWORD"),
    ] {
        let error = files.error(&without);
        assert!(error.contains(word), "{error}");
    }
    let basic = Settings {
        os_username: Some("u".to_owned()),
        os_password: Some(Secret::new("hunter2".to_owned())),
        ..settings("http_basic")
    };
    let found = files.find(&basic).unwrap();
    assert!(!format!("{found:?} {basic:?}").contains("hunter2"));
    assert!(matches!(found.identity, Identity::Standalone { password: Some(_), .. }));
}

#[test]
fn certificates_are_taken_with_the_home_directory_written_out() {
    let text = "clouds: {a: {auth: {auth_url: http://k, token: t}, verify: no, cacert: ~/ca.pem, cert: /c.pem, key: ~/k.pem}}";
    let files = Files::of(&[("clouds.yaml", text)]);
    let tls = files.find(&named("a")).unwrap().tls;
    assert!(tls.insecure);
    assert_eq!(tls.ca, Some(PathBuf::from("/home/op/ca.pem")));
    assert_eq!(tls.certificate, Some(PathBuf::from("/c.pem")));
    assert_eq!(tls.key, Some(PathBuf::from("/home/op/k.pem")));
    let secure = Settings { insecure: Some("false".to_owned()), ..named("a") };
    assert!(!files.find(&secure).unwrap().tls.insecure, "the option wins");
}

#[test]
fn a_slip_is_named_with_file_line_and_key_before_anything_is_sent() {
    for (text, line, words) in [
        (
            "    auth:\n      auth_url: http://k\n      username: u\n      passwrod: hunter2\n",
            6,
            &["auth.passwrod", "\"password\""][..],
        ),
        (
            "    auth:\n      auth_url: http://k\n      protocol: hunter2\n",
            5,
            &["auth.protocol", "does not know"],
        ),
        (
            "    auth:\n      auth_url: http://op:hunter2@k\n      token: hunter2\n",
            4,
            &["auth_url", "credentials"],
        ),
        (
            "    auth:\n      auth_url: k:5000:hunter2\n      token: hunter2\n",
            4,
            &["auth_url", "not an http"],
        ),
        (
            "    auth:\n      auth_url: hunter2\n      token: hunter2\n",
            4,
            &["auth_url", "not a URL"],
        ),
        ("    auth:\n      password: [hunter2]\n", 4, &["auth.password", "expected text"]),
        ("    auth: hunter2\n", 3, &["auth", "expected a mapping"]),
        (
            "    auth_type: v3oidcpassword\n    auth: {hunter2: x}\n",
            3,
            &["auth_type", "v3oidcpassword", "v3applicationcredential"],
        ),
        (
            "    auth: {auth_url: http://k, token: t}\n    interface: pubic\n",
            4,
            &["interface", "\"pubic\"", "public, internal or admin"],
        ),
        (
            "    auth: {auth_url: http://k, token: t}\n    verify: perhaps\n",
            4,
            &["verify", "true or false"],
        ),
        ("    auth: {auth_url: http://k, token: t}\n    key: /k.pem\n", 4, &["key", "certificate"]),
        (
            "    auth: {auth_url: http://k, token: t}\n    identity_api_version: 2.0\n",
            4,
            &["identity_api_version", "3"],
        ),
        (
            "    auth: {auth_url: http://k, token: t}\n    volume_endpoint_override: cinder\n",
            4,
            &["block_storage_endpoint_override", "not a URL"],
        ),
        (
            "    auth: {username: u, password: hunter2}\n    profile: ovh\n",
            4,
            &["profile", "\"ovh\"", "auth_url"],
        ),
        ("    auth: {auth_url: http://k, token: t}\n    regions: one\n", 4, &["regions", "a list"]),
        (
            "    auth: {auth_url: http://k, username: u, username: hunter2}\n",
            3,
            &["duplicate", "username"],
        ),
        (
            "    auth: {auth_url: http://k, username: u, password: *hunter2}\n",
            3,
            &["not YAML", "quotes"],
        ),
    ] {
        let files = Files::of(&[("clouds.yaml", &format!("clouds:\n  a:\n{text}"))]);
        let error = files.error(&named("a"));
        let place = format!("{}/clouds.yaml, line {line}", files.first.path().display());
        assert!(error.starts_with(&place), "{place}: {error}");
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
}

#[test]
fn what_is_missing_is_named_with_the_cloud_and_its_files() {
    for (auth, word) in [
        ("username: u, password: hunter2", "OS_AUTH_URL"),
        ("auth_url: http://k, username: u", "OS_PASSWORD"),
        ("auth_url: http://k, password: hunter2", "OS_USERNAME"),
        ("auth_url: http://k, application_credential_id: x", "OS_APPLICATION_CREDENTIAL_SECRET"),
    ] {
        let files = Files::of(&[
            ("clouds.yaml", &format!("clouds: {{a: {{auth: {{{auth}}}}}}}")),
            ("secure.yaml", "clouds: {a: {}}"),
        ]);
        let error = files.error(&named("a"));
        for word in [word, "the cloud \"a\"", "clouds.yaml and ", "secure.yaml"] {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
}

#[test]
fn a_file_of_another_shape_is_named_with_its_line() {
    for (text, line, word) in [
        ("hunter2\n", 1, "mapping"),
        ("# mine\ncluods:\n  a: {}\n", 2, "\"cluods\""),
        ("clouds: hunter2\n", 1, "mapping of names"),
        ("clouds:\n  a: hunter2\n", 2, "must be a mapping"),
    ] {
        let files = Files::of(&[("clouds.yaml", text)]);
        let error = files.error(&named("a"));
        assert!(
            error.contains(&format!("line {line}")) && error.contains(word),
            "{text:?}: {error}"
        );
    }
    let empty = Files::of(&[("clouds.yaml", "")]);
    assert!(empty.error(&named("a")).contains("has no cloud"));
}

#[test]
fn keys_for_other_programs_do_no_harm() {
    let text = "cache: {expiration_time: 3600}\nclouds:\n  a:\n    auth: {auth_url: http://k, token: t}\n    networks: [{name: x}]\n    image_api_version: 2\n    floating_ip_source: None\n    block_storage_service_type: volumev3\n";
    let found = Files::of(&[("clouds.yaml", text)]).find(&named("a")).unwrap();
    assert_eq!(found.service.service_type.as_deref(), Some("volumev3"));
}
