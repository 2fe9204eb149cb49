//! A certificate, its chain and its key as one PEM text.
//!
//! The fields are those of an answer of PKI (developer.hashicorp.com/vault/api-docs/secret/pki#generate-certificate-and-key:
//! `certificate`, `issuing_ca`, `ca_chain`, `private_key`), or those of a Kubernetes Secret of type `kubernetes.io/tls` (`tls.crt`,
//! `tls.key`, `ca.crt`). Each block stands once and ends with one newline; a part that holds no PEM is an error, not an empty file.

use zeroize::Zeroizing;

use super::book::{Field, Item};

/// What went wrong, in words; never a value.
pub(super) fn bundle(item: &Item, parts: &[String]) -> Result<String, String> {
    let mut text = Zeroizing::new(String::new());
    for name in parts {
        let part = PARTS.iter().find(|part| part.name == name).ok_or_else(|| {
            format!("there is no part {name:?} of a bundle; there are {}", PARTS.map(|part| part.name).join(", "))
        })?;
        let Some(field) = part.fields.iter().find_map(|field| item.field_named(field)) else {
            return Err(format!("secret {} has none of the fields {}", item.name(), part.fields.join(", ")));
        };
        add(&mut text, part, &field)?;
    }
    Ok(std::mem::take(&mut *text))
}

/// The order where a template names none. A chain is no part of every answer.
pub(super) fn usual(item: &Item) -> Vec<String> {
    let there = |part: &&Part| !part.is_optional || part.fields.iter().any(|field| item.field_named(field).is_some());
    PARTS[..3].iter().filter(there).map(|part| part.name.to_owned()).collect()
}

fn add(text: &mut String, part: &Part, field: &Field) -> Result<(), String> {
    let wrong = || format!("{field:?} holds no PEM {}", part.label);
    let value = std::str::from_utf8(field.bytes()).map_err(|_| wrong())?;
    // A list of the answer is kept as its JSON text.
    let blocks = match value.trim_start().starts_with('[') {
        true => serde_json::from_str::<Vec<String>>(value).map_err(|_| wrong())?,
        false => vec![value.to_owned()],
    };
    let blocks: Vec<Zeroizing<String>> = blocks.into_iter().map(Zeroizing::new).collect();
    for block in &blocks {
        let block = block.trim();
        let ends = block.starts_with("-----BEGIN ") && block.ends_with("-----") && block.contains(part.label);
        if !ends {
            return Err(wrong());
        }
        if !text.contains(block) {
            text.push_str(block);
            text.push('\n');
        }
    }
    if blocks.is_empty() { Err(wrong()) } else { Ok(()) }
}

struct Part {
    name: &'static str,
    /// The first of them that is there.
    fields: &'static [&'static str],
    /// What stands in the block's first line.
    label: &'static str,
    is_optional: bool,
}

const PARTS: [Part; 4] = [
    Part { name: "certificate", fields: &["certificate", "tls.crt"], label: "CERTIFICATE-----", is_optional: false },
    Part { name: "chain", fields: &["ca_chain", "issuing_ca", "ca.crt"], label: "CERTIFICATE-----", is_optional: true },
    Part { name: "key", fields: &["private_key", "tls.key"], label: "PRIVATE KEY-----", is_optional: false },
    Part { name: "ca", fields: &["issuing_ca", "ca.crt"], label: "CERTIFICATE-----", is_optional: false },
];
