//! `telemetry.destinations` and `telemetry.spool`.

use super::*;
use crate::telemetry::settings::{Compression, OtlpProtocol, WhenFull};

#[test]
fn destinations_and_the_spool_become_settings() {
    let main = r#"version: "1.0"
telemetry:
  otlp: { endpoint: "http://127.0.0.1:4318" }
  destinations:
    elastic: { endpoint: "http://127.0.0.1:8200", protocol: grpc, compression: zstd }
  spool: { path: data/spool, max_size_mb: 64, when_full: block, dead_letters_mb: 0 }
"#;
    let config = Folder::with(&[("mcpeg.yaml", main)]).load().unwrap();
    let names: Vec<_> = config.telemetry.destinations.keys().map(String::as_str).collect();
    assert_eq!(names, ["elastic", "otlp"]);
    let elastic = &config.telemetry.destinations["elastic"];
    assert_eq!((elastic.traces.protocol, elastic.logs.compression), (OtlpProtocol::Grpc, Compression::Zstd));
    let spool = config.telemetry.spool.unwrap();
    assert!(spool.path.is_absolute() && spool.path.ends_with("data/spool"));
    assert_eq!((spool.bounds.max_bytes, spool.bounds.when_full), (64 << 20, WhenFull::Block));
    assert_eq!(spool.dead_letter_bytes, 0);
    assert!(config.telemetry.traces.is_some() && config.telemetry.metrics.is_some());
}

#[test]
fn a_spool_for_nobody_and_a_destination_of_a_taken_name_are_refused_at_their_places() {
    let found = problems_of(
        r#"version: "1.0"
telemetry:
  spool: { path: data/spool }
"#,
    );
    assert_eq!(found, ["mcpeg.yaml:3:10: nobody would take what is in it: `telemetry.otlp` is missing"]);
    let found = problems_of(
        r#"version: "1.0"
telemetry:
  destinations:
    otlp: { endpoint: "http://127.0.0.1:8200" }
    a/b: { endpoint: "http://127.0.0.1:8200" }
"#,
    );
    assert!(
        found.iter().any(|line| line.starts_with("mcpeg.yaml:4:") && line.contains("cannot be called `otlp`")),
        "{found:#?}"
    );
    assert!(
        found.iter().any(|line| line.starts_with("mcpeg.yaml:5:") && line.contains("a destination's name")),
        "{found:#?}"
    );
}

#[test]
fn variables_of_the_specification_fill_in_what_is_left_out() {
    let folder = Folder::with(&[
        ("mcpeg.yaml", "version: \"1.0\"\nmetadata: { name: n }\n"),
        ("ca.pem", ""),
        ("c.pem", ""),
        ("k.pem", ""),
    ]);
    let file = |name: &str| folder.path(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("c.pem"), file("k.pem"));
    let sources = Sources {
        variables: variables(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318/base"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:9/whole"),
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "X-Token=a%20b, x-other=c"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "3000"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &cert),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &key),
            ("OTEL_SERVICE_NAME", "named"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=i%2F1,service.name=not"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "5000"),
        ]),
        ..folder.sources()
    };
    let telemetry = load(&sources).unwrap().telemetry;
    let otlp = &telemetry.destinations["otlp"];
    assert_eq!((otlp.logs.endpoint.as_str(), otlp.logs.endpoint_is_whole), ("https://collector:4318/base", false));
    assert_eq!((otlp.traces.endpoint.as_str(), otlp.traces.endpoint_is_whole), ("http://traces:9/whole", true));
    assert_eq!((otlp.logs.protocol, otlp.metrics.protocol), (OtlpProtocol::HttpProtobuf, OtlpProtocol::Grpc));
    assert_eq!((otlp.logs.timeout.as_millis(), otlp.traces.timeout.as_millis()), (3000, 2500));
    assert_eq!(otlp.metrics.compression, Compression::Gzip);
    assert_eq!(otlp.logs.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["x-token", "x-other"]);
    let token = otlp.logs.headers[0].1.resolve(|_| Err(())).unwrap();
    assert_eq!(token.expose(), b"a b");
    assert_eq!(otlp.logs.tls.ca_file.as_deref(), Some(folder.path("ca.pem").as_path()));
    assert_eq!(otlp.logs.tls.client.as_ref().unwrap().key_file, folder.path("k.pem"));
    assert_eq!(
        (telemetry.resource["service.name"].as_str(), telemetry.resource["service.instance.id"].as_str()),
        ("named", "i/1")
    );
    assert_eq!(telemetry.traces.unwrap().sample_ratio, 0.25);
    assert_eq!(telemetry.metrics.unwrap().interval.as_secs(), 5);
}

#[test]
fn what_is_written_wins_over_variables_and_a_variable_that_is_wrong_is_named() {
    let main = "version: \"1.0\"\ntelemetry:\n  otlp: { endpoint: \"http://written:1\", headers: { X-Token: mine }, compression: none }\n  \
                destinations: { other: { endpoint: \"http://other:2\" } }\n";
    let folder = Folder::with(&[("mcpeg.yaml", main)]);
    let given = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://variable:3"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-token=theirs"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ];
    let sources = Sources { variables: variables(&given), ..folder.sources() };
    let telemetry = load(&sources).unwrap().telemetry;
    let (otlp, other) = (&telemetry.destinations["otlp"].logs, &telemetry.destinations["other"].logs);
    assert_eq!((otlp.endpoint.host_str(), otlp.compression), (Some("written"), Compression::None));
    assert_eq!(otlp.headers.len(), 1);
    assert_eq!(otlp.headers[0].1.resolve(|_| Err(())).unwrap().expose(), b"mine");
    assert!(other.headers.is_empty() && other.compression == Compression::None);
    assert!(telemetry.traces.is_none() && telemetry.metrics.is_some());

    let wrong = [("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")];
    let found = folder.problems(&Sources { variables: variables(&wrong), ..folder.sources() });
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(
        found.iter().any(|line| line.contains("OTEL_EXPORTER_OTLP_HEADERS is not `key=value` pairs")),
        "{found:#?}"
    );
    assert!(
        found.iter().any(|line| line.contains("OTEL_EXPORTER_OTLP_TIMEOUT is not a number of milliseconds")),
        "{found:#?}"
    );
    assert!(!found.iter().any(|line| line.contains("hunter2")));
}
