//! The upstream: answers every line that has an id at once, as cheaply as possible. It lists as many tools as it is told to have.

use std::io::{BufRead, BufReader, BufWriter, Write};

pub fn serve(tools: usize) {
    let list = list(tools);
    let mut input = BufReader::with_capacity(64 * 1024, std::io::stdin().lock());
    let mut output = BufWriter::with_capacity(64 * 1024, std::io::stdout().lock());
    let mut line = String::new();
    while input.read_line(&mut line).is_ok_and(|read| read > 0) {
        if let Some(id) = id_of(&line) {
            let result = match line {
                _ if line.contains("\"initialize\"") => HELLO,
                _ if line.contains("\"tools/list\"") => &list,
                _ => RESULT,
            };
            writeln!(output, r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#).expect("the reader is there");
        }
        line.clear();
        if input.buffer().is_empty() {
            output.flush().expect("the reader is there");
        }
    }
}

/// The first is `echo`, the others have numbers.
fn list(tools: usize) -> String {
    let tool = |number: usize| {
        let name = if number == 0 { "echo".to_owned() } else { format!("tool_{number}") };
        format!(
            r#"{{"name":"{name}","description":"Answers at once","inputSchema":{{"type":"object","properties":{{"text":{{"type":"string"}},"limit":{{"type":"integer"}}}}}}}}"#
        )
    };
    format!(r#"{{"tools":[{}]}}"#, (0..tools).map(tool).collect::<Vec<_>>().join(","))
}

fn id_of(line: &str) -> Option<&str> {
    let rest = &line[line.find("\"id\":")? + 5..];
    Some(&rest[..rest.find([',', '}'])?])
}

const HELLO: &str =
    r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"echo","version":"1"}}"#;
const RESULT: &str = r#"{"content":[{"type":"text","text":"the same answer to every call, about as long as a short one is"}],"isError":false}"#;
