use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::Deserialize;
use url::Url;

/// Longest list of what a catalog has, in an error.
const MOST_SHOWN: usize = 30;

/// Which of a service's endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interface {
    /// For everybody.
    #[default]
    Public,
    /// For the cloud's own network.
    Internal,
    /// For administrators.
    Admin,
}

/// Not an interface of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an interface of the catalog: expected public, internal or admin")]
pub struct InterfaceError(String);

impl FromStr for Interface {
    type Err = InterfaceError;

    fn from_str(text: &str) -> Result<Self, InterfaceError> {
        // With URL at its end as Keystone v2 had it, and as many a file still does.
        match text.strip_suffix("URL").unwrap_or(text) {
            "public" => Ok(Self::Public),
            "internal" => Ok(Self::Internal),
            "admin" => Ok(Self::Admin),
            _ => Err(InterfaceError(text.chars().take(40).collect())),
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Admin => "admin",
        })
    }
}

/// Which endpoint is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The service's type and its other names, the best first.
    pub types: Vec<String>,
    /// The region; any where nothing is said.
    pub region: Option<String>,
    /// The interface.
    pub interface: Interface,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.types.first().map_or("", String::as_str);
        write!(f, "{} endpoint of the service {first}", self.interface)?;
        match &self.region {
            Some(region) => write!(f, " in region {region:?}"),
            None => Ok(()),
        }
    }
}

/// What a token can reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Catalog(Vec<Service>);

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Service {
    r#type: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Endpoint {
    interface: String,
    #[serde(default)]
    region_id: Option<String>,
    /// As older Keystones name it; newer ones say both.
    #[serde(default)]
    region: Option<String>,
    url: String,
}

impl Catalog {
    /// The endpoint that is wanted and that the caller can use; else what there is.
    ///
    /// # Errors
    /// [`Offered`]: there is none.
    pub fn find(&self, wanted: &Wanted, usable: impl Fn(&Url) -> bool) -> Result<Url, Offered> {
        for name in &wanted.types {
            for endpoint in self.0.iter().filter(|s| s.r#type == *name).flat_map(|s| &s.endpoints) {
                let url = endpoint.url().filter(|url| usable(url));
                if let Some(url) = url.filter(|_| endpoint.is(wanted)) {
                    return Ok(url);
                }
            }
        }
        Err(self.offered(&wanted.types))
    }

    fn offered(&self, types: &[String]) -> Offered {
        let mut offered = Offered::default();
        for service in &self.0 {
            if !types.contains(&service.r#type) {
                offered.services.insert(service.r#type.clone());
                continue;
            }
            for endpoint in &service.endpoints {
                let (interface, region) =
                    (&endpoint.interface, endpoint.region().unwrap_or("no region"));
                // Bare: an address may carry what is nobody's business.
                let path =
                    Url::parse(&endpoint.url).map(|url| url.path().to_owned()).unwrap_or_default();
                offered
                    .endpoints
                    .insert(format!("{} {interface} in {region} ({path})", service.r#type));
            }
        }
        offered
    }
}

impl Endpoint {
    fn region(&self) -> Option<&str> {
        self.region_id.as_deref().or(self.region.as_deref())
    }

    fn is(&self, wanted: &Wanted) -> bool {
        self.interface.parse() == Ok(wanted.interface)
            && wanted.region.as_deref().is_none_or(|region| self.region() == Some(region))
    }

    fn url(&self) -> Option<Url> {
        let url = Url::parse(&self.url).ok()?;
        (matches!(url.scheme(), "http" | "https") && url.host().is_some()).then_some(url)
    }
}

/// What a catalog has instead of what was wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offered {
    endpoints: BTreeSet<String>,
    services: BTreeSet<String>,
}

impl Offered {
    pub(super) fn advice(&self) -> &'static str {
        if self.endpoints.is_empty() && self.services.is_empty() {
            "name a project (project_name or project_id)"
        } else {
            "check region_name and interface, or name the endpoint (block_storage_endpoint_override)"
        }
    }
}

impl fmt::Display for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &BTreeSet<String>| {
            let shown: Vec<&str> = names.iter().take(MOST_SHOWN).map(String::as_str).collect();
            let more = if names.len() > MOST_SHOWN { ", …" } else { "" };
            format!("{}{more}", shown.join(", "))
        };
        match (self.endpoints.is_empty(), self.services.is_empty()) {
            (false, _) => write!(f, "it has {}", list(&self.endpoints)),
            (true, false) => write!(f, "it has only the services {}", list(&self.services)),
            (true, true) => f.write_str("it is empty, as for a token without a scope"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn catalog() -> Catalog {
        serde_json::from_value(json!([
            {"type": "identity", "name": "keystone", "endpoints": [
                {"interface": "public", "region_id": "one", "region": "one", "url": "http://id"}]},
            {"type": "volumev2", "endpoints": [
                {"interface": "public", "region_id": "one", "url": "http://cinder/v2/c0ffee"}]},
            {"type": "volumev3", "endpoints": [
                {"id": "x", "interface": "public", "region_id": "one", "url": "http://cinder-1/v3/c0ffee"},
                {"interface": "internal", "region_id": "one", "url": "http://inside-1/v3/c0ffee"},
                {"interface": "public", "region": "two", "url": "http://cinder-2/v3"}]},
            {"type": "odd", "endpoints": []},
        ]))
        .unwrap()
    }

    fn wanted(types: &[&str], region: Option<&str>, interface: Interface) -> Wanted {
        let types = types.iter().map(|name| (*name).to_owned()).collect();
        Wanted { types, region: region.map(str::to_owned), interface }
    }

    const NAMES: &[&str] = &["block-storage", "volumev3", "volume", "block-store", "volumev2"];

    #[test]
    fn type_region_and_interface_choose_the_endpoint() {
        for (region, interface, expected) in [
            (None, Interface::Public, "http://cinder-1/v3/c0ffee"),
            (Some("two"), Interface::Public, "http://cinder-2/v3"),
            (None, Interface::Internal, "http://inside-1/v3/c0ffee"),
        ] {
            let url = catalog().find(&wanted(NAMES, region, interface), |_| true).unwrap();
            assert_eq!(url.as_str(), expected);
        }
    }

    #[test]
    fn an_endpoint_that_the_caller_cannot_use_is_passed_over() {
        let first = wanted(&["volumev2", "volumev3"], None, Interface::Public);
        let url = catalog().find(&first, |url| !url.path().starts_with("/v2")).unwrap();
        assert_eq!(url.as_str(), "http://cinder-1/v3/c0ffee");
    }

    #[test]
    fn where_there_is_none_what_there_is_is_named() {
        let offered = |wanted| catalog().find(&wanted, |_| true).unwrap_err().to_string();
        let text = offered(wanted(NAMES, Some("three"), Interface::Public));
        for word in ["volumev3 public in one (/v3/c0ffee)", "volumev3 internal in one", "in two"] {
            assert!(text.contains(word), "{text}");
        }
        let text = offered(wanted(&["image"], None, Interface::Public));
        assert_eq!(text, "it has only the services identity, odd, volumev2, volumev3");
        let none = Catalog::default().find(&wanted(NAMES, None, Interface::Public), |_| true);
        assert!(none.unwrap_err().to_string().contains("empty"));
    }

    #[test]
    fn interfaces_are_read_in_their_old_form_too() {
        assert_eq!("publicURL".parse(), Ok(Interface::Public));
        assert_eq!("internal".parse(), Ok(Interface::Internal));
        for bad in ["", "pubic", "URL", "Public"] {
            assert!(bad.parse::<Interface>().is_err(), "{bad:?}");
        }
    }
}
