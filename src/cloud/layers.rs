//! What was said of the cloud, in layers: each goes over those before it.

use std::collections::BTreeMap;

use tracing::warn;

use super::{
    CloudError, Origin, Places, Settings,
    document::{Document, Kind, Node},
};
use crate::model::Secret;

/// Keys that stand under `auth:`, or beside it as an older form has them.
const AUTH_KEYS: [&str; 20] = [
    "application_credential_id",
    "application_credential_name",
    "application_credential_secret",
    "auth_url",
    "default_domain",
    "default_domain_id",
    "default_domain_name",
    "domain_id",
    "domain_name",
    "endpoint",
    "password",
    "project_domain_id",
    "project_domain_name",
    "project_id",
    "project_name",
    "system_scope",
    "token",
    "user_domain_id",
    "user_domain_name",
    "user_id",
];
const USERNAME: &str = "username";

/// Of these, what stands beside `auth:` wins, as openstacksdk has it.
const BESIDE_WINS: [&str; 9] = [
    "domain_id",
    "domain_name",
    "project_domain_id",
    "project_domain_name",
    "project_id",
    "project_name",
    "token",
    "user_domain_id",
    "user_domain_name",
];

/// Keys of a cloud that attachd heeds; others are for other programs.
const CLOUD_KEYS: [&str; 11] = [
    "auth_type",
    "cacert",
    "cert",
    "identity_api_version",
    "insecure",
    "interface",
    "key",
    "profile",
    "region_name",
    "regions",
    "verify",
];

/// Names that clouds.yaml has for the block-storage service, the official one first.
const SERVICES: [&str; 4] = ["block_storage", "volumev3", "volume", "block_store"];
const SERVICE_KEYS: [&str; 4] = ["endpoint_override", "interface", "region_name", "service_type"];

/// Two ways to say one thing: what is said above takes the place of both below.
const TWINS: [(&str, &str); 9] = [
    ("application_credential_id", "application_credential_name"),
    ("block_storage_endpoint_override", "endpoint"),
    ("block_storage_interface", "interface"),
    ("domain_id", "domain_name"),
    ("insecure", "verify"),
    ("project_domain_id", "project_domain_name"),
    ("project_id", "project_name"),
    ("user_domain_id", "user_domain_name"),
    ("user_id", USERNAME),
];

/// Options that say nothing of which cloud it is: with only these, the only cloud of the file is meant.
const SELECTORS: [&str; 6] =
    ["block_storage_endpoint_override", "cacert", "cert", "insecure", "interface", "key"];

/// What was said, and where. Any of them may be a secret.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) text: Secret<String>,
    pub(super) origin: Origin,
}

impl Value {
    pub(super) fn text(&self) -> &str {
        self.text.expose()
    }
}

/// All layers, one over the other.
pub(super) struct Layers {
    /// How an error names the cloud.
    pub(super) of: String,
    pub(super) values: BTreeMap<&'static str, Value>,
    /// Keys under `auth:` that mean nothing to attachd.
    pub(super) unknown: Vec<(String, Origin)>,
    /// A vendor's profile that no file has.
    pub(super) missing_profile: Option<Value>,
    pub(super) places: Places,
}

/// A cloud in the files.
#[derive(Default)]
struct Described {
    auth: BTreeMap<&'static str, Value>,
    beside: BTreeMap<&'static str, Value>,
    regions: Option<(Origin, Vec<Region>)>,
    unknown: Vec<(String, Origin)>,
}

struct Region {
    name: String,
    values: Described,
}

pub(super) fn layers(settings: &Settings, places: &Places) -> Result<Layers, CloudError> {
    let said = settings.said();
    let tells_which = said.iter().any(|(key, ..)| !SELECTORS.contains(key));
    let mut layers = match (settings.cloud(), tells_which) {
        (None, true) => Layers::empty("what was given by options and variables", places),
        (name, _) => from_files(name, settings, places)?,
    };
    for (one, other) in TWINS {
        if said.iter().any(|(key, ..)| *key == one || *key == other) {
            layers.values.remove(one);
            layers.values.remove(other);
        }
    }
    for (key, origin, text) in said {
        layers.values.insert(key, Value { text: Secret::new(text), origin });
    }
    if let Some(region) = settings.region() {
        let origin = Origin::Option("--os-region-name (OS_REGION_NAME)");
        layers.values.insert("region_name", Value { text: Secret::new(region.to_owned()), origin });
    }
    Ok(layers)
}

