//! The names under which the aggregate offers what its services have: `service__tool`.
//!
//! A name never changes because another service appears: the prefix is always there.

use std::collections::BTreeMap;

/// The name in the aggregate.
pub fn prefixed(service: &str, name: &str) -> String {
    format!("{service}{SEPARATOR}{name}")
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
const LONGEST: usize = 64;

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
                let name = prefixed(service, &tool);
                let (found, (), rest) = split(&name, &services).unwrap();
                prop_assert_eq!((found, rest), (service.as_str(), tool.as_str()));
            }
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
