//! The upstream: answers every line that has an id at once, as cheaply as possible.

use std::io::{BufRead, BufReader, BufWriter, Write};

pub fn serve() {
    let mut input = BufReader::with_capacity(64 * 1024, std::io::stdin().lock());
    let mut output = BufWriter::with_capacity(64 * 1024, std::io::stdout().lock());
    let mut line = String::new();
    while input.read_line(&mut line).is_ok_and(|read| read > 0) {
        if let Some(id) = id_of(&line) {
            let result = if line.contains("\"initialize\"") { HELLO } else { RESULT };
            writeln!(output, r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#).expect("the reader is there");
        }
        line.clear();
        if input.buffer().is_empty() {
            output.flush().expect("the reader is there");
        }
    }
}

fn id_of(line: &str) -> Option<&str> {
    let rest = &line[line.find("\"id\":")? + 5..];
    Some(&rest[..rest.find([',', '}'])?])
}

const HELLO: &str =
    r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"echo","version":"1"}}"#;
const RESULT: &str = r#"{"content":[{"type":"text","text":"the same answer to every call, about as long as a short one is"}],"isError":false}"#;