impl Layers {
    fn empty(of: &str, places: &Places) -> Self {
        Self {
            of: of.to_owned(),
            values: BTreeMap::new(),
            unknown: Vec::new(),
            missing_profile: None,
            places: places.clone(),
        }
    }
}

fn from_files(
    name: Option<&str>,
    settings: &Settings,
    places: &Places,
) -> Result<Layers, CloudError> {
    let documents = [places.clouds()?, places.secure()?];
    let mut names: Vec<&str> = Vec::new();
    for document in documents.iter().flatten() {
        for (name, ..) in document.clouds("clouds")? {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
    }
    let found = || found(&documents, &names, places);
    let name = match (name, names.as_slice()) {
        (Some(name), _) if names.contains(&name) => name,
        (Some(name), _) => {
            return Err(CloudError::NoSuchCloud { name: name.to_owned(), found: found() });
        }
        (None, [only]) => only,
        (None, _) => return Err(CloudError::Unsaid { found: format!(" ({})", found()) }),
    };
    let mut layers = Layers::empty(&format!("the cloud {name:?}"), places);
    let mut whole = Described::default();
    for document in documents.iter().flatten() {
        for (_, _, node) in document.clouds("clouds")?.iter().filter(|(it, ..)| it == name) {
            whole.put(Described::read(document, node)?);
            let file = document.path.display();
            if layers.of.contains(" of ") {
                layers.of = format!("{} and {file}", layers.of);
            } else {
                layers.of = format!("{} of {file}", layers.of);
            }
        }
    }
    if let Some(profile) = whole.beside.remove("profile") {
        if let Some(mut base) = vendor(profile.text(), places)? {
            base.put(whole);
            whole = base;
        } else {
            warn!(profile = profile.text(), origin = %profile.origin, "no clouds-public.yaml has this profile; attachd knows none by itself");
            layers.missing_profile = Some(profile);
        }
    }
    whole.choose_region(settings.region())?;
    layers.unknown = std::mem::take(&mut whole.unknown);
    layers.values = whole.flat();
    Ok(layers)
}

fn found(documents: &[Option<Document>; 2], names: &[&str], places: &Places) -> String {
    let files: Vec<String> =
        documents.iter().flatten().map(|document| document.path.display().to_string()).collect();
    if files.is_empty() {
        let looked: Vec<String> =
            places.directories.iter().map(|path| path.display().to_string()).collect();
        return format!("there is no clouds.yaml in {}", looked.join(", "));
    }
    let clouds = if names.is_empty() { "no cloud".to_owned() } else { names.join(", ") };
    format!("{} has {clouds}", files.join(" with "))
}

fn vendor(profile: &str, places: &Places) -> Result<Option<Described>, CloudError> {
    let Some(document) = places.vendors()? else { return Ok(None) };
    let clouds = document.clouds("public-clouds")?;
    let entry = clouds.iter().find(|(name, ..)| name == profile);
    entry.map(|(_, _, node)| Described::read(&document, node)).transpose()
}

impl Document {
    /// The clouds below that key; none in an empty file.
    fn clouds(&self, key: &str) -> Result<&[(String, u64, Node)], CloudError> {
        let wrong = |line, what: &str| {
            Err(CloudError::Wrong {
                origin: self.at(line),
                key: key.to_owned(),
                what: what.to_owned(),
            })
        };
        let root = match &self.root.kind {
            Kind::Nothing => return Ok(&[]),
            Kind::Map(root) => root,
            Kind::Text(_) | Kind::List(_) => {
                return wrong(self.root.line, "the file must be a mapping with this key");
            }
        };
        match root.iter().find(|(name, ..)| name == key).map(|(_, line, node)| (line, &node.kind)) {
            Some((_, Kind::Map(clouds))) => Ok(clouds),
            Some((_, Kind::Nothing)) => Ok(&[]),
            Some((line, _)) => wrong(*line, "expected a mapping of names to clouds"),
            None => match root.iter().find(|(name, ..)| is_near(name, key)) {
                Some((name, line, _)) => {
                    let what = format!("there is no such key; is {name:?} meant to be it?");
                    wrong(*line, &what)
                }
                None => wrong(self.root.line, "there is no such key"),
            },
        }
    }
}

impl Described {
    fn read(document: &Document, node: &Node) -> Result<Self, CloudError> {
        let mut described = Self::default();
        let wrong = |line, key: &str, what: &str| CloudError::Wrong {
            origin: document.at(line),
            key: key.to_owned(),
            what: what.to_owned(),
        };
        let entries = match &node.kind {
            Kind::Map(entries) => entries,
            Kind::Nothing => return Ok(described),
            Kind::Text(_) | Kind::List(_) => {
                return Err(wrong(node.line, "clouds", "a cloud must be a mapping"));
            }
        };
        let value = |line: u64, key: &str, node: &Node| match &node.kind {
            Kind::Nothing => Ok(None),
            Kind::Text(text) if text.is_empty() => Ok(None),
            Kind::Text(text) => {
                Ok(Some(Value { text: Secret::new(text.clone()), origin: document.at(line) }))
            }
            Kind::List(_) | Kind::Map(_) => Err(wrong(line, key, "expected text")),
        };
        for (written, line, node) in entries {
            let name = written.replace('-', "_");
            if name == "auth" {
                let under = match &node.kind {
                    Kind::Map(under) => under.as_slice(),
                    Kind::Nothing => &[],
                    Kind::Text(_) | Kind::List(_) => {
                        return Err(wrong(*line, "auth", "expected a mapping"));
                    }
                };
                for (written, line, node) in under {
                    match auth_key(&written.replace('-', "_")) {
                        Some(key) => {
                            let value = value(*line, &format!("auth.{key}"), node)?;
                            described.auth.extend(value.map(|value| (key, value)));
                        }
                        None => described.unknown.push((written.clone(), document.at(*line))),
                    }
                }
            } else if name == "regions" {
                described.regions = Some((document.at(*line), regions(document, *line, node)?));
            } else if let Some(key) = cloud_key(&name).or_else(|| auth_key(&name)) {
                described.beside.extend(value(*line, key, node)?.map(|value| (key, value)));
            } else if let Some(near) = near(&name, CLOUD_KEYS.iter().chain(&["auth"])) {
                warn!(file = %document.path.display(), line, key = written, "attachd does not know this key; is it meant to be {near:?}?");
            }
        }
        Ok(described)
    }

    fn put(&mut self, over: Self) {
        self.auth.extend(over.auth);
        self.beside.extend(over.beside);
        self.regions = over.regions.or(self.regions.take());
        self.unknown.extend(over.unknown);
    }

    /// What the file says of the region that was named, or of its first.
    fn choose_region(&mut self, wanted: Option<&str>) -> Result<(), CloudError> {
        let Some((origin, regions)) = self.regions.take() else { return Ok(()) };
        let names: Vec<String> = regions.iter().map(|region| region.name.clone()).collect();
        let mut regions = regions.into_iter();
        let chosen = match wanted {
            None => regions.next(),
            Some(wanted) => regions.find(|region| region.name == wanted),
        };
        let Some(region) = chosen else {
            let what = match wanted {
                Some(wanted) => format!("the region {wanted:?} is not among {}", names.join(", ")),
                None => "it names no region".to_owned(),
            };
            return Err(CloudError::Wrong { origin, key: "regions".to_owned(), what });
        };
        let name = Value { text: Secret::new(region.name), origin };
        self.put(region.values);
        self.beside.insert("region_name", name);
        Ok(())
    }

    fn flat(self) -> BTreeMap<&'static str, Value> {
        let mut flat = self.auth;
        for (key, value) in self.beside {
            if BESIDE_WINS.contains(&key) || !flat.contains_key(key) {
                flat.insert(key, value);
            }
        }
        flat
    }
}

