//! The names and addresses under which the aggregate offers what its services have: `service__tool`, `mcpeg://service/URI`.
//!
//! A name never changes because another service appears: the prefix is always there. One that would be longer than `LONGEST_NAME` ends
//! in a digest of itself instead.

use std::collections::BTreeMap;

/// The name in the aggregate. `true`: it had to be shortened, so that it does not tell the name there.
pub fn prefixed(service: &str, name: &str) -> (String, bool) {
    let whole = format!("{service}{SEPARATOR}{name}");
    if whole.chars().count() <= LONGEST_NAME {
        return (whole, false);
    }
    let kept: String = whole.chars().take(LONGEST_NAME - DIGEST_CHARS - 1).collect();
    (format!("{kept}_{:016x}", digest(&whole)), true)
}

/// Whether a name may be one that was shortened.
pub fn may_be_shortened(name: &str) -> bool {
    name.chars().count() == LONGEST_NAME
}

/// Whether a name that may be a shortened one could have been made of a name that did not have to be.
pub fn is_whole<S>(name: &str, services: &BTreeMap<String, S>) -> bool {
    let tail = name.get(name.len().saturating_sub(DIGEST_CHARS + 1)..).unwrap_or_default();
    let is_digest = tail.starts_with('_') && tail[1..].bytes().all(|byte| byte.is_ascii_hexdigit());
    split(name, services).is_some() && !is_digest
}

/// FNV-1a: the same in every version and on every machine.
fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The address of a service's resource, or of a template, in the aggregate.
pub fn address(service: &str, uri: &str) -> String {
    format!("{SCHEME}{service}/{uri}")
}

/// The service that an address of the aggregate belongs to, and the address there.
pub fn split_address<'u, 's, S>(uri: &'u str, services: &'s BTreeMap<String, S>) -> Option<(&'s str, &'s S, &'u str)> {
    let (service, uri) = uri.strip_prefix(SCHEME)?.split_once('/')?;
    // Some clients write the part after the scheme in lower case.
    let found = services.get_key_value(service);
    let found = found.or_else(|| services.iter().find(|(name, _)| name.eq_ignore_ascii_case(service)));
    found.map(|(name, value)| (name.as_str(), value, uri))
}

/// The service that a name belongs to, and the name there. If several services fit, the longest: `a__b` is a service's name too.
pub fn split<'n, 's, S>(name: &'n str, services: &'s BTreeMap<String, S>) -> Option<(&'s str, &'s S, &'n str)> {
    let rest = |service: &str| name.strip_prefix(service)?.strip_prefix(SEPARATOR);
    let fitting = services.iter().filter_map(|(service, value)| Some((service.as_str(), value, rest(service)?)));
    fitting.max_by_key(|(service, ..)| service.len())
}

/// What to say about a name that no service has.
pub fn unknown<'s>(name: &str, services: impl Iterator<Item = &'s str>) -> String {
    let service = name.split_once(SEPARATOR).map_or(name, |(service, _)| service);
    let near = services.map(|known| (distance(service, known), known)).min();
    match near {
        Some((distance, known)) if distance <= 1 + service.len() / 4 => {
            format!(
                "no service has {name:?}: names begin with a service and {SEPARATOR:?}; did you mean \"{known}{SEPARATOR}...\"?"
            )
        }
        _ => format!("no service has {name:?}: names begin with a service and {SEPARATOR:?}"),
    }
}

/// Levenshtein's distance in bytes; names are short.
fn distance(a: &str, b: &str) -> usize {
    let b = &b.as_bytes()[..b.len().min(LONGEST)];
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().take(LONGEST).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

const SEPARATOR: &str = "__";
const SCHEME: &str = "mcpeg://";
const LONGEST: usize = 64;
/// What the protocol allows a tool's name.
const LONGEST_NAME: usize = 128;
const DIGEST_CHARS: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn services(names: &[&str]) -> BTreeMap<String, ()> {
        names.iter().map(|name| ((*name).to_owned(), ())).collect()
    }

    proptest! {
        #[test]
        fn a_prefixed_name_is_split_into_the_same_parts(tool in "\\PC{0,20}") {
            let services = services(&["a", "github", "x-1"]);
            for service in services.keys() {
                let (name, shortened) = prefixed(service, &tool);
                prop_assert!(!shortened);
                let (found, (), rest) = split(&name, &services).unwrap();
                prop_assert_eq!((found, rest), (service.as_str(), tool.as_str()));
            }
        }
    }

    #[test]
    fn a_name_that_is_too_long_is_shortened_always_in_the_same_way() {
        let (one, other) = ("x".repeat(130), format!("{}y", "x".repeat(129)));
        let (short, shortened) = prefixed("svc", &one);
        assert!(shortened && may_be_shortened(&short) && short.starts_with("svc__xxx"), "{short}");
        assert_eq!(prefixed("svc", &one).0, short);
        assert_ne!(prefixed("svc", &other).0, short);
        assert_eq!(prefixed("svc", &"x".repeat(123)), (format!("svc__{}", "x".repeat(123)), false));
        assert_eq!(digest("a"), 0xaf63_dc4c_8601_ec8c, "as the algorithm's authors give it");
    }

    #[test]
    fn an_address_keeps_the_services_own_in_it() {
        let services = services(&["git", "Files_2"]);
        for uri in ["repo://a/b?c#d", "file:///x/{path}", "x", ""] {
            let whole = address("Files_2", uri);
            let (service, (), rest) = split_address(&whole, &services).unwrap();
            assert_eq!((service, rest), ("Files_2", uri));
        }
        assert_eq!(split_address("mcpeg://files_2/x", &services).unwrap().0, "Files_2");
        for other in ["file:///x", "mcpeg://other/x", "mcpeg://git"] {
            assert!(split_address(other, &services).is_none(), "{other}");
        }
    }

    #[test]
    fn the_longest_service_that_fits_has_the_name() {
        let services = services(&["a", "a__b"]);
        assert_eq!(split("a__b__c", &services).unwrap().0, "a__b");
        assert_eq!(split("a__c", &services).unwrap().0, "a");
        assert!(split("b__c", &services).is_none());
    }

    #[test]
    fn a_slip_of_the_pen_gets_a_hint() {
        let services = || ["github", "mysql"].into_iter();
        assert!(unknown("gihtub__get_issue", services()).contains("did you mean \"github__...\""));
        assert!(!unknown("weather__now", services()).contains("did you mean"));
    }
}
