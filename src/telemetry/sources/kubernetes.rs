//! What Kubernetes tells of a pod: by the environment and files of the downward API, and by where its logs lie.
//!
//! Names are OpenTelemetry's (semantic conventions, resource `k8s`). A log's path is the kubelet's:
//! `/var/log/pods/NAMESPACE_POD_UID/CONTAINER/RESTARTS.log`, or `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`.

use std::collections::BTreeMap;
use std::path::Path;

/// Attributes that a log's path tells. `None` for a path that is not the kubelet's.
pub fn of_path(path: &Path) -> Option<BTreeMap<String, String>> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    of_pods(&parts).or_else(|| of_containers(&parts))
}

fn of_pods(parts: &[&str]) -> Option<BTreeMap<String, String>> {
    let at = parts.iter().position(|part| *part == "pods")?;
    let [pod, container, file] = parts.get(at + 1..)? else { return None };
    let mut pieces = pod.splitn(3, '_');
    let (namespace, name, uid) = (pieces.next()?, pieces.next()?, pieces.next()?);
    let mut found = attributes([
        ("k8s.namespace.name", namespace),
        ("k8s.pod.name", name),
        ("k8s.pod.uid", uid),
        ("k8s.container.name", container),
        ("service.name", container),
    ]);
    // `0.log`, `0.log.20261126-101112.gz`.
    let restarts = file.split('.').next().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    found.extend(restarts.map(|count| ("k8s.container.restart_count".to_owned(), count.to_owned())));
    Some(found)
}

fn of_containers(parts: &[&str]) -> Option<BTreeMap<String, String>> {
    let [.., "containers", file] = parts else { return None };
    let mut pieces = file.strip_suffix(".log")?.splitn(3, '_');
    let (pod, namespace) = (pieces.next()?, pieces.next()?);
    let (container, id) = pieces.next()?.rsplit_once('-')?;
    Some(attributes([
        ("k8s.pod.name", pod),
        ("k8s.namespace.name", namespace),
        ("k8s.container.name", container),
        ("container.id", id),
        ("service.name", container),
    ]))
}

/// Attributes of the pod that mcpeg itself runs in: variables that a manifest fills by the downward API, and the files of its volume.
pub fn of_environment(
    variable: impl Fn(&str) -> Option<String>,
    read: impl Fn(&Path) -> Option<String>,
) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (attribute, names) in VARIABLES {
        let value = names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
        found.extend(value.map(|value| (attribute.to_owned(), value)));
    }
    let folder = variable("MCPEG_PODINFO").unwrap_or_else(|| PODINFO.to_owned());
    for (attribute, file) in FILES {
        if !found.contains_key(attribute) {
            let value = read(&Path::new(&folder).join(file)).map(|text| text.trim().to_owned());
            found.extend(value.filter(|value| !value.is_empty()).map(|value| (attribute.to_owned(), value)));
        }
    }
    if let Some(labels) = read(&Path::new(&folder).join("labels")) {
        for (key, value) in labels.lines().take(MOST_LABELS).filter_map(|line| line.split_once('=')) {
            found.insert(format!("k8s.pod.label.{key}"), value.trim_matches('"').to_owned());
        }
    }
    if !found.contains_key("k8s.namespace.name") && variable("KUBERNETES_SERVICE_HOST").is_some() {
        let namespace = read(Path::new(NAMESPACE_FILE)).map(|text| text.trim().to_owned());
        found.extend(namespace.map(|name| ("k8s.namespace.name".to_owned(), name)));
    }
    found
}

fn attributes<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

const VARIABLES: [(&str, &[&str]); 6] = [
    ("k8s.pod.name", &["K8S_POD_NAME", "POD_NAME"]),
    ("k8s.pod.uid", &["K8S_POD_UID", "POD_UID"]),
    ("k8s.namespace.name", &["K8S_NAMESPACE_NAME", "POD_NAMESPACE"]),
    ("k8s.node.name", &["K8S_NODE_NAME", "NODE_NAME"]),
    ("k8s.container.name", &["K8S_CONTAINER_NAME", "CONTAINER_NAME"]),
    ("k8s.cluster.name", &["K8S_CLUSTER_NAME"]),
];
const FILES: [(&str, &str); 3] =
    [("k8s.pod.name", "name"), ("k8s.namespace.name", "namespace"), ("k8s.pod.uid", "uid")];
const PODINFO: &str = "/etc/podinfo";
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
const MOST_LABELS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_paths_tell_the_pod() {
        let found = of_path(Path::new("/var/log/pods/shop_agent-0_1a2b/main/2.log")).unwrap();
        let expected = [
            ("k8s.container.name", "main"),
            ("k8s.container.restart_count", "2"),
            ("k8s.namespace.name", "shop"),
            ("k8s.pod.name", "agent-0"),
            ("k8s.pod.uid", "1a2b"),
            ("service.name", "main"),
        ];
        assert_eq!(found, attributes(expected));
        let found = of_path(Path::new("/var/log/containers/agent-0_shop_main-abc123.log")).unwrap();
        assert_eq!((found["k8s.pod.name"].as_str(), found["container.id"].as_str()), ("agent-0", "abc123"));
        assert_eq!(of_path(Path::new("/var/log/agent/app.log")), None);
    }

    #[test]
    fn the_downward_api_tells_the_own_pod() {
        let variable = |name: &str| (name == "POD_NAME").then(|| "agent-0".to_owned());
        let read = |path: &Path| match path.to_str().unwrap() {
            "/etc/podinfo/namespace" => Some("shop\n".to_owned()),
            "/etc/podinfo/labels" => Some("app=\"agent\"\n".to_owned()),
            _ => None,
        };
        let found = of_environment(variable, read);
        let expected = [("k8s.namespace.name", "shop"), ("k8s.pod.label.app", "agent"), ("k8s.pod.name", "agent-0")];
        assert_eq!(found, attributes(expected));
    }
}