/// A list of names, or of `{name, values}`.
fn regions(document: &Document, line: u64, node: &Node) -> Result<Vec<Region>, CloudError> {
    let wrong = |line, what: &str| {
        Err(CloudError::Wrong {
            origin: document.at(line),
            key: "regions".to_owned(),
            what: what.to_owned(),
        })
    };
    let Kind::List(items) = &node.kind else { return wrong(line, "expected a list") };
    let mut regions = Vec::new();
    for item in items {
        let (name, values) = match &item.kind {
            Kind::Text(name) => (Some(name), None),
            Kind::Map(entries) => {
                let get =
                    |key| entries.iter().find(|(name, ..)| name == key).map(|(.., node)| node);
                let name = match get("name").map(|node| &node.kind) {
                    Some(Kind::Text(name)) => Some(name),
                    _ => None,
                };
                (name, get("values"))
            }
            Kind::Nothing | Kind::List(_) => (None, None),
        };
        let Some(name) = name else {
            return wrong(item.line, "expected a region's name, or a mapping with name and values");
        };
        let values = values.map(|node| Described::read(document, node)).transpose()?;
        regions.push(Region { name: name.clone(), values: values.unwrap_or_default() });
    }
    Ok(regions)
}

fn auth_key(name: &str) -> Option<&'static str> {
    let name = match name {
        "tenant_id" => "project_id",
        "tenant_name" => "project_name",
        "auth_token" => "token",
        "user_name" | USERNAME => return Some(USERNAME),
        name => name,
    };
    AUTH_KEYS.into_iter().find(|key| *key == name)
}

