//! What the leak guard and the redaction of telemetry cost a byte, beside their floor, in one run: `cargo bench --bench guard`.
//!
//! One thread looks through 1 MiB of JSON text without a secret in it, as the result of a tool is. The floor is one pass of `memchr` over
//! the same bytes for a byte that is not there, which is as fast as memory can be read by one search. `short` adds a value of eight bytes,
//! for which every position has to be looked at. The last lines are a text with a value every 4 KiB, and what a change of a secret costs.

// A benchmark that meets anything unexpected should stop there, and it prints because that is what it is for.
#![allow(clippy::expect_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcpeg::guard::{Guard, SecretRedactor, Settings};
use mcpeg::ports::{Redactor, SecretObserver};
use mcpeg::secret::Secret;

fn main() {
    let clean = text(None);
    println!("{} KiB of text, best of {ROUNDS}\n", clean.len() / 1024);
    println!("{:<44} {:>10} {:>10}", "", "GB/s", "to floor");
    let floor = measure(&clean, |text| memchr::memchr(0xff, text).is_none());
    say("memchr, one pass (floor)", floor, floor);
    for (name, items, short) in [
        ("guard, 1 secret", 1, false),
        ("guard, 20 secrets", 20, false),
        ("guard, 500 secrets", 500, false),
        ("guard, 20 secrets, one of them short", 20, true),
        ("guard, 500 secrets, one of them short", 500, true),
    ] {
        let guard = guard(items, short);
        say(name, measure(&clean, |text| guard.find(text).is_empty()), floor);
    }
    let settings = Settings { builtin: true, custom: Vec::new() };
    let redactor = SecretRedactor::new(guard(20, false), &settings).expect("the patterns compile");
    let rate = measure(&clean, |text| matches!(redactor.redact(text), std::borrow::Cow::Borrowed(_)));
    say("telemetry: 20 secrets and the patterns", rate, floor);
    let (guard, dirty) = (guard(20, false), text(Some(&value(7))));
    say("guard, redacting a value every 4 KiB", measure(&dirty, |text| guard.redact(text).len() < text.len()), floor);

    println!();
    for items in [20, 500] {
        let guard = self::guard(items, false);
        let started = Instant::now();
        publish(&guard, 3, "replaced-0123456789-abcdefghijklmnop");
        println!("one secret of {items} replaced: {:.2} ms", started.elapsed().as_secs_f64() * 1e3);
    }
}

fn guard(items: usize, short: bool) -> Arc<Guard> {
    let guard = Arc::new(Guard::new().expect("random numbers"));
    (0..items).for_each(|item| publish(&guard, item, &value(item)));
    if short {
        publish(&guard, 0, "hunter22");
    }
    guard
}

fn publish(guard: &Guard, item: usize, value: &str) {
    let fields = BTreeMap::from([("token".to_owned(), Secret::copy_from(value.as_bytes()))]);
    guard.published(&format!("item{item}"), &fields);
}

fn value(item: usize) -> String {
    let number = (item as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("tok_{number:016x}{:016x}", number.rotate_left(29))
}

/// What a tool answers: rows of JSON, all different, with `planted` in some of them.
fn text(planted: Option<&str>) -> Vec<u8> {
    let mut text = String::from(r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":""#);
    for number in 0_u64.. {
        let mixed = number.wrapping_mul(0x2545_f491_4f6c_dd1d);
        text.push_str(&format!(
            r#"{{\"id\": {number}, \"name\": \"user-{mixed:x}\", \"mail\": \"{number}@example.com\", \"note\": \"The quick brown fox, {}\"}},\n"#,
            mixed % 977
        ));
        if let (Some(planted), true) = (planted, number % 32 == 0) {
            text.push_str(planted);
        }
        if text.len() >= BYTES {
            break;
        }
    }
    text.push_str(r#""}]}}"#);
    text.into_bytes()
}

/// GB/s of the best round.
fn measure(text: &[u8], work: impl Fn(&[u8]) -> bool) -> f64 {
    let round = || {
        let started = Instant::now();
        assert!(work(black_box(text)), "the text is not what it is said to be");
        started.elapsed()
    };
    let best = (0..ROUNDS).map(|_| round()).min().unwrap_or(Duration::MAX);
    text.len() as f64 / best.as_secs_f64() / 1e9
}

fn say(name: &str, rate: f64, floor: f64) {
    println!("{name:<44} {rate:>10.2} {:>9.0}%", rate / floor * 100.0);
}

const BYTES: usize = 1024 * 1024;
const ROUNDS: usize = 200;