fn cloud_key(name: &str) -> Option<&'static str> {
    let name = match name {
        "auth_plugin" => "auth_type",
        "cloud" => "profile",
        "endpoint_type" => "interface",
        name => name,
    };
    let of_service = || {
        let (_, key) = SERVICES.iter().find_map(|service| {
            let key = name.strip_prefix(service)?.strip_prefix('_')?;
            Some((service, if key == "endpoint_type" { "interface" } else { key }))
        })?;
        match SERVICE_KEYS.into_iter().find(|known| *known == key)? {
            "endpoint_override" => Some("block_storage_endpoint_override"),
            "interface" => Some("block_storage_interface"),
            "region_name" => Some("block_storage_region_name"),
            _ => Some("block_storage_service_type"),
        }
    };
    CLOUD_KEYS.into_iter().find(|key| *key == name).or_else(of_service)
}

/// The key under `auth:` that was probably meant.
pub(super) fn near_auth_key(name: &str) -> Option<&'static str> {
    near(&name.replace('-', "_"), AUTH_KEYS.iter().chain(&[USERNAME]))
}

fn near<'a>(name: &str, keys: impl Iterator<Item = &'a &'static str>) -> Option<&'static str> {
    keys.copied().find(|key| is_near(name, key))
}

/// Whether it is the other with a slip or two.
fn is_near(name: &str, key: &str) -> bool {
    let slips = if key.len() < 5 { 1 } else { 2 };
    name != key && name.chars().count().abs_diff(key.len()) <= slips && distance(name, key) <= slips
}

/// How many letters must be put, taken or changed, or change places with the next.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for (i, left) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, right) in b.iter().enumerate() {
            let changed = rows[i][j] + usize::from(left != right);
            let mut least = changed.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *left == b[j - 1] && a[i - 1] == *right {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        for (slip, meant) in [
            ("passwrod", "password"),
            ("pasword", "password"),
            ("usrname", USERNAME),
            ("auth_ulr", "auth_url"),
            ("auth-uri", "auth_url"),
            ("poject_name", "project_name"),
            ("tokn", "token"),
        ] {
            assert_eq!(near_auth_key(slip), Some(meant), "{slip}");
        }
        for other in ["protocol", "passcode_x", "identity_provider", "x", ""] {
            assert_eq!(near_auth_key(other), None, "{other}");
        }
    }

    #[test]
    fn the_services_old_names_and_old_words_mean_the_same_keys() {
        for (written, key) in [
            ("volume_endpoint_override", Some("block_storage_endpoint_override")),
            ("block_storage_endpoint_override", Some("block_storage_endpoint_override")),
            ("volumev3_interface", Some("block_storage_interface")),
            ("volume_endpoint_type", Some("block_storage_interface")),
            ("volume_service_type", Some("block_storage_service_type")),
            ("endpoint_type", Some("interface")),
            ("auth_plugin", Some("auth_type")),
            ("volume_api_version", None),
            ("image_endpoint_override", None),
        ] {
            assert_eq!(cloud_key(written), key, "{written}");
        }
    }
}
